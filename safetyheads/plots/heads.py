"""What must a table of heads hold, and how do its panels lie? The scatter and the heat map are drawn from it.

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
in_null    optional: whether the head does not rise above the null; drawn open
=========  =====================================================================

Plots never compute scores. Sizes are pixels, fixed, so that a figure looks the same everywhere.
"""

# ruff: noqa: C408  (Plotly's documentation writes attributes as keyword arguments; so does this.)

import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from safetyheads.plots.frame import LINE, axis, caption, panel, require_columns, sheet
from safetyheads.plots.style import DARK, NAMES, human

if TYPE_CHECKING:
    import pandas

COLUMNS = ("layer", "head", "label", "ablation", "metric", "score", "unit", "rank")
"""The columns that every table must have."""
PANEL_WIDTH, PANEL_HEIGHT = 460, 420
LEFT, RIGHT, TOP, BOTTOM = 66, 14, 34, 58
BAR = 104
"""Width beside a panel for its colour bar: the bar, its tick labels and its title."""


class Area(NamedTuple):
    """One plot area: what it shows and how far its axes go."""

    title: str
    bar_title: str
    n_layers: int
    n_heads: int
    low: float
    """Score at the lower end of the colour bar."""
    high: float
    colorscale: str = "Viridis"


def checked(table: "pandas.DataFrame") -> "pandas.DataFrame":
    """The table with plain text and whole numbers, or an error that says what it lacks."""
    require_columns(table, COLUMNS, "HeadScores.to_frame()")
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


def estimated(rows: "pandas.DataFrame") -> list[bool]:
    """Which rows hold an estimate."""
    return (rows["kind"] == "estimated").tolist() if "kind" in rows else [False] * len(rows)


def in_null(rows: "pandas.DataFrame") -> list[bool]:
    """Which rows were tested and do not rise above the null."""
    if "in_null" not in rows:
        return [False] * len(rows)
    inside = rows["in_null"].astype(str) == "True"  # as text where the table came from a file
    return [a and not b for a, b in zip(inside, estimated(rows), strict=True)]


def rank_words(rows: "pandas.DataFrame") -> list[int | str]:
    """Ranks for the hover, with a word beside those that an estimate gave."""
    return [
        f"{rank}, estimated" if guess else rank
        for rank, guess in zip(rows["rank"].tolist(), estimated(rows), strict=True)
    ]


def check_one_row_per_head(rows: "pandas.DataFrame", place: str) -> None:
    """Raise ValueError where a head occurs twice; `place` says where."""
    twice = rows[rows.duplicated(["layer", "head"])]
    if len(twice):
        raise ValueError(
            f"{twice['label'].iloc[0]} occurs more than once in {place}: expected one row a head. "
            "If the table holds several datasets, models, ablations or metrics, keep one of each "
            "that the figure does not tell apart, or name the column as panel or series"
        )


def grid_size(rows: "pandas.DataFrame", layers: int | None, heads: int | None) -> tuple[int, int]:
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


def ordered(table: "pandas.DataFrame", column: str) -> list[str]:
    """The column's values, known names in their usual order, others as they come."""
    if column not in table.columns:
        return [""]
    known = list(NAMES)
    values = table[column].drop_duplicates().tolist()
    return sorted(values, key=lambda value: known.index(value) if value in known else len(known))


def of_value(rows: "pandas.DataFrame", column: str, value: str) -> "pandas.DataFrame":
    """The rows with a value; all where the table lacks the column."""
    return rows[rows[column] == value] if column in rows.columns else rows


def grouped(
    table: "pandas.DataFrame", columns: Sequence[str]
) -> list[tuple[tuple[str, ...], "pandas.DataFrame"]]:
    """The rows of every combination of values; the columns that the table lacks do not count."""
    found: list[tuple[tuple[str, ...], Any]] = [((), table)]
    for column in [column for column in columns if column in table.columns]:
        found = [
            ((*where, value), of_value(rows, column, value))
            for where, rows in found
            for value in ordered(rows, column)
        ]
    return found


def named(columns: Sequence[str], where: tuple[str, ...]) -> str:
    """A panel for an error, by its columns' values."""
    values = [f"{column} {value!r}" for column, value in zip(columns, where, strict=False)]
    return ", ".join(values) or "the only panel"


def metric_title(rows: "pandas.DataFrame", place: str) -> str:
    """Metric and unit of a panel, which must be one."""
    kinds = rows[["metric", "unit"]].drop_duplicates().itertuples(index=False)
    titles = [human(metric) + (f" [{unit}]" if unit else "") for metric, unit in kinds]
    if len(titles) > 1:
        raise ValueError(
            f"{place} mixes {' and '.join(titles)}: expected one metric and unit, because a panel "
            "has one colour bar. Keep one, such as table[table['metric'] == "
            f"{rows['metric'].iloc[0]!r}], and draw the other in a figure of its own"
        )
    return wrapped(titles[0], 56)


