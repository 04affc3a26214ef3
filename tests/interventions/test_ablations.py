"""Each ablation is what its formula says, worked out by hand."""

import json
from dataclasses import FrozenInstanceError

import pytest
import torch

from safetyheads.heads import Head
from safetyheads.interventions.ablating import AblateHead
from safetyheads.interventions.ablations import (
    Ablation,
    HeadActs,
    MeanAblation,
    ResampleAblation,
    ScalingContribution,
    UndifferentiatedAttention,
    ZeroAblation,
    describe,
)

ALL = [
    UndifferentiatedAttention(),
    UndifferentiatedAttention(1e-5),
    ScalingContribution(),
    ZeroAblation(),
    MeanAblation(),
    ResampleAblation(seed=3),
]
CAUSAL = torch.ones(1, 3, 3, dtype=torch.bool).tril()
V = torch.tensor([[[3.0, 0.0], [9.0, 6.0], [0.0, 3.0]]])
Z = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])


def acts(**given):
    return HeadActs(**{"z": Z, "v": V, "visible": CAUSAL, **given})


def test_undifferentiated_attention_is_the_running_mean_of_the_values():
    got = UndifferentiatedAttention()(acts())
    assert torch.allclose(got, torch.tensor([[[3.0, 0.0], [6.0, 3.0], [4.0, 3.0]]]))


def test_undifferentiated_attention_averages_only_what_a_sliding_window_shows():
    window = CAUSAL & ~torch.ones(1, 3, 3, dtype=torch.bool).tril(-2)  # itself and one before
    got = UndifferentiatedAttention()(acts(visible=window))
    assert torch.allclose(got, torch.tensor([[[3.0, 0.0], [6.0, 3.0], [4.5, 4.5]]]))


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_a_scaled_query_gives_the_softmax_of_scaled_and_then_capped_scores(softcap):
    scores = torch.tensor([[[8.0, 99.0, 99.0], [4.0, -4.0, 99.0], [2.0, 0.0, -6.0]]])
    got = UndifferentiatedAttention(0.5)(acts(scores=scores, softcap=softcap))
    last = torch.tensor([1.0, 0.0, -3.0], dtype=torch.float64)
    if softcap:
        last = softcap * torch.tanh(last / softcap)
    weights = last.exp() / last.exp().sum()
    expected = (weights[:, None] * V[0].double()).sum(0)
    assert torch.allclose(got[0, 2].double(), expected, atol=1e-6)
    assert torch.equal(
        got[0, 0], V[0, 0]
    )  # hidden keys count for nothing, however large their scores


def test_undifferentiated_attention_tends_to_its_closed_form():
    torch.manual_seed(0)
    scores, limit = 5 * torch.randn(1, 3, 3), UndifferentiatedAttention()(acts())
    gaps = [
        (UndifferentiatedAttention(e)(acts(scores=scores)) - limit).abs().max().item()
        for e in (1e-1, 1e-2, 1e-3, 1e-4, 1e-10)
    ]
    assert gaps[0] > 1e-2
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[3] < 1e-2 * gaps[1] * 2  # of first order in epsilon
    assert gaps[-1] < 1e-6
    assert UndifferentiatedAttention(0.0).needs == {"values"}
    assert UndifferentiatedAttention(1e-10).needs == {"values", "scores"}


def test_a_negative_epsilon_is_refused():
    with pytest.raises(
        ValueError, match=r"epsilon is -0.1; it scales the query and must be a finite number >= 0"
    ):
        UndifferentiatedAttention(-0.1)


def test_scaling_contribution_scales_the_output():
    assert torch.equal(ScalingContribution(0.5)(acts()), Z / 2)
    assert torch.equal(ScalingContribution(1.0)(acts()), Z)
    assert ScalingContribution().epsilon == 1e-5


def test_zero_ablation_writes_zero():
    got = ZeroAblation()(acts())
    assert got.shape == Z.shape
    assert not got.any()


def test_mean_ablation_writes_the_mean_at_every_position():
    got = MeanAblation()(acts(mean=torch.tensor([7.0, -1.0])))
    assert torch.equal(got, torch.tensor([[[7.0, -1.0]] * 3]))


def test_resample_ablation_writes_what_the_donor_gave():
    assert torch.equal(ResampleAblation()(acts(donor=lambda seed: Z + 10)), Z + 10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_dtype_of_the_model_is_kept(dtype):
    half = acts(
        z=Z.to(dtype),
        v=V.to(dtype),
        mean=torch.ones(2, dtype=dtype),
        donor=lambda seed: Z.to(dtype),
        scores=torch.randn(1, 3, 3).to(dtype),
    )
    assert {a(half).dtype for a in ALL} == {dtype}


@pytest.mark.parametrize("ablation", ALL, ids=repr)
def test_an_ablation_is_a_frozen_value(ablation):
    assert isinstance(ablation, Ablation)
    assert ablation == type(ablation)(
        **{k: v for k, v in describe(ablation).items() if k != "name"}
    )
    assert hash(ablation) == hash(type(ablation)(**vars(ablation)))
    for name in ("epsilon", "seed", "name"):
        if hasattr(ablation, name):
            with pytest.raises(FrozenInstanceError):
                setattr(ablation, name, 1)


@pytest.mark.parametrize("ablation", ALL, ids=repr)
def test_a_description_survives_json(ablation):
    described = describe(ablation)
    assert json.loads(json.dumps(described)) == described
    assert described["name"] == ablation.name


def test_descriptions_tell_ablations_apart():
    assert len({json.dumps(describe(a)) for a in ALL}) == len(ALL) == len(set(ALL))


def test_anything_with_a_name_needs_and_a_call_is_an_ablation():
    class Double:
        name = "double"
        needs = frozenset[str]()

        def __call__(self, acts: HeadActs) -> torch.Tensor:
            return acts.z * 2

    class Nameless:
        needs = frozenset[str]()

        def __call__(self, acts: HeadActs) -> torch.Tensor:
            return acts.z

    assert isinstance(Double(), Ablation)
    assert not isinstance(Nameless(), Ablation)
    assert not isinstance("zero", Ablation)


def test_a_variant_starts_at_its_heads_layer_and_is_hashable():
    one = AblateHead(Head(2, 5), ZeroAblation())
    assert one.first_layer == 2
    assert (
        len({one, AblateHead(Head(2, 5), ZeroAblation()), AblateHead(Head(2, 5), MeanAblation())})
        == 2
    )
