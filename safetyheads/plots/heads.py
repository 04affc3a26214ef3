"""Where do the heads that matter lie? The scatter and the heat map, drawn from a table with documented columns.

Every figure is a function of a pandas table as `HeadScores.to_frame()` makes it, one row a head:

=========  =====================================================================
layer      index of the head's layer, from 0
head       index of the query head inside the layer, from 0
label      the head's name, `L3H7`
ablation   what was done to the head, `undifferentiated_attention`
metric     what was measured, `generalized_ships`
score      the number, in `unit`
unit       `nat`, `deg`, ...; empty for a number without one
rank       1 = the head that matters most
dataset    optional: the prompts it was measured on
model      optional: the model it was measured in
kind       optional: `exact` or `estimated`; drawn apart
in_null    optional: whether the head does not rise above the null; grey if so
=========  =====================================================================

Plots never compute scores. Sizes are pixels, fixed, so that a figure looks the same everywhere.
"""

# ruff: noqa: C408  (Plotly's documentation writes attributes as keyword arguments; so does this.)

import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from safetyheads.plots.style import DARK, FONT, NAMES, human

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects


COLUMNS = ("layer", "head", "label", "ablation", "metric", "score", "unit", "rank")
"""The columns that every table must have."""

PANEL_WIDTH, PANEL_HEIGHT = 460, 420
LEFT, RIGHT, TOP, BOTTOM = 66, 14, 24, 58
BAR = 104
"""Width beside a panel for its colour bar: the bar, its tick labels and its title."""
NOT_RUN = "hollow: estimated"
IN_NULL = "grey: inside the null"
GREY = "#bdbdbd"
"""What the legend says of heads that were not run."""
LINE = 21
"""Height of one line of a title, of a legend or of a note."""


class _Symbol(NamedTuple):
    """How a series looks. Sizes nest: all symbols of one head can be seen at once."""

    shape: str
    size: float
    """Diameter, with 1 for the first series."""
    swatch: str
    """Colour in the legend, where no score gives one."""


SYMBOLS = (
    _Symbol("circle", 1.0, "#440154"),
    _Symbol("x", 0.6, "#fde725"),
    _Symbol("square-open", 1.35, "#21918c"),
    _Symbol("diamond-open", 1.7, "#3b528b"),
    _Symbol("circle-open", 2.1, "#5ec962"),
    _Symbol("hexagon-open", 2.5, "#9c179e"),
)


class _Panel(NamedTuple):
    """One plot area: what it shows and how far its axes go."""

    title: str
    bar_title: str
    n_layers: int
    n_heads: int
    low: float
    """Score at the lower end of the colour bar."""
    high: float
    colorscale: str = "Viridis"


