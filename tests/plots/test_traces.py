"""Does the figure of the detectors show layers and baselines?"""

import pytest

from safetyheads.plots.traces import plot_detection
from safetyheads.probes.traces.detectors import score_detectors
from tests.probes.traces.planted import f1_of, made, planted

pytest.importorskip("tensorly", reason="needs the extra traces: TensorLy and scikit-learn")
pytest.importorskip("sklearn", reason="needs the extra traces: TensorLy and scikit-learn")

QUICK = ("logistic_regression",)


@pytest.fixture(scope="module")
def table():
    states, (rows, *_) = planted(30)
    labels = rows[:, 0] > rows[:, 0].median()
    return score_detectors(made(states, labels), rank=2, classifiers=QUICK, shuffles=1)


def test_the_figure_shows_layers_and_baselines(table):
    figure = plot_detection(table)
    traces = {trace.name: trace for trace in figure.data}
    assert list(traces["attention output"].y) == [f1_of(table)["f1"]]
    assert set(traces["bag of words"].y) == {f1_of(table, "bag_of_words")["f1"]}
    assert set(traces["length only"].y) == {f1_of(table, "length")["f1"]}
    assert set(traces["largest F1 under shuffled labels"].y) == {table["null_high"].max()}
    assert "15 jailbreak, 15 benign prompts" in figure.layout.annotations[0].text


def test_a_figure_that_would_mix_is_refused(table):
    import pandas

    twice = pandas.concat([table.assign(contrast=name) for name in ("a", "b")])
    with pytest.raises(ValueError, match="has attn_out at one layer twice"):
        plot_detection(twice)
    assert len(plot_detection(twice, panel="contrast").layout.annotations) == 2
    with pytest.raises(ValueError, match="the table lacks the columns f1"):
        plot_detection(table.drop(columns="f1"))
    with pytest.raises(ValueError, match="the table is empty"):
        plot_detection(table.iloc[:0])
    with pytest.raises(ValueError, match="the table has logistic_regression"):
        plot_detection(table, classifier="svm_rbf")
