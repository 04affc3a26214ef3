"""Are intervals, p-values and agreements what they say? Known values, coverage and uniformity by simulation.

Reference values were computed with scipy 1.17.1, statsmodels 0.15.0 and scikit-learn.
"""

import math
from itertools import combinations

import pytest
import torch
from scipy.stats import ttest_ind

from safetyheads import stats

DIFFERENCES = torch.tensor([0.3, -0.1, 0.8, 0.5, 0.2, -0.4, 0.9, 0.1], dtype=torch.float64)
FIRST = torch.tensor([1.2, 0.7, 3.1, 2.2], dtype=torch.float64)
SECOND = torch.tensor([0.4, 0.9, 1.1, 0.2, 1.9], dtype=torch.float64)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def worst_gap_to_uniform(p):
    """The Kolmogorov-Smirnov statistic of p against the uniform distribution."""
    ordered, n = p.double().sort().values, len(p)
    above = torch.arange(1, n + 1) / n - ordered
    return max(above.max().item(), (ordered - torch.arange(n) / n).max().item())


# Intervals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [8, 16, 48])
def test_an_interval_of_normal_values_holds_the_mean_as_often_as_it_says(n):
    low, high = stats.bootstrap_interval(normal(2000, n), n_resamples=1000)
    assert ((low <= 0) & (high >= 0)).double().mean() == pytest.approx(0.95, abs=0.02)
    low, high = stats.bootstrap_interval(normal(2000, n), n_resamples=1000, confidence=0.8)
    assert ((low <= 0) & (high >= 0)).double().mean() == pytest.approx(0.8, abs=0.03)


def test_the_coverage_on_paired_differences_of_skewed_scores_is_the_one_documented():
    values = normal(3000, 16).exp() - normal(3000, 16, seed=1).exp()
    low, high = stats.bootstrap_interval(values)
    assert ((low <= 0) & (high >= 0)).double().mean() == pytest.approx(0.93, abs=0.015)


def test_an_interval_of_two_independent_sets_holds_the_difference():
    low, high = stats.bootstrap_interval(normal(2000, 20) + 3, normal(2000, 12, seed=1))
    assert ((low <= 3) & (high >= 3)).double().mean() == pytest.approx(0.95, abs=0.02)
    narrow, wide = stats.bootstrap_interval(normal(5, 20)), (low[:5], high[:5])
    assert ((narrow[1] - narrow[0]) < (wide[1] - wide[0])).all()


def test_interval_ends_are_those_of_a_t_interval_on_many_normal_values():
    values = normal(400)
    low, high = stats.bootstrap_interval(values, n_resamples=20_000)
    reach = 1.9659 * values.std() / 20  # t quantile of 399 degrees of freedom
    assert low.item() == pytest.approx((values.mean() - reach).item(), abs=0.005)
    assert high.item() == pytest.approx((values.mean() + reach).item(), abs=0.005)


def test_an_interval_of_equal_values_is_their_value_and_a_seed_gives_it_again():
    low, high = stats.bootstrap_interval(torch.full((2, 5), 0.25))
    assert low.tolist() == high.tolist() == [0.25, 0.25]
    once, twice, other = (stats.bootstrap_interval(normal(3, 9), seed=s)[0] for s in (1, 1, 2))
    assert once.equal(twice)
    assert not once.equal(other)


def test_bootstrap_draws_are_means_of_prompts_drawn_with_replacement():
    values, seed = normal(3, 5), 4
    generator = torch.Generator().manual_seed(seed)
    draws = stats._bootstrap_means(values, 50, generator)
    drawn = torch.randint(0, 5, (50, 5), generator=torch.Generator().manual_seed(seed))
    slow = torch.stack([values[:, some].mean(-1) for some in drawn])
    torch.testing.assert_close(draws, slow)
    assert draws[:, 0].unique().numel() > 20


