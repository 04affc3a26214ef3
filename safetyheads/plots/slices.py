"""How do regions of a plane through three activations look? As a picture of three colours, with their borders."""

# ruff: noqa: C408  (Plotly's documentation writes attributes as keyword arguments; so does this.)

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from safetyheads.plots.frame import axis, caption, panel, sheet
from safetyheads.plots.style import DARK

if TYPE_CHECKING:
    import plotly.graph_objects

SIDE, GAP, LEFT, RIGHT, TOP, BOTTOM = 340, 58, 62, 22, 34, 62


def plot_region_slices(
    slices: Sequence[Any],
    titles: Sequence[str],
    *,
    borders: bool = True,
    note: str | None = None,
) -> "plotly.graph_objects.Figure":
    """Draw planes side by side: red, green and blue where the output is near the first, second and third anchor's.

    Args:
        slices: what `slice_regions` gives.
        titles: one for each.
        borders: whether lines show where the output changes fastest.
        note: a line under the figure; by default what the colours and circles are.

    Raises:
        ValueError: there is no slice, or there are not as many titles.
    """
    import plotly.graph_objects as go

    if not slices or len(slices) != len(titles):
        raise ValueError(
            f"{len(slices)} slices and {len(titles)} titles came; give a title for each"
        )
    note = note or (
        "Red, green, blue: how near the output is to that of prompt A, B, C (white circles), each over the largest "
        "distance of the plane. Dark lines: where it changes more than four times as fast as its median."
    )
    inner = (len(slices) * SIDE + (len(slices) - 1) * GAP, SIDE)
    width = LEFT + inner[0] + RIGHT
    below, notes = caption(note, width=width, left=LEFT, below=BOTTOM)
    margins = dict(left=LEFT, right=RIGHT, top=TOP, bottom=BOTTOM + below)
    layout = sheet(width, TOP + SIDE + BOTTOM + below, **margins)
    figure = go.Figure()
    for number, (one, title) in enumerate(zip(slices, titles, strict=True)):
        place = panel(number, x=number * (SIDE + GAP), y=0, size=(SIDE, SIDE), inner=inner)
        _draw(figure, one, place.axes, borders)
        x = axis(title=dict(text="α, from A to B"), showgrid=False, range=_ends(one.alphas))
        y = axis(
            title=dict(text="" if number else "β, to C"), showgrid=False, range=_ends(one.betas)
        )
        layout |= place.frame(x, y)
        notes.append(place.heading(escape(title)))
    figure.update_layout(layout, annotations=notes, showlegend=False)
    return figure


def _ends(values: Any) -> list[float]:
    half = float(values[1] - values[0]) / 2
    return [float(values[0]) - half, float(values[-1]) + half]


def _draw(
    figure: "plotly.graph_objects.Figure", one: Any, axes: dict[str, str], borders: bool
) -> None:
    pixels = (255 * one.colours.clamp(0, 1)).round().int().tolist()
    figure.add_image(
        z=pixels,
        x0=float(one.alphas[0]),
        dx=float(one.alphas[1] - one.alphas[0]),
        y0=float(one.betas[0]),
        dy=float(one.betas[1] - one.betas[0]),
        hovertemplate="α %{x:.2f}, β %{y:.2f}: near A, B, C %{z}<extra></extra>",
        **axes,
    )
    if borders:
        slopes = one.borders
        level = 4 * float(slopes.median())
        figure.add_contour(
            z=slopes.tolist(),
            x=one.alphas.tolist(),
            y=one.betas.tolist(),
            contours=dict(start=level, end=level, coloring="none"),
            line=dict(color=DARK, width=1.2),
            showscale=False,
            hoverinfo="skip",
            **axes,
        )
    figure.add_scatter(
        x=[0, 1, one.corner],
        y=[0, 0, 1],
        mode="markers+text",
        marker=dict(size=13, color="rgba(255,255,255,0.25)", line=dict(color="white", width=2)),
        text=["A", "B", "C"],
        textposition="top center",
        textfont=dict(color="white", size=13),
        hoverinfo="skip",
        **axes,
    )
