"""At which layers is a jailbreak told, and by more than its length and its words?

The figure is a function of a table as `score_detectors` makes it: features, layer (missing for the baselines),
classifier, f1, low, high, null_high, transductive, jailbreaks, benign, and a column that tells the panels apart.
"""

# ruff: noqa: C408  (Plotly's documentation writes attributes as keyword arguments; so does this.)

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from safetyheads.plots.frame import axis, require_columns, sheet, suffix
from safetyheads.plots.frame import panel as place_of
from safetyheads.plots.style import human

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

COLUMNS = (
    *("features", "layer", "classifier", "f1", "low", "high", "null_high"),
    *("transductive", "jailbreaks", "benign"),
)
"""The columns that every table must have."""
LOOKS = {
    "attn_out": ("attention output", "#31688e", "circle"),
    "resid_post": ("block output", "#d1603d", "square"),
}
"""A representation's name, colour and mark."""
LINES = {
    "bag_of_words": ("bag of words", "#4d4d4d", "dash"),
    "length": ("length only", "#8f8f8f", "dot"),
}
NULL = "largest F1 under shuffled labels"
PANEL_WIDTH, PANEL_HEIGHT = 360, 300
LEFT, RIGHT, TOP, BOTTOM, BETWEEN = 66, 20, 54, 52, 26
LEGEND_WIDTH, LEGEND_HEIGHT = 700, 29
"""Of the legend, were it on one line."""


def plot_detection(
    table: "pandas.DataFrame", *, classifier: str | None = None, panel: str = "model"
) -> "plotly.graph_objects.Figure":
    """Draw F1 by layer with its interval, the baselines as lines across, and the null as a shaded floor.

    Args:
        table: a row a layer and classifier, as `score_detectors` makes it; tables of several models or contrasts may
            be concatenated.
        classifier: the one that is drawn; by default the table's first.
        panel: the column that tells panels apart.

    Raises:
        ValueError: a column is missing, the table is empty or lacks the classifier, or a panel has two rows for one
            layer and representation.
    """
    import plotly.graph_objects as go

    rows = _checked(table, classifier, panel)
    names = list(dict.fromkeys(rows[panel]))
    figure = go.Figure(layout=_layout(rows, names, panel))
    seen: set[str] = set()
    for index, name in enumerate(names):
        part = rows[rows[panel] == name]
        _draw_panel(figure, part, index, seen)
    return figure


def _checked(table: "pandas.DataFrame", classifier: str | None, panel: str) -> "pandas.DataFrame":
    require_columns(table, (*COLUMNS, panel), "score_detectors (and panel= a column of it)")
    if table.empty:
        raise ValueError("the table is empty: there is nothing to draw")
    known = list(dict.fromkeys(table["classifier"]))
    classifier = known[0] if classifier is None else classifier
    if classifier not in known:
        raise ValueError(f"classifier is {classifier!r}; the table has {', '.join(known)}")
    rows = table[table["classifier"] == classifier]
    twice = rows[rows.duplicated([panel, "features", "layer"])]
    if len(twice):
        raise ValueError(
            f"{panel} {twice[panel].iloc[0]!r} has {twice['features'].iloc[0]} at one layer twice: "
            "name the column that tells them apart as panel="
        )
    return rows


def _draw_panel(
    figure: "plotly.graph_objects.Figure", part: "pandas.DataFrame", index: int, seen: set[str]
) -> None:
    """One panel's traces; a name in `seen` is in the legend already."""
    axes = dict(xaxis=f"x{suffix(index)}", yaxis=f"y{suffix(index)}")

    def add(name: str, **values: Any) -> None:
        shown = name not in seen
        seen.add(name)
        figure.add_scatter(name=name, legendgroup=name, showlegend=shown, **axes, **values)

    layers = part["layer"].dropna().astype(int)
    ends = [layers.min() - 0.8, layers.max() + 0.8]
    null = part["null_high"].dropna()
    if len(null):
        look = dict(
            mode="lines", line=dict(width=0), fillcolor="rgba(0,0,0,0.07)", hoverinfo="skip"
        )
        add(NULL, x=ends, y=[null.max()] * 2, fill="tozeroy", **look)
    for features, (name, colour, dash) in LINES.items():
        for f1 in part.loc[part["features"] == features, "f1"]:
            line = dict(color=colour, dash=dash, width=2)
            hover = f"{name}: F1 {f1:.3f}<extra></extra>"
            add(name, x=ends, y=[f1, f1], mode="lines", line=line, hovertemplate=hover)
    drawn = [features for features in LOOKS if (part["features"] == features).any()]
    for which, features in enumerate(drawn):
        name, colour, mark = LOOKS[features]
        some = part[part["features"] == features].sort_values("layer")
        reach = dict(
            array=(some["high"] - some["f1"]).tolist(),
            arrayminus=(some["f1"] - some["low"]).tolist(),
        )
        aside = 0.16 * (
            2 * which - (len(drawn) - 1)
        )  # intervals of two representations side by side
        add(
            name,
            x=[layer + aside for layer in some["layer"].astype(int)],
            y=some["f1"].tolist(),
            mode="lines+markers",
            line=dict(color=colour, width=1.5),
            marker=dict(symbol=mark, size=8, line=dict(color="white", width=1)),
            error_y=dict(type="data", symmetric=False, thickness=1.2, width=3, **reach),
            customdata=some[["layer", "low", "high"]].astype(float).to_numpy().tolist(),
            hovertemplate=f"{name}, layer %{{customdata[0]}}: F1 %{{y:.3f}} "
            "(%{customdata[1]:.3f} to %{customdata[2]:.3f})<extra></extra>",
        )


def _layout(rows: "pandas.DataFrame", names: Sequence[Any], panel: str) -> dict[str, Any]:
    """Panels side by side with one F1 axis, one legend above all."""
    width = LEFT + RIGHT + len(names) * PANEL_WIDTH + (len(names) - 1) * BETWEEN
    inner = width - LEFT - RIGHT
    top = TOP + LEGEND_HEIGHT * math.ceil(LEGEND_WIDTH / inner)
    margins = dict(left=LEFT, right=RIGHT, top=top, bottom=BOTTOM)
    layout = sheet(width, top + PANEL_HEIGHT + BOTTOM, **margins)
    layout["legend"] = dict(orientation="h", x=0, yref="container", y=1, yanchor="top")
    layout["annotations"] = []
    classifier = str(rows["classifier"].iloc[0]).replace("_", " ")
    for index, name in enumerate(names):
        size = (PANEL_WIDTH, PANEL_HEIGHT)
        place = place_of(
            index, x=index * (PANEL_WIDTH + BETWEEN), y=0, size=size, inner=(inner, PANEL_HEIGHT)
        )
        part = rows[rows[panel] == name]
        layers = sorted(set(part["layer"].dropna().astype(int)))
        x = axis(
            title=dict(text="Layer", standoff=8),
            range=[layers[0] - 0.8, layers[-1] + 0.8],
            tickvals=layers if len(layers) <= 12 else None,
            showgrid=False,
        )
        y = axis(
            title=dict(text="" if index else f"F1 of the jailbreaks, {classifier}"),
            range=[0, 1.03],
            showticklabels=not index,
        )
        layout |= place.frame(x, y)
        counts = part.iloc[0]
        title = f"{escape(human(str(name)))}<br><span style='font-size:11px'>{counts['jailbreaks']} jailbreak, "
        title += f"{counts['benign']} benign prompts"
        title += ", transductive" if part["transductive"].any() else ""
        layout["annotations"].append(place.heading(f"{title}</span>"))
    return layout
