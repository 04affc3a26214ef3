"""Do the figures of attention show the values that they are given, in the published layout?"""

import base64
import zlib
from types import SimpleNamespace

import numpy
import pytest
import torch

from safetyheads.plots.attention import BLANK, plot_attention_maps, plot_hidden_magnitudes
from safetyheads.plots.writing import write_html

SEGMENTS = [("system", 0, 10), ("jailbreak template", 10, 30), ("user", 30, 40)]


def some_maps(model="tiny", layer=4, size=512, seed=0, **changes):
    generator = torch.Generator().manual_seed(seed)
    blank = torch.ones(size, size, dtype=torch.bool).triu(1)
    benign, jailbreak = (
        (-12 * torch.rand(size, size, generator=generator)).masked_fill(blank, torch.nan)
        for _ in range(2)
    )
    values = {
        "benign": benign,
        "jailbreak": jailbreak,
        "difference": jailbreak - benign,
        "model": model,
        "layer": layer,
        "heads": None,
        "names": ("Benign", "Jailbreak"),
        "log": "e",
        "order": "log_of_mean",
        "benign_segments": SEGMENTS[:1],
        "jailbreak_segments": SEGMENTS,
    }
    return SimpleNamespace(**values | changes)


def titles(figure):
    return [a.text for a in figure.layout.annotations]


def pictures(figure):
    return [trace for trace in figure.data if trace.type == "image"]


def pixels(trace):
    """The colour indices and the palette of a PNG as this library writes it."""
    png = base64.b64decode(trace.source.removeprefix("data:image/png;base64,"))
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(png):
        length = int.from_bytes(png[at : at + 4], "big")
        kind, body = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        assert int.from_bytes(png[at + 8 + length : at + 12 + length], "big") == zlib.crc32(
            kind + body
        )
        chunks[kind], at = body, at + 12 + length
    wide = int.from_bytes(chunks[b"IHDR"][:4], "big")
    lines = numpy.frombuffer(zlib.decompress(chunks[b"IDAT"]), numpy.uint8).reshape(-1, wide + 1)
    return lines[:, 1:], numpy.frombuffer(chunks[b"PLTE"], numpy.uint8).reshape(-1, 3)


def test_the_published_grid():
    rows = [some_maps("GPT-JT-6B", 7), some_maps("LLaMA-3.1-8B", 4), some_maps("Mistral-7B", 18)]
    figure = plot_attention_maps(rows)
    assert titles(figure) == [
        f"{name} Layer {layer} - {column}"
        for name, layer in (("GPT-JT-6B", 7), ("LLaMA-3.1-8B", 4), ("Mistral-7B", 18))
        for column in ("Benign", "Jailbreak", "Difference")
    ]
    assert len(pictures(figure)) == 9
    for n in range(9):
        suffix = str(n + 1) if n else ""
        for axis, title in (("x", "Key Token"), ("y", "Query Token")):
            found = figure.layout[f"{axis}axis{suffix}"]
            assert found.title.text == title
            assert found.tickvals == (0, 64, 128, 192, 256, 320, 384, 448)
        # Square cells: as many pixels each way; the first query is at the top.
        x, y = (figure.layout[f"{axis}axis{suffix}"] for axis in "xy")
        inner_width = figure.layout.width - figure.layout.margin.l - figure.layout.margin.r
        inner_height = figure.layout.height - figure.layout.margin.t - figure.layout.margin.b
        wide = (x.domain[1] - x.domain[0]) * inner_width
        assert wide == pytest.approx((y.domain[1] - y.domain[0]) * inner_height)
        assert (x.range, y.range) == ((-0.5, 511.5), (511.5, -0.5))
    log, difference = figure.layout.coloraxis, figure.layout.coloraxis2
    assert (log.cmin, log.cmax, difference.cmin, difference.cmax) == (-10, 0, -4, 4)
    assert log.colorbar.title.text == "ln of mean attention"
    assert difference.colorbar.title.text == "ln: Jailbreak − Benign"
    hidden = [trace for trace in figure.data if trace.type == "heatmap"]
    assert [t.coloraxis for t in hidden] == ["coloraxis", "coloraxis", "coloraxis2"] * 3
    assert all(t.opacity == 0 for t in hidden)


