"""Do the four roads lead to the right weights, and is every wrong source named?"""

import time
import warnings

import pytest
import torch

from safetyheads.models.checkpoints import (
    KNOWN_MODELS,
    fetch_model_file,
    load_checkpoint,
)
from safetyheads.models.checkpoints.reading import check_decoder
from safetyheads.models.checkpoints.unpacked import unpacked_copy
from safetyheads.storage.cache import cache_folder
from tests import zoo
from tests.models.checkpoints.made import (
    llama_config,
    same_logits,
    save_llama,
)


def test_a_folder_loads_ready_for_measuring(tmp_path, no_network, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    saved = save_llama(tmp_path / "llama")
    checkpoint = load_checkpoint(tmp_path / "llama")
    assert same_logits(checkpoint.model, saved.eval())
    assert not checkpoint.model.training
    assert not any(parameter.requires_grad for parameter in checkpoint.model.parameters())
    assert checkpoint.model.config._attn_implementation == "eager"
    assert checkpoint.tokenizer(zoo.sentence(10, 11)).input_ids == [1, 10, 11]
    assert checkpoint.name == "llama"
    assert checkpoint.provenance.keys() == {"source", "file", "sha256", "dtype", "format"}
    assert checkpoint.provenance["dtype"] == "float32"


def test_the_provenance_hash_follows_the_weights(tmp_path):
    model = save_llama(tmp_path / "llama")
    first = load_checkpoint(str(tmp_path / "llama")).provenance["sha256"]
    assert load_checkpoint(str(tmp_path / "llama")).provenance["sha256"] == first
    model.lm_head.weight.data[0, 0] += 1
    model.save_pretrained(tmp_path / "llama")
    assert load_checkpoint(str(tmp_path / "llama")).provenance["sha256"] != first


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16", "torch.bfloat16"])
def test_a_dtype_may_be_named(tmp_path, dtype):
    save_llama(tmp_path / "llama")
    checkpoint = load_checkpoint(tmp_path / "llama", dtype=dtype)
    assert checkpoint.model.lm_head.weight.dtype == torch.bfloat16
    # .to(bfloat16) would round the rotary frequencies too
    assert checkpoint.model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert checkpoint.provenance["dtype"] == "bfloat16"


@pytest.mark.parametrize("dtype", ["int8", "nonsense", torch.int64])
def test_a_dtype_that_cannot_hold_weights(tmp_path, dtype):
    with pytest.raises(ValueError, match="use float32, bfloat16"):
        load_checkpoint(tmp_path, dtype=dtype)


@pytest.mark.parametrize("device", ["quantum", "cuda:99"])
def test_a_device_that_is_not_there(tmp_path, device):
    with pytest.raises(ValueError, match=rf"device '{device}' cannot be used here"):
        load_checkpoint(tmp_path, device=device)


def test_loading_leaves_transformers_as_it_was(tmp_path, capfd):

    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers import modeling_gguf_pytorch_utils
    from transformers.utils import logging

    def state():
        return (
            logging.get_verbosity(),
            logging.is_progress_bar_enabled(),
            are_progress_bars_disabled(),
            list(warnings.filters),
            torch.get_default_dtype(),
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            modeling_gguf_pytorch_utils.tqdm,
        )

    save_llama(tmp_path / "llama")
    before = state()
    capfd.readouterr()
    load_checkpoint(tmp_path / "llama")
    assert state() == before
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path)
    assert state() == before
    assert capfd.readouterr() == ("", "")


def test_a_folder_without_config_lists_what_is_there(tmp_path):
    (tmp_path / "notes.txt").touch()
    (tmp_path / "model.gguf").touch()
    with pytest.raises(FileNotFoundError, match=r"holds: model.gguf, notes.txt. Pass the .gguf"):
        load_checkpoint(tmp_path)


def test_a_folder_without_weights(tmp_path):
    llama_config().save_pretrained(tmp_path)
    zoo.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="has no weights"):
        load_checkpoint(tmp_path)


def test_a_folder_without_tokenizer(tmp_path):
    save_llama(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"has no tokenizer.*save_pretrained"):
        load_checkpoint(tmp_path)


def test_a_damaged_tokenizer(tmp_path):
    save_llama(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"the tokenizer of .* cannot be read"):
        load_checkpoint(tmp_path)


