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

from hypothesis import settings  # noqa: E402

from tests import checking  # noqa: E402

settings.register_profile("shared-machine", deadline=None, max_examples=30)
settings.load_profile("shared-machine")


def pytest_collection_finish():
    """A million objects of libraries live as long as the tests: looking through them took a tenth of the suite."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


def pytest_runtest_setup():
    """Every test has its own count of calls whose types are checked."""
    checking.called.clear()
