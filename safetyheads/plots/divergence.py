"""Which layers and heads attend differently to benign and jailbreak prompts? Drawn from a table.

The table is that of `AttentionDivergence.table`: comparison, layer, head (missing for a layer as a whole), label,
divergence, null_mean, null_high, q_value, unit.
"""

# ruff: noqa: C408  (Plotly's documentation writes attributes as keyword arguments; so does this.)

from html import escape
from typing import TYPE_CHECKING

import torch

from safetyheads.plots.frame import axis, panel, require_columns, sheet
from safetyheads.plots.style import DARK

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

COLUMNS = (
    *("comparison", "layer", "head", "label", "divergence"),
    *("null_mean", "null_high", "q_value", "unit"),
)
"""The columns that every table must have."""


def plot_attention_divergence(
    table: "pandas.DataFrame", *, level: float | int = 0.05, title: str | None = None
) -> "plotly.graph_objects.Figure":
    """Draw which layers (lines) and which heads (heat map) attend differently, beside what chance gives.

    Left, each layer's mean over heads under each comparison, with the upper end of the matched comparison's null.
    Right, the matched comparison head by head: the divergence beyond the null's mean, grey where q is above `level`.

    Args:
        table: rows as `AttentionDivergence.table` has them: comparison, layer, head (missing for a layer as a whole),
            label, divergence, null_mean, null_high, q_value, unit.
        level: the q-value up to which a head counts as different.
        title: a line above the figure.

    Raises:
        ValueError: a column is missing, or there are no rows of the matched comparison.
    """
    import plotly.graph_objects as go

    require_columns(table, COLUMNS, "AttentionDivergence.table")
    matched = table[table["comparison"] == "matched"]
    if matched.empty:
        raise ValueError("the table has no rows of the comparison 'matched'; keep them")
    unit = matched["unit"].iloc[0]
    margins = dict(left=70, right=96, top=60, bottom=94)
    figure = go.Figure(layout=sheet(1160, 490, **margins))
    looks = {
        "matched": ("matched length (first tokens)", DARK, "solid", 3),
        "lengthened": ("whole prompts, benign lengthened", "#e6550d", "solid", 2),
        "unmatched": ("whole prompts, unmatched length", "#9e9e9e", "dash", 2),
        "length_only": ("length only: benign, lengthened", "#3182bd", "dot", 2),
    }
    for name, (label, colour, dash, thick) in looks.items():
        rows = table[(table["comparison"] == name) & table["head"].isna()].sort_values("layer")
        if rows.empty:
            continue
        figure.add_scatter(
            x=rows["layer"],
            y=rows["divergence"],
            name=label,
            mode="lines+markers",
            line=dict(color=colour, dash=dash, width=thick),
            marker=dict(size=5),
            hovertemplate="layer %{x}: %{y:.4f}<extra>" + label + "</extra>",
        )
        if name == "matched":
            figure.add_scatter(
                x=rows["layer"],
                y=rows["null_high"],
                name="95 % of its null lie below",
                mode="lines",
                line=dict(width=0),
                fill="tozeroy",
                fillcolor="rgba(38,38,38,0.15)",
                hoverinfo="skip",
            )
    heads = matched[matched["head"].notna()]
    layers, size = int(heads["layer"].max()) + 1, int(heads["head"].max()) + 1
    excess = torch.full((size, layers), torch.nan)
    inside = torch.full((size, layers), torch.nan)
    for row in heads.itertuples():
        target = excess if row.q_value <= level else inside
        target[int(row.head), int(row.layer)] = row.divergence - row.null_mean
    right = dict(xaxis="x2", yaxis="y2", hoverongaps=False)
    hover = "L%{x}H%{y}: %{z:.4f} beyond the null's mean<extra>%{fullData.name}</extra>"
    if inside.isfinite().any():
        grey = [[0, "#dcdcdc"], [1, "#dcdcdc"]]
        name = f"q > {level:g}"
        look = dict(colorscale=grey, showscale=False, name=name, hovertemplate=hover)
        figure.add_heatmap(z=inside.numpy(), **look, **right)
    if excess.isfinite().any():
        name = f"q ≤ {level:g}"
        figure.add_heatmap(
            z=excess.numpy(), coloraxis="coloraxis", name=name, hovertemplate=hover, **right
        )
        most = float(excess[excess.isfinite()].max())
        bar = dict(title=dict(text=f"beyond the null [{unit}]", side="right"), thickness=14, x=1.01)
        figure.update_layout(
            coloraxis=dict(colorscale="Viridis", cmin=0.0, cmax=most, colorbar=bar)
        )
    inner = 1160 - 70 - 96, 490 - 60 - 94
    width = round(0.46 * inner[0])
    lines = panel(0, x=0, y=0, size=(width, inner[1]), inner=inner)
    heat = panel(1, x=inner[0] - width, y=0, size=(width, inner[1]), inner=inner)
    amount = dict(title=f"divergence [{unit}], mean over heads", rangemode="tozero")
    figure.update_layout(lines.frame(axis(title="Layer", showgrid=False), axis(**amount)))
    plain = dict(showgrid=False)
    figure.update_layout(heat.frame(axis(title="Layer", **plain), axis(title="Head", **plain)))
    figure.update_layout(
        legend=dict(x=0, y=-0.2, yanchor="top", orientation="h", font=dict(size=11))
    )
    figure.add_annotation(lines.heading("Layers", shift=6))
    figure.add_annotation(heat.heading(f"Heads, matched length; grey: q > {level:g}", shift=6))
    if title:
        figure.update_layout(title=dict(text=escape(title, quote=False), x=0.5, font=dict(size=16)))
        figure.update_layout(height=520, margin=dict(t=90))
    return figure
