"""Do the figures show what the table says, readably, and do files of them get written?"""

import os
import time

import numpy as np
import pandas as pd
import pytest

from safetyheads.plots import heads
from safetyheads.plots import writing as files
from safetyheads.plots.heatmap import plot_head_heatmap
from safetyheads.plots.scatter import plot_head_scatter
from safetyheads.plots.style import DARK
from safetyheads.plots.writing import write_html, write_image

UNDIFFERENTIATED, SCALING = "undifferentiated_attention", "scaling_contribution"


def table(scores, *, ablation=SCALING, metric="ships", unit="nat", largest_first=True, **columns):
    """The table of a [layer, head] array of scores."""
    scores = np.asarray(scores, dtype=float)
    layer, head = np.divmod(np.arange(scores.size), scores.shape[1])
    frame = pd.DataFrame({"layer": layer, "head": head, "score": scores.ravel()})
    frame["label"] = [f"L{x}H{y}" for x, y in zip(layer, head, strict=True)]
    frame["rank"] = frame["score"].rank(ascending=not largest_first, method="first").astype(int)
    return frame.assign(ablation=ablation, metric=metric, unit=unit, **columns)


def random_table(seed, n_layers=32, n_heads=32, **columns):
    return table(np.random.default_rng(seed).exponential(size=(n_layers, n_heads)), **columns)


def by_dataset(n_layers=32, n_heads=32):
    """Two datasets, two ablations: the first of the paper's forms."""
    settings = {"metric": "generalized_ships", "unit": "deg"}
    return pd.concat(
        random_table(seed, n_layers, n_heads, ablation=ablation, dataset=dataset, **settings)
        for seed, (dataset, ablation) in enumerate(
            (dataset, ablation)
            for dataset in ("jailbreakbench", "malicious_instruct")
            for ablation in (SCALING, UNDIFFERENTIATED)
        )
    )


def points(figure):
    """The traces that hold heads; the others are the legend's swatches."""
    return [trace for trace in figure.data if trace.x[0] is not None]


def swatches(figure):
    return [trace for trace in figure.data if trace.x[0] is None]


def titles(figure):
    return [note.text for note in figure.layout.annotations if note.name != "note"]


def test_one_panel_a_dataset_and_one_symbol_an_ablation():
    frame = by_dataset()
    figure = plot_head_scatter(frame)
    assert titles(figure) == [
        "Top 10 Safety Heads on JailbreakBench",
        "Top 10 Safety Heads on Malicious Instruct",
    ]
    traces = points(figure)
    assert [trace.name for trace in traces] == [
        "Undifferentiated Attention",  # first, though the table has it second
        "Scaling Contribution",
    ] * 2
    assert [trace.marker.symbol for trace in traces] == ["circle", "x"] * 2
    assert [trace.xaxis for trace in traces] == ["x", "x", "x2", "x2"]
    assert [trace.marker.coloraxis for trace in traces] == ["coloraxis"] * 2 + ["coloraxis2"] * 2
    for trace, dataset, ablation in [
        (traces[0], "jailbreakbench", UNDIFFERENTIATED),
        (traces[3], "malicious_instruct", SCALING),
    ]:
        rows = frame[(frame["dataset"] == dataset) & (frame["ablation"] == ablation)]
        rows = rows.sort_values("score", ascending=False).head(10)
        assert list(trace.x) == rows["layer"].tolist()
        assert list(trace.y) == rows["head"].tolist()
        assert list(trace.marker.color) == rows["score"].tolist()
        assert list(trace.text) == rows["label"].tolist()


def test_one_panel_an_ablation_and_one_symbol_a_model():
    frame = pd.concat(
        random_table(seed, 30, 9, ablation=ablation, model=model)
        for seed, (ablation, model) in enumerate(
            (ablation, model)
            for ablation in (UNDIFFERENTIATED, SCALING)
            for model in ("Vicuna-7b-v1.5", "Llama-2-7b-chat")
        )
    )
    figure = plot_head_scatter(frame, panel="ablation", series="model", k=3)
    assert titles(figure) == [
        "Top 3 Safety Heads on Undifferentiated Attention",
        "Top 3 Safety Heads on Scaling Contribution",
    ]
    names = ["Vicuna-7b-v1.5", "Llama-2-7b-chat"]  # unknown names: as they come, in that order
    assert [trace.name for trace in points(figure)] == names * 2
    assert all(len(trace.x) == 3 for trace in points(figure))


