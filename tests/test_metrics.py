"""Distances between outputs, against independent float64 arithmetic and numpy's own decompositions."""

import json
import math

import numpy
import pytest
import torch

from safetyheads import metrics
from safetyheads.interventions.ablations import describe
from safetyheads.metrics import (
    GeneralizedShips,
    LastToken,
    Metric,
    RefusalShift,
    Ships,
    feature0_angle,
    kl_divergence,
    left_angle,
    principal_angles,
    refusal_log_odds,
    refusal_tokens,
    right_angle,
)
from tests.zoo import RAGGED, tokenizer


def log_probs(*logits):
    return torch.tensor(logits, dtype=torch.float32).log_softmax(-1)


# KL -------------------------------------------------------------------------------------------------------------------


def test_kl_is_the_textbook_sum():
    generator = numpy.random.default_rng(0)
    p, q = generator.dirichlet(numpy.full(50, 0.3), 4), generator.dirichlet(numpy.full(50, 2.0), 4)
    expected = [
        math.fsum(a * math.log(a / b) for a, b in zip(x, y, strict=True) if a)
        for x, y in zip(p, q, strict=True)
    ]
    got = kl_divergence(torch.tensor(p).log(), torch.tensor(q).log())
    assert min(expected) > 0.1
    assert got.tolist() == pytest.approx(expected, abs=1e-12)
    swapped = kl_divergence(torch.tensor(q).log(), torch.tensor(p).log())
    assert (got - swapped).abs().min() > 1e-3  # the direction matters


def test_a_distribution_is_at_distance_zero_from_itself():
    p = log_probs([3.0, -2.0, 0.5, 40.0], [0.0, 0.0, 0.0, 0.0])
    assert kl_divergence(p, p).tolist() == [0.0, 0.0]


def test_kl_never_goes_below_zero_by_rounding():
    torch.manual_seed(0)
    logits = 5 * torch.randn(200, 1000)
    noisy = logits * (1 + 1e-7)
    assert kl_divergence(logits.log_softmax(-1), noisy.log_softmax(-1)).min() >= 0


def test_a_token_that_the_model_rules_out_adds_nothing():
    p = log_probs([1.0, -math.inf, 0.0])
    q = log_probs([0.0, -math.inf, 1.0])
    short = kl_divergence(log_probs([1.0, 0.0]), log_probs([0.0, 1.0]))
    assert kl_divergence(p, q).item() == pytest.approx(short.item(), abs=1e-7)
    assert kl_divergence(p, log_probs([1.0, 5.0, 0.0])).isfinite().all()
    assert kl_divergence(log_probs([1.0, 0.0, 0.0]), p).item() == math.inf


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str
)
def test_log_probs_are_float64_whatever_the_weights_are(dtype):
    state = torch.tensor([[1.0, 2.0, -300.0]], dtype=dtype)
    read = LastToken(state, lambda x: x * 2).log_probs
    assert read.dtype == torch.float64
    assert torch.equal(read, (state.double() * 2).log_softmax(-1))
    assert read.exp().sum().item() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("block", [metrics.BLOCK, 70_000])
