"""Does the figure of behaviour show the table's numbers, and refuse a table that lacks them?"""

import pandas
import pytest

from safetyheads.plots.behaviour import plot_refusal_under_ablation


def curve_table(seeds=(0, 1), sides=("harmful",)):
    rows = []
    for side in sides:
        for verdict, start in (
            ("refuse", 0.8),
            ("comply", 0.1),
            ("deflect", 0.05),
            ("degenerate", 0.05),
        ):
            groups = [("baseline", 0, 0)] + [("top", n, 0) for n in (1, 3, 5)]
            groups += [("random", n, seed) for n in (1, 3, 5) for seed in seeds]
            for arm, size, seed in groups:
                sign = 1 if verdict == "comply" else -1
                rate = min(
                    1.0, max(0.0, start + sign * (0.12 * size if arm == "top" else 0.01 * seed))
                )
                rows.append(
                    {
                        "dataset": "jailbreakbench",
                        "side": side,
                        "verdict": verdict,
                        "arm": arm,
                        "size": size,
                        "seed": seed,
                        "rate": rate,
                        "low": max(0.0, rate - 0.2),
                        "high": min(1.0, rate + 0.15),
                        "n": 24,
                        "heads": "L1H2",
                        "model": "qwen",
                        "ablation": "scaling_contribution",
                    }
                )
    return pandas.DataFrame(rows)


def test_top_and_random_heads_are_drawn_with_their_numbers():
    table = curve_table()
    figure = plot_refusal_under_ablation(table)
    top = [t for t in figure.data if t.name and t.name.startswith("Top")]
    mean = [t for t in figure.data if t.name and t.name.startswith("Random")]
    assert len(top) == len(mean) == 3
    assert mean[0].name == "Random heads, mean of 2"
    refusal = table.query("verdict == 'refuse' and arm in ('baseline', 'top')").sort_values("size")
    assert list(top[0].x) == [0, 1, 3, 5]
    assert list(top[0].y) == refusal["rate"].tolist()
    assert list(top[0].error_y.arrayminus) == (refusal["rate"] - refusal["low"]).tolist()
    assert list(mean[0].y) == pytest.approx([0.8, 0.795, 0.795, 0.795])
    assert sum(t.showlegend is not False for t in figure.data) == 2
    assert "Scaling Contribution, qwen" in figure.layout.title.text


def test_a_row_of_panels_for_each_side_and_no_random_heads_is_fine():
    figure = plot_refusal_under_ablation(
        curve_table(seeds=(), sides=("harmful", "harmless")), verdicts=["refuse"]
    )
    titles = [a.text for a in figure.layout.annotations]
    assert titles == [
        "<b>Refusal</b>  JailbreakBench",
        "<b>Over-refusal</b>  JailbreakBench, harmless",
    ]
    assert len(figure.data) == 2


def test_tables_that_lack_something_are_refused():
    table = curve_table()
    with pytest.raises(ValueError, match="lacks the columns low"):
        plot_refusal_under_ablation(table.drop(columns="low"))
    with pytest.raises(ValueError, match="no ranking to draw"):
        plot_refusal_under_ablation(table[table["arm"] != "top"])
    with pytest.raises(ValueError, match="no verdict 'gibberish'"):
        plot_refusal_under_ablation(table, verdicts=["gibberish"])
