"""Is `import safetyheads` quick, and does every public name arrive when it is asked for?"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import safetyheads

STUB = Path(safetyheads.__file__).with_suffix(".pyi").read_text()
CHILD = """
import json, sys, time
start = time.perf_counter()
import safetyheads
seconds = time.perf_counter() - start
heavy = {"torch", "transformers", "transformer_lens", "pandas", "plotly"} & set(sys.modules)
print(json.dumps([seconds, sorted(heavy)]))
"""


def test_import_takes_under_half_a_second_and_loads_nothing_heavy():
    runs = [
        json.loads(subprocess.run([sys.executable, "-c", CHILD], capture_output=True, check=True,
                                  text=True).stdout)
        for _ in range(3)
    ]  # fmt: skip
    assert statistics.median(seconds for seconds, _ in runs) < 0.5
    assert all(heavy == [] for _, heavy in runs)


@pytest.mark.parametrize("name", safetyheads.__all__)
def test_every_public_name_arrives(name):
    assert name in dir(safetyheads)
    value = getattr(safetyheads, name)
    if name not in ("ROLE_PLAY", "TEMPLATES", "__version__"):
        assert value.__name__ == name
        assert f"from {value.__module__} import" in STUB


def test_an_unknown_name_is_answered_with_a_near_one():
    with pytest.raises(AttributeError, match="no attribute 'rank_safety_head'; did you mean 'rank"):
        safetyheads.rank_safety_head  # noqa: B018
    with pytest.raises(AttributeError, match=r"dir\(safetyheads\) lists the public names"):
        safetyheads.zebra  # noqa: B018