@pytest.mark.parametrize("function", [stats.bootstrap_interval, stats.permutation_p])
def test_too_few_or_broken_values_are_refused(function):
    with pytest.raises(ValueError, match="1 prompt says nothing about spread; give at least 2"):
        function(torch.ones(3, 1))
    with pytest.raises(ValueError, match="1 prompt says nothing"):
        function(torch.ones(3, 4), torch.ones(3, 1))
    with pytest.raises(ValueError, match="not finite"):
        function(torch.tensor([1.0, float("nan"), 2.0]))


def test_a_confidence_that_is_no_share_is_refused():
    with pytest.raises(ValueError, match=r"confidence is 95.0; give a share between 0 and 1"):
        stats.bootstrap_interval(normal(5), confidence=95.0)


# p-values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alternative", "paired", "unpaired"),
    [
        ("two-sided", 0.1328125, 25 / 126),  # scipy doubles one tail, 22 / 126; here |t| counts
        ("greater", 0.06640625, 0.0873015873),
        ("less", 0.953125, 0.9206349206),
    ],
)
def test_exact_p_values_are_scipys(alternative, paired, unpaired):
    p = stats.permutation_p(DIFFERENCES, alternative=alternative)
    assert p.item() == pytest.approx(paired, abs=1e-12)
    p = stats.permutation_p(FIRST, SECOND, alternative=alternative)
    assert p.item() == pytest.approx(unpaired, abs=1e-9)


@pytest.mark.parametrize(("n", "m"), [(4, 5), (5, 5), (2, 6)])
def test_every_rearranged_t_is_scipys(n, m):
    """All labellings of two sets, each by scipy's Welch test."""
    first, second = normal(3, n) + 100, 4 * normal(3, m, seed=1) + 100
    found = stats.rearranged(first, second)
    pooled = torch.cat([first, second], -1)
    slow = []
    for chosen in combinations(range(n + m), n):
        rest = [k for k in range(n + m) if k not in chosen]
        one, other = pooled[:, list(chosen)].numpy(), pooled[:, rest].numpy()
        slow.append(torch.as_tensor(ttest_ind(one, other, axis=-1, equal_var=False).statistic))
    torch.testing.assert_close(torch.cat(list(found.draws)), torch.stack(slow))
    torch.testing.assert_close(found.observed, slow[0])
    assert found.exact


@pytest.mark.parametrize(
    ("n", "m", "most"), [(5, 30, 0.1), (30, 5, 0.1), (8, 30, 0.075), (30, 30, 0.07)]
)
def test_two_sets_of_unequal_size_and_spread_are_seldom_called_different(n, m, most):
    """The smaller one has three times the spread. A difference of means alone calls 0.32 of 5 against 30 different."""
    wide, narrow = (3.0, 1.0) if n <= m else (1.0, 3.0)
    p = stats.permutation_p(
        wide * normal(3000, n), narrow * normal(3000, m, seed=1), n_resamples=500
    )
    found = (p <= 0.05).double().mean().item()
    assert 0.035 < found < most


def test_random_rearrangements_come_near_the_exact_p_and_never_give_zero():
    many = {"n_resamples": 125}  # fewer than the 256 sign patterns and the 126 labellings
    for sample in ((DIFFERENCES,), (FIRST, SECOND)):
        drawn = [stats.permutation_p(*sample, **many, seed=s).item() for s in range(40)]
        assert len(set(drawn)) > 5
        exact = stats.permutation_p(*sample).item()
        assert sum(drawn) / 40 == pytest.approx(exact + (1 - exact) / 126, abs=0.02)
    sure = normal(3, 30) * 0.01 + 5
    assert stats.permutation_p(sure, n_resamples=99).tolist() == [0.01] * 3


