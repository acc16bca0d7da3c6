"""The entry point of imbert-eval, which answers where what it needs is not installed too."""

import sys


def main() -> None:
    try:
        from imbert_hf.evaluation.cli import main

        main()
    except ImportError as error:
        if {"-h", "--help"} & {*sys.argv[1:]}:
            print(f"imbert-eval measures how robust, stable and costly a sequence classifier is.\n\n{error}")
            return
        sys.exit(f"imbert-eval: error: {error}")
    except KeyboardInterrupt:  # while libraries are imported
        sys.exit("imbert-eval: interrupted")
