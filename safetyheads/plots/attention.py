"""Where do benign and jailbreak prompts attend? Maps in the published grid, and hidden magnitudes.

Each figure is a function of values with documented fields; none computes a score. `AttentionMaps` and
`HiddenMagnitudes` of `probes/attention/maps.py` are such values. A map is drawn as one picture with a palette, not
as a quarter of a million cells; a coarse, invisible heat map over it answers the mouse and carries the colour bar.
"""

# ruff: noqa: C408  (Plotly's documentation writes attributes as keyword arguments; so does this.)

import base64
import struct
import textwrap
import zlib
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from safetyheads.plots.frame import Panel, axis, caption, panel, sheet, suffix
from safetyheads.plots.style import BLANK, DARK

if TYPE_CHECKING:
    import plotly.graph_objects

PANEL = 330
"""Width of a panel, and height of a map, in pixels."""
LOW, HIGH, MOST = -10.0, 0.0, 4.0
"""Ends of the colour bars in the published figure: log attention, and its difference."""
COLOURS = {"log": "Viridis", "difference": "RdBu_r"}
SEGMENT_COLOURS = {
    "system": "#9e9e9e",
    "jailbreak template": "#e6550d",
    "user": "#3182bd",
    "assistant header": "#31a354",
}
HOVER_CELLS = 64
"""Cells on each side of the heat map that answers the mouse."""
LEFT, RIGHT, TOP, BOTTOM = 68, 80, 34, 56
GAP, BAR, ROW_GAP, STRIP = 62, 66, 104, 6


def plot_attention_maps(
    maps: Sequence[Any] | Any,
    *,
    limits: tuple[float | int, float | int] = (LOW, HIGH),
    difference_limit: float | int = MOST,
    note: str | None = None,
) -> "plotly.graph_objects.Figure":
    """Draw a row a model and layer: benign, jailbreak and the difference, query token against key token.

    The first token is at the top left, as in a printed matrix. All rows share a column's colours. Strips along the axes
    mark the typical segments of each set's prompts.

    Args:
        maps: one `AttentionMaps` or several; read are benign, jailbreak, difference [query, key], model, layer, heads,
            names, log, order, benign_segments and jailbreak_segments.
        limits: log attention at both ends of the colour bar; what lies outside has the end's colour.
        difference_limit: the difference at the upper end of its colour bar; the lower end is its negative.
        note: a caption under the figure.

    Raises:
        ValueError: no maps, maps of different sizes, logarithms or orders, or limits that are out of order.
    """
    import plotly.graph_objects as go

    rows: list[Any] = list(maps) if isinstance(maps, Sequence) else [maps]
    _check_alike(rows, ("log", "order"), "attention maps")
    if len({tuple(row.benign.shape) for row in rows}) > 1:
        sizes = ", ".join(str(row.benign.shape[0]) for row in rows)
        raise ValueError(f"the maps have {sizes} tokens on their axes: draw maps of one length=")
    if not (limits[0] < limits[1] and difference_limit > 0):
        raise ValueError(
            f"limits are {limits} and difference_limit is {difference_limit}: expected the lower end first, and a "
            "positive number"
        )
    size = int(rows[0].benign.shape[0])
    figure = go.Figure(layout=_layout(len(rows), PANEL, note))
    log = "ln" if rows[0].log == "e" else "log<sub>10</sub>"
    # What a pixel's colour is was set when the picture was made; the colour axes only draw the bars.
    mean = f"{log} of mean attention" if rows[0].order == "log_of_mean" else f"mean {log} attention"
    figure.layout.coloraxis = _bar(COLOURS["log"], *limits, mean, len(rows), 1, PANEL)
    sign = f"{log}: {rows[0].names[1]} − {rows[0].names[0]}"
    ends = (-difference_limit, difference_limit)
    figure.layout.coloraxis2 = _bar(COLOURS["difference"], *ends, sign, len(rows), 2, PANEL)
    drawn: dict[str, None] = {}
    for at, row in enumerate(rows):
        for column, (values, name, segments) in enumerate(
            (
                (row.benign, row.names[0], row.benign_segments),
                (row.jailbreak, row.names[1], row.jailbreak_segments),
                (row.difference, "Difference", ()),
            )
        ):
            place = _place(figure, at, column, len(rows), PANEL)
            some = "" if row.heads is None else f" Head {', '.join(map(str, row.heads))}"
            _title(figure, place, f"{row.model} Layer {row.layer}{some} - {name}")
            low, high = ends if column == 2 else limits
            scale = COLOURS["difference" if column == 2 else "log"]
            picture = _picture(values, low, high, scale)
            figure.add_image(source=picture, hoverinfo="skip", **place.axes)
            _add_hover(figure, values, place, "coloraxis2" if column == 2 else "coloraxis")
            figure.layout[f"xaxis{place.suffix}"].update(
                _ticks(size), title="Key Token", range=[-0.5, size - 0.5]
            )
            figure.layout[f"yaxis{place.suffix}"].update(
                _ticks(size), title="Query Token", range=[size - 0.5, -0.5]
            )
            for part in segments:
                _strip(figure, place, part)
                drawn.setdefault(part[0])
    _add_legend(figure, list(drawn), blank=any(row.difference.isnan().any() for row in rows))
    return figure


