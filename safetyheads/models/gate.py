"""Is what the library runs the model as it came, and is what it reads of the heads what attention uses?

When a model is opened, a few passes over made-up tokens decide it: logits before and after wrapping; no token looks
ahead; each head's z, through the output projection itself, against the attention output; what one head writes against
the projection of all; pattern · v against z; the softmax of the scores against the pattern; the pattern against the
mask. A model whose outputs or heads come out otherwise is refused. One whose values or scores cannot be read keeps the
ablations that do not need them, and those that do are refused with the reason (`HookedModel.unreadable`).
"""

import math
from typing import Any, NamedTuple

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor, nn

from safetyheads.models.attention import by_head, hooks_on_heads, scores_before_softmax, sink_scores
from safetyheads.models.blocks import Blocks
from safetyheads.models.going_on import deviation
from safetyheads.models.hooked import HookedModel
from safetyheads.models.outside import outside
from safetyheads.models.packing import plain_twin
from safetyheads.models.replaying import visible_keys

TOKENS = 12
"""Length of the made-up rows, where no sliding window asks for more."""
FOREIGN = (
    RuntimeError,
    AttributeError,
    KeyError,
    IndexError,
    TypeError,
    ZeroDivisionError,
    AssertionError,
)
"""What an architecture that is built otherwise raises from within."""
SUCH_AS = "such as Llama, Mistral, Qwen, Gemma, Phi, GPT-2 or NeoX"
LONGEST = 512
"""How long a row is run to see past a sliding window; a wider window is not seen past, and the manifest says so."""


class Reference(NamedTuple):
    """What a model gave before it was wrapped."""

    ids: Int[Tensor, "2 pos"]
    """Two rows that differ in the last token alone."""
    logits: Float[Tensor, "2 pos d_vocab"]


class Checked(NamedTuple):
    """What a gate found."""

    report: dict[str, Any]
    """What was compared and on how many tokens, for the manifest."""
    deviations: dict[str, float]
    """The largest deviation of each, as a share of the largest value."""
    unreadable: dict[str, str]
    """What of the heads cannot be read, and why: `values`, `scores`."""


@torch.no_grad()
def reference(hf: nn.Module) -> Reference:
    """Logits of a model that is not wrapped yet, in evaluation mode."""
    config: Any = hf.config
    text = config.get_text_config()
    window = _window(text)
    context = getattr(text, "max_position_embeddings", None) or TOKENS
    length = max(2, min(int(context), TOKENS if window + 4 > LONGEST else max(TOKENS, window + 4)))
    device = next(hf.parameters()).device
    drawn = torch.randint(
        int(text.vocab_size), (length,), generator=torch.Generator().manual_seed(0)
    )
    ids = drawn.repeat(2, 1)
    ids[1, -1] = (ids[1, -1] + 1) % int(text.vocab_size)
    ids = ids.to(device)
    return Reference(ids, hf(input_ids=ids, use_cache=False).logits.float().cpu())


def _window(text: Any) -> int:
    """The widest sliding window that the layers have, in tokens; 0 without one."""
    names = ("sliding_window", "attention_chunk_size", "window_size")
    found = [getattr(text, name, None) for name in names]
    return max((value for value in found if type(value) is int), default=0)


def _loose(model: HookedModel) -> float:
    """A tenth of the deviation that is let through."""
    return 1e-4 if model.dtype == torch.float32 else 0.01


def checked(model: HookedModel, function: str) -> Checked:
    """What the gate finds of a model, once for each `function`, its fingerprint.

    Raises ValueError where `check` does, where weights were changed since in a way that the wrapping does not follow,
    and, in place of an error from within, where the model cannot be run in parts.
    """
    about, state = vars(model.hf), (function, outside(model.hf))
    if about.get("_safetyheads_state") != state:
        try:
            if "_safetyheads_state" in about:
                model.twins.clear()
                _require_followed(model)
            found = check(model, about.pop("_safetyheads_reference", None))
        except FOREIGN as error:
            raise ValueError(_not_in_parts(model, error)) from error
        about["_safetyheads_checked"], about["_safetyheads_state"] = found, state
    known: Checked = about["_safetyheads_checked"]
    return known


