"""Does a head say something of a request's harm that the model acts on? Swap it with a matched prompt's and see.

On each harmful prompt a head's output is replaced by its output on the matched harmless one (is it needed?), and the
other way round (does it suffice?). What any swap does, harm or not, is measured beside it: a harmful prompt that lends
to another harmful one (the same behaviour is asked for), and the harmless prompt of another pair.

The method is that of arXiv:2604.04385, which calls it interchange. Its published files set it beside five times a
projection on a direction, which is no ablation of a head; here it stands beside what `score_heads` gives under zero,
mean and resample ablation (`evidence.carriers`).
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from safetyheads.engine.execution import HERE, Execution
from safetyheads.engine.measurement import measure
from safetyheads.engine.run import run
from safetyheads.heads import Head, HeadScores
from safetyheads.inputs import Source, prepare_pairs
from safetyheads.interventions.ablations import InterchangeAblation, Lender
from safetyheads.metrics import Metric, RefusalShift
from safetyheads.probes.single_heads import head_scores
from safetyheads.stats import benjamini_hochberg, permutation_p
from safetyheads.storage.results import load_result, save_result

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class Interchange:
    """What swapping each head with a matched prompt's does, beside what other swaps do."""

    necessity: HeadScores
    """On the harmful prompts, with the head's output on their harmless partners."""
    sufficiency: HeadScores
    """On the harmless prompts, with the head's output on their harmful partners."""
    same_side: HeadScores
    """Control: on the harmful prompts, with the head's output on another harmful prompt."""
    stranger: HeadScores
    """Control: on the harmful prompts, with the head's output on another pair's harmless prompt."""
    p: Float[Tensor, "layer head"]
    """Of necessity less the same-side control, by flipping the signs of their differences prompt by prompt, two-sided:
    were harm nothing to the head, the two lenders could be swapped."""
    q: Float[Tensor, "layer head"]
    """Benjamini-Hochberg over all heads."""
    unmatched: Int[Tensor, " prompt"]
    """Tokens of each harmful prompt that have no counterpart in its shorter partner, and get its first token's."""
    unlent: Int[Tensor, " prompt"]
    """Tokens of each harmless partner that have no counterpart in its shorter harmful prompt: they are lent to none,
    and the other way round they get its first token's."""

    def to_frame(self) -> "pandas.DataFrame":
        """A row a head, the largest necessity first: layer, head, label, necessity, sufficiency, same_side, stranger,
        p_value, q_value, metric, unit."""
        import pandas

        n_layers, n_heads = self.p.shape
        heads = [Head(layer, head) for layer in range(n_layers) for head in range(n_heads)]
        table = pandas.DataFrame(
            {
                "layer": [head.layer for head in heads],
                "head": [head.head for head in heads],
                "label": [str(head) for head in heads],
                **{
                    name: [getattr(self, name).values[head].item() for head in heads]
                    for name in ("necessity", "sufficiency", "same_side", "stranger")
                },
                "p_value": [self.p[head].item() for head in heads],
                "q_value": [self.q[head].item() for head in heads],
                "metric": self.necessity.metric,
                "unit": self.necessity.unit,
            }
        )
        order = table["necessity"].abs().sort_values(ascending=False, kind="stable").index
        return table.loc[order].reset_index(drop=True)

    def save(self, folder: str | Path) -> Path:
        """Write a record into a folder, made if it is not there; `load` reads it."""
        return save_result(self, folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Interchange":
        """Read what `save` wrote; errors are those of `HeadScores.load`."""
        return load_result(cls, folder)


def score_interchange(
    model: Any,
    prompts: Source,
    *,
    metric: Metric | str | None = None,
    template: str | None = None,
    seed: int = 0,
    execution: Execution = HERE,
) -> Interchange:
    """Swap every head with its output on the matched prompt of the other side, both ways, and with two controls.

    `model` and `prompts` are whatever `load_model` and `load_prompts` take; the set must be paired. `metric` is a value
    or a name of a metric that scores each prompt, by default `RefusalShift()`: negative necessity and positive
    sufficiency then speak for refusal. `seed` draws who lends in the controls. Three sweeps, of both sides together.

    Raises ValueError for prompts that are no pairs, fewer than two pairs, a metric without a score for each prompt, and
    what `load_model` and `load_prompts` raise.
    """
    inputs = prepare_pairs(model, prompts, template=template)
    pairs = len(inputs.batch) // 2
    if pairs < 2:
        raise ValueError(
            "there is 1 pair; the controls borrow from another one, so give at least 2"
        )
    metric = RefusalShift() if metric is None else metric

    def swept(lender: Lender) -> tuple[HeadScores, HeadScores]:
        settled = measure(inputs, InterchangeAblation(lender, seed), metric)
        found = head_scores(
            run(settled, settled.variants(settled.heads()), execution),
            settled.metric,
            settled.manifest(execution),
        )
        if found.per_prompt is None:
            raise ValueError(
                f"{found.metric} gives no score for each prompt; take RefusalShift() or Ships()"
            )
        return _side(found, slice(0, pairs)), _side(found, slice(pairs, None))

    necessity, sufficiency = swept("partner")
    (same, _), (stranger, _) = swept("same_side"), swept("stranger")
    difference = _per_prompt(necessity) - _per_prompt(same)
    p = permutation_p(difference.double(), seed=seed)
    lengths = inputs.batch.lengths
    return Interchange(
        necessity=necessity,
        sufficiency=sufficiency,
        same_side=same,
        stranger=stranger,
        p=p,
        q=benjamini_hochberg(p),
        unmatched=(lengths[:pairs] - lengths[pairs:]).clamp_min(0),
        unlent=(lengths[pairs:] - lengths[:pairs]).clamp_min(0),
    )


def _side(found: HeadScores, place: slice) -> HeadScores:
    some = _per_prompt(found)[..., place]
    side = "harmful" if place.start == 0 else "harmless"
    prompts = {**found.provenance["prompts"], "side": side, "count": some.shape[-1]}
    return replace(
        found,
        values=some.double().mean(-1).float(),
        per_prompt=some,
        provenance={**found.provenance, "prompts": prompts},
    )


def _per_prompt(found: HeadScores) -> Float[Tensor, "layer head prompt"]:
    return torch.empty(0) if found.per_prompt is None else found.per_prompt
