"""A run that was killed goes on from whole files only, and nothing of another run is ever found."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from safetyheads import sweep
from safetyheads.model import load_model
from safetyheads.probes.ablation import score_heads
from safetyheads.store import Store, fingerprint
from tests.zoo import CONFIGS, RAGGED, random_model, tokenizer

ROOT = Path(__file__).parents[1]


def test_tensors_come_back_as_they_were(tmp_path):
    store = Store(tmp_path, {"a": 1})
    tensors = {
        "layer000": torch.randn(3, 4),
        "layer001": torch.randn(4, 3, dtype=torch.float64).T,
        "one": torch.tensor([1]),
    }
    for key, tensor in tensors.items():
        store[key] = tensor
    assert list(store) == ["layer000", "layer001", "one"]
    assert len(store) == 3
    for key, tensor in Store(tmp_path, {"a": 1}).items():
        assert tensor.dtype == tensors[key].dtype
        assert torch.equal(tensor, tensors[key])
    del store["one"]
    assert "one" not in store
    for act in (lambda: store["one"], lambda: store.__delitem__("one")):
        with pytest.raises(KeyError):
            act()
    assert store.get("one") is None


@pytest.mark.parametrize("damage", ["empty", "half", "noise", "other"])
def test_a_damaged_file_counts_as_not_there(tmp_path, damage):
    store = Store(tmp_path, {})
    store["k"] = torch.randn(50, 50)
    file = store.folder / "k.safetensors"
    data = file.read_bytes()
    if damage == "other":
        from safetensors.torch import save_file

        save_file({"something": torch.ones(2)}, file)
    else:
        file.write_bytes(
            {"empty": b"", "half": data[: len(data) // 2], "noise": b"\xff" * 100}[damage]
        )
    assert store.get("k") is None
    store["k"] = torch.ones(2)
    assert store["k"].tolist() == [1.0, 1.0]


def test_other_provenance_shares_nothing(tmp_path):
    one, other = Store(tmp_path, {"rows": 64}), Store(tmp_path, {"rows": 65})
    one["k"] = torch.ones(1)
    assert other.get("k") is None
    assert one.folder != other.folder
    assert one.folder.parent == other.folder.parent == tmp_path
    assert list(other) == []


def test_a_fingerprint_looks_at_nested_values_and_not_at_order():
    assert fingerprint({"a": {"b": 1, "c": [1, 2]}}) == fingerprint({"a": {"c": [1, 2], "b": 1}})
    different = [{"a": {"b": 1}}, {"a": {"b": 2}}, {"a": {"b": "1"}}, {"a": [1, 2]}, {"a": [2, 1]}]
    assert len({fingerprint(d) for d in different}) == 5


def test_an_interrupted_write_leaves_the_old_value_and_no_part_of_the_new(tmp_path, monkeypatch):
    store = Store(tmp_path, {})
    store["old"] = torch.ones(2)
    before = sorted(store.folder.iterdir())

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", fail)
    for key in ("old", "new"):
        with pytest.raises(KeyboardInterrupt):
            store[key] = torch.zeros(1000)
    assert store["old"].tolist() == [1.0, 1.0]
    assert list(store) == ["old"]
    assert sorted(store.folder.iterdir()) == before


WRITER = """
import sys, torch
from safetyheads.store import Store
store = Store(sys.argv[1], {"same": True})
for turn in range(60):
    for key in ("a", "b", "c"):
        store[key] = torch.full((4000,), float(sys.argv[2]))
        seen = store[key]  # whole, and of one writer
        assert len(seen) == 4000 and seen.unique().numel() == 1, seen
"""


def test_two_processes_write_the_same_keys(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen([*command, n], cwd=ROOT, stderr=subprocess.PIPE) for n in "12"]
    for writer in writers:
        _, errors = writer.communicate(timeout=120)
        assert writer.returncode == 0, errors.decode()
    store = Store(tmp_path, {"same": True})
    assert list(store) == ["a", "b", "c"]
    assert all(store[key].unique().numel() == 1 for key in store)
    assert [p.name for p in store.folder.iterdir() if p.name.startswith(".")] == []


KILLED = """
import os, signal, sys
from tests.test_store import small_run
real, calls = os.replace, []
def replace(source, target):
    if str(target).endswith("layer002.safetensors"):
        os.kill(os.getpid(), signal.SIGKILL)  # the third layer is written, and not yet in its place
    return real(source, target)
os.replace = replace
small_run(sys.argv[1])
"""


def small_run(store):
    model = load_model(random_model(CONFIGS["llama"]()), tokenizer())
    return score_heads(model, RAGGED, store=store, progress=False)


def test_a_killed_run_goes_on_where_it_was_and_ends_at_the_same_bytes(tmp_path, monkeypatch):
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "store")], cwd=ROOT, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    (folder,) = (tmp_path / "store").iterdir()
    assert sorted(p.stem for p in folder.glob("*.safetensors")) == ["layer000", "layer001"]

    run, real = [], sweep._sweep_layer

    def counted(model, chunks, edits, *rest):
        run.append(edits[0].first_layer)
        return real(model, chunks, edits, *rest)

    monkeypatch.setattr(sweep, "_sweep_layer", counted)
    resumed = small_run(tmp_path / "store")
    assert run == [2, 3]
    run.clear()
    whole = small_run(None)
    assert run == [0, 1, 2, 3]
    assert resumed.per_prompt.numpy().tobytes() == whole.per_prompt.numpy().tobytes()
    assert resumed.provenance == whole.provenance
    run.clear()
    again = small_run(tmp_path / "store")
    assert run == []
    assert again.values.numpy().tobytes() == whole.values.numpy().tobytes()
    assert [p.name for p in (tmp_path / "store").iterdir()] == [folder.name]


def test_another_template_or_batch_is_not_mistaken_for_the_stored_one(tmp_path):
    model = load_model(random_model(CONFIGS["llama"]()), tokenizer())
    for options in ({}, {"template": "w9 {q}"}, {"rows": 5}):
        stored = score_heads(model, RAGGED, store=tmp_path, progress=False, **options)
        fresh = score_heads(model, RAGGED, progress=False, **options)
        assert torch.equal(stored.per_prompt, fresh.per_prompt)
    other = load_model(random_model(CONFIGS["llama"](), seed=1), tokenizer())
    stored = score_heads(other, RAGGED, store=tmp_path, progress=False)
    assert torch.equal(stored.per_prompt, score_heads(other, RAGGED, progress=False).per_prompt)
    assert len(list(tmp_path.iterdir())) == 4


def test_a_store_that_cannot_be_written_is_said_before_the_first_pass(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("safetyheads.probes.ablation.sweep", lambda *_, **__: pytest.fail("it ran"))
    with pytest.raises(PermissionError, match="cannot write in"):
        small_run(tmp_path / "file" / "store")
