"""Along how many directions do harmful and harmless prompts differ? Figures of tables that `Spectrum` gives.

`plot_spectrum` and `plot_component_cosines` draw `Spectrum.to_frame()`, several of them below each other to compare
models; `plot_planes` draws `Spectrum.points()`.
"""

# ruff: noqa: C408  (Plotly's documentation writes attributes as keyword arguments; so does this.)

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from safetyheads.plots.frame import axis, caption, panel, require_columns, sheet
from safetyheads.plots.style import DARK, human

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

COLOURS = ("#1f77b4", "#e8821e", "#c23b3b", "#7a5195", "#3a8f5c", "#7f7f7f")
"""A colour a model; the paper's first three are baseline blue, adversarial orange, latent adversarial red."""
HARMFUL, HARMLESS = "#c23b3b", "#1f77b4"
CHANCE = "#7f7f7f"
LEFT, RIGHT, TOP, BOTTOM = 66, 20, 88, 56
GAP = 62


def plot_spectrum(
    table: "pandas.DataFrame",
    layer: int,
    *,
    position: int = -1,
    versions: Sequence[str] = ("uncentred", "centred", "uncentred, trimmed"),
    components: int = 6,
    note: str | None = None,
) -> "plotly.graph_objects.Figure":
    """Draw explained shares as bars by component and model, and the cumulative curve over all components.

    A column of panels a version: above, bars with their bootstrap interval, grey marks where 95 % of relabellings stay
    below and a dotted one for the copy with random weights; below, the cumulative share.

    Args:
        table: what `Spectrum.to_frame()` gives, of one model or of several.
        layer: which layer to draw.
        position: which position, from the prompt's end.
        versions: which decompositions, a column each.
        components: bars of each model.
        note: a caption drawn under the figure.

    Raises:
        ValueError: a column is missing, or the table lacks the layer, the position or a version.
    """
    import plotly.graph_objects as go

    columns = ("model", "version", "position", "layer", "component", "explained", "low", "high")
    require_columns(table, (*columns, "chance", "random"), "Spectrum.to_frame()")
    rows = _at(table, layer=layer, position=position)
    lacking = [version for version in versions if version not in set(rows["version"])]
    if lacking or not versions:
        raise ValueError(
            f"the table has no version {lacking[0] if lacking else ''!r}; it has {', '.join(rows['version'].unique())}"
        )
    size, below = (250, 210), (250, 130)
    inner = (len(versions) * size[0] + (len(versions) - 1) * GAP, size[1] + GAP + below[1])
    width, height = inner[0] + LEFT + RIGHT, inner[1] + TOP + BOTTOM
    tall, notes = caption(note, width=width, left=LEFT, below=BOTTOM)
    margins = dict(left=LEFT, right=RIGHT, top=TOP, bottom=BOTTOM + tall)
    figure = go.Figure(layout=sheet(width, height + tall, **margins))
    highest = float(min(1.0, 1.06 * rows[["explained", "high", "chance"]].max().max()))
    models = list(rows["model"].unique())
    for column, version in enumerate(versions):
        left = column * (size[0] + GAP)
        bars = panel(2 * column, x=left, y=0, size=size, inner=inner)
        curve = panel(2 * column + 1, x=left, y=size[1] + GAP, size=below, inner=inner)
        share = dict(tickformat=".0%")
        figure.update_layout(
            bars.frame(
                axis(dtick=1, range=[0.4, components + 0.6], title="component"),
                axis(range=[0, highest], title="" if column else "explained", **share),
            )
            | curve.frame(
                axis(dtick=2, title="components"),
                axis(range=[0, 1.03], title="" if column else "cumulative", **share),
            )
        )
        figure.add_annotation(bars.heading(escape(version.capitalize())))
        for number, model in enumerate(models):
            part = rows[(rows["version"] == version) & (rows["model"] == model)]
            colour = COLOURS[number % len(COLOURS)]
            some = part[part["component"] <= components]
            offset = 0.8 / len(models)
            _bars(figure, some, bars.axes, colour, number * offset - 0.4, offset, column == 0)
            figure.add_scatter(
                **curve.axes,
                **dict(x=part["component"].tolist(), y=part["explained"].cumsum().tolist()),
                **dict(mode="lines+markers", name=model, showlegend=False),
                line=dict(color=colour, width=2),
                marker=dict(size=5),
            )
    title = f"Refusal spectrum, what enters layer {layer}, position {position}"
    return _finished(figure, title, inner, notes)


