"""Is a model that the library would read wrongly mended or refused, and a right one let through?"""

import copy

import pytest
import torch

from safetyheads import (
    AblateHeads,
    Execution,
    Head,
    ScalingContribution,
    Ships,
    UndifferentiatedAttention,
    ZeroAblation,
    load_model,
    score_heads,
    tokenize,
)
from tests.zoo import (
    CONFIGS,
    GPT,
    RAGGED,
    SIZES,
    opened,
    opened_where_right,
    random_model,
    sentence,
    tokenizer,
)

MHA = {**SIZES, "num_key_value_heads": 6}
FALCON = {
    **{k: v for k, v in SIZES.items() if k not in ("num_key_value_heads", "intermediate_size")}
}


def build(name, **values):
    import transformers

    hf = random_model(getattr(transformers, name)(**values))
    with torch.no_grad():  # norms, biases and sinks are not all the same
        for parameter in hf.parameters():
            if parameter.ndim == 1:
                parameter.add_(
                    torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1
                )
    return hf


def scored(model, ablation=None, prompts=RAGGED):
    return score_heads(
        model,
        prompts,
        ablation=ablation or ZeroAblation(),
        metric=Ships(),
        template="bare",
        execution=Execution(progress=False),
    ).values


def zeroed(plain, modules):
    """Ships of every head with its slice of the output projection's input set to zero, one prompt at a time."""
    batch = tokenize(RAGGED, tokenizer(), "bare")
    rows = [ids[:n] for ids, n in zip(batch.ids, batch.lengths.tolist(), strict=True)]

    def log_probs(row):
        with torch.no_grad():
            return plain(input_ids=row[None]).logits[0, -1].double().log_softmax(-1)

    bases = [log_probs(row) for row in rows]
    out = torch.zeros(len(modules), 6)
    for layer, module in enumerate(modules):
        for head in range(6):

            def cut(_module, args, head=head):
                z = args[0].clone().unflatten(-1, (6, -1))
                z[..., head, :] = 0
                return (z.flatten(-2), *args[1:])

            handle = module.register_forward_pre_hook(cut)
            found = [(b.exp() * (b - log_probs(r))).sum() for b, r in zip(bases, rows, strict=True)]
            out[layer, head] = torch.stack(found).mean()
            handle.remove()
    return out


@pytest.mark.parametrize("name", CONFIGS)
def test_models_of_the_zoo_pass_and_the_manifest_says_what_was_compared(name):
    model = opened(name)
    report = model.provenance["gate"]
    assert model.unreadable == {}
    compared = {"logits", "attention output", "projection", "values", "scores", "mask"}
    assert set(report["compared"]) == set(model.deviations) == compared
    assert max(model.deviations.values()) < 1e-4
    window = getattr(model.hf.config, "sliding_window", None)
    assert report["tokens"] > (window or 0)


