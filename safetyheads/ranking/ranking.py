"""Which attention heads does a model's refusal rest on?

The page to start reading: prompts, scores, table, figure, files. `rank` scores every query head on the harmful prompts
and, where the dataset has them, on the harmless ones beside, because a head that matters for everything scores high on
both.
"""

import itertools
import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetyheads.engine.execution import HERE, Execution
from safetyheads.engine.measurement import Measurement
from safetyheads.evidence.carriers import REMOVALS, SAME_SIDE, Carriers, find_carriers
from safetyheads.evidence.gate import Gate, gate_ranking
from safetyheads.evidence.resampling import exact_heads
from safetyheads.evidence.specificity import (
    NullBand,
    Specificity,
    comparable,
    null_band,
    specificity,
)
from safetyheads.heads import Head, HeadScores
from safetyheads.interventions.ablations import Ablation
from safetyheads.metrics import Metric
from safetyheads.models.opening import random_copy
from safetyheads.plots.heatmap import plot_head_heatmap
from safetyheads.plots.scatter import plot_head_scatter
from safetyheads.plots.writing import write_html
from safetyheads.probes.refusing import first_token_refusals
from safetyheads.probes.single_heads import score_measurements, score_some
from safetyheads.progress import whole
from safetyheads.prompts import PromptSet
from safetyheads.ranking.planning import passes_of, say_cost
from safetyheads.ranking.study import (
    DEFAULT_ABLATIONS,
    DEFAULT_METRIC,
    Null,
    Opened,
    Study,
    require_top,
)
from safetyheads.screening.audit import Screened
from safetyheads.screening.methods import Method, as_method
from safetyheads.screening.race import Raced
from safetyheads.storage.files import write_whole
from safetyheads.storage.records import is_record
from safetyheads.storage.results import load_result, save_result

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

FEW = "find_carrying_groups(model, pairs, [[head] for head in ranking.top()['label']])"
"""What judges a few heads, under several removals, at little cost."""


