"""How much more does each head add to a group, and would random heads do as well?

One row a size, as `HeadGroup.to_frame` makes it:

=====================  ==========================================================
size                   heads ablated together
label                  the head added at this size, `L3H7`
score                  what the group does, in `unit`
alone                  what the head added does alone
null_low, null_high    where 95 % of random groups of the same layers lie
null_mean              what they do on average
ablation, metric, unit as in every table of scores; dataset and model, where there,
                       go into the title
=====================  ==========================================================
"""

# ruff: noqa: C408  (Plotly's documentation writes attributes as keyword arguments; so does this.)

from typing import TYPE_CHECKING

from safetyheads.plots.frame import about, axis, require_columns, sheet
from safetyheads.plots.style import human

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

COLUMNS = (
    *("size", "label", "score", "alone", "null_low", "null_mean", "null_high"),
    *("ablation", "metric", "unit"),
)
GROUP, SUM, NULL = "#440154", "#21918c", "#8c8c8c"


def plot_group_curve(
    table: "pandas.DataFrame", *, title: str | None = None
) -> "plotly.graph_objects.Figure":
    """Draw the score of a group against its size, over the band of random heads of the same layers.

    The dashed line is the sum of what the heads do alone: a group above it is more than its parts, one below less.

    Args:
        table: one row a size, with the columns that the module documents.
        title: a caption over the figure; by default the ablation, the prompts and the model.

    Raises:
        ValueError: a column is missing, or the table holds more than one ablation or metric.
    """
    import plotly.graph_objects as go

    require_columns(table, COLUMNS, "HeadGroup.to_frame()")
    for name in ("ablation", "metric", "unit"):
        if table[name].nunique() != 1:
            raise ValueError(
                f"{name} has the values {sorted(map(str, set(table[name])))}; "
                "a curve has one: draw the rows of each apart"
            )
    table = table.sort_values("size")
    sizes, unit = table["size"].tolist(), table["unit"].iloc[0]
    band = dict(x=[*sizes, *sizes[::-1]], y=[*table["null_high"], *table["null_low"][::-1]])
    line = dict(x=sizes, mode="lines+markers")
    figure = go.Figure(
        [
            go.Scatter(
                **band,
                mode="lines",
                fill="toself",
                fillcolor="rgba(140,140,140,0.25)",
                line=dict(width=0),
                hoverinfo="skip",
                name="Random heads, 95 %",
            ),
            go.Scatter(
                **line,
                y=table["null_mean"],
                line=dict(color=NULL),
                marker=dict(size=5),
                name="Random heads, mean",
            ),
            go.Scatter(
                **line,
                y=table["alone"].cumsum(),
                line=dict(color=SUM, dash="dash"),
                marker=dict(size=5),
                name="Sum of the heads alone",
            ),
            go.Scatter(
                **line,
                y=table["score"],
                line=dict(color=GROUP, width=2.5),
                marker=dict(size=9),
                name="Group",
            ),
        ]
    )
    words = ", ".join(part for part in (human(table["ablation"].iloc[0]), about(table)) if part)
    figure.update_layout(
        **sheet(560, 434, left=70, right=20, top=46, bottom=124),
        title=dict(text=title or words, x=0.5, font=dict(size=15)),
        legend=dict(orientation="h", x=0.5, xanchor="center", y=-0.3, yanchor="top"),
    )
    ticks = [f"{n}<br>+ {label}" for n, label in zip(sizes, table["label"], strict=True)]
    figure.update_xaxes(axis(tickvals=sizes, ticktext=ticks, title="Heads ablated together"))
    name = human(table["metric"].iloc[0]) + (f" [{unit}]" if unit else "")
    figure.update_yaxes(axis(title=name, rangemode="tozero"))
    return figure
