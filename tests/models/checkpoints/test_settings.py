"""Does a model that was written as GGUF come back with the same logits, far past its original length, or not at all?"""

import json
import math

import numpy as np
import pytest
import torch
import transformers as T

from safetyheads.models.checkpoints import load_checkpoint
from tests import zoo
from tests.models.checkpoints.made import write_family

SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
KEYS = {
    "context_length": 128,
    "embedding_length": 48,
    "block_count": 2,
    "feed_forward_length": 64,
    "attention.head_count": 6,
    "attention.head_count_kv": 2,
    "rope.freq_base": 5e3,
}
RMS, NORM = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
WIDE = {"attention.key_length": 12, "attention.value_length": 12}
ORIGINAL = "rope.scaling.original_context_length"
YARN_KEYS = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, ORIGINAL: 32}
LINEAR_KEYS = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
EXPERTS = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 16}
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FALCON = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "ffn_hidden_size": 64,
    "max_position_embeddings": 128,
    "multi_query": True,
    "parallel_attn": True,
    "new_decoder_architecture": False,
    "alibi": False,
    "bias": False,
}
GPT2 = {
    "vocab_size": 97,
    "n_embd": 48,
    "n_layer": 2,
    "n_head": 6,
    "n_positions": 128,
    "n_inner": 64,
}


def rope(rope_type="default", **rest):
    return {"rope_parameters": dict(rope_type=rope_type, rope_theta=5e3, **rest)}


def yarn(**rest):
    return rope("yarn", factor=4.0, original_max_position_embeddings=32, **rest)


def llama3(**changes):
    usual = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return rope("llama3", original_max_position_embeddings=32, **usual | changes)


def factors_of(model):
    """What llama.cpp's converter writes for Llama 3.1: the plain frequencies over the model's own."""
    plain = 1 / 5e3 ** (np.arange(0, model.config.head_dim, 2) / model.config.head_dim)
    return [("rope_freqs.weight", plain / model.model.rotary_emb.inv_freq.numpy())]


LONG, SHORT = [2.0, 3.0, 5.0], [1.0, 1.1, 1.3]
SHARPER = math.sqrt(1 + math.log(4) / math.log(32))  # longrope's rule for four times the length
ANY = [1.0, 2.0, 1.5, 7.0]
"""Factors of no rule."""

