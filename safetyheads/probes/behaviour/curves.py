"""How do refusal and attack success change as the top heads of a ranking are ablated, beside random heads?

The experiment of Zhou et al. (arXiv:2410.13708, Fig. 4 and Tables 1 and 5): the top heads are ablated, one to five of
them, here beside as many random heads of the same layers.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from safetyheads.heads import Head, HeadScores, heads_like, parse_heads
from safetyheads.interventions.ablating import AblateHeads
from safetyheads.interventions.ablations import (
    Ablation,
    UndifferentiatedAttention,
    as_ablation,
    describe,
)
from safetyheads.interventions.named import BASELINE
from safetyheads.judges.verdicts import VERDICTS
from safetyheads.models.opening import load_model
from safetyheads.probes.behaviour.answers import Behaviour, measure_behaviour
from safetyheads.prompts import PromptSet
from safetyheads.stats import bootstrap_interval, permutation_p
from safetyheads.storage.results import load_result, save_result

if TYPE_CHECKING:
    import pandas


class Arm(NamedTuple):
    """A set of heads that was ablated, and how it was chosen."""

    arm: str
    """"top" of the ranking, or "random" heads of the same layers."""
    size: int
    """How many heads."""
    seed: int
    """Which random draw; 0 for the ranking's."""
    heads: tuple[Head, ...]


@dataclass(frozen=True)
class RefusalCurve:
    """Behaviour against the number of ablated heads: the ranking's beside random ones of the same layers."""

    behaviour: Behaviour
    """All answers; `groups` names its interventions."""
    groups: dict[str, Arm]
    """What each intervention ablates."""
    ablation: str
    """What was done to the heads."""

    def to_frame(self, judge: str | None = None) -> "pandas.DataFrame":
        """`Behaviour.rates` with the columns ablation, arm, size, seed and heads; the baseline has size 0."""
        table = self.behaviour.rates(judge)
        groups = [self.groups.get(name, Arm(BASELINE, 0, 0, ())) for name in table["intervention"]]
        return table.assign(
            ablation=self.ablation,
            arm=[group.arm for group in groups],
            size=[group.size for group in groups],
            seed=[group.seed for group in groups],
            heads=[" ".join(map(str, group.heads)) for group in groups],
        )

    def differences(self, judge: str | None = None) -> "pandas.DataFrame":
        """How far the ranked heads go beyond random ones: a row a dataset, side, verdict and size.

        Columns dataset, side, verdict, size, difference, low, high, p, n. `difference` is the rate under the top heads
        minus the mean rate under the random groups, paired by prompt; `low` and `high` its 95 % bootstrap interval over
        prompts, `p` a two-sided sign-flip permutation p-value. The random groups are taken as given.
        """
        import pandas

        said = self.behaviour.verdicts(judge)
        sets = dict.fromkeys((dataset, side) for dataset, side, _ in said)
        rows = []
        for (dataset, side), verdict in itertools.product(sets, VERDICTS):
            for size in sorted({group.size for group in self.groups.values()}):
                hits: dict[str, list[Tensor]] = {"top": [], "random": []}
                for name, group in self.groups.items():
                    if group.size == size:
                        given = said[dataset, side, name]
                        hits[group.arm].append(torch.tensor([float(v == verdict) for v in given]))
                if not hits["random"] or len(hits["top"][0]) < 2:
                    continue
                paired = torch.stack(hits["top"]).mean(0) - torch.stack(hits["random"]).mean(0)
                low, high = bootstrap_interval(paired)
                p = permutation_p(paired)
                numbers = (paired.mean().item(), low.item(), high.item(), p.item(), len(paired))
                rows.append((dataset, side, verdict, size, *numbers))
        columns = ["dataset", "side", "verdict", "size", "difference", "low", "high", "p", "n"]
        return pandas.DataFrame(rows, columns=columns)

    def save(self, folder: str | Path, *, texts: bool = False) -> Path:
        """Write a record into a folder, made if it is not there; `load` reads it.

        `texts` is as for `Behaviour.save`.
        """
        behaviour = self.behaviour if texts else self.behaviour.without_texts()
        return save_result(replace(self, behaviour=behaviour), folder)

    @classmethod
    def load(cls, folder: str | Path) -> "RefusalCurve":
        """Read what `save` wrote; errors are those of `HeadScores.load`."""
        return load_result(cls, folder)


def refusal_under_ablation(
    model: Any,
    prompts: PromptSet | Sequence[str] | str | Path,
    ranking: HeadScores | Sequence[Head | str],
    *,
    ablation: Ablation | str | None = None,
    sizes: Sequence[int] = (1, 2, 3, 4, 5),
    random_seeds: Sequence[int] = (0, 1, 2),
    **options: Any,
) -> RefusalCurve:
    """Measure refusal and attack success before and after ablating the top heads, beside random heads.

    `ranking` is `HeadScores` or heads, best first; rank on other prompts than these. `ablation` is what is done to the
    heads, `UndifferentiatedAttention()` by default. `sizes` are the numbers of heads ablated together. For each of
    `random_seeds`, each top head is matched by a random head of its layer that is not among the top ones; a larger
    group holds the smaller. `options` are those of `measure_behaviour`.

    Raises ValueError for a ranking shorter than the largest size, a layer with too few other heads, and what
    `measure_behaviour` refuses.
    """
    model = load_model(model)
    ablation = UndifferentiatedAttention() if ablation is None else as_ablation(ablation)
    if not sizes or min(sizes) < 1 or len(set(sizes)) < len(sizes):
        raise ValueError(f"sizes is {list(sizes)}: give different numbers of at least 1")
    heads = _best(ranking, max(sizes))
    draws = {seed: random_heads(heads, model.n_heads, seed) for seed in random_seeds}
    groups: dict[str, Arm] = {}
    for size in sizes:
        groups[f"top {size}"] = Arm("top", size, 0, heads[:size])
        for seed, drawn in draws.items():
            groups[f"random {size}, seed {seed}"] = Arm("random", size, seed, drawn[:size])
    interventions = {name: AblateHeads(group.heads, ablation) for name, group in groups.items()}
    behaviour = measure_behaviour(model, prompts, {BASELINE: None, **interventions}, **options)
    provenance = {**behaviour.provenance, "ablation": describe(ablation)}
    return RefusalCurve(replace(behaviour, provenance=provenance), groups, ablation.name)


def _best(ranking: HeadScores | Sequence[Any], count: int) -> tuple[Head, ...]:
    if isinstance(ranking, HeadScores):
        table = ranking.top(min(count, ranking.values.numel()))
        heads = [Head(int(n), int(h)) for n, h in zip(table["layer"], table["head"], strict=True)]
    else:
        heads = list(parse_heads(ranking))
    if len(heads) < count or len(set(heads)) < len(heads):
        raise ValueError(
            f"the ranking has {len(set(heads))} different heads and {len(heads)} in all; "
            f"the largest size asks for {count}, each once"
        )
    return tuple(heads[:count])


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
