"""Are the built-in pairs matched, and their own?"""

import re
from collections import Counter

import pytest

from safetyheads.prompts import DATASETS, load_prompts
from tests.prompts.making import SHARED

needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason=f"the benchmark files are not at {SHARED}"
)


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
