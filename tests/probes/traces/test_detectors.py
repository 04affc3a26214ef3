"""What is planted is found, what is not there is not, and no test prompt takes part in the fitting."""

import numpy
import pytest
import torch

from safetyheads.interventions.layers import BypassLayers
from safetyheads.models.opening import load_model
from safetyheads.probes.behaviour.answers import measure_behaviour
from safetyheads.probes.behaviour.generation import Decoding
from safetyheads.probes.traces import detectors as module
from safetyheads.probes.traces.capture import capture_traces
from safetyheads.probes.traces.detectors import COLUMNS, fit_detector, score_detectors
from tests.probes.traces.planted import POSITIONS, WIDTH, drawn, f1_of, made, planted
from tests.zoo import CONFIGS, opened, random_model, sentence, tokenizer

pytest.importorskip("tensorly", reason="needs the extra traces: TensorLy and scikit-learn")
pytest.importorskip("sklearn", reason="needs the extra traces: TensorLy and scikit-learn")

QUICK = ("logistic_regression",)


def test_a_planted_trace_is_found_and_shuffled_labels_are_not():
    states, (rows, *_) = planted(60)
    labels = rows[:, 0] > rows[:, 0].median()
    table = score_detectors(made(states, labels), rank=3, shuffles=0)
    assert list(table.columns) == list(COLUMNS)
    assert len(table) == 3 * 4
    found = table[table["features"] == "attn_out"]
    assert (found["f1"] > 0.8).all()
    assert (found["low"] < found["f1"]).all()
    assert (found["f1"] <= found["high"]).all()
    assert (found["fit"] > 0.99).all()
    assert found["null_f1"].isna().all()
    row = f1_of(score_detectors(made(states, labels), rank=3, classifiers=QUICK, shuffles=8))
    assert 0.25 < row["null_f1"] < 0.65
    assert row["null_f1"] <= row["null_high"] < row["f1"]


def test_noise_is_no_trace():
    states, labels = drawn(60, POSITIONS, WIDTH), torch.arange(60) % 2 == 0
    row = f1_of(score_detectors(made(states, labels), rank=4, classifiers=QUICK, shuffles=10))
    assert 0.25 < row["f1"] < 0.7
    assert row["low"] < row["null_f1"] < row["high"]


def test_labels_that_are_lengths_are_told_by_the_length():
    labels = torch.arange(60) % 2 == 0
    traces = made(drawn(60, POSITIONS, WIDTH), labels, torch.where(labels, 90, 9))
    table = score_detectors(traces, rank=2, classifiers=QUICK, shuffles=2)
    assert f1_of(table, "length")["f1"] == 1
    assert f1_of(table)["f1"] < 0.8


def test_labels_that_are_words_are_told_by_the_words():
    labels = torch.arange(60) % 2 == 0
    words = ("story", "please")
    texts = tuple(f"w{n} {words[n % 2]}" for n in range(60))
    traces = made(drawn(60, POSITIONS, WIDTH), labels, texts=texts)
    table = score_detectors(traces, rank=2, classifiers=QUICK, shuffles=2)
    assert f1_of(table, "bag_of_words")["f1"] == 1
    assert f1_of(table, "length")["f1"] < 0.7


def test_an_interval_is_no_point_where_all_is_right():
    labels = numpy.array([True] * 10 + [False] * 10)
    assert module._f1(labels, labels) == (1.0, pytest.approx(2 * 0.7225 / 1.7225, abs=1e-3), 1.0)
    f1, low, high = module._f1(~labels, labels)
    assert f1 == low == 0
    assert 0 < high < 0.35


def test_test_prompts_take_no_part_in_the_fitting():
    states, _ = planted()
    train, test = numpy.arange(40), numpy.arange(40, 50)
    other = states.clone()
    other[40:] = drawn(10, POSITIONS, WIDTH, seed=5)

    def features(of, transductive):
        ((_, _, on_train, _),), _ = module._trace_features(of, [(train, test)], 3, transductive, 0)
        return on_train

    assert numpy.array_equal(features(states, False), features(other, False))
    assert numpy.abs(features(states, True) - features(other, True)).max() > 0.01


