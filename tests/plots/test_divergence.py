"""Does the figure of attention divergence show the table's numbers?"""

import numpy
import pandas as pd
import pytest

from safetyheads.plots.divergence import plot_attention_divergence


def some_divergence():
    rows = []
    for comparison in ("matched", "unmatched"):
        for layer in range(2):
            for head in (0, 1, None):
                value = 0.1 * (layer + 1) + 0.01 * (head or 0)
                rows.append(
                    {
                        "comparison": comparison,
                        "layer": layer,
                        "head": head,
                        "label": "x",
                        "divergence": value,
                        "null_mean": 0.05,
                        "null_high": 0.08,
                        "q_value": 0.01 if layer else 0.5,
                        "unit": "nat",
                    }
                )
    return pd.DataFrame(rows).astype({"head": "Int64"})


def test_the_divergence_figure():
    figure = plot_attention_divergence(some_divergence(), title="tiny")
    lines = {t.name: t for t in figure.data if t.type == "scatter"}
    assert list(lines["matched length (first tokens)"].y) == pytest.approx([0.1, 0.2])
    assert "whole prompts, unmatched length" in lines
    assert list(lines["95 % of its null lie below"].y) == [0.08, 0.08]
    grey, coloured = (t for t in figure.data if t.type == "heatmap")
    assert (grey.name, coloured.name) == ("q > 0.05", "q ≤ 0.05")
    assert grey.z[:, 0] == pytest.approx([0.05, 0.06])
    assert numpy.isnan(grey.z[:, 1]).all()
    assert coloured.z[:, 1] == pytest.approx([0.15, 0.16])
    with pytest.raises(ValueError, match="lacks the columns q_value"):
        plot_attention_divergence(some_divergence().drop(columns="q_value"))
    with pytest.raises(ValueError, match="'matched'"):
        plot_attention_divergence(some_divergence().query("comparison != 'matched'"))
