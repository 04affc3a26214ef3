"""Which transformers config does a GGUF file describe? Every key is carried over, known to change nothing, or refused.

transformers' own table drops what it does not list, and with it rotary scaling, windows, head sizes and epsilons.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from safetyheads.models.checkpoints.gguf import GgufHeader
from safetyheads.models.checkpoints.rotary import INSTEAD, rope_parameters


@dataclass(frozen=True)
class Family:
    """One GGUF architecture, and what its keys are called in transformers."""

    config: str
    """The name of the config class."""
    norm: str = "rms_norm_eps"
    """The field of the norms' epsilon."""
    names: dict[str, str] = field(default_factory=dict)
    """Keys whose field is not the usual one; an empty name says that the key changes nothing."""
    rotary: bool = True
    """Whether positions are turned; else they are learned."""
    part_of_head: bool = False
    """Whether fewer dimensions may be turned than a head has."""
    own: Callable[[GgufHeader, dict[str, Any], dict[str, Any]], dict[str, Any]] | None = None
    """Further fields, from (header, fields so far, keys not read so far)."""


USUAL = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
}

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.output_scale": (0, 1),
    "attention.sliding_window": (0,),
    "attention.temperature_length": (0,),
    "attention.temperature_scale": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "router_logit_softcapping": (0,),
    "embedding_scale": (0, 1),
    "residual_scale": (0, 1),
    "logit_scale": (0, 1),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_shared_count": (0,),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_weights_scale": (0, 1),
    "leading_dense_block_count": (0,),
    "nextn_predict_layers": (0,),
    "pooling_type": (0,),
    "rope.scaling.attn_factor": (0, 1),
    "rope.scaling.alpha": (0, 1),
    "rope.scaling.yarn_attn_factor": (0, 1),
    "rope.scaling.yarn_ext_factor": (-1, 1),
    "rope.scaling.yarn_log_multiplier": (0,),
}
"""Values with which a key changes nothing; with any other it must be carried over, or the file is refused."""


def config_of(header: GgufHeader) -> Any:
    """The config of a GGUF file's model.

    Raises ValueError if the architecture is none of `FAMILIES`, lacks a size, or has a key that cannot be carried over.
    """
    import transformers

    family = FAMILIES.get(header.architecture)
    if family is None:
        raise ValueError(
            f"{header.path} has the GGUF architecture {header.architecture}; this version carries over "
            f"{', '.join(sorted(FAMILIES))}. {INSTEAD}"
        )
    _refuse_lists(header)
    unread = dict(header.settings)
    fields = _sizes(header, family, unread)
    head = _head_size(header, unread)
    if family.rotary:
        fields["rope_parameters"] = _rotary(header, family, unread, head)
    fields |= _vocabulary(header)
    if family.own is not None:
        fields |= family.own(header, fields, unread)
    _refuse_unread(header, unread, head)
    kind = getattr(transformers, family.config)
    config = kind(**fields)
    usual = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config if usual == head else kind(**fields, head_dim=head)


def _refuse_lists(header: GgufHeader) -> None:
    """Raise ValueError where layers have sizes of their own."""
    lists = {k: v for k, v in header.settings.items() if isinstance(v, list)}
    lists.pop("attention.sliding_window_pattern", None)
    for key, value in lists.items():
        raise ValueError(
            f"{header.path} gives a value to each layer ({header.architecture}.{key} is {value[:8]}), which this "
            f"version cannot carry over. {INSTEAD}"
        )


def _sizes(header: GgufHeader, family: Family, unread: dict[str, Any]) -> dict[str, Any]:
    """What every model has, under the family's own names."""
    names = {**USUAL, **family.names}
    needed = [key for key in USUAL if names[key] and key != "attention.head_count_kv"]
    if missing := [key for key in needed if key not in unread]:
        raise ValueError(
            f"{header.path} does not say {header.architecture}.{missing[0]}. {INSTEAD}"
        )
    unread.setdefault("attention.head_count_kv", unread["attention.head_count"])
    fields = {name: unread.pop(key) for key, name in names.items() if key in unread}
    fields.pop("", None)
    epsilons = {unread.pop(f"attention.layer_norm_{rms}epsilon", None) for rms in ("", "rms_")}
    if len(epsilons - {None}) != 1:
        raise ValueError(
            f"{header.path} must say one epsilon of its norms, and says {sorted(epsilons - {None})}. {INSTEAD}"
        )
    return fields | {family.norm: (epsilons - {None}).pop()}


