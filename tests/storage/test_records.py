"""Is a record what was written, or a sentence that says what is wrong with it?"""

import json
import math
import os

import pandas
import pytest
import torch

from safetyheads.storage.records import RECORD, read_record, write_record
from tests.storage.alike import differences

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b.c": torch.tensor([True, False])}
VALUES = {
    "tuple": (1, (2, "x")),
    "list": [1, [2.5, None]],
    "floats": [math.inf, -math.inf, math.nan, 1e-300, 0.1],
    "looks like one": {"tuple": [1]},
    "nested": {"é": {"float": "1"}, "true": True},
}
TABLES = {"one": pandas.DataFrame({"n": [1, 2], "text": ["x", None]}).astype({"n": "Int64"})}


@pytest.fixture
def folder(tmp_path):
    return write_record(tmp_path, kind="x", tensors=TENSORS, values=VALUES, tables=TABLES)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_what_is_written_is_read(folder):
    found = read_record(folder, "x")
    assert found.kind == "x"
    for ours, theirs in ((TENSORS, found.tensors), (VALUES, found.values), (TABLES, found.tables)):
        assert differences(dict(ours), theirs) == []
    json.loads(
        (folder / RECORD).read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON")
    )


def test_the_same_record_is_the_same_bytes(folder, tmp_path):
    again = write_record(tmp_path / "b", kind="x", tensors=TENSORS, values=VALUES, tables=TABLES)
    assert contents(folder) == contents(again)


def test_a_new_record_takes_the_place_of_the_old_one_and_leaves_other_files(folder):
    (folder / "scores.csv").write_text("mine")
    write_record(folder, kind="y", tensors={"a": torch.zeros(1)})
    assert len(list(folder.iterdir())) == 3
    assert (folder / "scores.csv").read_text() == "mine"
    assert read_record(folder).tensors["a"].tolist() == [0]


@pytest.mark.parametrize("killed_at", [0, 1, 2])
def test_a_save_that_is_killed_leaves_the_record_that_was_there(folder, monkeypatch, killed_at):
    real, count = os.replace, 0

    def replace(source, target):
        nonlocal count
        if count == killed_at:
            raise KeyboardInterrupt
        count += 1
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        write_record(folder, kind="y", tensors={"a": torch.ones(1)}, tables={"t": TABLES["one"]})
    monkeypatch.undo()
    assert differences(dict(TENSORS), read_record(folder, "x").tensors) == []


def test_a_first_save_that_is_killed_leaves_no_record(tmp_path, monkeypatch):
    def replace(source, target):
        if str(target).endswith(RECORD):
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        write_record(tmp_path, kind="y", values={"a": 1})
    with pytest.raises(FileNotFoundError, match=r"record\.json is not there; give a folder"):
        read_record(tmp_path)


def part(folder, suffix):
    (path,) = folder.glob(f"*.{suffix}")
    return path


@pytest.mark.parametrize("suffix", ["safetensors", "parquet"])
def test_a_part_that_was_changed_cut_or_lost_is_noticed(folder, suffix):
    path = part(folder, suffix)
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:-1] + b"!", b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged: its checksum is another"):
            read_record(folder)
    path.unlink()
    with pytest.raises(ValueError, match=f"is incomplete: {path.name} is missing"):
        read_record(folder)


def test_an_index_that_was_changed_or_cut_is_noticed(folder):
    text = (folder / RECORD).read_text()
    for damaged, message in (
        (text[: len(text) // 2], "is damaged: it is no JSON"),
        (text.replace('"true": true', '"true": false'), "was edited: its checksum is another"),
        ("[]", "is no record of this library"),
        ("{}", "is no record of this library"),
        ("\udcff", "is damaged"),
    ):
        (folder / RECORD).write_bytes(damaged.encode(errors="surrogateescape"))
        with pytest.raises(ValueError, match=message):
            read_record(folder)


def test_another_kind_and_a_newer_version_are_refused(folder):
    with pytest.raises(ValueError, match="holds a record of kind x, and one of kind y is read"):
        read_record(folder, "y")
    content = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps({**content, "format": 2, "safetyheads": "9.0"}))
    with pytest.raises(ValueError, match=r"format 2 of safetyheads 9\.0, .* reads up to 1: update"):
        read_record(folder)


@pytest.mark.parametrize("value", [{1: 2}, {"a": {3}}, object(), [torch.zeros(1)]])
def test_what_no_record_can_hold_is_refused_before_anything_is_written(tmp_path, value):
    with pytest.raises(ValueError, match=r"which a record cannot hold: expected numbers"):
        write_record(tmp_path / "new", kind="x", values={"a": value})
    assert not (tmp_path / "new").exists()


def test_tensors_that_share_memory_and_slices_are_kept(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"whole": base, "again": base, "column": base[:, 1], "turned": base.T}
    found = read_record(write_record(tmp_path, kind="x", tensors=tensors)).tensors
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
