"""Are the lessons many, mild, matched, apart from what is measured, and the same on every machine?"""

import json
import re
from importlib import resources

import pytest

from safetyheads.training import lessons
from safetyheads.training.lessons import hash_of, read_lessons, read_refusals

GOALS = [f"goal {n}" for n in range(30)]


@pytest.fixture
def few(monkeypatch):
    """Lessons with made-up goals in the place of AdvBench's."""
    read = lessons._file
    known = "\n".join(map(hash_of, GOALS))
    monkeypatch.setattr(lessons, "_file", lambda n: known if n == "advbench.txt" else read(n))
    return read_lessons(GOALS)


def test_each_harmful_request_of_our_own_has_a_harmless_one_in_its_form(few):
    own = [one for one in few if one.kind == "own"]
    contrasts = [one for one in few if one.kind == "contrast"]
    assert len(own) > 400
    assert len(contrasts) >= len(own)
    openings = [{" ".join(one.prompt.split()[:2]) for one in some} for some in (own, contrasts)]
    assert len(openings[0] & openings[1]) > 0.85 * len(openings[0])
    kinds = {kind: sum(one.kind == kind for one in few) for kind in ("borderline", "everyday")}
    assert min(kinds.values()) > 100


def test_all_is_the_same_again_and_other_forms_with_another_seed(few):
    assert few == read_lessons(GOALS)
    other = read_lessons(GOALS, seed=1)
    assert few != other
    assert [one[1:] for one in few] == [one[1:] for one in other]  # what is held out stays so
    assert 0.05 < sum(one.held_out for one in few) / len(few) < 0.2
    assert len({one.prompt for one in few}) == len(few)


def test_a_topic_is_held_out_whole(few):
    rows = [
        json.loads(line) for line in lessons._file("requests.jsonl").splitlines() if '"to"' in line
    ]
    kept = {one.prompt for one in few if one.held_out}
    taught = {one.prompt for one in few if not one.held_out}
    for row in rows[:40]:
        texts = [row["harmful"], *row["harmless"]]
        inside = [any(text in prompt for prompt in kept) for text in texts]
        assert inside in ([True] * 3, [False] * 3)
        assert any(row["harmful"] in prompt for prompt in taught) != inside[0]


def test_goals_that_are_not_advbench_s_are_refused():
    with pytest.raises(ValueError, match=r"457 of the 457 goals .* not among the 30 given"):
        read_lessons(GOALS)


def test_no_request_is_to_be_both_refused_and_answered(few):
    assert not {one.prompt for one in few if one.harmful} & {
        one.prompt for one in few if not one.harmful
    }


def test_refusals_refuse():
    from safetyheads.judges import KeywordJudge

    said = read_refusals()
    assert len(set(said)) == len(said) >= 40
    assert set(KeywordJudge()([""] * len(said), said)) == {"refuse"}


def test_the_data_have_a_card():
    card = resources.files("safetyheads").joinpath("data", "README.md").read_text()
    rows = lessons._file("requests.jsonl").count("\n")
    assert re.search(rf"requests.jsonl` \| .*{rows} rows", card)
