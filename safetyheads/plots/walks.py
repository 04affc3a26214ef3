"""How do curves of walks, regions over training and size, and synthetic activations look?

Each figure is a function of a table: `Sensitivity.curve`, `StableRegions.table` (or `regions_table`) and
`SyntheticComparison.table` make them.
"""

# ruff: noqa: C408  (Plotly's documentation writes attributes as keyword arguments; so does this.)

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from safetyheads.plots.frame import LINE, about, axis, caption, panel, require_columns, sheet
from safetyheads.plots.style import DARK

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

COLOURS = ("#31688e", "#d1603d", "#35b779", "#8f4fa8", "#b5962b", "#4d4d4d", "#c2649a", "#6ba3d6")
STRAIGHT = dict(color="#8f8f8f", dash="dot", width=1.5)
KINDS = {
    "real": "#d1603d",
    "structured": "#35b779",
    "baseline": "#8f4fa8",
    "random": "#31688e",
    "reconstruction": "#8c6d46",
}
"""The kinds of activations with their colours, as in the paper's figures."""
LEFT, RIGHT, TOP, BOTTOM, WIDTH, HEIGHT = 66, 20, 58, 62, 520, 330


def plot_walks(
    table: "pandas.DataFrame",
    *,
    measure: str = "distance",
    group: str = "model",
    note: str | None = None,
) -> "plotly.graph_objects.Figure":
    """Draw the median curve of each group of walks with its quartiles, and a straight line's beside them.

    Args:
        table: a row a step, as `Sensitivity.curve` makes it; several may be concatenated, with a column that tells them
            apart.
        measure: "distance" (over the whole distance), "relative" (d(t)) or "slope".
        group: the column that tells curves apart.
        note: a line under the figure; by default how many walks are shown and how many are invalid.

    Raises:
        ValueError: a column is missing, the table is empty, or a group has two rows for one step.
    """
    import plotly.graph_objects as go

    columns = ("share", "step", "walks", "invalid", measure, f"{measure}_low", f"{measure}_high")
    require_columns(table, (*columns, group), "Sensitivity.curve (and group= a column of it)")
    if table.empty or table.duplicated([group, "step"]).any():
        raise ValueError(
            f"{len(table)} rows came, and each {group} has one row a step: name the column that tells curves apart as "
            "group="
        )
    some = table.groupby(group, sort=False)[["walks", "invalid"]].first().sum()
    note = note or f"{some['walks'] - some['invalid']} valid walks; {some['invalid']} invalid."
    note = _of(table, group, note)
    figure = go.Figure(
        layout=_one_panel(
            "Share of the way", _NAMES.get(measure, measure), note, table[group].nunique() + 2
        )
    )
    straight = [1, 1] if measure == "slope" else [0, 1]
    figure.add_scatter(x=[0, 1], y=straight, mode="lines", line=STRAIGHT, name="a straight line")
    for number, (name, part) in enumerate(table.groupby(group, sort=False)):
        part, colour = part.sort_values("step"), COLOURS[number % len(COLOURS)]
        _band(figure, part["share"], part[f"{measure}_low"], part[f"{measure}_high"], colour)
        figure.add_scatter(
            x=part["share"].tolist(),
            y=part[measure].tolist(),
            mode="lines",
            line=dict(color=colour, width=2),
            name=escape(str(name)),
            hovertemplate=f"{escape(str(name))}, at %{{x:.2f}}: %{{y:.3f}}<extra></extra>",
        )
    square = dict(symbol="square", size=12, color="rgba(38,38,38,0.15)")
    figure.add_scatter(
        **dict(x=[None], y=[None], mode="markers", marker=square), name="quartiles; line: median"
    )
    return figure


_NAMES = {
    "distance": "Distance / whole distance",
    "relative": "Relative distance d(t)",
    "slope": "Slope over that of a straight line",
}


