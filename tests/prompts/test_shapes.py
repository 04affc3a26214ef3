"""Is every shape in which prompts are published read, or refused in one step?"""

import json

import pytest

from safetyheads.prompts import PromptSet, load_prompts
from tests.prompts.making import SECRET, write_rows

ONE, TWO = "first, and more", "second"


def write(tmp_path, name, content):
    file = tmp_path / name
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def says(role, content):
    return {"role": role, "content": content}


CHATS = {
    "messages": [says("user", ONE), says("assistant", "no")],
    "messages with a system": [says("system", "Be kind."), says("user", ONE)],
    "several turns": [says("user", ONE), says("assistant", "?"), says("user", "more")],
    "parts": [says("user", [{"type": "text", "text": ONE}])],
    "ShareGPT": [{"from": "human", "value": ONE}, {"from": "gpt", "value": "no"}],
    "strings": [ONE, "and then?"],
    "user and assistant": [{"user": ONE, "assistant": "no"}],
}


@pytest.mark.parametrize("column", ["messages", "conversations", "turns", "conversation", "dialog"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("chat", CHATS)
def test_the_first_user_turn_is_the_prompt(tmp_path, chat, suffix, column):
    rows = [{"id": 7, column: CHATS[chat], "label": "unsafe"}]
    assert load_prompts(write_rows(tmp_path / f"m{suffix}", rows)).harmful == (ONE,)


@pytest.mark.parametrize("chat", CHATS)
def test_a_conversation_may_be_a_cell_of_a_table(tmp_path, chat):
    rows = [{"messages": json.dumps(CHATS[chat])}]
    assert load_prompts(write_rows(tmp_path / "m.csv", rows)).harmful == (ONE,)


@pytest.mark.parametrize(
    "content",
    [
        [{"prompt": [says("user", ONE)]}],
        [{"prompt": says("user", ONE)}],
        [[says("user", ONE)]],
        [says("user", ONE), says("assistant", "no")],
        [says("user", ONE)],
        [{"prompt": [ONE]}],
        {"messages": [says("user", ONE)]},
        {"prompt": ONE},
        {"a_long_id": [says("user", ONE)]},
        {"data": [{"prompt": ONE}], "version": "1"},
        {"rows": [{"row_idx": 0, "row": {"prompt": ONE}}], "features": ["prompt"]},
        {"columns": ["id", "prompt"], "index": [0], "data": [[1, ONE]]},
        {"prompt": {"0": ONE}, "id": {"0": 7}},
        {"0": {"prompt": ONE, "id": 7}},
        {"prompt": [ONE], "id": [7]},
        {"an_id": [ONE]},
        {"fraud": {"an_id": [ONE]}},
        {"parameters": {"model": "m"}, "jailbreaks": [{"goal": "x", "prompt": ONE, "jailbroken": True}]},
    ],
)  # fmt: skip
def test_one_prompt_in_every_shape(tmp_path, content):
    found = load_prompts(write(tmp_path, "m.json", content))
    assert (found.harmful, found.harmless) == ((ONE,), ())


def test_prompts_by_id_keep_the_first_key_as_their_category(tmp_path):
    found = load_prompts(
        write(tmp_path, "m.json", {"x": {"a": ["1", "2"], "b": ["3"]}, "y": {"c": ["4"]}})
    )
    assert (found.harmful, found.categories) == (("1", "2", "3", "4"), ("x", "x", "x", "y"))
    many = {f"a_behaviour_with_a_long_identifier_{i}": [f"mild {i}"] for i in range(400)}
    assert len(load_prompts(write(tmp_path, "n.json", many))) == 400


@pytest.mark.parametrize(
    "keys", [("harmful", "harmless"), ("unsafe", "safe"), ("bad_prompts", "good_prompts")]
)
def test_keys_may_be_sides(tmp_path, keys):
    found = load_prompts(write(tmp_path, "m.json", {keys[0]: [ONE, TWO], keys[1]: ["mild"]}))
    assert (found.harmful, found.harmless, found.paired) == ((ONE, TWO), ("mild",), False)
    nested = load_prompts(
        write(tmp_path, "m.json", {keys[0]: {"x": [ONE]}, keys[1]: {"y": ["mild"]}})
    )
    assert (nested.harmful, nested.harmless) == ((ONE,), ("mild",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"harmful_train": [SECRET], "harmless_train": ["b"]}, "'harmless_train' speaks of harmless"),
        ({"harmful": [SECRET], "rest": {"x": ["b", "c"]}}, "keys say harmful or harmless and some do not"),
        ([{"messages": [says("assistant", SECRET)]}], "no user turn"),
        ([{"messages": [says("user", [{"type": "image", "url": SECRET}])]}], "no user turn"),
        ([says("user", SECRET), says("assistant", "b"), says("user", "c")], "list of turns, 2 of them"),
        ([{"prompt": [SECRET, "b"]}], "type list"),
        ([{"prompt": {"a": SECRET}}], "type dict"),
        ([["a", "unsafe"], [SECRET, "safe"]], "type list"),
        ({f"id_{i}": {"deep": SECRET} for i in range(400)}, "holds an object"),
        ([{"prompt": SECRET}, {"prompt": None}, {}], "index 1 .* is missing: .*2 of 3"),
        ([{"prompt": SECRET}, {"prompt": float("nan")}], "index 1 .* type float"),
    ],
)  # fmt: skip
def test_other_shapes_are_refused_in_a_line(tmp_path, content, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_prompts(write(tmp_path, "m.json", content))
    assert SECRET not in str(caught.value)
    assert len(str(caught.value)) < 500


LINES = f'{{"prompt": "{ONE}"}}\n{{"prompt": "{TWO}"}}\n'
TABS = f"id\tprompt\n1\t{ONE}\n2\t{TWO}\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *((f"m{s}", LINES) for s in (".txt", ".json", ".jsonl", ".ndjson", ".csv", ".data", "")),
        *((f"m{s}", json.dumps([ONE, TWO])) for s in (".txt", ".json", ".jsonl", ".csv", ".data")),
        *(
            (f"m{s}", json.dumps([{"prompt": p} for p in (ONE, TWO)], indent=1))
            for s in (".txt", ".jsonl")
        ),
        *((f"m{s}", TABS) for s in (".txt", ".tsv", ".csv", ".tab", "")),
        *((f"m{s}", f'id,prompt\n1,"{ONE}"\n2,{TWO}\n') for s in (".txt", ".csv")),
        ("m.txt", f'prompt_harm_label,prompt\nharmful,"{ONE}"\nharmful,{TWO}\n'),
        ("m.csv", f"id;prompt\n1;{ONE}\n2;{TWO}\n"),
        ("m.csv", f'prompt\n"{ONE}"\n{TWO}\n'),
        ("m.csv", f'id,prompt\n,\n1,"{ONE}"\n\n2,{TWO}\n,\n'),
        ("m.csv", f'id,prompt\r\n1,"{ONE}"\r\n2,{TWO}\r\n'),
        ("m.txt", f"{ONE}\n{TWO}\n"),
        ("m.txt", f"prompt\n{ONE}\n{TWO}\n"),
    ],
)
def test_what_a_file_holds_counts_and_not_its_name(tmp_path, name, content):
    assert load_prompts(write(tmp_path, name, content)).harmful == (ONE, TWO)


