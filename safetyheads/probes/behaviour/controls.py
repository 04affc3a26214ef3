"""Which random heads are a fair control? Those of the same layers whose ablation moves the output as far."""

import itertools
from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from safetyheads.engine.execution import Execution
from safetyheads.engine.measurement import measure
from safetyheads.engine.run import run
from safetyheads.heads import Head, HeadScores, heads_like
from safetyheads.inputs import Inputs, Side, prepare
from safetyheads.interventions.ablating import mean_z
from safetyheads.interventions.ablations import Ablation
from safetyheads.metrics import Ships
from safetyheads.models.hooked import HookedModel
from safetyheads.prompts import PromptSet

MOVED_ON = 16
"""Prompts on which it is measured how far a head moves the output."""


def random_heads(top: Sequence[Head], n_heads: int, seed: int) -> tuple[Head, ...]:
    """For each head a random one of its layer that is not among them, none twice.

    >>> random_heads([Head(2, 0), Head(2, 1), Head(5, 3)], n_heads=4, seed=1)
    (Head(layer=2, head=...), Head(layer=2, head=...), Head(layer=5, head=...))
    """
    for layer, wanted in Counter(head.layer for head in top).items():
        if 2 * wanted > n_heads:
            raise ValueError(
                f"layer {layer} has {n_heads} heads, too many of which are ranked to leave as many random "
                "ones; lower the sizes"
            )
    return next(heads_like(top, n_heads, seed))


def matched_heads(
    top: Sequence[Head], moved: HeadScores, draws: int, *, seed: int = 0, tried: int = 500
) -> list[tuple[Head, ...]]:
    """Random heads of the same layers that move the output most nearly as far: of `tried` draws the nearest `draws`.

    `moved` are scores of every head of these layers (Ships, a divergence); a group's is the sum of its heads'. Where no
    other head of the layer moves as much the match is poor; `RefusalCurve.to_frame` says how far each group moves.

    Raises ValueError where there are fewer different draws.
    """
    nearest = nearest_draws(top, moved, seed=seed, tried=tried)
    if len(nearest) < draws:
        raise ValueError(
            f"{draws} draws are asked for, and the layers of these {len(top)} heads have {len(nearest)} others; ask "
            "for fewer"
        )
    return nearest[:draws]


def nearest_draws(
    top: Sequence[Head], moved: HeadScores, *, seed: int = 0, tried: int = 500
) -> list[tuple[Head, ...]]:
    """All different ones of `tried` draws, those first that move the output most nearly as far."""
    drawn = itertools.islice(heads_like(top, moved.values.shape[1], seed), tried)
    different = {tuple(sorted(some)): some for some in drawn}.values()
    target = moved_by(top, moved)
    return sorted(different, key=lambda some: abs(moved_by(some, moved) - target))


def moved_by(heads: Sequence[Head], moved: HeadScores) -> float:
    """How far these heads, each ablated alone, move the output in all [nat]."""
    return sum(float(moved.values[head]) for head in heads)


def how_far(
    model: HookedModel,
    prompts: PromptSet,
    heads: Sequence[Head],
    ablation: Ablation,
    *,
    template: str | None = None,
    progress: bool | None = None,
) -> HeadScores:
    """Ships of every head of the layers of these, on the first prompts of a set; NaN in the other layers.

    Raises ValueError for what `measure` refuses.
    """
    inputs = _first_side(model, prompts.limit(MOVED_ON), template)
    measurement = measure(inputs, ablation, Ships())
    layers = sorted({head.layer for head in heads})
    variants = measurement.variants(measurement.heads(layers))
    swept = run(measurement, variants, Execution(progress=progress))
    values = torch.full((model.n_layers, model.n_heads), torch.nan)
    values[layers] = measurement.metric.score(swept.readings)[0].cpu().float().view(len(layers), -1)
    return HeadScores(values, None, ablation.name, "ships", "nat")


def mean_over(
    model: HookedModel, prompts: PromptSet, template: str | None
) -> Float[Tensor, "layer head d_head"]:
    """What mean ablation writes while a model answers: every head's mean output over the harmful prompts."""
    return mean_z(model, _first_side(model, prompts, template).batch)


def _first_side(model: HookedModel, prompts: PromptSet, template: str | None) -> Inputs:
    side: Side = "harmful" if prompts.harmful else "harmless"
    return prepare(model, prompts, side=side, template=template)


def require_ships(moved: HeadScores, ablation: Ablation) -> None:
    """Raise ValueError where scores do not say how far this ablation of a head moves the output."""
    if (moved.metric, moved.ablation) != ("ships", ablation.name):
        raise ValueError(
            f"moved has {moved.metric} under {moved.ablation}; give score_heads(..., metric='ships', "
            f"ablation={ablation.name!r}): how far each head's ablation moves the output"
        )