def _bars(
    figure: "plotly.graph_objects.Figure",
    part: "pandas.DataFrame",
    axes: dict[str, str],
    colour: str,
    offset: float,
    width: float,
    legend: bool,
) -> None:
    """One model's bars, with its interval and its marks of chance."""
    figure.add_bar(
        **axes,
        **dict(x=part["component"].tolist(), y=part["explained"].tolist()),
        **dict(offset=offset, width=width * 0.92, marker_color=colour, showlegend=legend),
        name=escape(human(str(part["model"].iloc[0]))),
        error_y=dict(
            **dict(type="data", symmetric=False, thickness=1.2, width=3, color=DARK),
            array=(part["high"] - part["explained"]).clip(lower=0).tolist(),
            arrayminus=(part["explained"] - part["low"]).clip(lower=0).tolist(),
        ),
        hovertemplate="component %{x}: %{y:.1%}<extra></extra>",
    )
    marks = (("chance", "95 % of relabellings", "solid"), ("random", "random weights", "dot"))
    for name, words, dash in marks:
        if part[name].isna().all():
            continue
        x: list[Any] = []
        y: list[Any] = []
        for component, value in zip(part["component"], part[name], strict=True):
            x += [component + offset, component + offset + width, None]
            y += [value, value, None]
        first = legend and offset <= -0.4
        figure.add_scatter(
            **axes,
            **dict(x=x, y=y, mode="lines", name=words, showlegend=first, hoverinfo="skip"),
            line=dict(color=CHANCE, width=2, dash=dash),
        )


def plot_planes(
    points: "pandas.DataFrame",
    layers: Sequence[int],
    *,
    position: int = -1,
    note: str | None = None,
) -> "plotly.graph_objects.Figure":
    """Draw prompts on the first two principal components of their states: a row a model, a panel a layer.

    Args:
        points: what `Spectrum.points()` gives, of one model or of several.
        layers: which layers, a column each.
        position: which position, from the prompt's end.
        note: a caption drawn under the figure.

    Raises:
        ValueError: a column is missing, or the table lacks a layer or the position.
    """
    import plotly.graph_objects as go

    columns = ("model", "position", "layer", "side", "x", "y", "x_explained", "y_explained")
    require_columns(points, columns, "Spectrum.points()")
    if not layers:
        raise ValueError("layers is empty; name at least one that the table has")
    parts = {layer: _at(points, layer=layer, position=position) for layer in layers}
    models = list(points["model"].unique())
    size, gap = 190, 74
    inner = (
        len(layers) * size + (len(layers) - 1) * gap,
        len(models) * size + (len(models) - 1) * gap,
    )
    width, height = inner[0] + LEFT + RIGHT, inner[1] + TOP + BOTTOM
    tall, notes = caption(note, width=width, left=LEFT, below=BOTTOM)
    margins = dict(left=LEFT, right=RIGHT, top=TOP, bottom=BOTTOM + tall)
    figure = go.Figure(layout=sheet(width, height + tall, **margins))
    for row, model in enumerate(models):
        for column, layer in enumerate(layers):
            number = row * len(layers) + column
            place = panel(
                number,
                x=column * (size + gap),
                y=row * (size + gap),
                size=(size, size),
                inner=inner,
            )
            some = parts[layer][parts[layer]["model"] == model]
            x, y = some[["x_explained", "y_explained"]].iloc[0]
            figure.update_layout(
                place.frame(
                    axis(title=f"PC1 ({x:.0%})", nticks=5), axis(title=f"PC2 ({y:.0%})", nticks=5)
                )
            )
            words = f"{human(model)}, layer {layer}" if len(models) > 1 else f"Layer {layer}"
            figure.add_annotation(place.heading(escape(words)))
            for side, colour in (("harmless", HARMLESS), ("harmful", HARMFUL)):
                half = some[some["side"] == side]
                figure.add_scatter(
                    **place.axes,
                    **dict(x=half["x"].tolist(), y=half["y"].tolist(), mode="markers"),
                    **dict(name=side, legendgroup=side, showlegend=number == 0),
                    marker=dict(color=colour, size=5, opacity=0.7),
                )
    title = f"States at position {position}" + (f": {human(models[0])}" if len(models) == 1 else "")
    return _finished(figure, title, inner, notes)