def test_each_panel_has_its_own_colours_and_a_bar_that_names_metric_and_unit():
    frame = by_dataset()
    figure = plot_head_scatter(frame)
    for axis, dataset in [("coloraxis", "jailbreakbench"), ("coloraxis2", "malicious_instruct")]:
        drawn = frame[(frame["dataset"] == dataset) & (frame["rank"] <= 10)]["score"]
        colours = figure.layout[axis]
        assert (colours.cmin, colours.cmax) == (drawn.min(), drawn.max())
        assert colours.colorbar.title.text == "Generalized Ships [deg]"
    assert figure.layout.coloraxis.cmax != figure.layout.coloraxis2.cmax


@pytest.mark.parametrize(
    ("metric", "unit", "title"),
    [
        ("generalized_ships (left, rank 1)", "deg", "Generalized Ships (left, rank 1) [deg]"),
        ("ships", "nat", "Ships [nat]"),
        ("refusal_shift", "nat", "Refusal Shift [nat]"),
        ("my_own", "", "my_own"),
    ],
)
def test_bar_title(metric, unit, title):
    figure = plot_head_scatter(random_table(0, 4, 4, metric=metric, unit=unit))
    assert figure.layout.coloraxis.colorbar.title.text == title


def test_panels_bars_and_legends_do_not_overlap():
    layout = plot_head_scatter(by_dataset()).layout
    inner = layout.width - layout.margin.l - layout.margin.r
    left, right = layout.xaxis.domain, layout.xaxis2.domain
    bar = layout.coloraxis.colorbar
    assert left[1] < bar.x
    assert bar.x + bar.thickness / inner < right[0]
    assert (right[0] - left[1]) * inner >= 150  # ticks and title of the bar, "Head" and its ticks
    assert layout.coloraxis2.colorbar.x > right[1]
    for legend, x, y in [
        (layout.legend, left, layout.yaxis.domain),
        (layout.legend2, right, layout.yaxis2.domain),
    ]:
        assert (legend.xanchor, legend.yanchor) == ("right", "top")
        assert x[0] < legend.x < x[1]
        assert legend.y < y[1]


def test_more_than_two_panels_go_to_rows_of_two():
    frame = pd.concat(random_table(seed, 4, 4, dataset=f"set{seed}") for seed in range(3))
    layout = plot_head_scatter(frame).layout
    assert layout.xaxis.domain == layout.xaxis3.domain
    assert layout.yaxis3.domain[1] < layout.yaxis.domain[0]
    assert layout.yaxis3.domain[0] == pytest.approx(0)


@pytest.mark.parametrize(
    ("n", "step"), [(1, 1), (2, 1), (9, 1), (16, 1), (17, 2), (30, 2), (32, 2), (64, 4), (80, 8)]
)
def test_ticks_are_few_whole_numbers_from_zero(n, step):
    layout = plot_head_scatter(random_table(0, n, n)).layout
    for axis in (layout.xaxis, layout.yaxis):
        assert list(axis.tickvals) == list(range(0, n, step))
        assert list(axis.ticktext) == [str(tick) for tick in axis.tickvals]
        assert axis.range[0] < 0
        assert axis.range[1] > n - 1
    assert (layout.xaxis.title.text, layout.yaxis.title.text) == ("Layer", "Head")


def test_axes_grow_to_the_model():
    layout = plot_head_scatter(random_table(0, 4, 4), n_layers=12, n_heads=8).layout
    assert list(layout.xaxis.tickvals) == list(range(12))
    assert list(layout.yaxis.tickvals) == list(range(8))


def test_hover_shows_label_score_with_unit_rank_and_series():
    figure = plot_head_scatter(table([[1.0, 3.0], [2.0, 0.5]], dataset="a"))
    (trace,) = points(figure)
    assert list(trace.text) == ["L0H1", "L1H0", "L0H0", "L1H1"]
    assert [list(pair) for pair in trace.customdata] == [[3.0, 1], [2.0, 2], [1.0, 3], [0.5, 4]]
    assert trace.hovertemplate == (
        "<b>%{text}</b><br>Ships: %{customdata[0]:.4g} nat<br>rank %{customdata[1]}"
        "<br>Scaling Contribution<extra></extra>"
    )


def test_legend_swatches_look_like_the_series_and_hold_no_point():
    figure = plot_head_scatter(by_dataset())
    assert [swatch.legend for swatch in swatches(figure)] == ["legend"] * 2 + ["legend2"] * 2
    for swatch, trace in zip(swatches(figure), points(figure), strict=True):
        assert swatch.marker.symbol == trace.marker.symbol
        assert swatch.legendgroup == trace.legendgroup  # a click hides the points
        assert swatch.marker.coloraxis is None
        assert swatch.showlegend is not False
        assert trace.showlegend is False


