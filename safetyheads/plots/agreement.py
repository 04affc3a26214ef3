"""Do the rankings agree? The agreement matrix, and the published heads beside a ranking of one's own.

`plot_agreement` draws a table of `agreement_table`, one row an ordered pair of scores:

=========  =====================================================================
first      name of one score, a row of the matrix
second     name of the other, a column
spearman   rank correlation over all heads, from -1 to 1; NaN where there is none
jaccard    overlap of the top k, from 0 to 1; NaN where there is none
k          size of the top sets
reason     why there are no numbers; empty where there are
=========  =====================================================================

`plot_published_heads` draws a table with the columns of `plot_head_scatter` over the heads that a
paper's figures show, one row a marker, as `published_heads` makes it:

==================  ============================================================
model, dataset      whose heads, and on which prompts
ablation            what was done to them
layer, head, label  where the marker was read
off_by              layers and heads by which it may be wrong
certainty           `stated`, `read twice` or `read once`
figure              the panel that shows it
n_layers, n_heads   the grid of its model
==================  ============================================================
"""

# ruff: noqa: C408  (Plotly's documentation writes attributes as keyword arguments; so does this.)

from html import escape
from typing import TYPE_CHECKING, Any

from safetyheads.plots.frame import FAINT, LINE, axis, panel, require_columns, sheet, suffix
from safetyheads.plots.scatter import plot_head_scatter
from safetyheads.plots.style import human

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

COLUMNS = ("first", "second", "spearman", "jaccard", "k", "reason")
"""The columns that an agreement table must have."""
PUBLISHED_COLUMNS = (
    *("model", "dataset", "ablation", "layer", "head", "label", "off_by", "certainty", "figure"),
    *("n_layers", "n_heads"),
)
"""The columns that a table of published heads must have."""
CELL = 46
"""Width and height of a cell of the matrix, in pixels."""
LOOKS = {
    "stated": ("star", "#d62728", "named in the paper or its code"),
    "read twice": ("square", "#8c8c8c", "in the figure, read twice"),
    "read once": ("square-open", "#8c8c8c", "in the figure, read once"),
}
"""Marker, colour and legend of each certainty of a published head."""


