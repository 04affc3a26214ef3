"""Where do the heads that matter lie? The k best of every series, layer against head, drawn from a table of heads."""

# ruff: noqa: C408  (Plotly's documentation writes attributes as keyword arguments; so does this.)

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from safetyheads.plots.frame import LINE, about, suffix
from safetyheads.plots.heads import (
    PANEL_HEIGHT,
    PANEL_WIDTH,
    Area,
    check_one_row_per_head,
    checked,
    estimated,
    grid_size,
    grouped,
    hover_text,
    in_null,
    layout,
    limits,
    metric_title,
    named,
    of_value,
    ordered,
    rank_words,
    titled,
    wrapped,
)
from safetyheads.plots.style import DARK, human

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

NOT_RUN = "dotted: estimated"
"""What the legend says of heads that were not run."""
IN_NULL, IN_NULL_THIN = "open: inside the null", "open or thin: inside the null"
"""What it says of heads that do not rise above the null, of two series and of more."""


class _Symbol(NamedTuple):
    """How a series looks. Sizes nest: all symbols of one head can be seen at once."""

    shape: str
    size: float
    """Diameter, with 1 for the first series."""
    swatch: str
    """Colour in the legend, where no score gives one."""

    @property
    def width(self) -> float:
        """Of the line around it."""
        return 2.5 if self.shape.endswith("-open") else 1.0

    def shapes(self, rows: "pandas.DataFrame") -> dict[str, Any]:
        """The look of every row, where one is estimated or inside the null."""
        guessed, inside = estimated(rows), in_null(rows)
        if not any(guessed) and not any(inside):
            return dict(symbol=self.shape)
        opened = f"{self.shape.removesuffix('-open')}-open"
        look = {(True, False): f"{opened}-dot", (False, True): opened}
        pairs = zip(guessed, inside, strict=True)
        return dict(symbol=[look.get(pair, self.shape) for pair in pairs])

    def widths(self, rows: "pandas.DataFrame") -> float | list[float]:
        """Of the lines around every row: what is open has a thick one, unless the series itself is open."""
        special = [a or b for a, b in zip(estimated(rows), in_null(rows), strict=True)]
        if not any(special):
            return self.width
        other = 1.0 if self.shape.endswith("-open") else 2.5
        return [other if one else self.width for one in special]


