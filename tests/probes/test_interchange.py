"""A swapped head says what it says on the other prompt: one plain hooked pass each, and the planted models' truth."""

import pytest
import torch

from safetyheads.engine.execution import Execution
from safetyheads.heads import Head
from safetyheads.interventions.ablations import InterchangeAblation
from safetyheads.metrics import RefusalShift, refusal_log_odds
from safetyheads.probes.interchange import score_interchange
from safetyheads.probes.single_heads import score_heads
from safetyheads.prompts import PromptSet
from safetyheads.stats import permutation_p
from safetyheads.validation.planted import plant
from tests.oracles import plain
from tests.zoo import opened, sentence, tokenizer

QUIET = Execution(progress=False)
HARMFUL = (sentence(10, 11, 50, 51, 52, 60), sentence(10, 11, 53, 60), sentence(10, 11, 54, 55, 60))
HARMLESS = (
    sentence(10, 11, 70, 60),
    sentence(10, 11, 71, 72, 73, 60),
    sentence(10, 11, 74, 75, 60),
)
PAIRS = PromptSet("pairs", HARMFUL, HARMLESS, paired=True)
SHARED = 3  # BOS and two words
REFUSAL = RefusalShift(tokens=(3, 4, 5))
CHECKED = [(0, 1), (1, 4), (2, 0), (2, 5)]


def ids(text):
    return tokenizer()(text)["input_ids"]


def lent(model, borrower, lender, layer, head):
    """The lender's z, token by token from the end, within the shared prefix the borrower's own."""
    own, other = ids(borrower), ids(lender)
    theirs = model.z(other, layer)[:, head]
    places = [max(SHARED, t + len(other) - len(own)) for t in range(len(own))]
    return torch.stack([theirs[t if t < SHARED else p] for t, p in enumerate(places)])


def shift(model, borrower, lender, layer, head):
    z = lent(model, borrower, lender, layer, head)
    base = model.run(ids(borrower))[0]
    swapped = model.run(ids(borrower), model.writing_z(layer, head, lambda _: z))[0]
    return (
        refusal_log_odds(swapped, REFUSAL.tokens) - refusal_log_odds(base, REFUSAL.tokens)
    ).item()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_swaps_agree_with_plain_passes(name):
    model = plain(name)
    found = score_interchange(opened(name), PAIRS, metric=REFUSAL, execution=QUIET)
    for head in CHECKED:
        for n, (harmful, harmless) in enumerate(zip(HARMFUL, HARMLESS, strict=True)):
            needed = shift(model, harmful, harmless, *head)
            enough = shift(model, harmless, harmful, *head)
            assert found.necessity.per_prompt[head][n].item() == pytest.approx(needed, abs=1e-5)
            assert found.sufficiency.per_prompt[head][n].item() == pytest.approx(enough, abs=1e-5)
    assert found.necessity.values.abs().max() > 1e-2
    assert (found.unmatched.tolist(), found.unlent.tolist()) == ([2, 0, 0], [0, 2, 0])


@pytest.mark.parametrize("lender", ["same_side", "stranger"])
def test_in_the_controls_another_pair_lends(lender):
    of = InterchangeAblation(lender, seed=3).lenders(range(10))
    assert sorted(of) == list(range(10))
    for borrower, n in enumerate(of):
        assert (n < 5) == ((borrower < 5) == (lender == "same_side"))
        assert n % 5 != borrower % 5


@pytest.fixture(scope="module")
def swapped():
    planted = plant("decoy", pairs=8)
    return planted, score_interchange(planted.model, planted.prompts, execution=QUIET)


def test_the_planted_head_is_needed_and_suffices_and_the_decoy_is_neither(swapped):
    planted, found = swapped
    (safety,), (decoy,) = planted.safety, planted.decoys
    assert found.to_frame()["label"][0] == str(safety)
    assert found.necessity.values[safety] < -3
    assert found.sufficiency.values[safety] > 3
    assert found.same_side.values[safety].abs() < 0.5
    assert found.necessity.values[decoy].abs() < 0.5 < -found.stranger.values[safety]
    assert found.q[safety] < 0.25 < found.p[decoy]  # of 8 pairs p is 2/256 at best, times 24 heads


@pytest.mark.parametrize("n", [8, 16])
def test_p_is_uniform_where_harm_is_nothing_to_a_head(n):
    """Prompts of both sides alike, and an effect that depends on borrower and lender: swapping lenders is fair, though
    each harmful prompt lends once and borrows once."""
    random, heads = torch.Generator().manual_seed(n), 1500
    harmful, harmless = torch.randn(2, heads, n, 3, generator=random)
    reads = torch.randn(heads, 3, 3, generator=random)

    def effect(lender):
        return torch.einsum("hni,hij,hnj->hn", harmful, reads, lender - harmful).tanh()

    lenders = InterchangeAblation("same_side").lenders(range(2 * n))[:n]
    p = permutation_p(effect(harmless) - effect(harmful[:, lenders]), n_resamples=2000)
    for level, slack in ((0.05, 0.02), (0.5, 0.045)):  # 3.5 standard errors
        assert (p <= level).double().mean().item() == pytest.approx(level, abs=slack)


def test_without_pairs_it_is_refused():
    with pytest.raises(ValueError, match="not matched one to one"):
        score_interchange(opened("llama"), list(HARMFUL), execution=QUIET)
    with pytest.raises(ValueError, match="call score_interchange"):
        score_heads(opened("llama"), PAIRS, ablation=InterchangeAblation(), execution=QUIET)
    with pytest.raises(ValueError, match="1 pair"):
        score_interchange(opened("llama"), PAIRS.limit(1), execution=QUIET)
    with pytest.raises(ValueError, match="no score for each prompt"):
        score_interchange(opened("llama"), PAIRS, metric="generalized_ships", execution=QUIET)


def test_a_head_is_named_as_everywhere(swapped):
    assert str(Head(*next(iter(swapped[0].safety)))) in set(swapped[1].to_frame()["label"])