def plot_agreement(
    table: "pandas.DataFrame", *, title: str | None = None
) -> "plotly.graph_objects.Figure":
    """Draw the agreement of every two scores: Spearman's correlation left, the overlap of the top k right.

    Pairs without numbers stay blank, and their reason is named below the figure.

    Args:
        table: one row an ordered pair, with the columns that the module documents.
        title: a heading; none by default.

    Raises:
        ValueError: a column is missing, the table is empty, a pair occurs twice, or k varies.

    Example:
        >>> import pandas
        >>> pair = dict(spearman=1.0, jaccard=1.0, k=10, reason="")
        >>> figure = plot_agreement(pandas.DataFrame([dict(first="a", second="a", **pair)]))
        >>> [trace.name for trace in figure.data]
        ['Spearman', 'Jaccard, top 10']
    """
    import plotly.graph_objects as go

    _check_agreement(table)
    names = table["first"].drop_duplicates().tolist()
    # Columns are too narrow for names: rows have a number and a name, columns the number.
    labels = [f"{_label(name)}  <b>{at}</b>" for at, name in enumerate(names, start=1)]
    k = int(table["k"].iloc[0])
    kinds = (
        ("spearman", "Spearman", -1.0, "RdBu_r"),
        ("jaccard", f"Jaccard, top {k}", 0.0, "Viridis"),
    )
    side = CELL * len(names)
    notes = [f"blank: {reason}" for reason in table["reason"].unique() if reason]
    left, gap, top = 16 + 7 * max(len(_label(name)) + 4 for name in names), 110, 64 if title else 40
    bottom = 36 + LINE * len(notes)
    right = 90
    inner = 2 * side + gap
    margins = dict(left=left, right=right, top=top, bottom=bottom)
    figure = go.Figure(layout=sheet(left + inner + right, top + side + bottom, **margins))
    figure.update_layout(plot_bgcolor="#efefef")
    heading = dict(text=escape(title or ""), x=0.5, y=1, yanchor="top", pad=dict(t=14))
    figure.update_layout(title=heading)
    places = list(range(len(names)))
    for at, (column, name, low, scale) in enumerate(kinds):
        values = table.pivot(index="first", columns="second", values=column)
        values = values.reindex(index=names, columns=names)
        shown = [["" if v != v else f"{v:.2f}" for v in row] for row in values.to_numpy().tolist()]
        size = (side, side)
        place = panel(at, x=at * (side + gap), y=0, size=size, inner=(inner, side))
        bar = dict(x=place.right + 8 / inner, xanchor="left", xpad=0, thickness=12, outlinewidth=0)
        hover = "%{customdata[0]}<br>%{customdata[1]}<br>" + name + ": %{z:.3f}"
        figure.add_heatmap(
            z=values.to_numpy(),
            x=places,
            y=places,
            text=shown,
            texttemplate="%{text}",
            customdata=[[[human(a), human(b)] for b in names] for a in names],
            name=name,
            zmin=low,
            zmax=1.0,
            colorscale=scale,
            colorbar=bar,
            hoverongaps=False,
            hovertemplate=hover + "<extra></extra>",
            xgap=1,
            ygap=1,
            **place.axes,
        )
        numbers = [f"<b>{number + 1}</b>" for number in places]
        ends = [-0.5, len(names) - 0.5]
        plain = dict(tickvals=places, showgrid=False, showline=False, ticks="")
        x = axis(ticktext=numbers, range=ends, **plain)
        y = axis(ticktext=numbers if at else labels, range=ends[::-1], **plain)
        figure.update_layout(place.frame(x, y))
        figure.add_annotation(place.heading(name, size=15, shift=6))
    if notes:
        figure.add_annotation(
            text="<br>".join(escape(note, quote=False) for note in notes),
            **dict(x=0, xanchor="left", xshift=8 - left, y=0, yanchor="bottom", yshift=6 - bottom),
            **dict(xref="paper", yref="paper", showarrow=False, align="left", name="note"),
            font=dict(size=12, color=FAINT),
        )
    return figure


def _check_agreement(table: "pandas.DataFrame") -> None:
    require_columns(table, COLUMNS, "agreement_table()")
    if table.empty:
        raise ValueError(
            "the table has 0 rows; expected one row a pair, as agreement_table() makes"
        )
    if table["k"].nunique() > 1 or table.duplicated(["first", "second"]).any():
        raise ValueError(
            "the table holds a pair twice or several k: expected one agreement_table(), with one k"
        )


def _label(name: str) -> str:
    """A score's name in a reader's words."""
    return escape(", ".join(human(part) for part in name.split(", ")), quote=False)


