import re
from pathlib import Path

import pytest

from safetyheads.prompts import load_prompts
from tests.prompts.making import SECRET, write_rows


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
        ([None], "index 0 .* is missing: remove it"),
        (7, "of type int: expected a list of strings"),
        ({"a": 1}, "expected its values to be lists of one length"),
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
        ("m.csv", "id,prompt\n1,a\n2\n", "prompt at index 1 .* blank"),
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
