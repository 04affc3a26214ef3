"""What can be seen of a forward pass on its way?"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from safetyheads.models.hooked import HookedModel
from safetyheads.models.replaying import first_of, visible_keys


def watch_states(
    model: HookedModel,
    ids: Int[Tensor, "row pos"],
    layers: Sequence[int],
    read: Callable[[str, int, Tensor, int], None],
    *,
    prefix: int = 0,
) -> None:
    """Show `read` what enters these layers and what their attention and blocks give; nothing above the highest is run.

    `read(name, layer, states, start)` gets `"resid_pre"`, `"attn_out"` or `"resid_post"` and states [row, pos,
    d_model] whose first position is `start`. The first `prefix` tokens, which all rows share, are run and shown once,
    as one row.
    """

    class Reached(Exception):
        pass

    start, top = 0, max(layers)

    def showing(name: str, layer: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, out: Any) -> None:
            read(name, layer, first_of(out), start)
            if (name, layer) == ("resid_post", top):
                raise Reached

        return hook

    def entering(layer: int) -> Callable[..., None]:
        def hook(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            read("resid_pre", layer, args[0] if args else kwargs["hidden_states"], start)

        return hook

    handles = []
    for layer in sorted(set(layers)):
        block: Any = model.bridge.blocks[layer]
        handles.append(block.register_forward_pre_hook(entering(layer), with_kwargs=True))
        handles.append(block.attn.register_forward_hook(showing("attn_out", layer)))
        handles.append(block.register_forward_hook(showing("resid_post", layer)))
    try:
        cache: Any = None
        if prefix:
            from transformers import DynamicCache

            cache = DynamicCache()
            with contextlib.suppress(Reached):
                model.forward(ids[:1, :prefix], cache=cache)
            cache.batch_repeat_interleave(len(ids))
            start = prefix
        with contextlib.suppress(Reached):
            model.forward(ids[:, prefix:], cache=cache)
    finally:
        for handle in handles:
            handle.remove()


def watch_patterns(
    model: HookedModel,
    ids: Int[Tensor, "row pos"],
    layers: Sequence[int],
    read: Callable[[int, Tensor, Tensor], None],
) -> None:
    """Show `read(layer, pattern, visible)` these layers' attention patterns [row, head, query, key] and which pairs
    the model's own mask leaves [query, key]; the forward pass is left as soon as the highest layer's is there.

    Raises ValueError for a layer that the model does not have, or one that computes no attention pattern or shows none.
    """

    class Reached(Exception):
        pass

    chosen, visible, shown = sorted(set(layers)), {}, set()
    hooks, handles = [], []
    for layer in chosen:
        if not 0 <= layer < model.n_layers:
            raise ValueError(
                f"layer {layer} is not in {model.name}: it has layers 0-{model.n_layers - 1}"
            )
        name = f"blocks.{layer}.attn.hook_pattern"
        if name not in model.bridge.hook_dict:
            raise ValueError(
                f"layer {layer} of {model.name} computes no attention pattern: another kind of block stands there; "
                "ask for a layer with attention"
            )

        def see(_m: nn.Module, args: Any, kwargs: dict[str, Any], layer: int = layer) -> None:
            size = ids.shape[1]
            passed = (*args[1:], *kwargs.values())
            visible[layer] = visible_keys(passed, size, size, model.device)[0]

        def show(pattern: Tensor, hook: Any, layer: int = layer) -> None:
            shown.add(layer)
            read(layer, pattern.detach(), visible[layer])
            if layer == chosen[-1]:
                raise Reached

        handles.append(model.bridge.blocks[layer].register_forward_pre_hook(see, with_kwargs=True))
        hooks.append((name, show))
    try:
        with model.bridge.hooks(fwd_hooks=hooks), contextlib.suppress(Reached):
            model.forward(ids)
    finally:
        for handle in handles:
            handle.remove()
    if missing := [layer for layer in chosen if layer not in shown]:
        kind = getattr(model.hf.config, "_attn_implementation", "another")
        raise ValueError(
            f"layer {missing[0]} of {model.name} showed no attention pattern: its attention is computed as {kind!r}, "
            "fused; load the model with attn_implementation='eager', or by its name or folder"
        )