FAMILIES = {
    "llama": (
        lambda: T.LlamaConfig(
            **SIZES, **rope(), head_dim=12, rms_norm_eps=1e-3, attention_bias=True, mlp_bias=True
        ),
        {RMS: 1e-3, "rope.dimension_count": 12, "vocab_size": 97, **WIDE},
    ),
    "llama, yarn": (lambda: T.LlamaConfig(**SIZES, **yarn()), {RMS: 1e-6, **YARN_KEYS}),
    "llama, yarn with its own bounds": (
        lambda: T.LlamaConfig(
            **SIZES,
            **yarn(beta_fast=16.0, beta_slow=2.0, attention_factor=1.5 * (1 + 0.1 * math.log(4))),
            head_dim=12,
        ),
        {
            RMS: 1e-6,
            **WIDE,
            **YARN_KEYS,
            "rope.scaling.yarn_beta_fast": 16.0,
            "rope.scaling.yarn_beta_slow": 2.0,
            "rope.scaling.attn_factor": 1.5,
        },
    ),
    "llama, linear": (
        lambda: T.LlamaConfig(**SIZES, **rope("linear", factor=4.0)),
        {RMS: 1e-6, **LINEAR_KEYS},
    ),
    "llama, linear by the old key": (
        lambda: T.LlamaConfig(**SIZES, **rope("linear", factor=4.0)),
        {RMS: 1e-6, "rope.scale_linear": 4.0},
    ),
    "llama 3": (
        lambda: T.LlamaConfig(**SIZES, **llama3(), head_dim=12),
        {RMS: 1e-6, **WIDE},
        factors_of,
    ),
    "llama 3 with other bounds": (
        lambda: T.LlamaConfig(
            **SIZES, **llama3(factor=5.0, low_freq_factor=1.5, high_freq_factor=9.0), head_dim=12
        ),
        {RMS: 1e-6, **WIDE},
        factors_of,
    ),
    "llama, factors of no rule": (
        lambda: T.LlamaConfig(
            **SIZES,
            **rope(
                "longrope",
                factor=1.0,
                attention_factor=1.0,
                short_factor=ANY,
                long_factor=ANY,
                original_max_position_embeddings=128,
            ),
        ),
        {RMS: 1e-6},
        lambda _: [("rope_freqs.weight", ANY)],
    ),
    "qwen2": (
        lambda: T.Qwen2Config(**SIZES, **yarn(), rms_norm_eps=1e-3),
        {RMS: 1e-3, **YARN_KEYS},
    ),
    "qwen2, heads of another width": (
        lambda: T.Qwen2Config(**SIZES, **rope(), head_dim=12),
        {RMS: 1e-6, **WIDE},
    ),
    "qwen3": (
        lambda: T.Qwen3Config(**SIZES, **rope("linear", factor=4.0), head_dim=12),
        {RMS: 1e-6, **WIDE, **LINEAR_KEYS},
    ),
    "qwen2moe": (
        lambda: T.Qwen2MoeConfig(**SIZES, **rope(), **MIXTURE, shared_expert_intermediate_size=20),
        {RMS: 1e-6, **EXPERTS, "expert_shared_feed_forward_length": 20},
    ),
    "qwen3moe": (
        lambda: T.Qwen3MoeConfig(**SIZES, **rope(), **MIXTURE, head_dim=12, norm_topk_prob=True),
        {RMS: 1e-6, **EXPERTS, **WIDE},
    ),
    "phi3, a window": (
        lambda: T.Phi3Config(**SIZES, **rope(partial_rotary_factor=0.75), sliding_window=20),
        {RMS: 1e-5, "rope.dimension_count": 6, "attention.sliding_window": 20},
    ),
    "phi3, longrope": (
        lambda: T.Phi3Config(
            **SIZES,
            **rope(
                "longrope",
                short_factor=SHORT,
                long_factor=LONG,
                original_max_position_embeddings=32,
                partial_rotary_factor=0.75,
            ),
            original_max_position_embeddings=32,
        ),
        {RMS: 1e-5, "rope.dimension_count": 6, "rope.scaling.attn_factor": SHARPER, ORIGINAL: 32},
        lambda _: [("rope_factors_long.weight", LONG), ("rope_factors_short.weight", SHORT)],
    ),
    "gemma2": (
        lambda: T.Gemma2Config(
            **SIZES,
            **rope(),
            head_dim=12,
            query_pre_attn_scalar=12,
            sliding_window=20,
            attn_logit_softcapping=3.0,
            final_logit_softcapping=2.0,
        ),
        {
            RMS: 1e-6,
            **WIDE,
            "attention.sliding_window": 20,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 2.0,
        },
    ),
    "gemma2, a scale of its own": (
        lambda: T.Gemma2Config(**SIZES, **rope(), head_dim=12, query_pre_attn_scalar=64),
        {RMS: 1e-6, **WIDE, "attention.scale": 0.125},
    ),
    "gemma3": (
        lambda: T.Gemma3TextConfig(
            **SIZES | {"num_hidden_layers": 7},
            head_dim=12,
            query_pre_attn_scalar=12,
            sliding_window=20,
            rope_parameters={
                "full_attention": {"rope_type": "linear", "rope_theta": 5e3, "factor": 4.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        ),
        {RMS: 1e-6, **WIDE, **LINEAR_KEYS, "block_count": 7, "attention.sliding_window": 20},
    ),
    "stablelm": (
        lambda: T.StableLmConfig(
            **SIZES, **rope(partial_rotary_factor=0.5), layer_norm_eps=1e-3, use_qkv_bias=True
        ),
        {NORM: 1e-3, "rope.dimension_count": 4, "use_parallel_residual": True},
    ),
    "starcoder2": (
        lambda: T.Starcoder2Config(**SIZES, **rope("linear", factor=4.0), norm_epsilon=1e-3),
        {NORM: 1e-3, **LINEAR_KEYS},
    ),
    "nemotron": (
        lambda: T.NemotronConfig(**SIZES, **rope(partial_rotary_factor=0.5), norm_eps=1e-3),
        {NORM: 1e-3, "rope.dimension_count": 4, "rope.scaling.type": "none"},
    ),
    "falcon": (
        lambda: T.FalconConfig(
            **FALCON, **rope(), layer_norm_epsilon=1e-3, tie_word_embeddings=False
        ),
        {NORM: 1e-3, "attention.head_count_kv": 1},
    ),
    "gpt2": (
        lambda: T.GPT2Config(**GPT2, layer_norm_epsilon=1e-3),
        {NORM: 1e-3, "rope.freq_base": None, "attention.head_count_kv": None},
    ),
}
PROMPT = torch.randint(2, 97, (1, 100), generator=torch.Generator().manual_seed(0))


def written(path, name, changes=(), tensors=()):
    """The file of a family with further keys (None takes one away), and the model that it came from."""
    make, keys, *extra = FAMILIES[name]
    model = zoo.random_model(make())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases that are no plain ones and zeros
                parameter.add_(torch.randn_like(parameter) * 0.1)
    settings = {k: v for k, v in (KEYS | keys | dict(changes)).items() if v is not None}
    more = [*(extra[0](model) if extra else ()), *tensors]
    write_family(path, model, name.split(",")[0].split(" ")[0], settings, more)
    return model


def difference(path, model, prompt=PROMPT):
    opened = load_checkpoint(path, tokenizer=zoo.tokenizer()).model
    with torch.no_grad():
        return float((opened(prompt).logits - model(prompt).logits).abs().max())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_comes_back_with_its_logits(name, tmp_path, cache):
    model = written(tmp_path / "model.gguf", name)
    with torch.no_grad():
        assert model(PROMPT).logits.std() > 0.5
    assert difference(tmp_path / "model.gguf", model) < 1e-4
    # and so it does out of the unpacked copy, which carries the settings too
    (marker,) = (cache / "unpacked").glob("*/unpacked.json")
    assert json.loads(marker.read_text())["reading"] == 2
    assert difference(tmp_path / "model.gguf", model) < 1e-4
    if "longrope" in name:  # short prompts have other factors than long ones
        assert difference(tmp_path / "model.gguf", model, PROMPT[:, :20]) < 1e-4


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("llama, yarn", "rope.scaling.type"),
        ("llama, linear", "rope.scaling.factor"),
        ("qwen2", "rope.freq_base"),
        ("phi3, a window", "attention.sliding_window"),
        ("gemma2", "attn_logit_softcapping"),
        ("stablelm", "rope.dimension_count"),
    ],
)
def test_a_setting_that_is_lost_is_seen_by_these_prompts(name, key, tmp_path):
    """The comparison above is not vacuous: without one key another model comes out."""
    model = written(tmp_path / "model.gguf", name, {key: None})
    assert difference(tmp_path / "model.gguf", model) > 1e-2