def plot_hidden_magnitudes(
    magnitudes: Sequence[Any] | Any, *, note: str | None = None
) -> "plotly.graph_objects.Figure":
    """Draw a row a model: the log magnitude of the hidden states, layer against token, and the difference.

    Each row has its own colours, since models differ in scale.

    Args:
        magnitudes: one `HiddenMagnitudes` or several; read are benign, jailbreak, difference [layer, pos], model,
            names, log, benign_segments and jailbreak_segments.
        note: a caption under the figure.

    Raises:
        ValueError: nothing to draw, or values of different logarithms.
    """
    import plotly.graph_objects as go

    rows: list[Any] = list(magnitudes) if isinstance(magnitudes, Sequence) else [magnitudes]
    _check_alike(rows, ("log",), "hidden magnitudes")
    height = 230
    figure = go.Figure(layout=_layout(len(rows), height, note))
    log = "ln" if rows[0].log == "e" else "log<sub>10</sub>"
    drawn: dict[str, None] = {}
    for at, row in enumerate(rows):
        both = torch.cat([row.benign.flatten(), row.jailbreak.flatten()])
        both = both[both.isfinite()]
        differences = row.difference[row.difference.isfinite()]
        most = float(differences.abs().max()) if differences.numel() else 1.0
        ends = (-most or -1e-6, most or 1e-6)
        first, second = (f"coloraxis{suffix(2 * at + n)}" for n in (0, 1))
        where = dict(rows=len(rows), height=height, at=at)
        title = f"{log} ‖h‖"
        figure.layout[first] = _bar(
            COLOURS["log"], float(both.min()), float(both.max()), title, column=1, **where
        )
        sign = f"{log}: {row.names[1]} − {row.names[0]}"
        figure.layout[second] = _bar(COLOURS["difference"], *ends, sign, column=2, **where)
        for column, (values, name, segments) in enumerate(
            (
                (row.benign, row.names[0], row.benign_segments),
                (row.jailbreak, row.names[1], row.jailbreak_segments),
                (row.difference, "Difference", ()),
            )
        ):
            place = _place(figure, at, column, len(rows), height)
            _title(figure, place, f"{row.model} - {name}")
            figure.add_heatmap(
                z=values.numpy(),
                coloraxis=second if column == 2 else first,
                hovertemplate="layer %{y}, token %{x}: %{z:.3f}<extra></extra>",
                hoverongaps=False,
                **place.axes,
            )
            layers, size = values.shape
            figure.layout[f"xaxis{place.suffix}"].update(
                _ticks(size), title="Token Position", range=[-0.5, size - 0.5]
            )
            figure.layout[f"yaxis{place.suffix}"].update(
                _ticks(layers), title="Layer", range=[-0.5, layers - 0.5]
            )
            for part in segments:
                _strip(figure, place, part, both=False)
                drawn.setdefault(part[0])
    _add_legend(figure, list(drawn), blank=any(row.difference.isnan().any() for row in rows))
    return figure


