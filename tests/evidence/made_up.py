"""Scores without a model: a number a prompt, and angles of made-up states."""

import dataclasses

import torch

from safetyheads.heads import HeadScores
from safetyheads.interventions.ablations import describe
from safetyheads.metrics import GeneralizedShips
from tests.test_stats import normal


def scores(per_prompt, largest_first=True, **changes):
    """Scores of a metric that is a number a prompt."""
    made = HeadScores(per_prompt.mean(-1), per_prompt, "zero", "made_up", "nat", largest_first)
    return dataclasses.replace(made, **changes)


def angles(states, ablated, space="left", rank=1):
    """Generalized Ships of made-up final states [head prompt d], as one layer."""
    metric = GeneralizedShips(space, rank)
    grams = torch.stack([states @ states.mT, states @ ablated.mT, ablated @ ablated.mT], dim=1)
    values, _ = metric.score(grams)
    return HeadScores(
        values[None],
        None,
        "zero",
        metric.name,
        "deg",
        provenance={"metric": describe(metric)},
        readings=grams[None],
    )


def made_up_angles(n_heads, n_prompts, seed, space="left", noise=0.3):
    states = 2 * normal(8, seed=99) + normal(n_heads, n_prompts, 8, seed=seed)
    return angles(states, states + noise * normal(n_heads, n_prompts, 8, seed=seed + 1), space)