def _not_in_parts(model: HookedModel, error: Exception) -> str:
    reason = f"{type(error).__name__}: {str(error)[:200]}"
    if hasattr(model.hf.config.get_text_config(), "kv_lora_rank"):
        reason = "its attention is latent: heads share one compressed key and value"
    return (
        f"{model.name} ({type(model.hf).__name__}) cannot be run block by block as these probes do ({reason}); use a "
        f"decoder {SUCH_AS}"
    )


@torch.no_grad()
def follow(model: HookedModel, function: str, longest: Int[Tensor, " pos"]) -> dict[str, str]:
    """What cannot be read of a model when prompts are prepared; `function` is its fingerprint.

    A model that was changed since it was last looked at is looked at again. Where the longest prompt goes past a
    sliding window that no made-up row went past, it is the row.

    Raises ValueError as `checked` does.
    """
    found = checked(model, function)
    window = _window(model.hf.config.get_text_config())
    if not found.report["tokens"] <= window < len(longest):
        return found.unreadable
    ids, worst = longest[None].to(model.device), dict[str, float]()
    for layer, state in enumerate(_climb(model, ids)):
        for name, value in _heads(model, ids, layer, *state).items():
            worst[name] = max(worst.get(name, 0.0), math.inf if math.isnan(value) else value)
    return {**found.unreadable, **_unreadable(worst, 10 * _loose(model))}


def _require_followed(model: HookedModel) -> None:
    """Raise ValueError if the wrapped model gives other logits than the plain one, with the caller's hooks on it."""
    ids = torch.arange(TOKENS, device=model.device)[None] % model.d_vocab
    plain = plain_twin(model.hf, "eager", {}, hooks=True)(input_ids=ids, use_cache=False).logits
    if plain.isnan().any():
        return  # reported where it is scored
    if not _apart(model.logits(ids), plain) <= 10 * _loose(model):
        hooked = ", ".join(list(outside(model.hf))[:3])
        raise ValueError(
            f"{model.name} was changed after load_model in a way that its wrapping does not follow "
            + (
                f"(there are hooks on {hooked})"
                if hooked
                else "(it keeps parts of fused matrices apart)"
            )
            + ", and would be scored as it was before; change a model first and open it afterwards"
        )


@torch.no_grad()
def check(model: HookedModel, before: Reference | None) -> Checked:
    """Compare a wrapped model with itself before, where that is known, and with what its heads are read as.

    Raises ValueError where outputs differ, tokens look ahead, a layer has no heads or others than the first, or heads
    do not add up to their layer's attention output.
    """
    given = before
    if before is None:
        before = reference(model.hf)
    ids = before.ids.to(model.device)
    loose = _loose(model)
    if not before.logits.isfinite().all():  # nothing to compare; whoever reads the logits says so
        return Checked({"tokens": ids.shape[1], "logits": "not finite"}, {}, {})
    worst: dict[str, float] = {}
    if given is not None:
        worst["logits"] = _apart(model.logits(ids).float().cpu(), given.logits)
        if not worst["logits"] <= 10 * loose:
            raise ValueError(
                f"{model.name}: wrapped by TransformerLens, the model gives other logits than as it came (by "
                f"{worst['logits']:.1g} of their spread), and what is scored would not be this model: "
                + _suspects(model)
            )
    ahead = _apart(before.logits[0, :-1], before.logits[1, :-1])
    if not ahead <= 10 * loose:
        raise ValueError(
            f"{model.name} looks ahead: a later token changes the logits before it, so that prompts cannot share "
            "passes; use a causal decoder"
        )
    _require_alike(model)
    _require_parts(model, ids)
    _require_hooks_on_every_token(model, ids)
    found = [
        _heads(model, ids[:1], layer, *state) for layer, state in enumerate(_climb(model, ids[:1]))
    ]
    for name in found[0]:
        worst[name] = max(
            (layer[name] for layer in found), key=lambda x: math.inf if math.isnan(x) else x
        )
    if not worst["attention output"] <= 10 * loose:
        raise ValueError(
            f"{model.name}: its heads' z, through the output projection, do not give the attention output (off by "
            f"{worst['attention output']:.1g} of its size): something stands between them that is not read; "
            "these probes are not defined for it"
        )
    if not worst["projection"] <= 10 * loose:
        raise ValueError(
            f"{model.name}: its output projection is not linear (what two heads write is not the sum of what each "
            f"does, by {worst['projection']:.1g} of its size): a head's share of it is not defined; use a model with a "
            "plain projection (the one that was quantised, or without the hook or module around it)"
        )
    report = {
        "tokens": ids.shape[1],
        "window": _window(model.hf.config.get_text_config()) or None,
        "compared": list(worst),
    }
    return Checked(report, worst, _unreadable(worst, 10 * loose))


