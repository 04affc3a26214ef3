"""How do prompts of many lengths share a pass without padding?

They are laid end to end behind the prefix that they share, and run on a plain twin of the block, with fused attention.
"""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from safetyheads.models.outside import is_callers
from safetyheads.models.placement import MoveTo
from safetyheads.models.replaying import BlockCall, SharedPrefix, visible_keys


class Packing:
    """Several prompts laid end to end behind the prefix that they share, so that no pass is spent on padding.

    Everything but attention looks at one position at a time and does not mind; attention unpacks the prompts into rows.
    """

    def __init__(
        self,
        lengths: Int[Tensor, " prompt"],
        prefix: int,
        first: BlockCall | None,
        rest: BlockCall,
        behind: int = 0,
    ) -> None:
        """`lengths` are the prompts' without the prefix; `first` and `rest` are recorded calls on prefix and rest.

        `behind` tokens of a prefix were run before: their keys and values are stored, and they are not packed.
        """
        device, longest = lengths.device, int(lengths.max())
        self.prompts, self.prefix, self.longest = len(lengths), prefix, longest
        self.behind = behind
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
                (rest, longest, behind + prefix + longest),
            )
        )
        self.attended = False

    def pack(
        self, rows: Float[Tensor, "variant prompt pos d"]
    ) -> Float[Tensor, "variant packed d"]:
        """The prefix once, unless it was run before; then all prompts without it and without padding."""
        rest = self._without_padding(rows[:, :, self.behind + self.prefix :])
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
        cache: SharedPrefix | None = None,
    ) -> Float[Tensor, "variant packed head d_head"]:
        """Attention of the prefix to itself and of each prompt to the prefix and itself.

        `cache` has the prefix's keys and values where they were run before, and gets them where they are run now.
        """
        self.attended = True
        cut, copies = self.prefix, query.shape[1] // key.shape[1]
        before = key[:, :, :cut], value[:, :, :cut]
        if cache is not None and cache.stored is not None:
            before = cache.stored
        elif cache is not None and cut:
            cache.stored = before[0].contiguous(), before[1].contiguous()

        def attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
            # Groups of queries share keys and values; they are copied last, when nothing else is copied any more.
            keys, values = (t.repeat_interleave(copies, 1) for t in (keys, values))
            out = nn.functional.scaled_dot_product_attention(
                queries, keys, values, attn_mask=mask, scale=scale
            )
            return rearrange(out, "row head pos d_head -> row pos head d_head")

        keys, values = (
            torch.cat([first.repeat_interleave(self.prompts, 0), self._rows(t)], 2)
            for first, t in zip(before, (key, value), strict=True)
        )
        rows = attention(self._rows(query), keys, values, self.masks[1])
        rest = self._without_padding(
            rearrange(rows, "(variant prompt) ... -> variant prompt ...", variant=len(query))
        )
        if not cut:
            return rest
        first = attention(query[:, :, :cut], key[:, :, :cut], value[:, :, :cut], self.masks[0])
        return torch.cat([first, rest], 1)

    def _rows(
        self, packed: Float[Tensor, "variant head packed d_head"]
    ) -> Float[Tensor, "row head pos d_head"]:
        return rearrange(
            packed[:, :, self.prefix :][:, :, self.unpacked],
            "variant head (prompt pos) d_head -> (variant prompt) head pos d_head",
            prompt=self.prompts,
        )

    def _without_padding(
        self, rows: Float[Tensor, "variant prompt pos *d"]
    ) -> Float[Tensor, "variant packed *d"]:
        return rearrange(rows, "variant prompt pos ... -> variant (prompt pos) ...")[:, self.kept]


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
    laid_out: Any = module.packing
    packing, cache = laid_out
    return packing.attend(query, key, value, scaling, cache), None


def block_beneath(block: Any, kernel: str) -> tuple[nn.Module, nn.Module]:
    """The plain block that the bridge wraps, and the attention in it: a second tree of modules on the same weights."""
    from transformers import AttentionInterface

    if kernel == "packed":
        kernel = "safetyheads_packed"
        AttentionInterface.register(kernel, packed_attention)
    twins: dict[nn.Module, nn.Module] = {}
    return plain_twin(block, kernel, twins), twins[block.attn]


def plain_twin(
    module: nn.Module, kernel: str, twins: dict[nn.Module, nn.Module], *, hooks: bool = False
) -> nn.Module:
    """A module as it was before the bridge wrapped it, with attention by `kernel`, on the same weights; `twins` gets
    every module's. With `hooks`, those that the caller set are on it."""
    wrapped = innermost(module)
    twin: nn.Module = object.__new__(
        type(wrapped)
    )  # copy.copy refuses a module with parametrizations
    vars(twin).update(vars(wrapped))
    # A forward that accelerate or the caller replaced is left bound to the module that it came from.
    own: Any = vars(twin).get("forward")
    if getattr(own, "__self__", None) is wrapped:
        vars(twin)["forward"] = own.__func__.__get__(twin)
    twin._modules = {
        n: m and plain_twin(m, kernel, twins, hooks=hooks) for n, m in wrapped._modules.items()
    }
    twin._forward_hooks = type(wrapped._forward_hooks)()
    if hooks:
        _take_hooks(module, twin)
    if (config := getattr(twin, "config", None)) is not None:
        own_config: Any = copy.copy(config)
        own_config._attn_implementation = kernel
        twin.config = own_config
    twins[module] = twin
    return twin


def _take_hooks(module: Any, twin: nn.Module) -> None:
    """Set on a twin what the caller set on the module that the bridge wrapped, or on the wrapper."""
    layers, inner = [module], innermost(module)
    while layers[-1] is not inner:
        layers.append(layers[-1].original_component)
    twin._forward_pre_hooks = type(twin._forward_pre_hooks)()
    for layer in reversed(layers):
        for number, hook in layer._forward_pre_hooks.items():
            if is_callers(hook) or isinstance(hook, MoveTo):
                kwargs = number in layer._forward_pre_hooks_with_kwargs
                twin.register_forward_pre_hook(hook, with_kwargs=kwargs)
        for number, hook in layer._forward_hooks.items():
            if is_callers(hook):
                kwargs = number in layer._forward_hooks_with_kwargs
                twin.register_forward_hook(hook, with_kwargs=kwargs)


def innermost(module: Any) -> Any:
    """The module that the bridge has wrapped, perhaps more than once."""
    from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

    while isinstance(module, GeneralizedComponent):
        module = module.original_component
    return module


@contextlib.contextmanager
def packed(
    attention: nn.Module, packing: Packing | None, cache: SharedPrefix | None = None
) -> Iterator[None]:
    """Within the context, the attention of a twin knows how its positions are laid out, and behind which prefix."""
    if packing is None:
        yield
        return
    vars(attention)["packing"] = packing, cache
    try:
        yield
    finally:
        del vars(attention)["packing"]


@contextlib.contextmanager
def attention_gives(attention: nn.Module, attn_out: Tensor | None) -> Iterator[None]:
    """Within the context, the attention module returns `attn_out`, if there is any, and computes nothing."""
    if attn_out is None:
        yield
        return
    object.__setattr__(attention, "forward", lambda *_args, **_kwargs: (attn_out, None))
    try:
        yield
    finally:
        object.__delattr__(attention, "forward")
