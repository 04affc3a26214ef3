"""Do a folder's weights and its config belong together, and is what it holds instead of a model named?"""

import importlib.util
import json

import pytest
import torch

from safetyheads import load_model
from safetyheads.models.checkpoints import load_checkpoint
from tests import zoo
from tests.models.checkpoints.made import IDS, llama_config, same_logits, save_llama


def _change(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


def _weights(folder, change):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


# The tokenizer


def test_the_callers_tokenizer_is_used(tmp_path):
    from transformers import PreTrainedTokenizerFast

    save_llama(tmp_path)
    mine = PreTrainedTokenizerFast(tokenizer_object=zoo.tokenizer().backend_tokenizer)
    checkpoint = load_checkpoint(tmp_path, tokenizer=mine)
    assert checkpoint.tokenizer is mine
    assert checkpoint.provenance["tokenizer"].startswith("given: ")
    assert "tokenizer" not in load_checkpoint(tmp_path).provenance
    model = load_model(tmp_path, tokenizer=mine)
    assert model.tokenizer is mine
    assert model.opened_from.tokenizer is mine  # another process gets it too


def test_a_folder_without_tokenizer_opens_with_the_callers(tmp_path):
    saved = save_llama(tmp_path)
    for file in (tmp_path / "tokenizer.json", tmp_path / "tokenizer_config.json"):
        file.unlink()
    with pytest.raises(ValueError, match="give one beside the path"):
        load_checkpoint(tmp_path)
    assert same_logits(load_checkpoint(tmp_path, tokenizer=zoo.tokenizer()).model, saved)


# Weights and config


def test_biases_that_a_llama_has_no_place_for(tmp_path):
    from transformers import Qwen2Config

    sizes = {
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "hidden_size": 24,
        "vocab_size": 97,
    }
    zoo.random_model(
        Qwen2Config(num_hidden_layers=2, intermediate_size=40, **sizes)
    ).save_pretrained(tmp_path)
    zoo.tokenizer().save_pretrained(tmp_path)
    _change(tmp_path, model_type="llama", architectures=["LlamaForCausalLM"], layer_types=None)
    with pytest.raises(
        ValueError, match=r"6 of the weights .* no place in a LlamaForCausalLM .*k_proj\.bias"
    ):
        load_checkpoint(tmp_path)


def test_fewer_layers_than_the_file_has(tmp_path):
    save_llama(tmp_path)
    _change(tmp_path, num_hidden_layers=2)
    with pytest.raises(ValueError, match=r"no place .*layers\.2\..* its config says .* 2 layers"):
        load_checkpoint(tmp_path)


def test_more_layers_than_the_file_has(tmp_path):
    save_llama(tmp_path)
    _change(tmp_path, num_hidden_layers=6)
    with pytest.raises(ValueError, match=r"lacks 18 of the model's weights .*layers\.4"):
        load_checkpoint(tmp_path)


def test_another_shape_names_both(tmp_path):
    save_llama(tmp_path)
    _change(tmp_path, intermediate_size=44)
    with pytest.raises(
        ValueError, match=r"another shape .*\[24, 40\], and the config asks for \[24, 44\]"
    ):
        load_checkpoint(tmp_path)


def test_a_config_of_another_architecture(tmp_path):
    save_llama(tmp_path)
    sizes = {"n_embd": 24, "n_layer": 4, "n_head": 6, "vocab_size": 97}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", **sizes}))
    with pytest.raises(ValueError, match=r"lacks .*GPT2LMHeadModel\) belongs to these weights"):
        load_checkpoint(tmp_path)


def test_a_head_beside_the_model_is_not_dropped_without_a_word(tmp_path):
    save_llama(tmp_path)
    _weights(tmp_path, lambda w: w.update({"v_head.summary.weight": torch.ones(1, 24)}))
    with pytest.raises(ValueError, match=r"v_head\.summary\.weight"):
        load_checkpoint(tmp_path)


# Tied outputs


def test_an_output_that_is_the_embedding_once_more_is_let_through(tmp_path):
    saved = save_llama(tmp_path)
    saved.lm_head.weight.data.copy_(saved.model.embed_tokens.weight)
    saved.save_pretrained(tmp_path)
    _change(tmp_path, tie_word_embeddings=True)
    assert same_logits(load_checkpoint(tmp_path).model, saved)


def test_an_output_of_its_own_under_a_tied_config_is_used_and_the_config_says_so(tmp_path):
    saved = save_llama(tmp_path)
    _change(tmp_path, tie_word_embeddings=True)
    model = load_checkpoint(tmp_path).model
    assert same_logits(model, saved)
    assert not model.config.tie_word_embeddings  # so that a saved copy is the same model


def test_no_output_under_an_untied_config(tmp_path):
    save_llama(tmp_path)
    _weights(tmp_path, lambda w: w.pop("lm_head.weight"))
    with pytest.raises(ValueError, match=r"lacks 1 .*lm_head\.weight"):
        load_checkpoint(tmp_path)


def test_no_output_under_a_tied_config(tmp_path):
    from transformers import LlamaConfig

    config = LlamaConfig(**llama_config().to_dict() | {"tie_word_embeddings": True})
    saved = zoo.random_model(config)
    saved.save_pretrained(tmp_path)
    zoo.tokenizer().save_pretrained(tmp_path)
    assert same_logits(load_checkpoint(tmp_path).model, saved)


# Parts, packed weights, adapters


def test_shards_load_and_a_missing_one_is_named(tmp_path):
    saved = save_llama(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    saved.save_pretrained(tmp_path, max_shard_size="10KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert same_logits(load_checkpoint(tmp_path).model, saved)
    shards[1].unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"{len(shards) - 1} of the {len(shards)} files .*{shards[1].name}"
    ):
        load_checkpoint(tmp_path)


def test_a_damaged_index(tmp_path):
    saved = save_llama(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    saved.save_pretrained(tmp_path, max_shard_size="10KB")
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="is damaged"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4}, "gptqmodel"),
        ({"quant_method": "awq", "bits": 4}, "gptqmodel"),
        ({"quant_method": "mxfp4"}, "Mxfp4Config"),
        ({"quant_method": "fp8"}, "FineGrainedFP8Config"),
        ({"quant_method": "something new"}, "something new"),
    ],
)
def test_packed_weights_are_refused_with_the_way_to_plain_ones(tmp_path, about, words):
    save_llama(tmp_path)
    _change(tmp_path, quantization_config=about)
    with pytest.raises(ValueError, match=rf"{words}.*|quantised .*{words}") as caught:
        load_checkpoint(tmp_path)
    assert "model.dequantize()" in str(caught.value)


