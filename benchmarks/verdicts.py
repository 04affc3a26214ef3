"""What stands of published claims, on the models that were run here? The page of verdicts, from saved records.

    python benchmarks/verdicts.py            # writes docs/verdicts.md
    python benchmarks/verdicts.py --tables   # prints the experiment's tables too

`records/experiment.json` (Qwen) and `records/sibling.json` are what `experiment.py --record` leaves: scores, and a
letter an answer.
`records/quoted.json` holds what pages of `docs/` report, with the page; a test looks the numbers up there.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas
from found import BOTH, UA, Experiment, interval, words

from safetyheads.stats import mcnemar_p, wilson_interval

FOLDER = Path(__file__).parent
PAGE = FOLDER.parent / "docs" / "verdicts.md"
RECORDS = ("experiment", "sibling")
MODELS = {
    "qwen2.5-coder-0.5b-instruct": ("Qwen2.5-Coder-0.5B-Instruct", "qwen"),
    "smollm2-135m-ssft": ("SmolLM2-135M, taught to refuse", "sibling"),
}
"""What the page calls a model, and how `experiment.py` knows it."""
PAPER, SWAPPING = "arXiv:2410.13708", "arXiv:2604.04385"
AGREES, NOT, OPEN = "agrees", "does not agree", "cannot be said here"
NEUTRAL = 0.1
"""How far a neutral control may move a rate, at either end of its interval."""
COMMAND = "python benchmarks/experiment.py --model {} --data DATA --folder FOLDER"
HEAD = """# Verdicts on published claims

Made by `python benchmarks/verdicts.py` from the records in `benchmarks/records`; do not edit it.

Each row is a claim, what was run here, and the number beside that of a control. It *agrees* where the whole interval
lies beyond the control's on the side that is claimed; it *does not agree* where the number itself is not beyond the
control's, or lies within its interval; else, and where the model cannot show it, it *cannot be said here*. A number
without an interval is its own. A control is neutral where the whole interval of what it does lies within ten points,
and it is not where that differs from nothing with p ≤ 0.05. Small models and few prompts: a verdict is about these, and
says of a 7B model only where to look. p-values of refusals are exact McNemar tests on the same prompts, q-values are
over all conditions of the [experiment](experiment.md).
"""


def decide(row: Mapping[str, Any]) -> str:
    """The verdict that a row's numbers give."""
    if row.get("missing"):
        return "needs a 7B model"
    if row.get("blocked"):
        return OPEN
    if row["claimed"] == "neutral":
        low, _, high = _span(row["number"])
        if row["number"]["p"] <= 0.05:
            return NOT
        return AGREES if low >= -NEUTRAL and high <= NEUTRAL else OPEN
    number, control = _span(row["number"]), _span(row["control"])
    if row["claimed"] == "below":
        number, control = (tuple(-x for x in reversed(some)) for some in (number, control))
    slack = row["control"].get("slack", 0.0)
    if number[0] > control[2] + slack:
        return AGREES
    inside = control[0] < control[2] and number[1] <= control[2]
    return NOT if inside or number[1] <= control[1] + slack else OPEN


def _span(given: Mapping[str, Any]) -> tuple[float, float, float]:
    """Low, value and high; those of a count by Wilson."""
    if "hits" in given:
        low, high = wilson_interval(given["hits"], given["of"])
        return low, given["hits"] / given["of"], high
    value = given["value"]
    return given.get("low", value), value, given.get("high", value)


