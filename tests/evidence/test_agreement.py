"""Do agreement tables, published heads and their figures say what is known, and no more?"""

import math

import pandas
import pytest
import scipy.stats
import torch

from safetyheads.evidence.agreement import agreement_table
from safetyheads.evidence.published import published_heads
from safetyheads.heads import HeadScores
from safetyheads.plots.agreement import plot_agreement, plot_published_heads


def scores(values, ablation="zero", metric="ships", largest_first=True, **provenance):
    return HeadScores(
        values, None, ablation, metric, "nat", largest_first=largest_first, provenance=provenance
    )


def random_scores(seed, *shape, **options):
    return scores(torch.rand(shape, generator=torch.Generator().manual_seed(seed)), **options)


def row_of(table, first, second):
    return table[(table["first"] == first) & (table["second"] == second)].iloc[0]


def test_agreement_is_spearman_and_jaccard_over_all_heads():
    one, two = random_scores(0, 4, 6), random_scores(1, 4, 6)
    table = agreement_table({"one": one, "two": two}, k=5)
    row = row_of(table, "one", "two")
    flat = [s.values.flatten().tolist() for s in (one, two)]
    assert row["spearman"] == pytest.approx(scipy.stats.spearmanr(*flat).statistic, abs=1e-12)
    tops = [set(sorted(range(24), key=lambda n, v=v: -v[n])[:5]) for v in flat]
    assert 0 < len(tops[0] & tops[1]) < 5, "the comparison would be vacuous"
    assert row["jaccard"] == pytest.approx(len(tops[0] & tops[1]) / len(tops[0] | tops[1]))
    assert len(table) == 4
    assert row_of(table, "one", "one")[["spearman", "jaccard"]].tolist() == [1.0, 1.0]


def test_a_shift_ranks_its_most_negative_head_first():
    one = random_scores(0, 4, 6)
    shift = scores(-one.values, metric="refusal_shift", largest_first=False)
    row = row_of(agreement_table([one, shift], k=3), "ships", "refusal_shift")
    assert row[["spearman", "jaccard"]].tolist() == pytest.approx([1.0, 1.0])


def test_models_of_different_shape_stay_blank_and_the_reason_is_named():
    table = agreement_table({"a": random_scores(0, 4, 6), "b": random_scores(0, 6, 4)})
    row = row_of(table, "a", "b")
    assert math.isnan(row["spearman"])
    assert math.isnan(row["jaccard"])
    assert row["reason"] == "different shapes: 4 layers x 6 heads and 6 layers x 4 heads"
    figure = plot_agreement(table)
    assert math.isnan(figure.data[0].z[0, 1])
    assert figure.data[0].text[0][1] == ""
    notes = [a.text for a in figure.layout.annotations if a.name == "note"]
    assert notes == [f"blank: {row['reason']}"], "once, though two cells are blank"


def test_scores_are_named_by_what_sets_them_apart():
    common = {"model": {"name": "m"}, "template": "chat"}
    sets = [{"prompts": {"name": n, "side": "harmful"}, **common} for n in ("builtin", "xstest")]
    several = [
        random_scores(at, 4, 6, ablation=ablation, **origin)
        for at, (ablation, origin) in enumerate((a, o) for a in ("zero", "mean") for o in sets)
    ]
    table = agreement_table(several, k=3)
    expected = ["builtin, zero", "xstest, zero", "builtin, mean", "xstest, mean"]
    assert table["first"].drop_duplicates().tolist() == expected


@pytest.mark.parametrize(
    ("some", "k", "message"),
    [
        ({"a": random_scores(0, 2, 2)}, 1, "there are 1 scores to compare"),
        ([random_scores(0, 2, 2), random_scores(1, 2, 2)], 1, "give a mapping with a name"),
        (
            {"a": random_scores(0, 2, 2), "b": random_scores(1, 2, 2)},
            5,
            "k is 5, and a has 4 heads",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(some, k, message):
    with pytest.raises(ValueError, match=message):
        agreement_table(some, k=k)


def test_the_figure_has_a_cell_a_pair_and_readable_names():
    table = agreement_table(
        {name: random_scores(at, 4, 6) for at, name in enumerate(["ships", "refusal_shift", "x"])},
        k=4,
    )
    figure = plot_agreement(table, title="Three <b>")
    spearman, jaccard = figure.data
    assert spearman.z.shape == jaccard.z.shape == (3, 3)
    assert spearman.z[0, 1] == row_of(table, "ships", "refusal_shift")["spearman"]
    assert (spearman.zmin, jaccard.zmin) == (-1, 0)
    assert figure.layout.yaxis.ticktext[1] == "Refusal Shift  <b>2</b>"
    assert figure.layout.title.text == "Three &lt;b&gt;"
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1], "the first row on top"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="reason"), "lacks the columns reason"),
        (lambda t: t.head(0), "has 0 rows"),
        (lambda t: pandas.concat([t, t]), "holds a pair twice"),
        (lambda t: t.assign(k=range(len(t))), "several k"),
    ],
)
def test_a_table_that_is_no_agreement_is_refused(change, message):
    table = agreement_table({"a": random_scores(0, 2, 2), "b": random_scores(1, 2, 2)}, k=1)
    with pytest.raises(ValueError, match=message):
        plot_agreement(change(table))


