"""How much does the output depend on each attention head?

Ships and its relatives (Zhou et al., "On the Role of Attention Heads in Large Language Model Safety", ICLR 2025,
arXiv:2410.13708): every query head is ablated in turn and the next token's distribution, or the whole dataset's final
states, are compared with the untouched model's. Where paper and code differ, `metrics.py` and `interventions.py` say
which was followed; the template is the caller's choice, since the code uses three.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from safetyheads.engine.executors import Executor
from safetyheads.engine.measurement import Run, heads_of, prepare_run
from safetyheads.engine.shards import note_engine, sweep_apart
from safetyheads.engine.sweep import Swept, sweep
from safetyheads.heads import Head, HeadScores
from safetyheads.interventions.ablating import AblateHead, Ablation
from safetyheads.metrics import Metric
from safetyheads.prompts import PromptSet
from safetyheads.screening.screened import Screened, estimate_heads, score_screened
from safetyheads.storage.store import Store


def score_heads(
    model: Any,
    prompts: PromptSet | Sequence[str] | str | Path,
    *,
    ablation: Ablation | None = None,
    metric: Metric | None = None,
    side: str = "harmful",
    template: str | None = None,
    rows: int | None = None,
    store: str | Path | None = None,
    executor: Executor | None = None,
    method: str | Screened = "exact",
    estimates: Float[Tensor, "layer head"] | None = None,
    progress: bool | None = None,
) -> HeadScores:
    """Score every query head of a model on the prompts of a set (ships, generalized ships).

    `model` and `prompts` are whatever `load_model` and `load_prompts` take. `ablation` defaults to
    `UndifferentiatedAttention()`, `metric` to `Ships()`. `side` says which prompts of the set are scored,
    "harmful" or "harmless". `template` is "chat", "bare", "query" or a string with `{q}`; by default "chat"
    where the tokenizer has a chat template, else "bare". `rows` bounds the (head, prompt) rows that run
    together, and with it the memory. `store` names a folder where finished layers are kept: a run that was
    killed goes on from there (the key has the name and the fields of an ablation of your own, not its
    code). `executor` says where the passes run: `process_map(...)`, `ray_map(...)` or anything that maps like
    `map`; the model must then be given by name, path or Hub id. `method` is "exact", or "screened" (or
    `Screened(...)`): all heads are estimated, the best are run exactly, and so is a random sample of the others;
    `HeadScores.exact` says which scores are exact, `HeadScores.audit` what may be missed. `estimates` are those of
    `screen_heads`, if they are at hand. `progress` shows a bar with the time left (by default where standard error
    is a terminal).

    Raises ValueError for input that cannot be scored, and what `load_model` and `load_prompts` raise.
    """
    chosen = as_method(method)
    run = prepare_run(model, prompts, ablation, metric, side, template, rows)
    if chosen is not None:
        return _score_screened(run, chosen, estimates, store, executor, progress)
    known = None if store is None else Store(store, run.provenance)
    swept = _sweep(run, heads_of(range(run.model.n_layers), run.model), known, executor, progress)
    return head_scores(swept, run.metric, run.provenance)


def as_method(method: str | Screened) -> Screened | None:
    """How heads are screened, or None for the exact sweep of all.

    >>> as_method("exact"), as_method("screened") == Screened()
    (None, True)
    """
    if isinstance(method, Screened):
        return method
    if method not in ("exact", "screened"):
        raise ValueError(f'method is {method!r}; it must be "exact", "screened" or Screened(...)')
    return Screened() if method == "screened" else None


def screen_heads(
    model: Any,
    prompts: PromptSet | Sequence[str] | str | Path,
    *,
    ablations: Sequence[Ablation],
    metric: Metric | None = None,
    side: str = "harmful",
    template: str | None = None,
    directions: int = Screened().directions,
    progress: bool | None = None,
) -> tuple[Float[Tensor, "layer head"], ...]:
    """Estimate the score of every head under several ablations from one set of backward passes; nothing is ablated.

    The estimates are in the metric's unit, and not calibrated. `directions` is the number of passes backward. The other
    arguments are those of `score_heads`.

    Raises what `score_heads` raises, and ValueError for a metric that has no screen.
    """
    if not ablations:
        raise ValueError("there are no ablations; give at least one")
    runs = [prepare_run(model, prompts, a, metric, side, template, None) for a in ablations]
    return _estimate(runs, directions, progress)


def _estimate(
    runs: "Sequence[Run]", directions: int, progress: bool | None
) -> tuple[Float[Tensor, "layer head"], ...]:
    """Estimates for runs that differ in their ablation only."""
    first = runs[0]
    passes = len(first.batch.lengths) * (2 + directions)
    with _bar(passes, f"screen, {first.label}", progress) as bar:
        found = estimate_heads(
            first.model,
            first.batch,
            [run.ablation for run in runs],
            first.metric,
            directions=directions,
            progress=bar.update,
        )
    return tuple(found)


def _score_screened(
    run: "Run",
    method: Screened,
    estimates: Float[Tensor, "layer head"] | None,
    store: str | Path | None,
    executor: Executor | None,
    progress: bool | None,
) -> HeadScores:
    if estimates is None:
        estimates = _estimate([run], method.directions, progress)[0]
    engines = []

    def run_exactly(heads: Sequence[Head]) -> Tensor:
        # A subset of a layer's heads never shares a store with the whole layer.
        subset = {**run.provenance, "heads": [str(head) for head in heads]}
        known = None if store is None else Store(store, subset)
        swept = _sweep(run, heads, known, executor, progress)
        engines.append(swept.exact_resume)
        return swept.readings

    found = score_screened(estimates, run.metric, method, run_exactly)
    used = {**asdict(method), "name": "screened", "include": [str(h) for h in method.include]}
    return HeadScores(
        values=found.values,
        per_prompt=found.per_prompt,
        readings=None if found.per_prompt is not None else found.readings,
        ablation=run.ablation.name,
        metric=run.metric.name,
        unit=run.metric.unit,
        largest_first=run.metric.largest_first,
        provenance={
            **run.provenance,
            "method": used,
            "engine": "resumed" if all(engines) else "plain",
        },
        exact=found.exact,
        estimates=estimates,
        audit=found.audit,
    )


def score_layers(
    model: Any,
    prompts: PromptSet | Sequence[str] | str | Path,
    layers: Sequence[int],
    store: str | Path,
    *,
    ablation: Ablation | None = None,
    metric: Metric | None = None,
    side: str = "harmful",
    template: str | None = None,
    rows: int | None = None,
    executor: Executor | None = None,
    progress: bool | None = None,
) -> Path:
    """Score the heads of some layers into a store: one part of a run that `merge_scores` joins.

    `layers` is a range or a list, such as `range(8, 16)`. The other arguments are those of `score_heads`. Returns the
    folder of the readings, inside `store`. Parts with other layers may share the store, or have one each.

    Raises what `score_heads` raises, and ValueError for a layer that the model does not have.
    """
    run = prepare_run(model, prompts, ablation, metric, side, template, rows)
    return score_layers_of(run, layers, store, executor, progress)


def score_layers_of(
    run: "Run",
    layers: Sequence[int],
    store: str | Path,
    executor: Executor | None,
    progress: bool | None,
) -> Path:
    """Score the heads of some layers of a prepared run into a store; returns the folder of the readings."""
    n_layers = run.model.n_layers
    if not layers or not all(0 <= layer < n_layers for layer in layers):
        raise ValueError(
            f"layers is {list(layers)}; {run.model.name} has layers 0-{n_layers - 1}: name at least one of them"
        )
    known = Store(store, run.provenance)
    _sweep(run, heads_of(sorted(set(layers)), run.model), known, executor, progress)
    return known.folder


def _sweep(
    run: Run,
    heads: Sequence[Head],
    store: Store | None,
    executor: Executor | None,
    progress: bool | None,
) -> Swept:
    """Some heads, here or in an executor's workers."""
    edits = [AblateHead(head, run.ablation) for head in heads]
    label = f"{run.ablation.name}, {run.label}"
    with _bar(len(edits) * len(run.batch.lengths), label, progress) as bar:
        options: dict[str, Any] = {"rows": run.rows, "store": store, "progress": bar.update}
        if executor is None:
            swept = sweep(run.model, run.batch, edits, run.metric, **options)
        else:
            options["executor"] = executor
            swept = sweep_apart(run.model, run.batch, edits, run.metric, **options)
    return swept._replace(exact_resume=note_engine(store, swept.exact_resume))


def head_scores(swept: Swept, metric: Metric, provenance: dict[str, Any]) -> HeadScores:
    """The scores of every head, from the readings of every head in the order of layers."""
    values, per_prompt = metric.score(swept.readings)
    grid = (provenance["model"]["n_layers"], provenance["model"]["n_heads"])

    def on_grid(tensor: Tensor) -> Tensor:
        return tensor.reshape(*grid, *tensor.shape[1:])

    return HeadScores(
        values=on_grid(values),
        per_prompt=None if per_prompt is None else on_grid(per_prompt),
        readings=None if per_prompt is not None else on_grid(swept.readings),
        ablation=provenance["ablation"]["name"],
        metric=metric.name,
        unit=metric.unit,
        largest_first=metric.largest_first,
        provenance={**provenance, "engine": "resumed" if swept.exact_resume else "plain"},
    )


def _bar(total: int, label: str, shown: bool | None) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, desc=label, unit="pass", disable=None if shown is None else not shown)
