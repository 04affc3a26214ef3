"""How are heads run on some prompts now, and on others once it is known which are worth it?

A race asks for all heads on a few prompts, then for fewer heads on more. What the rounds have in common is done once:
the self-check, what a reference needs of all prompts, and each head's pass over the prefix that the prompts share:
its keys and values are kept from round to round.
"""

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from safetyheads.engine.climb import (
    OF_OTHERS,
    Calls,
    Group,
    Rows,
    all_rows,
    climb,
    layout,
    references_of,
)
from safetyheads.engine.cost import free_memory
from safetyheads.engine.execution import Execution
from safetyheads.engine.kernels import Kernel, Whole, fastest
from safetyheads.engine.measurement import Measurement
from safetyheads.engine.prefixes import KeptPrefixes, Prefixes
from safetyheads.engine.shards import sweep_apart
from safetyheads.engine.sweep import read_layers
from safetyheads.heads import Head
from safetyheads.interventions.ablating import AblateHead
from safetyheads.interventions.site import Reference
from safetyheads.metrics import kl_divergence
from safetyheads.storage.store import layer_key, layer_readings

KEPT = 0.25
"""Share of the free memory that prefixes may take; where all heads' would take more, they are run in every round."""
AGREE = 1e-3
"""How far, as in `kernels.fastest`, passes behind a kept prefix may be from those that run it, in the root of nats."""


class Rounds:
    """Runs heads of one measurement on any of its prompts, a round at a time."""

    def __init__(
        self,
        measurement: Measurement,
        execution: Execution,
        store: MutableMapping[str, Tensor] | None = None,
        progress: Callable[[int], object] = lambda rows: None,
    ) -> None:
        """`store` gets the readings of each finished layer of each round, and is asked before one is run.

        Raises ValueError for an executor where an ablation looks at all prompts, which no round has.
        """
        self.measurement, self.execution = measurement, execution
        self.store, self.progress = store, progress
        self.round = 0
        self.exact_resume = True
        self._opened: tuple[Kernel, dict[int, Reference], KeptPrefixes | None] | None = None
        self._calls: Calls = {}
        ablation = measurement.ablation
        if execution.executor is not None and ablation is not None and ablation.needs & OF_OTHERS:
            raise ValueError(
                f"{ablation} takes its reference from all prompts, and the rounds of a race that runs in other "
                "processes have some of them; leave executor out, or use method='exact'"
            )

    def __call__(
        self, heads: Sequence[Head], prompts: Sequence[int]
    ) -> Float[Tensor, "variant prompt"]:
        """What the metric keeps of each head on each prompt, both in the order given."""
        stored = None if self.store is None else _OfRound(self.store, self.round)
        self.round += 1
        ascending = sorted(prompts)
        run = self._run_here if self.execution.executor is None else self._run_apart
        readings = run(heads, ascending, stored)
        place = {prompt: n for n, prompt in enumerate(ascending)}
        return readings[:, [place[prompt] for prompt in prompts]]

    def _run_apart(
        self, heads: Sequence[Head], prompts: list[int], stored: "_OfRound | None"
    ) -> Tensor:
        inputs = self.measurement.inputs
        some = replace(inputs, batch=inputs.batch.select(prompts), texts=())
        measurement = replace(self.measurement, inputs=some)
        variants = measurement.variants(heads)
        swept = sweep_apart(
            measurement, variants, self.execution, store=stored, progress=self.progress
        )
        self.exact_resume = self.exact_resume and swept.exact_resume
        return swept.readings

    @torch.inference_mode()
    def _run_here(
        self, heads: Sequence[Head], prompts: list[int], stored: "_OfRound | None"
    ) -> Tensor:
        by_layer: dict[int, list[int]] = {}
        for n, head in enumerate(heads):
            by_layer.setdefault(head.layer, []).append(n)
        known: dict[int, Tensor] = {}
        for layer, numbers in by_layer.items():
            if (readings := layer_readings(stored, layer, len(numbers))) is not None:
                known[layer] = readings
                self.progress(len(numbers) * len(prompts))
        missing = {
            layer: self.measurement.variants([heads[n] for n in numbers])
            for layer, numbers in sorted(by_layer.items())
            if layer not in known
        }
        if missing:
            for layer, readings in self._layers(missing, prompts):
                known[layer] = readings
                if stored is not None:
                    stored[layer_key(layer)] = readings
        order = torch.tensor([n for numbers in by_layer.values() for n in numbers])
        return torch.cat([known[layer] for layer in by_layer])[order.argsort()]

    def _layers(
        self, missing: dict[int, list[AblateHead]], prompts: list[int]
    ) -> Iterator[tuple[int, Tensor]]:
        kernel, references, kept = self._open()
        if kept is not None:
            kept.keep_only({v.label for some in missing.values() for v in some})
        model, batch = self.measurement.inputs.model, self.measurement.inputs.batch
        groups = [
            Rows.of(model, batch, group, self._calls, batch.prefix_length)
            for group in layout(batch, self.execution.rows, model.device.type, prompts)
        ]
        yield from read_layers(
            self.measurement, kernel, groups, missing, references, self.progress, kept
        )

    def _open(self) -> tuple[Kernel, dict[int, Reference], KeptPrefixes | None]:
        """What all rounds have in common."""
        if self._opened is None:
            measurement = self.measurement
            variants = measurement.variants(measurement.heads())
            inputs = measurement.inputs
            groups = all_rows(inputs.model, inputs.batch, calls=self._calls)
            kernel = fastest(measurement, groups, variants)
            self.exact_resume = kernel != Whole()
            references = references_of(groups, variants, measurement.given, everywhere=True)
            prefixes = _prefixes(measurement, kernel, references, self._calls)
            self._opened = kernel, references, prefixes
        return self._opened


