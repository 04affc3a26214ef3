"""How is one block of a model run alone?

What the model passes to its blocks is recorded once (`BlockCall`) and replayed with other rows: behind a prefix whose
keys and values are shared (`SharedPrefix`), or with all prompts laid end to end (`Packing`), on the block itself or on
a plain twin of it (`block_beneath`).
"""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


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

    def __init__(self) -> None:
        self._stored: tuple[Tensor, Tensor] | None = None

    def update(
        self, keys: Tensor, values: Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store on the first call (the prefix); prepend what is stored on the second (the suffixes)."""
        if self._stored is None:
            self._stored = keys, values
            return keys, values
        copies = len(keys) // len(self._stored[0])
        prefix_keys, prefix_values = (t.repeat_interleave(copies, dim=0) for t in self._stored)
        return torch.cat([prefix_keys, keys], dim=-2), torch.cat([prefix_values, values], dim=-2)


class Packing:
    """Several prompts laid end to end behind the prefix that they share, so that no pass is spent on padding.

    Everything but attention looks at one position at a time and does not mind; attention unpacks the prompts into rows.
    """

    def __init__(
        self, lengths: Int[Tensor, " prompt"], prefix: int, first: BlockCall | None, rest: BlockCall
    ) -> None:
        """`lengths` are the prompts' without the prefix; `first` and `rest` are recorded calls on prefix and rest."""
        device, longest = lengths.device, int(lengths.max())
        self.prompts, self.prefix, self.longest = len(lengths), prefix, longest
        positions = torch.arange(longest, device=device)
        self.kept = (positions < lengths[:, None]).flatten().nonzero()[:, 0]
        """Where each packed token stands among the padded rows."""
        ends = lengths.cumsum(0)
        starts = (ends - lengths)[:, None]
        self.unpacked = (starts + positions.minimum(lengths[:, None] - 1)).flatten()
        """Which packed token stands in each place of the padded rows; padding repeats the last one."""
        self.last = prefix + ends - 1
        """Where each prompt's last token stands."""
        self.masks = tuple(
            None
            if call is None
            else visible_keys((*call.args, *call.kwargs.values()), queries, keys, device)[:, None]
            for call, queries, keys in (
                (first, prefix, prefix),
                (rest, longest, prefix + longest),
            )
        )
        self.attended = False

    def pack(
        self, rows: Float[Tensor, "variant prompt pos d"]
    ) -> Float[Tensor, "variant packed d"]:
        """The prefix once, then all prompts without it and without padding."""
        rest = rows[:, :, self.prefix :].flatten(1, 2)[:, self.kept]
        return torch.cat([rows[:, 0, : self.prefix], rest], 1) if self.prefix else rest

    def call(self, first: BlockCall | None, rest: BlockCall) -> BlockCall:
        """One call for all packed tokens, from those for the prefix and for the rest."""
        firsts = (None,) * len(rest.args) if first is None else first.args
        args = tuple(self._join(a, b) for a, b in zip(firsts, rest.args, strict=True))
        named = {} if first is None else first.kwargs
        kwargs = {name: self._join(named.get(name), b) for name, b in rest.kwargs.items()}
        return BlockCall(args, {**kwargs, "use_cache": False}, self)

    def _join(self, first: Any, rest: Any) -> Any:
        from transformers import Cache

        if isinstance(rest, tuple):
            firsts = (None,) * len(rest) if first is None else first
            return tuple(self._join(a, b) for a, b in zip(firsts, rest, strict=True))
        if isinstance(rest, Cache):
            return None
        if not isinstance(rest, Tensor) or rest.ndim < 2:
            return rest
        if rest.ndim == 4:
            return None  # the mask, which attention gets from here
        packed = rest[:, self.kept % self.longest]
        return packed if first is None else torch.cat([first, packed], 1)

    def attend(
        self,
        query: Float[Tensor, "variant head packed d_head"],
        key: Float[Tensor, "variant kv packed d_head"],
        value: Float[Tensor, "variant kv packed d_head"],
        scale: float | None,
    ) -> Float[Tensor, "variant packed head d_head"]:
        """Attention of the prefix to itself and of each prompt to the prefix and itself."""
        self.attended = True
        copies = query.shape[1] // key.shape[1]
        key, value = (t.repeat_interleave(copies, 1) for t in (key, value))
        cut = self.prefix

        def attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
            out = nn.functional.scaled_dot_product_attention(
                queries, keys, values, attn_mask=mask, scale=scale
            )
            return out.transpose(1, 2)

        keys, values = (
            torch.cat([t[:, :, :cut].repeat_interleave(self.prompts, 0), self._rows(t)], 2)
            for t in (key, value)
        )
        rows = attention(self._rows(query), keys, values, self.masks[1])
        rest = rows.unflatten(0, (len(query), -1)).flatten(1, 2)[:, self.kept]
        if not cut:
            return rest
        first = attention(query[:, :, :cut], key[:, :, :cut], value[:, :, :cut], self.masks[0])
        return torch.cat([first, rest], 1)

    def _rows(
        self, packed: Float[Tensor, "variant head packed d_head"]
    ) -> Float[Tensor, "row head pos d_head"]:
        rows = packed[:, :, self.prefix :][:, :, self.unpacked]
        return rows.unflatten(2, (self.prompts, -1)).transpose(1, 2).flatten(0, 1)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    **_options: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in a block that is run with a `Packing`."""
    packing: Any = module.packing
    return packing.attend(query, key, value, scaling), None


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


def block_beneath(block: Any, kernel: str) -> tuple[nn.Module, nn.Module]:
    """The plain block that the bridge wraps, and the attention in it: a second tree of modules on the same weights."""
    from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
    from transformers import AttentionInterface

    if kernel == "packed":
        kernel = "safetyheads_packed"
        AttentionInterface.register(kernel, packed_attention)
    attention: list[nn.Module] = []

    def plain(module: nn.Module) -> nn.Module:
        wrapped = module
        while isinstance(wrapped, GeneralizedComponent):
            wrapped = wrapped.original_component
        twin = copy.copy(wrapped)
        twin._modules = {name: m and plain(m) for name, m in wrapped._modules.items()}
        twin._forward_hooks = type(wrapped._forward_hooks)()
        if (config := getattr(twin, "config", None)) is not None:
            own: Any = copy.copy(config)
            own._attn_implementation = kernel
            twin.config = own
        if module is block.attn:
            attention.append(twin)
        return twin

    return plain(block), attention[0]


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


@contextlib.contextmanager
def attention_gives(attention: nn.Module, attn_out: Tensor) -> Iterator[None]:
    """Within the context, the attention module returns `attn_out` and computes nothing."""
    object.__setattr__(attention, "forward", lambda *_args, **_kwargs: (attn_out, None))
    try:
        yield
    finally:
        object.__delattr__(attention, "forward")