class Rows:
    """The rows that the experiment's record gives."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment, record = experiment, experiment.record
        self.table = experiment.comparisons().set_index(["condition", "ablation"])
        self.n = int(self.table["n"].iloc[0])
        named, known = MODELS[record["model"]]
        self.about = {"model": named, "prompts": f"{self.n} held out"}
        self.about["command"] = COMMAND.format(known)
        pairs = record["pairs"]["zero"]
        ends = record.get("pairs of ends", pairs)
        more = f", the ends of the ranking on {ends}" if ends > pairs else ""
        self.selected = f"{pairs} pairs{more}"
        self.untouched = self.count("untouched", "")

    def all(self) -> list[dict[str, Any]]:
        """Every row, by claim."""
        made = [self.few, self.layers, self.one, self.alike, self.neutral, self.opposing]
        rows = [row for some in (*made, self.audit, self.foretold) for row in some()]
        return [{**self.about, **row} for row in rows]

    def count(self, condition: str, ablation: str) -> dict[str, Any]:
        """Refusals under a condition."""
        row = self.table.loc[(condition, ablation)]
        hits = int(row["refused"])
        return {"text": f"{hits} of {self.n}{_test(row)}", "hits": hits, "of": self.n}

    def drawn(self, name: str) -> dict[str, Any]:
        """Refusals under an ablation of random heads, from the least to the most."""
        draws = self.experiment.random(name)
        text = f"random heads: {', '.join(map(str, draws))}; untouched: {self.untouched['hits']}"
        ends = {"low": min(draws) / self.n, "high": max(draws) / self.n}
        return {"text": text, "value": sum(draws) / len(draws) / self.n, **ends}

    def few(self) -> Iterator[dict[str, Any]]:
        """Are the heads few, and does refusal need them?"""
        layers, heads = self.experiment.record["heads"]
        for name in BOTH:
            yield {
                "claim": f"Safety heads are few: ablating a handful lowers refusals ({words(name)})",
                "source": PAPER,
                "ran": f"refusals with the first five of {layers * heads} heads ablated; by refusal shift on "
                f"{self.selected}",
                "claimed": "below",
                "number": self.count(f"{name}, refusal_shift, top 5", name),
                "control": self.drawn(name),
            }
        yield {
            "claim": "What undifferentiated attention finds, refusal needs",
            "source": PAPER,
            "ran": "refusals with its first five heads zeroed",
            "claimed": "below",
            "number": self.count(f"{UA}, refusal_shift, top 5", "zero"),
            "control": {
                **self.untouched,
                "text": f"untouched: {self.untouched['hits']} of {self.n}",
            },
        }

    def layers(self) -> Iterator[dict[str, Any]]:
        """Do they sit in early layers?"""
        layers, heads = self.experiment.record["heads"]
        middle, spread = (layers - 1) / 2, 1.96 * ((layers**2 - 1) / 12 / 10) ** 0.5
        for name, metric, down in (("zero", "refusal_shift", False), (UA, "ships", True)):
            order = self.experiment.scores(name, metric).argsort(descending=down)[:10].tolist()
            value = sum(h // heads for h in order) / 10
            yield {
                "claim": "Safety heads sit in early layers",
                "source": PAPER,
                "ran": f"mean layer of the first ten heads, {words(metric)} under {words(name)}",
                "prompts": self.selected,
                "claimed": "below",
                "number": {"text": f"{value:.1f} of 0 to {layers - 1}", "value": value},
                "control": {
                    "text": f"ten random heads: {middle} ± {spread:.1f}",
                    **{"value": middle, "low": middle - spread, "high": middle + spread},
                },
            }

    def one(self) -> Iterator[dict[str, Any]]:
        """What does one head do?"""
        before = self.n - self.untouched["hits"]
        for name in BOTH:
            condition = (f"{name}, refusal_shift, top 1", name)
            if condition not in self.table.index:
                continue
            after = self.n - self.table.loc[condition, "refused"]
            times, most = self.n / before, min(16.0, self.n / before)
            low, high = (end * times for end in wilson_interval(int(after), self.n))
            number = {"value": after / before, "low": low, "high": high}
            counts = f"{after} for {before} of {self.n}"
            yield {
                "claim": f"Ablating one head raises attack success 16 times ({words(name)})",
                "source": PAPER,
                "ran": f"answers that refuse nothing without {self.table.loc[condition, 'heads']}, over those with",
                "claimed": "above",
                "number": {
                    "text": f"{interval(number)} times ({counts}){_test(self.table.loc[condition])}",
                    **number,
                },
                "control": {
                    "text": f"16, which here were all {self.n}: {most:.1f} times",
                    "value": most,
                },
            }

    def alike(self) -> Iterator[dict[str, Any]]:
        """Do the paper's two ablations find the same heads?"""
        both = self.experiment.correlation("zero", UA)
        halves = self.experiment.correlation("zero", "zero")
        text = f"halves of the prompts, zero ablation: {interval(halves)}"
        yield {
            "claim": "Undifferentiated attention and scaling contribution find different heads",
            "source": PAPER,
            "ran": "rank correlation of the two over all heads (scaling is zero ablation but for 1e-5)",
            "prompts": self.selected,
            "claimed": "below",
            "number": {"text": interval(both), **both},
            "control": {"text": text, **halves},
        }

    def neutral(self) -> Iterator[dict[str, Any]]:
        """Are random heads a neutral control?"""
        for name in BOTH:
            draws = len(self.experiment.random(name))
            found, match = self.experiment.control(name), self.experiment.match(name)
            points = {key: 100 * found[key] for key in ("value", "low", "high")}
            moved = f"{points['value']:+.0f} points [{points['low']:.0f}, {points['high']:.0f}]"
            few = f"ten draws are asked for, {draws} came" if draws < 10 else ""
            test = f"sign-flip p {found['p']:.2g} over prompts"
            yield {
                "claim": f"Random heads are a neutral control ({words(name)})",
                "source": "common practice",
                "ran": "refusals with random heads of the same layers that move the output most nearly as far",
                "claimed": "neutral",
                "number": {**found, "text": f"{moved}; {self.drawn(name)['text']}"},
                "control": {
                    **self.untouched,
                    "text": f"untouched: {self.untouched['hits']} of {self.n}",
                },
                "blocked": few,
                "why": "; ".join(part for part in (few, test, match) if part),
            }

    def opposing(self) -> Iterator[dict[str, Any]]:
        """Do some heads hold refusal back?"""
        if ("zero, raising, top 5", "zero") in self.table.index:
            yield {
                "claim": "Some heads hold refusal back: their loss raises it",
                "source": "this library",
                "ran": "refusals with the five heads zeroed whose loss raises the log-odds most",
                "claimed": "above",
                "number": self.count("zero, raising, top 5", "zero"),
                "control": self.drawn("zero"),
            }

    def audit(self) -> Iterator[dict[str, Any]]:
        """Does ablation name heads that do not matter?"""
        experiment, named = self.experiment, "zero, refusal_shift, top 5"
        swapped = "interchange, refusal_shift, top 5"
        found = {
            "claim": "Interchange is the only reliable audit: ablation names heads that do not matter",
            "source": SWAPPING,
            "claimed": "above",
            "number": self.count(named, "zero"),
        }
        if (swapped, "zero") not in self.table.index:
            yield {
                **found,
                "ran": "refusals with zero ablation's first five heads zeroed; by the claim as many as with others",
                "control": self.drawn("zero"),
                "why": "zero ablation, without interchange, named heads that refusal needs; "
                f"{experiment.swapped()}; all heads were not swept by interchange",
            }
            return
        p = mcnemar_p(*(experiment.refused(which, "zero") for which in (named, swapped)))
        halves = interval(experiment.correlation("interchange", "interchange"))
        about = "; ".join(
            (
                experiment.swapped(),
                f"the two differ with a McNemar p of {p:.2g}",
                f"between halves of the prompts interchange's ranking of all heads agrees with itself by {halves}",
            )
        )
        yield {
            **found,
            "ran": "refusals with zero ablation's first five heads zeroed, against interchange's first five",
            "control": self.count(swapped, "zero"),
            "blocked": about if p > 0.05 else "",
            "why": about,
        }

    def foretold(self) -> Iterator[dict[str, Any]]:
        """Whose scores foretell what becomes of refusals?"""
        table = self.experiment.predictions().set_index("ablation")
        if "interchange" not in table.index:
            return
        spans = {
            name: {"value": row["rho"], "low": row["low"], "high": row["high"]}
            for name, row in table.iterrows()
        }
        own, zero = spans.pop("interchange"), spans["zero"]
        others = ", ".join(f"{words(name)} {interval(span)}" for name, span in spans.items())
        low, high = table.loc["interchange", ["less_zero_low", "less_zero_high"]]
        apart = {"value": own["value"] - zero["value"], "low": low, "high": high}
        yield {
            "claim": "Interchange foretells what becomes of refusals better than ablation does",
            "source": SWAPPING,
            "ran": f"rank correlation of a group's summed scores with the change of refusals when it is zeroed, "
            f"{int(table['groups'].iloc[0])} groups",
            "claimed": "above",
            "number": {
                "text": f"interchange {interval(own)}; less zero {interval(apart)}",
                **apart,
            },
            "control": {"text": others, "value": 0.0},
            "why": "intervals by drawing groups anew, most of which are random heads",
        }