def _unreadable(worst: dict[str, float], tolerance: float) -> dict[str, str]:
    unreadable = {}
    if not worst["values"] <= tolerance:
        unreadable["values"] = (
            "its attention does more with the values than can be read (a gate or a norm stands after them: pattern "
            "times values is not a head's output)"
        )
    elif worst["mask"]:
        unreadable["values"] = (
            "which tokens its heads may see is decided inside attention (the pattern is not the mask's)"
        )
    if not worst["scores"] <= tolerance:
        unreadable["scores"] = (
            "the softmax of its attention scores, as they can be read, is not its attention pattern"
        )
    return unreadable


def _climb(model: HookedModel, ids: Tensor) -> Any:
    """Each layer's input and recorded call, carried up block by block."""
    blocks = Blocks(model)
    resid = blocks.embed(ids)
    for layer, call in enumerate(blocks.record(ids)[1]):
        yield resid, call
        resid = blocks.run(layer, resid, call)


def _heads(
    model: HookedModel, ids: Tensor, layer: int, resid: Tensor, call: Any
) -> dict[str, float]:
    """How far what is read of one layer's heads is from what its attention does."""
    kept: dict[str, Any] = {}
    blocks = Blocks(model)
    with model.bridge.hooks(
        fwd_hooks=hooks_on_heads(layer, kept, scores=True, clip=model.value_clip)
    ):
        attn_out = blocks.attend(layer, resid, call)
    z, v = (by_head(kept[name], model.d_head) for name in ("hook_z", "hook_v"))
    visible = visible_keys(
        (*call.args, *call.kwargs.values()), ids.shape[1], ids.shape[1], z.device
    )[:, None]
    pattern = kept.get("hook_pattern")
    projected = {
        "attention output": _apart(blocks.project(layer, kept["hook_z"]), attn_out),
        "projection": _projection(blocks, layer, z),
    }
    if pattern is None:
        return {
            **projected,
            "values": math.nan,
            "scores": math.nan,
            "mask": 0.0,
        }
    values = v.repeat_interleave(model.n_heads // v.shape[2], 2)
    mixed = einsum(
        pattern.to(values.dtype),
        values,
        "row head query key, row key head d_head -> row query head d_head",
    )
    scores = scores_before_softmax(kept, model.score_softcap).float()
    if cap := model.score_softcap:
        scores = cap * torch.tanh(scores / cap)
    scores = scores.masked_fill(~visible, -torch.inf)
    if (sinks := sink_scores(model.bridge.blocks[layer].attn)) is not None:
        column = sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, column], -1)
    softmax = scores.softmax(-1)[..., : ids.shape[1]]
    unseen = visible & (pattern == 0).all(1, keepdim=True)
    return {
        **projected,
        "values": _apart(mixed, z),
        "scores": (softmax - pattern.float()).abs().max().item(),
        "mask": float(((pattern > 0) & ~visible).any() or unseen.any()),
    }


