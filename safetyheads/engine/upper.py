"""What does a worker need that opens only the blocks from its lowest layer on?

The clean residual stream that enters this layer, what the model passes to the blocks from there on, the untouched
model's final states, and the kernel that was found to be right: one pass of the model that shares out gives them for
all workers. With these a worker does what a sweep does from this layer on, to the bit, with fewer weights to read and
to hold. Where later layers read more of earlier ones than the stream, no pass can be resumed, and it is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from safetyheads.engine.climb import (
    Group,
    Rows,
    all_rows,
    climb,
    needs_of,
    references_of,
    token_rows,
)
from safetyheads.engine.kernels import Kernel, Whole, fastest
from safetyheads.engine.measurement import Measurement
from safetyheads.engine.sweep import Swept, Upper, baseline_of, read_layers
from safetyheads.interventions.site import Reference, Site, Start, Variant
from safetyheads.metrics import LastToken, kl_divergence
from safetyheads.models.hooked import HookedModel
from safetyheads.models.placement import moved
from safetyheads.models.replaying import BlockCall
from safetyheads.prompts import TokenBatch


@dataclass(frozen=True, eq=False)
class EnteredRows:
    """Prompts that are swept together, where they enter a layer."""

    group: Group
    prefix: int
    """As in `Rows`."""
    calls: tuple[list[BlockCall], ...]
    """Of the blocks from this layer on, on whole prompts, the shared prefix and what follows it."""
    resid: Float[Tensor, "prompt pos d_model"]
    """What enters the layer."""
    state: Float[Tensor, "prompt d_model"]
    """The untouched model's final states at the last tokens."""


@dataclass(frozen=True, eq=False)
class Entered:
    """All prompts where they enter a layer, and how passes go on from there."""

    layer: int
    kernel: Kernel
    groups: tuple[EnteredRows, ...]
    references: dict[int, Reference]
    """As a sweep finds them for its variants."""


@torch.inference_mode()
def enter(
    measurement: Measurement,
    variants: Sequence[Variant],
    layers: Sequence[int],
    rows: int | None = None,
) -> dict[int, Entered]:
    """What workers need that begin at these layers, for a sweep of all these variants.

    Raises ValueError where passes cannot be resumed at a layer.
    """
    model, given = measurement.inputs.model, measurement.given
    groups = all_rows(model, measurement.inputs.batch, rows)
    kernel = fastest(measurement, groups, variants)
    if kernel == Whole():
        raise ValueError(
            f"{model.name} cannot be run from a layer on (its later layers read more of the earlier ones than the "
            "stream between them), so that a worker needs all of its blocks; leave upper_blocks out"
        )
    references = references_of(groups, variants, given)
    states = [baseline_of(kernel, some).state for some in groups]
    needs = {layer: frozenset[str]() for layer in layers}
    # As in the sweep itself, which carries the stream past a layer that it looks at by that look.
    for layer, of_layer in groupby(sorted(variants, key=_first), _first):
        if layer <= max(layers):
            needs[layer] = needs_of(list(of_layer))
    resids: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for _, site in climb(groups, needs, given, references):
        if site.layer in resids:
            resids[site.layer].append(site.resid)
    bare = _Bare()
    return {
        layer: Entered(
            layer,
            kernel,
            tuple(
                EnteredRows(
                    Group(list(some.prompts), some.width),
                    some.prefix,
                    tuple(
                        [bare.call(call) for call in calls[layer:]]
                        for calls in (some.calls, some.prefix_calls, some.suffix_calls)
                    ),
                    resid.cpu(),
                    state.cpu(),
                )
                for some, resid, state in zip(groups, resids[layer], states, strict=True)
            ),
            {at: _to(one, torch.device("cpu")) for at, one in references.items() if at >= layer},
        )
        for layer in layers
    }


def sweep_entered(measurement: Measurement, variants: Sequence[Variant], entered: Entered) -> Swept:
    """Do what `sweep` does for variants that start where the prompts have entered, or above, in the order of layers.

    Raises ValueError where the undisturbed pass from there on does not end as the untouched model did.
    """
    model, batch = measurement.inputs.model, measurement.inputs.batch
    with torch.inference_mode():
        groups = [_rows(model, batch, some, entered.layer) for some in entered.groups]
        resids = [some.resid.to(model.device) for some in entered.groups]
        ends = [LastToken(some.state.to(model.device), model.unembed) for some in entered.groups]
        if measurement.given is None:
            _require_same_end(entered, groups[0], resids[0], ends[0])
        by_layer = {layer: list(some) for layer, some in groupby(variants, _first)}
        references = {at: _to(one, model.device) for at, one in entered.references.items()}
        found = read_layers(
            measurement,
            entered.kernel,
            groups,
            by_layer,
            references,
            lambda rows: None,
            upper=Upper(entered.layer, resids, ends),
        )
        return Swept(torch.cat([readings for _, readings in found]), True)


@dataclass(frozen=True)
class _Untouched:
    """No change: the pass from a layer on as it is."""

    def start(self, site: Site) -> Start:
        return Start(site.resid)


def _require_same_end(entered: Entered, rows: Rows, resid: Tensor, end: LastToken) -> None:
    model: Any = rows.model
    site, untouched = rows.site(entered.layer, resid, None, {}), _Untouched()
    as_variant: Any = untouched
    got = entered.kernel.finish(rows, site, [as_variant], None)
    apart = kl_divergence(end.log_probs, got.log_probs).max().item()
    if not apart <= (1e-3 if model.dtype == torch.float32 else 0.5) ** 2:
        raise ValueError(
            f"from block {entered.layer} on, this worker's {model.name} does not end as the whole model did (KL "
            f"{apart:.2g} nat): its machine computes something else; leave upper_blocks out"
        )


def _first(variant: Variant) -> int:
    return variant.first_layer


def _rows(model: HookedModel, batch: TokenBatch, entered: EnteredRows, layer: int) -> Rows:
    """The rows of prompts that have entered a layer; the blocks below it have no calls of their own."""
    ids, lengths = token_rows(model, batch, entered.group.prompts)
    every = [
        [BlockCall(moved(c.args, model.device), moved(c.kwargs, model.device)) for c in calls]
        for calls in entered.calls
    ]
    whole, first, rest = ([*calls[:1] * layer, *calls] for calls in every)
    prompts, width = tuple(entered.group.prompts), entered.group.width
    return Rows(model, prompts, width, ids, lengths, entered.prefix, whole, first, rest)


def _to(reference: Reference, device: torch.device) -> Reference:
    return replace(
        reference,
        z=reference.z.to(device),
        lengths=reference.lengths.to(device),
        mean=reference.mean.to(device),
    )


class _Bare:
    """Calls as they travel: on the processor, what is shared still shared, and an empty cache in a cache's place."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, Any]] = {}

    def call(self, call: BlockCall) -> BlockCall:
        return BlockCall(self(call.args), self(call.kwargs))

    def __call__(self, value: Any) -> Any:
        from transformers import Cache, DynamicCache

        if isinstance(value, Tensor | Cache):
            if id(value) not in self._known:
                light = value.cpu() if isinstance(value, Tensor) else DynamicCache()
                self._known[id(value)] = value, light  # what is held keeps its id
            return self._known[id(value)][1]
        if type(value) in (tuple, list):
            return type(value)(self(one) for one in value)
        if isinstance(value, Mapping):
            return {name: self(one) for name, one in value.items()}
        return value
