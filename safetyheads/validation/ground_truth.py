"""Which methods find the heads that are known to carry refusal?

Each method names as many heads as there are to find in a planted model (`planted.py`): the first of its ranking, or a
group. Precision is the share of those that it should have named; since it names as many as there are, its recall is the
same number. `recall_at_3` is the share of the planted heads among its first three.
"""

from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING

from safetyheads.engine.execution import Execution
from safetyheads.evidence.specificity import specificity
from safetyheads.heads import Head, HeadScores
from safetyheads.inputs import Side
from safetyheads.interventions.ablations import (
    Ablation,
    MeanAblation,
    ResampleAblation,
    ScalingContribution,
    UndifferentiatedAttention,
    ZeroAblation,
)
from safetyheads.metrics import GeneralizedShips, Metric, RefusalShift, Ships
from safetyheads.probes.groups import GroupSearch, search_heads
from safetyheads.probes.single_heads import score_heads, score_heads_together
from safetyheads.validation.planted import KINDS, Planted, plant

if TYPE_CHECKING:
    import pandas

ABLATIONS: tuple[Ablation, ...] = (
    UndifferentiatedAttention(),
    ScalingContribution(),
    ZeroAblation(),
    MeanAblation(),
    ResampleAblation(),
)
METRICS: tuple[Metric, ...] = (
    Ships(),
    RefusalShift(),
    *(GeneralizedShips(space) for space in ("left", "right", "feature0")),
)
QUIET = Execution(progress=False)
SIDES: tuple[Side, ...] = ("harmful", "harmless")


def check_methods(
    kinds: Sequence[str] = tuple(KINDS),
    ablations: Sequence[Ablation] = ABLATIONS,
    *,
    pairs: int = 16,
    seed: int = 0,
) -> "pandas.DataFrame":
    """Let every method of the library look for the planted heads; about a minute of CPU for all.

    `kinds` are keys of `planted.KINDS`; `pairs` and `seed` are those of `plant`.

    Returns a row a planted model, ablation and method: kind, ablation, method, named (the heads, as text), precision,
    recall, recall_at_3, decoy (whether a decoy or a sibling was named).
    """
    import pandas

    rows = []
    for kind in kinds:
        planted = plant(kind, pairs=pairs, seed=seed)
        wanted = planted.safety
        for ablation in ablations:
            for method, order in _orders(planted, ablation).items():
                named = order[: len(wanted)]
                found = len(wanted & set(named)) / len(wanted)
                rows.append(
                    {
                        "kind": kind,
                        "ablation": ablation.name,
                        "method": method,
                        "named": " ".join(map(str, named)),
                        "precision": found,
                        "recall": found,
                        "recall_at_3": len(wanted & set(order[:3])) / len(wanted),
                        "decoy": bool((planted.decoys | planted.siblings) & set(named)),
                    }
                )
    return pandas.DataFrame(rows)


def _orders(planted: Planted, ablation: Ablation) -> dict[str, list[Head]]:
    """Each method's heads, the one that it believes in most first."""
    model, prompts = planted.model, planted.prompts
    harmful, harmless = (
        score_heads_together(model, prompts, METRICS, side=side, ablation=ablation, execution=QUIET)
        for side in SIDES
    )
    orders = {scores.metric: _ranked(scores) for scores in harmful}
    for one, other in list(zip(harmful, harmless, strict=True))[:2]:
        values = specificity(one, other).values
        heads = [Head(la, he) for la in range(len(values)) for he in range(values.shape[1])]
        orders[f"specificity of {one.metric}"] = sorted(heads, key=lambda h: -values[h].item())
    screened = score_heads(model, prompts, ablation=ablation, method="screened", execution=QUIET)
    orders["ships, screened"] = _ranked(screened)
    search = partial(search_heads, model, prompts, ablation=ablation, execution=QUIET)
    everyone = model.n_layers * model.n_heads
    group = search(GroupSearch(samples=1, pair_heads=everyone))
    orders["sahara (ships)"] = list(group.heads)
    tried = group.pair_heads
    gains = {p: abs(group.interactions[p].item()) for p in combinations(range(len(tried)), 2)}
    first, second = max(gains, key=gains.__getitem__)
    orders["strongest of all pairs (ships)"] = [tried[first], tried[second]]
    orders["sahara (right)"] = list(
        search(GroupSearch(samples=1), metric=GeneralizedShips("right")).heads
    )
    return orders


def _ranked(scores: HeadScores) -> list[Head]:
    table = scores.to_frame()
    return [Head.parse(label) for label in table["label"]]
