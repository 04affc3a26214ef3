"""Do the prompts of a file come to the side that it says, or is it refused by the name of the column?"""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safetyheads.prompts import load_prompts
from safetyheads.prompts.labels import side_of, words_of
from tests.prompts.making import write_rows

BAD, MILD = "pick the lock", "oil the lock"


def two(column, bad, mild, text="prompt"):
    return [{text: MILD, column: mild}, {text: BAD, column: bad}]


LABELS = [
    *(("label", bad, mild) for bad, mild in [("unsafe", "safe"), ("harmful", "benign"), ("toxic", "non-toxic")]),
    *(("label", bad, mild) for bad, mild in [("Malicious", "Legitimate"), ("bad", "good"), ("jailbreak", "benign")]),
    *((name, "harmful", "unharmful") for name in ("prompt_harm_label", "harm_label", "promptHarmLabel", "kind")),
    *((name, False, True) for name in ("is_safe", "safe", "isSafe", "is_benign", "is_not_harmful", "unharmful")),
    *((name, True, False) for name in ("unsafe", "is_harmful", "harmful", "is_jailbreak", "jailbreak", "not_safe")),
    *((name, 1, 0) for name in ("toxicity", "is_unsafe", "toxic", "is_attack", "harm", "Harmful?", "refusal_expected")),
    *((name, "yes", "no") for name in ("harmful", "should_refuse", "expected_refusal", "malicious", "is_toxic")),
    *((name, "no", "yes") for name in ("safe", "should_comply", "benign")),
    ("expected_behavior", "refuse", "comply"),
    ("expected_response", "refusal", "answer"),
    ("type", "jailbreak", "benign"),
    ("types", "harmful", "harmless"),
    ("category", "harmful", "harmless"),
    ("data_type", "adversarial_harmful", "vanilla_benign"),
    ("is_harmful", 1.0, 0.0),
    ("harmful_score", 1, 0),
    ("action", "block", "allow"),
    ("split", "harmful", "harmless"),
]  # fmt: skip


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
@pytest.mark.parametrize(("column", "bad", "mild"), LABELS)
def test_a_label_is_recognised_with_its_polarity(tmp_path, suffix, column, bad, mild):
    found = load_prompts(write_rows(tmp_path / f"m{suffix}", two(column, bad, mild)))
    assert (found.harmful, found.harmless) == ((BAD,), (MILD,))


@pytest.mark.parametrize(("column", "bad", "mild"), LABELS)
def test_an_unknown_text_column_beside_a_label_is_found(tmp_path, column, bad, mild):
    found = load_prompts(write_rows(tmp_path / "m.jsonl", two(column, bad, mild, text="wish")))
    assert (found.harmful, found.harmless) == ((BAD,), (MILD,))


REFUSED = [
    ("label", 1, 0),
    ("label", "1", "0"),
    ("class", 1, 0),
    ("flag", True, False),
    ("whatever", 0, 1),
    ("label", "A", "B"),
    ("label", "unsafe", "?"),
    ("label", "unsafe", None),
    ("is_safe", False, None),
    ("toxicity", 0.81, 0.02),
    ("harmful", 5, 2),
    ("harmful", "high", "low"),
    ("is_harmful", "maybe", "yes"),
    ("is_response_safe", False, True),
    ("response_harm_label", "harmful", "unharmful"),
    ("is_refusal", True, False),
    ("category", "fraud", "benign"),
    ("risk", "violence", "safe"),
    ("harm_category", "violence", "none"),
    ("subset", "unsafe_train", "safe_train"),
    ("types", "contrast_homonyms", "safe_targets"),
    ("harmful_score", 0.9, 0.1),
    ("safety", 0, 1),
]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize(("column", "bad", "mild"), REFUSED)
def test_what_may_be_a_label_is_refused_by_name(tmp_path, suffix, column, bad, mild):
    file = write_rows(tmp_path / f"m{suffix}", two(column, bad, mild))
    with pytest.raises(ValueError, match=f"the column '{column}' .*write") as caught:
        load_prompts(file)
    assert len(str(caught.value)) < 500
    assert load_prompts(file, label=False).harmful == (MILD, BAD)


def test_a_flag_in_every_row_says_nothing_by_itself(tmp_path):
    file = write_rows(tmp_path / "m.csv", [{"prompt": MILD, "label": 0}])
    with pytest.raises(ValueError, match="column 'label' holds '0'"):
        load_prompts(file)


