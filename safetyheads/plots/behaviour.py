"""How do refusal and attack success change as heads are ablated?

`plot_refusal_under_ablation` draws the table of `RefusalCurve.to_frame()`, one row a rate:

=========  =====================================================================
dataset    the prompts
side       `harmful` or `harmless`
verdict    `refuse`, `comply`, `deflect` or `degenerate`
arm        `baseline`, `top` of the ranking, `opposing` from its other end, or
           `random` heads of the same layers
size       how many heads are ablated; 0 for the baseline
seed       which draw of random heads
rate       the share of answers with that verdict
low, high  its interval
n          how many answers
heads      the ablated heads, for the hover text
model      optional: the model, for the title
ablation   optional: what was done to the heads, for the title
control_   optional: whether random heads of that size move the rate by
moves      themselves; the panel then says so
=========  =====================================================================
"""

# ruff: noqa: C408  (Plotly's documentation writes attributes as keyword arguments; so does this.)

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from safetyheads.plots.frame import axis, caption, panel, require_columns, sheet
from safetyheads.plots.style import DARK, human

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

COLUMNS = ("dataset", "side", "verdict", "arm", "size", "seed", "rate", "low", "high", "n", "heads")
"""The columns that every table must have."""

TOP_COLOUR, RANDOM_COLOUR, OPPOSING_COLOUR = "#b5367a", "#7f7f7f", "#21918c"
PANEL_WIDTH, PANEL_HEIGHT = 300, 230
LEFT, RIGHT, TOP, BOTTOM = 74, 20, 100, 62
_TITLES = {
    ("harmful", "refuse"): "Refusal",
    ("harmful", "comply"): "Attack success",
    ("harmless", "refuse"): "Over-refusal",
    ("harmless", "comply"): "Answered",
}


def plot_refusal_under_ablation(
    table: "pandas.DataFrame",
    *,
    verdicts: Sequence[str] = ("refuse", "comply", "degenerate"),
    note: str | None = None,
) -> "plotly.graph_objects.Figure":
    """Draw rates against the number of ablated heads: a row of panels a dataset and side, a panel a verdict.

    The ranking's heads are a line with the table's intervals. Each draw of random heads is a thin grey line, their mean
    a thick one. Both arms begin at the untouched model.

    Args:
        table: the rates, with the columns that the module documents.
        verdicts: which of them to draw, in order.
        note: a caption drawn under the figure.

    Raises:
        ValueError: a column is missing, or the table lacks the ranking's heads or a verdict.
    """
    import plotly.graph_objects as go

    require_columns(table, COLUMNS, "RefusalCurve.to_frame()")
    if "top" not in set(table["arm"]):
        raise ValueError("the table has no rows with arm 'top': there is no ranking to draw")
    if absent := [verdict for verdict in verdicts if verdict not in set(table["verdict"])]:
        raise ValueError(f"the table has no verdict {absent[0]!r}")
    rows = list(dict.fromkeys(zip(table["dataset"], table["side"], strict=True)))
    across, down = PANEL_WIDTH + 46, PANEL_HEIGHT + 62
    inner = len(verdicts) * across - 46, len(rows) * down - 62
    width = LEFT + inner[0] + RIGHT
    extra, notes = caption(note, width=width, left=LEFT, below=BOTTOM - 14)
    margins = dict(left=LEFT, right=RIGHT, top=TOP, bottom=BOTTOM + extra)
    height = TOP + inner[1] + BOTTOM + extra
    figure = go.Figure(layout=sheet(width, height, **margins))
    sizes = sorted(set(table["size"]) | {0})
    ticks = [0, 0.25, 0.5, 0.75, 1]
    for row, (dataset, side) in enumerate(rows):
        for column, verdict in enumerate(verdicts):
            number = row * len(verdicts) + column
            size = (PANEL_WIDTH, PANEL_HEIGHT)
            place = panel(number, x=column * across, y=row * down, size=size, inner=inner)
            x = axis(tickvals=sizes, range=[-0.3, sizes[-1] + 0.3])
            x |= dict(title=dict(text="Heads ablated", standoff=6)) if row == len(rows) - 1 else {}
            y = axis(tickvals=ticks, range=[-0.03, 1.03], ticktext=[f"{t:.0%}" for t in ticks])
            y |= dict(title=dict(text="Share of answers", standoff=8)) if column == 0 else {}
            figure.update_layout(place.frame(x, y))
            title = _TITLES.get((side, verdict), verdict.capitalize())
            where = human(dataset) + ("" if side == "harmful" else ", harmless")
            text = f"<b>{escape(title)}</b>  {escape(where)}"
            figure.add_annotation(place.heading(text) | dict(x=place.left, xanchor="left"))
            asked = {"dataset": dataset, "side": side, "verdict": verdict}
            part = table[(table[list(asked)] == list(asked.values())).all(axis=1)]
            _draw(figure, part, place.axes, legend=number == 0)
            if sizes_moved := _moved_sizes(part):
                words = f"random heads move this too ({sizes_moved})"
                made = dict(text=f"<i>{words}</i>", showarrow=False, font=dict(size=11, color=DARK))
                figure.add_annotation(
                    **made,
                    **dict(
                        xref=f"{place.axes['xaxis']} domain", yref=f"{place.axes['yaxis']} domain"
                    ),
                    **dict(x=0.02, y=0.98, xanchor="left", yanchor="top"),
                )
    figure.update_layout(
        title=dict(text=_title(table), x=LEFT / width, y=1 - 14 / height, yanchor="top"),
        title_font=dict(size=16, color=DARK),
        legend=dict(
            **dict(orientation="h", x=0, xanchor="left", y=1 + 30 / inner[1]),
            **dict(yanchor="bottom", bgcolor="rgba(0,0,0,0)"),
        ),
    )
    for made in notes:
        figure.add_annotation(made)
    return figure