def plot_head_scatter(
    table: "pandas.DataFrame",
    *,
    panel: str = "dataset",
    series: str = "ablation",
    k: int = 10,
    n_layers: int | None = None,
    n_heads: int | None = None,
    titles: Sequence[str] | Mapping[str, str] | None = None,
    note: str | None = None,
) -> "plotly.graph_objects.Figure":
    """Scatter the k highest-ranked heads of every series, layer against head.

    Each panel has its own colours, colour bar and legend. Where two series hold the same head, the
    second's small cross lies on the first's larger circle; the symbols of further series enclose
    them. Estimated scores are hollow. The y axis grows where a point would lie under the legend. The
    legend's swatches are traces without points.

    Args:
        table: one row a head, with the columns that the module documents.
        panel: the column that tells panels apart (`"dataset"`, `"ablation"`, `"model"`); one panel
            where the table lacks it.
        series: the column that tells symbols apart; one series where the table lacks it.
        k: how many heads of each series to draw in each panel, by `rank`.
        n_layers: layers on the x axis; by default as many as the table holds.
        n_heads: heads on the y axis; by default as many as the table holds.
        titles: one title a panel, in order, or a mapping from the panel column's values.
        note: a caption drawn under the figure.

    Raises:
        ValueError: a column is missing, the table is empty, a score is not finite, k < 1, a panel
            mixes metrics or units, a series holds a head twice, or there are too many series.

    Example:
        >>> import pandas
        >>> row = dict(ablation="scaling_contribution", metric="ships", unit="nat")
        >>> heads = [dict(layer=2, head=1, label="L2H1", score=0.7, rank=1, **row)]
        >>> figure = plot_head_scatter(pandas.DataFrame(heads), n_layers=12, n_heads=12)
        >>> figure.layout.annotations[0].text, figure.layout.coloraxis.colorbar.title.text
        ('Top 1 Safety Heads', 'Ships [nat]')
    """
    import plotly.graph_objects as go

    if panel == series:
        raise ValueError(
            f"panel and series are both {panel!r}: each panel would hold one symbol; "
            'name two columns, such as panel="dataset", series="ablation"'
        )
    if k < 1:
        raise ValueError(f"k is {k}: expected 1 or more heads to draw in each panel and series")
    table = _checked(table)
    layers, heads = _grid_size(table, n_layers, n_heads)
    names = _ordered(table, series)
    if len(names) > len(SYMBOLS):
        raise ValueError(
            f"there are {len(names)} values of {series!r} ({', '.join(names)}): expected at most "
            f"{len(SYMBOLS)}, one symbol each; keep fewer rows, or name another column as series"
        )
    legend = [_clip(human(name)) for name in names] if series in table.columns else []
    hollow = [NOT_RUN] if any(_estimated(table)) else []
    grey = [IN_NULL] if any(_in_null(table)) else []
    size = max(11.0, min(15.0, 0.9 * min(PANEL_WIDTH / layers, PANEL_HEIGHT / heads)))
    groups = _groups(table, [panel])
    tops, panels = [], []
    for where, rows in groups:
        bar_title = _bar_title(rows, _place([panel], where))
        top = {}
        for name, part in [(name, _part(rows, series, name)) for name in names]:
            _check_one_row_per_head(part, f"{_place([panel], where)}, {series} {name!r}")
            top[name] = part.nsmallest(k, "rank")
        scores = [score for part in top.values() for score in part["score"]]
        title = f"Top {max(map(len, top.values()))} Safety Heads"
        title += f" on {human(where[0])}" if where and where[0] else ""
        panels.append(_Panel(_wrap(title, 54), bar_title, layers, heads, *_limits(scores)))
        tops.append(top)
    panels = _titled(panels, titles, [" ".join(where) for where, _ in groups])

    figure = go.Figure(layout=_layout(panels, note))
    figure.update_yaxes(
        range=[-0.8, _axis_end(tops, [*legend, *hollow, *grey], layers, heads, size)]
    )
    for index, top in enumerate(tops):
        suffix = _suffix(index)
        circles: dict[tuple[int, int], float] = {}
        for which, (name, part) in enumerate(top.items()):
            symbol = SYMBOLS[which]
            width = 2.5 if symbol.shape.endswith("-open") else 1
            look: dict[str, Any] = dict(symbol=symbol.shape, size=round(size * symbol.size, 1))
            shared: dict[str, Any] = dict(
                mode="markers",
                name=legend[which] if legend else "",
                legend=f"legend{suffix}",
                legendgroup=f"{index}.{which}",
                xaxis=f"x{suffix}",
                yaxis=f"y{suffix}",
            )
            points = list(zip(part["layer"], part["head"], part["score"], strict=True))
            # A dark cross on a dark circle is told from it by a light outline only.
            middle = (panels[index].low + panels[index].high) / 2
            edges = [
                "white" if max(score, circles.get((layer, head), middle)) < middle else DARK
                for layer, head, score in points
            ]
            if which == 0:
                circles = {(layer, head): score for layer, head, score in points}
            figure.add_scatter(
                **shared,
                x=[layer for layer, _, _ in points],
                y=[head for _, head, _ in points],
                text=part["label"].tolist(),
                customdata=[list(pair) for pair in zip(part["score"], _ranks(part), strict=True)],
                marker=dict(
                    look | _hollow(symbol.shape, _estimated(part)),
                    color=[score for _, _, score in points],
                    coloraxis=f"coloraxis{suffix}",
                    opacity=1,
                    line=dict(color=edges if which == 1 else DARK, width=width),
                ),
                hovertemplate=_hover(part, "%{text}", "%{customdata[0]:.4g}", "%{customdata[1]}")
                + (f"<br>{escape(human(name))}" if legend else "")
                + "<extra></extra>",
                showlegend=False,
            )
            if any(_in_null(part)):
                figure.add_scatter(
                    **shared,
                    x=part["layer"][_in_null(part)].tolist(),
                    y=part["head"][_in_null(part)].tolist(),
                    marker=dict(look, color=GREY, line=dict(color=DARK, width=width)),
                    hoverinfo="skip",
                    showlegend=False,
                )
            if legend:
                look |= dict(color=symbol.swatch, line=dict(color=DARK, width=width))
                look["size"] = min(look["size"], 15)
                figure.add_scatter(**shared, x=[None], y=[None], marker=look, hoverinfo="skip")
        if any(any(_estimated(part)) for part in top.values()):
            figure.add_scatter(
                x=[None],
                y=[None],
                mode="markers",
                name=NOT_RUN,
                legend=f"legend{suffix}",
                marker=dict(symbol="circle-open", size=11, color=DARK, line=dict(width=2)),
                xaxis=f"x{suffix}",
                yaxis=f"y{suffix}",
                hoverinfo="skip",
                showlegend=True,
            )
        if any(any(_in_null(part)) for part in top.values()):
            figure.add_scatter(
                x=[None],
                y=[None],
                mode="markers",
                name=IN_NULL,
                legend=f"legend{suffix}",
                marker=dict(symbol="circle", size=11, color=GREY, line=dict(color=DARK, width=1)),
                xaxis=f"x{suffix}",
                yaxis=f"y{suffix}",
                hoverinfo="skip",
                showlegend=True,
            )
    return figure


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
    than 1e-5 of the other side, does not count as a sign.) Heads that the table lacks stay empty,
    estimated scores are hatched.

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
    table = _checked(table)
    present = [key for key in ("ablation", "dataset", "model") if key in table.columns]
    groups = _groups(table, present)
    panels = []
    for where, rows in groups:
        bar_title = _bar_title(rows, _place(present, where))
        _check_one_row_per_head(rows, _place(present, where))
        title = _heatmap_title(dict(zip(present, where, strict=True)))
        layers, heads = _grid_size(rows, n_layers, n_heads)
        low, high, colors = _limits(rows["score"].tolist(), diverging=True)
        panels.append(_Panel(title, bar_title, layers, heads, low, high, colors))
    panels = _titled(panels, titles, [" ".join(where) for where, _ in groups])

    figure = go.Figure(layout=_layout(panels, note))
    for index, ((_, rows), panel) in enumerate(zip(groups, panels, strict=True)):
        suffix = _suffix(index)
        score = np.full((panel.n_heads, panel.n_layers), np.nan, dtype=np.float32)
        rank = np.full((panel.n_heads, panel.n_layers), None, dtype=object)
        score[rows["head"], rows["layer"]] = rows["score"]
        rank[rows["head"], rows["layer"]] = _ranks(rows)
        figure.add_heatmap(
            z=score,
            customdata=rank.tolist(),
            coloraxis=f"coloraxis{suffix}",
            xaxis=f"x{suffix}",
            yaxis=f"y{suffix}",
            name=panel.title,
            hoverongaps=False,
            hovertemplate=_hover(rows, "L%{x}H%{y}", "%{z:.4g}", "%{customdata}")
            + "<extra></extra>",
        )
        figure.layout[f"xaxis{suffix}"].update(range=[-0.5, panel.n_layers - 0.5], showgrid=False)
        figure.layout[f"yaxis{suffix}"].update(range=[-0.5, panel.n_heads - 0.5], showgrid=False)
        guessed = rows[_estimated(rows)]
        if len(guessed):
            figure.add_scatter(
                x=guessed["layer"].tolist(),
                y=guessed["head"].tolist(),
                mode="markers",
                marker=dict(symbol="line-ne", size=8, line=dict(color="#8c8c8c", width=1)),
                xaxis=f"x{suffix}",
                yaxis=f"y{suffix}",
                name="hatched: estimated",
                hoverinfo="skip",
                showlegend=False,
            )
        for row in rows.nsmallest(k or 0, "rank").itertuples():
            corners = dict(x0=row.layer - 0.5, x1=row.layer + 0.5)
            corners |= dict(y0=row.head - 0.5, y1=row.head + 0.5)
            edge = dict(color="#ff2d95", width=2)
            figure.add_shape(
                type="rect", xref=f"x{suffix}", yref=f"y{suffix}", line=edge, **corners
            )
    return figure


