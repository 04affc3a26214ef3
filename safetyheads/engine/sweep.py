"""How are thousands of variants of a forward pass run exactly, at a fraction of the cost of a pass each?

1. The prompts' clean residual stream is carried up the model one block at a time (`climb`), so that what starts at
   layer l starts from the exact input of layer l, and nothing below it is run again.
2. At layer l one clean pass gives every head's z and v. Ablations are closed forms on these, so the ablated layer's
   attention is not run again. Whatever a variant is, it says itself where its pass starts (`interventions/site.py`).
3. From there on, many (variant, prompt) rows share each forward pass, by the fastest way that this model allows
   (`kernels`).
4. Of the last token, only what a metric keeps is stored.

Memory holds one layer of clean activations, one residual stream a prompt and one batch of rows: it does not grow with
layers or variants, and vocabulary enters only through the rows of one batch. Before a sweep trusts any of this, it runs
one undisturbed pass and one variant of each kind against the model's own forward pass (`fastest`).
"""

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from safetyheads.engine.climb import Rows, all_rows, climb, in_order, needs_of, references_of
from safetyheads.engine.kernels import Kernel, Whole, fastest
from safetyheads.engine.measurement import Measurement
from safetyheads.engine.prefixes import KeptPrefixes
from safetyheads.interventions.site import Reference, Variant
from safetyheads.metrics import LastToken
from safetyheads.storage.store import layer_key, layer_readings


class Swept(NamedTuple):
    """What a sweep returns."""

    readings: Float[Tensor, "variant *reading"]
    """What the metric keeps of each variant, in the order of the variants."""
    exact_resume: bool
    """Whether passes were resumed where the variants start; False if whole hooked passes had to be used."""


class Upper(NamedTuple):
    """Where a sweep begins that has no blocks below a layer, group by group."""

    layer: int
    resids: list[Tensor]
    """What enters the layer."""
    ends: list[LastToken]
    """The untouched model's outputs."""


@torch.inference_mode()
def sweep(
    measurement: Measurement,
    variants: Sequence[Variant],
    *,
    rows: int | None = None,
    store: MutableMapping[str, Tensor] | None = None,
    progress: Callable[[int], object] = lambda rows: None,
) -> Swept:
    """Run every variant on every prompt and keep what the metric reads.

    What the measurement has given is ablated in every pass, besides the variant's own; the baseline is the model
    untouched all the same. Mean and resample ablation take their reference from the untouched model too.

    `rows` bounds the (variant, prompt) rows in one forward pass, and with it the memory; by default a pass has about
    `TOKENS_A_PASS` tokens. `store` gets the readings of each finished layer and is asked before one is run. `progress`
    is called with the number of rows just finished.

    Raises ValueError if the logits are not finite, or a variant names a layer or a head that the model does not have,
    or a head that is given.
    """
    model, batch = measurement.inputs.model, measurement.inputs.batch
    _require(measurement, variants)
    by_layer: dict[int, list[int]] = {}
    for number, variant in sorted(enumerate(variants), key=lambda pair: pair[1].first_layer):
        by_layer.setdefault(variant.first_layer, []).append(number)
    known = {}
    for layer, numbers in by_layer.items():
        if (stored := layer_readings(store, layer, len(numbers))) is not None:
            known[layer] = stored
            progress(len(numbers) * len(batch))
    groups = all_rows(model, batch, rows)
    kernel = fastest(measurement, groups, variants)
    missing = {
        layer: [variants[n] for n in numbers]
        for layer, numbers in by_layer.items()
        if layer not in known
    }
    references = references_of(groups, variants, measurement.given) if missing else {}
    for layer, readings in read_layers(measurement, kernel, groups, missing, references, progress):
        known[layer] = readings
        if store is not None:
            store[layer_key(layer)] = readings
    order = torch.tensor([n for numbers in by_layer.values() for n in numbers])
    readings = torch.cat([known[layer] for layer in by_layer])
    return Swept(readings[order.argsort()], kernel != Whole())