def test_an_output_of_its_own_is_not_tied(tmp_path):
    model = written(tmp_path / "model.gguf", "falcon")
    assert not torch.equal(model.lm_head.weight, model.transformer.word_embeddings.weight)
    assert difference(tmp_path / "model.gguf", model) < 1e-4


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("llama", {"attention.sliding_window": 20}, r"llama\.attention\.sliding_window = 20"),
        ("llama", {"attention.scale": 0.5}, r"llama\.attention\.scale = 0\.5"),
        ("llama", {"embedding_scale": 12.0, "logit_scale": 0.1}, "embedding_scale = 12"),
        ("llama", {"expert_count": 8, "expert_used_count": 2}, "expert_count = 8"),
        ("llama", {"a_key_of_tomorrow": 1}, "a_key_of_tomorrow = 1"),
        ("llama", {"rope.dimension_count": 6}, "turns 6 of the 12 dimensions"),
        ("llama", {"attention.value_length": 8}, "whose values have 8"),
        ("llama", {"rope.scaling.type": "spiral"}, "by the rule 'spiral'"),
        ("llama", {"attention.causal": False}, "attention.causal = False"),
        ("llama", {"attention.head_count_kv": [2, 1]}, "a value to each layer"),
        ("llama", {"block_count": None}, "does not say llama.block_count"),
        ("llama", {RMS: None}, "one epsilon"),
        ("llama 3", {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0}, "twice"),
        ("phi3, longrope", {"rope.scaling.attn_factor": None}, "attn_factor"),
        ("gemma3", {"attention.sliding_window": None}, "does not say gemma3.attention.sliding"),
        ("falcon", {"attention.head_count_kv": 2}, "2 key-value heads"),
        ("qwen2", {"rope.scaling.yarn_log_multiplier": 0.1}, "yarn_log_multiplier"),
    ],
)
def test_what_cannot_be_carried_over_is_refused_by_name(name, changes, words, tmp_path):
    written(tmp_path / "model.gguf", name, changes)
    with pytest.raises(ValueError, match=words) as caught:
        load_checkpoint(tmp_path / "model.gguf", tokenizer=zoo.tokenizer())
    assert "safetensors" in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"attention.sliding_window": 128},  # as wide as the longest prompt
        {"attention.scale": 12**-0.5},
        {"logit_scale": 1.0, "expert_count": 0, "rope.scaling.finetuned": True},
    ],
)
def test_a_key_that_changes_nothing_is_let_through(changes, tmp_path):
    model = written(tmp_path / "model.gguf", "llama", changes)
    assert difference(tmp_path / "model.gguf", model) < 1e-4


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        ("blk.0.attn_sinks.weight", "blk.0.attn_sinks.weight"),
        ("blk.2.attn_norm.weight", "blk.2.attn_norm.weight"),
        ("rope_factors_long.weight", "not its counterpart"),
    ],
)
def test_a_tensor_without_a_place_is_refused(tensor, words, tmp_path):
    written(tmp_path / "model.gguf", "llama", tensors=[(tensor, np.ones(6))])
    with pytest.raises(ValueError, match=words):
        load_checkpoint(tmp_path / "model.gguf", tokenizer=zoo.tokenizer())


