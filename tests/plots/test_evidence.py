"""Do the figures of the evidence show what their tables say?"""

import pandas
import pytest
import torch

from safetyheads.evidence.stability import power_curve
from safetyheads.heads import HeadScores
from safetyheads.plots.evidence import FOUND, GREY, plot_power, plot_specificity
from safetyheads.plots.scatter import plot_head_scatter


def table():
    rows = []
    for ablation in ("zero", "mean"):
        for rank in range(1, 6):
            specificity = 0.5 if rank == 2 else 0.1 if rank == 3 else -0.1
            rows.append(
                {
                    **{"layer": rank, "head": 0, "label": f"L{rank}H0", "ablation": ablation},
                    **{"metric": "refusal_shift", "unit": "nat", "score": -1 / rank, "rank": rank},
                    **{"specificity": specificity, "specificity_low": specificity - 0.2},
                    **{"specificity_high": specificity + 0.3, "q_value": 0.01 * rank**2},
                    **{"null_high": 0.05, "in_null": specificity < 0.05},
                }
            )
    return pandas.DataFrame(rows)


def test_the_forest_has_a_line_a_head_coloured_by_what_it_passed():
    figure = plot_specificity(table(), k=4, note="8 pairs <small>")
    traces = {(t.name, t.xaxis): t for t in figure.data}
    assert list(traces[("q < 0.05", "x")].y) == ["2. L2H0"]
    assert traces[("q < 0.05", "x")].marker.color == FOUND
    assert list(traces[("above the null", "x2")].y) == ["3. L3H0"]
    assert list(traces[("inside the null", "x")].y) == ["1. L1H0", "4. L4H0"]
    assert traces[("inside the null", "x")].error_x.color == GREY
    bars = traces[("q < 0.05", "x")].error_x
    assert bars.array[0] == pytest.approx(0.3)
    assert bars.arrayminus[0] == pytest.approx(0.2)
    assert list(figure.layout.yaxis.categoryarray) == ["4. L4H0", "3. L3H0", "2. L2H0", "1. L1H0"]
    assert figure.layout.xaxis.title.text == "Specificity: harmless − harmful Refusal Shift [nat]"
    texts = [a.text for a in figure.layout.annotations]
    assert texts == ["Zero Ablation", "Mean Ablation", "8 pairs &lt;small&gt;"]
    assert sum(bool(t.showlegend) for t in figure.data) == 4


def test_a_significant_head_that_matters_on_harmless_prompts_is_not_red():
    rows = table().assign(q_value=0.001)
    figure = plot_specificity(rows)
    red = {name for t in figure.data if t.name == "q < 0.05" for name in t.y}
    assert red == {"2. L2H0", "3. L3H0"}


def test_tables_that_cannot_be_drawn_are_refused():
    with pytest.raises(ValueError, match=r"lacks the columns q_value, in_null.*Ranking.to_frame"):
        plot_specificity(table().drop(columns=["q_value", "in_null"]))
    with pytest.raises(ValueError, match="no head has a specificity"):
        plot_specificity(table().assign(specificity=float("nan")))
    with pytest.raises(ValueError, match="k is 0"):
        plot_specificity(table(), k=0)
    with pytest.raises(ValueError, match=r"lacks the columns ranking.*power_curve"):
        plot_power(table())


def test_power_is_drawn_for_every_curve():
    scores = torch.rand(4, 6, 12, generator=torch.Generator().manual_seed(0))
    made = HeadScores(scores.mean(-1), scores, "zero", "ships", "nat")
    curve = power_curve(made, k=3, n_resamples=8)
    figure = plot_power({"ships": curve, "other": curve})
    lines = [t for t in figure.data if t.mode == "lines+markers"]
    assert [t.name for t in lines] == ["Ships", "Ships", "other", "other"]
    expected = curve[curve["against"] == "other prompts"]
    assert list(lines[0].x) == [2, 4, 6]
    assert list(lines[0].y) == expected["spearman"].tolist()
    assert list(lines[1].y) == expected["overlap"].tolist()
    assert figure.layout.yaxis2.title.text == "Jaccard of the top 3"
    whole = plot_power(curve, against="all prompts")
    assert list(whole.data[1].y) == curve[curve["against"] == "all prompts"]["spearman"].tolist()
    with pytest.raises(ValueError, match="compares against 'nothing'"):
        plot_power(curve, against="nothing")


@pytest.mark.parametrize("as_file", [False, True])
def test_heads_inside_the_null_are_open_in_the_scatter_and_keep_their_colour(as_file, tmp_path):
    rows = table()
    if as_file:
        rows.to_csv(tmp_path / "scores.csv", index=False)
        rows = pandas.read_csv(tmp_path / "scores.csv")
    figure = plot_head_scatter(rows, k=4)
    circle, cross = (t for t in figure.data if t.text)
    assert list(circle.x) == [1, 2, 3, 4]
    assert list(circle.marker.symbol) == ["circle-open", "circle", "circle", "circle-open"]
    assert list(cross.marker.symbol) == ["x-open", "x", "x", "x-open"]
    assert list(circle.marker.color) == rows["score"][:4].tolist()
    colours = figure.layout.coloraxis
    assert (colours.cmin, colours.cmax) == (rows["score"][0], rows["score"][3])
    assert figure.data[-1].name == "open: inside the null"
    plain = plot_head_scatter(rows.drop(columns="in_null"), k=4)
    assert len(plain.data) == len(figure.data) - 1
    estimated = rows.assign(kind=["estimated"] * 5 + ["exact"] * 5)
    figure = plot_head_scatter(estimated, k=4)
    circle, cross = (t for t in figure.data if t.text)
    kinds = {t.name: set(t.marker.symbol) for t in (circle, cross)}
    assert kinds == {"Zero Ablation": {"circle-open-dot"}, "Mean Ablation": {"x", "x-open"}}
    assert [t.name for t in figure.data[-2:]] == ["dotted: estimated", "open: inside the null"]


def test_a_third_series_is_open_already_and_marks_the_null_by_a_thin_line():
    three = [table().assign(ablation=name)[:5] for name in ("zero", "mean", "resample")]
    figure = plot_head_scatter(pandas.concat(three), k=4)
    square = next(t for t in figure.data if t.name == "Resample Ablation" and t.text)
    assert set(square.marker.symbol) == {"square-open"}
    assert list(square.marker.line.width) == [1, 2.5, 2.5, 1]
    assert figure.data[-1].name == "open or thin: inside the null"
