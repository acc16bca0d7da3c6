"""Evaluation of sequence classifiers: AdvGLUE, attacks, noise, stability, and model cards. Needs the extra `eval`."""

from importlib.util import find_spec


missing = [name for name in ("jinja2", "matplotlib", "scipy", "sklearn", "tabulate") if find_spec(name) is None]
if missing:
    raise ImportError(
        f"imbert_hf.evaluation needs {', '.join(missing)}: in a clone of the repository, pip install '.[eval]'.",
        name=missing[0],
    )
del find_spec, missing
