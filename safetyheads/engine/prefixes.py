"""What is left of the prompts' shared prefix, once a variant has run it?

Its keys and values, a pair a layer above the ablated one: later prompts of the same variant attend to them, and the
prefix is not run again. A race of heads (`rounds`) keeps them from round to round.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from safetyheads.interventions.site import Variant
from safetyheads.models.replaying import SharedPrefix


@dataclass(eq=False)
class Prefixes:
    """The prefixes of the variants of one pass."""

    known: bool = False
    """Whether they were run before."""
    by_layer: dict[int, SharedPrefix] = field(default_factory=dict)

    def at(self, layer: int) -> SharedPrefix:
        """Their keys and values at a layer; empty before they are run."""
        return self.by_layer.setdefault(layer, SharedPrefix())


class KeptPrefixes:
    """The prefixes of many variants, each on its own, since they leave a race one by one."""

    def __init__(self) -> None:
        self._kept: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._kept

    def together(self, variants: Sequence[Variant]) -> Prefixes:
        """Those of the variants of one pass, one below the other; unknown unless all are kept."""
        names = [variant.label for variant in variants]
        if not all(name in self._kept for name in names):
            return Prefixes()
        each = [self._kept[name] for name in names]
        return Prefixes(
            known=True,
            by_layer={
                layer: SharedPrefix(
                    (
                        torch.cat([own[layer][0] for own in each]),
                        torch.cat([own[layer][1] for own in each]),
                    )
                )
                for layer in each[0]
            },
        )

    def keep(self, variants: Sequence[Variant], prefixes: Prefixes) -> None:
        """Keep what a pass has left; nothing where it ran no prefix of its own."""
        layers = {la: one.stored for la, one in prefixes.by_layer.items() if one.stored is not None}
        if prefixes.known or not layers:
            return
        for n, variant in enumerate(variants):
            self._kept[variant.label] = {
                # A copy: a slice would hold the whole pass.
                layer: (keys[n : n + 1].clone(), values[n : n + 1].clone())
                for layer, (keys, values) in layers.items()
            }

    def keep_only(self, names: Collection[str]) -> None:
        """Forget all others."""
        self._kept = {name: own for name, own in self._kept.items() if name in names}
