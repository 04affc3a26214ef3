"""Is the dress found where it is, and are prompts made as long as asked for?"""

import pytest

from safetyheads.prompts import (
    FILLER,
    ROLE_PLAY,
    Segment,
    find_segments,
    lengthen,
    shared_template,
    tokenize,
    typical_segments,
    wrap,
)
from tests.zoo import sentence, tokenizer


def chat_tokenizer():
    import copy

    chat = copy.deepcopy(tokenizer())
    chat.chat_template = "w90 w91 {% for m in messages %}{{ m['content'] }}{% endfor %} w92 w93 w94"
    return chat


def spans(segments):
    return [(part.name, part.start, part.stop) for part in segments]


def test_the_segments_of_a_chat_prompt():
    chat = chat_tokenizer()
    requests = [sentence(20, 21, 22), sentence(30, 31, 32, 33)]
    prompts = wrap(requests, "w6 w7 {q} w8")
    batch = tokenize(prompts, chat)
    first, second = find_segments(batch, prompts, chat)
    assert spans(first) == [
        ("system", 0, 3),  # with the BOS
        ("jailbreak template", 3, 5),
        ("user", 5, 8),
        ("jailbreak template", 8, 9),
        ("assistant header", 9, 12),
    ]
    assert second[-1] == Segment("assistant header", 10, 13)
    assert find_segments(batch, prompts, chat, requests) == [first, second]
    assert int(batch.lengths[1]) == 13


def test_plain_prompts_have_no_template():
    chat = chat_tokenizer()
    prompts = [sentence(20, 21), sentence(20, 22)]  # their common first word is no template
    batch = tokenize(prompts, chat)
    found = find_segments(batch, prompts, chat, prompts)
    assert spans(found[0]) == [("system", 0, 3), ("user", 3, 5), ("assistant header", 5, 8)]
    bare = tokenize(prompts, chat, "bare")
    assert spans(find_segments(bare, prompts, chat, prompts)[0]) == [
        ("system", 0, 1),
        ("user", 1, 3),
    ]


def test_a_slow_tokenizer_gives_no_segments():
    class Slow:
        is_fast = False

    prompts = [sentence(20, 21)]
    assert find_segments(tokenize(prompts, tokenizer()), prompts, Slow()) == [()]


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        (["one two"], (0, 0)),
        (["same", "same"], (0, 0)),
        (["say A now", "say B now"], (4, 4)),
        (["sailor", "sail"], (0, 0)),
        (["a b", "a b c"], (2, 0)),
    ],
)
def test_what_prompts_share_is_whole_words(prompts, expected):
    assert shared_template(prompts) == expected


def test_typical_segments_are_medians_of_the_commonest_kind():
    def parts(stop):
        return (Segment("system", 0, 4), Segment("user", 4, stop))

    odd = (Segment("user", 0, 50),)
    assert typical_segments([parts(6), odd, parts(9), parts(7), ()]) == parts(7)
    assert typical_segments([parts(9)], length=6) == parts(6)
    assert typical_segments([parts(9)], length=4) == (Segment("system", 0, 4),)
    assert typical_segments([(), ()]) == ()


@pytest.mark.parametrize("template", ["chat", "bare"])
def test_prompts_get_as_long_as_asked_for(template):
    chat, requests = chat_tokenizer(), [sentence(20, 21), sentence(*range(30, 60))]
    longer = lengthen(requests, [25, 11], chat, template)
    assert tokenize(longer[:1], chat, template).lengths.tolist() == [25]
    assert longer[0].endswith(requests[0])
    assert longer[1] == requests[1]  # it is longer already
    many = lengthen(requests[:1], [2000], chat, template)
    assert tokenize(many, chat, template).lengths.tolist() == [2000]


def test_what_cannot_be_dressed_is_refused():
    with pytest.raises(ValueError, match="where the request goes"):
        wrap(["w7"], "no place")
    with pytest.raises(ValueError, match="filler is empty"):
        lengthen(["w7"], [9], tokenizer(), filler=" ")
    with pytest.raises(ValueError, match="2 lengths for 1 requests"):
        lengthen(["w7"], [9, 9], tokenizer())


def test_the_shipped_texts_are_long_enough_and_hold_one_request():
    assert ROLE_PLAY.count("{q}") == 1
    assert len(ROLE_PLAY.split()) > 150
    assert len(FILLER.split()) > 300
    assert "{" not in FILLER
