"""Whatever a user holds becomes a model that can be probed, or an error that says what to hold."""

import copy
import warnings

import pytest
import torch

from safetyheads.engine.execution import Execution
from safetyheads.engine.measurement import measure
from safetyheads.engine.sweep import sweep
from safetyheads.heads import Head
from safetyheads.inputs import prepare
from safetyheads.metrics import GeneralizedShips, RefusalShift, Ships
from safetyheads.models.blocks import Blocks
from safetyheads.models.editing import replacing_z
from safetyheads.models.hooked import HookedModel
from safetyheads.models.opening import load_model
from safetyheads.probes.single_heads import score_heads
from safetyheads.prompts import tokenize
from tests.oracles import PlainModel, kl
from tests.zoo import (
    CONFIGS,
    RAGGED,
    SIZES,
    opened_where_right,
    random_model,
    sentence,
    tokenizer,
)

QUIET = Execution(progress=False)


def llama(seed=0):
    return random_model(CONFIGS["llama"](), seed=seed)


def test_a_hugging_face_model_is_wrapped_and_keeps_its_outputs():
    hf, batch = llama(), tokenize(RAGGED, tokenizer())
    with torch.no_grad():
        before = hf(batch.ids).logits
    model = load_model(hf, tokenizer())
    assert isinstance(model, HookedModel)
    assert (model.n_layers, model.n_heads, model.n_kv, model.d_head, model.d_model) == (
        4,
        6,
        2,
        4,
        24,
    )
    assert model.context == 64
    assert model.tokenizer is tokenizer()
    assert model.dtype == torch.float32
    with torch.no_grad():
        assert torch.allclose(model.logits(batch.ids), before, atol=1e-5)
        assert torch.allclose(hf(batch.ids).logits, before, atol=1e-5)


def test_every_way_to_hold_a_model_gives_the_same_scores():
    hf = llama()
    first = load_model(hf, tokenizer())
    pair = load_model((hf, tokenizer()))
    bridge = load_model(first.bridge, tokenizer())
    assert first.bridge is pair.bridge is bridge.bridge  # booted once: twice would nest the hooks
    assert load_model(first) is first
    fresh = load_model(llama(), tokenizer())
    assert fresh.bridge is not first.bridge
    scores = [score_heads(m, RAGGED, execution=QUIET).values for m in (first, pair, bridge, fresh)]
    assert all(torch.equal(scores[0], other) for other in scores[1:])


def test_a_bridge_brings_its_own_tokenizer():
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    hf = llama()
    bridge = build_bridge_from_module(hf, type(hf).__name__, hf_config=hf.config, tokenizer=None)
    with pytest.raises(ValueError, match="TransformerBridge came without a tokenizer"):
        load_model(bridge)
    bridge.tokenizer = tokenizer()
    assert load_model(bridge).tokenizer is tokenizer()


def test_a_bridge_in_compatibility_mode_is_refused():
    model = load_model(llama(), tokenizer())
    model.bridge.compatibility_mode = True
    with pytest.raises(ValueError, match="compatibility mode, which folds and centres weights"):
        load_model(model.bridge, tokenizer())


def test_a_model_without_a_tokenizer_is_refused():
    with pytest.raises(
        ValueError,
        match=r"LlamaForCausalLM came without a tokenizer; pass load_model\(model, tokenizer",
    ):
        load_model(llama())


def test_device_and_dtype_are_for_models_that_are_opened_here():
    with pytest.raises(ValueError, match="move the loaded model before passing it"):
        load_model(llama(), tokenizer(), dtype=torch.bfloat16)


def bert_like(name):
    import transformers

    size = {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "intermediate_size": 40,
    }
    return getattr(transformers, name)(transformers.BertConfig(vocab_size=97, **size)).eval()


@pytest.mark.parametrize("name", ["BertModel", "BertForMaskedLM", "BertLMHeadModel"])
def test_an_encoder_is_refused(name):
    with pytest.raises(
        ValueError, match=f"expected a decoder-only causal language model, and a {name} came"
    ):
        load_model(bert_like(name), tokenizer())


def test_an_encoder_decoder_is_refused():
    from transformers import T5Config, T5ForConditionalGeneration

    t5 = T5ForConditionalGeneration(
        T5Config(vocab_size=97, d_model=24, d_kv=4, d_ff=40, num_layers=1, num_heads=6)
    )
    with pytest.raises(
        ValueError, match="decoder-only causal language model, and a T5ForConditionalGeneration"
    ):
        load_model(t5, tokenizer())


def test_a_decoder_that_cannot_be_wrapped_is_refused_with_ones_that_can():
    class StrangeForCausalLM(type(llama())):
        pass

    with pytest.raises(
        ValueError, match=r"cannot wrap the architecture StrangeForCausalLM .*such as Llama"
    ):
        load_model(StrangeForCausalLM(llama().config), tokenizer())


def test_weights_in_memory_are_told_apart_in_the_manifest():
    first, same, other = (load_model(llama(seed), tokenizer()).provenance for seed in (0, 0, 1))
    assert first == same
    assert first["weights"] != other["weights"]
    assert first["dtype"] == "float32"
    assert {"torch", "transformers", "transformer_lens"} <= set(first["versions"])


