"""Are answers judged and counted as they should be?"""

import pytest

from safetyheads.heads import Head
from safetyheads.interventions.ablating import AblateHead, AblateHeads
from safetyheads.interventions.ablations import ScalingContribution
from safetyheads.judges import VERDICTS
from safetyheads.probes.behaviour.answers import Answer, Behaviour, measure_behaviour
from safetyheads.probes.behaviour.generation import Decoding
from safetyheads.prompts import PromptSet
from tests.zoo import RAGGED, opened

HEADS = (Head(0, 1), Head(2, 3), Head(2, 4))
SCALED = AblateHeads(HEADS, ScalingContribution())
PAIRS = PromptSet("pairs", harmful=tuple(RAGGED), harmless=tuple(RAGGED[:2]))


@pytest.fixture(scope="module")
def llama():
    return opened("llama", spread=0.5)


def by_length(prompts, answers):
    """A judge that depends on the prompt and the answer only."""
    return [VERDICTS[(len(p) + len(a)) % 4] for p, a in zip(prompts, answers, strict=True)]


def always_refuse(prompts, answers):
    return ["refuse"] * len(answers)


def test_behaviour_is_judged_counted_and_named(llama):
    several = [AblateHead(head, ScalingContribution()) for head in HEADS]
    measured = measure_behaviour(
        llama,
        PAIRS,
        {"one by one": several, "together": SCALED},
        judge=[by_length, always_refuse],
        decoding=Decoding(5),
        keep_text=True,
        progress=False,
    )
    table = measured.to_frame()
    assert list(dict.fromkeys(table["intervention"])) == ["baseline", "one by one", "together"]
    assert len(table) == 3 * (3 + 2)
    assert (table["verdict_always_refuse"] == "refuse").all()
    expected = by_length(
        [getattr(PAIRS, s)[n] for s, n in zip(table["side"], table["prompt"], strict=True)],
        table["text"],
    )
    assert table["verdict"].tolist() == expected
    # Heads switched on one by one are the same as together; and not the same as none.
    digests = {name: rows["digest"].tolist() for name, rows in table.groupby("intervention")}
    assert digests["one by one"] == digests["together"] != digests["baseline"]
    rates = measured.rates()
    assert (
        rates.groupby(["intervention", "side"])["count"].sum()
        == rates.groupby(["intervention", "side"])["n"].first()
    ).all()
    assert ((rates["low"] <= rates["rate"]) & (rates["rate"] <= rates["high"])).all()
    assert measured.rates("always_refuse").query("verdict == 'refuse'")["rate"].eq(1).all()
    with pytest.raises(ValueError, match=r"no judge 'gpt': there are by_length, always_refuse"):
        measured.rates("gpt")


def test_texts_are_not_kept_unless_asked_for(llama):
    measured = measure_behaviour(llama, RAGGED, decoding=Decoding(4), progress=False)
    assert measured.to_frame()["text"].isna().all()
    kept = measure_behaviour(llama, RAGGED, decoding=Decoding(4), keep_text=True, progress=False)
    texts = kept.to_frame()["text"].tolist()
    assert any(texts)
    assert not any(text and text in repr(measured) + repr(kept) for text in texts)
    assert kept.to_frame()["digest"].tolist() == measured.to_frame()["digest"].tolist()


def test_agreement_of_judges_is_cohens_kappa():
    def answer(n, verdicts, odds):
        return Answer("d", "harmful", n, "baseline", verdicts, odds, 1, True, "")

    said = [("refuse", "refuse"), ("comply", "refuse"), ("comply", "comply"), ("refuse", "refuse")]
    odds = [1.0, -1.0, -2.0, 3.0]
    answers = tuple(answer(n, v, o) for n, (v, o) in enumerate(zip(said, odds, strict=True)))
    table = Behaviour(answers, ("a", "b"), "m").agreement().query("intervention == 'all'")
    kappas = {(r["first"], r["second"]): (r["kappa"], r["agreed"]) for _, r in table.iterrows()}
    assert kappas == {
        ("a", "b"): (0.5, 0.75),
        ("a", "first_token"): (1.0, 1.0),
        ("b", "first_token"): (0.5, 0.75),
    }


def test_wrong_input_is_refused(llama):
    with pytest.raises(ValueError, match=r"'x' is or holds a str, which has no active\(model\)"):
        measure_behaviour(llama, RAGGED, {"x": "L3H7"})
    with pytest.raises(ValueError, match="names the untouched model"):
        measure_behaviour(llama, RAGGED, {"baseline": SCALED})
    with pytest.raises(ValueError, match="judge is str: give a function"):
        measure_behaviour(llama, RAGGED, judge=["a judge"])
    with pytest.raises(ValueError, match="no harmless prompts"):
        measure_behaviour(llama, RAGGED, sides=["harmless"])
    with pytest.raises(ValueError, match="the limit is 4"):
        measure_behaviour(llama, RAGGED, decoding=Decoding(60))