def test_what_the_leak_is_worth():
    """Every jailbreak has a pattern of its own: only a decomposition that has seen it can tell."""
    n = 8
    own = torch.einsum("np,nd->npd", drawn(n, 30, seed=1), drawn(n, 30, seed=2))
    states = torch.cat([3 * own, 0.1 * drawn(n, 30, 30, seed=3)])
    traces = made(states, torch.arange(2 * n) < n)
    options = {"rank": n, "classifiers": ("svm_rbf",), "shuffles": 0, "folds": n}
    honest = f1_of(score_detectors(traces, **options))
    leaking = f1_of(score_detectors(traces, transductive=True, **options))
    assert leaking["transductive"]
    assert not honest["transductive"]
    assert leaking["f1"] > honest["f1"] + 0.3


def test_a_goal_is_never_split():
    goals = tuple(n % 15 for n in range(45))
    traces = made(drawn(45, 2, 3), torch.arange(45) < 15, goals=goals)
    splits = module._splits(traces, 5, 0)
    assert sorted(n for _, test in splits for n in test) == list(range(45))
    for train, test in splits:
        assert not {goals[n] for n in train} & {goals[n] for n in test}
        assert traces.is_jailbreak[test].sum() == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1}, "folds is 1; there are 3 goals of jailbreaks and 3 of benign prompts"),
        ({"folds": 4}, "ask for 2 to 3 folds"),
        ({"classifiers": ("forest",)}, r"classifiers are \['forest'\]; give some of random_forest"),
        ({"classifiers": ()}, "classifiers are none"),
    ],
)
def test_what_cannot_be_scored_is_refused(options, message):
    traces = made(drawn(6, 2, 3), torch.arange(6) < 3)
    with pytest.raises(ValueError, match=message):
        score_detectors(traces, **options)


def test_one_goal_is_not_enough():
    traces = made(drawn(6, 2, 3), torch.arange(6) < 3, goals=(0, 0, 0, 1, 2, 3))
    with pytest.raises(ValueError, match="one side has a single goal"):
        score_detectors(traces)


@pytest.fixture(scope="module")
def model():
    return opened("llama")


@pytest.fixture(scope="module")
def detector(model):
    """Jailbreaks are told by their last words."""
    jailbreak = [sentence(n, 90, 91) for n in range(10, 40)]
    benign = [sentence(n, 92, 93) for n in range(10, 40)]
    traces = capture_traces(model, jailbreak, benign, layers=(1, 3), length=2)
    return fit_detector(traces, representation="resid_post", rank=4)


def test_a_detector_tells_new_prompts(model, detector):
    new = [sentence(70, 90, 91), sentence(71, 92, 93)]
    likely = detector.probabilities(model, new)
    assert likely.shape == (2, 2)
    assert (likely[0] > 0.8).all()
    assert (likely[1] < 0.2).all()


def test_susceptible_layers_are_bypassed(model, detector):
    assert detector.bypass(model, sentence(70, 90, 91)) == BypassLayers((1, 3))
    assert detector.bypass(model, sentence(71, 92, 93)) is None
    assert detector.bypass(model, sentence(70, 90, 91), threshold=1.0) is None


def test_behaviour_is_measured_under_a_prompts_own_bypass(model, detector):
    """What docs/traces.md composes."""
    prompt = sentence(70, 90, 91)
    named = {"bypassed": detector.bypass(model, prompt)}
    measured = measure_behaviour(model, [prompt], named, decoding=Decoding(4), progress=False)
    untouched, bypassed = measured.answers
    assert (untouched.intervention, bypassed.intervention) == ("baseline", "bypassed")
    assert untouched.refusal_log_odds != bypassed.refusal_log_odds


def test_another_models_detector_is_refused(detector):
    config = CONFIGS["gpt2"]()
    config.n_embd, config.n_layer = 12, 4
    other = load_model(random_model(config), tokenizer())
    with pytest.raises(
        ValueError, match="has width 12, and this detector was fitted on a model of width 24"
    ):
        detector.probabilities(other, ["w10"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"representation": "resid_post"}, "these traces hold attn_out"),
        ({"classifier": "svm_rbf"}, "give probabilities"),
    ],
)
def test_a_detector_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fit_detector(made(drawn(6, 2, 3), torch.arange(6) < 3), **options)
