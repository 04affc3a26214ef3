import hashlib
import json
import re
import socket
import time
from collections import Counter
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

from safetyheads import prompts as module
from safetyheads.prompts import (
    DATASETS,
    TEMPLATES,
    PromptSet,
    TokenBatch,
    default_template,
    load_prompts,
    render,
    tokenize,
)

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason=f"the benchmark files are not at {SHARED}"
)
SECRET = "zebracorn"  # stands for a text that no message may show


@pytest.fixture(autouse=True)
def _no_data_folder(monkeypatch):
    monkeypatch.delenv("SAFETYHEADS_DATA", raising=False)


# --- prompt sets ---


def test_a_set_counts_fingerprints_and_hides_its_prompts():
    one = PromptSet("s", (f"do {SECRET}", "b"), ("c", "d"), True)
    assert len(one) == 2
    assert SECRET not in repr(one)
    assert SECRET not in str(one)
    assert "2 harmful, 2 harmless, paired" in repr(one)
    assert re.fullmatch("[0-9a-f]{64}", one.fingerprint)
    assert one.fingerprint == PromptSet("other", one.harmful, one.harmless).fingerprint
    moved = PromptSet("s", (*one.harmful, "c"), ("d",))
    swapped = PromptSet("s", one.harmful[::-1], one.harmless)
    assert len({one.fingerprint, moved.fingerprint, swapped.fingerprint}) == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PromptSet("s", ()), "'s' is empty"),
        (lambda: PromptSet("s", ("a", " \n")), "harmful prompt at index 1 .* is blank"),
        (lambda: PromptSet("s", ("a",), ("", "b")), "harmless prompt at index 0 .* is blank"),
        (lambda: PromptSet("s", ("a", "b"), ("c",), True), "2 harmful and 1 harmless"),
        (lambda: PromptSet("s", ("a", "b"), (), False, ("x",)), "1 categories for 2 harmful"),
        (lambda: PromptSet("s", ("\ud800",)), "no valid Unicode"),
        (lambda: PromptSet("s", ("a",)).limit(0), "limit is 0"),
    ],
)
def test_a_set_refuses_what_it_cannot_hold(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_limit_spreads_over_categories_and_keeps_pairs_together():
    whole = load_prompts("builtin")
    half = whole.limit(23)
    assert len(half) == len(half.harmless) == len(half.categories) == 23
    assert sorted(Counter(half.categories).values()) == [2] * 7 + [3] * 3
    partner = dict(zip(whole.harmful, whole.harmless, strict=True))
    assert all(partner[a] == b for a, b in zip(half.harmful, half.harmless, strict=True))
    assert half.fingerprint != whole.fingerprint
    assert whole.limit(10**6) == whole


def test_limit_without_categories_takes_the_first_of_each():
    few = PromptSet("s", tuple("abcdefghijkl"), tuple("uvw")).limit(11)
    assert few.harmful == tuple("abcdefghijk")
    assert few.harmless == tuple("uvw")


# --- loading ---


def test_a_list_is_harmful_only_and_a_set_is_returned_as_it_is():
    loaded = load_prompts(["a", "b"])
    assert (loaded.harmful, loaded.harmless, loaded.paired) == (("a", "b"), (), False)
    assert load_prompts(loaded) is loaded
    assert load_prompts(("a", "b")).fingerprint == loaded.fingerprint


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "list of prompts is empty"),
        (["a", "   "], "prompt at index 1 .* is blank"),
        (["a", 3], "prompt at index 1 .* type int: expected a string"),
        ([None], "type NoneType"),
        (7, "of type int: expected a list of strings"),
        ({"a": 1}, "of type dict"),
        ("jailbrakebench", "unknown dataset 'jailbrakebench'. Did you mean 'jailbreakbench'"),
        ("MaliciousInstruct", "Did you mean 'malicious_instruct'"),
        ("jailbreak bench", "Did you mean 'jailbreakbench'"),
        ("qqq", "Known names: builtin, jailbreakbench"),
        ("", "one text of 0 characters"),
        (f"tell me about a {SECRET}", "put a single prompt into a list"),
        (f"long {SECRET} " * 400, "put a single prompt into a list"),
    ],
)
def test_bad_input_is_named(given, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_prompts(given)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("given", ["no/such/file.csv", "nothing.txt", Path("gone"), "a/b"])
def test_a_missing_file_is_named(given):
    with pytest.raises(FileNotFoundError, match=re.escape(str(given))):
        load_prompts(given)


def write_rows(file: Path, rows: list[dict]) -> Path:
    import pandas

    frame = pandas.DataFrame(rows)
    if file.suffix == ".csv":
        frame.to_csv(file, index=False)
    elif file.suffix == ".parquet":
        frame.to_parquet(file)
    elif file.suffix == ".json":
        file.write_text(json.dumps(rows))
    elif file.suffix == ".jsonl":
        file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    return file


SUFFIXES = [".csv", ".json", ".jsonl", ".parquet"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("column", ["prompt", "Goal", "instruction", "query", "text", "harmful"])
def test_the_column_is_found(tmp_path, suffix, column):
    rows = [{"id": 1, column: 'a, "b"', "target": "t"}, {"id": 2, column: "é\nc", "target": "t"}]
    loaded = load_prompts(write_rows(tmp_path / f"mine{suffix}", rows))
    assert loaded.harmful == ('a, "b"', "é\nc")
    assert (loaded.name, loaded.paired, loaded.categories) == ("mine", False, ())
    assert "mine" in loaded.source


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_column_is_named_and_the_error_lists_what_there_is(tmp_path, suffix):
    file = write_rows(tmp_path / f"mine{suffix}", [{"wish": "a", "other": "b"}])
    assert load_prompts(str(file), column="wish").harmful == ("a",)
    assert load_prompts(file, column="Wish").harmful == ("a",)
    for column in (None, "hope"):
        with pytest.raises(ValueError, match="its columns are wish, other"):
            load_prompts(file, column=column)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("other", ["harmless", "Benign"])
def test_two_columns_give_pairs(tmp_path, suffix, other):
    rows = [{other: f"good {i}", "Harmful": f"bad {i}", "category": "xy"[i % 2]} for i in range(3)]
    file = write_rows(tmp_path / f"mine{suffix}", rows)
    loaded = load_prompts(file)
    assert loaded.paired
    assert loaded.harmful == ("bad 0", "bad 1", "bad 2")
    assert loaded.harmless == ("good 0", "good 1", "good 2")
    assert loaded.categories == ("x", "y", "x")
    alone = load_prompts(file, column=other)
    assert (alone.harmful, alone.harmless, alone.paired) == (loaded.harmless, (), False)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_labels_split_the_rows(tmp_path, suffix):
    rows = [
        {"prompt": word + str(i), "label": word, "type": f"t{i}"}
        for i, word in enumerate(["safe", "unsafe", "unsafe", "safe", "harmful"])
    ]
    loaded = load_prompts(write_rows(tmp_path / f"mine{suffix}", rows))
    assert loaded.harmful == ("unsafe1", "unsafe2", "harmful4")
    assert loaded.harmless == ("safe0", "safe3")
    assert (loaded.categories, loaded.harmless_categories) == (("t1", "t2", "t4"), ("t0", "t3"))
    assert not loaded.paired


@pytest.mark.parametrize(
    ("labels", "expected"), [(["safe"], "every row harmless"), (["safe", "?"], "besides")]
)
def test_labels_that_cannot_split_are_refused(tmp_path, labels, expected):
    file = write_rows(tmp_path / "m.csv", [{"prompt": "a", "label": label} for label in labels])
    with pytest.raises(ValueError, match=expected):
        load_prompts(file)


def test_labels_about_something_else_are_ignored(tmp_path):
    file = write_rows(
        tmp_path / "m.csv", [{"prompt": "a", "label": 0}, {"prompt": "b", "label": 1}]
    )
    assert load_prompts(file).harmful == ("a", "b")


def test_plain_text_and_lists_and_columns_in_json(tmp_path):
    text = tmp_path / "m.txt"
    text.write_bytes("\ufefffirst, and more \r\n\r\nsecond\u2028half\n\n".encode())
    assert load_prompts(text).harmful == ("first, and more", "second\u2028half")
    strings = tmp_path / "m.json"
    strings.write_text('["a", "b"]')
    assert load_prompts(strings).harmful == ("a", "b")
    strings.write_text('{"harmful": ["a", "b"], "harmless": ["c", "d"], "note": "x"}')
    assert load_prompts(strings).harmless == ("c", "d")
    lines = tmp_path / "m.jsonl"
    lines.write_text('"a"\n"b"\n')
    assert load_prompts(lines).harmful == ("a", "b")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.txt", "\n \n", "is empty"),
        ("m.csv", "", "is empty"),
        ("m.csv", "prompt\n", "is empty"),
        ("m.csv", f"prompt,x\na,b\n{SECRET},1,2,3\n", "row 1 has more cells than the header's 2"),
        ("m.csv", "id,prompt\n1,a\n2\n", "prompt at index 1 .* NoneType"),
        ("m.csv", "id,prompt\n1,a\n2,  \n", "prompt at index 1 .* blank"),
        ("m.csv", f"Tell me at length about a {SECRET} please\nb\n", "add one"),
        ("m.json", "[]", "is empty"),
        ("m.json", f'["{SECRET}", ', "not valid .json"),
        ("m.json", "3", "holds a int"),
        ("m.json", '["a", {"prompt": "b"}]', "mixes"),
        ("m.json", '{"a": "b"}', "lists of one length"),
        ("m.json", '{"prompt": ["a", "b"], "other": ["c"]}', "lists of one length"),
        ("m.jsonl", f'"a"\n"b"\n"{SECRET}\n', "not valid .jsonl: .* at line 3"),
        ("m.jsonl", '"a"\n5\n', "prompt at index 1 .* type int"),
        ("m.parquet", SECRET, "no valid .parquet"),
        ("m.xlsx", "a", "suffix '.xlsx'"),
    ],
)
def test_a_broken_file_is_explained_without_its_text(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_prompts(file)
    assert SECRET not in str(caught.value)
    assert str(file) in str(caught.value)


def test_other_encodings_folders_and_stray_arguments_are_refused(tmp_path):
    file = tmp_path / "m.txt"
    file.write_bytes("é".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8"):
        load_prompts(file)
    with pytest.raises(ValueError, match="is a folder"):
        load_prompts(tmp_path)
    with pytest.raises(ValueError, match="path= says where a named dataset lies"):
        load_prompts(file, path=tmp_path)
    with pytest.raises(ValueError, match="column='prompt' goes with a file"):
        load_prompts(["a"], column="prompt")


# --- named datasets ---


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
    monkeypatch.setattr(module, "_hub_folder", None)  # the Hub is not asked
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
    monkeypatch.setattr(module, "_hub_answers", lambda: state["answers"])
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
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    started = time.monotonic()
    with pytest.raises(ConnectionError, match="out of reach"):
        load_prompts("xstest")
    assert time.monotonic() - started < 6


@pytest.mark.usefixtures("empty_cache")
def test_the_probe_tells_an_answer_from_silence_and_a_block(monkeypatch):
    import http.server
    import threading

    class Handler(http.server.BaseHTTPRequestHandler):
        status = 200

        def do_HEAD(self):
            self.send_response(self.status)
            self.end_headers()

        def log_message(self, *_):
            pass

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        answers = {}
        for Handler.status in (200, 401, 403, 503):
            answers[Handler.status] = module._hub_answers(5.0)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert not module._hub_answers(5.0)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        server.shutdown()
    assert answers == {200: True, 401: True, 403: False, 503: False}
    with socket.socket() as silent:  # accepts and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        assert not module._hub_answers(0.3)
        assert time.monotonic() - started < 2


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


# --- the built-in pairs ---


def words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower())


def test_builtin_is_matched_and_balanced():
    builtin = load_prompts("builtin")
    assert builtin.paired
    assert len(builtin) >= 64
    counts = Counter(builtin.categories)
    assert len(counts) >= 8
    assert max(counts.values()) == min(counts.values())
    assert len({*builtin.harmful, *builtin.harmless}) == 2 * len(builtin)
    for one, other in zip(builtin.harmful, builtin.harmless, strict=True):
        assert abs(len(one.split()) - len(other.split())) <= 2
        assert one.split()[0] == other.split()[0]
        assert one.endswith("?") == other.endswith("?")
    totals = [sum(len(t.split()) for t in half) for half in (builtin.harmful, builtin.harmless)]
    assert abs(totals[0] - totals[1]) <= 0.02 * totals[1]
    characters = [sum(map(len, half)) for half in (builtin.harmful, builtin.harmless)]
    assert abs(characters[0] - characters[1]) <= 0.02 * characters[1]


def test_no_word_of_builtin_gives_the_harmful_half_away():
    builtin = load_prompts("builtin")
    seen = [Counter(w for t in half for w in set(words(t))) for half in
            (builtin.harmful, builtin.harmless)]  # fmt: skip
    gap = {word: abs(seen[0][word] - seen[1][word]) for word in seen[0] | seen[1]}
    assert max(gap.values()) <= 0.1 * len(builtin)
    assert not {"illegal", "illegally", "unethical", "harmful"} & set(gap)


@needs_shared
def test_builtin_is_copied_from_no_benchmark(monkeypatch):
    monkeypatch.setenv("SAFETYHEADS_DATA", str(SHARED))
    theirs: set[tuple[str, ...]] = set()
    bags = []
    for name in DATASETS[1:]:
        other = load_prompts(name)
        for text in (*other.harmful, *other.harmless):
            listed = words(text)
            bags.append(frozenset(listed))
            theirs.update(zip(*(listed[i:] for i in range(7)), strict=False))
    assert len(theirs) > 1000
    builtin = load_prompts("builtin")
    for text in (*builtin.harmful, *builtin.harmless):
        listed = words(text)
        assert not theirs.intersection(zip(*(listed[i:] for i in range(7)), strict=False))
        mine = frozenset(listed)
        assert max(len(mine & bag) / len(mine | bag) for bag in bags) < 0.6


# --- templates ---


CHAT = "{{ bos_token }}{% for m in messages %}[INST] {{ m['content'] }} [/INST]{% endfor %}"
NO_BOS_CHAT = "{% for m in messages %}[INST] {{ m['content'] }} [/INST]{% endfor %}"
TURNS = (
    "<|im_start|>system Be kind <|im_end|> {% for m in messages %}<|im_start|>{{ m['role'] }} "
    "{{ m['content'] }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)
SPECIALS = ["<pad>", "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"]


def make_tokenizer(adds="<s> $A", bos="<s>", chat_template=None, pad="<pad>"):
    """A byte-level tokenizer: `adds` is what it makes of plain text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIALS, *letters])}
    inner = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS])
    if adds != "$A":
        inner.post_processor = processors.TemplateProcessing(
            single=adds, special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=bos,
        eos_token="</s>",
        pad_token=pad,
        unk_token="<unk>",
        chat_template=chat_template,
    )


def test_templates_are_rendered_by_plain_replacement():
    assert list(TEMPLATES) == ["chat", "bare", "query"]
    assert render(["hi {x} {0}"], "bare", None) == ["hi {x} {0}"]
    assert render(["hi {q}"], "query", None) == ["## Query:hi {q}\n## Answer:"]
    assert render(["a", "b"], "{x} {q} {q}{{", None) == ["{x} a a{{", "{x} b b{{"]
    chatty = make_tokenizer(chat_template=CHAT)
    assert render(["hi"], "chat", chatty) == ["<s>[INST] hi [/INST]"]
    assert default_template(chatty) == "chat"
    assert default_template(make_tokenizer()) == "bare"
    assert render(["hi"], None, make_tokenizer()) == ["hi"]


@pytest.mark.parametrize(
    ("texts", "template", "message"),
    [
        (["a"], "say it", "template 'say it' has no {q}"),
        (["a"], "Query", "did you mean 'query'"),
        (["a"], "", "template '' has no {q}"),
        (["a"], "chat", "no chat template .* use template='bare' or template='query'"),
        ([], "bare", "is empty"),
        (["a", ""], "bare", "index 1 .* is blank"),
        (["a", 2], "bare", "index 1 .* type int"),
        ("a", "bare", "type str: expected a list"),
    ],
)
def test_what_cannot_be_rendered_is_explained(texts, template, message):
    with pytest.raises(ValueError, match=message):
        render(texts, template, make_tokenizer())
    with pytest.raises(ValueError, match=message):
        tokenize(texts, make_tokenizer(), template)


def test_a_chat_template_that_fails_names_the_prompt_only():
    failing = make_tokenizer(chat_template="{{ raise_exception(messages[0]['content']) }}")
    with pytest.raises(ValueError, match="failed on the prompt at index 0") as caught:
        tokenize([SECRET], failing)
    assert SECRET not in str(caught.value)


# --- tokens ---


@pytest.mark.parametrize("adds", ["<s> $A", "<s> $A </s>", "$A", "$A </s>"])
@pytest.mark.parametrize("template", ["bare", "query", "Q {q} A"])
def test_plain_text_gets_what_the_tokenizer_puts_before_it_and_nothing_after(adds, template):
    tokenizer = make_tokenizer(adds)
    batch = tokenize(["hello", "a longer one"], tokenizer, template)
    for row, length, text in zip(batch.ids, batch.lengths, batch.texts, strict=True):
        plain = tokenizer(text, add_special_tokens=False)["input_ids"]
        expected = [1, *plain] if adds.startswith("<s>") else plain
        assert row[:length].tolist() == expected
    assert batch.template == template


@pytest.mark.parametrize("adds", ["<s> $A", "<s> $A </s>", "$A"])
@pytest.mark.parametrize("chat_template", [CHAT, NO_BOS_CHAT])
def test_chat_has_one_bos_whoever_writes_it(adds, chat_template):
    tokenizer = make_tokenizer(adds, chat_template=chat_template)
    batch = tokenize(["hello"], tokenizer)
    plain = tokenizer("[INST] hello [/INST]", add_special_tokens=False)["input_ids"]
    has_bos = adds.startswith("<s>") or chat_template is CHAT
    assert batch.ids[0].tolist() == ([1, *plain] if has_bos else plain)
    assert batch.template == "chat"


@pytest.mark.parametrize("bos", ["<|im_start|>", None])
def test_a_bos_that_begins_every_turn_is_neither_doubled_nor_refused(bos):
    tokenizer = make_tokenizer("$A", bos=bos, chat_template=TURNS)
    row = tokenize(["hello"], tokenizer).ids[0].tolist()
    start = SPECIALS.index("<|im_start|>")
    assert row[0] == start
    assert row.count(start) == 3
    assert row == tokenizer(render(["hello"], "chat", tokenizer)[0])["input_ids"]
    assert start not in tokenize(["hello"], tokenizer, "bare").ids


@pytest.mark.parametrize(
    ("tokenizer", "prompt", "template"),
    [
        (make_tokenizer(), "hi", "<s>{q}"),
        (make_tokenizer(), "hi", " <s>{q}"),
        (make_tokenizer(), "<s>hi", "bare"),
        (make_tokenizer("$A"), "<s>hi", "<s>{q}"),
        (make_tokenizer("<s> <s> $A"), "hi", "bare"),
        (make_tokenizer(chat_template="<s>" + CHAT), "hi", "chat"),
    ],
)
def test_two_bos_are_refused(tokenizer, prompt, template):
    with pytest.raises(ValueError, match=r"index 0 starts with two BOS tokens \('<s>'\)"):
        tokenize([prompt], tokenizer, template)


def test_one_bos_that_a_template_writes_is_kept():
    row = tokenize(["hi"], make_tokenizer("$A"), "<s>{q}").ids[0].tolist()
    assert (row[0], row.count(1), len(row)) == (1, 1, 3)


def test_rows_are_padded_on_the_right():
    tokenizer = make_tokenizer()
    tokenizer.padding_side = "left"
    tokenizer.truncation_side = "left"
    tokenizer("a b c", padding="max_length", truncation=True, max_length=4)  # leaves traces
    batch = tokenize(["abc", "a", "abcdefgh"], tokenizer, "bare")
    assert batch.ids.shape == (3, 9)
    assert batch.lengths.tolist() == [4, 2, 9]
    assert batch.ids.dtype == batch.lengths.dtype == torch.int64
    assert (batch.ids[1, 2:] == 0).all()
    assert (batch.ids[0, :4] != 0).all()
    end = SPECIALS.index("</s>")
    assert tokenize(["abc", "a"], make_tokenizer(pad="</s>"), "bare").ids[1, -1] == end
    assert tokenize(["abc", "a"], make_tokenizer(pad=None), "bare").ids[1, -1] == 0


def test_a_row_does_not_depend_on_its_batch():
    tokenizer, texts = make_tokenizer(), ["abc", "a", "abcdefgh"]
    batch = tokenize(texts, tokenizer)
    for index, text in enumerate(texts):
        alone = tokenize([text], tokenizer)
        chosen = batch.select([index])
        assert chosen.ids.tolist() == alone.ids.tolist()
        assert chosen.fingerprint == alone.fingerprint


def test_select_trims_and_orders():
    batch = tokenize(["abc", "a", "abcdefgh"], make_tokenizer(), "query")
    some = batch.select([1, 0])
    assert some.texts == (batch.texts[1], batch.texts[0])
    assert some.ids.shape[1] == int(batch.lengths[0])
    assert some.template == "query"
    assert batch.select(range(3)).fingerprint == batch.fingerprint != some.fingerprint
    for wrong in ([3], [-1], []):
        with pytest.raises(ValueError, match="expected"):
            batch.select(wrong)


def test_the_prefix_is_what_all_share_and_leaves_a_token_to_each():
    tokenizer = make_tokenizer()

    def oracle(batch: TokenBatch) -> int:
        rows = [r[:n] for r, n in zip(batch.ids.tolist(), batch.lengths.tolist(), strict=True)]
        shared = 0
        while shared < min(map(len, rows)) - 1 and len({row[shared] for row in rows}) == 1:
            shared += 1
        return shared

    expected = {("abX", "abY"): 3, ("ab", "abc"): 2, ("a", "b"): 1, ("abc",): 3, ("a", "abab"): 1}
    for texts, length in expected.items():
        batch = tokenize(texts, tokenizer, "bare")
        assert batch.prefix_length == oracle(batch) == length
    assert tokenize(["a", "b"], make_tokenizer("$A"), "bare").prefix_length == 0
    query = tokenize(["abc", "xyz"], tokenizer, "query")
    assert query.prefix_length == oracle(query) == 1 + len("## Query:")


def test_the_fingerprint_follows_tokens_and_lengths_and_not_the_padding():
    first = TokenBatch(torch.tensor([[1, 2, 0]]), torch.tensor([2]), ("a",), "bare")
    padded = TokenBatch(torch.tensor([[1, 2, 7]]), torch.tensor([2]), ("a",), "bare")
    longer = TokenBatch(torch.tensor([[1, 2, 0]]), torch.tensor([3]), ("a",), "bare")
    other = TokenBatch(torch.tensor([[1, 3, 0]]), torch.tensor([2]), ("a",), "bare")
    assert first.fingerprint == padded.fingerprint
    assert len({first.fingerprint, longer.fingerprint, other.fingerprint}) == 3
    assert len(first.fingerprint) == len(hashlib.sha256().hexdigest())


def test_a_long_prompt_is_named_by_index_count_and_limit():
    texts = ["ab", SECRET, "abc"]
    with pytest.raises(ValueError, match=r"index 1 has 10 tokens .* limit is 9") as caught:
        tokenize(texts, make_tokenizer(), "bare", max_length=9)
    assert SECRET not in str(caught.value)
    assert tokenize(texts, make_tokenizer(), "bare", max_length=10).ids.shape == (3, 10)


def test_a_batch_hides_its_prompts():
    batch = tokenize([SECRET], make_tokenizer(), "query")
    assert SECRET not in repr(batch)
    assert "1 prompts" in repr(batch)


def test_a_prompt_without_tokens_is_refused():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    blind = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"x": 0}, [])))
    with pytest.raises(ValueError, match="index 1 has no tokens"):
        tokenize(["x", "unknown"], blind)