def _adapter(folder, base):
    folder.mkdir(exist_ok=True)
    about = {"peft_type": "LORA", "base_model_name_or_path": base, "r": 2, "lora_alpha": 8}
    about |= {"target_modules": ["o_proj"], "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    (folder / "adapter_model.safetensors").touch()


def test_an_adapter_without_peft_says_how(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    _adapter(tmp_path, "somebody/model")
    about = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(about | {"use_dora": True}))
    with pytest.raises(
        ValueError, match=r"a peft adapter to somebody/model that .*pip install peft"
    ):
        load_checkpoint(tmp_path)


def test_an_adapter_without_a_base(tmp_path):
    _adapter(tmp_path, None)
    with pytest.raises(ValueError, match="names no base model"):
        load_checkpoint(tmp_path)


def test_a_model_and_an_adapter_in_one_folder(tmp_path):
    save_llama(tmp_path)
    _adapter(tmp_path, "somebody/model")
    with pytest.raises(ValueError, match="it is not said which"):
        load_checkpoint(tmp_path)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft's own, where the test makes the adapter
def test_an_adapter_opens_with_its_base(tmp_path):
    peft = pytest.importorskip("peft")
    base = save_llama(tmp_path / "base")
    config = peft.LoraConfig(
        r=2, lora_alpha=8, target_modules=["o_proj", "q_proj"], init_lora_weights=False
    )
    torch.manual_seed(1)
    with_adapter = peft.get_peft_model(load_checkpoint(tmp_path / "base").model, config).eval()
    with_adapter.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    with_adapter.save_pretrained(tmp_path / "adapter")
    checkpoint = load_checkpoint(tmp_path / "adapter")
    with torch.no_grad():
        expected = with_adapter(IDS).logits
        assert (base(IDS).logits - expected).abs().max() > 1e-2
        assert torch.allclose(checkpoint.model(IDS).logits, expected, atol=1e-5)
    assert type(checkpoint.model).__name__ == "LlamaForCausalLM"
    assert checkpoint.provenance["base_source"] == str(tmp_path / "base")
    assert checkpoint.tokenizer(zoo.sentence(10)).input_ids == [1, 10]
    load_model(tmp_path / "adapter")
