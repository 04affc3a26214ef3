"""Heads are named one way, and scores survive the way to disk and back byte for byte."""

import json

import pytest
import torch

from safetyheads.heads import COLUMNS, Head, HeadScores
from safetyheads.storage.files import writable_folder


def scores(values, **options):
    options = {"ablation": "zero", "metric": "ships", "unit": "nat", "per_prompt": None, **options}
    return HeadScores(torch.tensor(values), **options)


@pytest.mark.parametrize(
    "text", ["L3H7", " L3H7\n", "3-7", (3, 7), Head(3, 7), "L03H007"], ids=repr
)
def test_every_way_to_write_a_head_is_read(text):
    head = Head.parse(text)
    assert head == Head(layer=3, head=7)
    assert isinstance(head, Head)
    assert str(head) == "L3H7"
    assert Head.parse(str(head)) == head


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3",
        "L3",
        "H7",
        "H7L3",
        "L3H7H",
        "L-1H2",
        "3-7-1",
        "-1-2",
        "3,7",
        "l3h7",
        (3, -7),
        (-1, 0),
    ],
    ids=repr,
)
def test_anything_else_is_refused_with_the_ways_to_write_it(text):
    with pytest.raises(
        ValueError, match=r"does not name a head; write L3H7, 3-7 or \(3, 7\)"
    ) as error:
        Head.parse(text)
    assert repr(text) in str(error.value)


def test_the_table_has_a_row_a_head_best_first():
    table = scores([[0.5, 3.0, 1.0], [2.0, -1.0, 0.0]]).to_frame()
    assert list(table.columns) == COLUMNS
    assert table["label"].tolist() == ["L0H1", "L1H0", "L0H2", "L0H0", "L1H2", "L1H1"]
    assert table["score"].tolist() == [3.0, 2.0, 1.0, 0.5, 0.0, -1.0]
    assert table["rank"].tolist() == [1, 2, 3, 4, 5, 6]
    assert table["layer"].tolist() == [0, 1, 0, 0, 1, 1]
    assert table["head"].tolist() == [1, 0, 2, 0, 2, 1]
    assert set(table["ablation"]) == {"zero"}
    assert set(table["metric"]) == {"ships"}
    assert set(table["unit"]) == {"nat"}
    assert table.index.tolist() == list(range(6))


def test_a_signed_metric_ranks_its_most_negative_score_first():
    shifts = scores([[0.5, -3.0], [2.0, -1.0]], largest_first=False)
    assert shifts.to_frame()["label"].tolist() == ["L0H1", "L1H1", "L0H0", "L1H0"]
    assert shifts.ranks.tolist() == [[3, 1], [4, 2]]


@pytest.mark.parametrize("largest_first", [True, False])
def test_ties_rank_in_the_order_of_layer_and_head(largest_first):
    tied = scores([[1.0] * 7] * 9, largest_first=largest_first)
    assert tied.ranks.tolist() == [[7 * la + he + 1 for he in range(7)] for la in range(9)]
    assert tied.top(8)["label"].tolist()[-2:] == ["L0H6", "L1H0"]


def test_top_gives_the_first_rows_and_knows_its_bounds():
    four = scores([[0.0, 3.0], [2.0, 1.0]])
    assert four.top(2)["label"].tolist() == ["L0H1", "L1H0"]
    assert len(four.top(4)) == 4
    for k in (0, -1, 5):
        with pytest.raises(ValueError, match=f"k is {k}; ask for between 1 and 4 heads"):
            four.top(k)


def test_score_reads_one_head_and_refuses_one_that_is_not_there():
    six = scores([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])
    assert (
        six.score("L1H2") == six.score("1-2") == six.score((1, 2)) == six.score(Head(1, 2)) == 5.0
    )
    for head in ("L2H0", "L0H3"):
        with pytest.raises(
            ValueError, match=f"{head} is not in this model: .*layers 0-1 and heads 0-2"
        ):
            six.score(head)


@pytest.mark.parametrize("whole", [True, False], ids=["per-prompt", "readings"])
def test_saved_scores_come_back_byte_for_byte(tmp_path, whole):
    torch.manual_seed(0)
    per_prompt = torch.randn(5, 2, 3).permute(
        1, 2, 0
    )  # not contiguous, as slices of a sweep may be
    first = HeadScores(
        values=per_prompt.mean(-1),
        per_prompt=per_prompt if whole else None,
        readings=None if whole else torch.randn(2, 3, 3, 4, 4, dtype=torch.float64),
        ablation="undifferentiated_attention",
        metric="refusal_shift",
        unit="nat",
        largest_first=False,
        provenance={
            "model": {"name": "é", "revision": None},
            "rows": 64,
            "epsilon": 1e-5,
            "b": [1, "x"],
        },
    )
    folder = first.save(tmp_path / "deep" / "er")
    names = sorted(p.name for p in folder.iterdir())
    assert names[0] == "record.json"
    assert [name[:8] for name in names[1:]] == ["tensors-"]
    second = HeadScores.load(str(folder))
    for name in ("values", "per_prompt", "readings"):
        before, after = getattr(first, name), getattr(second, name)
        assert (before is None) == (after is None)
        if before is not None:
            assert before.dtype == after.dtype
            assert before.numpy().tobytes() == after.numpy().tobytes()
    assert second.provenance == first.provenance
    assert (second.ablation, second.metric, second.unit, second.largest_first) == (
        "undifferentiated_attention",
        "refusal_shift",
        "nat",
        False,
    )
    again = second.save(tmp_path / "again")
    for name in names:
        assert (folder / name).read_bytes() == (again / name).read_bytes()


def test_the_record_is_plain_json_with_a_newline(tmp_path):
    text = (scores([[1.0]], provenance={"z": 1, "a": 2}).save(tmp_path) / "record.json").read_text()
    assert text.endswith("}\n")
    assert json.loads(text)["values"]["provenance"] == {"z": 1, "a": 2}


def test_a_folder_that_cannot_be_written_is_said_before_any_work(tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    for folder in (file, file / "below"):
        with pytest.raises(PermissionError, match=r"cannot write in .*file.*name another folder"):
            writable_folder(folder)
    with pytest.raises(PermissionError):
        scores([[1.0]]).save(file / "below")
    assert file.read_text() == "x"


def test_a_writable_folder_is_made_and_left_empty(tmp_path):
    folder = writable_folder(str(tmp_path / "a" / "b"))
    assert folder == tmp_path / "a" / "b"
    assert list(folder.iterdir()) == []


def test_heads_at_the_other_end_are_shown_with_their_sign():
    values = torch.tensor([[-2.0, 0.5, 0.0], [3.0, -1.0, 1.0]])
    shift = HeadScores(values, None, "zero", "refusal_shift", "nat", largest_first=False)
    found = shift.opposing(2)
    assert found["label"].tolist() == ["L1H0", "L1H2"]
    assert found["rank"].tolist() == [1, 2]
    assert found["score"].tolist() == [3.0, 1.0]
    assert len(shift.opposing()) == 3
    with pytest.raises(ValueError, match="ships is never negative, so that no head opposes"):
        HeadScores(values.abs(), None, "zero", "ships", "nat").opposing()
