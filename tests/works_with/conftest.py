"""What tests of several files of this folder take."""

import pytest


@pytest.fixture
def folder(tmp_path):
    """A checkpoint to push, among other files of a training."""
    from pushing import save_among_others  # not above: its libraries are not what all files of this folder need

    return save_among_others(tmp_path / "checkpoint")


@pytest.fixture(scope="module")
def server():
    """A stand-in for the Hub."""
    import hub

    with hub.running() as running:
        yield running


@pytest.fixture(scope="module")
def start(server, tmp_path_factory):
    """Starts processes that take the stand-in for the Hub."""
    import hub
    from pushing import SCRIPT, Worker

    started = []

    def start(name, before="", token=hub.TOKEN):
        folder = tmp_path_factory.mktemp(name)
        env = server.environment(folder / "home", token)
        if not before:
            env["PYTHONPATH"] = str(SCRIPT.parents[1])
        started.append(Worker(before, folder, env))
        return started[-1]

    yield start
    for worker in started:
        worker.process.stdin.close()
        worker.process.wait(timeout=60)
        worker.process.stdout.close()


@pytest.fixture(scope="module")
def user(start):
    return start("user")