def plot_regions(
    table: "pandas.DataFrame",
    x: str,
    *,
    measures: Sequence[str] = ("sharpness", "width"),
    note: str | None = None,
) -> "plotly.graph_objects.Figure":
    """Draw sharpness and width against training tokens or parameters, trained beside random weights.

    Args:
        table: a row a model and kind of weights, as `StableRegions.table` or `regions_table` makes it.
        x: the column along the logarithmic axis, such as "tokens" or "parameters"; a zero stands left of a break.
        measures: columns with `_low` and `_high`; one panel each.
        note: a line under the figure; by default walks, invalid ones and steps.

    Raises:
        ValueError: a column is missing or the table is empty.
    """
    import plotly.graph_objects as go

    columns = [f"{m}{end}" for m in measures for end in ("", "_low", "_high")]
    require_columns(
        table, (x, "weights", "walks", "invalid", "steps", *columns), "StableRegions.table"
    )
    if table.empty:
        raise ValueError("the table is empty: there is nothing to draw")
    invalid = int(table["invalid"].sum())
    note = note or (
        (f"{told}. " if (told := about(table, ["model"])) else "")
        + f"Medians with quartiles of {int(table['walks'].min())} walks of {int(table['steps'].iloc[0])} steps each; "
        f"{invalid} invalid in all. Dotted: a straight line."
    )
    positive = table.loc[table[x] > 0, x]
    zero = float(positive.min()) / (4 if (table[x] == 0).any() else 1) if len(positive) else 1.0
    size, gap = (400, 300), 76
    inner = (len(measures) * size[0] + (len(measures) - 1) * gap, size[1])
    below, notes = caption(note, width=LEFT + inner[0] + RIGHT, left=LEFT, below=BOTTOM)
    margins = dict(left=LEFT, right=RIGHT, top=TOP, bottom=BOTTOM + below)
    layout = sheet(LEFT + inner[0] + RIGHT, TOP + size[1] + BOTTOM + below, **margins)
    layout |= dict(annotations=notes, legend=_legend())
    figure = go.Figure()
    for number, measure in enumerate(measures):
        place = panel(number, x=number * (size[0] + gap), y=0, size=size, inner=inner)
        layout |= place.frame(
            _log_axis(table, x, zero), axis(title=dict(text=measure.capitalize()))
        )
        straight = {"sharpness": 1.0, "width": 0.8, "area": 0.5}.get(measure)
        ends = [zero / 1.5, float(table[x].max()) * 1.5]
        if straight is not None:
            line = dict(mode="lines", line=STRAIGHT, showlegend=False, hoverinfo="skip")
            figure.add_scatter(x=ends, y=[straight] * 2, **line, **place.axes)
        for weights, colour in (("trained", COLOURS[0]), ("random", COLOURS[5])):
            part = table[table["weights"] == weights].sort_values(x)
            figure.add_scatter(
                x=[float(value) or zero for value in part[x]],
                y=part[measure].tolist(),
                error_y=_error(part, measure),
                mode="lines+markers",
                line=dict(color=colour, width=2, dash=None if weights == "trained" else "dash"),
                marker=dict(size=8),
                name=weights + (" weights" if weights == "random" else ""),
                showlegend=not number,
                customdata=part[x].tolist(),
                hovertemplate=f"{weights}, {x} %{{customdata}}: {measure} %{{y:.2f}}<extra></extra>",
                **place.axes,
            )
    figure.update_layout(layout)
    return figure


