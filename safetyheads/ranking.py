"""Which attention heads does a model's refusal rest on?

The page to start reading: prompts, scores, table, figure, files. `rank_safety_heads` scores every query head on the
harmful prompts and, where the dataset has them, on the harmless ones beside, because a head that matters for everything
scores high on both.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetyheads.heads import HeadScores, writable_folder
from safetyheads.interventions import Ablation, ScalingContribution, UndifferentiatedAttention
from safetyheads.metrics import Metric
from safetyheads.model import load_model
from safetyheads.plots.files import write_html
from safetyheads.plots.heads import plot_head_heatmap, plot_head_scatter
from safetyheads.probes.ablation import score_heads
from safetyheads.prompts import PromptSet, load_prompts
from safetyheads.sweep import DEFAULT_ROWS

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

    def to_frame(self) -> "pandas.DataFrame":
        """A long table: the columns of `HeadScores.to_frame`, dataset, model and, where known, harmless_score."""
        import pandas

        tables = []
        for harmful, harmless in zip(self.harmful, self.harmless, strict=True):
            table = harmful.to_frame().assign(dataset=self.dataset, model=self.model)
            if harmless is not None:
                places = zip(table["layer"], table["head"], strict=True)
                table["harmless_score"] = [harmless.values[place].item() for place in places]
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
        return {"model": self.model, "dataset": self.dataset, "top_k": self.top_k, "runs": runs}

    def save(self, folder: str | Path, *, note: str | None = None) -> Path:
        """Write scores.csv, manifest.json, a self-contained scatter.html, and all tensors under heads/."""
        folder = writable_folder(folder)
        self.to_frame().to_csv(folder / "scores.csv", index=False)
        (folder / "manifest.json").write_text(
            json.dumps(self.manifest, indent=2, sort_keys=True) + "\n"
        )
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
    rows: int = DEFAULT_ROWS,
    store: str | Path | None = None,
    progress: bool | None = None,
) -> Ranking:
    """Rank the attention heads of a model by how far ablating each moves its answer to harmful prompts.

    `model`: a name, Hub id, folder, `.gguf` file, `(model, tokenizer)` of Hugging Face, or TransformerBridge.
    `dataset`: a name such as "builtin" or "jailbreakbench", a file, a list of strings, or a PromptSet. `ablations` and
    `metric` are values such as `UndifferentiatedAttention()` and `Ships()`. `limit` keeps the first prompts only,
    spread over the categories. The other arguments are those of `score_heads`.

    Raises ValueError for input that cannot be ranked, and what `load_model` and `load_prompts` raise.
    """
    if not ablations:
        raise ValueError(
            "ablations is empty; give at least one, such as UndifferentiatedAttention()"
        )
    names = [ablation.name for ablation in ablations]
    if len(set(names)) < len(names):
        raise ValueError(
            f"ablations has one kind twice ({', '.join(names)}); rank each in a call of its own"
        )
    prompts = load_prompts(dataset)
    if limit is not None:
        prompts = prompts.limit(limit)
    model = load_model(model)
    _check_top_k(top_k, model.n_layers * model.n_heads)

    def score(side: str) -> tuple[HeadScores, ...]:
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
                progress=progress,
            )
            for ablation in ablations
        )

    harmful = score("harmful")
    harmless = score("harmless") if prompts.harmless else (None,) * len(ablations)
    return Ranking(harmful, harmless, model.name, prompts.name, top_k)


def _check_top_k(k: int, n: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"top_k is {k}; this model has {n} heads: ask for between 1 and {n}")
