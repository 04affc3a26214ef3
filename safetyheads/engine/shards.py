"""How is a sweep cut into pieces that other processes run?

A shard is a run of layers with their variants, and all prompts. Prompts and the variants of a layer stay together: a
forward pass then holds the same rows wherever it runs, so that the numbers are those of the local sweep to the bit (on
the same kind of machine, with the same number of threads), and an ablation or metric that looks at the whole dataset
has it. A shard is a value: it names the model, and the worker opens it.
"""

import functools
import itertools
import pickle
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from safetyheads.engine.execution import Execution
from safetyheads.engine.measurement import Measurement
from safetyheads.engine.sweep import Swept, sweep
from safetyheads.engine.upper import Entered, enter, sweep_entered
from safetyheads.inputs import Inputs
from safetyheads.interventions.ablating import AblateHeads
from safetyheads.interventions.site import Variant
from safetyheads.metrics import Metric
from safetyheads.models.fingerprint import fingerprint
from safetyheads.models.hooked import HookedModel, ModelSource
from safetyheads.models.opening import open_upper, reopen
from safetyheads.prompts import TokenBatch
from safetyheads.storage.store import differences, layer_key, layer_readings

RESUMED = "resumed"
"""The key in a store that says whether all its readings were resumed at the ablated layers."""
WORTH = 20
"""A shard begins with about two clean passes of all prompts; it should be worth ten times that."""


@dataclass(frozen=True, eq=False)
class Shard:
    """What a worker needs to compute the readings of some layers."""

    source: ModelSource
    """The model, as the caller named it."""
    model: dict[str, Any]
    """The model's provenance, which the worker's must equal."""
    batch: TokenBatch
    """The prompts as tokens; their texts stay behind."""
    variants: tuple[Variant, ...]
    """All variants of some layers, in the order of layers."""
    metric: Metric
    given: AblateHeads | None
    """As in `Measurement`."""
    rows: int | None
    """(variant, prompt) rows in one forward pass, as for `sweep`."""
    entered: Entered | None = None
    """Where the prompts enter its lowest layer, for a worker that opens the blocks from there on only."""


class Part(NamedTuple):
    """What a worker gives back."""

    readings: dict[int, Tensor]
    """By layer: [variant, *reading]."""
    exact_resume: bool
    """As in `Swept`."""


def run_shard(shard: Shard) -> Part:
    """Compute one shard, in whichever process; the model is opened once.

    Raises ValueError if the model that opens here is another than the caller's.
    """
    entered = shard.entered
    first = 0 if entered is None else entered.layer
    model = _open(shard.source, first)
    if lines := differences(shard.model, _comparable(model, first)):
        raise ValueError(
            f"a worker opened another {model.name} than the one that shares out ({'; '.join(lines)}); "
            "give all machines the same files and package versions"
        )
    measurement = Measurement(Inputs(model, shard.batch, (), {}), shard.metric, given=shard.given)
    if entered is None:
        swept = sweep(measurement, shard.variants, rows=shard.rows)
    else:
        swept = sweep_entered(measurement, shard.variants, entered)
    readings = {}
    start = 0
    for layer, some in itertools.groupby(shard.variants, lambda v: v.first_layer):
        end = start + len(list(some))
        readings[layer] = swept.readings[start:end].clone()
        start = end
    return Part(readings, swept.exact_resume)


@functools.lru_cache(maxsize=1)
def _open(source: ModelSource, first: int) -> HookedModel:
    return open_upper(source, first) if first else reopen(source)


def _comparable(model: HookedModel, first: int = 0) -> dict[str, Any]:
    """A model's provenance without the path that it was opened by, and which function it is by now, from the block
    `first` on; the gate has seen a whole one only."""
    aside = ("source", "gate") if first else ("source",)
    about = {name: value for name, value in model.provenance.items() if name not in aside}
    return {**about, "weights": fingerprint(model.hf, first)}


