"""What does a model hold at some layers and positions while it reads many prompts?"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from safetyheads.models.going_on import cache_fault
from safetyheads.models.hooked import HookedModel
from safetyheads.models.watching import watch_states
from safetyheads.progress import bar
from safetyheads.prompts import TokenBatch

REPRESENTATIONS = ("attn_out", "resid_post")
"""What a layer gives: its attention's output, and the residual stream after the whole block."""
PLACES = (*REPRESENTATIONS, "resid_pre")
"""What can be kept of a layer: what enters it, too."""
PROMPTS_A_PASS = 16


@dataclass(frozen=True)
class Kept:
    """Which states of a prompt are kept.

    Raises ValueError for a length that is not positive, an unknown alignment or representation.
    """

    layers: tuple[int, ...]
    representations: tuple[str, ...]
    length: int
    """Positions of each prompt."""
    align: str
    """The last ones ("end") or the first ones ("start")."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.representations) - set(PLACES)) or not self.representations:
            named = unknown if self.representations else "none"
            raise ValueError(f"representations are {named}; give some of {', '.join(PLACES)}")
        if self.length < 1:
            raise ValueError(f"length is {self.length}; keep at least one position of each prompt")
        if self.align not in ("start", "end"):
            raise ValueError(
                f'align is {self.align!r}; it must be "end" (the last positions) or "start" (the first)'
            )


@torch.inference_mode()
def capture_states(
    model: HookedModel,
    batch: TokenBatch,
    kept: Kept,
    *,
    label: str = "traces",
    progress: bool | None = None,
) -> Float[Tensor, "representation layer prompt pos d_model"]:
    """The kept states of one set of prompts, a pass for every few prompts that begin alike; zeros where a prompt has no
    token. Nothing above the highest layer is run."""
    shares = (fault := cache_fault(model)) is None
    if fault:
        warnings.warn(f"{fault}. Prompts run whole here, which is slower", stacklevel=3)
    sizes = len(kept.representations), len(kept.layers), len(batch), kept.length, model.d_model
    states = torch.zeros(sizes)
    order = sorted(range(len(batch)), key=lambda prompt: batch.ids[prompt].tolist())
    with bar(len(batch), label, "prompt", progress) as shown:
        for start in range(0, len(order), PROMPTS_A_PASS):
            prompts = order[start : start + PROMPTS_A_PASS]
            some = batch.select(prompts)
            real = torch.arange(some.ids.shape[1]) < some.lengths[:, None]
            # A pad token may lie outside the embedding; what stands there never matters.
            ids = some.ids.where(real, 0)
            prefix = some.prefix_length if shares and len(prompts) > 1 else 0
            read = _reader(states, prompts, some.lengths, kept)
            watch_states(model, ids, kept.layers, read, prefix=prefix)
            shown.update(len(prompts))
    return states


def _reader(
    states: Tensor, prompts: Sequence[int], lengths: Tensor, kept: Kept
) -> Callable[[str, int, Tensor, int], None]:
    """What copies the kept positions of a pass's prompts into `states`."""
    first = lengths - kept.length if kept.align == "end" else torch.zeros_like(lengths)
    wanted = first[:, None] + torch.arange(kept.length)
    wanted = wanted.where(wanted < lengths[:, None], -1)
    numbers = torch.tensor(prompts)

    def read(name: str, layer: int, part: Tensor, start: int) -> None:
        if name in kept.representations:
            rows, places = ((wanted >= start) & (wanted < start + part.shape[1])).nonzero(
                as_tuple=True
            )
            taken = part[rows if len(part) > 1 else 0, wanted[rows, places] - start]
            where = kept.representations.index(name), kept.layers.index(layer)
            states[where][numbers[rows], places] = taken.float().cpu()

    return read
