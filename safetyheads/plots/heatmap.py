"""How much does every head matter? A map of all scores, layer against head, drawn from a table of heads."""

# ruff: noqa: C408  (Plotly's documentation writes attributes as keyword arguments; so does this.)

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from safetyheads.plots.frame import suffix
from safetyheads.plots.heads import (
    Area,
    check_one_row_per_head,
    checked,
    estimated,
    grid_size,
    grouped,
    hover_text,
    layout,
    limits,
    metric_title,
    named,
    rank_words,
    titled,
    wrapped,
)
from safetyheads.plots.style import BLANK, DARK, human

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects


def plot_head_heatmap(
    table: "pandas.DataFrame",
    *,
    k: int | None = None,
    n_layers: int | None = None,
    n_heads: int | None = None,
    titles: Sequence[str] | None = None,
    note: str | None = None,
) -> "plotly.graph_objects.Figure":
    """Map the scores of all heads, layer against head: a panel a dataset, model and ablation.

    Colours run from the lowest to the highest score; where scores take both signs they are blue
    below and red above zero, with the same range on either side. (A rounding error below zero, less
    than 1e-5 of the other side, does not count as a sign.) Heads that the table lacks are grey, estimated scores are
    hatched; a legend under the panel says so.

    Args:
        table: one row a head, with the columns that the module documents.
        k: outline the k highest-ranked heads of every panel; none by default.
        n_layers: layers on the x axis; by default as many as the panel's rows hold.
        n_heads: heads on the y axis; by default as many as the panel's rows hold.
        titles: one title a panel, in order.
        note: a caption drawn under the figure.

    Raises:
        ValueError: a column is missing, the table is empty, a score is not finite, k < 1, a panel
            mixes metrics or units, or a panel holds a head twice.

    Example:
        >>> import pandas
        >>> row = dict(ablation="zero", metric="refusal_shift", unit="nat", layer=0)
        >>> heads = [dict(head=0, label="L0H0", score=-2.0, rank=1, **row)]
        >>> heads += [dict(head=1, label="L0H1", score=1.0, rank=2, **row)]
        >>> colours = plot_head_heatmap(pandas.DataFrame(heads)).layout.coloraxis
        >>> colours.cmin, colours.cmax
        (-2.0, 2.0)
    """
    import numpy as np
    import plotly.graph_objects as go

    if k is not None and k < 1:
        raise ValueError(f"k is {k}: expected 1 or more heads to outline, or None for no outlines")
    table = checked(table)
    present = [key for key in ("ablation", "dataset", "model") if key in table.columns]
    groups = grouped(table, present)
    areas = []
    for where, rows in groups:
        bar_title = metric_title(rows, named(present, where))
        check_one_row_per_head(rows, named(present, where))
        title = _title(dict(zip(present, where, strict=True)))
        layers, heads = grid_size(rows, n_layers, n_heads)
        low, high, colors = limits(rows["score"].tolist(), diverging=True)
        areas.append(Area(title, bar_title, layers, heads, low, high, colors))
    areas = titled(areas, titles, [" ".join(where) for where, _ in groups])

    partial = [
        len(rows) < area.n_layers * area.n_heads
        for (_, rows), area in zip(groups, areas, strict=True)
    ]
    hatched = [any(estimated(rows)) for _, rows in groups]
    figure = go.Figure(layout=layout(areas, note, legend_below=any(partial + hatched)))
    if any(partial):
        figure.update_layout(plot_bgcolor=BLANK)
    for index, ((_, rows), area) in enumerate(zip(groups, areas, strict=True)):
        number = suffix(index)
        axes = dict(xaxis=f"x{number}", yaxis=f"y{number}")
        score = np.full((area.n_heads, area.n_layers), np.nan, dtype=np.float32)
        rank = np.full((area.n_heads, area.n_layers), None, dtype=object)
        score[rows["head"], rows["layer"]] = rows["score"]
        rank[rows["head"], rows["layer"]] = rank_words(rows)
        words = hover_text(rows, "L%{x}H%{y}", "%{z:.4g}", "%{customdata}")
        figure.add_heatmap(
            z=score,
            customdata=rank.tolist(),
            coloraxis=f"coloraxis{number}",
            name=area.title,
            hoverongaps=False,
            hovertemplate=words + "<extra></extra>",
            **axes,
        )
        figure.layout[f"xaxis{number}"].update(range=[-0.5, area.n_layers - 0.5], showgrid=False)
        figure.layout[f"yaxis{number}"].update(range=[-0.5, area.n_heads - 0.5], showgrid=False)
        guessed = rows[estimated(rows)]
        if len(guessed):
            figure.add_scatter(
                x=guessed["layer"].tolist(),
                y=guessed["head"].tolist(),
                mode="markers",
                marker=dict(symbol="line-ne", size=8, line=dict(color="#8c8c8c", width=1)),
                name="hatched: estimated",
                hoverinfo="skip",
                legend=f"legend{number}",
                showlegend=True,
                **axes,
            )
        if partial[index]:
            swatch = dict(x=[None], y=[None], mode="markers", name="grey: not in the table")
            look = dict(symbol="square", size=11, color=BLANK, line=dict(color=DARK, width=1))
            figure.add_scatter(
                **swatch, marker=look, legend=f"legend{number}", showlegend=True, **axes
            )
        for row in rows.nsmallest(k or 0, "rank").itertuples():
            corners = dict(x0=row.layer - 0.5, x1=row.layer + 0.5)
            corners |= dict(y0=row.head - 0.5, y1=row.head + 0.5)
            edge = dict(color="#ff2d95", width=2)
            figure.add_shape(
                type="rect", xref=f"x{number}", yref=f"y{number}", line=edge, **corners
            )
    return figure


def _title(where: Mapping[str, str]) -> str:
    title = human(where["ablation"])
    if where.get("dataset"):
        title += f" on {human(where['dataset'])}"
    model = human(where.get("model", ""))
    both = f"{title}, {model}" if model else title
    return escape(both, quote=False) if len(both) <= 54 else f"{wrapped(title)}<br>{wrapped(model)}"