def titled(
    panels: list[Area], titles: Sequence[str] | Mapping[str, str] | None, values: list[str]
) -> list[Area]:
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


def wrapped(text: str, width: int = 54) -> str:
    """Text in lines, as text and not as markup."""
    lines = textwrap.wrap(text, width, break_on_hyphens=False)
    return "<br>".join(escape(line, quote=False) for line in lines)


def hover_text(rows: "pandas.DataFrame", label: str, score: str, rank: str) -> str:
    """What the mouse is told of a head, with Plotly's names for its parts."""
    metric, unit = escape(human(rows["metric"].iloc[0])), escape(rows["unit"].iloc[0])
    return f"<b>{label}</b><br>{metric}: {score} {unit}<br>rank {rank}"


def limits(scores: Sequence[float], *, diverging: bool = False) -> tuple[float, float, str]:
    """Both ends of a colour bar, and the colours between them."""
    low, high = float(min(scores)), float(max(scores))
    most = max(abs(low), abs(high))
    if diverging and min(-low, high) > 1e-5 * most:
        return -most, most, "RdBu_r"
    pad = 0.0 if low < high else 0.05 * most or 0.5
    return low - pad, high + pad, "Viridis"


def layout(
    areas: Sequence[Area], note: str | None, *, legend_below: bool = False
) -> dict[str, Any]:
    """Panels side by side, two in a row, each with a title, a colour bar and a legend's place, inside or under it."""
    bottom = BOTTOM + (LINE + 8 if legend_below else 0)
    columns, rows = min(len(areas), 2), (len(areas) + 1) // 2
    above = TOP + LINE * max(area.title.count("<br>") + 1 for area in areas)
    tall, wide = above + PANEL_HEIGHT + bottom, LEFT + PANEL_WIDTH + BAR
    width = columns * wide + RIGHT
    extra, notes = caption(note, width=width, left=LEFT, below=bottom)
    inner = width - LEFT - RIGHT, rows * tall - above - bottom
    margins = dict(left=LEFT, right=RIGHT, top=above, bottom=bottom + extra)
    made = sheet(width, above + inner[1] + bottom + extra, **margins)
    made |= dict(hoverlabel=dict(align="left"), annotations=[])
    for index, area in enumerate(areas):
        size = (PANEL_WIDTH, PANEL_HEIGHT)
        place = panel(index, x=index % 2 * wide, y=index // 2 * tall, size=size, inner=inner)
        made |= place.frame(_steps(area.n_layers, "Layer"), _steps(area.n_heads, "Head"))
        colorbar = dict(
            title=dict(text=area.bar_title, side="right", font=dict(size=13)),
            **dict(x=place.right + 12 / inner[0], xanchor="left", xpad=0, thickness=16),
            **dict(y=place.top, yanchor="top", ypad=0, len=PANEL_HEIGHT, lenmode="pixels"),
            **dict(outlinecolor=DARK, outlinewidth=1, ticks="outside", ticklen=4),
            exponentformat="power",
        )
        colors = dict(cmin=area.low, cmax=area.high, colorscale=area.colorscale)
        made[f"coloraxis{place.suffix}"] = dict(colors, colorbar=colorbar)
        made[f"legend{place.suffix}"] = dict(
            **dict(x=place.right - 6 / inner[0], xanchor="right"),
            **dict(y=place.top - 6 / inner[1], yanchor="top"),
            **dict(bgcolor="rgba(255,255,255,0.9)", bordercolor="#bfbfbf", borderwidth=1),
            **dict(font=dict(size=12), tracegroupgap=0),
        )
        if legend_below:
            made[f"legend{place.suffix}"] |= dict(
                **dict(x=place.left, xanchor="left", orientation="h", borderwidth=0),
                y=place.bottom - (BOTTOM - 4) / inner[1],
            )
        made["annotations"].append(place.heading(area.title, size=16, shift=6))
    made["annotations"] += notes
    return made


def _steps(n: int, title: str) -> dict[str, Any]:
    """An axis of n layers or heads: at most sixteen ticks, a power of two apart."""
    step = next(2**power for power in range(32) if (n - 1) // 2**power + 1 <= 16)
    ticks = list(range(0, n, step))
    return axis(
        title=dict(text=title, font=dict(size=14), standoff=8),
        range=[-0.8, n - 0.2],
        **dict(tickmode="array", tickvals=ticks, ticktext=[str(tick) for tick in ticks]),
    )