def plot_synthetic(
    table: "pandas.DataFrame", *, bins: int | None = None, note: str | None = None
) -> "plotly.graph_objects.Figure":
    """Draw how max slope and plateau length are distributed over each kind of activation, with its mean.

    Args:
        table: a row a kind and walk, as `SyntheticComparison.table` makes it.
        bins: of a histogram, the same for all kinds; by default the share of walks up to each value is drawn, which
            needs none.
        note: a line under the figure; by default the number of walks.

    Raises:
        ValueError: a column is missing, no walk is valid, or there is less than one bin.
    """
    import plotly.graph_objects as go

    require_columns(table, ("kind", "max_slope", "plateau", "valid"), "SyntheticComparison.table")
    valid = table[table["valid"]]
    if valid.empty:
        raise ValueError("the table has no valid walk: there is nothing to draw")
    if bins is not None and bins < 1:
        raise ValueError(f"bins is {bins}; a histogram has at least 1")
    told = f"{len(valid)} valid walks of {len(table)}. Triangles: means."
    note = _of(table, "kind", note or told)
    size, gap = (400, 300), 76
    inner = (2 * size[0] + gap, size[1])
    below, notes = caption(note, width=LEFT + inner[0] + RIGHT, left=LEFT, below=BOTTOM)
    margins = dict(left=LEFT, right=RIGHT, top=TOP, bottom=BOTTOM + below)
    layout = sheet(LEFT + inner[0] + RIGHT, TOP + size[1] + BOTTOM + below, **margins)
    layout |= dict(annotations=notes, legend=_legend())
    figure = go.Figure()
    titles = {
        "max_slope": "Max slope: step of the fastest change, of 100",
        "plateau": "Activation plateau [length in the residual stream]",
    }
    for number, (measure, title) in enumerate(titles.items()):
        place = panel(number, x=number * (size[0] + gap), y=0, size=size, inner=inner)
        lines = {
            str(k): _steps(p[measure], valid[measure], bins)
            for k, p in valid.groupby("kind", sort=False)
        }
        top = max(max(heights) for _, heights in lines.values())
        y = axis(title=dict(text="" if number else "Share of walks"), range=[0, 1.08 * top])
        layout |= place.frame(axis(title=dict(text=title)), y)
        for kind, (values, heights) in lines.items():
            colour, name = KINDS.get(kind, DARK), escape(kind)
            up = "" if bins else " up to"
            figure.add_scatter(
                x=values,
                y=heights,
                mode="lines",
                line=dict(color=colour, width=2, shape="hv"),
                name=name,
                legendgroup=name,
                showlegend=not number,
                hovertemplate=f"{name}: %{{y:.2f}}{up} at %{{x:.3g}}<extra></extra>",
                **place.axes,
            )
            mean = float(valid.loc[valid["kind"] == kind, measure].mean())
            figure.add_scatter(
                x=[mean],
                y=[1.04 * top],
                mode="markers",
                marker=dict(symbol="triangle-down", size=9, color=colour),
                legendgroup=name,
                showlegend=False,
                hovertemplate=f"{name}: mean %{{x:.3g}}<extra></extra>",
                **place.axes,
            )
    figure.update_layout(layout)
    return figure


def _steps(own: Any, every: Any, bins: int | None) -> tuple[list[float], list[float]]:
    """Where the steps of a distribution are and how high: cumulative, or of bins that all kinds share."""
    import numpy as np

    if bins is None:
        values = sorted(own.tolist())
        return [values[0], *values], [n / len(values) for n in range(len(values) + 1)]
    edges = np.histogram_bin_edges(every, bins)
    counts = np.histogram(own, edges)[0] / len(own)
    return [edges[0], *edges.tolist()], [0.0, *counts.tolist(), 0.0]