def read_layers(
    measurement: Measurement,
    kernel: Kernel,
    groups: Sequence[Rows],
    variants: Mapping[int, Sequence[Variant]],
    references: Mapping[int, Reference],
    progress: Callable[[int], object],
    kept: KeptPrefixes | None = None,
    upper: Upper | None = None,
) -> Iterator[tuple[int, Float[Tensor, "variant *reading"]]]:
    """The readings of the variants of each layer on the prompts of `groups`, low layers first.

    `kept` has the prefixes of variants that ran other prompts before, and gets those that are run here. With `upper`
    nothing below its layer is run.
    """
    metric, given = measurement.metric, measurement.given
    untouched = [baseline_of(kernel, some) for some in groups] if upper is None else upper.ends
    baseline = in_order(groups, [metric.read(last, last) for last in untouched])
    needs = {layer: needs_of(some) for layer, some in variants.items()}
    entered = None if upper is None else (upper.layer, upper.resids)
    sites = climb(groups, needs, given, references, entered)
    for layer, of_layer in groupby(sites, lambda place: place[1].layer):
        parts = []
        for (some, site), last in zip(of_layer, untouched, strict=True):
            # A vocabulary is large: of the untouched outputs only the states are kept from layer to layer.
            base = LastToken(last.state, last.unembed)
            passes = []
            for together in _evenly(variants[layer], some.width):
                if kept is None:
                    ablated = kernel.finish(some, site, together, given)
                else:
                    prefixes = kept.together(together)
                    ablated = kernel.finish(some, site, together, given, prefixes)
                    # Of one prompt alone it would not be seen that others have another prefix.
                    if len(some.prompts) > 1:
                        kept.keep(together, prefixes)
                passes.append(_read(measurement, ablated, base, together))
                progress(len(together) * len(some.prompts))
            parts.append(rearrange(torch.cat(passes), "variant prompt ... -> prompt variant ..."))
        in_batch = rearrange(in_order(groups, parts), "prompt variant ... -> variant prompt ...")
        yield layer, metric.gather(in_batch, baseline).cpu()


def _require(measurement: Measurement, variants: Sequence[Variant]) -> None:
    model, given = measurement.inputs.model, measurement.given
    if not variants:
        raise ValueError("there are no variants to run; give at least one")
    for variant in variants:
        for head in (*variant.heads, *(given.heads if given else ())):
            model.require_head(*head)
        if not 0 <= variant.first_layer < model.n_layers:
            raise ValueError(f"{variant.label}: {model.name} has layers 0-{model.n_layers - 1}")
        if given and (twice := set(variant.heads) & set(given.heads)):
            raise ValueError(
                f"{', '.join(map(str, sorted(twice)))} is ablated already, as given; leave it out of the variants"
            )


def baseline_of(kernel: Kernel, rows: Rows) -> LastToken:
    """The undisturbed outputs, without what is read of them."""
    last = kernel.baseline(rows)
    if last.log_probs.isnan().any():
        raise ValueError(
            f"{rows.model.name} gives NaN logits on the untouched prompts; check the weights, "
            "or load the model in float32 (half precision can overflow)"
        )
    return LastToken(last.state, last.unembed)


def _read(
    measurement: Measurement, ablated: LastToken, base: LastToken, variants: Sequence[Variant]
) -> Float[Tensor, "variant prompt *state"]:
    """What the metric keeps of each row."""
    copies = len(variants)
    read = measurement.metric.read(ablated, base.repeated(copies))
    rows = rearrange(read, "(variant prompt) ... -> variant prompt ...", variant=copies)
    if rows.isnan().any():
        broken = [v.label for v, row in zip(variants, rows, strict=True) if row.isnan().any()]
        raise ValueError(
            f"{', '.join(broken)} of {measurement.inputs.model.name} gives NaN logits; load the model in float32"
        )
    return rows


def _evenly(variants: Sequence[Variant], most: int) -> list[Sequence[Variant]]:
    """In runs of at most `most`, as equal as can be: a pass with few rows is as slow as one with many."""
    parts = -(-len(variants) // most)
    size = -(-len(variants) // parts)
    return [variants[start : start + size] for start in range(0, len(variants), size)]
