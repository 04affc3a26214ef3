"""A run that was killed goes on from whole files only, and nothing of another run is ever found."""

import errno
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from safetyheads.engine import sweep
from safetyheads.engine.execution import Execution
from safetyheads.interventions.ablations import ScalingContribution, ZeroAblation
from safetyheads.metrics import RefusalShift
from safetyheads.models.opening import load_model
from safetyheads.probes.single_heads import score_heads
from safetyheads.storage.files import write_whole
from safetyheads.storage.store import Store, fingerprint
from tests.forked import begin, call, needs_fork
from tests.zoo import CONFIGS, RAGGED, random_model, tokenizer


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


@pytest.mark.parametrize(
    "damage", ["empty", "half", "noise", "other", "bit", "unsigned", "another key", "another store"]
)
def test_a_damaged_file_is_named_and_counts_as_not_there(tmp_path, damage):
    store = Store(tmp_path, {})
    store["k"] = torch.randn(50, 50)
    store["whole"] = torch.ones(3)
    file = store.folder / "k.safetensors"
    data = file.read_bytes()
    if damage in ("other", "unsigned"):
        name = "something" if damage == "other" else "readings"
        save_file({name: torch.ones(2)}, file)
    elif damage == "another key":
        shutil.copy(store.folder / "whole.safetensors", file)
    elif damage == "another store":
        other = Store(tmp_path, {"template": "other"})
        other["k"] = store["k"]
        shutil.copy(other.folder / "k.safetensors", file)
    else:
        flipped = bytearray(data)
        flipped[-1000] ^= 4  # safetensors alone does not notice
        file.write_bytes(
            {
                "empty": b"",
                "half": data[: len(data) // 2],
                "noise": b"\xff" * 100,
                "bit": bytes(flipped),
            }[damage]
        )
    with pytest.warns(UserWarning, match=r"k\.safetensors is damaged .* counts as not there"):
        assert store.get("k") is None
    assert store["whole"].tolist() == [1.0] * 3
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


def write_turns(folder, value):
    """Write three keys again and again, and see whole values of one writer."""
    store = Store(folder, {"same": True})
    for _ in range(60):
        for key in ("a", "b", "c"):
            store[key] = torch.full((4000,), value)
            seen = store[key]
            assert len(seen) == 4000
            assert seen.unique().numel() == 1, seen
    return True


@needs_fork
def test_two_processes_write_the_same_keys(tmp_path):
    begun = [begin(write_turns, tmp_path, value) for value in (1.0, 2.0)]
    assert [answer.recv() for _, answer in begun] == [True, True]
    for process, _ in begun:
        process.join()
        assert process.exitcode == 0
    store = Store(tmp_path, {"same": True})
    assert list(store) == ["a", "b", "c"]
    assert all(store[key].unique().numel() == 1 for key in store)
    assert [p.name for p in store.folder.iterdir() if p.name.startswith(".")] == []


def small_run(store):
    model = load_model(random_model(CONFIGS["llama"]()), tokenizer())
    return score_heads(model, RAGGED, execution=Execution(store=store, progress=False))


def killed_run(store):
    """A run that is killed when its third layer is written, and not yet in its place."""
    real = os.replace

    def replace(source, target):
        if str(target).endswith("layer002.safetensors"):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(source, target)

    os.replace = replace
    small_run(store)


@needs_fork
def test_a_killed_run_goes_on_where_it_was_and_ends_at_the_same_bytes(tmp_path, monkeypatch):
    assert call(killed_run, tmp_path / "store") == (-signal.SIGKILL, None)
    (folder,) = (tmp_path / "store").iterdir()
    assert sorted(p.stem for p in folder.glob("*.safetensors")) == ["layer000", "layer001"]

    run = counting_layers(monkeypatch)
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


OTHER_RUNS = {
    "template": {"template": "w9 {q}"},
    "prompts": {"prompts": [*RAGGED[:2], "w7 w8"]},
    "rows": {"rows": 5},
    "ablation": {"ablation": ZeroAblation()},
    "the ablation's field": {"ablation": ScalingContribution(0.5)},
    "metric": {"metric": RefusalShift()},
    "model": {"seed": 1},
    "version": {"version": "9.9"},
}


def test_no_other_run_is_mistaken_for_the_stored_one(tmp_path, monkeypatch):
    models = [load_model(random_model(CONFIGS["llama"](), seed=n), tokenizer()) for n in (0, 1)]
    poison = 77.0

    def run(store, seed=0, prompts=RAGGED, version="1", rows=None, **options):
        monkeypatch.setattr("safetyheads.inputs.version", lambda _: version)
        return score_heads(
            models[seed],
            prompts,
            execution=Execution(rows=rows, store=store, progress=False),
            **options,
        )

    run(tmp_path)
    (first,) = tmp_path.iterdir()
    store = Store.reading(first)
    for layer in range(4):
        store[f"layer{layer:03d}"] = torch.full((6, 3), poison)
    assert run(tmp_path).values.eq(poison).all()  # the same run does take what is stored
    for n, (what, options) in enumerate(OTHER_RUNS.items()):
        assert not run(tmp_path, **options).values.eq(poison).any(), what
        assert len(list(tmp_path.iterdir())) == n + 2, what


@pytest.mark.parametrize("damage", ["bit", "shape"])
def test_a_damaged_layer_is_computed_again_and_the_rest_is_kept(tmp_path, monkeypatch, damage):
    whole = small_run(tmp_path)
    (folder,) = tmp_path.iterdir()
    file = folder / "layer002.safetensors"
    before = file.read_bytes()
    if damage == "bit":
        data = bytearray(before)
        data[-5] ^= 1
        file.write_bytes(bytes(data))
        message = "layer002.safetensors is damaged .its checksum"
    else:
        Store.reading(folder)["layer002"] = torch.ones(2, 3)
        message = r"layer002 has shape \[2, 3\] and should have 6 rows"
    run = counting_layers(monkeypatch)
    with pytest.warns(UserWarning, match=message):
        again = small_run(tmp_path)
    assert run == [2]
    assert torch.equal(again.per_prompt, whole.per_prompt)
    assert file.read_bytes() == before


def counting_layers(monkeypatch):
    """The layers that sweeps run from now on."""
    run, real = [], sweep.climb

    def counted(groups, looked, *rest):
        run.extend(looked)
        return real(groups, looked, *rest)

    monkeypatch.setattr(sweep, "climb", counted)
    return run


def test_a_full_disk_is_said_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    real, room = Path.write_bytes, [3]  # the manifest and two layers fit

    def write_bytes(path, data):
        room[0] -= 1
        if room[0] < 0:
            real(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(
        OSError, match=r"is full: layer002\S+ \([\d,]+ bytes\) could not be"
    ) as raised:
        small_run(tmp_path)
    (folder,) = tmp_path.iterdir()
    assert raised.value.errno == errno.ENOSPC
    assert str(folder) in str(raised.value)
    assert "other files there are whole" in str(raised.value)
    assert "the same command again, which goes on" in str(raised.value)
    names = {"provenance.json", "layer000.safetensors", "layer001.safetensors"}
    assert {p.name for p in folder.iterdir()} == names
    room[0] = 100
    run = counting_layers(monkeypatch)
    assert torch.equal(small_run(tmp_path).values, small_run(None).values)
    assert run[:2] == [2, 3]


def test_what_a_killed_writer_left_is_removed_and_a_living_ones_is_not(tmp_path):
    folder = Store(tmp_path, {}).folder
    write_whole(folder / "a.safetensors", b"")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    machine = platform.node().replace(".", "_").replace("-", "_")
    names = {
        process: f".k.safetensors.{process}-1@{place}.partial"
        for process, place in [(ended.pid, machine), (os.getpid(), machine), (1, "elsewhere")]
    }
    for name in names.values():
        (folder / name).write_bytes(b"half")
    Store(tmp_path, {})
    left = {p.name for p in folder.iterdir()} & set(names.values())
    assert left == {names[os.getpid()], names[1]}


def test_a_damaged_manifest_is_written_anew_and_not_read(tmp_path):
    store = Store(tmp_path, {"a": 1})
    store["k"] = torch.ones(1)
    (store.folder / "provenance.json").write_text('{"a": 2}')
    with pytest.raises(ValueError, match="damaged or was edited"):
        Store.reading(store.folder)
    assert Store(tmp_path, {"a": 1})["k"].item() == 1
    assert Store.reading(store.folder).provenance == {"a": 1}


def runs_killed(base):
    """Four stores, each by a run that is killed three times at random points and goes on; how many were killed."""
    draw = random.Random(7)

    def child(name):
        if (pid := os.fork()) == 0:
            small_run(base / f"store{name}").save(base / f"scores{name}")
            os._exit(0)
        return pid

    small_run(None)
    start = time.time()
    os.waitpid(child("whole"), 0)
    whole = time.time() - start
    killed = 0
    for turn in range(4):
        for _ in range(3):
            pid = child(turn)
            time.sleep(draw.uniform(0, whole))
            os.kill(pid, signal.SIGKILL)
            killed += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        assert os.waitpid(child(turn), 0)[1] == 0
    return killed


@needs_fork
def test_runs_killed_at_random_points_end_at_the_same_bytes(tmp_path):
    code, killed = call(runs_killed, tmp_path)
    assert code == 0
    assert killed >= 6, "most of the 12 runs must still have been running"

    def contents(name):
        folder = tmp_path / name
        return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    assert len(contents("storewhole")) == 6  # the manifest, four layers, how they were computed
    for n in range(4):
        assert contents(f"store{n}") == contents("storewhole")
        assert contents(f"scores{n}") == contents("scoreswhole")


def test_a_store_that_cannot_be_written_is_said_before_the_first_pass(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("safetyheads.engine.run.sweep", lambda *_, **__: pytest.fail("it ran"))
    with pytest.raises(PermissionError, match="cannot write in"):
        small_run(tmp_path / "file" / "store")


@pytest.mark.parametrize("name", ["k.safetensors", "provenance.json"])
def test_a_folder_in_a_files_place_is_named(tmp_path, name):
    store = Store(tmp_path, {"a": 1})
    (store.folder / name).unlink(missing_ok=True)
    (store.folder / name).mkdir()
    with pytest.raises(ValueError, match=f"{name} is a folder, and a file of readings belongs"):
        Store(tmp_path, {"a": 1})["k"]
    with pytest.raises(ValueError, match="move it away or remove it"):
        Store(tmp_path, {"a": 1})["k"] = torch.ones(1)
