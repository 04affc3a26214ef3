"""How does refusal grow from a model to its sibling and beyond, and what moves along?

`plot_ladder` draws the table of `Ladder.to_frame()`, one row a rung:

==================  ===================================================================
t                   the rung: W + t·(W' − W)
refusal             share of harmful prompts refused, with `_low` and `_high`
over_refusal        share of harmless prompts refused, with `_low` and `_high`
degenerate          share of answers to harmful prompts that are no language
harmless_loss       cross-entropy of the base's own harmless answers [nat per token]
top_heads           overlap of the ten strongest heads with those at t = 1
heads_rank          rank correlation of all heads with those at t = 1
direction           cosine of the refusal direction with that at t = 1
two_components      share of the squared differences in their first two components
two_trimmed         the same without the outlier dimensions
base, sibling       optional: the two models, for the title
==================  ===================================================================
"""

# ruff: noqa: C408  (Plotly's documentation writes attributes as keyword arguments; so does this.)

from html import escape
from typing import TYPE_CHECKING, Any

from safetyheads.plots.frame import axis, caption, panel, require_columns, sheet
from safetyheads.plots.style import DARK

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

COLUMNS = (
    "t",
    "refusal",
    "over_refusal",
    "degenerate",
    "harmless_loss",
    "top_heads",
    "heads_rank",
    "direction",
    "two_components",
    "two_trimmed",
)
"""The columns that every table must have."""

PANEL_WIDTH, PANEL_HEIGHT, GAP = 270, 250, 78
LEFT, RIGHT, TOP, BOTTOM = 74, 24, 74, 88
REFUSED, REFUSED_TOO, BROKEN, LOST = "#b5367a", "#2b7bba", "#7f7f7f", "#3f3f3f"
_TICKS = [0, 0.25, 0.5, 0.75, 1]
_RATES = (
    ("refusal", "Harmful refused", REFUSED, "circle", "solid"),
    ("over_refusal", "Harmless refused", REFUSED_TOO, "square", "solid"),
    ("degenerate", "Degenerate", BROKEN, "x", "dot"),
)
_ALIKE = (
    ("top_heads", "Ten strongest heads, overlap", REFUSED, "circle", "solid"),
    ("heads_rank", "All heads, rank correlation", REFUSED_TOO, "square", "solid"),
    ("direction", "Refusal direction, cosine", LOST, "diamond", "dash"),
)
_SPECTRUM = (
    ("two_components", "As they are", REFUSED, "circle", "solid"),
    ("two_trimmed", "Without outlier dimensions", REFUSED_TOO, "square", "dash"),
)


def plot_ladder(
    table: "pandas.DataFrame", *, note: str | None = None
) -> "plotly.graph_objects.Figure":
    """Draw a ladder against t: rates with their intervals, harmless loss, likeness to t = 1, and the spectrum.

    Args:
        table: the rungs, with the columns that the module documents.
        note: a caption drawn under the figure.

    Raises:
        ValueError: a column is missing.
    """
    import plotly.graph_objects as go

    require_columns(table, COLUMNS, "Ladder.to_frame()")
    table = table.sort_values("t")
    inner = 4 * PANEL_WIDTH + 3 * GAP, PANEL_HEIGHT
    width = LEFT + inner[0] + RIGHT
    extra, notes = caption(note, width=width, left=LEFT, below=BOTTOM - 10)
    height = TOP + inner[1] + BOTTOM + extra
    figure = go.Figure(
        layout=sheet(width, height, left=LEFT, right=RIGHT, top=TOP, bottom=BOTTOM + extra)
    )
    shares = dict(tickvals=_TICKS, ticktext=[f"{t:.0%}" for t in _TICKS], range=[-0.03, 1.03])
    low = min(0.0, float(table[[name for name, *_ in _ALIKE]].min().min()))
    panels: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("Refusal", "Share of answers", shares),
        ("Harmless answers", "Loss of the base's own [nat/token]", dict(rangemode="tozero")),
        ("Likeness to t = 1", "Overlap or correlation", dict(range=[low - 0.05, 1.05])),
        ("First two components", "Share of the squared differences", shares),
    )
    places = []
    for number, (title, unit, y) in enumerate(panels):
        x = number * (PANEL_WIDTH + GAP)
        place = panel(number, x=x, y=0, size=(PANEL_WIDTH, PANEL_HEIGHT), inner=inner)
        rungs = dict(tickvals=table["t"].tolist(), title=dict(text="t", standoff=4))
        figure.update_layout(
            place.frame(axis(**rungs), axis(**y, title=dict(text=unit, standoff=6)))
        )
        figure.add_annotation(place.heading(f"<b>{title}</b>"))
        places.append(place)
    for name, label, colour, symbol, dash in _RATES:
        bars = _bars(table, name, colour)
        _line(figure, table, name, label, (colour, symbol, dash), places[0].axes | bars)
    lost = (LOST, "circle", "solid")
    _line(figure, table, "harmless_loss", "", lost, places[1].axes | dict(showlegend=False))
    for name, label, *look in _ALIKE:
        _line(figure, table, name, label, tuple(look), places[2].axes | dict(legend="legend2"))
    for name, label, *look in _SPECTRUM:
        _line(figure, table, name, label, tuple(look), places[3].axes | dict(legend="legend3"))
    below = dict(orientation="h", y=-48 / PANEL_HEIGHT, yanchor="top", xanchor="left")
    figure.update_layout(
        title=dict(text=_title(table), x=LEFT / width, y=1 - 14 / height, yanchor="top"),
        title_font=dict(size=16, color=DARK),
        legend=dict(below, x=0),
        legend2=dict(below, x=0.35),
        legend3=dict(below, x=places[3].left),
    )
    for made in notes:
        figure.add_annotation(made)
    return figure


def _title(table: "pandas.DataFrame") -> str:
    if not {"base", "sibling"} <= set(table.columns):
        return "Between a model and its sibling"
    return escape(f"From {table['base'].iloc[0]} to {table['sibling'].iloc[0]}")


def _bars(table: "pandas.DataFrame", name: str, colour: str) -> dict[str, Any]:
    """A rate's interval, where the table has one."""
    if f"{name}_low" not in table or name == "degenerate":
        return {}
    above = (table[f"{name}_high"] - table[name]).tolist()
    below = (table[name] - table[f"{name}_low"]).tolist()
    look = dict(type="data", symmetric=False, thickness=1.3, width=4, color=colour)
    return dict(error_y=dict(look, array=above, arrayminus=below))


def _line(
    figure: "plotly.graph_objects.Figure",
    table: "pandas.DataFrame",
    name: str,
    label: str,
    look: tuple[str, ...],
    more: dict[str, Any],
) -> None:
    colour, symbol, dash = look
    figure.add_scatter(
        **dict(x=table["t"].tolist(), y=table[name].tolist(), mode="lines+markers", name=label),
        line=dict(color=colour, width=2.5, dash=dash),
        marker=dict(size=8, symbol=symbol),
        hovertemplate="%{y:.3g} at t = %{x:g}<extra></extra>",
        **more,
    )