@pytest.mark.parametrize("sizes", [(10, None), (20, None), (5, 6), (14, 9)])
def test_p_values_are_uniform_under_a_true_null(sizes):
    """Skewed scores on both sides of a pair, and in two sets; exact and by random rearrangement."""
    n, m = sizes
    values = normal(1500, n).exp()
    sample = (values - normal(1500, n, seed=1).exp(),)
    if m is not None:
        sample = (values, normal(1500, m, seed=1).exp())
    limit = 1.63 / math.sqrt(1500)  # 1 % of the Kolmogorov distribution
    p = stats.permutation_p(*sample, n_resamples=2000)
    assert worst_gap_to_uniform(p) < limit
    p = stats.permutation_p(sample[0] + 0.5, *sample[1:], n_resamples=2000)
    assert worst_gap_to_uniform(p) > limit


def test_a_p_value_does_not_depend_on_what_stands_beside_it_or_on_batches(monkeypatch):
    values = normal(7, 18)
    together = stats.permutation_p(values, n_resamples=500)
    monkeypatch.setattr(stats, "BATCH", 70)
    assert stats.permutation_p(values, n_resamples=500).equal(together)
    assert stats.permutation_p(values[2], n_resamples=500).equal(together[2])


def test_equal_values_give_no_evidence():
    assert stats.permutation_p(torch.zeros(20)).item() == 1
    assert stats.permutation_p(torch.full((6,), 0.1), torch.full((7,), 0.1)).item() == 1


def test_an_unknown_alternative_is_refused():
    unchecked = getattr(stats.permutation_p, "__wrapped__", stats.permutation_p)
    with pytest.raises(ValueError, match="alternative is 'both'; it must be"):
        unchecked(DIFFERENCES, alternative="both")


def test_q_values_are_statsmodels():
    p = [0.001, 0.008, 0.039, 0.041, 0.042, 0.06, 0.074, 0.205, 0.212, 0.216]
    q = [0.01, 0.04, 0.084, 0.084, 0.084, 0.1, 0.10571428571428572, 0.216, 0.216, 0.216]
    order = [3, 9, 0, 1, 8, 2, 7, 4, 6, 5]
    got = stats.benjamini_hochberg(torch.tensor(p, dtype=torch.float64)[order].reshape(2, 5))
    torch.testing.assert_close(got, torch.tensor(q, dtype=torch.float64)[order].reshape(2, 5))


def test_a_test_that_was_not_made_does_not_count():
    q = stats.benjamini_hochberg(torch.tensor([0.01, float("nan"), 0.04]))
    torch.testing.assert_close(q[[0, 2]], torch.tensor([0.02, 0.04]))
    assert q[1].isnan()
    assert stats.benjamini_hochberg(torch.full((3,), float("nan"))).isnan().all()
    with pytest.raises(ValueError, match="p-values lie between 0 and 1"):
        stats.benjamini_hochberg(torch.tensor([0.5, 1.5]))


def test_false_discoveries_stay_at_the_rate_asked_for():
    """50 real effects among 200: of what passes q < 0.1, at most a tenth is false on average."""
    shares = []
    for seed in range(20):
        values = normal(200, 12, seed=seed)
        values[:50] += 1.2
        found = stats.benjamini_hochberg(stats.permutation_p(values)) < 0.1
        assert found[:50].double().mean() > 0.7
        shares.append((found[50:].sum() / found.sum()).item())
    assert 0.02 < sum(shares) / 20 < 0.1


# Ranks ---------------------------------------------------------------------------------------------------------------


def test_spearman_is_scipys_also_with_ties():
    x, y = torch.tensor([1.0, 2, 2, 4, 5, 3]), torch.tensor([2.0, 1, 2, 6, 2, 5])
    assert stats.spearman(x, y).item() == pytest.approx(0.46203082772527304, abs=1e-12)
    both = stats.spearman(torch.stack([x, y]), torch.stack([-x, y]))
    torch.testing.assert_close(both, torch.tensor([-1.0, 1.0], dtype=torch.float64))
    assert stats.spearman(torch.ones(4), torch.arange(4.0)).isnan()


