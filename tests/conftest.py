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


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Of several workers one gets all tests of an architecture, or else of a file: no other opens their model.

    By the marks of `--dist loadgroup` this would be less, but xdist 3.8 does not see them under pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByModel(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file, _, test = nodeid.partition("::")
            if file.endswith("test_notebooks.py"):  # each takes seconds, and they share nothing
                return nodeid
            return next((name for name in LONGEST if name in test.partition("[")[2]), file)

    return ByModel(config, log)


def pytest_collection_finish():
    """A million objects of libraries live as long as the tests: looking through them took a tenth of the suite."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


def pytest_runtest_setup():
    """Every test has its own count of calls whose types are checked."""
    checking.called.clear()