@dataclass(frozen=True, repr=False)
class Ranking:
    """The heads of one model on one dataset, under one or several ablations."""

    harmful: tuple[HeadScores, ...]
    """Scores on the harmful prompts, one for each ablation."""
    harmless: tuple[HeadScores | None, ...]
    """Scores on the harmless prompts, in the same order; None where the dataset has none."""
    model: str
    """Name of the model."""
    dataset: str
    """Name of the prompt set."""
    top_k: int = 10
    """How many heads `top`, `plot` and the command line show."""
    random: "Ranking | None" = None
    """The ranking of a copy of the model with random weights, where the null band is to come from one."""
    null: str = "labels"
    """What `in_null` is read off: `labels`, `layer`, `random_init` or `gate`."""
    gates: tuple[Gate, ...] = ()
    """How far each ablation's ranking rises above chance; empty where that was not asked."""

    def __repr__(self) -> str:
        lines = [
            f"Ranking({self.model} on {self.dataset}, {self.harmful[0].metric}, {self.harmful[0].values.numel()} heads)"
        ]
        for n, scores in enumerate(self.harmful):
            first = ", ".join(scores.top(min(self.top_k, 5, scores.values.numel()))["label"])
            said = f"; {self.gates[n]}" if self.gates else ""
            lines.append(f"  {scores.ablation}: {first}{said}")
        if self.carriers_note:
            lines.append(f"  {self.carriers_note}")
        return "\n".join(lines)

    @property
    def gate_note(self) -> str | None:
        """What the gates say of each ablation, in a line; None where none was asked."""
        pairs = zip(self.harmful, self.gates, strict=False)
        return "; ".join(f"{scores.ablation}: {gate}" for scores, gate in pairs) or None

    @property
    def carriers(self) -> Carriers | None:
        """Which effects are a head's own and which the ablation writes (`find_carriers`), by all ablations of this
        ranking; None where that cannot be told, and `carriers_note` says why."""
        return self._judged if isinstance(self._judged, Carriers) else None

    @property
    def carriers_note(self) -> str | None:
        """What `carriers` says of the first heads of each ablation, in a line, or why nothing can be said;
        None where one removal stands alone."""
        if isinstance(self._judged, Carriers):
            count = min(self.top_k, self.harmful[0].values.numel())
            tops = [scores.top(count)["label"] for scores in self.harmful]
            return self._judged.note(list(dict.fromkeys(itertools.chain(*tops))))
        (first, *others), reason = self.harmful, self._judged
        if not others and first.ablation in (*REMOVALS, *SAME_SIDE):
            return None
        if not others:
            reason = f"{first.ablation} stands alone; rank under zero and mean ablation beside it"
        elif all(exact_heads(scores).all() for scores in self.harmful):
            return f"carriers cannot be told: {reason}"
        return f"carriers cannot be told: {reason}, or judge its first heads: {FEW}"

    @cached_property
    def _judged(self) -> "Carriers | str":
        try:
            return find_carriers(self.harmful)
        except ValueError as reason:  # one removal, a metric without a sign, estimates
            return str(reason)

    @cached_property
    def specificity(self) -> tuple[Specificity | None, ...]:
        """Each ablation's harmful - harmless comparison; None without harmless prompts, or with too few to compare."""
        return tuple(
            specificity(harmful, harmless)
            if harmless is not None and comparable(harmful, harmless)
            else None
            for harmful, harmless in zip(self.harmful, self.harmless, strict=True)
        )

    @cached_property
    def null_bands(self) -> tuple[NullBand | None, ...]:
        """Each ablation's null band; None where there is no specificity."""
        others = self.specificity if self.random is None else self.random.specificity
        null = "labels" if self.null == "gate" else self.null
        return tuple(
            None if found is None else null_band(found, null=null, random=other)
            for found, other in zip(self.specificity, others, strict=True)
        )

    def to_frame(self) -> "pandas.DataFrame":
        """A long table: the columns of `HeadScores.to_frame`, dataset, model and, where known, the harmless control.

        That is harmless_score (and harmless_kind where the run was screened); and, from two prompts of each side on,
        specificity (how much more the head matters on harmful prompts, in the direction of the ranking),
        specificity_low and specificity_high (its bootstrap interval), p_value, q_value (Benjamini-Hochberg over all
        heads), null_high and in_null (whether specificity does not rise above what the null gives). Estimated scores
        are not tested: there these columns are empty, and in_null holds. Behind a gate also noise_ceiling, gate_p
        (for all heads together) and established; in_null then holds for all heads that are not. Where `carriers` can
        be told, verdict: what the head's effects under all ablations make of it.
        """
        import pandas

        tables = []
        gates = self.gates or (None,) * len(self.harmful)
        for harmful, harmless, found, band, gate in zip(
            self.harmful, self.harmless, self.specificity, self.null_bands, gates, strict=True
        ):
            table = harmful.to_frame().assign(dataset=self.dataset, model=self.model)
            columns = {} if harmless is None else {"harmless_score": harmless.values.tolist()}
            if harmless is not None and harmless.exact is not None:
                kinds = ["estimated", "exact", "not run"]
                which = harmless.exact.long() + 2 * harmless.values.isnan()
                columns["harmless_kind"] = [[kinds[n] for n in row] for row in which.tolist()]
            if found is not None and band is not None:
                columns |= {
                    "specificity": found.values.tolist(),
                    "specificity_low": found.low.tolist(),
                    "specificity_high": found.high.tolist(),
                    "p_value": found.p.tolist(),
                    "q_value": found.q.tolist(),
                    "null_high": band.high.tolist(),
                    "in_null": band.inside.tolist(),
                }
            if gate is not None:
                columns |= {
                    "noise_ceiling": gate.noise_ceiling.tolist(),
                    "gate_p": gate.p.tolist(),
                    "established": gate.established.tolist(),
                    "in_null": (~gate.established).tolist(),
                }
            for name, grid in columns.items():
                places = zip(table["layer"], table["head"], strict=True)
                table[name] = [grid[layer][head] for layer, head in places]
            if self.carriers is not None:
                table["verdict"] = table["label"].map(self.carriers.verdicts())
            tables.append(table)
        return pandas.concat(tables, ignore_index=True)

    def top(self, k: int | None = None) -> "pandas.DataFrame":
        """The k highest-ranked heads of each ablation (by default `top_k`), as rows of `to_frame`."""
        k = self.top_k if k is None else k
        require_top(k, self.harmful[0].values.numel())
        table = self.to_frame()
        return table[table["rank"] <= k].reset_index(drop=True)

    def opposing(self, k: int | None = None) -> "pandas.DataFrame":
        """The heads of each ablation whose loss moves the metric the other way (raises refusal), as rows of `to_frame`.

        At most k (by default `top_k`) an ablation, the strongest first, with ranks counted from that end. Raises
        ValueError for a metric without a sign.
        """
        import pandas

        k = self.top_k if k is None else k
        tables, table = [], self.to_frame()
        for scores in self.harmful:
            found = scores.opposing(k)
            rows = table[table["ablation"] == scores.ablation].set_index("label")
            tables.append(rows.loc[found["label"]].reset_index().assign(rank=found["rank"]))
        return pandas.concat(tables, ignore_index=True)

    def plot(self, *, opposing: bool = False, **options: Any) -> "plotly.graph_objects.Figure":
        """The safety-head scatter: layer, head, colour for the score, a symbol for each ablation.

        `opposing` draws the heads whose loss moves the metric the other way beside, in a panel of their own.
        """
        import pandas

        n_layers, n_heads = self.harmful[0].values.shape
        options = {"k": self.top_k, "n_layers": n_layers, "n_heads": n_heads, **options}
        told = self.carriers_note if self.carriers is not None else None
        notes = [note for note in (options.get("note"), self.gate_note, told) if note]
        options["note"] = ". ".join(note.rstrip(".") for note in notes) + "." if notes else None
        if not opposing:
            return plot_head_scatter(self.to_frame(), **options)
        sides = {"lower": self.top(options["k"]), "raise": self.opposing(options["k"])}
        table = pandas.concat([rows.assign(end=end) for end, rows in sides.items()])
        titles = {"lower": "Top Safety Heads", "raise": "Heads that oppose them"}
        return plot_head_scatter(table, **{"panel": "end", "titles": titles, **options})

    def plot_heatmap(self, **options: Any) -> "plotly.graph_objects.Figure":
        """All scores, heads by layers, a panel for each ablation."""
        return plot_head_heatmap(self.to_frame(), **options)

    @property
    def manifest(self) -> dict[str, Any]:
        """What determines the numbers; prompts appear by count and hash only."""
        runs = [s.provenance for s in (*self.harmful, *self.harmless) if s is not None]
        about = {"model": self.model, "dataset": self.dataset, "top_k": self.top_k, "runs": runs}
        if self.random is not None:
            about["random"] = self.random.manifest
        gates = {"gate": [str(gate) for gate in self.gates]} if self.gates else {}
        return {**about, **gates, "null": self.null}

    def save(self, folder: str | Path, *, note: str | None = None) -> Path:
        """Write a record, for `load`, and scores.csv, manifest.json and a self-contained scatter.html, for people."""
        folder = save_result(self, folder)
        write_whole(folder / "scores.csv", self.to_frame().to_csv(index=False).encode())
        manifest = json.dumps(self.manifest, indent=2, sort_keys=True) + "\n"
        write_whole(folder / "manifest.json", manifest.encode())
        write_html(self.plot(note=note), folder / "scatter.html", plotly_js="embedded")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "Ranking":
        """Read what `save` wrote, in this version or, but for a random copy's ranking, one before.

        Raises FileNotFoundError where there is nothing, ValueError for what is damaged, of another kind or newer.
        """
        folder = Path(folder)
        if is_record(folder) or not (folder / "heads").is_dir():
            return load_result(cls, folder)
        return _old_ranking(folder)


