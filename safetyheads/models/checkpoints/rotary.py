"""How does a GGUF file turn positions into angles, and what is that in a transformers config?

llama.cpp's rules: github.com/ggml-org/llama.cpp, `llama-model.cpp` (defaults) and `ggml_rope_yarn` (YaRN).
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Float

from safetyheads.models.checkpoints.gguf import GgufHeader

LLAMA3_FACTORS, LONG, SHORT = (
    "rope_freqs.weight",
    "rope_factors_long.weight",
    "rope_factors_short.weight",
)
ROTARY_TENSORS = frozenset({LLAMA3_FACTORS, LONG, SHORT})
"""Tensors that are no weights: they divide the rotary frequencies."""

SAME = 1e-5
"""How closely, relative to its size, each frequency must be met by the rule that is taken for the file's own."""


def rope_parameters(header: GgufHeader, unread: dict[str, Any], width: int) -> dict[str, Any]:
    """The `rope_parameters` of a config; what is read is taken out of `unread`.

    `width` is the number of a head's dimensions that are turned. Raises ValueError for a rule that transformers does
    not have.
    """
    told: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": float(unread.pop("rope.freq_base", 10_000.0)),
    }
    factor = float(unread.pop("rope.scaling.factor", 0) or unread.pop("rope.scale_linear", 0) or 1)
    kind = unread.pop("rope.scaling.type", None) or "linear"
    original = int(unread.pop("rope.scaling.original_context_length", 0))
    original = original or int(header.settings["context_length"])
    has = {name for name in ROTARY_TENSORS if name in header.shapes}
    if has == {LONG, SHORT}:
        rule = _longrope(header, unread, factor, original)
    elif has == {LLAMA3_FACTORS}:
        if kind not in ("none", "linear") or (kind == "linear" and factor != 1):
            raise ValueError(
                f"{header.path} divides its rotary frequencies twice, by {LLAMA3_FACTORS} and by {kind} scaling; "
                f"transformers has no such rule. {INSTEAD}"
            )
        rule = _by_frequency(header, told["rope_theta"], width)
    elif has:
        raise ValueError(f"{header.path} has {has.pop()} and not its counterpart. {INSTEAD}")
    elif kind == "yarn":
        rule = _yarn(unread, factor, original)
    elif kind == "none" or (kind == "linear" and factor == 1):
        rule = {}
    elif kind == "linear":
        rule = {"rope_type": "linear", "factor": factor}
    else:
        raise ValueError(
            f"{header.path} scales its rotary positions by the rule {kind!r} of rope.scaling.type, which this version "
            f"cannot carry over. {INSTEAD}"
        )
    unread.pop("rope.scaling.finetuned", None)  # says only that the scaling was trained
    _check_lengths(header, rule, width)
    return told | rule


INSTEAD = "Pass the model's own folder (config.json and safetensors) instead."
"""What to do where a GGUF file is refused."""


def _yarn(unread: dict[str, Any], factor: float, original: int) -> dict[str, Any]:
    # both multiply cos and sin; the logarithm is what ggml_rope_yarn does by itself
    scale = float(unread.pop("rope.scaling.attn_factor", 0) or 1)
    scale *= float(unread.pop("rope.scaling.yarn_attn_factor", 0) or 1)
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
        "attention_factor": scale * (1 + 0.1 * math.log(max(factor, 1))),
        "beta_fast": float(unread.pop("rope.scaling.yarn_beta_fast", 0) or 32),
        "beta_slow": float(unread.pop("rope.scaling.yarn_beta_slow", 0) or 1),
    }


def _longrope(
    header: GgufHeader, unread: dict[str, Any], factor: float, original: int
) -> dict[str, Any]:
    longest = int(header.settings["context_length"])
    scale = float(unread.pop("rope.scaling.attn_factor", 0))
    if not scale and original < longest:
        raise ValueError(
            f"{header.path} has rotary factors for long prompts and no "
            f"{header.architecture}.rope.scaling.attn_factor, so that it is not said by how much attention is "
            f"sharpened. Convert the model anew, or: {INSTEAD}"
        )
    return {
        "rope_type": "longrope",
        "factor": factor if factor != 1 else longest / original,
        "original_max_position_embeddings": original,
        "attention_factor": scale or 1.0,
        "long_factor": header.small[LONG].tolist(),
        "short_factor": header.small[SHORT].tolist(),
    }


def _by_frequency(header: GgufHeader, theta: float, width: int) -> dict[str, Any]:
    """Llama 3.1's rule where it gives the file's factors, else the factors themselves."""
    factors = header.small[LLAMA3_FACTORS]
    if np.all(factors == 1):
        return {}
    _require_length(header, LLAMA3_FACTORS, len(factors), width)
    wavelengths = 2 * math.pi * theta ** (np.arange(0, width, 2) / width)
    found = _llama3(factors, wavelengths)
    if found is not None:
        return found
    return {  # the same factors at every length, and no change of scale: longrope's own rule says that
        "rope_type": "longrope",
        "factor": 1.0,
        "original_max_position_embeddings": int(header.settings["context_length"]),
        "attention_factor": 1.0,
        "long_factor": factors.tolist(),
        "short_factor": factors.tolist(),
    }


def _llama3(
    factors: Float[np.ndarray, " rotary"], wavelengths: Float[np.ndarray, " rotary"]
) -> dict[str, Any] | None:
    """The numbers of Llama 3.1's rule that give these factors, or None.

    Between its two wavelengths 1/factor runs linearly in 1/wavelength, from 1 down to 1/`factor`. Only the ratios of
    the original length and the two bounds are in it, so the lower bound is taken as 1, as in every Llama.
    """
    factor = float(factors.max())
    smooth = (1 / factors - 1 / factor) / (1 - 1 / factor)
    between = (smooth > 1e-4) & (smooth < 1 - 1e-4)
    for length, high in _candidates(smooth[between], wavelengths[between]):
        ramp = np.clip((length / wavelengths - 1) / (high - 1), 0, 1)
        rule = 1 / ((1 - ramp) / factor + ramp)
        if np.allclose(rule, factors, rtol=SAME, atol=0):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": float(high),
                "original_max_position_embeddings": int(length),
            }
    return None


def _candidates(
    smooth: Float[np.ndarray, " rotary"], wavelengths: Float[np.ndarray, " rotary"]
) -> list[tuple[int, float]]:
    """Pairs of an original length and an upper bound to try, what Llamas have first."""
    pairs = [(8192, 4.0)]
    pairs += [
        (round(float(w) * (1 + float(s) * 3)), 4.0)
        for s, w in zip(smooth, wavelengths, strict=True)
    ]
    if len(smooth) > 1:
        slope, offset = np.polyfit(1 / wavelengths, smooth, 1)
        if offset < 0:
            pairs.append((round(-slope / offset), 1 - 1 / offset))
    return pairs


def _check_lengths(header: GgufHeader, rule: dict[str, Any], width: int) -> None:
    for name, key in ((LONG, "long_factor"), (SHORT, "short_factor")):
        if key in rule:
            _require_length(header, name, len(rule[key]), width)


def _require_length(header: GgufHeader, name: str, found: int, width: int) -> None:
    if found != width // 2:
        raise ValueError(
            f"{header.path} has {found} factors in {name} for {width // 2} rotary frequencies. {INSTEAD}"
        )
