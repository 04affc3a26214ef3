"""Do the figures of walks show what their tables hold?"""

import pandas
import pytest
import torch

from safetyheads.plots.slices import plot_region_slices
from safetyheads.plots.walks import plot_border, plot_regions, plot_synthetic, plot_walks
from safetyheads.probes.walks.regions import RegionSlice


def curve(name, values):
    rows = [
        {
            "step": n,
            "share": n / (len(values) - 1),
            "distance": v,
            "distance_low": v - 0.1,
            "distance_high": v + 0.2,
        }
        for n, v in enumerate(values)
    ]
    return pandas.DataFrame(rows).assign(model=name, walks=9, invalid=2)


def traces(figure, name):
    return [trace for trace in figure.data if trace.name == name]


def test_curves_have_their_quartiles_and_a_straight_line_beside():
    table = pandas.concat([curve("a<b", [0, 0.2, 1]), curve("c", [0, 0.5, 1])])
    figure = plot_walks(table)
    (line,) = traces(figure, "a&lt;b")
    assert list(line.y) == [0, 0.2, 1]
    (straight,) = traces(figure, "a straight line")
    assert list(straight.y) == [0, 1]
    band = next(t for t in figure.data if t.fill == "toself")
    assert list(band.y) == pytest.approx([0.2, 0.4, 1.2, 0.9, 0.1, -0.1])
    assert "14 valid walks; 4 invalid" in figure.layout.annotations[0].text
    with pytest.raises(ValueError, match="one row a step"):
        plot_walks(pandas.concat([curve("a", [0, 1]), curve("a", [0, 1])]))
    with pytest.raises(ValueError, match="lacks the columns slope"):
        plot_walks(table, measure="slope")


def regions():
    rows = []
    for tokens in (0, 100, 10_000):
        for weights, value in (("trained", 1 + tokens / 5000), ("random", 1.1)):
            row = {"tokens": tokens, "weights": weights, "walks": 8, "invalid": 1, "steps": 50}
            for name in ("sharpness", "width"):
                row |= {name: value, f"{name}_low": value - 0.5, f"{name}_high": value + 0.25}
            rows.append(row)
    return pandas.DataFrame(rows)


def test_regions_stand_beside_random_weights_and_a_zero_has_a_place():
    figure = plot_regions(regions(), "tokens")
    trained, again = traces(figure, "trained")
    assert list(trained.y) == [1, 1.02, 3]
    assert list(trained.x) == [25, 100, 10_000]
    assert list(trained.error_y.arrayminus) == [0.5] * 3
    assert again.xaxis == "x2"
    assert list(figure.layout.xaxis.ticktext) == ["0", "100", "10k"]
    assert "6 invalid" in figure.layout.annotations[0].text
    sizes = plot_regions(regions().assign(parameters=[1e8, 1e8, 2e8, 2e8, 5e8, 5e8]), "parameters")
    assert sizes.layout.xaxis.title.text == "Parameters"
    assert min(sizes.data[0].x) > 5e7  # no place for a zero that is not there
    with pytest.raises(ValueError, match="the table is empty"):
        plot_regions(regions()[:0], "tokens")


def test_kinds_of_activations_are_cumulated():
    table = pandas.DataFrame(
        {
            "kind": ["real", "real", "random"],
            "max_slope": [40.0, 20.0, 60.0],
            "plateau": [1.0, 2.0, 3.0],
        }
    ).assign(valid=[True, True, True])
    figure = plot_synthetic(table)
    (real, plateau) = traces(figure, "real")
    assert list(real.x) == [20, 20, 40]
    assert list(real.y) == [0, 0.5, 1]
    assert plateau.xaxis == "x2"
    means = [t.x[0] for t in figure.data if t.mode == "markers"]
    assert means == [30, 60, 1.5, 3]
    counted = plot_synthetic(table, bins=2)
    (real, _), (random, _) = traces(counted, "real"), traces(counted, "random")
    assert list(real.x) == list(random.x) == [20, 20, 40, 60]
    assert list(real.y) == [0, 0.5, 0.5, 0]  # an edge belongs to the bin above it
    assert list(random.y) == [0, 0, 1, 0]
    with pytest.raises(ValueError, match="bins is 0"):
        plot_synthetic(table, bins=0)
    with pytest.raises(ValueError, match="no valid walk"):
        plot_synthetic(table.assign(valid=False))


def test_the_border_shows_those_that_never_cross():
    table = pandas.DataFrame(
        {
            "heads": ["none"] * 3 + ["random 0"],
            "start": [-1.0, -1, 2, -1],
            "crossing": [0.5, None, None, 0.2],
        }
    )
    figure = plot_border(table)
    (none,) = traces(figure, "none")
    assert list(none.x) == [0, 0.5, 1]
    assert list(none.y) == [0, 0.5, 0.5]
    assert "none: 2 of 3 begin without" in figure.layout.annotations[0].text
    assert traces(figure, "random 0")[0].line.color == "#b0b0b0"


def test_a_plane_is_a_picture_with_its_anchors():
    at = torch.tensor([0.0, 0.5, 1.0])
    distances = torch.stack([at.expand(3, 3), at.flip(0).expand(3, 3), at[:, None].expand(3, 3)])
    one = RegionSlice(distances, at, at, 0.25, 1, "post_norm", "model", {})
    figure = plot_region_slices([one, one], ["left", "right"], borders=True)
    image = figure.data[0]
    assert image.z[0][0] == [255, 0, 255]  # at A itself: not far from A, far from B
    assert image.z[0][2] == [0, 255, 255]
    anchors = next(t for t in figure.data if t.text is not None)
    assert list(anchors.x) == [0, 1, 0.25]
    assert list(anchors.y) == [0, 0, 1]
    assert {a.text for a in figure.layout.annotations} >= {"left", "right"}
    with pytest.raises(ValueError, match="1 slices and 2 titles"):
        plot_region_slices([one], ["a", "b"])
