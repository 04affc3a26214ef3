import re
from collections import Counter

import pytest

from safetyheads.prompts import PromptSet, load_prompts
from tests.prompts.making import SECRET


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
