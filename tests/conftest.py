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

settings.register_profile("shared-machine", deadline=None, max_examples=30)
settings.load_profile("shared-machine")


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks in its own hook
def pytest_collection_modifyitems(items):
    """With `--dist loadgroup` one worker has all tests of an architecture, or else of a file: it opens their model."""
    for item in items:
        values = item.callspec.params.values() if hasattr(item, "callspec") else ()
        name = next((v for v in values if isinstance(v, str) and v in CONFIGS), item.path.name)
        if name != "test_notebooks.py":  # each runs for seconds, and they share nothing
            item.add_marker(pytest.mark.xdist_group(name))


def pytest_collection_finish():
    """A million objects of libraries live as long as the tests: looking through them took a tenth of the suite."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


def pytest_runtest_setup():
    """Every test has its own count of calls whose types are checked."""
    checking.called.clear()
