"""A sweep over groups of heads, some of them given, agrees with one plain hooked forward pass each."""

import functools
from dataclasses import replace

import pytest
import torch

from safetyheads.engine.measurement import measure
from safetyheads.engine.sweep import sweep
from safetyheads.heads import Head
from safetyheads.inputs import prepare
from safetyheads.interventions.ablating import AblateHead, AblateHeads
from safetyheads.interventions.ablations import (
    MeanAblation,
    ResampleAblation,
    UndifferentiatedAttention,
    ZeroAblation,
)
from safetyheads.metrics import Ships
from safetyheads.models.blocks import Blocks
from tests.oracles import kl, plain
from tests.zoo import CONFIGS, RAGGED, opened, tokenizer

GIVEN = (Head(1, 1), Head(2, 5))
GROUPS = [
    *((Head(*at),) for at in [(0, 4), (2, 0)]),  # below and between the given
    (Head(1, 2), Head(1, 3), Head(2, 0)),
]


@pytest.fixture(scope="module", params=list(CONFIGS))
def zoo(request):
    return plain(request.param), opened(request.param)


@pytest.fixture(scope="module")
def llama():
    return plain("llama"), opened("llama")


TEXTS = RAGGED[:2]
PROMPTS = [tokenizer()(text)["input_ids"] for text in TEXTS]


def variants_of(ablation):
    return [
        AblateHead(*heads, ablation) if len(heads) == 1 else AblateHeads(heads, ablation)
        for heads in GROUPS
    ]


def ships_given(model, given):
    return replace(measure(prepare(model, TEXTS), metric=Ships()), given=given)


def swept_kl(model, ablation, given, **options):
    given = AblateHeads(given, ablation) if given else None
    swept = sweep(ships_given(model, given), variants_of(ablation), **options)
    return swept.readings, swept.exact_resume


@functools.cache
def bases_of(plain):
    return [plain.run(ids)[0] for ids in PROMPTS]


def plain_kl(plain, given, z_of):
    """KL of each group and prompt with z of all its heads replaced by `z_of(prompt, head, z)`, all at once."""
    values = torch.zeros(len(GROUPS), len(PROMPTS))
    for n, ids in enumerate(PROMPTS):
        base = bases_of(plain)[n]
        for g, heads in enumerate(GROUPS):
            hooks = [
                hook
                for head in (*heads, *given)
                for hook in plain.writing_z(*head, lambda z, n=n, head=head: z_of(n, head, z))
            ]
            values[g, n] = kl(base, plain.run(ids, hooks)[0])
    return values


def assert_close(got, expected):
    assert expected.max() > 1e-3, "the comparison would be vacuous"
    assert (got - expected).abs().max() <= 2e-6 * max(1.0, expected.max().item())


def test_groups_agree_with_plain_hooks_whatever_is_given(zoo):
    plain, model = zoo
    for given in ((), GIVEN):
        got, exact = swept_kl(model, ZeroAblation(), given)
        assert exact
        assert_close(got, plain_kl(plain, given, lambda n, head, z: torch.zeros_like(z)))


@pytest.mark.parametrize("rows", [1, 5])
def test_a_groups_score_does_not_depend_on_what_shares_the_batch(llama, rows):
    _, model = llama
    got, _ = swept_kl(model, UndifferentiatedAttention(), GIVEN, rows=rows)
    expected, _ = swept_kl(model, UndifferentiatedAttention(), GIVEN)
    assert_close(got, expected)


@pytest.mark.parametrize("epsilon", [0.0, 0.3])
def test_undifferentiated_groups_are_those_of_whole_passes_in_flight(zoo, epsilon):
    """In flight they are tested against plain hooks in test_editing."""
    _, model = zoo
    ablation = UndifferentiatedAttention(epsilon)
    got, exact = swept_kl(model, ablation, GIVEN)
    expected = torch.zeros_like(got)
    for n, ids in enumerate(PROMPTS):
        ids = torch.tensor([ids])
        with torch.inference_mode():
            base = model.logits(ids)[0, -1].double().log_softmax(-1)
            for g, heads in enumerate(GROUPS):
                with AblateHeads((*heads, *GIVEN), ablation).active(model):
                    expected[g, n] = kl(base, model.logits(ids)[0, -1].double().log_softmax(-1))
    assert exact
    assert_close(got, expected)


def test_the_mean_of_a_group_is_the_untouched_models(llama):
    plain, model = llama
    means = [
        torch.cat([plain.z(ids, layer) for ids in PROMPTS]).mean(0)
        for layer in range(model.n_layers)
    ]
    got, exact = swept_kl(model, MeanAblation(), GIVEN)
    assert exact
    expected = plain_kl(plain, GIVEN, lambda n, head, z: means[head.layer][head.head].expand_as(z))
    assert_close(got, expected)


def test_a_resampled_group_borrows_from_the_untouched_model(llama):
    """With and without a shared prefix in the cache: the rows decide whether it is used."""
    _, model = llama
    got, exact = swept_kl(model, ResampleAblation(), GIVEN)
    alone, _ = swept_kl(model, ResampleAblation(), GIVEN, rows=1)
    assert exact
    assert_close(got, alone)
    single, _ = swept_kl(model, ResampleAblation(), ())
    assert (got - single).abs().max() > 1e-3


def test_where_resuming_goes_wrong_groups_are_run_plainly(llama, monkeypatch):
    plain, model = llama
    real = Blocks.run

    def off(self, *args, **options):
        out = real(self, *args, **options)
        return out + 0.5 * torch.sin(out) if options.get("attn_out") is not None else out

    monkeypatch.setattr(Blocks, "run", off)
    with pytest.warns(UserWarning, match="exact and slow"):
        got, exact = swept_kl(model, ZeroAblation(), ())
    assert not exact
    assert_close(got, plain_kl(plain, (), lambda n, head, z: torch.zeros_like(z)))


def test_a_head_that_is_given_cannot_be_ablated_again(llama):
    with pytest.raises(ValueError, match="L1H1 is ablated already, as given"):
        sweep(
            ships_given(llama[1], AblateHeads(GIVEN, ZeroAblation())),
            [AblateHead(Head(1, 1), ZeroAblation())],
        )