def test_biases_on_some_projections_only(tmp_path):
    """A Qwen2 written under the name of Llama, whose config knows all four biases or none."""
    make, keys, *_ = FAMILIES["qwen2"]
    write_family(tmp_path / "model.gguf", zoo.random_model(make()), "llama", KEYS | keys)
    with pytest.raises(ValueError, match=r"o_proj\.bias"):
        load_checkpoint(tmp_path / "model.gguf", tokenizer=zoo.tokenizer())


def test_an_architecture_that_is_not_carried_over(tmp_path):
    make, keys, *_ = FAMILIES["llama"]
    write_family(tmp_path / "model.gguf", zoo.random_model(make()), "granite", KEYS | keys)
    with pytest.raises(ValueError, match="architecture granite; this version carries over falcon"):
        load_checkpoint(tmp_path / "model.gguf", tokenizer=zoo.tokenizer())


@pytest.mark.parametrize(
    ("general", "words"), [({"split.count": 3}, "one of 3 parts"), ({"type": "mmproj"}, "mmproj")]
)
def test_a_part_of_a_model_is_no_model(general, words, tmp_path):
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "part.gguf", "llama")
    for key, value in general.items():
        if key == "type":
            writer.add_type(value)
        else:
            writer.add_uint16(key, value)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match=words):
        load_checkpoint(tmp_path / "part.gguf")


@pytest.mark.parametrize(
    ("name", "layers", "scalar"), [("gemma2", 46, 8), ("gemma3", 62, 8), ("gemma2", 42, 12)]
)
def test_the_largest_gemmas_divide_queries_by_another_width(name, layers, scalar, tmp_path):
    """llama.cpp's rule: the 27B models have their number of layers, and 48 / 6 in place of a head's width."""
    from safetyheads.models.checkpoints.gguf import GgufHeader
    from safetyheads.models.checkpoints.settings import config_of

    _, keys, *_ = FAMILIES[name]
    shapes = {"token_embd.weight": (97, 48), "blk.0.attn_q.weight": (72, 48)}
    settings = KEYS | keys | {"block_count": layers}
    header = GgufHeader(tmp_path / "model.gguf", name, settings, {}, shapes, {})
    assert config_of(header).query_pre_attn_scalar == scalar