# The published heads --------------------------------------------------------------------------------------------------


def test_published_heads_are_on_the_grid_and_say_how_sure_they_are():
    table = published_heads()
    assert table[["layer", "head"]].max().max() <= 31
    assert not table.duplicated(["figure", "ablation", "model", "label"]).any()
    assert set(table["model"]) == {"Llama-2-7b-chat", "Vicuna-7b-v1.5"}
    assert set(table[table["certainty"] == "stated"]["label"]) == {"L2H26", "L3H8"}
    assert (table["off_by"] == (table["certainty"] != "stated")).all()
    assert "score" not in table, "single colours could not be read off the figure"


def test_readings_of_the_same_data_agree_as_the_module_says():
    """The two panels of Llama-2-7b-chat on MaliciousInstruct: how good is a reading?"""
    table = published_heads()
    same = table[(table["model"] == "Llama-2-7b-chat") & (table["dataset"] == "malicious_instruct")]
    counts = {}
    for ablation, rows in same.groupby("ablation"):
        first, second = (set(part["label"]) for _, part in rows.groupby("figure"))
        counts[ablation] = (len(first), len(second), len(first & second))
    assert counts["undifferentiated_attention"] == (11, 9, 5)
    assert counts["scaling_contribution"] == (9, 10, 4)
    twice = same[same["certainty"] == "read twice"]
    assert (twice.groupby(["ablation", "label"]).size() == 2).all()


def seven_billion(ablation="scaling_contribution", shape=(32, 32)):
    return random_scores(0, *shape, ablation=ablation).to_frame().assign(dataset="builtin")


def test_the_overlay_shows_each_published_head_once_under_ones_own():
    figure = plot_published_heads(seven_billion(), published_heads(), k=7)
    published = published_heads()
    mine = published[
        (published["model"] == "Llama-2-7b-chat")
        & (published["ablation"] == "scaling_contribution")
    ]
    squares = figure.layout.shapes
    assert len(squares) == mine["label"].nunique()
    assert {square.x1 - square.x0 for square in squares} == {3}, "one layer to each side"
    drawn = [trace for trace in figure.data if trace.name.startswith("in the figure")]
    assert sum(len(trace.x) for trace in drawn) == mine["label"].nunique()
    assert figure.data[0].name == drawn[0].name, "one's own heads lie on top"
    assert any(trace.marker.coloraxis and len(trace.x) == 7 for trace in figure.data)


def test_the_overlay_takes_the_dataset_and_the_model_that_are_asked_for():
    vicuna = plot_published_heads(seven_billion(), published_heads(), model="Vicuna-7b-v1.5")
    assert len(vicuna.layout.shapes) == 4
    one = plot_published_heads(
        seven_billion("undifferentiated_attention"), published_heads(), dataset="jailbreakbench"
    )
    assert len(one.layout.shapes) == 11
    stated = next(trace for trace in one.data if "named in" in trace.name)
    assert sorted(zip(stated.x, stated.y, strict=True)) == [(2, 26), (3, 8)]
    assert one.layout.yaxis.range[1] > 40, "the legend hides no published head"


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (
            seven_billion(shape=(30, 9)),
            {},
            "30 layers x 9 heads, and the published heads are of Llama-2-7b-chat, 32",
        ),
        (seven_billion("zero"), {}, "none of the ablations that the figures have"),
        (seven_billion(), {"model": "gpt2"}, "nothing is published for gpt2"),
        (
            seven_billion(),
            {"model": "Vicuna-7b-v1.5", "dataset": "jailbreakbench"},
            "nothing is published for Vicuna-7b-v1.5 on jailbreakbench",
        ),
    ],
)
def test_an_overlay_on_another_model_is_refused(table, options, message):
    with pytest.raises(ValueError, match=message):
        plot_published_heads(table, published_heads(), **options)


def test_a_published_table_that_lacks_a_column_is_refused():
    with pytest.raises(ValueError, match="lacks the columns off_by"):
        plot_published_heads(seven_billion(), published_heads().drop(columns="off_by"))
