"""Is a GGUF file opened whole, its unpacked copy the same model, and a damaged one refused?"""

import hashlib
import json

import numpy as np
import pytest
import torch

from safetyheads.models.checkpoints import (
    KNOWN_MODELS,
    load_checkpoint,
    unpacked,
)
from safetyheads.models.checkpoints.gguf import read_header
from tests.models.checkpoints.made import (
    IDS,
    known,
    same_logits,
)


def test_a_gguf_file_computes_what_its_model_does(
    gguf_model, cache, no_network, capfd, monkeypatch
):
    path, model = gguf_model
    checkpoint = load_checkpoint(path)
    with torch.no_grad():
        expected = model(IDS).logits
        assert expected.std() > 0.05
        assert torch.allclose(checkpoint.model(IDS).logits, expected, atol=1e-5)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert checkpoint.provenance == {
        "source": str(path),
        "file": "tiny-llama.gguf",
        "sha256": sha256,
        "dtype": "float32",
        "format": "gguf",
    }
    assert checkpoint.name == "tiny-llama"
    assert checkpoint.model.config.architectures == ["LlamaForCausalLM"]
    assert not checkpoint.model.training
    assert checkpoint.tokenizer("a a!").input_ids[-3:] == [66, 96, 2]
    assert capfd.readouterr() == ("", "")

    # The second time the unpacked copy is opened, and nothing differs.
    straight, tokenizer = (
        unpacked.read_gguf(read_header(path), torch.float32),
        unpacked.read_tokenizer(path),
    )
    monkeypatch.setattr(unpacked, "read_gguf", lambda *_: pytest.fail("unpacked twice"))
    again = load_checkpoint(path)
    assert same_logits(again.model, straight.eval())
    assert same_logits(again.model, checkpoint.model)
    text = "What's a 7? </s>"
    assert again.tokenizer(text).input_ids == tokenizer(text).input_ids
    assert again.tokenizer.chat_template == tokenizer.chat_template is not None
    assert again.provenance == checkpoint.provenance


def test_a_gguf_file_loads_in_another_dtype(gguf_model):
    path, _ = gguf_model
    checkpoint = load_checkpoint(path, dtype="bfloat16")
    assert checkpoint.model.lm_head.weight.dtype == torch.bfloat16
    assert checkpoint.model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_a_known_gguf_model_opens_from_its_copy_alone(gguf_model, cache, monkeypatch):
    path, _ = gguf_model
    content = path.read_bytes()
    tiny = known(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    monkeypatch.setitem(KNOWN_MODELS, "tiny", tiny)
    cache.mkdir()
    (cache / "tiny.gguf").write_bytes(content)
    first = load_checkpoint("tiny")
    assert (first.name, first.provenance["source"]) == ("tiny", "tiny")
    (cache / "tiny.gguf").unlink()
    assert same_logits(load_checkpoint("tiny").model, first.model)


@pytest.mark.parametrize("damage", ["weights cut", "another transformers", "no marker"])
def test_an_unsound_copy_is_made_again(gguf_model, cache, damage):
    path, _ = gguf_model
    expected = load_checkpoint(path).model
    (copy,) = (path for path in (cache / "unpacked").iterdir() if path.is_dir())
    if damage == "weights cut":
        weights = (copy / "model.safetensors").read_bytes()
        (copy / "model.safetensors").unlink()  # the model in memory is a map of this very file
        (copy / "model.safetensors").write_bytes(weights[:1000])
    elif damage == "another transformers":
        marker = json.loads((copy / "unpacked.json").read_text())
        (copy / "unpacked.json").write_text(json.dumps(marker | {"transformers": "0"}))
    else:
        (copy / "unpacked.json").unlink()
    changed = (copy / "model.safetensors").stat().st_mtime_ns
    assert same_logits(load_checkpoint(path).model, expected)
    assert (copy / "model.safetensors").stat().st_mtime_ns > changed


def test_an_interrupted_unpacking_leaves_no_copy(gguf_model, cache, monkeypatch):
    path, _ = gguf_model

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(unpacked, "_first_logits", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_checkpoint(path)
    assert [path for path in (cache / "unpacked").iterdir() if path.is_dir()] == []


def test_a_copy_that_computes_something_else_is_not_kept(gguf_model, cache, monkeypatch):
    path, _ = gguf_model
    answers = iter([torch.zeros(1), torch.ones(1)])
    monkeypatch.setattr(unpacked, "_first_logits", lambda _: next(answers))
    with pytest.warns(UserWarning, match="does not compute what"):
        load_checkpoint(path)
    assert [path for path in (cache / "unpacked").iterdir() if path.is_dir()] == []


def test_a_full_disk_costs_the_copy_but_not_the_model(gguf_model, cache, full_disk):
    path, model = gguf_model
    with pytest.warns(UserWarning, match="every load will unpack the file again"):
        checkpoint = load_checkpoint(path)
    with torch.no_grad():
        assert torch.allclose(checkpoint.model(IDS).logits, model(IDS).logits, atol=1e-5)
    assert checkpoint.model.config.architectures == ["LlamaForCausalLM"]


@pytest.mark.parametrize("kept", [0, 3, 20, 200, 2000, -1, -3000])
def test_a_truncated_gguf_file_says_so(gguf_model, tmp_path, kept):
    content = gguf_model[0].read_bytes()
    short = tmp_path / "short.gguf"
    short.write_bytes(content[:kept])
    with pytest.raises(ValueError, match=r"truncated.*Fetch it again"):
        load_checkpoint(short)


def test_the_whole_gguf_file_is_just_long_enough(gguf_model):
    path, _ = gguf_model
    header = read_header(path)
    assert (header.architecture, header.settings["block_count"]) == ("llama", 4)


@pytest.mark.parametrize("junk", [b"GGUF" + b"\xff" * 60, b"PK\x03\x04" + bytes(100)])
def test_a_file_that_is_no_gguf(tmp_path, junk):
    (tmp_path / "junk.gguf").write_bytes(junk)
    with pytest.raises(ValueError, match="is not a GGUF file"):
        load_checkpoint(tmp_path / "junk.gguf")


def test_the_byte_order_of_another_processor(tmp_path):
    (tmp_path / "big.gguf").write_bytes(b"GGUF" + bytes([0, 0, 0, 3]) + bytes(64))
    with pytest.raises(ValueError, match="byte order"):
        load_checkpoint(tmp_path / "big.gguf")


def test_a_file_that_is_something_else(tmp_path):
    (tmp_path / "prompts.csv").write_text("prompt\nhello\n")
    with pytest.raises(ValueError, match="is a file, but not a GGUF file"):
        load_checkpoint(tmp_path / "prompts.csv")


def test_an_encoder_in_a_gguf_file(tmp_path):
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "embedder.gguf", "bert")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match="no decoder-only model: bert"):
        load_checkpoint(tmp_path / "embedder.gguf")
