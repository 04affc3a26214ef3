"""What did the experiment find, condition by condition? The tables of a record that `experiment.py --record` leaves."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas
import torch

from safetyheads.heads import Head, parse_heads
from safetyheads.stats import (
    benjamini_hochberg,
    bootstrap_interval,
    mcnemar_p,
    permutation_p,
    spearman,
    wilson_interval,
)

UA = "undifferentiated_attention"
BOTH = ("zero", UA)
"""The two ablations whose rankings are asked first, and judged against each other."""


class Experiment:
    """What the experiment's record says."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        self.record = record
        names = ["condition", "ablation", "dataset", "heads", "said"]
        self.answers = pandas.DataFrame(record["answers"], columns=names)

    @property
    def harmful(self) -> str:
        """The held-out harmful prompts, which are asked under every condition."""
        return str(self.record["answers"][0][2])

    @property
    def harmless(self) -> list[str]:
        """The harmless sets, which are asked under some."""
        return [name for name in self.answers["dataset"].unique() if name != self.harmful]

    def refused(self, condition: str, ablation: str, sets: Sequence[str] = ()) -> list[bool]:
        """Which prompts of these sets, by default the harmful ones, were refused, in their order; none where not all
        sets were asked."""
        some = self.answers.query("condition == @condition and ablation == @ablation")
        said = some.set_index("dataset")["said"]
        sets = sets or [self.harmful]
        if not set(sets) <= set(said.index):
            return []
        return [letter == "r" for name in sets for letter in said[name]]

    def comparisons(self) -> pandas.DataFrame:
        """Every condition beside the untouched model: refusals of the harmful and of the harmless prompts, each with an
        exact McNemar test, and q-values over all of these tests; degenerate answers, and use for anything else."""
        found: dict[str, list[Any]] = {}
        useful = {tuple(row[:2]): row[2:] for row in self.record.get("utility", ())}
        groups = self.answers.groupby(["condition", "ablation", "heads"], sort=False)
        for (condition, ablation, heads), some in groups:
            hits = self.refused(condition, ablation)
            if not hits:
                continue
            over = self.refused(condition, ablation, self.harmless) if self.harmless else []
            tests = {"p": hits, "over_p": over}
            row = {
                **{"condition": condition, "ablation": ablation, "heads": heads},
                **{"refused": sum(hits), "n": len(hits)},
                **dict(zip(("low", "high"), wilson_interval(sum(hits), len(hits)), strict=True)),
                **{"over": sum(over) if over else None, "of": len(over)},
                "degenerate": sum(text.count("b") for text in some["said"]),
                **dict(
                    zip(
                        ("loss", "right"),
                        useful.get((condition, ablation), (None,) * 2),
                        strict=True,
                    )
                ),
            }
            for name, given in tests.items():
                before = self.refused("untouched", "", self.harmless if name == "over_p" else ())
                row[name] = (
                    mcnemar_p(before, given) if given and condition != "untouched" else float("nan")
                )
            for name, value in row.items():
                found.setdefault(name, []).append(value)
        table = pandas.DataFrame(found)
        p = torch.tensor(table[["p", "over_p"]].to_numpy())
        # a group that stands under two names is one test
        twice = torch.tensor(table.duplicated(["ablation", "heads"]).to_numpy())
        q = benjamini_hochberg(p.masked_fill(twice[:, None], torch.nan))
        table["q"], table["over_q"] = q[:, 0].numpy(), q[:, 1].numpy()
        same = table.groupby(["ablation", "heads"])[["q", "over_q"]]
        table[["q", "over_q"]] = same.transform("first")
        return table

    def random(self, name: str) -> list[int]:
        """Refusals under each draw of random heads."""
        return [sum(hits) for hits in self._drawn(name)]

    def _drawn(self, name: str) -> list[list[bool]]:
        """Which prompts were refused under each draw that was asked."""
        draws = [self.refused(f"{name}, random {n}", name) for n in range(10)]
        return [hits for hits in draws if hits]

    def match(self, name: str) -> str:
        """How far random heads move the output beside an ablation's first five, in words."""
        own, *draws = self.record.get("moved", {}).get(name, [0.0])
        if not draws:
            return ""
        ends = f"{min(draws):.2g} to {max(draws):.2g} nat, the first five by {own:.2g}"
        return f"their heads, each alone, move the output by {ends}"

    def control(self, name: str) -> dict[str, float]:
        """How far random heads move the rate of refusals by themselves: their mean less the untouched model's, with its
        95 % interval over prompts, and p by flipping signs."""
        hits = torch.tensor(self._drawn(name)).double().mean(0)
        apart = hits - torch.tensor(self.refused("untouched", "")).double()
        low, high = bootstrap_interval(apart)
        numbers = {"value": apart.mean(), "low": low, "high": high, "p": permutation_p(apart)}
        return {name: float(number) for name, number in numbers.items()}

    def scores(self, name: str, metric: str = "refusal_shift") -> torch.Tensor:
        """Every head's mean score."""
        values = self.record["scores"][name][metric]
        return torch.tensor([float("nan") if v is None else v for v in values], dtype=torch.float64)

    def predictions(self) -> pandas.DataFrame:
        """How well each ablation's scores, summed over a group, predict how refusals change when it is zeroed.

        A row an ablation: groups, the rank correlation of predicted and observed change with its bootstrap interval
        over groups, and how far it is below zero ablation's on the same groups, with its interval.
        """
        table = self.comparisons().query("ablation == 'zero'").drop_duplicates("heads")
        start = sum(self.refused("untouched", ""))
        change = torch.tensor((table["refused"] - start).to_numpy(), dtype=torch.float64)
        groups = [parse_heads(text.split()) for text in table["heads"]]
        n, columns = len(groups), ["ablation", "groups", "rho", "low", "high"]
        columns += ["less_zero_low", "less_zero_high"]
        if n < 5:
            return pandas.DataFrame(columns=columns)
        some = torch.randint(0, n, (2000, n), generator=torch.Generator().manual_seed(0))
        rows, ends, zero = [], torch.tensor([0.025, 0.975]).double(), None
        for name in self.record["scores"]:
            values = self.scores(name)
            predicted = torch.stack([sum(values[self.place(h)] for h in heads) for heads in groups])
            drawn = spearman(predicted[some], change[some])
            zero = drawn if name == "zero" else zero
            apart = (drawn - zero) if zero is not None else drawn * torch.nan
            spans = [
                x[~x.isnan()].quantile(ends).tolist() for x in (drawn, apart) if x.isfinite().any()
            ]
            rows.append((name, n, spearman(predicted, change).item(), *spans[0], *spans[-1]))
        return pandas.DataFrame(rows, columns=columns)

    def swapped(self) -> str:
        """What interchange does to the groups that the other ablations name, in words."""
        effects: dict[str, dict[str, str]] = {}
        for name, _, ablation, value, low, high, *_ in self.record.get("interchange of named", ()):
            span = interval({"value": value, "low": low, "high": high})
            effects.setdefault(name, {})[ablation] = span
        said = []
        for name, spans in effects.items():
            if "interchange" in spans and name != "opposing":
                beyond = spans.get("interchange less same side")
                more = f" ({beyond} beyond another harmful prompt)" if beyond else ""
                said.append(f"{spans['interchange']} nat on those of {words(name)}{more}")
        return "interchange does " + ", ".join(said) if said else "interchange was not run"

    def place(self, head: Head) -> int:
        """A head's place in a list of scores."""
        return head.layer * int(self.record["heads"][1]) + head.head

    def correlation(self, one: str, other: str) -> dict[str, float]:
        """The rank correlation of two ablations, or of an ablation's halves."""
        for first, second, value, low, high, *_ in self.record["correlations"]:
            if {first, second} == {one, other}:
                return {"value": value, "low": low, "high": high}
        raise ValueError(f"the record has no correlation of {one} and {other}")


def interval(numbers: Mapping[str, float]) -> str:
    """A number with its interval."""
    return f"{numbers['value']:.2f} [{numbers['low']:.2f}, {numbers['high']:.2f}]"


def words(name: str) -> str:
    """An ablation's name as it is said."""
    return name.replace("_", " ")