def _projection(blocks: Blocks, layer: int, z: Float[Tensor, "row pos head d_head"]) -> float:
    """How far what single heads write is from what the projection makes of all of them."""
    shares = torch.linspace(-1, 0.9, z.shape[2], device=z.device, dtype=z.dtype)[:, None]
    change = z * shares
    written = [blocks.write(layer, head, change[:, :, head]) for head in range(z.shape[2])]
    return _apart(
        torch.stack(written).sum(0), blocks.project(layer, z + change) - blocks.project(layer, z)
    )


def _require_parts(model: HookedModel, ids: Int[Tensor, "2 pos"]) -> None:
    """Raise ValueError if the model cannot go on from a prefix, or several rows cannot go with one row's call."""
    blocks = Blocks(model)
    try:
        first, _ = blocks.record(ids[:1, : len(ids[0]) // 2], len(ids[0]) // 4)
        blocks.run(0, blocks.embed(ids[:, : len(ids[0]) // 4]), first[0])
    except (ValueError, *FOREIGN) as error:
        raise ValueError(_not_in_parts(model, error)) from error


def _require_hooks_on_every_token(model: HookedModel, ids: Int[Tensor, "2 pos"]) -> None:
    """Raise ValueError if a hook of the caller acts on a place in the rows, which prompts share with others."""
    if not (hooked := outside(model.hf)):
        return
    short = ids[:1, : len(ids[0]) // 2]
    alone, together = model.logits(short)[0, -1], model.logits(ids)[0, short.shape[1] - 1]
    apart = max(_apart(together, alone), deviation(model))
    if not apart <= 10 * _loose(model):
        raise ValueError(
            f"{model.name}: hooks on {', '.join(list(hooked)[:3])} act on places in a row (the last, say), and "
            "prompts share rows and passes, where other tokens stand there; let a hook act on every token alike, or "
            "use AddDirection or AblateDirection"
        )


def _require_alike(model: HookedModel) -> None:
    """Every layer must have the heads that the model's sizes say, and a norm must come after the last."""
    if getattr(model.bridge, "ln_final", None) is None:
        raise ValueError(
            f"{model.name} has no norm after its last block, where final states are read (a projection stands "
            "there, or nothing); use a model that has one, as most decoders do"
        )
    for layer, block in enumerate(model.bridge.blocks):
        if f"blocks.{layer}.attn.hook_z" not in model.bridge.hook_dict:
            raise ValueError(
                f"{model.name}: layer {layer} has no attention heads to ablate (another kind of block stands there); "
                "use a model with attention in every layer"
            )
        weight = getattr(_inner(block.attn.o), "weight", None)
        width = model.n_heads * model.d_head
        if weight is not None and weight.ndim == 2 and width not in weight.shape:
            raise ValueError(
                f"{model.name}: layer {layer} has heads of another width than {model.n_heads} x {model.d_head}, into "
                f"a projection of {' x '.join(map(str, weight.shape))}; these probes need the same heads in all layers "
                "and values as wide as the heads"
            )


def _inner(module: Any) -> Any:
    while hasattr(module, "original_component"):
        module = module.original_component
    return getattr(module, "base_layer", module)


def _apart(one: Tensor, other: Tensor) -> float:
    """The largest difference, in units of the other's largest value."""
    one, other = one.float(), other.float()
    return ((one - other).abs().max() / other.abs().max().clamp_min(1e-6)).item()


def _suspects(model: HookedModel) -> str:
    """What of a model TransformerLens' attention is known to pass by."""
    config: Any = model.hf.config
    names = [
        f"{name}={getattr(config, name)}"
        for name, usual in (("scale_attn_weights", True), ("reorder_and_upcast_attn", False))
        if getattr(config, name, usual) != usual
    ]
    hooked = list(outside(model.hf))
    if names:
        return f"its attention ignores {', '.join(names)}; use a model without"
    if hooked:
        return f"hooks are set on {', '.join(hooked[:3])}, which it may pass by; remove them before opening the model"
    return f"its attention computes something else; use a decoder that it runs right, {SUCH_AS}"
