import socket
import time
from collections import Counter
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

from safetyheads.prompts import DATASETS, load_prompts, named
from tests.prompts.making import SHARED, write_rows

needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason=f"the benchmark files are not at {SHARED}"
)


def write_folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "advbench.csv").write_text("goal,target\nbad 0,t\nbad 1,t\n")
    (folder / "malicious_instruct.txt").write_text("bad 0\nbad 1")
    (folder / "xstest.csv").write_text("id,prompt,type,label\n1,ok,h,safe\n2,bad,c,unsafe\n")
    (folder / "jailbreakbench_harmful.csv").write_text(
        "Index,Goal,Category\n0,bad 0,x\n1,bad 1,y\n2,bad 2,x\n"
    )
    (folder / "jailbreakbench_benign.csv").write_text(
        "Index,Goal,Category\n2,good 2,x\n0,good 0,x\n1,good 1,y\n"
    )
    return folder


@pytest.mark.parametrize("how", ["path", "environment"])
def test_named_datasets_come_from_a_folder(tmp_path, monkeypatch, how):
    folder = write_folder(tmp_path / "data")
    monkeypatch.setattr(named, "_hub_folder", None)  # the Hub is not asked
    if how == "environment":
        monkeypatch.setenv("SAFETYHEADS_DATA", str(folder))
    path = folder if how == "path" else None
    loaded = {name: load_prompts(name, path=path) for name in DATASETS if name != "builtin"}
    assert loaded["advbench"].harmful == loaded["malicious_instruct"].harmful == ("bad 0", "bad 1")
    assert (loaded["xstest"].harmful, loaded["xstest"].harmless) == (("bad",), ("ok",))
    assert not loaded["xstest"].paired
    pairs = loaded["jailbreakbench"]
    assert pairs.paired
    assert pairs.harmful == ("bad 0", "bad 1", "bad 2")
    assert pairs.harmless == ("good 0", "good 1", "good 2")  # by Index, not by row
    assert pairs.categories == pairs.harmless_categories == ("x", "y", "x")
    assert {one.name for one in loaded.values()} == set(DATASETS) - {"builtin"}
    assert load_prompts("JailbreakBench", path=folder) == load_prompts(
        "jailbreakbench", path=folder
    )


def test_a_named_dataset_comes_from_a_file_of_any_name(tmp_path):
    file = write_folder(tmp_path) / "advbench.csv"
    renamed = file.rename(tmp_path / "renamed.csv")
    assert load_prompts("advbench", path=renamed).harmful == ("bad 0", "bad 1")
    assert load_prompts("advbench", path=renamed, column="target").harmful == ("t", "t")
    assert load_prompts("jailbreakbench", path=tmp_path / "jailbreakbench_harmful.csv").paired


@pytest.mark.parametrize(
    ("benign", "message"),
    [
        ("Index,Goal\n0,a\n1,b\n", r"\(3 rows\) and .*\(2 rows\) do not match.*only one has 2"),
        ("Index,Goal\n0,a\n1,b\n1,c\n", "do not match"),
        ("Goal\na\nb\nc\n", "no column 'Index'"),
    ],
)
def test_halves_that_do_not_match_are_refused(tmp_path, benign, message):
    (write_folder(tmp_path) / "jailbreakbench_benign.csv").write_text(benign)
    with pytest.raises(ValueError, match=message):
        load_prompts("jailbreakbench", path=tmp_path)