def plot_component_cosines(
    table: "pandas.DataFrame",
    *,
    position: int = -1,
    version: str = "uncentred",
    components: int = 3,
    note: str | None = None,
) -> "plotly.graph_objects.Figure":
    """Draw |cosine| of the first components with the mean difference, layer by layer: a panel a model.

    Args:
        table: what `Spectrum.to_frame()` gives, of one model or of several.
        position: which position, from the prompt's end.
        version: which decomposition.
        components: how many lines.
        note: a caption drawn under the figure.

    Raises:
        ValueError: a column is missing, or the table lacks the position or the version.
    """
    import plotly.graph_objects as go

    columns = ("model", "version", "position", "layer", "component", "cosine")
    require_columns(table, columns, "Spectrum.to_frame()")
    rows = _at(table, position=position, version=version)
    models = list(rows["model"].unique())
    size = (340, 220)
    inner = (len(models) * size[0] + (len(models) - 1) * GAP, size[1])
    width, height = inner[0] + LEFT + RIGHT, inner[1] + TOP + BOTTOM
    tall, notes = caption(note, width=width, left=LEFT, below=BOTTOM)
    margins = dict(left=LEFT, right=RIGHT, top=TOP, bottom=BOTTOM + tall)
    figure = go.Figure(layout=sheet(width, height + tall, **margins))
    for number, model in enumerate(models):
        place = panel(number, x=number * (size[0] + GAP), y=0, size=size, inner=inner)
        words = "" if number else "|cosine|"
        figure.update_layout(
            place.frame(axis(title="layer"), axis(range=[-0.02, 1.04], title=words))
        )
        figure.add_annotation(place.heading(escape(human(model))))
        for component in range(1, components + 1):
            some = rows[(rows["model"] == model) & (rows["component"] == component)]
            colour = COLOURS[(component - 1) % len(COLOURS)]
            figure.add_scatter(
                **place.axes,
                **dict(x=some["layer"].tolist(), y=some["cosine"].abs().tolist()),
                **dict(mode="lines+markers", name=f"component {component}"),
                **dict(line=dict(color=colour, width=2), marker=dict(size=5)),
                showlegend=number == 0,
            )
    title = f"Components ({version}) and the mean difference, position {position}"
    return _finished(figure, title, inner, notes)


def _at(table: "pandas.DataFrame", **where: Any) -> "pandas.DataFrame":
    """The rows at one place, or an error that says what there is."""
    for name, value in where.items():
        if value not in set(table[name]):
            there = ", ".join(map(str, table[name].unique()))
            raise ValueError(f"the table has no {name} {value!r}; it has {there}")
        table = table[table[name] == value]
    return table


def _finished(
    figure: "plotly.graph_objects.Figure",
    title: str,
    inner: tuple[int, int],
    notes: list[dict[str, Any]],
) -> "plotly.graph_objects.Figure":
    width, height = figure.layout.width, figure.layout.height
    figure.update_layout(
        title=dict(text=escape(title), x=LEFT / width, y=1 - 14 / height, yanchor="top"),
        title_font=dict(size=16, color=DARK),
        legend=dict(
            **dict(orientation="h", x=0, xanchor="left", y=1 + 24 / inner[1]),
            **dict(yanchor="bottom", bgcolor="rgba(0,0,0,0)"),
        ),
        barmode="overlay",
    )
    for made in notes:
        figure.add_annotation(made)
    return figure