def _checked(table: "pandas.DataFrame") -> "pandas.DataFrame":
    """The table with plain text and whole numbers, or an error that says what it lacks."""
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise ValueError(
            f"the table lacks the columns {', '.join(missing)}; it has "
            f"{', '.join(map(str, table.columns)) or 'none'}. Expected one row a head with "
            f"{', '.join(COLUMNS)} (and optionally dataset, model), as HeadScores.to_frame() makes"
        )
    if table.empty:
        raise ValueError(
            "the table has no rows: there is no head to draw. Expected one row a head; "
            "if you filtered it, check that the value you asked for occurs in the column"
        )
    wrong = table[~table["score"].abs().lt(float("inf"))]
    if len(wrong):
        raise ValueError(
            f"{len(wrong)} of {len(table)} scores are not finite, the first at "
            f"{wrong['label'].iloc[0]} ({wrong['score'].iloc[0]}): expected numbers; "
            "score these heads again or drop their rows"
        )
    whole = dict.fromkeys(("layer", "head", "rank"), int)
    text = table.columns.difference([*whole, "score"])
    # A table read back from a .csv file has NaN for an empty unit.
    words = table[text].astype(object).where(table[text].notna(), "").astype(str)
    return table.assign(**{name: words[name] for name in text}).astype(whole)


