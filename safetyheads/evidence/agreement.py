"""Do two ways of scoring heads name the same heads?

Scores of the same heads under different ablations, metrics, prompt sets or models are compared two by two: Spearman's
rank correlation over all heads, and the Jaccard overlap of the top k. Metrics where the most negative score ranks first
(a refusal shift) are turned round, so that 1 always means the same order of importance.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from safetyheads.heads import HeadScores
from safetyheads.stats import jaccard_at_k, spearman

if TYPE_CHECKING:
    import pandas

COLUMNS = ("first", "second", "spearman", "jaccard", "k", "reason")
"""The columns of an agreement table; `reason` says why a pair has no numbers, and is empty where it has them."""


def agreement_table(
    scores: Mapping[str, HeadScores] | Sequence[HeadScores], *, k: int = 10
) -> "pandas.DataFrame":
    """Compare every score with every other, and with itself: a row for each ordered pair, with the columns `COLUMNS`.

    `scores` are named by their keys, or, in a sequence, by what sets them apart: model, dataset, side, ablation,
    metric, template. `k` is the size of the top sets. Models of different shape cannot be compared head by head:
    their numbers are NaN, and `reason` says so.

    Raises ValueError if there are fewer than two scores, two cannot be told apart, or a model has fewer than k heads.

    >>> import torch
    >>> of = lambda *v: HeadScores(torch.tensor([v]), None, "zero", "ships", "nat")
    >>> table = agreement_table({"a": of(3.0, 2.0, 1.0), "b": of(3.0, 1.0, 2.0)}, k=1)
    >>> table.loc[1, ["spearman", "jaccard"]].astype(float).round(6).tolist()
    [0.5, 1.0]
    """
    import pandas

    named = dict(scores) if isinstance(scores, Mapping) else _named(scores)
    if len(named) < 2:
        raise ValueError(f"there are {len(named)} scores to compare; give at least two")
    for name, some in named.items():
        if not 1 <= k <= some.values.numel():
            raise ValueError(
                f"k is {k}, and {name} has {some.values.numel()} heads: ask for between 1 and as many"
            )
    rows = [
        (first, second, *_compare(one, other, k))
        for first, one in named.items()
        for second, other in named.items()
    ]
    return pandas.DataFrame(rows, columns=list(COLUMNS))


def _compare(one: HeadScores, other: HeadScores, k: int) -> tuple[float, float, int, str]:
    if one.values.shape != other.values.shape:
        shapes = sorted({tuple(one.values.shape), tuple(other.values.shape)})
        named = " and ".join(f"{layers} layers x {heads} heads" for layers, heads in shapes)
        return float("nan"), float("nan"), k, f"different shapes: {named}"
    first, second = importance(one), importance(other)
    return spearman(first, second).item(), jaccard_at_k(first, second, k).item(), k, ""


def importance(scores: HeadScores) -> Float[Tensor, " item"]:
    """The scores in one row, with the sign that makes rank 1 the largest."""
    values = scores.values.flatten().double()
    return values if scores.largest_first else -values


def _named(scores: Sequence[HeadScores]) -> dict[str, HeadScores]:
    """Names from what differs among the scores."""
    parts = [_parts(some) for some in scores]
    telling = [key for key in parts[0] if len({part[key] for part in parts}) > 1]
    names = [", ".join(part[key] for key in telling) for part in parts]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(
            f"two scores are both {twice[0] or 'the same'} by model, dataset, side, ablation, metric and template; "
            'give a mapping with a name for each, such as {"seed 0": ..., "seed 1": ...}'
        )
    return dict(zip(names, scores, strict=True))


def _parts(scores: HeadScores) -> dict[str, str]:
    """What a reader tells scores apart by."""
    origin: dict[str, Any] = scores.provenance
    prompts = origin.get("prompts", {})
    return {
        "model": str(origin.get("model", {}).get("name", "")),
        "dataset": str(prompts.get("name", "")),
        "side": str(prompts.get("side", "")),
        "ablation": scores.ablation,
        "metric": scores.metric,
        "template": str(origin.get("template", "")),
    }