def test_truncated_weights(tmp_path):
    save_llama(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated or damaged"):
        load_checkpoint(tmp_path)


def test_missing_weights_are_not_made_up(tmp_path):
    from safetensors.torch import load_file, save_file

    save_llama(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.2.self_attn.o_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 of .*layers\.2\.self_attn\.o_proj"):
        load_checkpoint(tmp_path)


def test_a_config_nobody_knows(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "perceptron"}')
    with pytest.raises(ValueError, match="names no model that transformers knows"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("BertConfig", "an encoder: bert"),
        ("RobertaConfig", "an encoder: roberta"),
        ("T5Config", "an encoder-decoder: t5"),
        ("BartConfig", "an encoder-decoder: bart"),
        ("ViTConfig", "no causal language model: vit"),
        ("MambaConfig", "a model without attention heads: mamba"),
    ],
)
def test_a_model_that_is_no_decoder_is_named(tmp_path, config, words):
    import transformers

    getattr(transformers, config)().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"is {words} .*decoder-only causal language model"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("architecture", sorted(zoo.CONFIGS))
def test_every_architecture_of_the_zoo_counts_as_a_decoder(architecture):
    check_decoder(zoo.CONFIGS[architecture](), architecture)


# Names and the Hub


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("smollm2-135m-instrukt", "Did you mean 'smollm2-135m-instruct'"),
        ("smollm2", "Did you mean .*'smollm2-135m-instruct'"),
        ("Qwen2.5-Coder-0.5B", "Did you mean 'qwen2.5-coder-0.5b-instruct'"),
        ("zzz", "Known names: smollm2-135m-instruct, qwen2.5-coder-0.5b-instruct"),
    ],
)
def test_an_unknown_name_is_told_its_neighbours(name, near, no_network):
    with pytest.raises(ValueError, match=near) as caught:
        load_checkpoint(name)
    assert "HF_HUB_OFFLINE" in str(caught.value)
    with pytest.raises(ValueError, match=near):
        fetch_model_file(name)


@pytest.mark.parametrize("path", ["./nowhere", "~/nowhere", "/nowhere", "a/b/c", "model.gguf"])
def test_a_path_that_is_not_there(path, no_network):
    with pytest.raises(FileNotFoundError, match="there is no folder or file"):
        load_checkpoint(path)


@pytest.mark.parametrize("name", ["", "two words", "a:b"])
def test_a_word_that_is_nothing(name, no_network):
    with pytest.raises(ValueError, match="not the form of a Hub id"):
        load_checkpoint(name)


def test_a_hub_id_out_of_reach_says_so_within_seconds(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(ConnectionError, match=r"127.0.0.1:9 did not answer .* Did you mean"):
        load_checkpoint("HuggingFaceTB/SmolLM2-135M-Instruct")
    assert time.monotonic() - started < 8


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize("repository", ["somebody/tiny-llama", "tiny-llama"])
def test_a_hub_id_in_the_local_cache_loads_offline(repository, hub_cache, no_network):
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = hub_cache / f"models--{repository.replace('/', '--')}"
    saved = save_llama(folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    checkpoint = load_checkpoint(repository)
    assert same_logits(checkpoint.model, saved.eval())
    assert checkpoint.name == checkpoint.provenance["source"] == repository
    assert checkpoint.provenance["revision"] == commit
    (folder / "snapshots" / commit / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="only in part"):
        load_checkpoint(repository)


@pytest.mark.parametrize(
    ("failure", "status", "expected", "words"),
    [
        ("RepositoryNotFoundError", 404, ValueError, "the Hub shows no such model"),
        ("GatedRepoError", 403, PermissionError, "accept them on its page"),
        ("HfHubHTTPError", 502, ConnectionError, "broke off"),
    ],
)
def test_what_the_hub_refuses(failure, status, expected, words, hub, hub_cache, monkeypatch):
    import huggingface_hub
    from huggingface_hub import errors

    def refuse(*_, **__):
        error = getattr(errors, failure)
        response = type("Response", (), {"status_code": status, "headers": {}, "request": None})
        raise error("refused", response=response)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    with pytest.raises(expected, match=words):
        load_checkpoint("somebody/secret")


@pytest.mark.real
@pytest.mark.parametrize("name", list(KNOWN_MODELS))
def test_a_real_model_knows_a_capital(name, monkeypatch):
    monkeypatch.delenv("SAFETYHEADS_CACHE")
    if unpacked_copy(KNOWN_MODELS[name].sha256, cache_folder()) is None:
        pytest.skip(f"the cache has no unpacked copy of {name}; load_checkpoint({name!r}) makes it")
    checkpoint = load_checkpoint(name)
    text = checkpoint.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        tokenize=False,
    )
    with torch.no_grad():
        ids = checkpoint.tokenizer(text + "The capital of France is", return_tensors="pt").input_ids
        assert checkpoint.tokenizer.decode(checkpoint.model(ids).logits[0, -1].argmax()) == " Paris"
