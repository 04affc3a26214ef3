"""How much does the output depend on each attention head?

Ships and its relatives (Zhou et al., "On the Role of Attention Heads in Large Language Model Safety", ICLR 2025,
arXiv:2410.13708): every query head is ablated in turn and the next token's distribution, or the whole dataset's final
states, are compared with the untouched model's. Where paper and code differ, `metrics.py` and `interventions` say which
was followed; the template is the caller's choice, since the code uses three.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from safetyheads.engine.execution import HERE, Execution
from safetyheads.engine.measurement import Measurement, measure
from safetyheads.engine.run import run
from safetyheads.engine.sweep import Swept
from safetyheads.heads import Head, HeadScores
from safetyheads.inputs import Inputs, Side, Source, prepare
from safetyheads.interventions.ablations import Ablation, as_ablations, describe
from safetyheads.metrics import LastToken, Metric, as_metric
from safetyheads.progress import bar
from safetyheads.screening.audit import Screened
from safetyheads.screening.estimates import estimate_heads
from safetyheads.screening.methods import Method, as_method, describe_method
from safetyheads.screening.race import Raced
from safetyheads.screening.raced import race_heads
from safetyheads.screening.screened import score_screened
from safetyheads.storage.store import store_name

DIRECTIONS = Screened().directions
"""Passes backward of the estimate that goes beside a race."""
SCREEN_COST = 6.0
"""How long one pass of an estimate takes, in ablated prompts: these start at their layer, and share a prefix."""


def score_heads(
    model: Any,
    prompts: Source,
    *,
    ablation: Ablation | str | None = None,
    metric: Metric | str | None = None,
    side: Side = "harmful",
    template: str | None = None,
    method: Method = "exact",
    execution: Execution = HERE,
) -> HeadScores:
    """Score every query head of a model on the prompts of a set (ships, generalized ships).

    `model` and `prompts` are whatever `load_model` and `load_prompts` take. `ablation` and `metric` are values or
    their names, by default `UndifferentiatedAttention()` and `Ships()`. `side` says which prompts of the set are
    scored. `template` is "chat", "bare", "query" or a string with `{q}`; by default "chat" where the tokenizer has a
    chat template, else "bare". `method` is "exact"; or "raced" (or `Raced(...)`): all heads are run on a few prompts,
    and those that may still be among the top on more and more, the last ones on all; or "screened" (or
    `Screened(...)`): all heads are estimated, the best are run exactly, and so is a random sample of the others.
    `HeadScores.exact` says which scores are exact, `HeadScores.race` and `HeadScores.audit` what may be missed.
    `execution` says how the sweep runs.

    Raises ValueError for input that cannot be scored, and what `load_model` and `load_prompts` raise.
    """
    chosen = as_method(method)
    inputs = prepare(model, prompts, side=side, template=template)
    return score_measurements([measure(inputs, ablation, metric)], [chosen], execution)[0]


def score_measurements(
    measurements: Sequence[Measurement],
    methods: Sequence[Raced | Screened | None],
    execution: Execution,
) -> tuple[HeadScores, ...]:
    """Score every head under measurements that differ in their ablation only, each with its own method.

    Those that want a linear estimate share one, of as many directions as the first one wants; where one of them wants
    it of each prompt, all get it.
    """
    wanting = [
        (m, how)
        for m, how in zip(measurements, methods, strict=True)
        if isinstance(how, Screened) or (isinstance(how, Raced) and how.covariate)
    ]
    estimates: dict[int, Tensor] = {}
    if wanting:
        each = any(isinstance(how, Raced) for _, how in wanting)
        directions = next(
            (how.directions for _, how in wanting if isinstance(how, Screened)), DIRECTIONS
        )
        found = _estimate([m for m, _ in wanting], directions, execution.progress, each_prompt=each)
        estimates = {id(m): one for (m, _), one in zip(wanting, found, strict=True)}

    def scored(measurement: Measurement, how: Raced | Screened | None) -> HeadScores:
        if how is None:
            return _score_exactly(measurement, execution)
        estimate = estimates.get(id(measurement))
        if isinstance(how, Raced):
            return race_heads(measurement, how, execution, estimate)
        if estimate is None:
            raise RuntimeError("a screen without an estimate")
        mean = estimate.mean(-1) if estimate.ndim > 2 else estimate
        return _score_screened(measurement, how, mean, execution)

    return tuple(scored(m, how) for m, how in zip(measurements, methods, strict=True))


def score_some(measurement: Measurement, heads: Sequence[Head], execution: Execution) -> HeadScores:
    """Score some heads exactly, and no others: their scores are NaN, and none is called exact."""
    chosen = sorted(heads)
    swept = run(measurement, measurement.variants(chosen), execution)
    model, metric = measurement.inputs.model, measurement.metric
    exact = torch.zeros(model.n_layers, model.n_heads, dtype=torch.bool)
    exact[tuple(torch.tensor(chosen).T)] = True
    values, per_prompt = metric.score(swept.readings)

    def grid(rows: Tensor) -> Tensor:
        whole = torch.full((*exact.shape, *rows.shape[1:]), torch.nan, dtype=rows.dtype)
        whole[exact] = rows
        return whole

    manifest = measurement.manifest(execution, heads=[str(head) for head in chosen])
    return HeadScores(
        values=grid(values),
        per_prompt=None if per_prompt is None else grid(per_prompt),
        readings=None if per_prompt is not None else grid(swept.readings),
        ablation=manifest["ablation"]["name"],
        metric=metric.name,
        unit=metric.unit,
        largest_first=metric.largest_first,
        provenance={**manifest, "engine": "resumed" if swept.exact_resume else "plain"},
        exact=exact,
    )


def _score_exactly(measurement: Measurement, execution: Execution) -> HeadScores:
    swept = run(measurement, measurement.variants(measurement.heads()), execution)
    return head_scores(swept, measurement.metric, measurement.manifest(execution))


def _score_screened(
    measurement: Measurement,
    method: Screened,
    estimates: Float[Tensor, "layer head"],
    execution: Execution,
) -> HeadScores:
    engines = []

    def run_exactly(heads: Sequence[Head]) -> Tensor:
        swept = run(measurement, measurement.variants(heads), execution)
        engines.append(swept.exact_resume)
        return swept.readings

    metric = measurement.metric
    found = score_screened(estimates, metric, method, run_exactly)
    manifest = measurement.manifest(execution, method=describe_method(method))
    return HeadScores(
        values=found.values,
        per_prompt=found.per_prompt,
        readings=None if found.per_prompt is not None else found.readings,
        ablation=manifest["ablation"]["name"],
        metric=metric.name,
        unit=metric.unit,
        largest_first=metric.largest_first,
        provenance={**manifest, "engine": "resumed" if all(engines) else "plain"},
        exact=found.exact,
        estimates=estimates,
        audit=found.audit,
    )


def screen_heads(
    model: Any,
    prompts: Source,
    *,
    ablations: Ablation | str | Sequence[Ablation | str],
    metric: Metric | str | None = None,
    side: Side = "harmful",
    template: str | None = None,
    directions: int = Screened().directions,
    progress: bool | None = None,
) -> tuple[Float[Tensor, "layer head"], ...]:
    """Estimate the score of every head under several ablations from one set of backward passes; nothing is ablated.

    The estimates are in the metric's unit, and not calibrated. `directions` is the number of passes backward,
    `progress` shows a bar. The other arguments are those of `score_heads`.

    Raises what `score_heads` raises, and ValueError for a metric that has no screen.
    """
    chosen = as_ablations(ablations)
    inputs = prepare(model, prompts, side=side, template=template)
    return _estimate([measure(inputs, one, metric) for one in chosen], directions, progress)


def _estimate(
    measurements: Sequence[Measurement],
    directions: int,
    progress: bool | None,
    *,
    each_prompt: bool = False,
) -> tuple[Float[Tensor, "layer head *prompt"], ...]:
    """Estimates for measurements that differ in their ablation only."""
    inputs, metric = measurements[0].inputs, measurements[0].metric
    ablations = [m.ablation for m in measurements if m.ablation is not None]
    passes = len(inputs.batch) * (2 + directions)
    with bar(passes, f"screen, {inputs.label}", "pass", progress, cost=SCREEN_COST) as shown:
        found = estimate_heads(
            inputs.model,
            inputs.batch,
            ablations,
            metric,
            directions=directions,
            each_prompt=each_prompt,
            progress=shown.update,
        )
    return tuple(found)


def score_layers(
    model: Any,
    prompts: Source,
    layers: Sequence[int],
    execution: Execution,
    *,
    ablation: Ablation | str | None = None,
    metric: Metric | str | None = None,
    side: Side = "harmful",
    template: str | None = None,
) -> Path:
    """Score the heads of some layers into a store: one part of a run that `merge_scores` joins.

    `layers` is a range or a list, such as `range(8, 16)`. `execution` has the store: `Execution(store=folder)`; parts
    with other layers may share it, or have one each. The other arguments are those of `score_heads`. Returns the folder
    of the readings, inside the store.

    Raises what `score_heads` raises, and ValueError for a layer that the model does not have or where there is no
    store.
    """
    inputs = prepare(model, prompts, side=side, template=template)
    return score_layers_of(measure(inputs, ablation, metric), layers, execution)


def score_layers_of(measurement: Measurement, layers: Sequence[int], execution: Execution) -> Path:
    """Do what `score_layers` does, for what is already settled."""
    model = measurement.inputs.model
    if execution.store is None:
        raise ValueError("layers are scored into a store; give Execution(store=folder)")
    if not layers or not all(0 <= layer < model.n_layers for layer in layers):
        raise ValueError(
            f"layers is {list(layers)}; {model.name} has layers 0-{model.n_layers - 1}: name at least one of them"
        )
    run(measurement, measurement.variants(measurement.heads(sorted(set(layers)))), execution)
    return Path(execution.store) / store_name(measurement.manifest(execution))


def head_scores(swept: Swept, metric: Metric, manifest: dict[str, Any]) -> HeadScores:
    """The scores of every head, from the readings of every head in the order of layers."""
    values, per_prompt = metric.score(swept.readings)
    grid = (manifest["model"]["n_layers"], manifest["model"]["n_heads"])
    return HeadScores(
        values=values.unflatten(0, grid),
        per_prompt=None if per_prompt is None else per_prompt.unflatten(0, grid),
        readings=None if per_prompt is not None else swept.readings.unflatten(0, grid),
        ablation=manifest["ablation"]["name"],
        metric=metric.name,
        unit=metric.unit,
        largest_first=metric.largest_first,
        provenance={**manifest, "engine": "resumed" if swept.exact_resume else "plain"},
    )


# Several metrics at the price of one ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Together:
    """Several metrics as one: nearly all of a sweep's time goes into forward passes, and a metric only looks at what
    comes out. Their readings stand side by side."""

    metrics: tuple[Metric, ...]
    """What is measured."""
    states: tuple[tuple[int, ...], ...]
    """Shape of what each metric keeps of one row."""
    readings: tuple[tuple[int, ...], ...] = ()
    """Shape of what each metric keeps of one variant; known once the prompts are."""
    unit: ClassVar[str] = ""
    largest_first: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return " + ".join(metric.name for metric in self.metrics)

    def prepare(self, tokenizer: Any, texts: Sequence[str]) -> "Metric":
        metrics = tuple(metric.prepare(tokenizer, texts) for metric in self.metrics)
        readings = _reading_shapes(metrics, self.states, len(texts))
        return replace(self, metrics=metrics, readings=readings)

    def read(self, ablated: LastToken, baseline: LastToken) -> Float[Tensor, "row state"]:
        parts = [metric.read(ablated, baseline) for metric in self.metrics]
        return torch.cat([part.reshape(len(part), -1) for part in parts], dim=-1)

    def gather(
        self, rows: Float[Tensor, "variant prompt state"], baseline: Float[Tensor, "prompt state"]
    ) -> Float[Tensor, "variant reading"]:
        parts = zip(
            self.metrics, _split(rows, self.states), _split(baseline, self.states), strict=True
        )
        read = [metric.gather(some, base) for metric, some, base in parts]
        return torch.cat([part.flatten(1) for part in read], dim=-1)

    def score(
        self, readings: Float[Tensor, "variant reading"]
    ) -> tuple[Float[Tensor, " variant"], None]:
        """The first metric's score: the others follow from the readings."""
        return self.metrics[0].score(_split(readings, self.readings)[0])[0], None