def _old_ranking(folder: Path) -> Ranking:
    """What versions without records saved: the scores of each ablation and side under heads/."""
    about = json.loads((folder / "manifest.json").read_text())
    if "random" in about:
        raise ValueError(
            f"{folder} was saved by a version that did not keep the scores of the random copy, from which its null "
            "comes: rank again"
        )
    names = [
        run["ablation"]["name"] for run in about["runs"] if run["prompts"]["side"] == "harmful"
    ]
    heads = folder / "heads"
    return Ranking(
        harmful=tuple(HeadScores.load(heads / f"{name}-harmful") for name in names),
        harmless=tuple(
            HeadScores.load(path) if (path := heads / f"{name}-harmless").is_dir() else None
            for name in names
        ),
        **{name: about[name] for name in ("model", "dataset", "top_k", "null")},
    )


def rank_safety_heads(
    model: Any,
    dataset: PromptSet | Sequence[str] | str | Path,
    *,
    ablations: Ablation | str | Sequence[Ablation | str] = DEFAULT_ABLATIONS,
    metric: Metric | str = DEFAULT_METRIC,
    top_k: int = 10,
    template: str | None = None,
    limit: int | None = None,
    method: Method = "exact",
    null: Null = "labels",
    execution: Execution = HERE,
) -> Ranking:
    """Rank the attention heads of a model by how far ablating each moves its answer to harmful prompts.

    The arguments are the fields of `Study`, which this makes and `rank` ranks; ablations and metric may be given by
    name. `execution` says how the sweeps run: `Execution(rows=..., store=..., executor=...)`.

    Raises ValueError for input that cannot be ranked, and what `load_model` and `load_prompts` raise.
    """
    asked: dict[str, Any] = {
        "ablations": ablations,
        "metric": metric,
        "template": template,
        "limit": limit,
        "method": method,
        "null": null,
        "top_k": top_k,
    }
    return rank(Study(model, dataset, **asked), execution)