def test_a_head_in_two_series_shows_both_symbols():
    dark = table([[1.0, 9.0], [0.0, 0.0]], ablation=UNDIFFERENTIATED)
    light = table([[2.0, 9.0], [0.0, 0.0]], ablation=SCALING)
    circle, cross = points(plot_head_scatter(pd.concat([dark, light]), k=2))
    assert list(zip(circle.x, circle.y, strict=True)) == list(zip(cross.x, cross.y, strict=True))
    assert cross.marker.size < 0.7 * circle.marker.size  # the cross is drawn later, so on top
    assert circle.marker.line.color == DARK
    # L0H1 is light on light, L0H0 dark on dark
    assert list(cross.marker.line.color) == [DARK, "white"]


def test_further_series_enclose_the_first_two():
    names = [UNDIFFERENTIATED, SCALING, "zero", "mean", "resample"]
    frame = pd.concat(random_table(0, 6, 6, ablation=name) for name in names)
    traces = points(plot_head_scatter(frame))
    assert len({trace.marker.symbol for trace in traces}) == 5
    sizes = [trace.marker.size for trace in traces[2:]]
    assert sizes == sorted(sizes)
    assert sizes[0] > traces[0].marker.size
    assert all(trace.marker.symbol.endswith("-open") for trace in traces[2:])
    names += ["a", "b"]
    with pytest.raises(ValueError, match=r"7 values of 'ablation'.*at most 6"):
        plot_head_scatter(pd.concat(random_table(0, 2, 2, ablation=name) for name in names))


@pytest.mark.parametrize("corner", [True, False])
def test_the_legend_covers_no_point(corner):
    scores = np.zeros((32, 32))
    scores[(31, 31) if corner else (0, 31)] = 1.0
    layout = plot_head_scatter(table(scores), k=1).layout
    bottom, end = layout.yaxis.range
    from_top = (end - 31) / (end - bottom) * heads.PANEL_HEIGHT  # pixels
    assert from_top > 40 if corner else from_top < 15


def test_columns_that_are_missing_make_one_group():
    frame = random_table(0, 4, 4)
    assert titles(plot_head_scatter(frame)) == ["Top 10 Safety Heads"]
    figure = plot_head_scatter(frame, panel="ablation", series="model")
    assert len(figure.data) == 1  # no series, so no legend
    assert titles(figure) == ["Top 10 Safety Heads on Scaling Contribution"]
    assert "rank" in figure.data[0].hovertemplate


def test_a_small_table_says_how_many_heads_it_shows():
    assert titles(plot_head_scatter(random_table(0, 2, 2))) == ["Top 4 Safety Heads"]


def test_refusal_shift_ranks_from_the_most_negative():
    frame = table([[-2.0, 1.0], [-3.0, 0.0]], metric="refusal_shift", largest_first=False)
    (trace,) = points(plot_head_scatter(frame, k=2))
    assert list(trace.text) == ["L1H0", "L0H0"]


def test_names_are_shown_as_text_not_as_markup():
    figure = plot_head_scatter(random_table(0, 2, 2, ablation="<b>x", dataset="a & <i>b"))
    assert titles(figure) == ["Top 4 Safety Heads on a &amp; &lt;i&gt;b"]
    assert points(figure)[0].name == "&lt;b&gt;x"
    assert "<b>x" not in points(figure)[0].hovertemplate


def test_long_titles_are_wrapped_and_long_series_cut():
    figure = plot_head_scatter(random_table(0, 2, 2, ablation="y" * 80, dataset="word " * 20))
    assert titles(figure)[0].count("<br>") == 2
    assert figure.layout.margin.t > plot_head_scatter(random_table(0, 2, 2)).layout.margin.t
    assert len(points(figure)[0].name) < 50


def test_own_titles():
    frame = by_dataset(4, 4)
    assert titles(plot_head_scatter(frame, titles=["A", "B"])) == ["A", "B"]
    figure = plot_head_scatter(frame, titles={"malicious_instruct": "B"})
    assert titles(figure) == ["Top 10 Safety Heads on JailbreakBench", "B"]
    with pytest.raises(ValueError, match="there are 2 panels: expected a list with one title"):
        plot_head_scatter(frame, titles=["A"])
    with pytest.raises(ValueError, match=r"titles names \['C'\].*'jailbreakbench'.*use these keys"):
        plot_head_scatter(frame, titles={"C": "B"})


