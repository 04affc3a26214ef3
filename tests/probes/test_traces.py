"""What is planted is found, what is not there is not, and no test prompt takes part in the fitting."""

import numpy
import pytest
import torch

from safetyheads.interventions.layers import BypassLayers
from safetyheads.models.hooked import load_model
from safetyheads.probes.traces import capture as module
from safetyheads.probes.traces.capture import (
    COLUMNS,
    Traces,
    capture_traces,
    fit_detector,
    fit_factors,
    project,
    score_detectors,
)
from tests.oracles import PlainModel
from tests.zoo import CONFIGS, RAGGED, random_model, sentence, tokenizer

pytest.importorskip("tensorly", reason="needs the extra traces: TensorLy and scikit-learn")
pytest.importorskip("sklearn", reason="needs the extra traces: TensorLy and scikit-learn")

POSITIONS, WIDTH = 6, 20
QUICK = ("logistic_regression",)


def drawn(*sizes, seed=0):
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


def planted(n_prompts=50, rank=3, seed=0):
    """Prompts x positions x width of a known rank, and its factors."""
    parts = [drawn(n, rank, seed=seed + n) for n in (n_prompts, POSITIONS, WIDTH)]
    return torch.einsum("nr,pr,dr->npd", *parts), parts


def made(states, is_jailbreak, lengths=None, texts=None, goals=None):
    """Traces of one layer that no model gave."""
    n = len(is_jailbreak)
    return Traces(
        states=states[None, None],
        representations=("attn_out",),
        layers=(0,),
        is_jailbreak=torch.as_tensor(is_jailbreak),
        goals=tuple(range(n)) if goals is None else goals,
        lengths=torch.full((n,), 9) if lengths is None else lengths,
        texts=texts or ("w6",) * n,
        align="end",
        template="bare",
        model="none",
    )


def f1_of(table, features="attn_out"):
    (row,) = table[table["features"] == features].to_dict("records")
    return row


# Factors -------------------------------------------------------------------------------------------------------------


def test_planted_factors_are_found_up_to_order_and_sign():
    states, (_, positions, width) = planted()
    factors = fit_factors(states, 3)
    assert factors.fit > 0.999
    for found, true in ((factors.positions, positions), (factors.width, width)):
        cosines = (torch.nn.functional.normalize(true.double(), dim=0).T @ found).abs()
        assert cosines.max(0).values.min() > 0.999
        assert sorted(cosines.argmax(0).tolist()) == [0, 1, 2]


def test_fewer_components_explain_less():
    states, _ = planted()
    assert fit_factors(states, 1).fit < 0.9


def test_a_prompts_features_are_its_row_of_c():
    """And the least squares solution with the Khatri-Rao matrix, written out."""
    states, (rows, positions, width) = planted()
    true = module.Factors(positions.double(), width.double(), 1.0)
    assert torch.allclose(project(states, true), rows.double(), atol=1e-4)
    noisy = states + drawn(*states.shape, seed=9)
    khatri_rao = numpy.stack(
        [numpy.kron(*pair) for pair in zip(positions.T, width.T, strict=True)], 1
    )
    slow = numpy.linalg.lstsq(khatri_rao, noisy.reshape(len(noisy), -1).numpy().T, rcond=None)[0].T
    assert numpy.abs(project(noisy, true).numpy() - slow).max() < 1e-4
    assert numpy.abs(slow - rows.numpy()).max() > 0.1


def test_a_decomposition_is_the_same_for_the_same_seed():
    states, _ = planted()
    first, again = fit_factors(states, 2, seed=4), fit_factors(states, 2, seed=4)
    assert torch.equal(first.width, again.width)


@pytest.mark.parametrize(
    ("states", "rank", "message"),
    [(torch.ones(2, 2, 2), 0, "rank is 0"), (torch.zeros(2, 2, 2), 1, "all zero")],
)
def test_what_cannot_be_decomposed_is_refused(states, rank, message):
    with pytest.raises(ValueError, match=message):
        fit_factors(states, rank)


# Scores --------------------------------------------------------------------------------------------------------------


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


# Capture -------------------------------------------------------------------------------------------------------------

BENIGN = [sentence(10, 11, 12, 13, 70, 71, 72), sentence(80, 81, 82, 83)]


@pytest.fixture(scope="module", params=list(CONFIGS))
def zoo(request):
    hf = random_model(CONFIGS[request.param]())
    return PlainModel(hf), load_model(hf, tokenizer())


def alone(plain, text, layer, name):
    """What one layer gives on one prompt that runs alone."""
    ids, kept = tokenizer()(text)["input_ids"], []
    plain.run(ids, [(f"blocks.{layer}.{name}", lambda out, hook: kept.append(out[0].clone()))])
    return kept[0]


@pytest.mark.parametrize("align", ["end", "start"])
def test_captured_states_are_those_of_each_prompt_alone(zoo, align):
    plain, model = zoo
    traces = capture_traces(model, RAGGED, BENIGN, layers=(2, 0), length=7, align=align)
    assert traces.states.shape == (2, 2, 5, 7, model.d_model)
    assert traces.padding == pytest.approx(2 / 35)  # the last prompt has five tokens
    for n, text in enumerate((*RAGGED, *BENIGN)):
        for m, layer in enumerate((2, 0)):
            for k, name in enumerate(("attn.hook_out", "hook_out")):
                full = alone(plain, text, layer, name)
                expected = torch.zeros(7, model.d_model)
                if align == "end":
                    expected[7 - len(full[-7:]) :] = full[-7:]
                else:
                    expected[: len(full[:7])] = full[:7]
                assert torch.allclose(traces.states[k, m, n], expected, atol=1e-5)
                assert full.abs().max() > 0.01