def _split(joined: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Undo a concatenation along the last axis."""
    parts = joined.split([math.prod(shape) for shape in shapes], dim=-1)
    return [
        part.reshape(*joined.shape[:-1], *shape) for part, shape in zip(parts, shapes, strict=True)
    ]


def score_heads_together(
    model: Any,
    prompts: Source,
    metrics: Sequence[Metric | str],
    *,
    ablation: Ablation | str | None = None,
    side: Side = "harmful",
    template: str | None = None,
    execution: Execution = HERE,
) -> list[HeadScores]:
    """Score every head by several metrics in one sweep: what `score_heads` gives for each, at the price of one.

    The other arguments are those of `score_heads`.

    Raises ValueError if there are no metrics, and what `score_heads` raises.
    """
    if not metrics:
        raise ValueError("there are 0 metrics; give at least one")
    inputs = prepare(model, prompts, side=side, template=template)
    asked = tuple(as_metric(metric) for metric in metrics)
    states = tuple(_state_shape(inputs, metric) for metric in asked)
    measurement = measure(inputs, ablation, Together(asked, states))
    swept = run(measurement, measurement.variants(measurement.heads()), execution)
    manifest = measurement.manifest(execution)
    prepared: Any = measurement.metric
    parts = _split(swept.readings, prepared.readings)
    scores = [
        head_scores(
            Swept(readings, swept.exact_resume),
            metric,
            {**manifest, "metric": describe(metric)},
        )
        for metric, readings in zip(prepared.metrics, parts, strict=True)
    ]
    # Side by side, single readings stand in the precision of Gram matrices.
    return [
        replace(one, values=one.values.float(), per_prompt=one.per_prompt.float())
        if one.per_prompt is not None
        else replace(one, values=one.values.float())
        for one in scores
    ]


def _state_shape(inputs: Inputs, metric: Metric) -> tuple[int, ...]:
    """Shape of what a metric keeps of one row, found by letting it read a made-up one."""
    model = inputs.model
    resid = torch.zeros(1, model.d_model, dtype=model.dtype, device=model.device)
    with torch.inference_mode():
        row = LastToken(model.final_norm(resid), model.unembed)
        prepared = metric.prepare(model.tokenizer, inputs.batch.texts)
        return tuple(prepared.read(row, row).shape[1:])


def _reading_shapes(
    metrics: Sequence[Metric], states: Sequence[tuple[int, ...]], n: int
) -> tuple[tuple[int, ...], ...]:
    """Shape of what each metric keeps of one variant on n prompts."""
    return tuple(
        tuple(metric.gather(torch.zeros(1, n, *state), torch.zeros(n, *state)).shape[1:])
        for metric, state in zip(metrics, states, strict=True)
    )