def test_note_goes_under_the_figure_and_makes_room():
    frame = random_table(0, 4, 4)
    without, one = plot_head_scatter(frame), plot_head_scatter(frame, note="hardly < ever refuses")
    many = plot_head_scatter(frame, note="this model hardly ever refuses " * 8)
    note = one.layout.annotations[-1]
    assert (note.name, note.text) == ("note", "hardly &lt; ever refuses")
    assert note.y == 0
    assert note.yshift <= -heads.BOTTOM
    assert without.layout.height < one.layout.height < many.layout.height
    assert without.layout.margin.b < one.layout.margin.b < many.layout.margin.b


def test_a_table_read_back_from_csv_draws_the_same(tmp_path):
    frame = random_table(0, 5, 3, unit="", dataset="builtin")
    frame.to_csv(tmp_path / "scores.csv", index=False)
    again = plot_head_scatter(pd.read_csv(tmp_path / "scores.csv"))
    assert again.to_json() == plot_head_scatter(frame).to_json()


def test_equal_scores_have_a_colour_range():
    layout = plot_head_scatter(table(np.full((3, 3), 2.0))).layout
    assert layout.coloraxis.cmin < 2.0 < layout.coloraxis.cmax
    layout = plot_head_heatmap(table(np.zeros((3, 3)))).layout
    assert layout.coloraxis.cmin < 0.0 < layout.coloraxis.cmax


def test_figures_are_light():
    assert len(plot_head_scatter(by_dataset()).to_json()) < 20_000
    assert len(plot_head_heatmap(random_table(0)).to_json()) < 30_000


@pytest.mark.parametrize("plot", [plot_head_scatter, plot_head_heatmap])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.iloc[:0], "no rows: there is no head to draw"),
        (lambda t: t.drop(columns=["rank", "unit"]), r"lacks the columns unit, rank; it has layer"),
        (lambda t: t.assign(score=np.nan), "16 of 16 scores are not finite, the first at L0H0"),
        (
            lambda t: t.assign(score=np.where(t["rank"] == 2, np.inf, t["score"])),
            "1 of 16 scores are not finite",
        ),
        (lambda t: pd.concat([t, t]), "L0H0 occurs more than once in .*one row a head"),
        (
            lambda t: pd.concat([t, t.assign(metric="generalized_ships", unit="deg")]),
            r"mixes Ships \[nat\] and Generalized Ships \[deg\]: .*table\['metric'\] == 'ships'",
        ),
        (
            lambda t: pd.concat([t.head(4), t.tail(4).assign(unit="bit")]),
            r"mixes Ships \[nat\] and Ships \[bit\]",
        ),
    ],
)
def test_a_table_that_cannot_be_drawn_says_why(plot, change, message):
    with pytest.raises(ValueError, match=message):
        plot(change(random_table(0, 4, 4)))


@pytest.mark.parametrize("plot", [plot_head_scatter, plot_head_heatmap])
def test_arguments_that_cannot_be_drawn_say_why(plot):
    frame = random_table(0, 4, 4)
    with pytest.raises(ValueError, match=r"k is 0: expected 1 or more"):
        plot(frame, k=0)
    with pytest.raises(
        ValueError, match=r"n_layers is 3 but the table holds layer 3: .* 4 or more"
    ):
        plot(frame, n_layers=3)
    with pytest.raises(ValueError, match="n_heads is 2 but the table holds head 3"):
        plot(frame, n_heads=2)


def test_panel_and_series_must_differ():
    with pytest.raises(ValueError, match="panel and series are both 'ablation'"):
        plot_head_scatter(random_table(0, 4, 4), panel="ablation")


def test_two_models_in_one_series_are_refused():
    frame = pd.concat(random_table(seed, 2, 2, dataset="d", model=f"m{seed}") for seed in range(2))
    with pytest.raises(ValueError, match="more than once in dataset 'd', ablation 'scaling_contri"):
        plot_head_scatter(frame)