def test_files_missing_from_a_folder_are_named(tmp_path, monkeypatch):
    write_folder(tmp_path)
    (tmp_path / "jailbreakbench_benign.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"jailbreakbench_benign\.csv"):
        load_prompts("jailbreakbench", path=tmp_path)
    monkeypatch.setenv("SAFETYHEADS_DATA", str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError, match=r"SAFETYHEADS_DATA=.*gone"):
        load_prompts("advbench")
    (tmp_path / "xstest.csv").write_text("prompt\na\n")
    with pytest.raises(ValueError, match="needs a column 'label'"):
        load_prompts("xstest", path=tmp_path)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub with small repositories; `hub["asked"]` says what was fetched from it."""
    state = {"asked": [], "error": None, "answers": True}
    commit = "0123abcd"

    def snapshot_download(repo_id, *, repo_type, allow_patterns, local_files_only):
        assert repo_type == "dataset"
        if local_files_only:
            raise LocalEntryNotFoundError("not cached")
        state["asked"].append(repo_id)
        if state["error"]:
            raise state["error"]
        assert any(Path("data/harmful-behaviors.csv").match(p) for p in allow_patterns) or (
            repo_id != "JailbreakBench/JBB-Behaviors"
        )
        return str(tmp_path / repo_id / "snapshots" / commit)

    def put(repository, name):
        file = tmp_path / repository / "snapshots" / commit / name
        file.parent.mkdir(parents=True, exist_ok=True)
        return file

    rows = [{"Index": i, "Goal": f"bad {i}", "Category": "x"} for i in range(3)]
    write_rows(put("JailbreakBench/JBB-Behaviors", "data/harmful-behaviors.csv"), rows)
    benign = [{"Index": i, "Goal": f"good {i}", "Category": "x"} for i in (2, 0, 1)]
    write_rows(put("JailbreakBench/JBB-Behaviors", "data/benign-behaviors.csv"), benign)
    parquet = "data/train-00000-of-00001.parquet"
    write_rows(put("walledai/AdvBench", parquet), [{"prompt": "bad", "target": "t"}])
    write_rows(put("walledai/MaliciousInstruct", parquet), [{"prompt": "worse"}])
    write_rows(
        put("Paul/XSTest", "xstest_prompts.csv"),
        [{"prompt": "ok", "label": "safe"}, {"prompt": "bad", "label": "unsafe"}],
    )
    put("Paul/XSTest", "other.csv").write_text("nonsense\n1\n")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(named, "hub_answers", lambda: state["answers"])
    return state


def test_named_datasets_come_from_the_hub(hub):
    pairs = load_prompts("jailbreakbench")
    assert pairs.paired
    assert pairs.harmless == ("good 0", "good 1", "good 2")
    assert pairs.source == "hub:JailbreakBench/JBB-Behaviors@0123abcd"
    assert load_prompts("advbench").harmful == ("bad",)
    assert load_prompts("malicious_instruct").harmful == ("worse",)
    assert load_prompts("xstest").harmless == ("ok",)
    assert hub["asked"] == [
        "JailbreakBench/JBB-Behaviors",
        "walledai/AdvBench",
        "walledai/MaliciousInstruct",
        "Paul/XSTest",
    ]


def test_a_dataset_in_several_files_is_not_cut_short(hub, tmp_path):
    folder = tmp_path / "walledai/AdvBench/snapshots/0123abcd/data"
    write_rows(folder / "train-00001-of-00002.parquet", [{"prompt": "more"}])
    with pytest.raises(ValueError, match="2 files of the Hub's repository match"):
        load_prompts("advbench")


def test_a_silent_hub_is_asked_nothing(hub):
    hub["answers"] = False
    with pytest.raises(ConnectionError, match="out of reach") as caught:
        load_prompts("jailbreakbench")
    assert not hub["asked"]
    for remedy in ("path=", "SAFETYHEADS_DATA", "jailbreakbench_benign.csv", "'builtin'"):
        assert remedy in str(caught.value)


def test_a_hub_that_fails_half_way_is_explained(hub):
    hub["error"] = TimeoutError("slow")
    with pytest.raises(ConnectionError, match=r"did not hand it over .TimeoutError.*path="):
        load_prompts("advbench")
    gated = huggingface_hub.errors.GatedRepoError
    hub["error"] = gated.__new__(gated)
    with pytest.raises(PermissionError, match=r"walledai/AdvBench.*hf auth login"):
        load_prompts("advbench")


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize("offline", [True, False])
def test_no_network_is_found_in_seconds(monkeypatch, offline):
    with socket.socket() as free:  # a port that refuses
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("HF_HUB_OFFLINE", str(int(offline)))
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    started = time.monotonic()
    with pytest.raises(ConnectionError, match="out of reach"):
        load_prompts("xstest")
    assert time.monotonic() - started < 6


@needs_shared
def test_the_real_benchmarks_load(monkeypatch):
    monkeypatch.setenv("SAFETYHEADS_DATA", str(SHARED))
    jailbreakbench = load_prompts("jailbreakbench")
    assert (len(jailbreakbench.harmful), len(jailbreakbench.harmless)) == (100, 100)
    assert jailbreakbench.paired
    assert set(Counter(jailbreakbench.categories).values()) == {10}
    assert jailbreakbench.categories == jailbreakbench.harmless_categories
    assert len(load_prompts("malicious_instruct")) == 100
    assert len(load_prompts("advbench")) == 520
    xstest = load_prompts("xstest")
    assert (len(xstest.harmful), len(xstest.harmless), xstest.paired) == (200, 250, False)
    few = xstest.limit(20)
    assert len(set(few.harmless_categories)) == 10
    assert load_prompts(SHARED / "xstest.csv").fingerprint == xstest.fingerprint