@pytest.mark.parametrize(
    ("column", "bad", "mild"), [("label", 1, 0), ("flag", True, False), ("y", "yes", "no")]
)
def test_a_label_that_is_named_is_read(tmp_path, column, bad, mild):
    file = write_rows(tmp_path / "m.jsonl", two(column, bad, mild))
    found = load_prompts(file, label=column)
    assert (found.harmful, found.harmless) == ((BAD,), (MILD,))
    with pytest.raises(ValueError, match="label='lable' is none of its columns: prompt"):
        load_prompts(file, label="lable")
    with pytest.raises(ValueError, match="label='label' goes with a file"):
        load_prompts(["a"], label="label")


def test_a_label_may_stand_in_a_list(tmp_path):
    file = write_rows(tmp_path / "m.jsonl", two("labels", ["unsafe"], ["safe"]))
    assert load_prompts(file).harmless == (MILD,)
    several = write_rows(tmp_path / "s.jsonl", two("types", ["fraud", "violence"], ["safe"]))
    with pytest.raises(ValueError, match="column 'types' has labels besides"):
        load_prompts(several)


def test_labels_that_disagree_are_refused_and_one_can_be_chosen(tmp_path):
    rows = [{"user_input": MILD, "toxicity": 0, "jailbreaking": 1}]
    rows.append({"user_input": BAD, "toxicity": 1, "jailbreaking": 1})
    file = write_rows(tmp_path / "m.jsonl", rows)
    with pytest.raises(ValueError, match="'toxicity', 'jailbreaking' disagree"):
        load_prompts(file)
    assert load_prompts(file, label="toxicity").harmless == (MILD,)


UNRELATED = [
    ("id", 0, 1),
    ("split", "train", "test"),
    ("language", "en", "de"),
    ("source", "a", "b"),
    ("jailbroken", True, False),
    ("n_words", 3, 4),
    ("category", "fraud", "violence"),
    ("type", "homonyms", "contrast_homonyms"),
    ("target", "Sure, here is how", "Sure, here is what"),
    ("response", "I will not.", "Certainly."),
    ("tags", [], ["a"]),
    ("source", "safe-rlhf", "other"),
    ("tone", "good", "none"),
]


@pytest.mark.parametrize(("column", "first", "second"), UNRELATED)
def test_other_columns_change_nothing(tmp_path, column, first, second):
    file = write_rows(tmp_path / "m.json", two(column, first, second))
    assert load_prompts(file).harmful == (MILD, BAD)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("harmful", "benign"),
        ("unsafe_prompt", "safe_prompt"),
        ("bad", "good"),
        ("harmful_instruction", "harmless_instruction"),
        ("HarmfulPrompt", "HarmlessPrompt"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".json", ".parquet"])
def test_two_columns_of_texts_are_pairs(tmp_path, suffix, one, other):
    found = load_prompts(write_rows(tmp_path / f"m{suffix}", [{"id": 1, other: MILD, one: BAD}]))
    assert (found.harmful, found.harmless, found.paired) == ((BAD,), (MILD,), True)


def test_a_harmless_column_without_its_half_is_refused(tmp_path):
    file = write_rows(tmp_path / "m.csv", [{"prompt": BAD, "benign_prompt": MILD}])
    with pytest.raises(ValueError, match="'benign_prompt' holds harmless texts"):
        load_prompts(file)
    assert load_prompts(file, column="prompt").harmful == (BAD,)
    alone = write_rows(tmp_path / "a.csv", [{"benign_prompt": MILD}])
    with pytest.raises(ValueError, match="every row harmless"):
        load_prompts(alone)
    assert load_prompts([BAD], harmless=alone).harmless == (MILD,)


def test_a_flag_is_never_read_as_prompts(tmp_path):
    for rows in ([{"harmful": 1}, {"harmful": 0}], [{"harmful": "yes", "n": 2}], [{"safe": True}]):
        with pytest.raises(ValueError, match="its columns are"):
            load_prompts(write_rows(tmp_path / "m.jsonl", rows))


def test_two_unknown_text_columns_beside_a_flag_are_refused(tmp_path):
    rows = [
        {"left": MILD, "right": BAD, "is_safe": True},
        {"left": BAD, "right": MILD, "is_safe": False},
    ]
    file = write_rows(tmp_path / "m.csv", rows)
    with pytest.raises(ValueError, match="its columns are left, right, is_safe"):
        load_prompts(file)
    assert load_prompts(file, column="left").harmless == (MILD,)