def test_heatmap_shows_every_score_at_its_head():
    scores = np.arange(12.0).reshape(4, 3)
    figure = plot_head_heatmap(table(scores))
    (trace,) = figure.data
    assert np.array_equal(trace.z, scores.T)  # rows are heads, columns layers
    assert trace.customdata[2][3] == 1  # L3H2 has the largest score
    assert trace.customdata[0][0] == 12
    assert trace.hovertemplate == (
        "<b>L%{x}H%{y}</b><br>Ships: %{z:.4g} nat<br>rank %{customdata}<extra></extra>"
    )
    colours = figure.layout.coloraxis
    assert (colours.cmin, colours.cmax) == (0.0, 11.0)
    assert colours.colorbar.title.text == "Ships [nat]"
    assert list(figure.layout.xaxis.tickvals) == [0, 1, 2, 3]
    assert list(figure.layout.yaxis.tickvals) == [0, 1, 2]
    assert titles(figure) == ["Scaling Contribution"]


def test_heatmap_of_both_signs_has_zero_in_the_middle():
    one_sided = plot_head_heatmap(table([[0.0, 3.0]])).layout.coloraxis
    rounding = plot_head_heatmap(table([[-1e-9, 3.0]])).layout.coloraxis
    signed = plot_head_heatmap(table([[-1.0, 3.0]])).layout.coloraxis
    assert one_sided.colorscale == rounding.colorscale != signed.colorscale
    assert (signed.cmin, signed.cmax) == (-3.0, 3.0)
    assert signed.colorscale[0][1] == "rgb(5,48,97)"  # blue below zero, red above
    assert rounding.cmin == pytest.approx(-1e-9)


def test_heatmap_has_a_panel_for_each_dataset_model_and_ablation():
    frame = pd.concat([by_dataset(4, 3).assign(model="m"), random_table(9, 6, 2, model="n")])
    figure = plot_head_heatmap(frame)
    assert titles(figure) == [
        "Undifferentiated Attention on JailbreakBench, m",
        "Undifferentiated Attention on Malicious Instruct, m",
        "Scaling Contribution on JailbreakBench, m",
        "Scaling Contribution on Malicious Instruct, m",
        "Scaling Contribution, n",
    ]
    assert [trace.coloraxis for trace in figure.data][::4] == ["coloraxis", "coloraxis5"]
    assert figure.data[0].z.shape == (3, 4)
    assert figure.data[4].z.shape == (2, 6)


def test_heatmap_leaves_missing_heads_empty_and_outlines_the_best():
    frame = table([[1.0, 5.0], [2.0, 4.0]])
    figure = plot_head_heatmap(frame[frame["label"] != "L1H0"], k=2)
    assert np.isnan(figure.data[0].z[0, 1])
    assert figure.data[0].customdata[0][1] is None
    assert figure.layout.plot_bgcolor != plot_head_heatmap(frame).layout.plot_bgcolor
    assert [t.name for t in figure.data if t.showlegend] == ["grey: not in the table"]
    corners = [(shape.x0, shape.x1, shape.y0, shape.y1) for shape in figure.layout.shapes]
    assert corners == [(-0.5, 0.5, 0.5, 1.5), (0.5, 1.5, 0.5, 1.5)]  # L0H1, L1H1
    assert plot_head_heatmap(frame).layout.shapes == ()


def test_hatching_is_explained_under_the_panel():
    frame = table(np.arange(12.0).reshape(4, 3)).assign(kind="exact")
    frame.loc[3, "kind"] = "estimated"
    figure = plot_head_heatmap(frame)
    (swatch,) = (trace for trace in figure.data if trace.showlegend)
    assert swatch.name == "hatched: estimated"
    assert figure.layout.legend.y < figure.layout.yaxis.domain[0]
    assert figure.layout.height > plot_head_heatmap(frame.assign(kind="exact")).layout.height


def test_a_page_is_filled_by_its_figure(tmp_path):
    figure = plot_head_scatter(by_dataset())
    page = write_html(figure, tmp_path / "a.html").read_text()
    assert f"const [width, height] = [{figure.layout.width}, {figure.layout.height}]" in page
    assert page.rstrip().endswith("</html>")


def test_html_is_small_from_the_cdn_and_whole_when_embedded(tmp_path):
    figure = plot_head_scatter(by_dataset(), note="a note")
    small = write_html(figure, tmp_path / "new" / "folder" / "small.html")
    large = write_html(figure, str(tmp_path / "large.html"), plotly_js="embedded")
    assert (small.name, large.name) == ("small.html", "large.html")
    text = small.read_text()
    assert "cdn.plot.ly" in text
    assert "Top 10 Safety Heads on JailbreakBench" in text
    assert small.stat().st_size < 40_000
    assert large.stat().st_size > 1_000_000
    assert 'src="https://cdn' not in large.read_text()
    unchecked = getattr(write_html, "__wrapped__", write_html)  # past the tests' own type checks
    with pytest.raises(ValueError, match=r'plotly_js is \'web\': expected "cdn".*or "embedded"'):
        unchecked(figure, small, plotly_js="web")


