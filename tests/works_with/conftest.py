"""What tests of several files of this folder take."""

import pytest


@pytest.fixture
def folder(tmp_path):
    """A checkpoint to push, among other files of a training."""
    from pushing import save_among_others  # not above: its libraries are not what all files of this folder need

    return save_among_others(tmp_path / "checkpoint")