def _estimated(rows: "pandas.DataFrame") -> list[bool]:
    """Which rows hold an estimate."""
    return (rows["kind"] == "estimated").tolist() if "kind" in rows else [False] * len(rows)


def _in_null(rows: "pandas.DataFrame") -> list[bool]:
    """Which rows were tested and do not rise above the null."""
    if "in_null" not in rows:
        return [False] * len(rows)
    inside = rows["in_null"].astype(str) == "True"  # as text where the table came from a file
    return [a and not b for a, b in zip(inside, _estimated(rows), strict=True)]


def _ranks(rows: "pandas.DataFrame") -> list[int | str]:
    """Ranks for the hover, with a word beside those that an estimate gave."""
    return [
        f"{rank}, estimated" if guess else rank
        for rank, guess in zip(rows["rank"].tolist(), _estimated(rows), strict=True)
    ]


def _hollow(shape: str, estimated: Sequence[bool]) -> dict[str, Any]:
    """A symbol a point where some are estimated: those are open, or dotted where the symbol is open already."""
    other = f"{shape}-dot" if shape.endswith("-open") else f"{shape}-open"
    return dict(symbol=[other if e else shape for e in estimated]) if any(estimated) else {}


def _check_one_row_per_head(rows: "pandas.DataFrame", place: str) -> None:
    twice = rows[rows.duplicated(["layer", "head"])]
    if len(twice):
        raise ValueError(
            f"{twice['label'].iloc[0]} occurs more than once in {place}: expected one row a head. "
            "If the table holds several datasets, models, ablations or metrics, keep one of each "
            "that the figure does not tell apart, or name the column as panel or series"
        )


def _grid_size(rows: "pandas.DataFrame", layers: int | None, heads: int | None) -> tuple[int, int]:
    """Layers and heads on the axes: as asked for, or as many as the rows hold."""
    sizes = []
    for name, asked in (("layer", layers), ("head", heads)):
        held = int(rows[name].max()) + 1
        if asked is not None and asked < held:
            raise ValueError(
                f"n_{name}s is {asked} but the table holds {name} {held - 1}: expected n_{name}s "
                f"of {held} or more, or None to take it from the table"
            )
        sizes.append(asked or held)
    return sizes[0], sizes[1]


def _ordered(table: "pandas.DataFrame", column: str) -> list[str]:
    """The column's values, known names in their usual order, others as they come."""
    if column not in table.columns:
        return [""]
    known = list(NAMES)
    values = table[column].drop_duplicates().tolist()
    return sorted(values, key=lambda value: known.index(value) if value in known else len(known))


def _part(rows: "pandas.DataFrame", column: str, value: str) -> "pandas.DataFrame":
    return rows[rows[column] == value] if column in rows.columns else rows


