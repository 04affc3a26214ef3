"""Is the page of verdicts what its records give, and do its verdicts follow from the numbers?"""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def opened():
    path = ROOT / "benchmarks" / "verdicts.py"
    spec = importlib.util.spec_from_file_location("verdicts", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
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
        [name, "" if name == "untouched" else "zero", verdicts.HARMFUL[0], "L1H1", text]
        for name, text in said.items()
    ]
    table = verdicts.Experiment({"answers": answers, "heads": [2, 2]}).comparisons()
    assert table["refused"].tolist() == [20, 8]
    assert table["p"].tolist()[1] == pytest.approx(2 * 0.5**12)
    assert table["q"].tolist()[1] == table["p"].tolist()[1]
    assert table["degenerate"].tolist() == [0, 1]
