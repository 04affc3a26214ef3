"""Are generated answers those of one prompt at a time without a cache?"""

import contextlib
import math
from dataclasses import replace

import pytest
import torch

from safetyheads.heads import Head
from safetyheads.interventions.ablating import AblateHeads
from safetyheads.interventions.ablations import ScalingContribution, UndifferentiatedAttention
from safetyheads.models.opening import load_model
from safetyheads.probes.behaviour.generation import Decoding, after_prefix, generate
from safetyheads.prompts import tokenize
from tests.zoo import CONFIGS, RAGGED, opened, random_model, sentence, tokenizer

HEADS = (Head(0, 1), Head(2, 3), Head(2, 4))
INTERVENTIONS = {
    "untouched": None,
    "undifferentiated": AblateHeads(HEADS, UndifferentiatedAttention()),
    "scaling": AblateHeads(HEADS, ScalingContribution()),
}
RAGGED_MORE = [
    *RAGGED[:2],
    sentence(20, 21),
    sentence(10, 11, 12, 13, 60, 61, 70, 71, 72, 73, 74, 75),
]
"""The last two share no word, and many, with the others; the first token of all is BOS."""


@pytest.fixture(scope="module", params=list(CONFIGS))
def model(request):
    return opened(request.param, spread=0.5)


@pytest.fixture(scope="module")
def llama():
    return opened("llama", spread=0.5)


@torch.inference_mode()
def answer_slowly(model, ids, max_new_tokens, choose=lambda logits: int(logits.argmax())):
    """One prompt, the whole sequence computed anew for every token: no cache, no padding, no batch."""
    made = []
    for _ in range(max_new_tokens):
        token = choose(model.logits(torch.tensor([[*ids, *made]]))[0, -1])
        if token in model.end_tokens:
            return tuple(made), True
        made.append(token)
    return tuple(made), False


def rows_of(batch):
    return [row[:n].tolist() for row, n in zip(batch.ids, batch.lengths, strict=True)]


def compare_with_slow_answers(model, texts, kind, rows=3):
    batch = tokenize(texts, model.tokenizer)
    with INTERVENTIONS[kind].active(model) if INTERVENTIONS[kind] else contextlib.nullcontext():
        made = generate(model, batch, Decoding(6), rows=rows)
        slow = [answer_slowly(model, row, 6) for row in rows_of(batch)]
    assert list(zip(made.tokens, made.ended, strict=True)) == slow


@pytest.mark.parametrize("kind", ["untouched", "undifferentiated"])
def test_batched_answers_with_a_cache_are_those_of_one_prompt_without(model, kind):
    compare_with_slow_answers(model, RAGGED_MORE, kind)


@pytest.mark.parametrize(
    "texts", [RAGGED[:1], RAGGED[:1] * 3, RAGGED_MORE], ids=["one", "equal", "ragged"]
)
def test_so_they_are_for_one_prompt_equal_prompts_and_scaled_heads(llama, texts):
    compare_with_slow_answers(llama, texts, "scaling", rows=8)


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["untouched", "undifferentiated"])
def test_logits_with_a_cache_are_those_of_the_whole_sequence_without(model, kind):
    batch = tokenize(RAGGED_MORE, model.tokenizer)
    sequences = rows_of(batch)
    continuation = torch.arange(6, 6 + 3 * len(sequences)).reshape(3, -1)
    with INTERVENTIONS[kind].active(model) if INTERVENTIONS[kind] else contextlib.nullcontext():
        cache, ids, real = after_prefix(model, batch)
        for following in continuation:
            ours = model.next_logits(ids, real, cache)
            slow = torch.stack([model.logits(torch.tensor([row]))[0, -1] for row in sequences])
            torch.testing.assert_close(ours, slow, atol=2e-5, rtol=1e-5)
            ids, real = following[:, None], torch.nn.functional.pad(real, (0, 1), value=True)
            sequences = [[*row, int(n)] for row, n in zip(sequences, following, strict=True)]
    plain = torch.stack([model.logits(torch.tensor([row[:-1]]))[0, -1] for row in sequences])
    if kind != "untouched":  # the comparison is not vacuous: the heads matter
        assert (plain - slow).abs().max() > 1e-3


def test_rows_that_have_ended_leave_and_the_others_go_on(llama):
    batch = tokenize(RAGGED_MORE, llama.tokenizer)
    free = generate(llama, batch, Decoding(9))
    ends = free.tokens[0][3]
    llama.hf.generation_config.eos_token_id = [2, ends]
    try:
        made = generate(llama, batch, Decoding(9))
        slow = [answer_slowly(llama, row, 9) for row in rows_of(batch)]
    finally:
        llama.hf.generation_config.eos_token_id = 2
    assert list(zip(made.tokens, made.ended, strict=True)) == slow
    assert made.ended[0]
    assert made.tokens[0] == free.tokens[0][: free.tokens[0].index(ends)]
    assert not all(made.ended)


def test_sampling_depends_on_the_seed_and_not_on_the_batch(llama):
    batch = tokenize(RAGGED_MORE, llama.tokenizer)
    hot = Decoding(9, top_k=5, temperature=2.0, seed=3)
    drawn = generate(llama, batch, hot).tokens
    assert generate(llama, batch, hot, rows=1).tokens == drawn
    assert generate(llama, batch, replace(hot, seed=4)).tokens != drawn
    likely = generate(llama, batch, replace(hot, top_k=1)).tokens
    assert likely == generate(llama, batch, Decoding(9)).tokens


def test_sampling_draws_from_the_k_most_likely_by_their_probability(llama):
    batch = tokenize(RAGGED[:1] * 600, llama.tokenizer)
    made = generate(llama, batch, Decoding(1, top_k=3), rows=600)
    best = llama.logits(batch.ids[:1])[0, -1].topk(3)
    drawn = torch.tensor([t[0] if t else 2 for t in made.tokens])
    shares = torch.stack([(drawn == token).double().mean() for token in best.indices])
    assert shares.sum() == 1
    torch.testing.assert_close(shares, best.values.double().softmax(-1), atol=0.07, rtol=0)


def test_refusal_log_odds_are_read_at_the_first_step(llama):
    batch = tokenize(RAGGED, llama.tokenizer)
    made = generate(llama, batch, Decoding(2), refusal=(3, 4))
    for row, odds in zip(rows_of(batch), made.refusal_log_odds, strict=True):
        p = llama.logits(torch.tensor([row]))[0, -1].double().softmax(-1)[[3, 4]].sum().item()
        assert odds == pytest.approx(math.log(p / (1 - p)), abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"top_k": 0}, "top_k is 0"),
        ({"temperature": 0}, "temperature is 0"),
        ({"temperature": math.nan}, "temperature is nan"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Decoding(**options)


def test_no_rows_are_refused(llama):
    with pytest.raises(ValueError, match="rows is 0"):
        generate(llama, tokenize(RAGGED, llama.tokenizer), rows=0)


def test_logits_that_are_not_finite_are_refused():
    broken = load_model(random_model(CONFIGS["llama"]()), tokenizer())
    broken.hf.get_output_embeddings().weight.data[:] = torch.nan
    with pytest.raises(ValueError, match="not finite; load the model in float32"):
        generate(broken, tokenize(RAGGED, broken.tokenizer))