def page(experiments: Sequence[Experiment], quoted: Sequence[Mapping[str, Any]]) -> str:
    """The whole page."""
    lines = [
        HEAD,
        "| claim | what was run here | model, prompts | number | control | verdict | again |",
    ]
    lines.append("|---|---|---|---|---|---|---|")
    rows = [row for experiment in experiments for row in Rows(experiment).all()]
    for row in [*rows, *quoted]:
        why = row.get("why") or row.get("blocked") or row.get("missing") or ""
        where = f"`{row['command']}`"
        if "page" in row:
            where += f" ([{Path(row['page']).stem}]({Path(row['page']).name}))"
        cells = [
            f"{row['claim']} ({row['source']})",
            row["ran"],
            f"{row['model']}, {row['prompts']}",
            row.get("number", {}).get("text", "–"),
            row.get("control", {}).get("text", "–"),
            f"**{decide(row)}**{': ' + why if why else ''}",
            where,
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _test(row: Any) -> str:
    return "" if pandas.isna(row["p"]) else f" (McNemar p {row['p']:.2g}, q {row['q']:.2g})"


def load() -> tuple[list[Experiment], list[dict[str, Any]]]:
    """The records that are there."""
    files = [FOLDER / "records" / f"{name}.json" for name in (*RECORDS, "quoted")]
    *experiments, quoted = [json.loads(file.read_text()) for file in files if file.exists()]
    return [Experiment(record) for record in experiments], quoted


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description="What stands of published claims?")
    parser.add_argument("--tables", action="store_true", help="print the experiment's tables too")
    options = parser.parse_args()
    experiments, quoted = load()
    PAGE.write_text(page(experiments, quoted))
    for experiment in experiments if options.tables else ():
        print(experiment.record["model"])
        names = ["one", "other", "rho", "low", "high", "shared of 10", "prompts", "heads"]
        print(pandas.DataFrame(experiment.record["correlations"], columns=names).to_string())
        print(experiment.comparisons().to_string(float_format="%.3g"))
        print(experiment.predictions().to_string(float_format="%.3g"))
        print({name: experiment.random(name) for name in ("zero", UA)})
        print(experiment.record.get("told by a pair"))
        names = ["group", "heads", "ablation", "sum", "low", "high", "p", "pairs"]
        table = pandas.DataFrame(experiment.record.get("interchange of named", ()), columns=names)
        print(table.to_string(index=False))
        names = ["head", "harmful", "harmless", "apart", "low", "high", "p", "q", "pairs"]
        table = pandas.DataFrame(experiment.record.get("specificity", ()), columns=names)
        print(table.sort_values("harmful").to_string(index=False))


if __name__ == "__main__":
    main()
