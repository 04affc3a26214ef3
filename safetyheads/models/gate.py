"""Is what the library runs the model as it came, and is what it reads of the heads what attention uses?

When a model is opened, a few passes over made-up tokens decide it: logits before and after wrapping; no token looks
ahead; each head's z, through the output projection itself, against the attention output; pattern · v against z; the
softmax of the scores against the pattern; the pattern against the mask. A model whose outputs or heads come out
otherwise is refused. One whose values or scores cannot be read keeps the ablations that do not need them, and those
that do are refused with the reason (`HookedModel.unreadable`).
"""

import math
from typing import Any, NamedTuple

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor, nn

from safetyheads.models.attention import by_head, hooks_on_heads, scores_before_softmax, sink_scores
from safetyheads.models.blocks import Blocks
from safetyheads.models.hooked import HookedModel
from safetyheads.models.packing import plain_twin
from safetyheads.models.replaying import visible_keys

TOKENS = 12
"""Length of the made-up rows, where no sliding window asks for more."""
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


@torch.no_grad()
def follow(model: HookedModel, function: str, longest: Int[Tensor, " pos"]) -> dict[str, str]:
    """What of a model is new since it was last looked at, when prompts are prepared; what cannot be read of it now.

    `function` is its fingerprint. Where weights were changed, the wrapped model is compared with the plain one on the
    same weights, since the wrapping of some architectures copies them. Where the longest prompt goes past a sliding
    window that no made-up row went past, it is the row.

    Raises ValueError if the wrapping does not follow the change.
    """
    about = vars(model.hf)
    if about.get("_safetyheads_followed") != function:
        model.twins.clear()
        _require_followed(model)
        about["_safetyheads_followed"] = function
    window = _window(model.hf.config.get_text_config())
    if not model.provenance["gate"]["tokens"] <= window < len(longest):
        return {}
    ids, worst = longest[None].to(model.device), dict[str, float]()
    for layer, state in enumerate(_climb(model, ids)):
        for name, value in _heads(model, ids, layer, *state).items():
            worst[name] = max(worst.get(name, 0.0), math.inf if math.isnan(value) else value)
    return _unreadable(worst, 10 * _loose(model))


def _require_followed(model: HookedModel) -> None:
    """Raise ValueError if the wrapped model gives other logits than the plain one, with no hooks of the caller."""
    if _hooked(model):
        return
    ids = torch.arange(TOKENS, device=model.device)[None] % model.d_vocab
    plain = plain_twin(model.hf, "eager", {})(input_ids=ids, use_cache=False).logits
    if plain.isnan().any():
        return  # reported where it is scored
    if not _apart(model.logits(ids), plain) <= 10 * _loose(model):
        raise ValueError(
            f"{model.name} was changed after load_model in a way that its wrapping does not follow (it keeps parts of "
            "fused matrices apart), and would be scored as it was before; change a model first and open it afterwards"
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
                f"{worst['logits']:.1g} of their spread): {_suspects(model)}; what is scored would not be this model"
            )
    ahead = _apart(before.logits[0, :-1], before.logits[1, :-1])
    if not ahead <= 10 * loose:
        raise ValueError(
            f"{model.name} looks ahead: a later token changes the logits before it, so that prompts cannot share "
            "passes; use a causal decoder"
        )
    _require_alike(model)
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
    report = {
        "tokens": ids.shape[1],
        "window": _window(model.hf.config.get_text_config()) or None,
        "compared": list(worst),
    }
    return Checked(report, worst, _unreadable(worst, 10 * loose))


def _unreadable(worst: dict[str, float], tolerance: float) -> dict[str, str]:
    unreadable = {}
    if not worst["values"] <= tolerance or worst["mask"]:
        unreadable["values"] = (
            "what its attention does with the values is not what can be read (pattern times values is not a head's "
            "output, or the pattern is not the mask's)"
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
        (*call.args, *call.kwargs.values()), ids.shape[1], ids.shape[1], ids.device
    )[:, None]
    pattern = kept.get("hook_pattern")
    if pattern is None:
        return {
            "attention output": _apart(blocks.project(layer, kept["hook_z"]), attn_out),
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
        "attention output": _apart(blocks.project(layer, kept["hook_z"]), attn_out),
        "values": _apart(mixed, z),
        "scores": (softmax - pattern.float()).abs().max().item(),
        "mask": float(((pattern > 0) & ~visible).any() or unseen.any()),
    }


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


def _hooked(model: HookedModel) -> list[str]:
    """The modules on which the caller has set hooks."""
    own = ("transformer_lens.", "safetyheads.", "accelerate.", "peft.")
    return [
        name.replace("._original_component", "").replace(".original_component", "")
        for name, module in model.hf.named_modules()
        if any(
            not f"{getattr(h, '__module__', '')}.".startswith(own)
            for h in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        )
    ]


def _suspects(model: HookedModel) -> str:
    """What of a model TransformerLens' attention is known to pass by."""
    config: Any = model.hf.config
    names = [
        f"{name}={getattr(config, name)}"
        for name, usual in (("scale_attn_weights", True), ("reorder_and_upcast_attn", False))
        if getattr(config, name, usual) != usual
    ]
    hooked = _hooked(model)
    if names:
        return f"its attention ignores {', '.join(names)}"
    if hooked:
        return f"hooks are set on {', '.join(hooked[:3])}, which it may pass by; remove them before opening the model"
    return "its attention computes something else"