def test_a_prompt_a_line_may_look_a_little_like_something_else(tmp_path):
    for lines in (
        ["[INST] say it [/INST]", "{x} is"],
        ["a\tb", "c"],
        ["prompt, please", "b, c"],
        ["x"],
    ):
        assert load_prompts(write(tmp_path, "m.txt", "\n".join(lines))).harmful == tuple(lines)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.csv", f'prompt,label\n"{SECRET},unsafe\nb,unsafe\n', "a quote in the row that begins at line 2"),
        ("m.csv", f'prompt,label\na,safe\n"{SECRET},unsafe\n"c",safe\n', "begins at line 3"),
        ("m.csv", f'prompt,label\n"{SECRET} \\"b\\" c",unsafe\n', "begins at line 2"),
        ("m.tsv", f'prompt\tlabel\n"{SECRET}\tunsafe\n', "begins at line 2"),
        ("m.csv", f"prompt,prompt\n{SECRET},b\n", "column 'prompt' twice"),
        ("m.csv", f"prompt,Prompt\n{SECRET},b\n", "'prompt' and 'Prompt' have one name"),
        ("m.jsonl", f'{{"prompt": "{SECRET}", "prompt": "b"}}\n', "column 'prompt' twice"),
        ("m.txt", f'{{"prompt": "{SECRET}"\n', "not valid .txt: .* at line"),
        ("m.txt", f"a\x00{SECRET}", "NUL bytes"),
        ("m.txt", f"1\t{SECRET}\n2\tb\n", "1 tabs in every line"),
        ("m.csv", b"PK\x03\x04 and more", "compressed file or a spreadsheet"),
        ("m.csv", f"prompt\n{SECRET} caf\xe9\n".encode("latin-1"), "not UTF-8 text at line 2.*encoding='latin-1'"),
    ],
)  # fmt: skip
def test_a_broken_file_is_refused_with_its_line(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_prompts(write(tmp_path, name, content))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1", "utf-16-le", "cp1252"]
)
@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl"])
def test_the_bytes_of_other_encodings(tmp_path, encoding, suffix):
    text = {".txt": "né\nb\n", ".csv": "prompt\nné\nb\n", ".jsonl": '{"prompt": "né"}\n"b"\n'[:-4]}[
        suffix
    ]
    file = write(tmp_path, f"m{suffix}", text.encode(encoding))
    assert load_prompts(file, encoding=encoding).harmful[0] == "né"
    if encoding.startswith("utf") and encoding != "utf-16-le":
        assert load_prompts(file).harmful[0] == "né"
    else:
        with pytest.raises(ValueError, match="encoding="):
            load_prompts(file)
    with pytest.raises(ValueError, match="none that Python knows"):
        load_prompts(file, encoding="latin-47")


def test_two_equal_columns_of_a_parquet_file_are_refused(tmp_path):
    import pyarrow
    from pyarrow import parquet

    one = pyarrow.array(["a"])
    parquet.write_table(
        pyarrow.Table.from_arrays([one, one], ["prompt", "prompt"]), tmp_path / "m.csv"
    )
    with pytest.raises(ValueError, match="column 'prompt' twice"):
        load_prompts(tmp_path / "m.csv")  # a parquet file, whatever it is called


def test_duplicates_are_counted_and_shown():
    assert "duplicate" not in repr(PromptSet("s", ("a", "b"), ("c",)))
    assert "1 duplicate, fingerprint" in repr(PromptSet("s", ("a", "a"), ("c",)))
    twice = PromptSet("s", ("a", "b", "a"), ("b",))
    assert twice.duplicates == 2
    assert "2 duplicates, fingerprint" in repr(twice)
