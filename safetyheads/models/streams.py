"""How is the residual stream rewritten while the model runs?"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from safetyheads.models.hooked import HookedModel
from safetyheads.models.replaying import first_of

Place = Literal["resid_pre", "attn_out", "resid_post"]
"""What enters a block, what its attention module gives, what leaves the block."""


class StreamEdit(NamedTuple):
    """The residual stream rewritten at one place, one position at a time."""

    layer: int
    place: Place
    edit: Callable[[Float[Tensor, "*row d_model"]], Float[Tensor, "*row d_model"]]
    """From what stands there to what is put in its place; each position by itself."""
    last: bool = False
    """Whether only each prompt's last token is rewritten; `edit` then gets [prompt, d_model]."""


@contextlib.contextmanager
def editing_stream(
    model: HookedModel,
    edits: Sequence[StreamEdit],
    last: Int[Tensor, " row"] | None = None,
) -> Iterator[None]:
    """Within the context, every forward pass of the model has its residual stream rewritten, in generation too.

    `last` says where each row's last token stands, for edits of the last token alone.

    Raises ValueError for a layer that the model does not have, or an edit of last tokens where these are not known.
    """
    for edit in edits:
        if not 0 <= edit.layer < model.n_layers:
            raise ValueError(
                f"layer {edit.layer} is not in {model.name}: it has layers 0-{model.n_layers - 1}"
            )
        if edit.last and last is None:
            raise ValueError(
                "this rewrites the last tokens of known prompts, and a pass in flight has none; run it in a sweep"
            )

    def written(states: Tensor, edit: StreamEdit) -> Tensor:
        if not edit.last or last is None:
            return edit.edit(states)
        states, rows = states.clone(), torch.arange(len(states), device=states.device)
        states[rows, last] = edit.edit(states[rows, last])
        return states

    def on_the_way_in(edit: StreamEdit) -> Callable[..., Any]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (written(args[0], edit), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": written(kwargs["hidden_states"], edit)}

        return hook

    def on_the_way_out(edit: StreamEdit) -> Callable[..., Any]:
        def hook(_module: nn.Module, _args: Any, out: Any) -> Any:
            changed = written(first_of(out), edit)
            return (changed, *out[1:]) if isinstance(out, tuple) else changed

        return hook

    handles = []
    try:
        for edit in edits:
            block: Any = model.bridge.blocks[edit.layer]
            if edit.place == "resid_pre":
                hook = on_the_way_in(edit)
                handles.append(block.register_forward_pre_hook(hook, with_kwargs=True))
            else:
                module = block.attn if edit.place == "attn_out" else block
                handles.append(module.register_forward_hook(on_the_way_out(edit)))
        yield
    finally:
        for handle in handles:
            handle.remove()
