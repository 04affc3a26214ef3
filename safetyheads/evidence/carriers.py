"""Does a head carry the effect, or does the ablation write it?

What is lost with a head and what happens when something is put in its place are different findings. An effect counts as
the head's own only where it has one sign and stands under every removal that was run: zero ablation, the mean over all
tokens, the head's output on harmless prompts (interchange). Undifferentiated attention puts the mean of the values
there instead, which the model may never have seen; an effect under it alone is one of what the ablation writes. Where
only one removal was run beside it, what is written can be told, and what is lost is not yet called carried.

Resample ablation among harmful prompts is no removal: what all of them make a head say, every lender says too. On a
planted model (16 pairs) the head that carries refusal moves its log-odds by -12.5 under mean ablation and by -0.02
under resample. It is shown beside, as what differs from prompt to prompt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from safetyheads.evidence.resampling import exact_heads
from safetyheads.evidence.specificity import least_p
from safetyheads.heads import Head, HeadScores
from safetyheads.stats import benjamini_hochberg, bootstrap_interval, permutation_p
from safetyheads.storage.results import load_result, save_result

if TYPE_CHECKING:
    import pandas

Verdict = Literal["carrier", "opposes", "lowers", "raises", "written", "unsettled", "nothing"]
REMOVALS = {
    "zero": "zero",
    "scaling_contribution": "zero",  # but for its epsilon, 1e-5
    "mean": "mean",
    "interchange": "interchange",
    "interchange (stranger)": "stranger",
}
"""Ablations that take away what a head says of harm, each with the one that it is."""
SAME_SIDE = ("resample", "interchange (same_side)")
"""Ablations that leave what all prompts of a side have in common."""
ABOUT: dict[Verdict, str] = {
    "carrier": "its loss lowers the metric, under every removal",
    "opposes": "its loss raises the metric, under every removal",
    "lowers": "its loss lowers the metric, under the only removal that was run",
    "raises": "its loss raises the metric, under the only removal that was run",
    "written": "an effect of what the ablation writes: no removal shows one of its sign",
    "unsettled": "removals disagree, or too few of them see it",
    "nothing": "neither a removal nor what is written moves the metric more than chance",
}
"""What each verdict says."""


@dataclass(frozen=True, eq=False)
class Carriers:
    """For each head or group, what every ablation does to it, and what that makes of it."""

    table: "pandas.DataFrame"
    """A row an item and ablation: label, ablation, kind ("removal", "same side" or "writing"), effect, low, high,
    p_value, q_value (Benjamini-Hochberg over all rows), verdict."""
    level: float
    """The share of false discoveries that is allowed among rows called effects."""
    metric: str
    """What was measured."""
    n_prompts: int
    """On how many prompts."""

    def verdicts(self) -> "pandas.Series":
        """The verdict of each item, by its label."""
        return self.table.drop_duplicates("label").set_index("label")["verdict"]

    def note(self, labels: Sequence[str]) -> str:
        """What is found of some items, in a line: `carrier: L12H2, L8H3; written: L10H7`."""
        found = self.verdicts()[list(labels)]
        named = {verdict: list(found.index[found == verdict]) for verdict in ABOUT}
        parts = [f"{verdict}: {', '.join(some)}" for verdict, some in named.items() if some]
        if least_p(self.n_prompts) * len(self.table) > self.level:
            parts.append(f"with {self.n_prompts} prompts no effect can pass alone")
        return "; ".join(parts)

    def __repr__(self) -> str:
        found = self.verdicts()
        counts = ", ".join(f"{n} {name}" for name, n in found.value_counts().items())
        removals = sorted(set(self.table.loc[self.table["kind"] == "removal", "ablation"]))
        return (
            f"Carriers({len(found)} items, {self.metric}, {self.n_prompts} prompts, removals: "
            f"{', '.join(removals)}: {counts})"
        )

    def save(self, folder: str | Path) -> Path:
        """Write a record into a folder, made if it is not there; `load` reads it."""
        return save_result(self, folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Carriers":
        """Read what `save` wrote; errors are those of `HeadScores.load`."""
        return load_result(cls, folder)


def find_carriers(scores: Sequence[HeadScores], *, level: float = 0.05, seed: int = 0) -> Carriers:
    """Which heads carry what a metric measures, by their scores under several ablations on the same prompts.

    `scores` are `score_heads` under zero ablation, `score_interchange(...).necessity`, and the scores under any other
    ablation that is to be judged; the metric must have a sign (refusal shift). Each effect is tested against zero by
    flipping the signs of the prompts' scores, two-sided, with Benjamini-Hochberg over all heads and ablations at
    `level`. `seed` draws the bootstrap and the sign patterns. Of one removal beside an ablation that writes, no head is
    called a carrier: `lowers` and `raises` say what its loss does.

    Raises ValueError for scores of different models, metrics or prompts, fewer than two removals that differ (or one
    beside what writes), one ablation twice, a metric without a sign or without a score for each prompt, and estimated
    scores.
    """
    if not scores:
        raise ValueError("there are no scores; give those of two removals or more")
    first = scores[0]
    for one in scores:
        if not exact_heads(one).all():
            raise ValueError(
                f"scores under {one.ablation} are estimates; score with method='exact'"
            )
        if one.metric != first.metric or one.values.shape != first.values.shape:
            raise ValueError(
                f"{one.metric} of {list(one.values.shape)} heads stands beside {first.metric} of "
                f"{list(first.values.shape)}; give one metric and one model"
            )
    n_layers, n_heads = first.values.shape
    labels = [str(Head(layer, head)) for layer in range(n_layers) for head in range(n_heads)]
    effects: dict[str, Tensor] = {}
    for one in scores:
        if one.ablation in effects:
            raise ValueError(f"{one.ablation} comes twice; give each ablation once")
        if one.per_prompt is None:
            raise ValueError(f"{one.metric} gives no score for each prompt; take RefusalShift()")
        effects[one.ablation] = one.per_prompt.flatten(0, 1)
    return judge_effects(effects, labels, first.metric, level=level, seed=seed)


def judge_effects(
    effects: Mapping[str, Float[Tensor, "item prompt"]],
    labels: Sequence[str],
    metric: str,
    *,
    level: float = 0.05,
    seed: int = 0,
) -> Carriers:
    """What `find_carriers` does, for any items: `effects` has their signed scores on each prompt by ablation."""
    import pandas

    counts = {values.shape[-1] for values in effects.values()}
    removals = [name for name in effects if kind_of_ablation(name) == "removal"]
    several = len({REMOVALS[name] for name in removals}) > 1
    writing = any(kind_of_ablation(name) == "writing" for name in effects)
    if not (several or (removals and writing)):
        raise ValueError(
            f"of {', '.join(effects)}, removals are {', '.join(removals) or 'none'}; give at least two that differ, of "
            f"{', '.join(REMOVALS)}, or one beside what writes, such as undifferentiated_attention"
        )
    if len(counts) > 1:
        raise ValueError(
            f"the ablations were run on {sorted(counts)} prompts; score all on the same ones"
        )
    if all((values >= 0).all() for values in effects.values()):
        raise ValueError(
            f"{metric} is never negative here, so an effect has no sign; take RefusalShift()"
        )
    tables = []
    for ablation, values in effects.items():
        low, high = bootstrap_interval(values.double(), seed=seed)
        tables.append(
            pandas.DataFrame(
                {
                    "label": labels,
                    "ablation": ablation,
                    "kind": kind_of_ablation(ablation),
                    "effect": values.double().mean(-1).tolist(),
                    "low": low.tolist(),
                    "high": high.tolist(),
                    "p_value": permutation_p(values.double(), seed=seed).tolist(),
                }
            )
        )
    table = pandas.concat(tables, ignore_index=True)
    table["q_value"] = benjamini_hochberg(torch.tensor(table["p_value"].tolist())).tolist()
    by_label = {
        label: _verdict(rows, level, several) for label, rows in table.groupby("label", sort=False)
    }
    table["verdict"] = table["label"].map(by_label)
    return Carriers(table, level, metric, counts.pop())


def kind_of_ablation(name: str) -> Literal["removal", "same side", "writing"]:
    """Whether an ablation takes away what a head says, only what differs between prompts, or writes something new.

    >>> kind_of_ablation("zero"), kind_of_ablation("resample"), kind_of_ablation("undifferentiated_attention")
    ('removal', 'same side', 'writing')
    """
    if name in REMOVALS:
        return "removal"
    return "same side" if name in SAME_SIDE else "writing"


def _verdict(rows: "pandas.DataFrame", level: float, several: bool) -> Verdict:
    seen, raising = rows["q_value"] <= level, rows["effect"] > 0
    removal = rows["kind"] == "removal"
    signs = set(raising[removal & seen])
    if seen[removal].all() and len(signs) == 1:
        if several:
            return "opposes" if signs == {True} else "carrier"
        return "raises" if signs == {True} else "lowers"
    if not set(raising[(rows["kind"] == "writing") & seen]) <= signs:
        return "written"
    return "unsettled" if signs else "nothing"