def _title(table: "pandas.DataFrame") -> str:
    names = [
        human(str(table[column].iloc[0])) for column in ("ablation", "model") if column in table
    ]
    return escape("Behaviour under ablation: " + ", ".join(names) if names else "Behaviour")


def _draw(
    figure: "plotly.graph_objects.Figure",
    rows: "pandas.DataFrame",
    axes: dict[str, str],
    *,
    legend: bool,
) -> None:
    """One panel: thin grey draws, their mean, and the ranking with its intervals on top."""
    baseline = rows[rows["arm"] == "baseline"]
    drawn = rows[rows["arm"] == "random"]
    start = [(0, rate) for rate in baseline["rate"]]
    for _, one in drawn.groupby("seed"):
        points = [*start, *sorted(zip(one["size"], one["rate"], strict=True))]
        figure.add_scatter(
            **axes,
            **dict(x=[p[0] for p in points], y=[p[1] for p in points], mode="lines"),
            line=dict(color=RANDOM_COLOUR, width=1),
            **dict(opacity=0.5, showlegend=False, hoverinfo="skip"),
        )
    if len(drawn):
        means = drawn.groupby("size")["rate"].mean()
        points = [*start, *zip(means.index, means, strict=True)]
        figure.add_scatter(
            **axes,
            **dict(x=[p[0] for p in points], y=[p[1] for p in points], mode="lines+markers"),
            line=dict(color=RANDOM_COLOUR, width=2.5),
            marker=dict(size=7, symbol="square"),
            **dict(name=f"Random heads, mean of {drawn['seed'].nunique()}", showlegend=legend),
            hovertemplate="%{y:.0%} with %{x} random heads<extra></extra>",
        )
    import pandas

    for arm, name, colour in (
        ("opposing", "Opposing heads", OPPOSING_COLOUR),
        ("top", "Top heads, 95 % Wilson interval", TOP_COLOUR),
    ):
        if not (rows["arm"] == arm).any():
            continue
        ranked = pandas.concat([baseline, rows[rows["arm"] == arm]]).sort_values("size")
        figure.add_scatter(
            **axes,
            **dict(x=ranked["size"].tolist(), y=ranked["rate"].tolist(), mode="lines+markers"),
            error_y=dict(
                **dict(type="data", symmetric=False, thickness=1.3, width=4, color=colour),
                array=(ranked["high"] - ranked["rate"]).tolist(),
                arrayminus=(ranked["rate"] - ranked["low"]).tolist(),
            ),
            line=dict(color=colour, width=2.5),
            marker=dict(size=9, line=dict(color="white", width=1)),
            **dict(name=name, showlegend=legend),
            text=[heads or "untouched" for heads in ranked["heads"]],
            hovertemplate="%{y:.0%} (%{text})<extra></extra>",
        )


def _moved_sizes(rows: "pandas.DataFrame") -> str:
    """At which sizes random heads move the rate by themselves, as words; "" where at none."""
    if "control_moves" not in rows:
        return ""
    moving = rows[(rows["arm"] == "random") & (rows["control_moves"].astype(str) == "True")]
    return ", ".join(map(str, sorted(set(moving["size"]))))