def test_overlap_of_the_top():
    x = torch.tensor([5.0, 4, 3, 2, 1, 0])
    y = torch.tensor([4.0, 0, 5, 3, 1, 2])
    assert stats.jaccard_at_k(x, y, 3).item() == 2 / 4  # 0 1 2 and 2 0 3
    # The two smallest: 5 4 and 1 4.
    assert stats.jaccard_at_k(x, y, 2, largest=False).item() == 1 / 3
    assert stats.jaccard_at_k(x, y, 6).item() == 1
    with pytest.raises(ValueError, match="k is 7; there are 6 items"):
        stats.jaccard_at_k(x, y, 7)


def test_halves_are_disjoint_and_of_the_size_asked_for():
    first, second = stats.disjoint_halves(11, n_resamples=30)
    assert first.shape == second.shape == (30, 5)
    for a, b in zip(first.tolist(), second.tolist(), strict=True):
        assert len({*a, *b}) == 10
        assert {*a, *b} <= set(range(11))
    with pytest.raises(ValueError, match="two disjoint sets of 6 do not fit in 11 prompts"):
        stats.disjoint_halves(11, 6)


def test_prompts_needed_undoes_reliability():
    """With noise of variance v a prompt, n prompts agree to 1 / (1 + v / n)."""
    for v, n in ((4.0, 10), (0.5, 3)):
        needed = stats.prompts_needed(1 / (1 + v / n), n, target=0.9)
        assert 1 / (1 + v / needed) == pytest.approx(0.9)
    assert stats.prompts_needed(-0.1, 10) == math.inf
    assert stats.prompts_needed(1.0, 10) == 0
    with pytest.raises(ValueError, match="target is 1"):
        stats.prompts_needed(0.5, 10, target=1.0)


# Rates ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hits", "trials", "wilson"),
    [
        (3, 20, (0.052368745896, 0.360418864741)),
        (10, 10, (0.722467200137, 1.0)),
        (0, 5, (0.0, 0.434482463175)),
        (450, 1000, (0.419415384074, 0.480967291774)),
    ],
)
def test_intervals_of_a_rate_are_statsmodels(hits, trials, wilson):
    assert stats.wilson_interval(hits, trials) == pytest.approx(wilson, abs=1e-8)


def test_intervals_of_a_rate_at_another_confidence_and_of_no_trials():
    narrow = stats.wilson_interval(3, 20, confidence=0.9)
    assert narrow == pytest.approx((0.06158241047736826, 0.3218280756753069), abs=1e-9)
    for hits, trials in ((0, 0), (3, 2), (-1, 4)):
        with pytest.raises(ValueError, match=f"{hits} of {trials} is not a rate"):
            stats.wilson_interval(hits, trials)
    with pytest.raises(ValueError, match="confidence is 95"):
        stats.wilson_interval(1, 2, confidence=95.0)


def test_kappa_is_scikit_learns():
    assert stats.cohen_kappa("aabbbcacba", "abbbbcacca") == pytest.approx(0.696969696969697)
    assert stats.cohen_kappa([1, 2, 1], [1, 2, 1]) == 1
    assert math.isnan(stats.cohen_kappa(["refuse"] * 3, ["refuse"] * 3))
    with pytest.raises(ValueError, match="3 and 2 labels"):
        stats.cohen_kappa([1, 2, 1], [1, 2])


def test_matched_normals_have_the_mean_and_covariance_of_the_samples():
    samples = torch.randn(12, 5, generator=torch.Generator().manual_seed(0)) @ torch.randn(5, 5) + 3
    draws = stats.matched_normals(samples, 40_000, seed=1)
    size = torch.cov(samples.double().mT)
    assert (torch.cov(draws.mT) - size).abs().max() < 0.05 * size.abs().max()
    assert (draws.mean(0) - samples.double().mean(0)).abs().max() < 0.05 * size.diag().max().sqrt()
    assert torch.equal(draws, stats.matched_normals(samples, 40_000, seed=1))
    with pytest.raises(ValueError, match="1 samples of shape"):
        stats.matched_normals(samples[:1], 2)
