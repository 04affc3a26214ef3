"""Does the agreement of two rankings follow from signal and noise, and grow with the prompts?"""

import math

import pytest
import torch
from scipy.stats import spearmanr

from safetyheads import stats
from safetyheads.evidence.stability import COLUMNS, power_curve, rank_stability
from tests.evidence.made_up import made_up_angles, scores
from tests.test_stats import normal


def test_stability_is_that_of_the_slow_loop_and_what_theory_says():
    prompts = 20
    flat = normal(60, 1) + 2 * normal(60, prompts, seed=1)
    got = rank_stability(scores(flat.unflatten(0, (6, 10))), k=5, n_resamples=15, seed=3)
    for n, (a, b) in enumerate(
        zip(*(h.tolist() for h in stats.disjoint_halves(prompts, None, 15, 3)), strict=True)
    ):
        first, second = flat[:, a].mean(-1), flat[:, b].mean(-1)
        assert got.spearman[n].item() == pytest.approx(spearmanr(first, second).statistic)
        tops = ({*t.topk(5).indices.tolist()} for t in (first, second))
        shared = len(set.intersection(*tops))
        assert got.jaccard[n].item() == pytest.approx(shared / (10 - shared))
    # Pearson's reliability of a half: 1 / (1 + 4 / 10).
    big = normal(2000, 1) + 2 * normal(2000, prompts, seed=1)
    mean = rank_stability(scores(big.unflatten(0, (40, 50))), n_resamples=10).spearman.mean().item()
    assert mean == pytest.approx(1 / 1.4, abs=0.04)


def test_specificity_is_less_stable_than_a_score_that_matters_for_all(two_sides):
    general = 3 * normal(4, 6, 1, seed=7)
    harmful, harmless = (scores(side + general) for side in two_sides)
    score = rank_stability(harmful).spearman.mean()
    specific = rank_stability(harmful, harmless, paired=True).spearman.mean()
    assert score > 0.8 > 0.5 > specific


def test_the_top_of_a_refusal_shift_is_its_most_negative():
    shift = torch.zeros(1, 20, 8)
    shift[0, 3:5] = -9
    shift = shift + normal(1, 20, 8)
    assert (rank_stability(scores(shift, largest_first=False), k=2).jaccard == 1).all()
    assert rank_stability(scores(shift), k=2).jaccard.mean() < 0.9


def test_a_power_curve_rises_with_the_prompts():
    made = scores(normal(4, 25, 1) + normal(4, 25, 40, seed=1), metric="made_up")
    table = power_curve(made, k=5, n_resamples=40)
    assert list(table.columns) == COLUMNS
    assert table["prompts"].drop_duplicates().tolist() == [2, 4, 8, 16, 20]
    assert set(table["ranking"]) == {"score"}
    for against in ("other prompts", "all prompts"):
        part = table[table["against"] == against]
        assert part["spearman"].is_monotonic_increasing
        assert (part["spearman_low"] < part["spearman"]).all()
        assert (part["spearman"] < part["spearman_high"]).all()
    # With noise of variance 1 a prompt, two sets of n agree to 1 / (1 + 1 / n), a set and all to the root of that.
    other, whole = (
        table[(table["against"] == against) & (table["prompts"] == 4)]["spearman"].item()
        for against in ("other prompts", "all prompts")
    )
    assert other == pytest.approx(0.8, abs=0.06)
    assert whole == pytest.approx(math.sqrt(0.8), abs=0.06)
    half = table[(table["against"] == "other prompts") & (table["prompts"] == 20)]
    exact = rank_stability(made, k=5, n_resamples=40)
    assert half["spearman"].item() == pytest.approx(exact.spearman.mean().item())
    assert half["overlap"].item() == pytest.approx(exact.jaccard.mean().item())


def test_power_of_angles_and_of_specificity():
    harmful, harmless = made_up_angles(8, 9, 0), made_up_angles(8, 9, 5)
    table = power_curve(harmful, harmless, paired=True, k=3, n_resamples=4)
    assert set(table["ranking"]) == {"specificity"}
    assert table["prompts"].drop_duplicates().tolist() == [2, 4]
    assert table["spearman"].between(-1, 1).all()
    with pytest.raises(ValueError, match="two disjoint sets of 6 do not fit in 9 prompts"):
        power_curve(harmful, sizes=[6])
