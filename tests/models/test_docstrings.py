"""What help() says of every public name: what it is, and examples that run."""

import doctest
import inspect

import pytest

import imbert_hf


PUBLIC = {name: getattr(imbert_hf, name) for name in imbert_hf.__all__}
WITH_EXAMPLE = [name for name in PUBLIC if name.startswith("IM") and not name.endswith("PreTrainedModel")]
WITH_EXAMPLE += ["ThetaScheduleCallback", "implicit_step"]


@pytest.mark.parametrize("name", PUBLIC)
def test_a_docstring_of_its_own(name):
    found = inspect.getdoc(PUBLIC[name])
    assert len(found) > 60
    parents = PUBLIC[name].__mro__[1:] if isinstance(PUBLIC[name], type) else ()
    assert found not in [inspect.getdoc(parent) for parent in parents]


@pytest.mark.parametrize("name", WITH_EXAMPLE)
def test_its_example_runs(name):
    finder = doctest.DocTestFinder(recurse=False)
    (example,) = finder.find(PUBLIC[name], name, globs={}, module=False)
    found = doctest.DocTestRunner().run(example)
    assert (found.failed, found.attempted > 1) == (0, True)


def test_a_class_of_a_user_keeps_its_docstring():
    class Mine(imbert_hf.IMBertModel):
        """Mine."""

    assert inspect.getdoc(Mine) == "Mine."
