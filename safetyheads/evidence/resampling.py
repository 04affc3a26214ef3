"""What is a head's score on other prompts? Every head on any subset of them, from what one sweep saved.

No head is run again for a statistic. A score that is a number a prompt (Ships, RefusalShift) is resampled as such.
Generalized Ships is one angle a dataset: its readings are Gram matrices over the prompts, so a smaller prompt set is a
sub-matrix.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from safetyheads.heads import HeadScores
from safetyheads.metrics import GeneralizedShips, as_metric


def prompt_scores(scores: HeadScores) -> Float[Tensor, "layer head prompt"]:
    """One number a prompt whose mean is the head's score.

    For Gram readings it is the score plus the prompt's jackknife influence, (n - 1) (mean of the scores with one prompt
    left out - the score without this prompt), which makes the bootstrap a linear one: n scores instead of thousands.
    """
    if scores.per_prompt is not None:
        return scores.per_prompt.double()
    n = n_prompts(scores)
    others = torch.tensor([[m for m in range(n) if m != left_out] for left_out in range(n)])
    without = score_subsets(scores, others).T.reshape(*scores.values.shape, n)
    influence = (n - 1) * (without.mean(-1, keepdim=True) - without)
    return scores.values.double()[..., None] + influence


def score_subsets(
    scores: HeadScores, prompts: Int[Tensor, "resample size"]
) -> Float[Tensor, "resample item"]:
    """The scores of all heads (flattened) on subsets of the prompts, from the saved readings."""
    if scores.per_prompt is not None:
        flat = scores.per_prompt.double().flatten(0, 1)
        weights = torch.zeros(len(prompts), flat.shape[1], dtype=torch.float64)
        weights.scatter_add_(1, prompts, torch.full(prompts.shape, 1 / prompts.shape[1]).double())
        return weights @ flat.T
    metric = gram_metric(scores)
    counts = torch.nn.functional.one_hot(prompts, n_prompts(scores)).sum(1).double()
    parts = []
    for grams in _present(scores.readings).flatten(0, 1).split(64):
        found = _leading_angles(grams, counts.sqrt(), metric) if metric.rank == 1 else None
        if found is None:
            rows = [metric.score(grams[:, :, some][..., some])[0].double() for some in prompts]
            found = torch.stack(rows)
        parts.append(found)
    return torch.cat(parts, 1)


def _leading_angles(
    grams: Float[Tensor, "item 3 prompt prompt"],
    weights: Float[Tensor, "resample prompt"],
    metric: GeneralizedShips,
) -> Float[Tensor, "resample item"] | None:
    """Rank-one angles of all resamples at once, by power iteration from the whole set's vector; None if it stalls.

    Repeating a prompt c times leaves a matrix's singular values and right vectors as weighting its row by sqrt(c) does.
    """
    base, cross, ablated = grams.double().unbind(1)
    w = weights.T
    vectors = []
    for gram in (base, ablated):
        x = torch.linalg.eigh(gram)[1][..., -1:] * w
        x = x / x.norm(dim=1, keepdim=True)
        for _ in range(300):
            before, x = x, w * (gram @ (w * x))
            x = x / x.norm(dim=1, keepdim=True)
            if (x - before).abs().max() < 1e-12:
                break
        else:
            return None
        vectors.append(x)
    u, v = vectors
    if metric.space == "right":
        s, t = ((x * (w * (g @ (w * x)))).sum(1).sqrt() for x, g in ((u, base), (v, ablated)))
        cosine = (u * (w * (cross @ (w * v)))).sum(1).abs() / (s * t)
        chord = (2 - 2 * cosine.clamp(max=1.0)).sqrt()
    else:
        chord = (u - (u * v).sum(1, keepdim=True).sign() * v).norm(dim=1)
    return torch.rad2deg(2 * torch.asin((chord / 2).clamp(max=1.0))).T


def are_paired(harmful: HeadScores, harmless: HeadScores) -> bool:
    """Whether prompt n of both sides belong together, by what their prompt set said."""
    sets = [side.provenance.get("prompts", {}) for side in (harmful, harmless)]
    return all(s.get("paired", False) for s in sets) and sets[0].get("name") == sets[1].get("name")


def exact_heads(scores: HeadScores) -> Bool[Tensor, "layer head"]:
    """Which scores were run exactly; all, unless the run was screened."""
    exact: Tensor | None = getattr(scores, "exact", None)
    return torch.ones(scores.values.shape, dtype=torch.bool) if exact is None else exact


def n_prompts(*sides: HeadScores | None) -> int:
    """How many prompts the side has that has fewest; ValueError where nothing is kept a prompt."""
    counts = []
    for scores in sides:
        if scores is None:
            continue
        if scores.per_prompt is None and scores.readings is None:
            raise ValueError(
                f"these scores of {scores.metric} hold nothing a prompt, so nothing can be resampled; "
                "use a metric whose per_prompt or readings are kept"
            )
        held = scores.per_prompt if scores.per_prompt is not None else scores.readings
        counts.append(_present(held).shape[-1])
    return min(counts)


def gram_metric(scores: HeadScores) -> GeneralizedShips:
    """The generalized Ships that the kept Gram matrices are scored by; ValueError where the manifest names none."""
    made_by = scores.provenance.get("metric", {})
    metric = as_metric(made_by) if made_by else None
    if not isinstance(metric, GeneralizedShips):
        raise ValueError(
            f"the readings of {scores.metric} cannot be scored again: their provenance names no generalized Ships"
        )
    return metric


def check_sides(harmful: HeadScores, harmless: HeadScores, paired: bool) -> None:
    """Raise ValueError for two sides that do not belong together, or are no pairs where pairs are asked for."""
    for name in ("ablation", "metric"):
        one, other = getattr(harmful, name), getattr(harmless, name)
        if one != other:
            raise ValueError(f"the {name} is {one} on one side and {other} on the other; give one")
    if harmful.values.shape != harmless.values.shape:
        raise ValueError(
            f"one side has {tuple(harmful.values.shape)} layers and heads, the other "
            f"{tuple(harmless.values.shape)}; give scores of one model"
        )
    n, m = n_prompts(harmful), n_prompts(harmless)
    if paired and n != m:
        raise ValueError(
            f"{n} harmful and {m} harmless prompts are no pairs; give as many of each, or paired=False"
        )


def _present(some: Tensor | None) -> Tensor:
    if some is None:
        raise ValueError("these scores hold nothing a prompt, so nothing can be resampled")
    return some
