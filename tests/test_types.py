"""Do a user's ten lines pass `mypy --strict`, and are a misspelt name and a wrong word found?"""

import inspect
import subprocess
import sys
import typing
from pathlib import Path

import pandas
import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

import safetyheads
from safetyheads.metrics import kl_divergence

pytest.importorskip("mypy")

GOOD = """
import safetyheads
from safetyheads import HeadScores, HookedModel, PromptSet, Ranking, ZeroAblation
from safetyheads import load_model, load_prompts, rank_safety_heads, score_heads

model: HookedModel = load_model("smollm2-135m-instruct")
prompts: PromptSet = load_prompts("builtin").limit(8)
ranking: Ranking = rank_safety_heads(model, prompts, ablations=[ZeroAblation()], metric="ships")
best = ranking.top(5)["label"].tolist()
scores: HeadScores = score_heads(model, prompts, ablation=ZeroAblation())
ranking.plot().write_html("scatter.html")
folder: str = safetyheads.__version__
"""
BAD = """
import safetyheads
safetyheads.rank_safety_head("m", ["a prompt"])
safetyheads.rank_safety_heads("m", ["a prompt"], null="label")
safetyheads.load_model("m").layers
"""


# `make check` has just read the package under its own settings: with the same ones its cache serves. What those leave
# out of --strict is asked of the user's lines.
STRICT = """
[[tool.mypy.overrides]]
module = ["good", "bad"]
disallow_subclassing_any = true
disallow_untyped_calls = true
warn_return_any = true
"""


def test_a_users_lines_are_checked(tmp_path):
    (tmp_path / "good.py").write_text(GOOD)
    (tmp_path / "bad.py").write_text(BAD)
    root = Path(__file__).parents[1]
    (tmp_path / "pyproject.toml").write_text((root / "pyproject.toml").read_text() + STRICT)
    command = [sys.executable, "-m", "mypy", "--no-pretty", "good.py", "bad.py"]
    command += ["--cache-dir", str(root / ".mypy_cache")]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    lines = [line for line in found.stdout.splitlines() if "error:" in line]
    assert len(lines) == 3, found.stdout + found.stderr
    assert 'bad.py:3: error: Module has no attribute "rank_safety_head"' in lines[0]
    assert 'bad.py:4: error: Argument "null"' in lines[1]
    assert 'bad.py:5: error: "HookedModel" has no attribute "layers"' in lines[2]


def test_a_table_is_a_data_frame_to_whoever_has_pandas_stubs():
    """mypy without these stubs takes every name of pandas for Any, whatever is written here."""
    classes = [c for n in safetyheads.__all__ if inspect.isclass(c := getattr(safetyheads, n))]
    tables = [c.to_frame for c in classes if hasattr(c, "to_frame")]
    assert len(tables) > 5
    for table in tables:
        hints = typing.get_type_hints(inspect.unwrap(table), localns={"pandas": pandas})
        assert hints["return"] is pandas.DataFrame, table.__qualname__


@pytest.mark.parametrize(
    ("base", "ablated"),
    [
        (torch.zeros(2, 3), torch.zeros(1, 3)),  # torch would broadcast them
        (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3)),
    ],
)
def test_a_wrong_shape_or_type_is_seen_while_the_tests_run(base, ablated):
    with pytest.raises(TypeCheckError):
        kl_divergence(base, ablated)


def test_a_wrong_result_is_seen_while_the_tests_run(monkeypatch):
    whole = Tensor.clamp_min
    monkeypatch.setattr(Tensor, "clamp_min", lambda self, low: whole(self, low).long())
    with pytest.raises(TypeCheckError):
        kl_divergence(torch.zeros(2, 3), torch.zeros(2, 3))
