"""Are generated answers those of one prompt at a time without a cache, and are they counted as they should be?"""

import contextlib
import math

import pytest
import torch

from safetyheads.heads import Head, HeadScores
from safetyheads.interventions.ablating import AblateHead, AblateHeads
from safetyheads.interventions.ablations import ScalingContribution, UndifferentiatedAttention
from safetyheads.judges import VERDICTS
from safetyheads.models.hooked import load_model
from safetyheads.probes.behaviour.answers import (
    Answer,
    Behaviour,
    _after_prefix,
    generate,
    measure_behaviour,
    random_heads,
    refusal_under_ablation,
)
from safetyheads.prompts import PromptSet, tokenize
from tests.zoo import CONFIGS, RAGGED, random_model, sentence, tokenizer

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
    return load_model(random_model(CONFIGS[request.param](), spread=0.5), tokenizer())


@pytest.fixture(scope="module")
def llama():
    return load_model(random_model(CONFIGS["llama"](), spread=0.5), tokenizer())


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
        made = generate(model, batch, max_new_tokens=6, rows=rows)
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
        cache, ids, real = _after_prefix(model, batch)
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
    free = generate(llama, batch, max_new_tokens=9)
    ends = free.tokens[0][3]
    llama.bridge.original_model.generation_config.eos_token_id = [2, ends]
    try:
        made = generate(llama, batch, max_new_tokens=9)
        slow = [answer_slowly(llama, row, 9) for row in rows_of(batch)]
    finally:
        llama.bridge.original_model.generation_config.eos_token_id = 2
    assert list(zip(made.tokens, made.ended, strict=True)) == slow
    assert made.ended[0]
    assert made.tokens[0] == free.tokens[0][: free.tokens[0].index(ends)]
    assert not all(made.ended)


def test_sampling_depends_on_the_seed_and_not_on_the_batch(llama):
    batch = tokenize(RAGGED_MORE, llama.tokenizer)
    options = {"max_new_tokens": 9, "top_k": 5, "temperature": 2.0}
    drawn = generate(llama, batch, **options, seed=3).tokens
    assert generate(llama, batch, **options, seed=3, rows=1).tokens == drawn
    assert generate(llama, batch, **options, seed=4).tokens != drawn
    assert (
        generate(llama, batch, **options | {"top_k": 1}).tokens
        == generate(llama, batch, max_new_tokens=9).tokens
    )


def test_sampling_draws_from_the_k_most_likely_by_their_probability(llama):
    batch = tokenize(RAGGED[:1] * 600, llama.tokenizer)
    made = generate(llama, batch, max_new_tokens=1, top_k=3, rows=600)
    best = llama.logits(batch.ids[:1])[0, -1].topk(3)
    drawn = torch.tensor([t[0] if t else 2 for t in made.tokens])
    shares = torch.stack([(drawn == token).double().mean() for token in best.indices])
    assert shares.sum() == 1
    torch.testing.assert_close(shares, best.values.double().softmax(-1), atol=0.07, rtol=0)


def test_refusal_log_odds_are_read_at_the_first_step(llama):
    batch = tokenize(RAGGED, llama.tokenizer)
    made = generate(llama, batch, max_new_tokens=2, refusal=(3, 4))
    for row, odds in zip(rows_of(batch), made.refusal_log_odds, strict=True):
        p = llama.logits(torch.tensor([row]))[0, -1].double().softmax(-1)[[3, 4]].sum().item()
        assert odds == pytest.approx(math.log(p / (1 - p)), abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"top_k": 0}, "top_k is 0"),
        ({"temperature": 0}, "temperature 0"),
        ({"rows": 0}, "rows is 0"),
    ],
)
def test_bad_settings_are_refused(llama, options, message):
    with pytest.raises(ValueError, match=message):
        generate(llama, tokenize(RAGGED, llama.tokenizer), **options)


