"""What do the heads of one block do while it runs, and what does one of them write?"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor


class AttentionActs(NamedTuple):
    """One block's clean pass: the next residual stream, and what the heads did on the way."""

    resid_post: Float[Tensor, "prompt pos d_model"]
    attn_out: Float[Tensor, "prompt pos d_model"]
    z: Float[Tensor, "prompt pos head d_head"]
    v: Float[Tensor, "prompt pos kv d_head"]
    visible: Bool[Tensor, "1 pos pos"]
    """The same for all prompts, which right padding makes so."""
    scores: Float[Tensor, "prompt head pos pos"] | None
    """Attention scores after QK-norm and rotary embedding, softcap undone, up to a constant a
    query; kept if asked for."""
    sinks: Float[Tensor, " head"] | None = None
    """What each head's attention sink adds to the softmax, where the model has sinks."""


def by_head(
    values: Float[Tensor, "row pos *heads"], d_head: int
) -> Float[Tensor, "row pos head d_head"]:
    """What a hook shows with all heads on one axis, or with one each, as one each."""
    joined = rearrange(values, "row pos ... -> row pos (...)")
    return rearrange(joined, "row pos (head d_head) -> row pos head d_head", d_head=d_head)


def hooks_on_heads(
    layer: int, kept: dict[str, Any], *, scores: bool, clip: float | None = None
) -> list[tuple[str, Callable[..., None]]]:
    """Hooks that keep what one layer's heads do under the hooks' names; values as attention clips them."""

    def keep(name: str) -> tuple[str, Callable[..., None]]:
        def hook(tensor: Tensor, hook: Any) -> None:
            kept[name] = tensor.detach()
            if clip and name == "hook_v":
                kept[name] = kept[name].clamp(-clip, clip)

        return f"blocks.{layer}.attn.{name}", hook

    names = ["hook_z", "hook_v", *(["hook_attn_scores", "hook_pattern"] if scores else [])]
    return [keep(name) for name in names]


def scores_before_softmax(
    kept: dict[str, Any], softcap: float | None
) -> Float[Tensor, "row head query key"]:
    """Attention scores before the softmax, up to a constant a query, softcap undone; masked
    entries mean nothing."""
    scores, pattern = kept["hook_attn_scores"], kept["hook_pattern"]
    if torch.equal(scores, pattern):
        # Where TransformerLens leaves attention to the original module (GPT-J), both hooks show the pattern.
        return pattern.clamp_min(torch.finfo(pattern.dtype).tiny).log()
    if cap := softcap:
        return cap * torch.atanh((scores / cap).clamp(-1 + 1e-7, 1 - 1e-7))
    return scores


def sink_scores(attention: Any) -> Float[Tensor, " head"] | None:
    """The learned score with which each head's sink joins the softmax (gpt-oss), or None."""
    while hasattr(attention, "original_component"):
        attention = attention.original_component
    sinks = getattr(attention, "sinks", None)
    return None if sinks is None else sinks.detach()
