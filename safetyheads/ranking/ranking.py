"""Which attention heads does a model's refusal rest on?

The page to start reading: prompts, scores, table, figure, files. `rank_safety_heads` scores every query head on the
harmful prompts and, where the dataset has them, on the harmless ones beside, because a head that matters for everything
scores high on both.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from safetyheads.engine.executors import Executor
from safetyheads.evidence import specificity as evidence
from safetyheads.evidence.specificity import NULLS, NullBand, Specificity, null_band
from safetyheads.heads import Head, HeadScores
from safetyheads.interventions.ablating import (
    Ablation,
    ScalingContribution,
    UndifferentiatedAttention,
)
from safetyheads.metrics import Metric, RefusalShift
from safetyheads.models.hooked import HookedModel, load_model, random_copy
from safetyheads.plots.heads import plot_head_heatmap, plot_head_scatter
from safetyheads.plots.writing import write_html
from safetyheads.probes.single_heads import as_method, score_heads, screen_heads
from safetyheads.prompts import PromptSet, load_prompts
from safetyheads.screening.screened import Screened
from safetyheads.storage.files import writable_folder, write_whole

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

DEFAULT_ABLATIONS: tuple[Ablation, ...] = (UndifferentiatedAttention(), ScalingContribution())


@dataclass(frozen=True)
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
    """What `in_null` is read off: `labels`, `layer` or `random_init`."""

    @cached_property
    def specificity(self) -> tuple[Specificity | None, ...]:
        """Each ablation's harmful - harmless comparison; None without harmless prompts, or with too few to compare."""
        return tuple(
            evidence.specificity(harmful, harmless)
            if harmless is not None and evidence.comparable(harmful, harmless)
            else None
            for harmful, harmless in zip(self.harmful, self.harmless, strict=True)
        )

    @cached_property
    def null_bands(self) -> tuple[NullBand | None, ...]:
        """Each ablation's null band; None where there is no specificity."""
        others = self.specificity if self.random is None else self.random.specificity
        return tuple(
            None if found is None else null_band(found, null=self.null, random=other)
            for found, other in zip(self.specificity, others, strict=True)
        )

    def to_frame(self) -> "pandas.DataFrame":
        """A long table: the columns of `HeadScores.to_frame`, dataset, model and, where known, the harmless control.

        That is harmless_score (and harmless_kind where the run was screened); and, from two prompts of each side on,
        specificity (how much more the head matters on harmful prompts, in the direction of the ranking),
        specificity_low and specificity_high (its bootstrap interval), p_value, q_value (Benjamini-Hochberg over all
        heads), null_high and in_null (whether specificity does not rise above what the null gives). Estimated scores
        are not tested: there these columns are empty, and in_null holds.
        """
        import pandas

        tables = []
        for harmful, harmless, found, band in zip(
            self.harmful, self.harmless, self.specificity, self.null_bands, strict=True
        ):
            table = harmful.to_frame().assign(dataset=self.dataset, model=self.model)
            columns = {} if harmless is None else {"harmless_score": harmless.values.tolist()}
            if harmless is not None and harmless.exact is not None:
                columns["harmless_kind"] = [
                    ["exact" if exact else "estimated" for exact in row]
                    for row in harmless.exact.tolist()
                ]
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
            for name, grid in columns.items():
                places = zip(table["layer"], table["head"], strict=True)
                table[name] = [grid[layer][head] for layer, head in places]
            tables.append(table)
        return pandas.concat(tables, ignore_index=True)

    def top(self, k: int | None = None) -> "pandas.DataFrame":
        """The k highest-ranked heads of each ablation (by default `top_k`), as rows of `to_frame`."""
        k = self.top_k if k is None else k
        _check_top_k(k, self.harmful[0].values.numel())
        table = self.to_frame()
        return table[table["rank"] <= k].reset_index(drop=True)

    def plot(self, **options: Any) -> "plotly.graph_objects.Figure":
        """The safety-head scatter: layer, head, colour for the score, a symbol for each ablation."""
        n_layers, n_heads = self.harmful[0].values.shape
        options = {"k": self.top_k, "n_layers": n_layers, "n_heads": n_heads, **options}
        return plot_head_scatter(self.to_frame(), **options)

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
        return {**about, "null": self.null}

    def save(self, folder: str | Path, *, note: str | None = None) -> Path:
        """Write scores.csv, manifest.json, a self-contained scatter.html, and all tensors under heads/."""
        folder = writable_folder(folder)
        write_whole(folder / "scores.csv", self.to_frame().to_csv(index=False).encode())
        manifest = json.dumps(self.manifest, indent=2, sort_keys=True) + "\n"
        write_whole(folder / "manifest.json", manifest.encode())
        write_html(self.plot(note=note), folder / "scatter.html", plotly_js="embedded")
        for side in ("harmful", "harmless"):
            for scores in getattr(self, side):
                if scores is not None:
                    scores.save(folder / "heads" / f"{scores.ablation}-{side}")
        return folder


