"""What does ablating a direction do, and who writes it? Figures of candidates, of heads and of the rates of a transfer.

`plot_selection` draws `Selection.to_frame()`, `plot_heads_along` draws `HeadsAlong.to_frame()`, `plot_effects` draws
`HeadsAlong.effects()`, `plot_transfer` draws `Transfer.to_frame()`.
"""

# ruff: noqa: C408  (Plotly's documentation writes attributes as keyword arguments; so does this.)

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from safetyheads.plots.frame import axis, caption, panel, require_columns, sheet
from safetyheads.plots.style import DARK, human

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

SELF, UNTOUCHED = "#c23b3b", "#bdbdbd"
SOURCES = ("#7f7f7f", "#3a8f5c", "#1f77b4", "#e8821e", "#7a5195", "#8c6d31", "#17becf", "#c7a3d9")
"""Colours of the sources, in order; the paper has grey and green."""
POSITIONS = ("#1f77b4", "#e8821e", "#3a8f5c", "#c23b3b", "#7a5195", "#8c6d31", "#7f7f7f", "#17becf")
LEFT, RIGHT, TOP, BOTTOM = 66, 20, 88, 56
GAP = 66


def plot_selection(
    table: "pandas.DataFrame", *, note: str | None = None
) -> "plotly.graph_objects.Figure":
    """Draw every candidate's bypass, induce and KL, layer by layer: a line a position, open where it fell.

    The candidate that was taken has a ring.

    Args:
        table: what `Selection.to_frame()` gives, of one model.
        note: a caption drawn under the figure.

    Raises:
        ValueError: a column is missing, or there is more than one model.
    """
    import plotly.graph_objects as go

    columns = ("model", "position", "layer", "bypass", "induce", "kl", "felled_by", "chosen")
    require_columns(table, columns, "Selection.to_frame()")
    if table["model"].nunique() != 1:
        raise ValueError(f"the table has {table['model'].nunique()} models; draw one at a time")
    size = (270, 220)
    inner = (3 * size[0] + 2 * GAP, size[1])
    width, height = inner[0] + LEFT + RIGHT, inner[1] + TOP + BOTTOM
    tall, notes = caption(note, width=width, left=LEFT, below=BOTTOM)
    margins = dict(left=LEFT, right=RIGHT, top=TOP, bottom=BOTTOM + tall)
    figure = go.Figure(layout=sheet(width, height + tall, **margins))
    words = {
        "bypass": ("Harmful, ablated", "refusal log-odds [nat]"),
        "induce": ("Harmless, added", "refusal log-odds [nat]"),
        "kl": ("Harmless, ablated", "KL [nat]"),
    }
    for number, (name, (title, unit)) in enumerate(words.items()):
        place = panel(number, x=number * (size[0] + GAP), y=0, size=size, inner=inner)
        scale = dict(type="log", dtick=1) if name == "kl" else {}
        figure.update_layout(place.frame(axis(title="layer"), axis(title=unit, **scale)))
        figure.add_annotation(place.heading(title))
        for shade, (position, rows) in enumerate(table.groupby("position")):
            rows, colour = rows.sort_values("layer"), POSITIONS[shade % len(POSITIONS)]
            symbols = ["circle" if f == "" else "circle-open" for f in rows["felled_by"]]
            figure.add_scatter(
                **place.axes,
                **dict(x=rows["layer"].tolist(), y=rows[name].tolist(), mode="lines+markers"),
                **dict(name=f"position {position}", showlegend=number == 0),
                line=dict(color=colour, width=1.5),
                marker=dict(symbol=symbols, size=8, color=colour),
                text=[f or "passes" for f in rows["felled_by"]],
                hovertemplate="layer %{x}: %{y:.3g} (%{text})<extra></extra>",
            )
        best = table[table["chosen"]]
        figure.add_scatter(
            **place.axes,
            **dict(x=best["layer"].tolist(), y=best[name].tolist(), mode="markers"),
            marker=dict(symbol="circle-open", size=17, color=DARK, line=dict(width=2)),
            **dict(name="taken", showlegend=number == 0 and len(best) > 0),
        )
    title = f"Candidates of {human(str(table['model'].iloc[0]))} (open: felled by a filter)"
    figure.update_layout(
        title=dict(text=escape(title), x=LEFT / width, y=1 - 14 / figure.layout.height),
        title_font=dict(size=16, color=DARK),
        legend=dict(orientation="h", x=0, y=1 + 24 / inner[1], yanchor="bottom"),
    )
    for made in notes:
        figure.add_annotation(made)
    return figure


