"""Is the page of verdicts what its records give, and do its verdicts follow from the numbers?"""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def opened():
    path = ROOT / "benchmarks" / "verdicts.py"
    sys.path.insert(0, str(path.parent))  # as `python benchmarks/verdicts.py` does
    spec = importlib.util.spec_from_file_location("verdicts", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


verdicts = opened()
QUOTED = json.loads((ROOT / "benchmarks" / "records" / "quoted.json").read_text())


def test_the_committed_page_is_what_the_command_makes():
    assert verdicts.PAGE.read_text() == verdicts.page(*verdicts.load())


@pytest.mark.parametrize("row", QUOTED, ids=lambda row: row["claim"][:40])
def test_what_is_quoted_stands_on_the_page_that_is_named(row):
    page = (ROOT / row["page"]).read_text()
    assert [quote for quote in row["quotes"] if quote not in page] == []
    numbers = row.get("number", {}).get("text", "")
    assert not numbers or row["quotes"]


def row(number, control, claimed="above", **more):
    names = ("value", "low", "high")
    sides = [dict(zip(names, side, strict=False)) for side in (number, control)]
    sides[0] |= {"p": more.pop("p")} if "p" in more else {}
    return {"claimed": claimed, "number": sides[0], "control": sides[1], **more}


@pytest.mark.parametrize(
    ("made", "verdict"),
    [
        (row((5, 4, 6), (2, 1, 3)), "agrees"),
        (row((5, 2, 8), (2, 1, 3)), "cannot be said here"),
        (row((2.5, 1, 8), (2, 1, 3)), "does not agree"),
        (row((1, 0, 2), (2,)), "does not agree"),
        (row((1, 0, 1.5), (2,), "below"), "agrees"),
        (row((1, 0, 2.5), (2,), "below"), "cannot be said here"),
        (row((3, 2, 4), (2,), "below"), "does not agree"),
        (row((5, 4, 6), (2, 1, 3), blocked="why"), "cannot be said here"),
        (row((), (), missing="why"), "needs a 7B model"),
        (row((0.01, -0.03, 0.05), (), "neutral", p=0.6), "agrees"),
        (row((0.06, -0.01, 0.13), (), "neutral", p=0.1), "cannot be said here"),
        (row((0.06, 0.01, 0.09), (), "neutral", p=0.02), "does not agree"),
    ],
)
def test_a_verdict_follows_from_the_numbers(made, verdict):
    assert verdicts.decide(made) == verdict


def test_counts_have_wilsons_interval():
    made = row((), ())
    made["number"], made["control"] = {"hits": 30, "of": 60}, {"hits": 9, "of": 60}
    assert verdicts.decide(made) == "agrees"
    made["control"] = {"hits": 25, "of": 60}
    assert verdicts.decide(made) == "does not agree"


def test_answers_are_compared_on_the_same_prompts():
    said = {"untouched": "r" * 20 + "c" * 16, "ablated": "r" * 8 + "c" * 27 + "b"}
    answers = [
        [name, "" if name == "untouched" else "zero", "harmful", "L1H1", text]
        for name, text in said.items()
    ]
    table = verdicts.Experiment({"answers": answers, "heads": [2, 2]}).comparisons()
    assert table["refused"].tolist() == [20, 8]
    assert table["p"].tolist()[1] == pytest.approx(2 * 0.5**12)
    assert table["q"].tolist()[1] == table["p"].tolist()[1]
    assert table["degenerate"].tolist() == [0, 1]


def test_refusals_and_over_refusals_are_corrected_together_and_a_group_with_two_names_once():
    rows = [
        ("untouched", "", "", "r" * 20 + "c" * 4, "r" * 12 + "c" * 12),
        ("a", "zero", "L1H1", "r" * 10 + "c" * 14, "r" * 9 + "c" * 15),
        ("b", "zero", "L1H1", "r" * 10 + "c" * 14, "r" * 9 + "c" * 15),
        ("c", "zero", "L0H1", "r" * 19 + "c" * 5, None),
    ]
    answers = [
        [name, ablation, dataset, heads, text]
        for name, ablation, heads, harmful, safe in rows
        for dataset, text in (("harmful", harmful), ("safe", safe))
        if text
    ]
    table = verdicts.Experiment({"answers": answers, "heads": [2, 2]}).comparisons()
    assert table["over"].tolist()[:3] == [12, 9, 9]
    assert table["over_p"].tolist()[1] == pytest.approx(2 * 0.5**3)
    # three different tests: 10 and 1 refusals lost, 3 over-refusals lost
    assert table["q"].tolist()[1:] == pytest.approx([3 * 2 * 0.5**10, 3 * 2 * 0.5**10, 1.0])
    assert table["over_q"].tolist()[1:3] == pytest.approx([0.375, 0.375])


def test_a_score_that_orders_the_groups_predicts_them():
    said = {f"L0H{n}": "r" * (20 - 2 * n) + "c" * (4 + 2 * n) for n in range(8)}
    answers = [["untouched", "", "harmful", "", "r" * 20 + "c" * 4]]
    answers += [[heads, "zero", "harmful", heads, text] for heads, text in said.items()]
    scores = {"zero": [-n for n in range(8)], "mean": [0, 5, 1, 4, 2, 7, 3, 6]}
    record = {"answers": answers, "heads": [1, 8], "scores": {}}
    record["scores"] = {name: {"refusal_shift": some} for name, some in scores.items()}
    table = verdicts.Experiment(record).predictions().set_index("ablation")
    assert table.loc["zero", "rho"] == pytest.approx(1.0)
    assert table.loc["mean", "less_zero_high"] < 0