def _check_alike(rows: Sequence[Any], fields: Sequence[str], what: str) -> None:
    if not rows:
        raise ValueError(f"there are no {what} to draw: give at least one")
    for field in fields:
        if len(found := {getattr(row, field) for row in rows}) > 1:
            raise ValueError(
                f"the {what} have different {field} ({', '.join(sorted(map(str, found)))}), and the columns share "
                f"their colours: make all with the same {field}="
            )


def _inner(rows: int, height: int) -> tuple[int, int]:
    """Width and height between the margins: three panels, a bar after the second and the third, the rows."""
    return 3 * PANEL + GAP + BAR + GAP, rows * height + (rows - 1) * ROW_GAP


def _layout(rows: int, height: int, note: str | None) -> dict[str, Any]:
    wide, tall = _inner(rows, height)
    width = LEFT + wide + RIGHT
    extra, notes = caption(note, width=width, left=LEFT, below=BOTTOM + 30)
    below = BOTTOM + 34 + extra
    margins = dict(left=LEFT, right=RIGHT, top=TOP + 18, bottom=below)
    return sheet(width, TOP + 18 + tall + below, **margins) | dict(annotations=notes)


def _left(column: int) -> int:
    return column * (PANEL + GAP) + (BAR if column == 2 else 0)


def _place(figure: Any, row: int, column: int, rows: int, height: int) -> Panel:
    """Make the axes of one panel."""
    size = (PANEL, height)
    place = panel(
        3 * row + column,
        x=_left(column),
        y=row * (height + ROW_GAP),
        size=size,
        inner=_inner(rows, height),
    )
    plain = axis(showgrid=False, ticklabelstandoff=STRIP)
    figure.update_layout(place.frame(plain, plain))
    return place


def _bar(
    scale: str,
    low: float | int,
    high: float | int,
    title: str,
    rows: int,
    column: int,
    height: int,
    at: int | None = None,
) -> dict[str, Any]:
    """A colour axis with its bar right of a column, along one row, or all."""
    wide, tall = _inner(rows, height)
    length = tall if at is None else height
    y = 1.0 if at is None else 1 - at * (height + ROW_GAP) / tall
    bar = dict(
        **dict(x=(_left(column) + PANEL + 10) / wide, xanchor="left", xpad=0, thickness=14),
        **dict(y=y, yanchor="top", ypad=0, len=length, lenmode="pixels"),
        **dict(outlinecolor=DARK, outlinewidth=1, ticks="outside", ticklen=4),
        title=dict(text=title, side="right", font=dict(size=12)),
    )
    return dict(colorscale=scale, cmin=low, cmax=high, colorbar=bar)


def _ticks(size: int) -> dict[str, Any]:
    """Every 64 for 512, and as many for other sizes."""
    step = 1
    while step * 8 < size:
        step *= 2
    return dict(tickmode="array", tickvals=list(range(0, size, step)))


def _title(figure: Any, place: Panel, text: str) -> None:
    lines = textwrap.wrap(text, 48, break_on_hyphens=False)
    figure.add_annotation(place.heading("<br>".join(escape(line, quote=False) for line in lines)))