def rank_safety_heads(
    model: Any,
    dataset: PromptSet | Sequence[str] | str | Path,
    *,
    ablations: Sequence[Ablation] = DEFAULT_ABLATIONS,
    metric: Metric | None = None,
    top_k: int = 10,
    template: str | None = None,
    limit: int | None = None,
    rows: int | None = None,
    store: str | Path | None = None,
    executor: Executor | None = None,
    method: str | Screened = "exact",
    null: str = "labels",
    progress: bool | None = None,
) -> Ranking:
    """Rank the attention heads of a model by how far ablating each moves its answer to harmful prompts.

    `model`: a name, Hub id, folder, `.gguf` file, `(model, tokenizer)` of Hugging Face, or TransformerBridge.
    `dataset`: a name such as "builtin" or "jailbreakbench", a file, a list of strings, or a PromptSet. `ablations` and
    `metric` are values such as `UndifferentiatedAttention()` and `Ships()`; the metric is by default `RefusalShift()`,
    which of six rankings alone found heads whose removal lowered refusal on held-out prompts (docs/behaviour.md).
    `limit` keeps the first prompts only, spread over the categories. `method="screened"` runs only the heads exactly
    that are likely to be among the top, and on the harmless prompts the same heads; the rest is estimated and marked
    so. `null` says what heads must rise above not to be drawn grey: "labels" (relabelled prompts), "layer" (the other
    heads of the layer) or "random_init" (a copy of the model with random weights, which is scored too and takes as
    long). The other arguments are those of `score_heads`.

    Raises ValueError for input that cannot be ranked, and what `load_model` and `load_prompts` raise.
    """
    if null not in NULLS:
        raise ValueError(f"null is {null!r}; it must be one of {', '.join(NULLS)}")
    prompts = load_prompts(dataset)
    if null == "random_init" and not prompts.harmless:
        raise ValueError(
            f"null='random_init' compares harmful with harmless prompts, and {prompts.name} has no harmless ones"
        )
    model, prompts, metric = prepare_ranking(model, prompts, ablations, metric, limit)
    _check_top_k(top_k, model.n_layers * model.n_heads)

    chosen = as_method(method)
    if chosen is not None and isinstance(method, str):
        chosen = replace(chosen, top_k=top_k)

    def score(side: str, methods: Sequence[Screened | None]) -> tuple[HeadScores, ...]:
        estimates: Sequence[Tensor | None] = [None] * len(ablations)
        if chosen is not None:
            estimates = screen_heads(
                model,
                prompts,
                ablations=ablations,
                metric=metric,
                side=side,
                template=template,
                directions=chosen.directions,
                progress=progress,
            )
        return tuple(
            score_heads(
                model,
                prompts,
                ablation=ablation,
                metric=metric,
                side=side,
                template=template,
                rows=rows,
                store=store,
                executor=executor,
                method=how or "exact",
                estimates=estimate,
                progress=progress,
            )
            for ablation, how, estimate in zip(ablations, methods, estimates, strict=True)
        )

    harmful = score("harmful", [chosen] * len(ablations))
    harmless: Sequence[HeadScores | None] = (None,) * len(ablations)
    if prompts.harmless:
        harmless = score("harmless", [chosen and _beside(chosen, s) for s in harmful])
    random = None
    if null == "random_init":
        random = rank_safety_heads(
            random_copy(model),
            prompts,
            ablations=ablations,
            metric=metric,
            top_k=top_k,
            template=template,
            rows=rows,
            store=store,
            progress=progress,
        )
    return Ranking(harmful, tuple(harmless), model.name, prompts.name, top_k, random, null)


def prepare_ranking(
    model: Any,
    dataset: PromptSet | Sequence[str] | str | Path,
    ablations: Sequence[Ablation],
    metric: Metric | None,
    limit: int | None,
) -> tuple[HookedModel, PromptSet, Metric]:
    """The model, the prompts and the metric of a ranking: opened, cut to `limit`, chosen; bad ablations are refused."""
    require_distinct(ablations)
    prompts = load_prompts(dataset)
    if limit is not None:
        prompts = prompts.limit(limit)
    return load_model(model), prompts, RefusalShift() if metric is None else metric


def require_distinct(ablations: Sequence[Ablation]) -> None:
    """Raise ValueError if there is no ablation, or two of a kind, which would share a name."""
    if not ablations:
        raise ValueError(
            "ablations is empty; give at least one, such as UndifferentiatedAttention()"
        )
    names = [ablation.name for ablation in ablations]
    if len(set(names)) < len(names):
        raise ValueError(
            f"ablations has one kind twice ({', '.join(names)}); rank each in a call of its own"
        )


def _beside(method: Screened, harmful: HeadScores) -> Screened:
    """The harmless prompts' method: the heads that were run on the harmful ones, and no search of its own."""
    places = [] if harmful.exact is None else harmful.exact.nonzero().tolist()
    heads = tuple(Head(layer, head) for layer, head in places)
    return replace(method, include=heads, share=1e-9, audit=0.0, widen=1.0)


def _check_top_k(k: int, n: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"top_k is {k}; this model has {n} heads: ask for between 1 and {n}")