def sweep_apart(
    measurement: Measurement,
    variants: Sequence[Variant],
    execution: Execution,
    *,
    store: MutableMapping[str, Tensor] | None = None,
    progress: Callable[[int], object] = lambda rows: None,
) -> Swept:
    """Do what `sweep` does, in the workers of an executor; each shard goes into `store` as soon as it is there.

    Raises ValueError if the model or an ablation cannot travel to another process, and what a worker raised.
    """
    executor, prompts = execution.executor, len(measurement.inputs.batch)
    if executor is None:
        raise ValueError("this execution has no executor; give Execution(executor=...)")
    by_layer: dict[int, list[int]] = {}
    for number, variant in enumerate(variants):
        by_layer.setdefault(variant.first_layer, []).append(number)
    known: dict[int, Tensor] = {}
    for layer, numbers in by_layer.items():
        if (readings := layer_readings(store, layer, len(numbers))) is not None:
            known[layer] = readings
            progress(len(numbers) * prompts)
    exact = True
    missing = {
        layer: [variants[n] for n in numbers]
        for layer, numbers in sorted(by_layer.items())
        if layer not in known
    }
    if missing:
        whole = _shard(measurement, execution)
        shards = [
            replace(whole, variants=tuple(itertools.chain(*(missing[at] for at in some))))
            for some in cut(
                {layer: len(edits) for layer, edits in missing.items()},
                measurement.inputs.model.n_layers,
                getattr(executor, "workers", 1),
                each=1 if execution.upper_blocks else 2,
            )
        ]
        if execution.upper_blocks:
            shards = _with_upper_blocks(measurement, shards)
        _require_picklable(shards[0])
        for part in executor(run_shard, shards):
            exact = note_engine(store, exact and part.exact_resume)
            for layer, readings in part.readings.items():
                if store is not None:
                    store[layer_key(layer)] = readings
                known[layer] = readings
                progress(len(readings) * prompts)
    in_order: list[Tensor] = [torch.empty(0)] * len(variants)
    for layer, numbers in by_layer.items():
        for number, reading in zip(numbers, known[layer], strict=True):
            in_order[number] = reading
    return Swept(torch.stack(in_order), exact)


def _with_upper_blocks(measurement: Measurement, shards: Sequence[Shard]) -> list[Shard]:
    """The shards with what their workers need instead of the blocks below; the lowest has all blocks."""
    model = measurement.inputs.model
    lowest = [shard.variants[0].first_layer for shard in shards]
    above = [layer for layer in lowest if layer]
    variants = [variant for shard in shards for variant in shard.variants]
    found = enter(measurement, variants, above, shards[0].rows) if above else {}
    return [
        replace(shard, entered=found[layer], model=_comparable(model, layer)) if layer else shard
        for shard, layer in zip(shards, lowest, strict=True)
    ]


def cut(heads: dict[int, int], n_layers: int, workers: int, each: int = 2) -> Iterator[list[int]]:
    """Runs of layers of about equal cost, low layers first: `heads` counts each layer's variants.

    A head ablated at layer l costs the blocks from l on. There are at least `each` shards a worker, as far as the
    layers go, and as many more as stay worth their beginning; with 1 there is one a worker.

    >>> list(cut(dict.fromkeys(range(8), 4), 8, workers=2))
    [[0], [1], [2, 3], [4, 5, 6, 7]]
    """
    costs = {layer: count * (n_layers - layer) for layer, count in heads.items()}
    total = sum(costs.values())
    shards = max(total // (WORTH * n_layers), each * workers) if each > 1 else workers
    bins: dict[int, list[int]] = {}
    done = 0
    for layer, cost in sorted(costs.items()):
        bins.setdefault((2 * done + cost) * shards // (2 * total), []).append(layer)
        done += cost
    yield from bins.values()


def _shard(measurement: Measurement, execution: Execution) -> Shard:
    """A shard without variants."""
    model, batch = measurement.inputs.model, measurement.inputs.batch
    if model.opened_from is None:
        raise ValueError(
            f"{model.name} was loaded by the caller, and a loaded model cannot travel to other processes; write it "
            "with safetyheads.save_model(model, folder) and give the folder (or a name, or a Hub id) instead, or leave "
            "executor out"
        )
    bare = replace(batch, texts=("",) * len(batch))
    return Shard(
        source=source_over(
            model.opened_from, getattr(execution.executor, "gpus_per_worker", 1), model.device.type
        ),
        model=_comparable(model),
        batch=bare,
        variants=(),
        metric=measurement.metric,
        given=measurement.given,
        rows=execution.rows,
    )


def source_over(source: ModelSource, gpus: float | int, device: str) -> ModelSource:
    """How a worker opens the model on the `gpus` that it alone sees, where `device` is the kind of the caller's.

    A map of the caller's own is kept.

    Raises ValueError where the caller's model lies on the processor: readings would be noted as computed there.
    """
    if gpus <= 1 or source.device_map is not None:
        return source
    if device == "cpu":
        raise ValueError(
            f"each worker has {gpus} GPUs, and {source.name_or_path} was opened on the processor, where the readings "
            "would be noted as computed; open it with device_map='balanced', or device='cuda' where it fits on one"
        )
    return source._replace(device="cpu", device_map="balanced")


def _require_picklable(shard: Shard) -> None:
    try:
        pickle.dumps(shard)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"this ablation or metric cannot travel to other processes ({error}); define its class in a module"
        ) from error


def note_engine(store: MutableMapping[str, Tensor] | None, exact_resume: bool) -> bool:
    """Note in a store how readings were computed; whether all of the store were resumed at the ablated layers."""
    if store is None:
        return exact_resume
    noted = store.get(RESUMED)
    if noted is None or (noted.all() and not exact_resume):
        noted = store[RESUMED] = torch.tensor([exact_resume])
    return bool(noted.all())
