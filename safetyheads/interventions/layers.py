"""What if whole layers were not there?"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from safetyheads.models.editing import bypassing
from safetyheads.models.hooked import HookedModel


@dataclass(frozen=True)
class BypassLayers:
    """Whole layers left out: what enters a block goes on to the next one unchanged, h_{l+1} = h_l.

    "Jailbreaking Leaves a Trace" (arXiv:2602.11495) does this to the layers where a prompt looks like a jailbreak.

    Raises ValueError if no layer is named, or one lies below 0.
    """

    layers: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.layers or min(self.layers) < 0:
            raise ValueError(
                f"the layers are {', '.join(map(str, self.layers)) or 'none'}; "
                "name at least one, counted from 0"
            )

    @property
    def first_layer(self) -> int:
        """The layer from which on the pass differs from the baseline."""
        return min(self.layers)

    @contextlib.contextmanager
    def active(self, model: HookedModel) -> Iterator[None]:
        """Within the context, every forward pass of the model leaves these layers out, in generation too.

        The blocks still run, so that a cache of keys and values stays whole; only their output is dropped.

        Raises ValueError for a layer that the model does not have.
        """
        if max(self.layers) >= model.n_layers:
            raise ValueError(
                f"layer {max(self.layers)} is not in {model.name}: it has layers 0-{model.n_layers - 1}"
            )
        with bypassing(model, self.layers):
            yield
