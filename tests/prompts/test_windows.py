"""Are windows pieces of their texts, of one length, none twice?"""

import pytest

from safetyheads.prompts.windows import text_windows
from tests.zoo import sentence, tokenizer


def test_windows_are_drawn_out_of_texts():
    texts = [sentence(*range(start, start + 6)) for start in (10, 20, 30)]
    found = text_windows([*texts, *texts, sentence(40, 41)], tokenizer(), length=4)
    assert found.ids.shape == (len(found), 4)
    starts = found.ids[:, 0]
    assert ((starts % 10) <= 2).all()
    assert (found.ids == starts[:, None] + found.ids.new_tensor([0, 1, 2, 3])).all()
    assert len({tuple(row) for row in found.ids.tolist()}) == len(found) > 3
    assert list(found.texts) == [sentence(*row) for row in found.ids.tolist()]
    assert found.template == "bare"
    again, other = (text_windows(texts, tokenizer(), length=4, seed=seed) for seed in (0, 1))
    assert again.texts == text_windows(texts, tokenizer(), length=4).texts != other.texts
    assert len(text_windows(texts, tokenizer(), length=4, count=2)) == 2


class Stripping:
    """Characters for tokens, and a decoder that loses spaces at the ends."""

    def __call__(self, text, **_):
        return {"input_ids": [ord(letter) for letter in text]}

    def decode(self, ids):
        return "".join(map(chr, ids)).strip()


def test_a_window_that_is_not_read_back_is_left_out():
    with pytest.raises(ValueError, match="none of 2 texts has a window of 2 tokens"):
        text_windows([" a b", "c d "], Stripping(), length=2)
    assert text_windows([" a b", "cd"], Stripping(), length=2).texts == ("cd",)


def test_what_gives_no_windows_is_refused():
    with pytest.raises(ValueError, match="texts is one string"):
        text_windows(sentence(10, 11), tokenizer(), length=2)
    for asked in ({"length": 0}, {"count": 0}):
        with pytest.raises(ValueError, match="both must be at least 1"):
            text_windows([sentence(10, 11)], tokenizer(), **asked)
    with pytest.raises(ValueError, match="has a window of 3 tokens"):
        text_windows([sentence(10, 11)], tokenizer(), length=3)