def _head_size(header: GgufHeader, unread: dict[str, Any]) -> int:
    """Dimensions of a head: as the file says, or as its first query weights have."""
    heads = header.settings["attention.head_count"]
    rows = header.shapes.get("blk.0.attn_q.weight", (header.settings["embedding_length"],))[0]
    head = int(unread.pop("attention.key_length", rows // heads))
    value = int(unread.pop("attention.value_length", head))
    if value != head:
        raise ValueError(
            f"{header.path} has heads whose keys have {head} dimensions and whose values have {value}, which this "
            f"version cannot carry over. {INSTEAD}"
        )
    return head


def _rotary(
    header: GgufHeader, family: Family, unread: dict[str, Any], head: int
) -> dict[str, Any]:
    width = int(unread.pop("rope.dimension_count", head))
    if width != head and not (family.part_of_head and int(head * (width / head)) == width):
        raise ValueError(
            f"{header.path} turns {width} of the {head} dimensions of a head, and {family.config} has no place for "
            f"that. {INSTEAD}"
        )
    told = rope_parameters(header, unread, width)
    return told | {"partial_rotary_factor": width / head} if family.part_of_head else told


def _vocabulary(header: GgufHeader) -> dict[str, Any]:
    size = header.shapes["token_embd.weight"][0] if "token_embd.weight" in header.shapes else 0
    token = {
        f"{name}_token_id": header.general.get(f"tokenizer.ggml.{key}_token_id")
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    inside = {
        name: number if number is not None and number < size else None
        for name, number in token.items()
    }
    return {
        "vocab_size": size,
        "tie_word_embeddings": "output.weight" not in header.shapes,
        **inside,
    }


def _refuse_unread(header: GgufHeader, unread: dict[str, Any], head: int) -> None:
    """Raise ValueError for what has been carried nowhere and may change a number."""
    unread.pop("vocab_size", None)  # the embedding says it
    unread.pop(
        "tensor_data_layout", None
    )  # how the converter found the weights, not how they lie here
    scale = float(unread.pop("attention.scale", 0))
    if scale and abs(scale * head**0.5 - 1) > 1e-6:
        unread["attention.scale"] = scale
    longest = header.settings["context_length"]
    if unread.get("attention.sliding_window", 0) >= longest:
        unread.pop("attention.sliding_window", None)  # wider than any prompt
    left = {k: v for k, v in unread.items() if v not in NEUTRAL.get(k, ())}
    if left:
        shown = ", ".join(f"{header.architecture}.{k} = {v}" for k, v in sorted(left.items())[:4])
        raise ValueError(
            f"{header.path} says what this version cannot carry over, and other logits would come out: {shown}. "
            f"{INSTEAD}"
        )


# One function a family, for what only it has ------------------------------------------------------------------------


def _has(header: GgufHeader, tensor: str) -> bool:
    return f"blk.0.{tensor}" in header.shapes


def _llama(header: GgufHeader, fields: dict[str, Any], unread: dict[str, Any]) -> dict[str, Any]:
    return {
        "attention_bias": _has(header, "attn_q.bias"),
        "mlp_bias": _has(header, "ffn_up.bias"),
    }


def _qwen3(header: GgufHeader, fields: dict[str, Any], unread: dict[str, Any]) -> dict[str, Any]:
    return {"attention_bias": _has(header, "attn_q.bias")}


def _experts(header: GgufHeader, fields: dict[str, Any], unread: dict[str, Any]) -> dict[str, Any]:
    """Qwen's mixtures: the sizes of experts, and whether the chosen ones' weights add up to one."""
    gate = header.shapes.get("blk.0.ffn_gate_exps.weight", (0, 0, 0))
    shared = header.shapes.get("blk.0.ffn_gate_shexp.weight", (0, 0))
    if unread.get("expert_gating_func") == 1:  # a softmax, which they have
        del unread["expert_gating_func"]
    third = header.architecture == "qwen3moe"
    told = {
        "num_experts": int(unread.pop("expert_count", gate[0])),
        "num_experts_per_tok": int(unread.pop("expert_used_count")),
        "moe_intermediate_size": int(unread.pop("expert_feed_forward_length", gate[1])),
        "norm_topk_prob": bool(unread.pop("expert_weights_norm", third)),
    }
    if third:
        return told
    width = int(unread.pop("expert_shared_feed_forward_length", shared[0]))
    return told | {"shared_expert_intermediate_size": width}


def _phi3(header: GgufHeader, fields: dict[str, Any], unread: dict[str, Any]) -> dict[str, Any]:
    rope = fields["rope_parameters"]
    original = rope.get("original_max_position_embeddings", fields["max_position_embeddings"])
    return {
        "sliding_window": unread.pop("attention.sliding_window", 0) or None,
        "original_max_position_embeddings": original,
    }


def _gemma(header: GgufHeader, fields: dict[str, Any], unread: dict[str, Any]) -> dict[str, Any]:
    """Gemma 2 and 3: a window on some layers, and the query's scale, which llama.cpp knows by the number of layers."""
    second, layers = header.architecture == "gemma2", fields["num_hidden_layers"]
    widest = layers == (
        46 if second else 62
    )  # the 27B models divide by the width of a head, as the residual has it
    usual = (
        fields["hidden_size"] / fields["num_attention_heads"] if widest else _head_size(header, {})
    )
    scale = float(unread.pop("attention.scale", 0))
    query = scale**-2 if scale else usual
    told = {
        "query_pre_attn_scalar": round(query) if abs(query - round(query)) < 1e-3 else query,
        "sliding_window": unread.pop("attention.sliding_window", 4096 if second else 0),
        "attn_logit_softcapping": unread.pop("attn_logit_softcapping", 50.0 if second else 0)
        or None,
        "final_logit_softcapping": unread.pop("final_logit_softcapping", 30.0 if second else 0)
        or None,
    }
    if not told["sliding_window"]:
        raise ValueError(
            f"{header.path} does not say {header.architecture}.attention.sliding_window. {INSTEAD}"
        )
    every = unread.pop("attention.sliding_window_pattern", 2 if second else 6)
    local = every if isinstance(every, list) else [bool((n + 1) % every) for n in range(layers)]
    told["layer_types"] = [
        ("full_attention", "sliding_attention")[bool(here)] for here in local[:layers]
    ]
    if second:
        return told
    near = {"rope_type": "default", "rope_theta": float(unread.pop("rope.freq_base_swa", 10_000.0))}
    rope = {"full_attention": fields["rope_parameters"], "sliding_attention": near}
    return told | {"rope_parameters": rope}


def _stablelm(header: GgufHeader, fields: dict[str, Any], unread: dict[str, Any]) -> dict[str, Any]:
    unread.pop("use_parallel_residual", None)  # llama.cpp goes by the tensors
    return {
        "use_qkv_bias": _has(header, "attn_q.bias"),
        "use_parallel_residual": not _has(header, "ffn_norm.weight"),
    }


def _starcoder2(
    header: GgufHeader, fields: dict[str, Any], unread: dict[str, Any]
) -> dict[str, Any]:
    return {"use_bias": _has(header, "attn_q.bias"), "sliding_window": None}


def _nemotron(header: GgufHeader, fields: dict[str, Any], unread: dict[str, Any]) -> dict[str, Any]:
    return {
        "attention_bias": _has(header, "attn_q.bias"),
        "mlp_bias": _has(header, "ffn_up.bias"),
    }


def _falcon(header: GgufHeader, fields: dict[str, Any], unread: dict[str, Any]) -> dict[str, Any]:
    if fields["num_kv_heads"] != 1:
        raise ValueError(
            f"{header.path} is a Falcon with {fields['num_kv_heads']} key-value heads, whose fused weights "
            f"transformers does not put back in order. {INSTEAD}"
        )
    return {
        "multi_query": True,
        "parallel_attn": True,
        "new_decoder_architecture": False,
        "alibi": False,
        "bias": _has(header, "attn_qkv.bias"),
    }


FAMILIES: dict[str, Family] = {
    "llama": Family("LlamaConfig", own=_llama),
    "qwen2": Family("Qwen2Config"),
    "qwen3": Family("Qwen3Config", own=_qwen3),
    "qwen2moe": Family("Qwen2MoeConfig", own=_experts),
    "qwen3moe": Family("Qwen3MoeConfig", own=_experts),
    "phi3": Family("Phi3Config", part_of_head=True, own=_phi3),
    "gemma2": Family("Gemma2Config", own=_gemma),
    "gemma3": Family("Gemma3TextConfig", own=_gemma),
    "stablelm": Family("StableLmConfig", norm="layer_norm_eps", part_of_head=True, own=_stablelm),
    "starcoder2": Family("Starcoder2Config", norm="norm_epsilon", own=_starcoder2),
    "nemotron": Family("NemotronConfig", norm="norm_eps", part_of_head=True, own=_nemotron),
    "falcon": Family(
        "FalconConfig",
        norm="layer_norm_epsilon",
        names={
            "feed_forward_length": "ffn_hidden_size",
            "attention.head_count_kv": "num_kv_heads",
        },
        own=_falcon,
    ),
    "gpt2": Family(
        "GPT2Config",
        norm="layer_norm_epsilon",
        names={
            "context_length": "n_positions",
            "embedding_length": "n_embd",
            "block_count": "n_layer",
            "feed_forward_length": "n_inner",
            "attention.head_count": "n_head",
            "attention.head_count_kv": "",
        },
        rotary=False,
    ),
}
"""The GGUF architectures that are carried over, each compared with the transformers model that it came from."""
