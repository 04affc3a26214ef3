"""Are cross-entropy and multiple choice what a loop over tokens gives, and does an intervention reach the harness?"""

import importlib.util

import pytest
import torch

from safetyheads.heads import Head
from safetyheads.interventions.ablating import AblateHeads
from safetyheads.interventions.ablations import UndifferentiatedAttention
from safetyheads.probes.behaviour.utility import (
    Question,
    choice_log_probs,
    cross_entropy,
    lm_eval_model,
    load_held_out_texts,
    load_questions,
    measure_utility,
)
from safetyheads.stats import wilson_interval
from tests.zoo import opened, sentence, tokenizer

TEXTS = [sentence(10, 11, 12, 13, 40), sentence(50, 51, 52)]
QUESTIONS = [
    Question(sentence(20, 21), (sentence(30, 31), sentence(30, 32, 33), sentence(34))),
    Question(sentence(22), (sentence(35), sentence(36))),
]
ABLATED = AblateHeads((Head(0, 1), Head(2, 3)), UndifferentiatedAttention())


@pytest.fixture(scope="module")
def model():
    return opened("llama", spread=0.5)


@torch.inference_mode()
def log_probs_one_by_one(model, text):
    ids = tokenizer()(text)["input_ids"]
    return [
        float(model.logits(torch.tensor([ids[:n]]))[0, -1].double().log_softmax(-1)[ids[n]])
        for n in range(1, len(ids))
    ]


def test_cross_entropy_is_the_mean_over_the_tokens(model):
    for text in TEXTS:
        slow = log_probs_one_by_one(model, text)
        assert cross_entropy(model, text) == pytest.approx(-sum(slow) / len(slow), abs=1e-5)


def test_a_choice_is_scored_by_its_own_tokens(model):
    for question in QUESTIONS:
        asked = f"Question: {question.question}\nAnswer:"
        shared = len(log_probs_one_by_one(model, asked))
        slow = [sum(log_probs_one_by_one(model, f"{asked} {c}")[shared:]) for c in question.choices]
        assert choice_log_probs(model, question).tolist() == pytest.approx(slow, abs=1e-4)


def test_utility_is_measured_untouched_and_under_each_intervention(model):
    measured = measure_utility(
        model, {"two heads": ABLATED}, texts=TEXTS, questions=QUESTIONS, progress=False
    )
    table = measured.to_frame().set_index(["intervention", "measure"])
    assert list(measured.losses) == ["baseline", "two heads"]
    with ABLATED.active(model):
        slow = sum(cross_entropy(model, text) for text in TEXTS) / len(TEXTS)
        right = [int(choice_log_probs(model, q).argmax()) == 0 for q in QUESTIONS]
    loss = table.loc[("two heads", "cross_entropy")]
    assert loss["value"] == pytest.approx(slow, abs=1e-6)
    assert loss["low"] <= loss["value"] <= loss["high"]
    assert abs(loss["value"] - table.loc[("baseline", "cross_entropy")]["value"]) > 1e-3
    score = table.loc[("two heads", "multiple_choice")]
    assert (score["value"], score["n"]) == (sum(right) / 2, 2)
    assert (score["low"], score["high"]) == wilson_interval(sum(right), 2)


def test_equal_choices_are_not_a_right_answer(model):
    same = Question(sentence(20), (sentence(30), sentence(30)))
    assert (
        not measure_utility(model, texts=TEXTS, questions=[same], progress=False)
        .correct["baseline"]
        .any()
    )


def test_own_questions_and_texts_are_well_formed():
    questions = load_questions()
    assert len(questions) == 40
    assert all(len(set(q.choices)) == 4 and q.question.endswith("?") for q in questions)
    assert all(len(text.split()) > 30 for text in load_held_out_texts())


def test_too_little_to_measure_is_refused(model):
    with pytest.raises(ValueError, match="at least one text"):
        measure_utility(model, texts=[])
    with pytest.raises(ValueError, match="at least two choices"):
        measure_utility(model, questions=[Question("q", ("a",))])


def test_without_the_harness_the_extra_is_named(model, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    with pytest.raises(ImportError, match=r"pip install 'safetyheads\[lm-eval\]'"):
        lm_eval_model(model)


@pytest.mark.skipif(not importlib.util.find_spec("lm_eval"), reason="lm_eval is not installed")
def test_the_harness_sees_the_intervened_model(model):
    from lm_eval.api.instance import Instance

    def ask(intervention):
        harness = lm_eval_model(model, intervention, batch_size=2)
        arguments = [(sentence(20, 21), " " + sentence(30, 31)), (sentence(22), " " + sentence(35))]
        requests = [Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(arguments)]
        made = harness.generate_until(
            [
                Instance(
                    "generate_until",
                    {},
                    (sentence(20, 21), {"until": ["w2 "], "max_gen_toks": 5}),
                    0,
                )
            ]
        )
        return [score for score, _ in harness.loglikelihood(requests)], made

    def by_hand(context, continuation):
        whole = log_probs_one_by_one(model, context + continuation)
        return sum(whole[len(log_probs_one_by_one(model, context)) :])

    pairs = [(sentence(20, 21), " " + sentence(30, 31)), (sentence(22), " " + sentence(35))]
    plain, said = ask(None)
    assert plain == pytest.approx([by_hand(*pair) for pair in pairs], abs=1e-4)
    ablated, said_ablated = ask(ABLATED)
    with ABLATED.active(model):
        assert ablated == pytest.approx([by_hand(*pair) for pair in pairs], abs=1e-4)
    assert ablated != pytest.approx(plain, abs=1e-3)
    assert said != said_ablated
    assert by_hand(*pairs[0]) == pytest.approx(plain[0], abs=1e-4)  # and nothing stays switched on
