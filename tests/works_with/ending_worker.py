"""A script and its arguments as a command runs them, which then has to have left no thread of gloo's behind."""

import runpy
import sys

from launching import gloo_threads


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
    assert not gloo_threads()
