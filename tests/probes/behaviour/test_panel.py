"""A rate is a span over judges, and a broken model is not able."""

import math

import pytest

from safetyheads.probes.behaviour.answers import Answer, Behaviour
from safetyheads.probes.behaviour.panel import capability, judge_span
from safetyheads.stats import wilson_interval

R, C, D, B = "refuse", "comply", "deflect", "degenerate"


def behaviour(said, judges=("first", "second")):
    """Made-up answers: by side and intervention what each judge says of each prompt."""
    answers = [
        Answer("set", side, n, name, verdicts, math.nan, 3, True, "0")
        for (side, name), given in said.items()
        for n, verdicts in enumerate(zip(*given, strict=True))
    ]
    return Behaviour(tuple(answers), judges, "model")


SAID = {
    ("harmful", "baseline"): ([R, R, R, C], [R, R, C, C]),
    ("harmful", "ablated"): ([C, C, R, B], [C, C, C, B]),
    ("harmless", "baseline"): ([C, C, C, R], [C, C, C, C]),
    ("harmless", "ablated"): ([C, R, B, B], [C, C, B, B]),
}


def test_a_rate_is_a_span_over_judges():
    table = judge_span(behaviour(SAID)).set_index(["side", "intervention", "verdict"])
    row = table.loc["harmful", "baseline", "refuse"]
    assert (row["lowest"], row["highest"], row["judges"], row["n"]) == (0.5, 0.75, 2, 4)
    assert (row["low"], row["high"]) == (wilson_interval(2, 4)[0], wilson_interval(3, 4)[1])
    assert -1 <= row["kappa"] < 1
    sure = table.loc["harmless", "ablated", "degenerate"]
    assert sure["lowest"] == sure["highest"] == 0.5


def test_one_judge_has_a_span_of_nothing_and_no_kappa():
    alone = {key: given[:1] for key, given in SAID.items()}
    found = behaviour(alone, ("first",))
    table = judge_span(found)
    assert (table["lowest"] == table["highest"]).all()
    assert table["kappa"].isna().all()
    assert "one judge (first), so that κ is not known" in repr(found)


def test_how_far_judges_agree_is_always_printed():
    found = behaviour(SAID)
    agreement = found.agreement()
    kappa = agreement[agreement["intervention"] == "all"]["kappa"].item()
    assert f"first and second κ {kappa:.2f}" in repr(found)


def test_what_it_could_do_untouched_is_counted():
    table = capability(behaviour(SAID)).set_index("intervention")
    assert table.loc["baseline", ["n", "able", "rate"]].tolist() == [3, 3, 1.0]
    ablated = table.loc["ablated"]
    assert (ablated["able"], ablated["degenerate"]) == (2, 3 / 8)
    assert ablated["above_floor"]
    assert not capability(behaviour({**SAID, ("harmless", "ablated"): ([B] * 4, [D] * 4)}))[
        "above_floor"
    ][1]
    assert capability(behaviour(SAID), "second")["n"].tolist() == [4, 4]


def test_capability_without_harmless_prompts_is_refused():
    harmful = {key: given for key, given in SAID.items() if key[0] == "harmful"}
    with pytest.raises(ValueError, match="read off harmless prompts and the untouched model"):
        capability(behaviour(harmful))
    silent = {**SAID, ("harmless", "baseline"): ([R] * 4, [R] * 4)}
    with pytest.raises(ValueError, match="complied with no harmless prompt of set"):
        capability(behaviour(silent))