SYMBOLS = (
    _Symbol("circle", 1.0, "#440154"),
    _Symbol("x", 0.6, "#fde725"),
    _Symbol("square-open", 1.35, "#21918c"),
    _Symbol("diamond-open", 1.7, "#3b528b"),
    _Symbol("circle-open", 2.1, "#5ec962"),
    _Symbol("hexagon-open", 2.5, "#9c179e"),
)


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
    them. Every symbol has its score's colour. A head that does not rise above the null is an open symbol
    (a thin one, where the series' symbol is open already); an estimated score is open with a dot. The y
    axis grows where a point would lie under the legend. The legend's swatches are traces without points.

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
    table = checked(table)
    n_layers, n_heads = grid_size(table, n_layers, n_heads)
    names = ordered(table, series)
    if len(names) > len(SYMBOLS):
        raise ValueError(
            f"there are {len(names)} values of {series!r} ({', '.join(names)}): expected at most "
            f"{len(SYMBOLS)}, one symbol each; keep fewer rows, or name another column as series"
        )
    legend = [_clip(human(name)) for name in names] if series in table.columns else []
    groups = grouped(table, [panel])
    tops, areas = [], []
    for where, rows in groups:
        place = named([panel], where)
        bar_title = metric_title(rows, place)
        top = {name: of_value(rows, series, name) for name in names}
        for name, part in top.items():
            check_one_row_per_head(part, f"{place}, {series} {name!r}")
            top[name] = part.nsmallest(k, "rank")
        low, high, colors = limits([score for part in top.values() for score in part["score"]])
        title = _title(rows, max(map(len, top.values())), where, {panel, series})
        areas.append(Area(title, bar_title, n_layers, n_heads, low, high, colors))
        tops.append(top)
    areas = titled(areas, titles, [" ".join(where) for where, _ in groups])

    drawn = [part for top in tops for part in top.values()]
    marks = [NOT_RUN] if any(any(estimated(part)) for part in drawn) else []
    if any(any(in_null(part)) for part in drawn):
        marks.append(IN_NULL if len(names) <= 2 else IN_NULL_THIN)
    size = max(11.0, min(15.0, 0.9 * min(PANEL_WIDTH / n_layers, PANEL_HEIGHT / n_heads)))
    figure = go.Figure(layout=layout(areas, note))
    end = _axis_end(drawn, [*legend, *marks], n_layers, n_heads, size)
    figure.update_yaxes(range=[-0.8, end])
    for index, (top, area) in enumerate(zip(tops, areas, strict=True)):
        _draw(figure, index, top, area, legend, size)
        for mark in marks:
            _add_mark(figure, index, mark)
    return figure


def _title(rows: "pandas.DataFrame", count: int, where: tuple[str, ...], told: set[str]) -> str:
    """How many heads, of which panel, on which prompts and in which model."""
    value = human(where[0]) if where else ""
    rest = about(rows, [name for name in ("dataset", "model") if name not in told])
    both = ", ".join(part for part in (value, rest) if part)
    return wrapped(f"Top {count} Safety Heads" + (f" on {both}" if both else ""), 54)


def _draw(
    figure: Any,
    index: int,
    top: Mapping[str, "pandas.DataFrame"],
    area: Area,
    legend: Sequence[str],
    size: float,
) -> None:
    """One panel's series: a trace with its heads, and one without points for the legend."""
    circles: dict[tuple[int, int], float] = {}
    for which, (name, part) in enumerate(top.items()):
        symbol = SYMBOLS[which]
        shared = _axes(index) | dict(
            mode="markers",
            name=legend[which] if legend else "",
            legendgroup=f"{index}.{which}",
        )
        points = list(zip(part["layer"], part["head"], part["score"], strict=True))
        # A dark cross on a dark circle is told from it by a light outline only.
        middle = (area.low + area.high) / 2
        edges = [
            "white" if max(score, circles.get((layer, head), middle)) < middle else DARK
            for layer, head, score in points
        ]
        if which == 0:
            circles = {(layer, head): score for layer, head, score in points}
        words = hover_text(part, "%{text}", "%{customdata[0]:.4g}", "%{customdata[1]}")
        figure.add_scatter(
            **shared,
            x=[layer for layer, _, _ in points],
            y=[head for _, head, _ in points],
            text=part["label"].tolist(),
            customdata=[list(pair) for pair in zip(part["score"], rank_words(part), strict=True)],
            marker=dict(
                **symbol.shapes(part),
                size=round(size * symbol.size, 1),
                color=[score for _, _, score in points],
                coloraxis=f"coloraxis{suffix(index)}",
                opacity=1,
                line=dict(color=edges if which == 1 else DARK, width=symbol.widths(part)),
            ),
            hovertemplate=words
            + (f"<br>{escape(human(name))}" if legend else "")
            + "<extra></extra>",
            showlegend=False,
        )
        if legend:
            look = dict(symbol=symbol.shape, size=min(round(size * symbol.size, 1), 15))
            look |= dict(color=symbol.swatch, line=dict(color=DARK, width=symbol.width))
            figure.add_scatter(**shared, x=[None], y=[None], marker=look, hoverinfo="skip")


def _add_mark(figure: Any, index: int, mark: str) -> None:
    """A line of the legend for heads that were not run, or that are inside the null."""
    shape = "circle-open-dot" if mark == NOT_RUN else "circle-open"
    look = dict(symbol=shape, size=11, color=DARK, line=dict(width=2))
    swatch = dict(x=[None], y=[None], mode="markers", marker=look, hoverinfo="skip")
    figure.add_scatter(name=mark, showlegend=True, **swatch, **_axes(index))


def _axes(index: int) -> dict[str, Any]:
    number = suffix(index)
    return dict(xaxis=f"x{number}", yaxis=f"y{number}", legend=f"legend{number}")


def _clip(text: str, width: int = 46) -> str:
    return escape(text if len(text) <= width else text[: width - 1] + "…", quote=False)


def _axis_end(
    drawn: Sequence["pandas.DataFrame"],
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
    parts = [part[part["layer"] > layers - 0.2 - reach] for part in drawn]
    highest = max((int(part["head"].max()) for part in parts if len(part)), default=-1)
    return max(heads - 0.2, (highest + 0.8 * share) / (1 - share))