def test_a_file_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    figure = plot_head_scatter(random_table(0, 2, 2))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"cannot write the figure .*file/scatter.html"):
        write_html(figure, tmp_path / "file" / "scatter.html")
    with pytest.raises(IsADirectoryError, match="cannot write the figure"):
        write_html(figure, tmp_path)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.Path, "write_bytes", refuse)
    with pytest.raises(
        PermissionError, match=r"cannot write the figure \(Permission denied\).*a.ht"
    ):
        write_html(figure, tmp_path / "a.html")


def test_image_formats_are_named(tmp_path):
    figure = plot_head_scatter(random_table(0, 2, 2))
    with pytest.raises(ValueError, match=r"ends in '.html': expected one of .png.*write_html"):
        write_image(figure, tmp_path / "a.html")


def test_without_a_browser_the_remedy_is_named(tmp_path, monkeypatch):
    pytest.importorskip("kaleido", reason="kaleido is not installed")
    from choreographer.browsers.chromium import Chromium

    figure = plot_head_scatter(random_table(0, 2, 2))
    monkeypatch.setattr(Chromium, "find_browser", lambda **_: None)
    monkeypatch.delenv("BROWSER_PATH", raising=False)
    with pytest.raises(
        RuntimeError, match=r"none was found.*apt-get install.*BROWSER_PATH.*write_h"
    ):
        write_image(figure, tmp_path / "a.png")
    monkeypatch.setenv("BROWSER_PATH", "/no/browser")
    with pytest.raises(RuntimeError, match="BROWSER_PATH='/no/browser' is not a file"):
        write_image(figure, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_without_kaleido_the_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "kaleido", None)
    with pytest.raises(RuntimeError, match="pip install 'kaleido>=1'"):
        write_image(plot_head_scatter(random_table(0, 2, 2)), tmp_path / "a.png")


def processes_that_mention(text):
    found = []
    for process in os.listdir("/proc"):
        try:
            with open(f"/proc/{process}/cmdline", "rb") as command:
                if text.encode() in command.read():
                    found.append(process)
        except OSError:
            continue
    return found


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="this system has no /proc to look at")
@pytest.mark.parametrize(
    ("script", "error", "timeout"),
    # A browser that dies is noticed at once, but a busy machine may take seconds to start it.
    [("exec sleep 600", TimeoutError, 2), ("exit 3", RuntimeError, 30)],
)
def test_a_browser_that_hangs_or_dies_is_ended(tmp_path, monkeypatch, script, error, timeout):
    pytest.importorskip("kaleido", reason="kaleido is not installed")
    from choreographer.browsers.chromium import Chromium

    browser = tmp_path / "no-real-browser"
    browser.write_text(f"#!/bin/sh\n{script}\n")
    browser.chmod(0o755)
    monkeypatch.setattr(Chromium, "find_browser", lambda **_: str(browser))
    start = time.monotonic()
    with pytest.raises(error, match=r"the browser .*write_html"):
        write_image(plot_head_scatter(random_table(0, 2, 2)), tmp_path / "a.png", timeout=timeout)
    assert time.monotonic() - start < 25 + timeout
    assert not (tmp_path / "a.png").exists()
    assert not processes_that_mention(str(browser))


@pytest.mark.parametrize(("ending", "magic"), [("png", b"\x89PNG"), ("svg", b"<svg")])
def test_picture(tmp_path, ending, magic):
    if problem := files._browser_problem():
        pytest.skip(problem)
    figure = plot_head_scatter(by_dataset(), note="a note")
    path = write_image(figure, tmp_path / "deep" / f"a.{ending}", scale=1)
    content = path.read_bytes()
    assert content.startswith(magic)
    if ending == "svg":
        assert b"Malicious Instruct" in content
    else:
        size = tuple(int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
        assert size == (figure.layout.width, figure.layout.height)


def test_titles_say_prompts_and_model_where_the_table_knows_them():
    frame = by_dataset(4, 4).assign(model="tiny")
    assert titles(plot_head_scatter(frame))[0] == "Top 10 Safety Heads on JailbreakBench, tiny"
    one = frame[frame["dataset"] == "jailbreakbench"]
    by_ablation = plot_head_scatter(one, panel="ablation", series="model")
    assert titles(by_ablation)[0] == (
        "Top 10 Safety Heads on Undifferentiated Attention,<br>JailbreakBench"
    )