def plot_heads_along(
    table: "pandas.DataFrame", *, note: str | None = None
) -> "plotly.graph_objects.Figure":
    """Draw every head: what it writes along the direction against what its ablation does, a panel a measure.

    The measures are `causal` (how far the difference along the direction moves), `refusal_shift` and `ships`; those
    that the table lacks are left out. The heads that were ablated together are named, in red.

    Args:
        table: what `HeadsAlong.to_frame()` gives, of one model.
        note: a caption drawn under the figure.

    Raises:
        ValueError: a column is missing, or the table has no measure at all.
    """
    import plotly.graph_objects as go

    words = {
        "causal": "moves the difference by",
        "refusal_shift": "refusal shift [nat]",
        "ships": "Ships [nat]",
    }
    require_columns(table, ("label", "written_share", "chosen", *words), "HeadsAlong.to_frame()")
    there = [name for name in words if not table[name].isna().all()]
    if not there:
        raise ValueError(
            f"the table has no value of {', '.join(words)}: there is nothing to draw against"
        )
    size = (290, 250)
    inner = (len(there) * size[0] + (len(there) - 1) * GAP, size[1])
    width = max(inner[0] + LEFT + RIGHT, 480)  # room for the title above a single panel
    height = inner[1] + TOP + BOTTOM
    tall, notes = caption(note, width=width, left=LEFT, below=BOTTOM)
    right = width - LEFT - inner[0]
    margins = dict(left=LEFT, right=right, top=TOP - 20, bottom=BOTTOM + tall)
    figure = go.Figure(layout=sheet(width, height + tall - 20, **margins))
    for number, name in enumerate(there):
        place = panel(number, x=number * (size[0] + GAP), y=0, size=size, inner=inner)
        drawn = table[table[name].notna()]
        low, high = drawn[name].min(), drawn[name].max()
        low, high = low - (high - low) / 15, high + (high - low) / 8
        x = axis(title="written along the direction, share", tickformat=".0%", nticks=6)
        figure.update_layout(place.frame(x, axis(title=words[name], range=[low, high])))
        points = drawn[drawn["chosen"]].sort_values(name, ascending=False)
        heights = [size[1] * (high - value) / (high - low or 1) for value in points[name]]
        for row, away in zip(points.itertuples(), apart(heights, size[1]), strict=True):
            figure.add_annotation(
                **dict(x=row.written_share, y=getattr(row, name), text=row.label),
                **dict(xref=f"x{place.suffix}", yref=f"y{place.suffix}", ax=26, ay=away),
                **dict(xanchor="left", font=dict(size=10), arrowwidth=0.7, arrowcolor=DARK),
                **dict(arrowhead=0, standoff=4),
            )
        for chosen, colour in ((False, "#7f7f7f"), (True, SELF)):
            some = drawn[drawn["chosen"] == chosen]
            figure.add_scatter(
                **place.axes,
                **dict(x=some["written_share"].tolist(), y=some[name].tolist()),
                **dict(mode="markers", showlegend=False, text=some["label"].tolist()),
                marker=dict(color=colour, size=8 if chosen else 5, opacity=0.8),
                hovertemplate="%{text}: %{x:.1%}, %{y:.3g}<extra></extra>",
            )
    model = human(str(table["model"].iloc[0])) if "model" in table else ""
    figure.update_layout(
        title=dict(text=escape(f"Heads along the direction: {model}"), x=LEFT / width),
        title_font=dict(size=16, color=DARK),
    )
    for made in notes:
        figure.add_annotation(made)
    return figure