def _strip(figure: Any, place: Panel, part: Sequence[Any], both: bool = True) -> None:
    """Mark a segment outside the key axis, and the query axis."""
    name, start, stop = part
    colour = SEGMENT_COLOURS.get(name, "#756bb1")
    look = dict(type="rect", line=dict(width=0), fillcolor=colour, layer="above")
    x, y = place.axes.values()
    along, across = dict(a0=start - 0.5, a1=stop - 0.5), dict(b0=-1 - STRIP, b1=-1)
    figure.add_shape(
        **look,
        **dict(xref=x, x0=along["a0"], x1=along["a1"]),
        **dict(yref=f"{y} domain", ysizemode="pixel", yanchor=0, y0=across["b0"], y1=across["b1"]),
    )
    if both:
        figure.add_shape(
            **look,
            **dict(yref=y, y0=along["a0"], y1=along["a1"]),
            **dict(
                xref=f"{x} domain", xsizemode="pixel", xanchor=0, x0=across["b0"], x1=across["b1"]
            ),
        )


def _add_legend(figure: Any, names: Sequence[str], *, blank: bool) -> None:
    """What the strips' colours and the blank ground mean, by traces without points."""
    order = list(SEGMENT_COLOURS)
    shown = sorted(names, key=lambda n: order.index(n) if n in order else len(order))
    colours = {name: SEGMENT_COLOURS.get(name, "#756bb1") for name in shown}
    if blank:
        figure.update_layout(plot_bgcolor=BLANK)
        colours |= {"no data": BLANK}
    for name, colour in colours.items():
        swatch = dict(color=colour, symbol="square", size=10)
        figure.add_scatter(x=[None], y=[None], mode="markers", marker=swatch, name=escape(name))
    figure.update_layout(
        legend=dict(
            **dict(orientation="h", x=0, xanchor="left", itemclick=False, itemdoubleclick=False),
            **dict(y=-(BOTTOM + 2) / (figure.layout.height - TOP - 18 - figure.layout.margin.b)),
            yanchor="top",
        )
    )


def _add_hover(figure: Any, values: Float[Tensor, "query key"], place: Panel, colours: str) -> None:
    """An invisible heat map of block means, which carries the colour bar."""
    size = values.shape[0]
    block = -(-size // HOVER_CELLS)
    pad = -size % block
    padded = torch.nn.functional.pad(values, (0, pad, 0, pad), value=torch.nan)
    blocks = rearrange(
        padded,
        "(query inside) (key within) -> query key (inside within)",
        inside=block,
        within=block,
    )
    means = blocks.nanmean(-1)
    about = "" if block == 1 else "around "
    figure.add_heatmap(
        z=means.numpy(),
        **dict(x0=(block - 1) / 2, dx=block, y0=(block - 1) / 2, dy=block),
        **dict(opacity=0, coloraxis=colours, hoverongaps=False),
        hovertemplate=f"query {about}%{{y}}, key {about}%{{x}}: %{{z:.2f}}<extra></extra>",
        **place.axes,
    )


def _picture(
    values: Float[Tensor, "query key"], low: float | int, high: float | int, scale: str
) -> str:
    """The map as a PNG with 255 colours, transparent where it is blank, in a data URI.

    Written here, in eight lines: none of the libraries that safetyheads needs draws one.
    """
    from plotly.colors import sample_colorscale, unlabel_rgb

    share = ((values - low) / (high - low)).clamp(0, 1)
    colours: Int[Tensor, "query key"] = (1 + (share.nan_to_num() * 254).round()).to(torch.uint8)
    colours = colours.where(values.isfinite(), 0)
    sampled = sample_colorscale(scale, [n / 254 for n in range(255)])
    palette = b"\xff\xff\xff" + b"".join(
        bytes(round(float(part)) for part in unlabel_rgb(colour)) for colour in sampled
    )
    tall, wide = colours.shape
    lines = b"".join(b"\0" + bytes(line) for line in colours.numpy())
    png = b"\x89PNG\r\n\x1a\n"
    png += _part(b"IHDR", struct.pack(">IIBBBBB", wide, tall, 8, 3, 0, 0, 0))
    png += _part(b"PLTE", palette) + _part(b"tRNS", b"\0")
    png += _part(b"IDAT", zlib.compress(lines, 9)) + _part(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _part(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