def plot_published_heads(
    table: "pandas.DataFrame",
    published: "pandas.DataFrame",
    *,
    model: str = "Llama-2-7b-chat",
    dataset: str | None = None,
    k: int = 10,
    **options: Any,
) -> "plotly.graph_objects.Figure":
    """Scatter the k highest-ranked heads over those that a paper's figures show, a panel an ablation.

    A grey square covers every position that a published marker can have, given how well it could be read.

    Args:
        table: all heads of a model of the published one's shape, with the columns of `plot_head_scatter`.
        published: the published heads, with the columns that the module documents, as `published_heads()` gives them.
        model: whose published heads; a value of the published table's column.
        dataset: only those of the panels on this dataset; by default all.
        k: how many heads of the table to draw in each panel and series.
        options: the further arguments of `plot_head_scatter`.

    Raises:
        ValueError: a column is missing, the table is not of the published model's shape, has no ablation that was
            published, or nothing was published for the model and dataset; and what `plot_head_scatter` raises.
    """
    require_columns(published, PUBLISHED_COLUMNS, "published_heads()")
    published = _published_for(published, model, dataset)
    ablations = _shared_ablations(table, published)
    table = table[table["ablation"].isin(ablations)]
    layers, heads = (int(published[name].iloc[0]) for name in ("n_layers", "n_heads"))
    shape = (int(table["layer"].max()) + 1, int(table["head"].max()) + 1)
    if shape != (layers, heads):
        raise ValueError(
            f"the table is of a model of {shape[0]} layers x {shape[1]} heads, and the published heads are of "
            f"{model}, {layers} layers x {heads} heads: heads of different models cannot be laid over each "
            "other; score that model, with all its heads in the table"
        )
    given = {"panel": "ablation", "series": "dataset", "k": k, "n_layers": layers, "n_heads": heads}
    figure = plot_head_scatter(table, **{**given, **options})
    mine = len(figure.data)
    for index, ablation in enumerate(ablations):
        _lay_under(figure, published[published["ablation"] == ablation], suffix(index))
    # Room for the legend above all heads, some of which are not in the table.
    lines = len(LOOKS) + len(figure.data[:mine]) // (2 * len(ablations))
    share = (LINE * lines + 30) / 420
    figure.update_yaxes(range=[-0.8, (heads - 0.2) / (1 - share)])
    # Published heads first, so that one's own lie on top of them.
    figure.data = (*figure.data[mine:], *figure.data[:mine])
    return figure


def _published_for(
    published: "pandas.DataFrame", model: str, dataset: str | None
) -> "pandas.DataFrame":
    """The rows of a model, and of a dataset if one is named."""
    rows = published[published["model"] == model]
    if dataset is not None:
        rows = rows[rows["dataset"] == dataset]
    if rows.empty:
        known = published[["model", "dataset"]].drop_duplicates().itertuples(index=False)
        raise ValueError(
            f"nothing is published for {model} on {dataset or 'any dataset'}; "
            f"there is {', '.join(f'{m} on {d}' for m, d in known)}"
        )
    return rows


def _shared_ablations(table: "pandas.DataFrame", published: "pandas.DataFrame") -> list[str]:
    """The published ablations that the table has too, in the published order."""
    theirs = published["ablation"].drop_duplicates().tolist()
    mine = list(dict.fromkeys(table.get("ablation", ())))
    if not (shared := [ablation for ablation in theirs if ablation in mine]):
        raise ValueError(
            f"the table has none of the ablations that the figures have, {', '.join(theirs)}; "
            f"it has {', '.join(map(str, mine)) or 'no ablation column'}"
        )
    return shared


def _lay_under(figure: Any, rows: "pandas.DataFrame", suffix: str) -> None:
    """The published heads of one panel: where each may lie, and where it was read."""
    for certainty, (shape, color, words) in LOOKS.items():
        some = rows[rows["certainty"] == certainty]
        rows = rows[~rows["label"].isin(some["label"])]  # shown once, by its surest reading
        some = some.groupby("label", as_index=False).agg(
            {"layer": "first", "head": "first", "off_by": "first", "figure": ", ".join}
        )
        for row in some.itertuples():
            reach = row.off_by + 0.5
            corners = dict(x0=row.layer - reach, x1=row.layer + reach)
            corners |= dict(y0=row.head - reach, y1=row.head + reach)
            figure.add_shape(
                type="rect",
                xref=f"x{suffix}",
                yref=f"y{suffix}",
                layer="below",
                fillcolor="rgba(120,120,120,0.16)",
                line=dict(width=0),
                **corners,
            )
        if len(some):
            figure.add_scatter(
                mode="markers",
                x=some["layer"],
                y=some["head"],
                text=[
                    f"{label}, {words}<br>Figure {f}"
                    for label, f in zip(some["label"], some["figure"], strict=True)
                ],
                hovertemplate="%{text}<extra></extra>",
                name=words,
                legend=f"legend{suffix}",
                marker=dict(symbol=shape, color=color, size=13 if shape == "star" else 9),
                xaxis=f"x{suffix}",
                yaxis=f"y{suffix}",
            )
