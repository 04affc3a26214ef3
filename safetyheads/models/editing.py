"""How is a forward pass changed while it runs?

Every hook lives inside a `with`: heads rewritten before the output projection, whole layers left out.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from safetyheads.models.attention import by_head, hooks_on_heads, scores_before_softmax, sink_scores
from safetyheads.models.blocks import Blocks
from safetyheads.models.hooked import HookedModel
from safetyheads.models.replaying import first_of, visible_keys, watch_cache


class ZEdit(NamedTuple):
    """One head's z, rewritten in flight."""

    layer: int
    head: int
    edit: Callable[..., Tensor]
    """Called with the keywords z [row query d_head], v [row key d_head], visible [row query key], scores
    [row query key] or None and sink [] or None; gives the new z. With a cache there are more keys than queries."""
    scores: bool = False
    """Whether `edit` needs the scores."""
    part: tuple[int, int] = (0, 1)
    """Which rows: part `i` of `n` equal parts of every pass, counted from 0."""


@contextlib.contextmanager
def replacing_z(
    model: HookedModel, layer: int, head: int, edit: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Within the context, `edit` rewrites z of one head (row, pos, d_head) in every forward pass."""

    def hook(z: Tensor, hook: Any) -> Tensor:
        z = z.clone()
        z[:, :, head] = edit(z[:, :, head])
        return z

    with model.bridge.hooks(fwd_hooks=[(f"blocks.{layer}.attn.hook_z", hook)]):
        yield


@contextlib.contextmanager
def editing(model: HookedModel, edits: Sequence[ZEdit]) -> Iterator[None]:
    """Within the context, every forward pass has z of these heads rewritten: whole passes, generation with a cache,
    and single blocks that run their attention.

    All edits of a layer see what the layer computes before any of them. What they change goes through W_O and is
    added to the attention output, since some models show the scores only after it.

    Raises ValueError if an edit names a head that the model does not have.
    """
    layers: dict[int, list[ZEdit]] = {}
    for edit in edits:
        model.require_head(edit.layer, edit.head)
        layers.setdefault(edit.layer, []).append(edit)
    handles: list[Any] = []
    hooks: list[tuple[str, Callable[..., None]]] = []
    try:
        for layer, some in layers.items():
            hooks += _edit_layer(model, layer, some, handles)
        with model.bridge.hooks(fwd_hooks=hooks) if hooks else contextlib.nullcontext():
            yield
    finally:
        for handle in handles:
            handle.remove()


def _edit_layer(
    model: HookedModel, layer: int, edits: Sequence[ZEdit], handles: list[Any]
) -> list[tuple[str, Callable[..., None]]]:
    """Watch one attention module and change what it gives; the hooks that are still to be set come back."""
    kept: dict[str, Any] = {}

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        kept.clear()
        kept["passed"] = (*args, *kwargs.values())
        watch = lambda value: watch_cache(value, kept)  # noqa: E731
        return tuple(map(watch, args)), {k: watch(v) for k, v in kwargs.items()}

    def after(_module: nn.Module, _args: tuple[Any, ...], out: Any) -> Any:
        if "hook_z" not in kept:  # attention was not run: `Blocks.run` with attn_out
            return None
        attn_out = first_of(out) + _change(model, layer, edits, kept)
        kept.clear()
        return (attn_out, *out[1:]) if isinstance(out, tuple) else attn_out

    attention = model.bridge.blocks[layer].attn
    handles.append(attention.register_forward_pre_hook(before, with_kwargs=True))
    handles.append(attention.register_forward_hook(after))
    return hooks_on_heads(
        layer, kept, scores=any(edit.scores for edit in edits), clip=model.value_clip
    )


def _change(
    model: HookedModel, layer: int, edits: Sequence[ZEdit], kept: dict[str, Any]
) -> Float[Tensor, "row query d_model"]:
    """What the edits of one layer add to its attention output."""
    z = by_head(kept["hook_z"], model.d_head)
    cached = kept.get("cached")  # the cache has heads before positions
    v = (
        by_head(kept["hook_v"], model.d_head)
        if cached is None
        else rearrange(cached, "row kv key d_head -> row key kv d_head")
    )
    rows, queries, keys = len(z), z.shape[1], v.shape[1]
    visible = visible_keys(kept["passed"], queries, keys, z.device).expand(rows, -1, -1)
    scores = scores_before_softmax(kept, model.score_softcap) if "hook_pattern" in kept else None
    sinks = sink_scores(model.bridge.blocks[layer].attn)
    change = z.new_zeros(rows, queries, model.d_model)
    for _, head, edit, _, (number, parts) in edits:
        own = slice(number * rows // parts, (number + 1) * rows // parts)
        old = z[own, :, head]
        new = edit(
            z=old,
            v=v[own, :, head // (model.n_heads // v.shape[2])],
            visible=visible[own],
            scores=None if scores is None else scores[own, head],
            sink=None if sinks is None else sinks[head],
        )
        change[own] += Blocks(model).write(layer, head, new - old)
    return change


@contextlib.contextmanager
def bypassing(model: HookedModel, layers: Sequence[int]) -> Iterator[None]:
    """Within the context, these blocks give their input as their output, in every forward pass.

    They still run, so that a cache of keys and values keeps its length at every layer.
    """

    def skip(_module: nn.Module, args: Any, kwargs: dict[str, Any], out: Any) -> Any:
        resid = args[0] if args else kwargs["hidden_states"]
        return (resid, *out[1:]) if isinstance(out, tuple) else resid

    blocks = [model.bridge.blocks[layer] for layer in sorted(set(layers))]
    handles = [block.register_forward_hook(skip, with_kwargs=True) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
