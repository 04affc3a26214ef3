"""A carrier is lost under every removal; what only the ablation writes is called so."""

import dataclasses

import pytest
import torch

from safetyheads.engine.execution import Execution
from safetyheads.evidence.carriers import find_carriers, judge_effects
from safetyheads.probes.carrying import find_carrying_groups
from safetyheads.probes.interchange import score_interchange
from safetyheads.probes.single_heads import score_heads
from safetyheads.validation.planted import plant

QUIET = Execution(progress=False)
REMOVALS = ("zero", "interchange", "interchange (stranger)")


def noise(items=40, prompts=16, seed=0):
    return torch.randn(items, prompts, generator=torch.Generator().manual_seed(seed))


def test_each_verdict_on_effects_that_are_known():
    effects = {
        name: noise(seed=n) for n, name in enumerate((*REMOVALS, "undifferentiated_attention"))
    }
    for name in REMOVALS:
        effects[name][0] -= 4
        effects[name][1] += 4
    effects["undifferentiated_attention"][2] -= 4
    effects["zero"][3] -= 4
    effects["zero"][4] -= 4
    effects["interchange"][4] += 4
    effects["interchange (stranger)"][4] += 4
    effects["zero"][5:7] += 4  # one removal raises what the ablation lowers, or raises too
    effects["undifferentiated_attention"][5] -= 4
    effects["undifferentiated_attention"][6] += 4
    labels = [f"L0H{n}" for n in range(40)]
    found = judge_effects(effects, labels, "refusal_shift").verdicts()
    assert found[:5].tolist() == ["carrier", "opposes", "written", "unsettled", "unsettled"]
    assert found[5:7].tolist() == ["written", "unsettled"]
    assert (found[7:] == "nothing").mean() > 0.9


def test_one_removal_beside_what_writes_tells_what_is_written_and_calls_nothing_a_carrier():
    effects = {name: noise(seed=n) for n, name in enumerate(("scaling_contribution", "u"))}
    effects["scaling_contribution"][:2] += torch.tensor([[-4.0], [4.0]])
    effects["u"][:3] -= 4
    found = judge_effects(effects, [f"L0H{n}" for n in range(40)], "refusal_shift").verdicts()
    assert found[:3].tolist() == ["lowers", "raises", "written"]
    assert (found[3:] == "nothing").mean() > 0.9


def test_one_removal_alone_or_beside_itself_tells_nothing():
    for names in (("zero", "scaling_contribution"), ("mean", "resample"), ("resample", "u")):
        with pytest.raises(ValueError, match="give at least two that differ"):
            judge_effects({name: noise() for name in names}, [f"L0H{n}" for n in range(40)], "m")


def test_a_note_names_each_item_once_and_says_where_prompts_are_too_few():
    effects = {name: noise(seed=n) - 4 for n, name in enumerate(REMOVALS)}
    labels = [f"L0H{n}" for n in range(40)]
    found = judge_effects(effects, labels, "refusal_shift")
    assert found.note(["L0H3", "L0H1"]) == "carrier: L0H3, L0H1"
    few = judge_effects({name: some[:, :8] for name, some in effects.items()}, labels, "m")
    assert few.note(["L0H1"]).endswith("; with 8 prompts no effect can pass alone")


def test_of_nothing_few_are_called_effects():
    """Benjamini-Hochberg: with no effect at all, any discovery in at most one of twenty experiments, or so."""
    named = 0
    for seed in range(25):
        effects = {name: noise(10, 14, 3 * seed + n) for n, name in enumerate(REMOVALS)}
        named += (judge_effects(effects, list("abcdefghij"), "m").verdicts() != "nothing").any()
    assert named <= 5  # 1 to 2 expected; more than 5 has a chance of 0.002


@pytest.fixture(scope="module")
def planted():
    return plant("decoy", pairs=16)


@pytest.fixture(scope="module")
def scores(planted):
    options = {"metric": "refusal_shift", "execution": QUIET}
    found = [
        score_heads(planted.model, planted.prompts, ablation=name, **options)
        for name in ("zero", "mean", "resample")
    ]
    return [*found, score_interchange(planted.model, planted.prompts, execution=QUIET).necessity]


def test_the_planted_head_is_a_carrier_and_what_all_share_is_kept_by_resample(planted, scores):
    found = find_carriers(scores)
    verdicts = found.verdicts()
    (safety,), (decoy,) = planted.safety, planted.decoys
    assert verdicts[str(safety)] == "carrier"
    # Interchange tells what carries harm from what carries any answer: the decoy is lost alike on both sides.
    assert verdicts[str(decoy)] != "carrier"
    rows = found.table[found.table["label"] == str(safety)].set_index("ablation")
    assert rows.loc["zero", "effect"] < -3
    assert abs(rows.loc["resample", "effect"]) < 0.5
    assert "interchange" in repr(found)


def test_groups_are_judged_alike(planted):
    (safe,) = map(str, planted.safety)
    found = find_carrying_groups(
        planted.model, planted.prompts, [[safe, "L0H0"], ["L0H0", "L3H1"]], execution=QUIET
    )
    assert found.verdicts()[f"{safe}+L0H0"] == "carrier"
    assert found.verdicts()["L0H0+L3H1"] != "carrier"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: s[:1], "at least two that differ"),
        (lambda s: [s[0], s[0]], "comes twice"),
        (lambda s: [s[0], dataclasses.replace(s[3], metric="ships")], "one metric and one model"),
        (lambda s: [s[0], dataclasses.replace(s[3], per_prompt=None)], "no score for each prompt"),
        (
            lambda s: [s[0], dataclasses.replace(s[3], per_prompt=s[3].per_prompt[..., :3])],
            "same ones",
        ),
        (
            lambda s: [dataclasses.replace(one, per_prompt=one.per_prompt.abs()) for one in s],
            "has no sign",
        ),
        (lambda s: [], "no scores"),
    ],
)
def test_what_cannot_be_judged_is_refused(scores, change, match):
    with pytest.raises(ValueError, match=match):
        find_carriers(change(scores))
