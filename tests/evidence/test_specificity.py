"""Do specificity and null bands find what is there, and nothing where nothing is?"""

import dataclasses
import math

import pytest
import torch

from safetyheads import stats
from safetyheads.engine.execution import Execution
from safetyheads.evidence.specificity import null_band, specificity
from safetyheads.evidence.stability import rank_stability
from safetyheads.heads import HeadScores
from safetyheads.probes.single_heads import score_heads
from safetyheads.prompts import PromptSet
from tests.evidence.made_up import made_up_angles, scores
from tests.test_stats import normal, worst_gap_to_uniform
from tests.zoo import opened, sentence

QUIET = Execution(progress=False)


# Specificity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("paired", [True, False])
def test_a_head_that_matters_on_harmful_prompts_is_found_and_one_that_matters_for_all_is_not(
    two_sides, paired
):
    harmful, harmless = (scores(side) for side in two_sides)
    found = specificity(harmful, harmless, paired=paired)
    torch.testing.assert_close(found.values, harmful.values - harmless.values)
    assert (found.q < 0.05).nonzero().tolist() == [[2, 3]]
    assert found.low[2, 3] > 2
    assert found.low[1, 1] < 0 < found.high[1, 1]
    assert harmful.values.argmax().item() == 1 * 6 + 1  # the score alone puts that head first
    assert null_band(found).inside.logical_not().sum() < 4
    assert not null_band(found).inside[2, 3]
    assert found.n_prompts == (16, 16)
    assert found.test == ("sign flips" if paired else "label permutation")


def test_statistics_are_those_of_stats_on_each_head(two_sides):
    first, second = two_sides
    found = specificity(scores(first), scores(second), paired=True, confidence=0.9, seed=3)
    low, high = stats.bootstrap_interval(first[3, 2] - second[3, 2], confidence=0.9, seed=3)
    torch.testing.assert_close(
        torch.stack([found.low, found.high])[:, 3, 2], torch.stack([low, high])
    )
    assert found.p[3, 2] == stats.permutation_p(first[3, 2] - second[3, 2], seed=3)
    assert found.q.equal(stats.benjamini_hochberg(found.p))
    assert found.error[3, 2].item() == pytest.approx((first - second)[3, 2].std().item() / 4)
    apart = specificity(scores(first), scores(second[..., :9]), paired=False)
    assert apart.n_prompts == (16, 9)
    assert apart.p[3, 2] == stats.permutation_p(first[3, 2], second[3, 2, :9])


def test_pairs_see_what_two_sets_do_not():
    """Pairs that differ by little, against prompts that differ by much."""
    harmless = 10 * normal(1, 1, 12)
    harmful = harmless + 0.5 + 0.1 * normal(1, 1, 12, seed=1)
    assert specificity(scores(harmful), scores(harmless), paired=True).p.item() < 0.001
    assert specificity(scores(harmful), scores(harmless), paired=False).p.item() > 0.5


def test_a_refusal_shift_is_specific_where_it_is_more_negative_on_harmful_prompts():
    harmful = scores(normal(2, 3, 12) - 4, largest_first=False)
    harmless = scores(normal(2, 3, 12, seed=1), largest_first=False)
    found = specificity(harmful, harmless, paired=True)
    assert (found.values > 2).all()
    assert (found.low > 0).all()
    torch.testing.assert_close(found.values, harmless.values - harmful.values)
    assert not null_band(found).inside.any()


def test_p_values_of_relabelled_pairs_are_uniform():
    """A fair coin decides in every pair which member counts as harmful."""
    coin = (torch.rand(40, 30, 14, generator=torch.Generator().manual_seed(2)) < 0.5).double()
    first, second = normal(40, 30, 14).exp(), 3 + normal(40, 30, 14, seed=1)
    harmful, harmless = coin * first + (1 - coin) * second, coin * second + (1 - coin) * first
    found = specificity(
        scores(harmful), scores(harmless), paired=True, n_resamples=50, n_permutations=2000
    )
    assert worst_gap_to_uniform(found.p.flatten()) < 1.63 / math.sqrt(1200)
    band = null_band(found)
    assert band.inside.double().mean().item() == pytest.approx(0.975, abs=0.015)


def test_p_values_of_a_model_whose_labels_are_random_are_uniform():
    """One sweep of a random network; its prompts are then dealt into harmful and harmless a few hundred times."""
    words = torch.randint(6, 97, (20, 4), generator=torch.Generator().manual_seed(0)).tolist()
    prompts = PromptSet("dealt", tuple(sentence(*ids) for ids in words), ())
    swept = score_heads(opened("llama"), prompts, execution=QUIET)
    generator, p = torch.Generator().manual_seed(1), []
    for _ in range(120):
        order = torch.randperm(20, generator=generator)
        sides = [
            dataclasses.replace(swept, per_prompt=part, values=part.mean(-1))
            for part in (swept.per_prompt[..., order[:11]], swept.per_prompt[..., order[11:]])
        ]
        found = specificity(*sides, paired=False, n_resamples=20, n_permutations=200)
        p.append(found.p.flatten())
    for head in (0, 9, 23):
        assert worst_gap_to_uniform(torch.stack(p)[:, head]) < 1.63 / math.sqrt(120)
    # Over all heads of one deal p-values hang together; over deals each is as rare as it says.
    assert (torch.stack(p) < 0.05).double().mean().item() == pytest.approx(0.05, abs=0.015)