QUERY_IS_LEFT = {
    "olmo-clips-values": ("OlmoConfig", {**SIZES, "clip_qkv": 0.3}),
    "gpt-oss-sinks": (
        "GptOssConfig",
        {
            **SIZES,
            "head_dim": 8,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    "olmo2": ("Olmo2Config", SIZES),
    "cohere": ("CohereConfig", SIZES),
}


@pytest.mark.parametrize("name", QUERY_IS_LEFT)
def test_a_query_scaled_by_one_is_no_change(name):
    config, values = QUERY_IS_LEFT[name]
    model = opened_where_right(build(config, **values))
    assert scored(model, UndifferentiatedAttention(1.0)).abs().max() < 1e-5
    assert scored(model, UndifferentiatedAttention()).abs().max() > 1e-4


def test_in_the_limit_a_sink_keeps_its_share():
    config, values = QUERY_IS_LEFT["gpt-oss-sinks"]
    model = load_model(build(config, **values), tokenizer())
    limit, near = (scored(model, UndifferentiatedAttention(e)) for e in (0.0, 1e-6))
    torch.testing.assert_close(limit, near, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("inverse", [False, True])
def test_attention_that_is_not_scaled_is_followed(inverse):
    flags = {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": inverse}
    hf = build("GPT2Config", **GPT, **flags)
    plain = copy.deepcopy(hf)
    model = load_model(hf, tokenizer())
    expected = zeroed(plain, [block.attn.c_proj for block in plain.transformer.h])
    assert (scored(model) - expected).abs().max() < 1e-4
    assert scored(model, UndifferentiatedAttention(1.0)).abs().max() < 1e-5


def test_edited_weights_are_followed_or_refused():
    plain = build("GPT2Config", **GPT)
    with torch.no_grad():
        plain.transformer.h[1].attn.c_attn.weight.mul_(0.3)
    expected = scored(load_model(plain, tokenizer()))
    model = load_model(build("GPT2Config", **GPT), tokenizer())
    before = scored(model)
    fused = model.hf.transformer.h[1].attn.original_component.c_attn.original_component.weight
    with torch.no_grad():
        fused.mul_(0.3)  # queries, keys and values are views of it
    assert torch.allclose(scored(model), expected, atol=1e-6)
    assert (before - expected).abs().max() > 1e-3
    fused.data = fused.data * 2  # and are views of what it was
    with pytest.raises(ValueError, match=r"changed after load_model.*open it afterwards"):
        scored(model)


def test_a_window_wider_than_the_made_up_rows_is_looked_at_when_prompts_go_past_it(monkeypatch):
    from safetyheads.models import gate

    monkeypatch.setattr(gate, "LONGEST", 8)
    values = {"vocab_size": 97, "hidden_size": 24, "num_layers": 4, "num_heads": 6}
    values |= {"intermediate_size": 40, "max_position_embeddings": 64, "window_size": 14}
    hf = build("GPTNeoConfig", **values, attention_types=[[["global", "local"], 2]])
    model = load_model(hf, tokenizer())
    assert model.unreadable == {}
    scored(model, UndifferentiatedAttention())
    with pytest.raises(ValueError, match="inside attention"):
        scored(model, UndifferentiatedAttention(), [sentence(*range(20, 40))])


def test_a_model_without_a_last_norm_is_refused():
    values = {
        k: v for k, v in SIZES.items() if k not in ("num_key_value_heads", "intermediate_size")
    }
    hf = build("OPTConfig", **values, ffn_dim=40, word_embed_proj_dim=12)
    with pytest.raises(ValueError, match="no norm after its last block"):
        load_model(hf, tokenizer())


def test_hooks_that_the_wrapper_passes_by_are_refused_by_place():
    hf = build("LlamaConfig", **SIZES)
    hf.model.layers[2].self_attn.register_forward_hook(lambda m, a, out: (out[0] * 2, *out[1:]))
    with pytest.raises(ValueError, match=r"hooks are set on model\.layers\.2\.self_attn"):
        load_model(hf, tokenizer())


def doubled(out):
    return out * 2


def last(out):
    out[:, -1] *= 2
    return out


@pytest.mark.parametrize(
    ("change", "refusal"),
    [(doubled, None), (torch.tanh, "is not linear"), (last, "act on places in a row")],
)
def test_a_hook_on_the_output_projection_is_heeded_or_refused(change, refusal):
    hf = build("LlamaConfig", **SIZES, head_dim=4)
    plain = copy.deepcopy(hf)
    for model in (hf, plain):
        projection = model.model.layers[1].self_attn.o_proj
        projection.register_forward_hook(lambda _module, _args, out: change(out))
    if refusal:
        with pytest.raises(ValueError, match=refusal):
            load_model(hf, tokenizer())
        return
    expected = zeroed(plain, [layer.self_attn.o_proj for layer in plain.model.layers])
    found = scored(load_model(hf, tokenizer()))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4, check_dtype=False)


def test_attention_that_is_changed_after_opening_is_refused():
    model = load_model(build("LlamaConfig", **SIZES), tokenizer())
    attention = model.hf.model.layers[1].self_attn
    attention._original_component.register_forward_hook(lambda m, a, out: (out[0] * 2, *out[1:]))
    with pytest.raises(ValueError, match=r"does not follow .there are hooks on model\.layers\.1"):
        scored(model)


def test_a_model_in_training_mode_is_scored_in_evaluation_mode():
    config = {**SIZES, "attention_dropout": 0.5}
    expected = scored(load_model(build("LlamaConfig", **config), tokenizer()))
    model = load_model(build("LlamaConfig", **config), tokenizer())
    model.hf.train()
    assert torch.equal(scored(model), expected)
    assert not model.hf.training


def test_multi_query_parallel_attention_is_scored_right():
    values = {
        "multi_query": True,
        "parallel_attn": True,
        "alibi": False,
        "new_decoder_architecture": False,
    }
    hf = build("FalconConfig", **FALCON, **values)
    plain = copy.deepcopy(hf)
    expected = zeroed(
        plain, [m for n, m in plain.named_modules() if n.endswith("self_attention.dense")]
    )
    found = scored(load_model(hf, tokenizer()))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4, check_dtype=False)


def test_hooks_of_accelerate_on_one_device_are_taken_off():
    accelerate = pytest.importorskip("accelerate")
    hf = build("LlamaConfig", **SIZES, head_dim=4)
    plain = copy.deepcopy(hf)
    hf = accelerate.dispatch_model(hf, device_map={"": "cpu"}, force_hooks=True)
    expected = zeroed(
        plain, [m for n, m in plain.named_modules() if n.endswith("self_attn.o_proj")]
    )
    found = scored(load_model(hf, tokenizer()))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4, check_dtype=False)


class Adapted(torch.nn.Module):
    """An output projection with a low-rank part beside its weight, as adapters have."""

    def __init__(self, base):
        super().__init__()
        self.base, self.weight = base, base.weight
        generator = torch.Generator().manual_seed(0)
        self.down = torch.nn.Parameter(torch.randn(2, base.in_features, generator=generator))
        self.up = torch.nn.Parameter(torch.randn(base.out_features, 2, generator=generator))

    def forward(self, x):
        return self.base(x) + x @ self.down.T @ self.up.T


def test_a_heads_change_goes_through_the_projection_as_it_is():
    hf = build("LlamaConfig", **SIZES, head_dim=4)
    hf.model.layers[1].self_attn.o_proj = Adapted(hf.model.layers[1].self_attn.o_proj)
    plain = copy.deepcopy(hf)
    expected = zeroed(plain, [layer.self_attn.o_proj for layer in plain.model.layers])
    model = load_model(hf, tokenizer())
    torch.testing.assert_close(scored(model), expected, atol=1e-5, rtol=1e-4, check_dtype=False)
    ids = tokenize(RAGGED[:1], tokenizer(), "bare").ids
    flying = AblateHeads((Head(1, 1),), ZeroAblation())
    with torch.no_grad(), flying.active(model):
        found = model.logits(ids)

    def cut(_module, args):
        z = args[0].clone()
        z[..., 4:8] = 0
        return (z, *args[1:])

    plain.model.layers[1].self_attn.o_proj.register_forward_pre_hook(cut)
    with torch.no_grad():
        torch.testing.assert_close(found, plain(input_ids=ids).logits, atol=1e-4, rtol=1e-4)


def test_what_stands_around_a_decoder_is_taken_off():
    hf = build("LlamaConfig", **SIZES, head_dim=4)
    expected = scored(load_model(copy.deepcopy(hf), tokenizer()))
    parallel = torch.nn.DataParallel(copy.deepcopy(hf))
    compiled = torch.compile(copy.deepcopy(hf))
    for around in (parallel, compiled):
        assert torch.equal(scored(load_model(around, tokenizer())), expected)


def test_weights_that_are_not_there_are_refused():
    import transformers

    with torch.device("meta"):
        hf = transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"]())
    with pytest.raises(ValueError, match=r"not in memory.*load it whole"):
        load_model(hf, tokenizer())


LATENT = {
    **MHA,
    "q_lora_rank": 12,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 6,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 2,
    "n_shared_experts": 1,
}
XGLM = {"vocab_size": 97, "d_model": 24, "num_layers": 2, "attention_heads": 6, "ffn_dim": 40}
HYBRID = {**SIZES, "mamba_d_ssm": 24, "mamba_n_heads": 6, "mamba_d_head": 4, "mamba_n_groups": 1}
REFUSED = {
    "mask of its own": ("XGLMConfig", XGLM, "cannot be run block by block"),
    "states beside heads": ("FalconH1Config", HYBRID, "cannot be run block by block"),
    "latent attention": ("DeepseekV3Config", LATENT, "its attention is latent"),
    "ALiBi": ("FalconConfig", {**FALCON, "alibi": True}, "ALiBi"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_these_probes_are_not_defined_for_is_refused_with_a_sentence(name):
    config, values, why = REFUSED[name]
    hf = build(config, **values)
    with pytest.raises(ValueError, match=why) as refusal:
        load_model(hf, tokenizer())
    assert 40 < len(str(refusal.value)) < 600


def longrope():
    rope = {
        "rope_type": "longrope",
        "short_factor": [1.0, 1.1],
        "long_factor": [2.0, 3.0],
        "rope_theta": 1e4,
        "original_max_position_embeddings": 8,
    }
    values = {**SIZES, "original_max_position_embeddings": 8, "rope_parameters": rope}
    return load_model(build("Phi3Config", **values), tokenizer())


def test_prompts_whose_angles_depend_on_the_longest_of_them_are_scored_apart():
    model = longrope()
    with pytest.raises(ValueError, match=r"more than 8 tokens.*7 to 12.*calls of their own"):
        scored(model)
    for some in ([RAGGED[1]], [RAGGED[0], RAGGED[2]]):
        alone = torch.stack([scored(model, prompts=[prompt]) for prompt in some]).mean(0)
        torch.testing.assert_close(scored(model, prompts=some), alone, atol=1e-5, rtol=1e-3)


def test_tokens_beyond_the_embedding_are_refused():
    config = {**SIZES, "vocab_size": 50}
    model = load_model(build("LlamaConfig", **config, head_dim=4), tokenizer())
    with pytest.raises(ValueError, match=r"hold token 60, and .* embeds 50 tokens"):
        scored(model, prompts=[sentence(10, 60), sentence(10, 11)])


def test_an_ablation_that_needs_what_cannot_be_read_is_refused_and_others_are_not(monkeypatch):
    import safetyheads.models.gate as gate

    real = gate.hooks_on_heads
    monkeypatch.setattr(gate, "hooks_on_heads", lambda *a, clip, **k: real(*a, clip=0.1, **k))
    model = load_model(build("LlamaConfig", **SIZES, head_dim=4), tokenizer())
    assert set(model.unreadable) == {"values"}
    with pytest.raises(
        ValueError, match=r"UndifferentiatedAttention.* is not defined for .*ZeroAblation"
    ):
        scored(model, UndifferentiatedAttention())
    assert scored(model, ScalingContribution()).abs().max() > 1e-4
