"""How is a block run again as the model ran it?

What the model passes to its blocks is recorded once (`BlockCall`) and replayed with other rows, behind a prefix whose
keys and values are shared (`SharedPrefix`).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor, nn

if TYPE_CHECKING:
    from safetyheads.models.packing import Packing


class BlockCall(NamedTuple):
    """What the model passes to one block besides the hidden states: masks, positions, rotary angles."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    packing: "Packing | None" = None
    """How the positions are laid out, if not as rows."""


class SharedPrefix:
    """The keys and values of a prefix at one layer: stored once a variant, read by all its prompts.

    It stands where the model expects its cache and offers the one method that attention calls on it.
    """

    def __init__(self, stored: tuple[Tensor, Tensor] | None = None) -> None:
        """`stored` has a prefix that was run before."""
        self.stored = stored

    def update(
        self, keys: Tensor, values: Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store on the first call (the prefix); prepend what is stored on the second (the suffixes)."""
        if self.stored is None:
            self.stored = keys, values
            return keys, values
        copies = len(keys) // len(self.stored[0])
        prefix_keys, prefix_values = (t.repeat_interleave(copies, dim=0) for t in self.stored)
        return torch.cat([prefix_keys, keys], dim=-2), torch.cat([prefix_values, values], dim=-2)


def mask_of(passed: Sequence[Any]) -> Tensor | None:
    """The attention mask among what the model passes on, if there is one."""
    masks = (value for value in passed if isinstance(value, Tensor) and value.ndim == 4)
    return next(masks, None)


def visible_keys(
    passed: Sequence[Any], queries: int, keys: int, device: torch.device
) -> Bool[Tensor, "row_or_1 query key"]:
    """Which keys each query may see, from the mask among what the model passes on; plain causal if there is none."""
    if (whole := mask_of(passed)) is not None:
        mask = whole[:, 0, -queries:, :keys]
        return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    return torch.ones(1, queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


class _WatchedCache:
    """A cache that lets through all that is asked of it, and keeps the values that attention gets from it."""

    def __init__(self, cache: Any, kept: dict[str, Any]) -> None:
        self._cache, self._kept = cache, kept

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys, values = self._cache.update(*args, **kwargs)
        self._kept["cached"] = values
        return keys, values


def watch_cache(value: Any, kept: dict[str, Any]) -> Any:
    """A cache that keeps what attention gets from it; anything else as it is."""
    from transformers import Cache

    return (
        _WatchedCache(value, kept)
        if isinstance(value, (Cache, SharedPrefix, _WatchedCache))
        else value
    )


def replay(block: nn.Module, resid: Tensor, call: BlockCall, cache: SharedPrefix | None) -> Any:
    """Run a block as it was called before, on other rows and with another cache."""
    args = (_swap_cache(a, cache) for a in call.args)
    return block(resid, *args, **{k: _swap_cache(v, cache) for k, v in call.kwargs.items()})


def first_of(out: Any) -> Any:
    """Some modules give a tensor, some a tuple that begins with it."""
    return out[0] if isinstance(out, tuple) else out


def _swap_cache(value: Any, cache: SharedPrefix | None) -> Any:
    from transformers import Cache

    return cache if isinstance(value, Cache) else value