def _prefixes(
    measurement: Measurement, kernel: Kernel, references: dict[int, Reference], calls: Calls
) -> KeptPrefixes | None:
    """Where prefixes are kept; None where there are none, they take too much, or keeping them changes a number.

    `calls` has what was recorded, and gets what is recorded here, for the rounds.
    """
    model, batch = measurement.inputs.model, measurement.inputs.batch
    prefix = batch.prefix_length
    if not prefix or len(batch) < 2 or kernel == Whole():
        return None
    pairs = model.n_heads * model.n_layers * (model.n_layers - 1) // 2
    size = torch.finfo(model.dtype).bits // 8
    if 2 * pairs * prefix * model.n_kv * model.d_head * size > KEPT * free_memory(model.device):
        return None
    prompts = sorted(batch.lengths.argsort(stable=True).tolist()[-2:])
    rows = Rows.of(model, batch, Group(prompts, 1), calls, prefix)
    layer = (model.n_layers - 1) // 2
    variant = measurement.variants([Head(layer, 0)])[0]
    given = measurement.given
    site = list(climb([rows], {layer: variant.needs}, given, references))[-1][1]
    kept, run = KeptPrefixes(), Prefixes()
    first = kernel.finish(rows, site, [variant], given, run).log_probs
    kept.keep([variant], run)
    if variant.label not in kept:
        return None  # it looks at whole prompts, and has no prefix in common
    again = kernel.finish(rows, site, [variant], given, kept.together([variant])).log_probs
    tolerance = AGREE if model.dtype == torch.float32 else 0.5
    if not kl_divergence(first, again).max().item() <= tolerance**2:
        return None
    return KeptPrefixes()


class _OfRound(MutableMapping[str, Tensor]):
    """The part of a store that holds one round."""

    def __init__(self, store: MutableMapping[str, Tensor], number: int) -> None:
        self._store, self._name = store, f"round{number:02d}-"

    def __getitem__(self, key: str) -> Tensor:
        return self._store[self._name + key]

    def __setitem__(self, key: str, value: Tensor) -> None:
        self._store[self._name + key] = value

    def __delitem__(self, key: str) -> None:
        del self._store[self._name + key]

    def __iter__(self) -> Iterator[str]:
        names = (key for key in self._store if key.startswith(self._name))
        return (key.removeprefix(self._name) for key in names)

    def __len__(self) -> int:
        return sum(1 for _ in self)