def test_logits_that_are_not_finite_are_refused():
    broken = load_model(random_model(CONFIGS["llama"]()), tokenizer())
    broken.bridge.original_model.get_output_embeddings().weight.data[:] = torch.nan
    with pytest.raises(ValueError, match="not finite; load the model in float32"):
        generate(broken, tokenize(RAGGED, broken.tokenizer))


# --- measuring ---

PAIRS = PromptSet("pairs", harmful=tuple(RAGGED), harmless=tuple(RAGGED[:2]))


def by_length(prompts, answers):
    """A judge that depends on the prompt and the answer only."""
    return [VERDICTS[(len(p) + len(a)) % 4] for p, a in zip(prompts, answers, strict=True)]


def always_refuse(prompts, answers):
    return ["refuse"] * len(answers)


def test_behaviour_is_judged_counted_and_named(llama):
    several = [AblateHead(head, ScalingContribution()) for head in HEADS]
    measured = measure_behaviour(
        llama,
        PAIRS,
        {"one by one": several, "together": INTERVENTIONS["scaling"]},
        judge=[by_length, always_refuse],
        max_new_tokens=5,
        keep_text=True,
        progress=False,
    )
    table = measured.to_frame()
    assert list(dict.fromkeys(table["intervention"])) == ["baseline", "one by one", "together"]
    assert len(table) == 3 * (3 + 2)
    assert (table["verdict_always_refuse"] == "refuse").all()
    expected = by_length(
        [getattr(PAIRS, s)[n] for s, n in zip(table["side"], table["prompt"], strict=True)],
        table["text"],
    )
    assert table["verdict"].tolist() == expected
    # Heads switched on one by one are the same as together; and not the same as none.
    digests = {name: rows["digest"].tolist() for name, rows in table.groupby("intervention")}
    assert digests["one by one"] == digests["together"] != digests["baseline"]
    rates = measured.rates()
    assert (
        rates.groupby(["intervention", "side"])["count"].sum()
        == rates.groupby(["intervention", "side"])["n"].first()
    ).all()
    assert ((rates["low"] <= rates["rate"]) & (rates["rate"] <= rates["high"])).all()
    assert measured.rates("always_refuse").query("verdict == 'refuse'")["rate"].eq(1).all()
    with pytest.raises(ValueError, match=r"no judge 'gpt': there are by_length, always_refuse"):
        measured.rates("gpt")


def test_texts_are_not_kept_unless_asked_for(llama):
    measured = measure_behaviour(llama, RAGGED, max_new_tokens=4, progress=False)
    assert measured.to_frame()["text"].isna().all()
    kept = measure_behaviour(llama, RAGGED, max_new_tokens=4, keep_text=True, progress=False)
    texts = kept.to_frame()["text"].tolist()
    assert any(texts)
    assert not any(text and text in repr(measured) + repr(kept) for text in texts)
    assert kept.to_frame()["digest"].tolist() == measured.to_frame()["digest"].tolist()


def test_agreement_of_judges_is_cohens_kappa():
    def answer(n, verdicts, odds):
        return Answer("d", "harmful", n, "baseline", verdicts, odds, 1, True, "")

    said = [("refuse", "refuse"), ("comply", "refuse"), ("comply", "comply"), ("refuse", "refuse")]
    odds = [1.0, -1.0, -2.0, 3.0]
    answers = tuple(answer(n, v, o) for n, (v, o) in enumerate(zip(said, odds, strict=True)))
    table = Behaviour(answers, ("a", "b"), "m").agreement().query("intervention == 'all'")
    kappas = {(r["first"], r["second"]): (r["kappa"], r["agreed"]) for _, r in table.iterrows()}
    assert kappas == {
        ("a", "b"): (0.5, 0.75),
        ("a", "first_token"): (1.0, 1.0),
        ("b", "first_token"): (0.5, 0.75),
    }