def apart(heights: Sequence[float], bottom: float, step: float = 13) -> list[float]:
    """How far [px] each label is moved from its mark so that none hides another or leaves the frame.

    `heights` are the marks' below the upper edge, sorted, `bottom` is that of the lower edge.

    >>> apart([0, 100, 101], bottom=250), apart([240, 241, 242], bottom=250)
    ([-9, -9, 3], [-24, -12, 0])
    """
    places, place = list[float](), -math.inf
    for height in heights:
        place = max(height - 9, place + step)
        places.append(place)
    lowest = bottom - 8
    for n in reversed(range(len(places))):
        places[n] = min(places[n], lowest)
        lowest = places[n] - step
    return [round(place - height) for place, height in zip(places, heights, strict=True)]


def plot_effects(
    table: "pandas.DataFrame", *, note: str | None = None
) -> "plotly.graph_objects.Figure":
    """Draw what heads and direction do to the refusal log-odds, each alone and where the other is gone already.

    Beside each bar stands its share of the direction's own effect, if it has one; whiskers are the table's intervals.

    Args:
        table: what `HeadsAlong.effects()` gives.
        note: a caption drawn under the figure.

    Raises:
        ValueError: a column is missing.
    """
    import plotly.graph_objects as go

    require_columns(table, ("effect", "shift", "low", "high", "share"), "HeadsAlong.effects()")
    size, left, right = (420, 34 * len(table)), 190, 90
    width, height = size[0] + left + right, size[1] + TOP - 30 + BOTTOM
    tall, notes = caption(note, width=width, left=left, below=BOTTOM)
    margins = dict(left=left, right=right, top=TOP - 30, bottom=BOTTOM + tall)
    figure = go.Figure(layout=sheet(width, height + tall, **margins))
    place = panel(0, x=0, y=0, size=size, inner=size)
    title = dict(title="change of the refusal log-odds when ablated [nat]", zeroline=True)
    rows = list(range(len(table)))
    names = dict(tickvals=rows, ticktext=table["effect"].tolist())
    figure.update_layout(
        place.frame(axis(**title), axis(range=[len(table) - 0.4, -0.6], **names)),
        title=dict(text="What heads and direction do, alone and without the other", x=0.02),
        title_font=dict(size=16, color=DARK),
    )
    figure.add_bar(
        **dict(x=table["shift"].tolist(), y=rows, orientation="h", width=0.66),
        marker_color=[
            SELF if name.startswith("heads") else POSITIONS[0] for name in table["effect"]
        ],
        error_x=dict(
            **dict(type="data", symmetric=False, thickness=1.2, width=4, color=DARK),
            array=(table["high"] - table["shift"]).tolist(),
            arrayminus=(table["shift"] - table["low"]).tolist(),
        ),
        hovertemplate="%{x:.2f} nat<extra></extra>",
    )
    for row, share in zip(rows, table["share"], strict=True):
        figure.add_annotation(
            **dict(x=1, xref="paper", xanchor="left", xshift=8, y=row, showarrow=False),
            text=f"{share:.0%}" if share == share else "",
        )
    for made in notes:
        figure.add_annotation(made)
    return figure