def rank(study: Study, execution: Execution = HERE) -> Ranking:
    """Rank the attention heads of a study's model: `rank_safety_heads` for a question that is a value.

    Raises ValueError for a study that cannot be asked, and what `load_model` and `load_prompts` raise.
    """
    opened = study.open()
    say_cost(study, opened, execution)
    method = as_method(study.method)
    random: Ranking | None = None
    gates: tuple[Gate, ...] = ()
    label = f"ranking {opened.model.name}, {opened.prompts.name}"
    with whole(passes_of(study, opened), label, execution.progress):
        harmful = score_measurements(opened.harmful, [method] * len(opened.harmful), execution)
        harmless: Sequence[HeadScores | None] = (None,) * len(harmful)
        if opened.harmless:
            harmless = _beside(opened.harmless, harmful, method, execution)
        if study.null in ("random_init", "gate"):
            random = rank(study.of(random_copy(opened.model), opened.prompts), _staying(execution))
        if study.null == "gate" and random is not None:
            gates = _gates(study, opened, zip(harmful, harmless, strict=True), random)
    return Ranking(
        harmful,
        tuple(harmless),
        opened.model.name,
        opened.prompts.name,
        study.top_k,
        random,
        study.null,
        gates,
    )


def _gates(
    study: Study,
    opened: Opened,
    found: Iterable[tuple[HeadScores, HeadScores | None]],
    random: Ranking,
) -> tuple[Gate, ...]:
    """Each ablation's ranking beside that of the copy with random weights."""
    refusals = first_token_refusals(opened.harmful[0].inputs)
    gates = []
    theirs = zip(random.harmful, random.harmless, strict=True)
    for (one, beside), (its, its_beside) in zip(found, theirs, strict=True):
        if beside is None or its_beside is None:
            raise ValueError("the gate compares with harmless prompts, and there are none")
        gates.append(
            gate_ranking((one, beside), (its, its_beside), refusals=refusals, top_k=study.top_k)
        )
    return tuple(gates)


def _beside(
    harmless: Sequence[Measurement],
    harmful: Sequence[HeadScores],
    method: Raced | Screened | None,
    execution: Execution,
) -> Sequence[HeadScores]:
    """The harmless prompts' scores: where not all heads are exact, of the same heads, and no others are looked for."""
    if isinstance(method, Raced):
        pairs = zip(harmless, harmful, strict=True)
        return [score_some(measurement, _exact(scores), execution) for measurement, scores in pairs]
    only = [method and method.only(_exact(scores)) for scores in harmful]
    return score_measurements(harmless, only, execution)


def _exact(scores: HeadScores) -> list[Head]:
    """The heads that were run exactly."""
    places = [] if scores.exact is None else scores.exact.nonzero().tolist()
    return [Head(*place) for place in places]


def _staying(execution: Execution) -> Execution:
    """The same in this process, and a word about it where another was asked for."""
    if execution.executor is None:
        return execution
    warnings.warn(
        "no other process can open a copy of the model with random weights (null='random_init' or 'gate'): this part "
        "runs here, not in the executor",
        stacklevel=3,
    )
    return replace(execution, executor=None)
