"""The planted models do what they are said to, and each method finds in them what it can and no more."""

from contextlib import nullcontext

import pandas
import pytest
import torch

from safetyheads.heads import Head
from safetyheads.interventions.ablating import AblateHeads
from safetyheads.interventions.ablations import (
    ScalingContribution,
    UndifferentiatedAttention,
    ZeroAblation,
)
from safetyheads.validation.ground_truth import check_methods
from safetyheads.validation.planted import KINDS, plant


@pytest.fixture(scope="module", params=list(KINDS))
def planted(request):
    return plant(request.param)


@torch.inference_mode()
def refusal(planted, side, heads=()):
    """Probability of a refusal on each prompt of a side, with some heads at zero."""
    tokenizer, chances = planted.model.tokenizer, []
    refusing = tokenizer.convert_tokens_to_ids(["I", "As", "Sorry"])
    for text in getattr(planted.prompts, side):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        silent = AblateHeads(tuple(heads), ZeroAblation()) if heads else None
        with silent.active(planted.model) if silent else nullcontext():
            logits = planted.model.logits(ids)
        chances.append(logits[0, -1].softmax(-1)[refusing].sum())
    return torch.stack(chances)


def test_it_refuses_harmful_requests_and_no_others(planted):
    assert refusal(planted, "harmful").min() > 0.9
    assert refusal(planted, "harmless").max() < 0.1


def test_without_its_safety_heads_it_refuses_nothing(planted):
    assert refusal(planted, "harmful", planted.safety).max() < 0.1
    assert refusal(planted, "harmful", planted.siblings).min() > 0.9
    others = {Head(la, he) for la in range(4) for he in range(6)}
    others -= planted.safety | planted.decoys | planted.siblings
    for head in sorted(others)[::5]:
        assert refusal(planted, "harmful", [head]).min() > 0.8


def test_either_of_the_redundant_pair_suffices():
    planted = plant("redundant")
    assert len(planted.safety) == 2
    for head in planted.safety:
        assert refusal(planted, "harmful", [head]).min() > 0.8


def test_the_sibling_shares_keys_and_values_with_the_safety_head():
    planted = plant("grouped")
    assert planted.model.n_kv == 2
    (safety,), (sibling,) = planted.safety, planted.siblings
    assert (safety.layer, safety.head // 3) == (sibling.layer, sibling.head // 3)


def test_the_same_seed_plants_the_same_model():
    one, same, other = plant(), plant(), plant(seed=1)
    assert one.model.provenance["weights"] == same.model.provenance["weights"]
    assert one.prompts == same.prompts
    assert one.model.provenance["weights"] != other.model.provenance["weights"]
    assert one.prompts != other.prompts


@pytest.mark.parametrize(
    ("options", "message"),
    [({"kind": "two"}, "choose one of one, decoy, grouped"), ({"pairs": 0}, "at least one")],
)
def test_what_cannot_be_planted_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        plant(**options)


# What the methods find ------------------------------------------------------------------------------------------------

SCORES = ["ships", "refusal_shift", "ships, screened", "sahara (ships)"]
CONTROLLED = ["specificity of ships", "specificity of refusal_shift"]


@pytest.fixture(scope="module")
def found():
    """Precision, by kind, ablation and method."""
    parts = [
        check_methods(ablations=[UndifferentiatedAttention()], pairs=2),
        check_methods(["decoy", "redundant"], [ScalingContribution()], pairs=2),
    ]
    return pandas.concat(parts).set_index(["kind", "ablation", "method"]).sort_index()


def test_a_lone_safety_head_is_found_by_every_score_of_the_next_token(found):
    ablation = "undifferentiated_attention"
    for kind in ("one", "grouped", "qk_norm"):
        for method in (*SCORES, *CONTROLLED):
            assert found.loc[(kind, ablation, method), "precision"] == 1, (kind, method)


@pytest.mark.parametrize("ablation", ["undifferentiated_attention", "scaling_contribution"])
def test_a_decoy_fools_ships_and_not_specificity(found, ablation):
    row = found.loc["decoy", ablation]
    for method in ("ships", "ships, screened", "sahara (ships)"):
        assert row.loc[method, "decoy"]
        assert row.loc[method, "recall_at_3"] == 1
    assert row.loc["specificity of ships", "precision"] == 1


@pytest.mark.parametrize("ablation", ["undifferentiated_attention", "scaling_contribution"])
def test_a_redundant_pair_is_found_by_pairs_alone(found, ablation):
    row = found.loc["redundant", ablation]
    assert row.loc["strongest of all pairs (ships)", "precision"] == 1
    for method in (*SCORES, "sahara (right)"):
        assert row.loc[method, "precision"] < 1


def test_an_angle_of_left_vectors_sees_no_change_that_all_prompts_share(found):
    left = found.xs("generalized_ships (left, rank 1)", level="method")
    right = found.xs("generalized_ships (right, rank 1)", level="method")
    assert left["precision"].mean() < 0.2
    assert right["precision"].mean() > 0.5