def test_a_pixel_has_the_colour_of_its_value():
    rows = some_maps(size=9)
    rows.benign[3, 1], rows.benign[4, 0], rows.benign[5, 5] = -5.0, -12.0, 3.0
    figure = plot_attention_maps(rows)
    indices, palette = pixels(pictures(figure)[0])
    assert indices.shape == (9, 9)
    assert (indices == 0).tolist() == rows.benign.isnan().tolist()
    assert (indices[3, 1], indices[4, 0], indices[5, 5]) == (128, 1, 255)
    assert palette[1].tolist() == [68, 1, 84]  # the dark end of Viridis
    assert palette[255].tolist() == [253, 231, 37]
    difference, colours = pixels(pictures(figure)[2])
    most = rows.difference.nan_to_num().argmax()
    assert rows.difference.flatten()[most] > 4
    red, _, blue = colours[difference.flatten()[most]]
    assert red > blue, "positive, more attention in the jailbreak, is red"


def test_the_mouse_is_answered_with_block_means():
    rows = some_maps(size=512)
    figure = plot_attention_maps(rows)
    heat = next(trace for trace in figure.data if trace.type == "heatmap")
    assert heat.z.shape == (64, 64)
    assert heat.z[20, 3] == pytest.approx(rows.benign[160:168, 24:32].mean().item(), abs=1e-4)
    assert (heat.x0, heat.dx) == (3.5, 8)
    assert numpy.isnan(heat.z[3, 20])


def test_segments_are_marked_on_both_axes_and_explained():
    figure = plot_attention_maps(some_maps())
    strips = figure.layout.shapes
    assert len(strips) == 2 * (1 + 3)
    along_x = [s for s in strips if s.xref == "x2"]
    assert [(s.x0, s.x1) for s in along_x] == [(-0.5, 9.5), (9.5, 29.5), (29.5, 39.5)]
    assert [(s.y0, s.y1) for s in strips if s.yref == "y2"] == [(s.x0, s.x1) for s in along_x]
    legend = [trace.name for trace in figure.data if trace.type == "scatter"]
    assert legend == ["system", "jailbreak template", "user", "no data"]
    assert figure.layout.plot_bgcolor == BLANK != "white"  # white is no difference


def test_other_sizes_and_names():
    figure = plot_attention_maps(
        [some_maps(size=40, heads=(3,), names=("Plain", "Wrapped"), log=10)],
        limits=(-8, -1),
        difference_limit=2,
        note="Forty tokens.",
    )
    assert figure.layout.xaxis.tickvals == (0, 8, 16, 24, 32)
    assert "tiny Layer 4 Head 3 - Plain" in titles(figure)
    assert "Forty tokens." in titles(figure)
    assert figure.layout.coloraxis.cmin == -8
    assert figure.layout.coloraxis2.colorbar.title.text == "log<sub>10</sub>: Wrapped − Plain"


def test_nine_maps_make_a_small_page(tmp_path):
    rows = []
    for n in range(3):
        smooth = torch.linspace(-10, 0, 512).expand(512, 512)
        smooth = smooth.masked_fill(torch.ones(512, 512, dtype=torch.bool).triu(1), torch.nan)
        rows.append(some_maps(layer=n, benign=smooth, jailbreak=smooth, difference=smooth * 0))
    page = write_html(plot_attention_maps(rows), tmp_path / "maps.html")
    assert page.stat().st_size < 500_000


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "no attention maps to draw"),
        ([some_maps(size=8), some_maps(size=9)], {}, "8, 9 tokens on their axes"),
        ([some_maps(size=8), some_maps(size=8, log=10)], {}, "different log"),
        ([some_maps(size=8)], {"limits": (0, -10)}, "the lower end first"),
        ([some_maps(size=8)], {"difference_limit": 0}, "a positive number"),
    ],
)
def test_what_cannot_be_drawn_is_refused(rows, options, message):
    with pytest.raises(ValueError, match=message):
        plot_attention_maps(rows, **options)


def test_hidden_magnitudes_have_a_row_a_model():
    value = SimpleNamespace(
        benign=torch.rand(5, 20),
        jailbreak=1 + torch.rand(5, 20),
        difference=torch.ones(5, 20),
        model="tiny",
        names=("Benign", "Jailbreak"),
        log="e",
        benign_segments=SEGMENTS[:1],
        jailbreak_segments=SEGMENTS,
    )
    figure = plot_hidden_magnitudes([value, value])
    assert len([t for t in figure.data if t.type == "heatmap"]) == 6
    assert titles(figure)[:3] == ["tiny - Benign", "tiny - Jailbreak", "tiny - Difference"]
    assert figure.layout.yaxis.title.text == "Layer"
    assert figure.layout.coloraxis.cmin == pytest.approx(value.benign.min().item())
    assert figure.layout.coloraxis.cmax == pytest.approx(value.jailbreak.max().item())
    assert (figure.layout.coloraxis2.cmin, figure.layout.coloraxis2.cmax) == (-1, 1)
    with pytest.raises(ValueError, match="no hidden magnitudes"):
        plot_hidden_magnitudes([])