@pytest.fixture(scope="module")
def model():
    return load_model(random_model(CONFIGS["llama"]()), tokenizer())


def test_nothing_above_the_highest_layer_runs(model):
    ran = []
    blocks = model.bridge.blocks
    handles = [
        block.register_forward_pre_hook(lambda *_, n=n: ran.append(n))
        for n, block in enumerate(blocks)
    ]
    capture_traces(model, RAGGED, BENIGN, layers=(1,))
    for handle in handles:
        handle.remove()
    assert set(ran) == {0, 1}
    assert not any(block._forward_hooks or block.attn._forward_hooks for block in blocks)


def test_by_default_no_position_is_padding(model):
    traces = capture_traces(model, RAGGED, BENIGN)
    assert traces.states.shape[3] == 5  # of the shortest prompt
    assert traces.padding == 0
    assert traces.layers == (0, 1, 2, 3)
    assert "w10" not in repr(traces)
    assert set(traces.provenance["tokens"]) == {"jailbreak", "benign"}


def test_prompts_that_contain_each_other_share_a_goal(model):
    dressed = [f"w90 w91 {text}" for text in BENIGN]
    assert capture_traces(model, dressed, BENIGN, layers=(0,)).goals == (0, 1, 0, 1)
    traces = capture_traces(model, dressed, BENIGN, layers=(0,), goals=(["a", "b"], ["b", "c"]))
    assert traces.goals == (0, 1, 1, 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"jailbreak": []}, "there are no jailbreak prompts"),
        ({"benign": []}, "there are no benign prompts"),
        ({"benign": "w10"}, "expected a list of strings"),
        ({"layers": (4,)}, r"layers are \[4\]; .* has layers 0-3"),
        ({"layers": ()}, r"layers are \[\]"),
        (
            {"representations": ("z",)},
            "representations are .*'z'.*; give some of attn_out, resid_post",
        ),
        ({"representations": ()}, "representations are none"),
        ({"length": 0}, "length is 0"),
        ({"align": "left"}, "align is 'left'"),
        ({"goals": ([1], [2])}, "goals has 1 and 1 labels for 3 jailbreak and 2 benign prompts"),
    ],
)
def test_what_cannot_be_captured_is_refused(model, given, message):
    with pytest.raises(ValueError, match=message):
        capture_traces(model, **{"jailbreak": RAGGED, "benign": BENIGN, **given})


# Detection -----------------------------------------------------------------------------------------------------------


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
    from safetyheads.probes.behaviour.answers import measure_behaviour

    prompt = sentence(70, 90, 91)
    named = {"bypassed": detector.bypass(model, prompt)}
    measured = measure_behaviour(model, [prompt], named, max_new_tokens=4, progress=False)
    untouched, bypassed = measured.answers
    assert (untouched.intervention, bypassed.intervention) == ("baseline", "bypassed")
    assert untouched.refusal_log_odds != bypassed.refusal_log_odds


def test_another_models_detector_is_refused(detector):
    config = CONFIGS["gpt2"]()
    config.n_embd = 12
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


def test_without_the_extra_the_error_names_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorly", None)
    with pytest.raises(ImportError, match=r"pip install 'safetyheads\[traces\]'"):
        fit_factors(drawn(4, 2, 3), 1)


# Figure --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table():
    states, (rows, *_) = planted(30)
    labels = rows[:, 0] > rows[:, 0].median()
    return score_detectors(made(states, labels), rank=2, classifiers=QUICK, shuffles=1)


def test_the_figure_shows_layers_and_baselines(table):
    from safetyheads.plots.traces import plot_detection

    figure = plot_detection(table)
    traces = {trace.name: trace for trace in figure.data}
    assert list(traces["attention output"].y) == [f1_of(table)["f1"]]
    assert set(traces["bag of words"].y) == {f1_of(table, "bag_of_words")["f1"]}
    assert set(traces["length only"].y) == {f1_of(table, "length")["f1"]}
    assert set(traces["largest F1 under shuffled labels"].y) == {table["null_high"].max()}
    assert "15 jailbreak, 15 benign prompts" in figure.layout.annotations[0].text


def test_a_figure_that_would_mix_is_refused(table):
    import pandas

    from safetyheads.plots.traces import plot_detection

    twice = pandas.concat([table.assign(contrast=name) for name in ("a", "b")])
    with pytest.raises(ValueError, match="has attn_out at one layer twice"):
        plot_detection(twice)
    assert len(plot_detection(twice, panel="contrast").layout.annotations) == 2
    with pytest.raises(ValueError, match="the table lacks f1"):
        plot_detection(table.drop(columns="f1"))
    with pytest.raises(ValueError, match="the table is empty"):
        plot_detection(table.iloc[:0])
    with pytest.raises(ValueError, match="the table has logistic_regression"):
        plot_detection(table, classifier="svm_rbf")
