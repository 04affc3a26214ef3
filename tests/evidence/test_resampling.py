"""Are scores of a subset of the prompts those that the subset would have given?"""

import dataclasses
import math

import pytest
import torch

from safetyheads.evidence.resampling import prompt_scores, score_subsets
from tests.evidence.made_up import angles, made_up_angles
from tests.test_stats import normal


def test_a_subset_of_gram_readings_is_the_score_of_its_prompts():
    states = 2 * normal(8, seed=99) + normal(5, 12, 8)
    ablated = states + 0.3 * normal(5, 12, 8, seed=1)
    for space, rank in (("left", 1), ("left", 2), ("right", 1), ("feature0", 1)):
        whole = angles(states, ablated, space, rank)
        some = torch.tensor([[3, 1, 7, 8, 10], [0, 2, 4, 6, 8]])
        got = score_subsets(whole, some)
        for row, chosen in zip(got, some, strict=True):
            slow = angles(states[:, chosen], ablated[:, chosen], space, rank).values[0]
            torch.testing.assert_close(row, slow.double(), rtol=1e-5, atol=1e-5)
        assert got.std() > 0.1


def test_prompt_scores_have_the_score_as_mean_and_the_bootstraps_spread():
    whole = made_up_angles(12, 24, 0)
    found = prompt_scores(whole)
    torch.testing.assert_close(found.mean(-1), whole.values.double())
    drawn = torch.randint(0, 24, (150, 24), generator=torch.Generator().manual_seed(0))
    slow = score_subsets(whole, drawn).std(0)
    ratio = slow / (found[0].std(-1) / math.sqrt(24))
    assert ratio.median().item() == pytest.approx(1, abs=0.15)


def test_angles_need_to_know_how_they_were_made():
    lost = dataclasses.replace(made_up_angles(3, 6, 0), provenance={})
    with pytest.raises(ValueError, match="provenance names no generalized Ships"):
        prompt_scores(lost)