def plot_border(
    table: "pandas.DataFrame", *, group: str = "heads", note: str | None = None
) -> "plotly.graph_objects.Figure":
    """Draw where on the way to a harmful prompt the model begins to refuse: the share of pairs that have crossed.

    Args:
        table: a row a pair, as `RefusalBorder.table` makes it; several may be concatenated.
        group: the column that tells curves apart; those of random heads are drawn thin and grey.
        note: a line under the figure; by default the number of pairs that never cross.

    Raises:
        ValueError: a column is missing or the table is empty.
    """
    import plotly.graph_objects as go

    require_columns(table, ("crossing", "start", group), "RefusalBorder.table")
    if table.empty:
        raise ValueError("the table is empty: there is nothing to draw")
    parts = {str(name): part for name, part in table.groupby(group, sort=False)}
    begun = {name: part[part["start"] < 0] for name, part in parts.items()}
    counts = [f"{n}: {len(b)} of {len(parts[n])} begin without a refusal" for n, b in begun.items()]
    note = _of(table, group, note or "; ".join(counts) + ".")
    y = "Share of pairs that have begun to refuse"
    figure = go.Figure(
        layout=_one_panel("Share of the way to the harmful prompt", y, note, len(parts))
    )
    drawn = 0
    for name, part in begun.items():
        grey = name.startswith("random")
        colour = "#b0b0b0" if grey else COLOURS[drawn % len(COLOURS)]
        drawn += not grey
        where = sorted(part["crossing"].dropna().tolist())
        total = max(len(part), 1)
        steps = [n / total for n in range(len(where) + 1)]
        figure.add_scatter(
            x=[0, *where, 1],
            y=[*steps, steps[-1]],
            mode="lines",
            line=dict(color=colour, width=1.3 if grey else 2.5, shape="hv"),
            name=escape(name),
            hovertemplate=f"{escape(name)}: %{{y:.2f}} at %{{x:.2f}}<extra></extra>",
        )
    figure.update_yaxes(range=[0, 1.02])
    return figure


def _of(table: "pandas.DataFrame", group: str, note: str) -> str:
    """A note that begins with the model and the prompts, as far as they are one."""
    told = about(table, [name for name in ("model", "dataset") if name != group])
    return f"{told}. {note}" if told else note


def _one_panel(x: str, y: str, note: str, names: int) -> dict[str, Any]:
    """One panel under a legend of so many names."""
    below, notes = caption(note, width=LEFT + WIDTH + RIGHT, left=LEFT, below=BOTTOM)
    top = TOP + LINE * ((names - 1) // 2)
    margins = dict(left=LEFT, right=RIGHT, top=top, bottom=BOTTOM + below)
    layout = sheet(LEFT + WIDTH + RIGHT, top + HEIGHT + BOTTOM + below, **margins)
    axes = dict(xaxis=axis(title=dict(text=x)), yaxis=axis(title=dict(text=y)))
    return layout | axes | dict(annotations=notes, legend=_legend())


def _legend() -> dict[str, Any]:
    return dict(orientation="h", x=0, yref="container", y=1, yanchor="top")


def _band(figure: "plotly.graph_objects.Figure", x: Any, low: Any, high: Any, colour: str) -> None:
    """The quartiles as a pale band."""
    red, green, blue = (int(colour[n : n + 2], 16) for n in (1, 3, 5))
    figure.add_scatter(
        x=[*x, *reversed(list(x))],
        y=[*high, *reversed(list(low))],
        fill="toself",
        fillcolor=f"rgba({red},{green},{blue},0.15)",
        line=dict(width=0),
        hoverinfo="skip",
        showlegend=False,
    )


def _error(part: "pandas.DataFrame", measure: str) -> dict[str, Any]:
    reach = dict(
        array=(part[f"{measure}_high"] - part[measure]).tolist(),
        arrayminus=(part[measure] - part[f"{measure}_low"]).tolist(),
    )
    return dict(type="data", symmetric=False, thickness=1.2, width=3, **reach)


def _log_axis(table: "pandas.DataFrame", x: str, zero: float) -> dict[str, Any]:
    """A logarithmic axis, on which a zero has a place of its own."""
    titles = {"tokens": "Tokens seen in training", "parameters": "Parameters"}
    values = sorted({float(value) for value in table[x]})
    shown = [values[n] for n in range(0, len(values), -(-len(values) // 6))]
    return axis(
        type="log",
        title=dict(text=titles.get(x, x)),
        tickvals=[value or zero for value in shown],
        ticktext=[_short(value) for value in shown],
    )


def _short(value: float) -> str:
    """A number as a tick shows it.

    >>> _short(0.0), _short(16384.0), _short(2_097_152.0), _short(494e6)
    ('0', '16k', '2.1M', '494M')
    """
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            scaled = value / size
            return f"{scaled:.0f}{letter}" if scaled >= 10 else f"{scaled:.2g}{letter}"
    return f"{value:.0f}"
