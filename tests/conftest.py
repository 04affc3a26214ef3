"""What every test may rely on: no waiting for the Hub, one thread, no wandb, no deadlines."""

import gc
import os

for variable, value in {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_MODE": "disabled",
}.items():
    os.environ.setdefault(variable, value)

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

from tests import checking  # noqa: E402
from tests.zoo import CONFIGS  # noqa: E402

LONGEST = sorted(CONFIGS, key=len, reverse=True)

settings.register_profile("shared-machine", deadline=None, max_examples=30)
settings.load_profile("shared-machine")


FORKING = ("test_executors.py", "test_store.py", "test_mistakes.py", "test_fetching.py")
"""Their processes are forked from one server: its imports are paid for once where one worker runs them."""
LONG = (*FORKING, "test_planted.py", "test_notebooks.py", "test_types.py")
"""What takes longest begins first, so that no worker waits for another's last file."""


def named(nodeid, files):
    """Whether a test is of one of these files."""
    return nodeid.partition("::")[0].endswith(files)


def architecture_of(nodeid):
    """The architecture that a test is about, or None."""
    asked = nodeid.partition("::")[2].partition("[")[2]
    return next((name for name in LONGEST if name in asked), None)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: (not named(item.nodeid, LONG), not architecture_of(item.nodeid)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Of several workers one gets all tests of an architecture, or else of a file: no other opens their model.

    By the marks of `--dist loadgroup` this would be less, but xdist 3.8 does not see them under pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByModel(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            if named(nodeid, "test_notebooks.py"):  # each takes seconds, and they share nothing
                return nodeid
            if named(nodeid, FORKING):
                return "forking"
            return architecture_of(nodeid) or nodeid.partition("::")[0]

    config.option.loadscopereorder = False
    return ByModel(config, log)


def pytest_collection_finish():
    """A million objects of libraries live as long as the tests: looking through them took a tenth of the suite."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


def pytest_runtest_setup():
    """Every test has its own count of calls whose types are checked."""
    checking.called.clear()
