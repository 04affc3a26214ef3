"""Does the divergence see attention rather than length or chance?"""

import copy
import random

import pytest
import torch

from safetyheads.models.opening import load_model
from safetyheads.probes.attention import divergence
from safetyheads.probes.attention.divergence import attention_divergence
from tests.probes.attention.plain import random_texts, stacked
from tests.zoo import CONFIGS, opened, random_model, sentence, tokenizer


@pytest.fixture(scope="module")
def llama():
    return opened("llama")


def test_only_length_differs_and_the_matched_comparison_sees_nothing(llama):
    short, long = random_texts(0, 20, 12, 16), random_texts(1, 20, 40, 50)
    found = attention_divergence(llama, short, long, n_permutations=300)
    table = found.table
    whole = table[table["head"].isna()].set_index(["comparison", "layer"])
    assert whole.loc["unmatched"]["p_value"].max() <= 0.02, "length alone must show there"
    assert whole.loc["matched"]["p_value"].min() > 0.02
    assert table[table["comparison"] == "matched"]["q_value"].min() > 0.05
    assert found.provenance["matched_length"] <= 17
    assert found.provenance["shared_start"] == 1


def test_another_order_at_the_same_length_is_seen(llama):
    draw = random.Random(0)
    few, many = [6, 7, 8], [60, 61, 62]
    ours, theirs = (
        [sentence(*draw.choices(first, k=7), *draw.choices(last, k=7)) for _ in range(12)]
        for first, last in ((few, many), (many, few))
    )
    found = attention_divergence(llama, ours, theirs, layers=[0, 2], n_permutations=200)
    matched = found.table[found.table["comparison"] == "matched"]
    assert matched[matched["head"].isna()]["p_value"].max() < 0.01
    assert set(matched["layer"]) == {0, 2}
    assert len(matched) == 2 * (6 + 1)
    best = found.top(3)
    assert best["head"].notna().all()
    assert (best["divergence"] > best["null_high"]).all()


def test_the_divergence_is_what_plain_passes_give():
    hf = random_model(CONFIGS["gpt2"]())
    plain = copy.deepcopy(hf)
    ours, theirs = random_texts(0, 3, 12, 12), random_texts(1, 4, 12, 12)
    found = attention_divergence(
        load_model(hf, tokenizer()), ours, theirs, layers=1, bins=4, n_permutations=20
    )
    groups = []
    for texts in (ours, theirs):
        # 13 tokens, the first of which (BOS) all share: queries 1 to 12, keys 0 to 12.
        pattern = stacked(plain, texts, 13)[:, 1].nan_to_num().mean(0)
        keys = [[k for k in range(13) if k * 4 // 13 == b] for b in range(4)]
        queries = [[1 + q for q in range(12) if q * 4 // 12 == b] for b in range(4)]
        groups.append(
            torch.stack([pattern[:, q][:, :, k].sum(-1).mean(1) for q in queries for k in keys], -1)
        )
    p, q = (g.unflatten(-1, (4, 4)) for g in groups)
    m = (p + q) / 2
    expected = ((p.xlogy(p) + q.xlogy(q) - (p + q).xlogy(m)).sum(-1) / 2).mean(-1)
    table = found.table
    for comparison in ("matched", "unmatched"):
        rows = table[(table["comparison"] == comparison)].sort_values("head", na_position="last")
        assert rows["divergence"].tolist()[:6] == pytest.approx(expected.tolist(), abs=1e-6)
        assert rows["divergence"].tolist()[6] == pytest.approx(expected.mean().item(), abs=1e-6)
    assert expected.max() > 1e-3


def test_p_values_are_uniform_where_nothing_differs():
    generator = torch.Generator().manual_seed(0)
    p = []
    for trial in range(200):
        sets = (torch.rand(n, 1, 2, 3, generator=generator) for n in (5, 7))
        ours, theirs = (s / s.sum(-1, keepdim=True) for s in sets)
        p.append(divergence._permute(ours, theirs, 99, trial).p_value[0].item())
    ordered = torch.tensor(p).sort().values
    gap = (ordered - torch.linspace(0.5 / 200, 1 - 0.5 / 200, 200)).abs().max()
    assert gap < 0.115  # Kolmogorov-Smirnov, p = 0.01
    same = torch.rand(6, 2, 2, 3, generator=generator)
    rare = torch.rand(40, 1, 1, 4, generator=generator) ** 20 + 1e-12  # no rounding below zero
    assert divergence._permute(rare[:20], rare[20:], 50, 0).null_high.isfinite().all()
    identical = divergence._permute(same[:3], same[:3], 50, 0)
    assert identical.divergence.max() < 1e-7
    assert identical.p_value.min() == 1


def test_a_seed_settles_the_null_and_labels_may_be_swapped(llama):
    ours, theirs = random_texts(0, 5, 12, 14), random_texts(1, 5, 12, 14)
    one, again, swapped = (
        attention_divergence(llama, *sets, layers=1, n_permutations=50).table
        for sets in ((ours, theirs), (ours, theirs), (theirs, ours))
    )
    assert one.equals(again)
    matched = [t[t["comparison"] == "matched"]["divergence"] for t in (one, swapped)]
    assert matched[0].tolist() == pytest.approx(matched[1].tolist(), abs=1e-6)


def test_too_few_tokens_to_compare_are_refused(llama):
    ours, theirs = random_texts(0, 4, 8, 8), random_texts(1, 4, 20, 20)
    with pytest.raises(ValueError, match="0 of the 4 benign prompts have 15 tokens before"):
        attention_divergence(llama, ours, theirs, length=15)
    same = [sentence(10, 11, 12, 13, 14, n) for n in (20, 21)]
    with pytest.raises(ValueError, match=r"share the first 6: nothing is left"):
        attention_divergence(llama, same, same, length=7)
    with pytest.raises(ValueError, match="bins is 1"):
        attention_divergence(llama, ours, theirs, bins=1)


def test_prompts_with_fewer_queries_than_groups_are_compared(llama):
    ours, theirs = random_texts(0, 4, 3, 5), random_texts(1, 4, 4, 9)
    table = attention_divergence(llama, ours, theirs, layers=0, n_permutations=20).table
    assert table["divergence"].notna().all()
    assert (table["divergence"] >= 0).all()
    assert (table["divergence"] < 0.7).all()
