"""Evaluation of sequence classifiers: AdvGLUE, attacks, noise, stability, and model cards. Extra: imbert-hf[eval]."""

from importlib.util import find_spec


missing = [name for name in ("jinja2", "matplotlib", "scipy", "sklearn", "tabulate") if find_spec(name) is None]
if missing:
    raise ImportError(
        f'{", ".join(missing)} not found: imbert_hf.evaluation needs pip install "imbert-hf[eval]".', name=missing[0]
    )
del find_spec, missing