def _groups(
    table: "pandas.DataFrame", columns: Sequence[str]
) -> list[tuple[tuple[str, ...], "pandas.DataFrame"]]:
    """The rows of every combination of values; the columns that the table lacks do not count."""
    groups: list[tuple[tuple[str, ...], Any]] = [((), table)]
    for column in [column for column in columns if column in table.columns]:
        groups = [
            ((*where, value), _part(rows, column, value))
            for where, rows in groups
            for value in _ordered(rows, column)
        ]
    return groups


def _place(columns: Sequence[str], where: tuple[str, ...]) -> str:
    named = [f"{column} {value!r}" for column, value in zip(columns, where, strict=False)]
    return ", ".join(named) or "the only panel"


def _bar_title(rows: "pandas.DataFrame", place: str) -> str:
    """Metric and unit of a panel, which must be one."""
    kinds = rows[["metric", "unit"]].drop_duplicates().itertuples(index=False)
    titles = [human(metric) + (f" [{unit}]" if unit else "") for metric, unit in kinds]
    if len(titles) > 1:
        raise ValueError(
            f"{place} mixes {' and '.join(titles)}: expected one metric and unit, because a panel "
            "has one colour bar. Keep one, such as table[table['metric'] == "
            f"{rows['metric'].iloc[0]!r}], and draw the other in a figure of its own"
        )
    return _wrap(titles[0], 56)


def _titled(
    panels: list[_Panel], titles: Sequence[str] | Mapping[str, str] | None, values: list[str]
) -> list[_Panel]:
    """The panels with the caller's titles (Plotly's markup allowed) in place of their own."""
    if titles is None:
        return panels
    if isinstance(titles, Mapping):
        if unknown := sorted(set(titles) - set(values)):
            raise ValueError(f"titles names {unknown}, but the panels are {values}: use these keys")
        titles = [titles.get(value, panels[at].title) for at, value in enumerate(values)]
    if isinstance(titles, str) or len(titles) != len(panels):
        raise ValueError(
            f"titles is {titles!r}, but there are {len(panels)} panels: "
            "expected a list with one title for each panel"
        )
    return [panel._replace(title=title) for panel, title in zip(panels, titles, strict=True)]


def _heatmap_title(where: Mapping[str, str]) -> str:
    title = human(where["ablation"])
    if where.get("dataset"):
        title += f" on {human(where['dataset'])}"
    model = human(where.get("model", ""))
    both = f"{title}, {model}" if model else title
    return escape(both, quote=False) if len(both) <= 54 else f"{_wrap(title)}<br>{_wrap(model)}"


def _wrap(text: str, width: int = 54) -> str:
    lines = textwrap.wrap(text, width, break_on_hyphens=False)
    return "<br>".join(escape(line, quote=False) for line in lines)


def _clip(text: str, width: int = 46) -> str:
    return escape(text if len(text) <= width else text[: width - 1] + "…", quote=False)


def _hover(rows: "pandas.DataFrame", label: str, score: str, rank: str) -> str:
    metric, unit = escape(human(rows["metric"].iloc[0])), escape(rows["unit"].iloc[0])
    return f"<b>{label}</b><br>{metric}: {score} {unit}<br>rank {rank}"


def _suffix(index: int) -> str:
    """Plotly's number of the panel's axes, colours and legend: x, x2, x3, ..."""
    return str(index + 1) if index else ""


def _limits(scores: Sequence[float], *, diverging: bool = False) -> tuple[float, float, str]:
    """Both ends of a colour bar, and the colours between them."""
    low, high = float(min(scores)), float(max(scores))
    most = max(abs(low), abs(high))
    if diverging and min(-low, high) > 1e-5 * most:
        return -most, most, "RdBu_r"
    pad = 0.0 if low < high else 0.05 * most or 0.5
    return low - pad, high + pad, "Viridis"


def _axis_end(
    tops: Sequence[Mapping[str, "pandas.DataFrame"]],
    legend: Sequence[str],
    layers: int,
    heads: int,
    size: float,
) -> float:
    """Upper end of the y axis: above the last head, and so high that no point is under a legend."""
    if not legend:
        return heads - 0.2
    share = min((LINE * len(legend) + 16 + size / 2) / PANEL_HEIGHT, 0.7)
    reach = (54 + 7 * max(map(len, legend)) + size / 2) / PANEL_WIDTH * (layers + 0.6)
    parts = [part[part["layer"] > layers - 0.2 - reach] for top in tops for part in top.values()]
    highest = max((int(part["head"].max()) for part in parts if len(part)), default=-1)
    return max(heads - 0.2, (highest + 0.8 * share) / (1 - share))