@pytest.mark.parametrize(
    ("config", "factor"),
    [
        ("GraniteConfig", {"logits_scaling": 4.0, "residual_multiplier": 0.5}),
        ("CohereConfig", {"logit_scale": 0.25}),
    ],
)
def test_models_that_scale_their_logits_score_as_plain_passes_do(config, factor):
    import transformers

    hf = random_model(getattr(transformers, config)(**{**SIZES, **factor}))
    plain, model = PlainModel(copy.deepcopy(hf)), opened_where_right(hf)
    scores = score_heads(model, RAGGED[:1], ablation="zero", execution=QUIET)
    assert scores.provenance["engine"] == "resumed"
    ids = tokenizer()(RAGGED[0])["input_ids"]
    for la, he in [(0, 0), (1, 5), (2, 1)]:
        change = plain.writing_z(la, he, torch.zeros_like)
        expected = kl(plain.run(ids)[0], plain.run(ids, change)[0])
        assert scores.per_prompt[la, he, 0].item() == pytest.approx(expected, abs=2e-6)
    assert scores.values.max() > 1e-3


def test_a_prompt_longer_than_the_context_is_named_with_the_limit():
    model = load_model(llama(), tokenizer())
    prompts = [sentence(7), sentence(*range(10, 80))]
    with pytest.raises(ValueError) as error:
        score_heads(model, prompts, execution=QUIET)
    message = str(error.value)
    assert "index 1" in message
    assert "71" in message  # tokens, with BOS
    assert "64" in message
    assert "w10" not in message
    score_heads(model, [sentence(*range(10, 73))], execution=QUIET)  # 64 tokens fit


@pytest.fixture(scope="module")
def half():
    hf = llama().to(torch.bfloat16)
    return load_model(hf, tokenizer())


@pytest.mark.parametrize(
    "metric", [Ships(), RefusalShift(), GeneralizedShips()], ids=lambda m: m.name
)
def test_a_bfloat16_model_gives_finite_float32_scores(half, metric):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # no fall-back to plain passes
        scores = score_heads(half, RAGGED, metric=metric, execution=QUIET)
    assert half.dtype == torch.bfloat16
    assert scores.values.dtype == torch.float32
    assert scores.values.isfinite().all()
    assert scores.values.abs().max() > 1e-3
    assert scores.provenance["model"]["dtype"] == "bfloat16"


def test_a_bfloat16_models_scores_are_near_those_in_float32(half):
    whole = score_heads(load_model(llama(), tokenizer()), RAGGED, ablation="zero", execution=QUIET)
    got = score_heads(half, RAGGED, ablation="zero", execution=QUIET)
    assert (got.values - whole.values).abs().max() < 0.05 * whole.values.max()


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_sweep_does_not_change_what_the_model_says(name):
    model = load_model(random_model(CONFIGS[name]()), tokenizer())
    batch = tokenize(RAGGED, tokenizer())
    before = model.logits(batch.ids)
    score_heads(model, RAGGED[:2], execution=QUIET)
    assert torch.equal(model.logits(batch.ids), before)


# GPT-2 small ----------------------------------------------------------------------------------------------------------


def assert_resumes_at_layer_6(model, ids):
    """A pass resumed at layer 6 ends where the whole forward pass ends, undisturbed and ablated."""
    calls = Blocks(model).record(ids)[1]
    with torch.no_grad():
        resid = Blocks(model).embed(ids)
        for layer in range(6):
            resid = Blocks(model).run(layer, resid, calls[layer])
        for layer in range(6, model.n_layers):
            resid = Blocks(model).run(layer, resid, calls[layer])
        resumed = model.unembed(model.final_norm(resid[0])).log_softmax(-1)
        assert (resumed - model.logits(ids)[0].log_softmax(-1)).abs().max() < 1e-4


def ablated_at_layer_6(model, batch):
    """Ships of one head at layer 6 by the sweep, and by a plain pass with that head's z at zero."""
    measurement = measure(prepare(model, batch), "zero", Ships())
    got = sweep(measurement, measurement.variants([Head(6, 3)])).readings[0, 0].item()
    with torch.no_grad():
        base = model.logits(batch.ids)[0, -1].double().log_softmax(-1)
        with replacing_z(model, 6, 3, torch.zeros_like):
            other = model.logits(batch.ids)[0, -1].double().log_softmax(-1)
    return got, kl(base, other)


def test_gpt2_small_with_random_weights_loads_and_resumes_at_layer_6():
    from transformers import GPT2Config

    model = load_model(random_model(GPT2Config(vocab_size=97), spread=0.05), tokenizer())
    assert (model.n_layers, model.n_heads, model.d_head, model.context) == (12, 12, 64, 1024)
    batch = tokenize([sentence(10, 11, 12, 13, 14)], tokenizer())
    assert_resumes_at_layer_6(model, batch.ids)
    got, expected = ablated_at_layer_6(model, batch)
    assert expected > 1e-5
    assert got == pytest.approx(expected, abs=1e-6, rel=1e-3)


@pytest.mark.real
def test_gpt2_small_with_its_own_weights_resumes_at_layer_6():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for name in ("openai-community/gpt2", "gpt2"):
        try:
            words = AutoTokenizer.from_pretrained(name, local_files_only=True)
            hf = AutoModelForCausalLM.from_pretrained(name, local_files_only=True)
            break
        except OSError:
            continue
    else:
        pytest.skip("the weights of gpt2 are not in the local Hub cache")
    model = load_model(hf, words)
    batch = tokenize(["The capital of France is"], words)
    assert_resumes_at_layer_6(model, batch.ids)
    with torch.no_grad():
        assert words.decode(model.logits(batch.ids)[0, -1].topk(10).indices).count(" Paris") == 1
    got, expected = ablated_at_layer_6(model, batch)
    assert got == pytest.approx(expected, abs=1e-6, rel=1e-3)


def test_alibi_is_refused_with_the_reason():
    from transformers import BloomConfig

    config = BloomConfig(vocab_size=97, hidden_size=24, n_layer=2, n_head=6)
    with pytest.raises(ValueError, match="ALiBi"):
        load_model(random_model(config), tokenizer())
