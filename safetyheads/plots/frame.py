"""What do all figures stand in? The columns that a table must have, the sheet, its panels, axes and caption.

Sizes are pixels. Plotly wants shares of the area between the margins; `panel` does that sum, once.
"""

# ruff: noqa: C408  (Plotly's documentation writes attributes as keyword arguments; so does this.)

import textwrap
from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from safetyheads.plots.style import DARK, FONT, human

if TYPE_CHECKING:
    import pandas

LINE = 21
"""Height of one line of a title, of a legend or of a note."""
FAINT = "#595959"
"""Ink of captions."""


def require_columns(table: "pandas.DataFrame", columns: Iterable[str], maker: str) -> None:
    """Raise ValueError if a table lacks one of the columns; `maker` says what has them."""
    if missing := [name for name in columns if name not in table.columns]:
        has = ", ".join(map(str, table.columns)) or "none"
        raise ValueError(
            f"the table lacks the columns {', '.join(missing)}; it has {has}: expected what {maker} gives"
        )


def sheet(
    width: int, height: int, *, left: int, right: int, top: int, bottom: int
) -> dict[str, Any]:
    """A white layout of a fixed size, whose margins nothing moves."""
    return dict(
        template="none",
        width=width,
        height=height,
        margin=dict(l=left, r=right, t=top, b=bottom, pad=0, autoexpand=False),
        font=dict(family=FONT, size=12, color=DARK),
        paper_bgcolor="white",
        plot_bgcolor="white",
    )


def axis(**more: Any) -> dict[str, Any]:
    """An axis as all figures have it: a dark line around, ticks outside, faint grid lines."""
    line = dict(showline=True, mirror=True, linecolor=DARK, linewidth=1, zeroline=False)
    return dict(line, ticks="outside", ticklen=4, gridcolor="#ececec") | more


def suffix(number: int) -> str:
    """Plotly's number of axes, colours and legends, of a number from 0: x, x2, x3, ..."""
    return str(number + 1) if number else ""


class Panel(NamedTuple):
    """One plot area: what Plotly calls its axes, and its edges as shares of the area between the margins."""

    suffix: str
    left: float
    right: float
    bottom: float
    top: float

    @property
    def axes(self) -> dict[str, str]:
        """The axes of its traces."""
        return dict(xaxis=f"x{self.suffix}", yaxis=f"y{self.suffix}")

    def frame(self, x: dict[str, Any], y: dict[str, Any]) -> dict[str, Any]:
        """Its two axes, by their names in the layout."""
        x = dict(x, domain=[self.left, self.right], anchor=f"y{self.suffix}")
        y = dict(y, domain=[self.bottom, self.top], anchor=f"x{self.suffix}")
        return {f"xaxis{self.suffix}": x, f"yaxis{self.suffix}": y}

    def heading(self, text: str, *, size: int = 13, shift: int = 4) -> dict[str, Any]:
        """A line centred above it; Plotly's markup is allowed."""
        place = dict(x=(self.left + self.right) / 2, xanchor="center", y=self.top)
        place |= dict(yanchor="bottom", yshift=shift, xref="paper", yref="paper")
        return dict(text=text, font=dict(size=size), showarrow=False, **place)


def panel(number: int, *, x: int, y: int, size: tuple[int, int], inner: tuple[int, int]) -> Panel:
    """The panel of a size whose upper left corner lies x and y pixels from that of the `inner` area between margins."""
    (width, height), (wide, tall) = size, inner
    top = 1 - y / tall
    # Rounding may leave a little less than nothing.
    bottom = max(top - height / tall, 0.0)
    return Panel(suffix(number), x / wide, min((x + width) / wide, 1.0), bottom, top)


def caption(
    note: str | None, *, width: int, left: int, below: int
) -> tuple[int, list[dict[str, Any]]]:
    """A note under a figure, wrapped to its width, `below` pixels under the panels: its height and its annotation.

    `left` is the figure's left margin. Without a note the height is 0 and there is no annotation.
    """
    lines = textwrap.wrap(note, width // 7) if note else []
    if not lines:
        return 0, []
    place = dict(x=0, xanchor="left", xshift=6 - left, y=0, yanchor="top", yshift=-below)
    look = dict(font=dict(size=12, color=FAINT), align="left", name="note", showarrow=False)
    text = "<br>".join(escape(line, quote=False) for line in lines)
    return 8 + LINE * len(lines), [dict(text=text, xref="paper", yref="paper", **look, **place)]


def about(table: "pandas.DataFrame", columns: Iterable[str] = ("dataset", "model")) -> str:
    """What a table's rows have in common, in a reader's words: prompts and model; empty where they differ."""
    common = [table[name].astype(str).unique() for name in columns if name in table.columns]
    return ", ".join(human(values[0]) for values in common if len(values) == 1 and values[0])