def test_wrong_input_is_refused(llama):
    with pytest.raises(ValueError, match=r"'x' is or holds a str, which has no active\(model\)"):
        measure_behaviour(llama, RAGGED, {"x": "L3H7"})
    with pytest.raises(ValueError, match="names the untouched model"):
        measure_behaviour(llama, RAGGED, {"baseline": INTERVENTIONS["scaling"]})
    with pytest.raises(ValueError, match="judge is str: give a function"):
        measure_behaviour(llama, RAGGED, judge=["a judge"])
    with pytest.raises(ValueError, match="sides has 'benign'"):
        measure_behaviour(llama, RAGGED, sides=["benign"])
    with pytest.raises(ValueError, match="no harmless prompts"):
        measure_behaviour(llama, RAGGED, sides=["harmless"])
    with pytest.raises(ValueError, match="the limit is 4"):
        measure_behaviour(llama, RAGGED, max_new_tokens=60)


# --- the headline experiment ---


def test_refusal_under_ablation_sets_the_ranking_beside_random_heads_of_the_same_layers(llama):
    ranking = [Head(1, 2), Head(1, 3), Head(3, 0), Head(0, 5)]
    curve = refusal_under_ablation(
        llama,
        PAIRS,
        ranking,
        ablation=ScalingContribution(),
        sizes=(1, 3),
        random_seeds=(0, 1),
        judge=by_length,
        max_new_tokens=4,
        progress=False,
    )
    assert list(curve.groups) == [
        "top 1",
        "random 1, seed 0",
        "random 1, seed 1",
        "top 3",
        "random 3, seed 0",
        "random 3, seed 1",
    ]
    assert curve.groups["top 3"].heads == tuple(ranking[:3])
    for seed in (0, 1):
        small, large = (curve.groups[f"random {size}, seed {seed}"].heads for size in (1, 3))
        assert large[:1] == small
        assert [h.layer for h in large] == [1, 1, 3]
        assert not set(large) & set(ranking[:3])
        assert len(set(large)) == 3
    table = curve.to_frame()
    assert table.query("arm == 'baseline'")["size"].eq(0).all()
    # The rates are those of measuring the group by itself.
    alone = measure_behaviour(
        llama,
        PAIRS,
        {"x": AblateHeads(tuple(ranking[:3]), ScalingContribution())},
        judge=by_length,
        max_new_tokens=4,
        progress=False,
    ).rates()
    ours = table.query("arm == 'top' and size == 3")["count"].tolist()
    assert ours == alone.query("intervention == 'x'")["count"].tolist()
    differences = curve.differences()
    assert len(differences) == 2 * 4 * 2
    row = differences.iloc[0]
    rates = table.query("side == 'harmful' and verdict == 'refuse' and size == 1").set_index("arm")[
        "rate"
    ]
    assert row["difference"] == pytest.approx(rates["top"] - rates["random"].mean())


def test_a_ranking_may_be_head_scores(llama):
    values = torch.zeros(4, 6)
    values[2, 5], values[0, 1] = 2.0, 1.0
    scores = HeadScores(values, None, "scaling_contribution", "ships", "nat")
    curve = refusal_under_ablation(
        llama, RAGGED, scores, sizes=(2,), random_seeds=(), max_new_tokens=2, progress=False
    )
    assert curve.groups["top 2"].heads == (Head(2, 5), Head(0, 1))
    assert curve.differences().empty


def test_rankings_that_do_not_do_are_refused(llama):
    with pytest.raises(
        ValueError, match="3 different heads and 3 in all; the largest size asks for 5"
    ):
        refusal_under_ablation(llama, RAGGED, HEADS)
    with pytest.raises(ValueError, match="1 different heads and 2 in all"):
        refusal_under_ablation(llama, RAGGED, ["L0H1", "0-1"], sizes=[2])
    with pytest.raises(ValueError, match="different numbers of at least 1"):
        refusal_under_ablation(llama, RAGGED, HEADS, sizes=[0])
    with pytest.raises(ValueError, match="layer 0 has 4 heads, too many of which are ranked"):
        random_heads([Head(0, 0), Head(0, 1), Head(0, 2)], n_heads=4, seed=0)