@pytest.mark.parametrize(
    ("request_column", "beside"),
    [("instruction", "input"), ("instruction", "context"), ("question", "context"), ("Behavior", "ContextString")],
)  # fmt: skip
def test_an_instruction_keeps_what_stands_beside_it(tmp_path, request_column, beside):
    rows = [
        {request_column: "Sum it up.", beside: "A long text."},
        {request_column: "Hello?", beside: ""},
    ]
    file = write_rows(tmp_path / "m.csv", rows)
    assert load_prompts(file).harmful == ("Sum it up.\n\nA long text.", "Hello?")
    assert load_prompts(file, column=request_column).harmful == ("Sum it up.", "Hello?")


def test_what_may_belong_to_a_prompt_is_refused(tmp_path):
    file = write_rows(tmp_path / "m.jsonl", [{"prompt": "Sum it up.", "input": "A text."}])
    with pytest.raises(ValueError, match="beside the column 'prompt' stands 'input'"):
        load_prompts(file)
    whole = write_rows(tmp_path / "w.jsonl", [{"prompt": "Sum up: A text.", "input": "A text."}])
    assert load_prompts(whole).harmful == ("Sum up: A text.",)


@pytest.mark.parametrize("ask", [{}, {"column": "wish"}, {"label": False}])
def test_an_error_about_many_columns_is_short(tmp_path, ask):
    rows = [{f"a_column_with_a_rather_long_name_{i}": f"text {i}" for i in range(300)}]
    with pytest.raises(ValueError, match="and 288 more") as caught:
        load_prompts(write_rows(tmp_path / "m.jsonl", rows), **ask)
    assert len(str(caught.value)) < 1500


def test_harmless_prompts_come_from_beside(tmp_path):
    bad = write_rows(tmp_path / "bad.csv", [{"wish": BAD, "category": "x"}])
    good = write_rows(tmp_path / "good.csv", [{"wish": MILD, "category": "y"}])
    both = load_prompts(bad, column="wish", harmless=good)
    assert (both.harmful, both.harmless, both.paired) == ((BAD,), (MILD,), False)
    assert (both.categories, both.harmless_categories) == (("x",), ("y",))
    assert "bad.csv" in both.source
    assert "good.csv" in both.source
    assert load_prompts([BAD], harmless=[MILD]).harmless == (MILD,)
    assert len(load_prompts([BAD], harmless="builtin").harmless) == 80
    labelled = write_rows(tmp_path / "l.csv", [*two("label", "unsafe", "safe")])
    assert load_prompts([BAD], harmless=labelled).harmless == (MILD,)
    mild = write_rows(tmp_path / "s.csv", [{"prompt": MILD, "label": "safe"}])
    assert load_prompts([BAD], harmless=mild).harmless == (MILD,)
    with pytest.raises(ValueError, match=r"every row harmless.*harmless="):
        load_prompts(mild)
    with pytest.raises(ValueError, match="calls every row harmful"):
        load_prompts([BAD], harmless=write_rows(tmp_path / "w.csv", [{"harmful": BAD}]))
    with pytest.raises(ValueError, match="1 harmless prompts already"):
        load_prompts(labelled, harmless=mild)
    with pytest.raises(FileNotFoundError, match="gone"):
        load_prompts([BAD], harmless=tmp_path / "gone.csv")


@given(
    name=st.sampled_from(["safe", "harmless", "benign", "harmful", "toxic", "unsafe"]),
    dress=st.sampled_from(["{}", "is_{}", "prompt_is_{}", "{}_label", "is-{}", "{} prompt"]),
    negated=st.booleans(),
)
def test_a_negation_turns_a_name_around(name, dress, negated):
    asked = dress.format(("not_" if negated else "") + name)
    assert side_of(asked) is ((name in ("harmful", "toxic", "unsafe")) != negated)


@given(st.lists(st.booleans(), min_size=1, max_size=8).filter(any))
def test_every_row_keeps_its_side_whatever_the_label_is_called(tmp_path_factory, harmful):
    rows = [{"prompt": f"text {i}", "is_safe": not side} for i, side in enumerate(harmful)]
    file = tmp_path_factory.mktemp("sides") / "m.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    found = load_prompts(file)
    assert found.harmful == tuple(f"text {i}" for i, side in enumerate(harmful) if side)
    assert found.harmless == tuple(f"text {i}" for i, side in enumerate(harmful) if not side)


def test_words_of_names():
    assert words_of("isSafe") == words_of("is_safe") == words_of("Is safe?") == ["is", "safe"]