def test_small_scores_over_a_large_vocabulary_have_the_digits_of_their_logits(block, monkeypatch):
    """In float32 the normalising constants alone are off by more than these heads do."""
    monkeypatch.setattr(metrics, "BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    base = 4 * torch.randn(3, 150_000, generator=generator)
    ablated = base.repeat(2, 1) + 1e-3 * torch.randn(6, 150_000, generator=generator)
    exact = kl_divergence(
        base.double().log_softmax(-1).repeat(2, 1), ablated.double().log_softmax(-1)
    )
    in_float32 = kl_divergence(base.log_softmax(-1).repeat(2, 1), ablated.log_softmax(-1))
    before, after = LastToken(base, lambda x: x), LastToken(ablated, lambda x: x)
    got = Ships().read(after, before.repeated(2))
    assert (exact < 1e-6).all()
    assert (in_float32 / exact - 1).abs().max() > 0.1
    assert torch.allclose(got.double(), exact, rtol=1e-6, atol=0)
    shift = RefusalShift(tokens=(3, 5))
    expected = refusal_log_odds(ablated, (3, 5)) - refusal_log_odds(base.repeat(2, 1), (3, 5))
    assert torch.allclose(shift.read(after, before.repeated(2)).double(), expected, atol=1e-7)


def test_log_probs_are_computed_once():
    calls = []
    token = LastToken(torch.ones(1, 3), lambda x: calls.append(1) or x)
    assert token.log_probs is token.log_probs
    assert calls == [1]


def test_ships_is_the_mean_over_prompts_of_the_kl():
    base = LastToken(torch.randn(3, 8), lambda x: x)
    other = LastToken(torch.randn(3, 8), lambda x: x)
    rows = Ships().read(other, base)
    assert torch.equal(rows, kl_divergence(base.log_probs, other.log_probs).float())
    values, per_prompt = Ships().score(torch.stack([rows, rows * 2]))
    assert torch.allclose(values, torch.stack([rows.mean(), 2 * rows.mean()]))
    assert torch.equal(per_prompt[1], rows * 2)


# Angles ---------------------------------------------------------------------------------------------------------------


def turned(*degrees, dim=7, seed=0):
    """Two orthonormal bases whose principal angles are known, in a random frame."""
    frame = numpy.linalg.qr(numpy.random.default_rng(seed).normal(size=(dim, dim)))[0]
    first = frame[:, : len(degrees)]
    other = frame[:, len(degrees) : 2 * len(degrees)]
    angles = numpy.radians(degrees)
    second = first * numpy.cos(angles) + other * numpy.sin(angles)
    mix = numpy.linalg.qr(numpy.random.default_rng(seed + 1).normal(size=(len(degrees),) * 2))[0]
    return torch.tensor(first.copy()), torch.tensor(second @ mix)


@pytest.mark.parametrize(
    "degrees",
    [
        (0.0,),
        (1e-6,),
        (1e-3,),
        (30.0,),
        (89.9999,),
        (90.0,),
        (1e-6, 90.0),
        (0.5, 60.0),
        (45.0, 45.0),
    ],
    ids=str,
)
def test_principal_angles_of_known_rotations(degrees):
    got = principal_angles(*turned(*degrees))
    assert got.tolist() == pytest.approx(sorted(degrees), abs=1e-8)
    assert principal_angles(*reversed(turned(*degrees))).tolist() == pytest.approx(
        sorted(degrees), abs=1e-8
    )


def test_principal_angles_take_a_batch_and_ignore_signs():
    first, second = turned(20.0, 70.0)
    batch = principal_angles(torch.stack([first, first]), torch.stack([second, -second]))
    assert batch.shape == (2, 2)
    assert torch.allclose(batch, torch.tensor([20.0, 70.0], dtype=torch.float64).expand(2, 2))


def grams(base, ablated):
    base, ablated = torch.tensor(base)[None], torch.tensor(ablated)[None]
    return base @ base.mT, base @ ablated.mT, ablated @ ablated.mT


def svd_angles(first, second):
    """Principal angles by numpy alone, through sines, which keep small angles."""
    residue = second - first @ (first.T @ second)
    return numpy.degrees(
        numpy.arcsin(numpy.clip(numpy.linalg.svd(residue, compute_uv=False), 0, 1))
    )


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("shake", [1e-4, 0.3, 3.0])
def test_left_and_right_angles_are_those_of_numpys_singular_vectors(rank, shake):
    generator = numpy.random.default_rng(1)
    base = generator.normal(size=(5, 11)) * [[3.0]] + 1.0
    ablated = base + shake * generator.normal(size=(5, 11))
    (u0, _, v0), (u1, _, v1) = (numpy.linalg.svd(m, full_matrices=False) for m in (base, ablated))
    left = svd_angles(u0[:, :rank], u1[:, :rank]).sum()
    right = svd_angles(v0[:rank].T, v1[:rank].T).sum()
    assert min(left, right) > 1e-4
    assert left_angle(*grams(base, ablated), rank).item() == pytest.approx(left, rel=1e-4)
    assert right_angle(*grams(base, ablated), rank).item() == pytest.approx(
        right, rel=1e-4, abs=1e-5
    )


def test_a_planted_left_angle_is_found_where_the_right_one_is_zero():
    prompts, features = turned(25.0, dim=6), torch.eye(9, dtype=torch.float64)[:, :1]
    base, ablated = (4.0 * (u @ features.T) for u in prompts)
    args = grams(base.numpy(), ablated.numpy())
    assert left_angle(*args, 1).item() == pytest.approx(25.0, abs=1e-5)
    assert right_angle(*args, 1).item() == pytest.approx(0.0, abs=1e-5)


def test_a_planted_right_angle_is_found_where_the_left_one_is_zero():
    prompts, features = torch.ones(4, 1, dtype=torch.float64) / 2, turned(70.0, dim=9)
    base, ablated = (2.0 * (prompts @ v.T) for v in features)
    args = grams(base.numpy(), ablated.numpy())
    assert left_angle(*args, 1).item() == pytest.approx(0.0, abs=1e-5)
    assert right_angle(*args, 1).item() == pytest.approx(70.0, abs=1e-5)


@pytest.mark.parametrize("space", ["left", "right", "feature0"])
def test_an_ablation_that_changes_nothing_turns_nothing(space):
    base = torch.tensor(numpy.random.default_rng(2).normal(size=(4, 9)))
    metric = GeneralizedShips(space)
    states = LastToken(base, lambda x: x)
    rows = metric.read(states, states)
    values, per_prompt = metric.score(metric.gather(rows[None], rows))
    assert per_prompt is None
    assert values.item() == pytest.approx(0.0, abs=2e-5)


def test_feature0_is_the_angle_between_the_first_columns_and_sees_no_others():
    generator = numpy.random.default_rng(3)
    base, ablated = generator.normal(size=(2, 6, 9))
    cosine = (
        base[:, 0]
        @ ablated[:, 0]
        / numpy.linalg.norm(base[:, 0])
        / numpy.linalg.norm(ablated[:, 0])
    )
    expected = numpy.degrees(numpy.arccos(abs(cosine)))
    metric = GeneralizedShips("feature0")
    base_states, states = (LastToken(torch.tensor(m), lambda x: x) for m in (base, ablated))
    rows = metric.read(states, base_states)
    assert rows.shape == (6, 1)
    values, _ = metric.score(metric.gather(rows[None], metric.read(base_states, base_states)))
    assert values.item() == pytest.approx(expected, abs=1e-4)
    args = grams(base[:, :1], ablated[:, :1])
    assert feature0_angle(*args, 1).item() == pytest.approx(expected, abs=1e-4)


def test_generalized_ships_keeps_float32_states_small_angles():
    base = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    metric = GeneralizedShips("left")
    moved = base.clone()
    moved[0] *= 1 + 1e-6
    values, _ = metric.score(metric.gather(torch.stack([base, moved]), base))
    assert values[0] < 1e-5 < values[1] < 1e-3


@pytest.mark.parametrize(
    ("metric", "prompts", "needed"),
    [
        (GeneralizedShips("left"), 1, 2),
        (GeneralizedShips("feature0"), 1, 2),
        (GeneralizedShips("left", rank=3), 3, 4),
        (GeneralizedShips("right", rank=4), 3, 4),
    ],
    ids=str,
)
def test_more_vectors_than_prompts_can_give_is_refused(metric, prompts, needed):
    with pytest.raises(
        ValueError, match=f"needs at least {needed} prompts, and there are {prompts}; give more"
    ):
        metric.prepare(None, ["x"] * prompts)
    assert metric.prepare(None, ["x"] * needed) is metric


def test_generalized_ships_refuses_an_unknown_space_and_rank_zero():
    with pytest.raises(ValueError, match="space is 'top'; it must be one of left, right, feature0"):
        GeneralizedShips("top")
    with pytest.raises(ValueError, match="rank is 0; it must be at least 1"):
        GeneralizedShips(rank=0)


def test_names_tell_the_definitions_apart():
    metrics = [
        GeneralizedShips(),
        GeneralizedShips(rank=2),
        GeneralizedShips("right"),
        GeneralizedShips("feature0"),
        Ships(),
    ]
    assert len({m.name for m in metrics}) == 5
    assert [m.unit for m in metrics] == ["deg"] * 4 + ["nat"]


# Refusal --------------------------------------------------------------------------------------------------------------


def test_log_odds_of_an_even_chance_are_zero():
    even = torch.tensor([0.2, 0.3, 0.4, 0.1]).log()
    assert refusal_log_odds(even, [0, 1]).item() == pytest.approx(0.0, abs=1e-6)


def test_log_odds_are_the_published_formula():
    p = torch.tensor([[0.2, 0.3, 0.5], [0.7, 0.2, 0.1]], dtype=torch.float64)
    refusal = p[:, [0, 2]].sum(-1)
    expected = refusal.log() - (1 - refusal).log()
    assert torch.allclose(refusal_log_odds(p.log(), [0, 2]), expected, atol=1e-12)


def test_log_odds_grow_with_the_refusal_logit():
    logits = torch.zeros(41, 6)
    logits[:, 2] = torch.linspace(-200, 200, 41)
    odds = refusal_log_odds(logits.log_softmax(-1), [2])
    assert odds.isfinite().all()  # where float32 probabilities are 0 and 1
    assert (odds.diff() > 0).all()
    assert torch.allclose(odds, logits[:, 2].double() - math.log(5), atol=1e-4)


def test_refusal_shift_has_a_sign():
    metric = RefusalShift(tokens=(0,))
    base, less = (LastToken(torch.tensor([[x, 0.0, 0.0]]), lambda x: x) for x in (1.0, -1.0))
    assert metric.read(less, base).item() == pytest.approx(-2.0, abs=1e-6)
    assert metric.read(base, less).item() == pytest.approx(2.0, abs=1e-6)
    assert metric.read(base, base).item() == 0.0
    assert not metric.largest_first


def in_memory(vocab, pre, decoder=None):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(
        models.Unigram([(piece, -float(len(vocab) - n)) for n, piece in enumerate(vocab)], unk_id=0)
    )
    if pre is not None:
        made.pre_tokenizer = pre
    if decoder is not None:
        made.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


def letters():
    return [chr(n) for n in range(ord("a"), ord("z") + 1)]


def spaced(*pieces):
    """A tokenizer that writes a space as a mark in front of a word, as Llama's and GPT-2's do."""
    from tokenizers import decoders, pre_tokenizers

    pre = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never")
    return in_memory(
        ["<unk>", *letters(), "▁", ":", *pieces],
        pre,
        decoders.Metaspace(replacement="▁", prepend_scheme="never"),
    )


def test_refusal_tokens_are_found_with_and_without_a_space():
    both = spaced("I", "▁I", "Sorry")
    pieces = both.convert_ids_to_tokens(refusal_tokens(both, ["I", "Sorry"], "do it:"))
    assert sorted(pieces) == ["I", "Sorry", "▁I"]


def test_a_word_without_a_spaced_token_is_found_once():
    only = spaced("I")
    assert only.convert_ids_to_tokens(refusal_tokens(only, ["I"], "do it:")) == ["I"]


def test_an_opening_of_several_tokens_is_left_out():
    some = spaced("I", "▁A")
    assert some.convert_ids_to_tokens(refusal_tokens(some, ["I", "As"], "do it:")) == ["I"]


def test_no_opening_found_says_what_to_give_instead():
    with pytest.raises(
        ValueError, match=r"none of the refusal openings \['I', 'As'\] is a single token"
    ) as error:
        refusal_tokens(spaced(), ["I", "As"], "do it:")
    assert "RefusalShift(tokens=...)" in str(error.value)


def test_refusal_shift_reads_its_tokens_off_the_tokenizer_unless_given():
    prepared = RefusalShift().prepare(tokenizer(), RAGGED)
    assert prepared.tokens == (3, 4, 5)
    by_hand = RefusalShift(tokens=(7,))
    assert by_hand.prepare(tokenizer(), RAGGED) is by_hand


@pytest.mark.parametrize(
    "metric",
    [Ships(), RefusalShift(), RefusalShift(tokens=(1, 2)), GeneralizedShips("right", 2)],
    ids=str,
)
def test_a_metric_is_a_frozen_value_that_describes_itself_in_json(metric):
    assert isinstance(metric, Metric)
    assert json.loads(json.dumps(describe(metric)))["name"] == metric.name
    assert hash(metric) == hash(type(metric)(**vars(metric)))


@pytest.mark.parametrize("space", ["left", "right"])
def test_a_rank_beyond_what_the_states_span_is_refused(space):
    state = torch.tensor([[1.0, 2.0, 3.0]])
    base = state.repeat(4, 1)
    metric = GeneralizedShips(space, rank=2)
    with pytest.raises(ValueError, match="fewer than 2 directions"):
        metric.score(metric.gather(base[None], base))


def test_refusal_tokens_outside_the_vocabulary_are_refused():
    with pytest.raises(ValueError, match="vocabulary of 3"):
        refusal_log_odds(torch.zeros(1, 3).log_softmax(-1), [3])


def test_feature0_takes_no_rank():
    with pytest.raises(ValueError, match="takes no rank"):
        GeneralizedShips("feature0", rank=2)
