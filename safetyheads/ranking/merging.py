"""How do layers that were scored apart become one result?

A job array scores layers 0-7 in one job and 8-15 in another, into one folder or several. A part is readings of some
layers and no result: it has no scores, ranks or figure. Joined, the parts give the bytes that one run would have given;
parts of different runs are never joined.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safetyheads.engine.execution import HERE, Execution
from safetyheads.engine.shards import RESUMED
from safetyheads.engine.sweep import Swept
from safetyheads.heads import HeadScores
from safetyheads.metrics import Metric, as_metric
from safetyheads.probes.single_heads import head_scores, score_layers_of
from safetyheads.ranking.ranking import Ranking
from safetyheads.ranking.study import Study
from safetyheads.storage.files import writable_folder, write_whole
from safetyheads.storage.store import Store, differences, layer_readings, store_name

PART = "part.json"
"""The file of a part of a ranking."""
READINGS = "readings"
"""The folder of a part's stores."""


def rank_layers(
    study: Study, layers: Sequence[int], folder: str | Path, execution: Execution = HERE
) -> Path:
    """Do a part of `rank`: the heads of some layers, into a folder for `merge_rankings`.

    `layers` is a range or a list. Parts may share the folder or have one each; it keeps the finished layers too, so
    that `execution` needs no store. Returns the folder.

    Raises ValueError if the folder holds a part of another run, for a study that is screened or compared with a random
    copy (both look at all layers), and what `rank` raises.
    """
    if study.method is not None or study.null in ("random_init", "gate"):
        raise ValueError(
            "a screen, and the nulls 'random_init' and 'gate', look at all layers; take method='exact' and another null"
        )
    opened = study.open()
    measurements = [*opened.harmful, *opened.harmless]
    folder = writable_folder(folder)
    part = {
        "what": "readings of some layers: a part of a ranking, to be joined by safetyheads merge",
        "model": opened.model.name,
        "dataset": opened.prompts.name,
        "top_k": study.top_k,
        "null": study.null,
        "runs": [measurement.manifest(execution) for measurement in measurements],
    }
    if (folder / PART).is_file():
        _require_same_runs([folder, Path("this run")], [_read_part(folder), part])
    execution = replace(execution, store=folder / READINGS)
    for measurement in measurements:
        score_layers_of(measurement, layers, execution)
    write_whole(folder / PART, (json.dumps(part, indent=2, sort_keys=True) + "\n").encode())
    return folder


def merge_scores(folders: Sequence[str | Path], *, metric: Metric | None = None) -> HeadScores:
    """Join the layers that `score_layers` scored apart; the result is that of one `score_heads`.

    `folders` are what `score_layers` returned. `metric` is needed where it is one of your own.

    Raises ValueError if the folders are of different runs (with what differs), if layers are missing (with which), or
    if two folders hold different numbers for a layer; FileNotFoundError if a folder holds no readings.
    """
    if not folders:
        raise ValueError("there are no folders to merge; give at least one")
    stores = [Store.reading(folder) for folder in folders]
    provenance = stores[0].provenance
    for store in stores[1:]:
        if lines := differences(provenance, store.provenance):
            raise ValueError(
                f"{stores[0].folder} and {store.folder} are of different runs and cannot be merged; "
                f"they differ in {'; '.join(lines)}"
            )
    shape = provenance["model"]
    layers = [_layer(stores, layer, shape["n_heads"]) for layer in range(shape["n_layers"])]
    flags = [flag for store in stores if (flag := store.get(RESUMED)) is not None]
    missing = [layer for layer, readings in enumerate(layers) if readings is None]
    if missing or not flags:
        names = ", ".join(str(folder) for folder in folders)
        run = f"{provenance['ablation']['name']}, {provenance['prompts']['side']}"
        raise ValueError(
            f"layers {_ranges(missing)} of {run} are in none of {names}; score them and merge again"
            if missing
            else f"no part of {run} in {names} has ended; run one of them again, which goes on from what is there"
        )
    readings = torch.cat([layer for layer in layers if layer is not None])
    exact = all(bool(flag.all()) for flag in flags)
    return head_scores(Swept(readings, exact), metric or _metric(provenance["metric"]), provenance)


def merge_rankings(
    folders: Sequence[str | Path], *, metric: Metric | None = None, top_k: int | None = None
) -> Ranking:
    """Join the parts of a ranking; the result is that of one `rank_safety_heads`.

    `folders` are those that `rank_layers` or `safetyheads rank --layers` wrote. `top_k` is by default the parts'.

    Raises ValueError and FileNotFoundError as `merge_scores` does.
    """
    if not folders:
        raise ValueError("there are no folders to merge; give at least one")
    places = [Path(folder) for folder in folders]
    parts = [_read_part(place) for place in places]
    _require_same_runs(places, parts)
    scores = []
    for provenance in parts[0]["runs"]:
        name = store_name(provenance)
        scores.append(merge_scores([place / READINGS / name for place in places], metric=metric))
    harmful, harmless = (
        tuple(s for s in scores if s.provenance["prompts"]["side"] == side)
        for side in ("harmful", "harmless")
    )
    return Ranking(
        harmful,
        harmless or (None,) * len(harmful),
        parts[0]["model"],
        parts[0]["dataset"],
        parts[0]["top_k"] if top_k is None else top_k,
        null=parts[0].get("null", "labels"),
    )


def _read_part(folder: Path) -> dict[str, Any]:
    try:
        part: dict[str, Any] = json.loads((folder / PART).read_bytes())
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{folder} holds no finished part of a ranking (no {PART}); give folders that "
            "`safetyheads rank --layers ... --out FOLDER` wrote to its end"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"{folder / PART} is damaged ({error}); run that part again, which goes on from its readings"
        ) from error
    return part


def _require_same_runs(folders: Sequence[Path], parts: Sequence[dict[str, Any]]) -> None:
    first, runs = folders[0], parts[0]["runs"]
    for folder, part in zip(folders[1:], parts[1:], strict=True):
        kinds = [
            [f"{run['ablation']['name']} on {run['prompts']['side']}" for run in some]
            for some in (runs, part["runs"])
        ]
        lines = differences(kinds[0], kinds[1], "ablations") or [
            line
            for one, other in zip(runs, part["runs"], strict=True)
            for line in differences(one, json.loads(json.dumps(other)))
        ]
        if lines:
            raise ValueError(
                f"{first} and {folder} are parts of different runs, which differ in "
                f"{'; '.join(dict.fromkeys(lines))}. Give all parts the same options but --layers"
            )


def _layer(stores: Sequence[Store], layer: int, n_heads: int) -> Tensor | None:
    """One layer's readings, from whichever store has them."""
    found = [
        (store.folder, readings)
        for store in stores
        if (readings := layer_readings(store, layer, n_heads)) is not None
    ]
    for folder, readings in found[1:]:
        if not torch.equal(readings, found[0][1]):
            raise ValueError(
                f"{found[0][0]} and {folder} hold different numbers for layer {layer} (computed on different "
                "machines?); delete that layer's file in one of them"
            )
    return found[0][1] if found else None


def _metric(description: dict[str, Any]) -> Metric:
    """The metric that a manifest describes."""
    try:
        metric = as_metric(description)
    except ValueError:
        metric = None
    if metric is None or metric.name != description["name"]:
        raise ValueError(
            f"{description['name']} is no metric of safetyheads; give the one that the parts were scored with: "
            "metric=..."
        )
    return metric


def _ranges(layers: Sequence[int]) -> str:
    """Numbers as ranges: 0-3, 7."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