def test_estimated_scores_enter_no_statistic(two_sides):
    @dataclasses.dataclass(frozen=True, eq=False)
    class Screened(HeadScores):
        exact: torch.Tensor | None = None

    exact = torch.ones(4, 6, dtype=torch.bool)
    exact[0, 1] = exact[3] = False
    first, second = (side.clone() for side in two_sides)
    first[~exact] = second[~exact] = torch.nan  # whatever stands there must not be read
    fields = {f.name: getattr(scores(first), f.name) for f in dataclasses.fields(HeadScores)}
    fields.pop("exact", None)
    screened = Screened(**fields, exact=exact)
    found = specificity(screened, scores(second), paired=True)
    assert found.p.isnan().equal(~exact)
    assert found.values.isnan().equal(~exact)
    torch.testing.assert_close(found.q, stats.benjamini_hochberg(found.p), equal_nan=True)
    assert null_band(found).inside[~exact].all()
    whole = specificity(*(scores(side) for side in two_sides), paired=True)
    assert found.p[exact].equal(whole.p[exact])
    with pytest.raises(ValueError, match="7 of 24 scores are estimates"):
        rank_stability(screened)
    none = Screened(**fields, exact=torch.zeros(4, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match="every score is an estimate"):
        specificity(none, scores(second), paired=True)


def test_sides_that_do_not_belong_together_are_refused(two_sides):
    harmful, harmless = (scores(side) for side in two_sides)
    other = dataclasses.replace(harmless, ablation="mean")
    with pytest.raises(ValueError, match="the ablation is zero on one side and mean on the other"):
        specificity(harmful, other, paired=True)
    with pytest.raises(ValueError, match="16 harmful and 9 harmless prompts are no pairs"):
        specificity(harmful, scores(two_sides[1][..., :9]), paired=True)
    with pytest.raises(ValueError, match="give scores of one model"):
        specificity(harmful, scores(two_sides[1][:3]), paired=True)
    with pytest.raises(ValueError, match="1 prompt says nothing about spread"):
        specificity(*(scores(side[..., :1]) for side in two_sides), paired=True)
    bare = dataclasses.replace(harmful, per_prompt=None)
    with pytest.raises(ValueError, match="hold nothing a prompt"):
        specificity(bare, harmless, paired=True)


@pytest.mark.parametrize("paired", [True, False])
def test_p_values_of_angles_are_nearly_uniform_where_both_sides_are_alike(paired):
    harmful, harmless = made_up_angles(300, 12, 0), made_up_angles(300, 12, 5)
    few = {"n_resamples": 50, "n_permutations": 2000}
    found = specificity(harmful, harmless, paired=paired, **few)
    assert worst_gap_to_uniform(found.p.flatten()) < 0.12
    assert (found.p < 0.05).double().mean().item() == pytest.approx(0.05, abs=0.03)
    more = specificity(made_up_angles(300, 12, 0, noise=0.6), harmless, paired=paired, **few)
    assert (more.p < 0.05).double().mean() > 0.4
    assert (more.values > 0).double().mean() > 0.9


# Null bands ----------------------------------------------------------------------------------------------------------


def test_the_layer_band_of_a_head_is_that_of_the_others(two_sides):
    found = specificity(*(scores(side) for side in two_sides), paired=True)
    band = null_band(found, null="layer")
    for layer, head in ((2, 3), (0, 5)):
        others = [found.values[layer, h] for h in range(6) if h != head]
        assert band.high[layer, head] == torch.stack(others).quantile(0.975)
    assert not band.inside[2, 3]
    assert band.inside[2].sum() == 5
    assert band.inside.equal(~(found.values > band.high))


def test_the_band_of_a_random_network_is_in_standard_errors(two_sides):
    found = specificity(*(scores(side) for side in two_sides), paired=True)
    tiny = specificity(*(scores(1e-6 * side) for side in two_sides), paired=True)
    for random in (found, tiny):  # its scale does not matter
        band = null_band(found, null="random_init", random=random)
        steps = found.values / found.error
        assert band.inside.equal(steps <= steps.flatten().quantile(0.975))
    with pytest.raises(ValueError, match="needs the specificity of a random copy"):
        null_band(found, null="random_init")
    with pytest.raises(ValueError, match="null is 'labls'; it must be one of labels, layer"):
        null_band(found, null="labls")


@pytest.mark.parametrize(("pairs", "rate"), [(3, 0), (4, 0), (5, 0), (6, 1 / 64), (7, 3 / 128)])
def test_the_band_of_a_few_pairs_lets_through_what_exact_arithmetic_does(pairs, rate):
    """The order of signs that was observed is one of 2^n, and ties with itself whatever the rounding."""
    harmful, harmless = (normal(40, 50, pairs, seed=s).float().exp() for s in (0, 1))
    found = specificity(scores(harmful), scores(harmless), paired=True, n_resamples=5)
    above = (~null_band(found).inside).double().mean().item()
    assert above == pytest.approx(rate, abs=0.008 if rate else 0)


def test_the_band_of_two_sets_is_that_of_their_p_values():
    """Five prompts of threefold spread against thirty: what the band lets through are small p-values, few of them."""
    harmful, harmless = 3 * normal(40, 25, 5), normal(40, 25, 30, seed=1)
    found = specificity(
        scores(harmful), scores(harmless), paired=False, n_resamples=5, n_permutations=1000
    )
    above = ~null_band(found).inside
    assert 0.02 < above.double().mean().item() < 0.06
    above_chance = stats.permutation_p(
        harmful.double(), harmless.double(), alternative="greater", n_resamples=1000
    )
    assert above.equal(above_chance < 0.0255)