def _axis(n: int, title: str) -> dict[str, Any]:
    step = next(2**power for power in range(32) if (n - 1) // 2**power + 1 <= 16)
    ticks = list(range(0, n, step))
    return dict(
        title=dict(text=title, font=dict(size=14), standoff=8),
        range=[-0.8, n - 0.2],
        **dict(tickmode="array", tickvals=ticks, ticktext=[str(tick) for tick in ticks]),
        **dict(ticks="outside", ticklen=4, gridcolor="#ececec", zeroline=False),
        **dict(showline=True, mirror=True, linecolor=DARK, linewidth=1),
    )


def _layout(panels: Sequence[_Panel], note: str | None) -> dict[str, Any]:
    """Panels side by side, two in a row, each with a title, a colour bar and a legend's place."""
    columns, rows = min(len(panels), 2), (len(panels) + 1) // 2
    above = TOP + LINE * max(panel.title.count("<br>") + 1 for panel in panels)
    tall, wide = above + PANEL_HEIGHT + BOTTOM, LEFT + PANEL_WIDTH + BAR
    width = columns * wide + RIGHT
    caption = textwrap.wrap(note, width // 7) if note else []
    below = BOTTOM + (8 + LINE * len(caption) if caption else 0)
    inner_width, inner_height = width - LEFT - RIGHT, rows * tall - above - BOTTOM
    layout: dict[str, Any] = dict(
        template="none",
        width=width,
        height=above + inner_height + below,
        margin=dict(l=LEFT, r=RIGHT, t=above, b=below, pad=0, autoexpand=False),
        font=dict(family=FONT, size=12, color=DARK),
        paper_bgcolor="white",
        plot_bgcolor="white",
        hoverlabel=dict(align="left"),
    )
    plain: dict[str, Any] = dict(xref="paper", yref="paper", showarrow=False)
    annotations = []
    for index, panel in enumerate(panels):
        suffix = _suffix(index)
        left = index % 2 * wide / inner_width
        right = left + PANEL_WIDTH / inner_width
        top = 1 - index // 2 * tall / inner_height
        bottom = max(top - PANEL_HEIGHT / inner_height, 0.0)
        x_axis = dict(_axis(panel.n_layers, "Layer"), domain=[left, right], anchor=f"y{suffix}")
        y_axis = dict(_axis(panel.n_heads, "Head"), domain=[bottom, top], anchor=f"x{suffix}")
        colorbar = dict(
            title=dict(text=panel.bar_title, side="right", font=dict(size=13)),
            **dict(x=right + 12 / inner_width, xanchor="left", xpad=0, thickness=16),
            **dict(y=top, yanchor="top", ypad=0, len=PANEL_HEIGHT, lenmode="pixels"),
            **dict(outlinecolor=DARK, outlinewidth=1, ticks="outside", ticklen=4),
            exponentformat="power",
        )
        legend = dict(
            **dict(x=right - 6 / inner_width, xanchor="right"),
            **dict(y=top - 6 / inner_height, yanchor="top"),
            **dict(bgcolor="rgba(255,255,255,0.9)", bordercolor="#bfbfbf", borderwidth=1),
            **dict(font=dict(size=12), tracegroupgap=0),
        )
        colors = dict(cmin=panel.low, cmax=panel.high, colorscale=panel.colorscale)
        layout[f"xaxis{suffix}"], layout[f"yaxis{suffix}"] = x_axis, y_axis
        layout[f"coloraxis{suffix}"] = dict(colors, colorbar=colorbar)
        layout[f"legend{suffix}"] = legend
        place = dict(x=(left + right) / 2, xanchor="center", y=top, yanchor="bottom", yshift=6)
        annotations.append(dict(text=panel.title, font=dict(size=16), **place, **plain))
    if caption:
        place = dict(x=0, xanchor="left", xshift=6 - LEFT, y=0, yanchor="top", yshift=-BOTTOM)
        text = "<br>".join(escape(line, quote=False) for line in caption)
        look = dict(font=dict(size=12, color="#595959"), align="left", name="note")
        annotations.append(dict(text=text, **look, **place, **plain))
    return dict(layout, annotations=annotations)