def plot_transfer(
    table: "pandas.DataFrame",
    *,
    verdicts: Sequence[str] = ("refuse", "comply", "degenerate"),
    side: str = "harmful",
    note: str | None = None,
) -> "plotly.graph_objects.Figure":
    """Draw the rates of every target by source: a group of bars a target, a panel a verdict, a row a dataset.

    The target's own direction is red, the untouched target light grey; whiskers are the table's intervals.

    Args:
        table: what `Transfer.to_frame()` gives.
        verdicts: which of them, a column each.
        side: "harmful" or "harmless".
        note: a caption drawn under the figure.

    Raises:
        ValueError: a column is missing, or the table lacks the side or a verdict.
    """
    import plotly.graph_objects as go

    columns = ("target", "source", "own", "dataset", "side", "verdict", "rate", "low", "high")
    require_columns(table, columns, "Transfer.to_frame()")
    rows = table[table["side"] == side]
    lacking = [verdict for verdict in verdicts if verdict not in set(rows["verdict"])]
    if rows.empty or lacking or not verdicts:
        raise ValueError(
            f"the table has no {side} side or lacks {', '.join(lacking) or 'every verdict'}; it has the sides "
            f"{', '.join(table['side'].unique())} and the verdicts {', '.join(table['verdict'].unique())}"
        )
    targets, sources = (list(dict.fromkeys(rows[name])) for name in ("target", "source"))
    datasets = list(dict.fromkeys(rows["dataset"]))
    size = (max(190, 16 * len(sources) * len(targets)), 190)
    inner = (
        len(verdicts) * size[0] + (len(verdicts) - 1) * GAP,
        len(datasets) * size[1] + (len(datasets) - 1) * GAP,
    )
    width, height = inner[0] + LEFT + RIGHT, inner[1] + TOP + BOTTOM
    tall, notes = caption(note, width=width, left=LEFT, below=BOTTOM)
    margins = dict(left=LEFT, right=RIGHT, top=TOP, bottom=BOTTOM + tall)
    figure = go.Figure(layout=sheet(width, height + tall, **margins))
    shades = {source: SOURCES[n % len(SOURCES)] for n, source in enumerate(sources)}
    each = 0.84 / len(sources)
    for row, dataset in enumerate(datasets):
        for column, verdict in enumerate(verdicts):
            number = row * len(verdicts) + column
            x, y = column * (size[0] + GAP), row * (size[1] + GAP)
            place = panel(number, x=x, y=y, size=size, inner=inner)
            ticks = dict(tickvals=list(range(len(targets))), ticktext=list(map(human, targets)))
            figure.update_layout(
                place.frame(
                    axis(range=[-0.5, len(targets) - 0.5], **ticks),
                    axis(range=[0, 1.02], tickformat=".0%"),
                )
            )
            heading = f"{verdict}, {human(dataset)}"
            figure.add_annotation(place.heading(escape(heading)))
            part = rows[(rows["verdict"] == verdict) & (rows["dataset"] == dataset)]
            for n, source in enumerate(sources):
                some = part[part["source"] == source]
                colour = UNTOUCHED if source == "baseline" else shades[source]
                figure.add_bar(
                    **place.axes,
                    x=[targets.index(target) for target in some["target"]],
                    y=some["rate"].tolist(),
                    **dict(offset=n * each - 0.42, width=each * 0.94),
                    **dict(legendgroup=source, showlegend=False),
                    hovertemplate="%{y:.0%}<extra></extra>",
                    marker=dict(
                        color=colour,
                        line=dict(color=SELF, width=[2.5 if own else 0 for own in some["own"]]),
                    ),
                    error_y=dict(
                        **dict(type="data", symmetric=False, thickness=1.2, width=3, color=DARK),
                        array=(some["high"] - some["rate"]).tolist(),
                        arrayminus=(some["rate"] - some["low"]).tolist(),
                    ),
                )
    for source in sources:  # a bar's own legend would have the edge of its first target
        colour = UNTOUCHED if source == "baseline" else shades[source]
        look = dict(marker_color=colour, legendgroup=source, name=escape(human(source)))
        figure.add_bar(x=[None], y=[None], **look)
    figure.update_layout(
        title=dict(
            text=f"Directions ablated, {side} prompts (red edge: the model's own)",
            **dict(x=LEFT / width, y=1 - 14 / figure.layout.height, yanchor="top"),
        ),
        title_font=dict(size=16, color=DARK),
        legend=dict(orientation="h", x=0, y=1 + 28 / inner[1], yanchor="bottom"),
        barmode="overlay",
    )
    for made in notes:
        figure.add_annotation(made)
    return figure
