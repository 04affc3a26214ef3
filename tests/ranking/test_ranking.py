"""One call gives a table, a figure and files, with each head's harmless score beside its own harmful one."""

import dataclasses
import json
import re

import pandas
import plotly.graph_objects
import pytest
import torch

from safetyheads.cli.shown import format_table
from safetyheads.engine.execution import Execution
from safetyheads.heads import COLUMNS, HeadScores
from safetyheads.interventions.ablations import (
    ScalingContribution,
    UndifferentiatedAttention,
    ZeroAblation,
)
from safetyheads.metrics import GeneralizedShips, Ships
from safetyheads.models.opening import load_model
from safetyheads.probes.single_heads import score_heads
from safetyheads.prompts import PromptSet
from safetyheads.ranking.ranking import Ranking, rank_safety_heads
from safetyheads.screening.race import Raced
from safetyheads.validation.planted import plant
from tests.zoo import CONFIGS, opened, random_model, sentence, tokenizer

QUIET = Execution(progress=False)

PROMPTS = PromptSet(
    "planted",
    harmful=tuple(sentence(10, 11, n, n + 1) for n in (60, 62, 64, 66)),
    harmless=tuple(sentence(10, 11, n, n + 1, n + 2) for n in (80, 83, 86)),
    categories=("a", "a", "b", "b"),
)


@pytest.fixture(scope="module")
def model():
    return opened("llama")


@pytest.fixture(scope="module")
def ranking(model):
    return rank_safety_heads(model, PROMPTS, metric=Ships(), top_k=5, execution=QUIET)


def test_the_table_has_a_row_for_every_head_and_ablation(ranking):
    table = ranking.to_frame()
    control = ["specificity", "specificity_low", "specificity_high", "p_value", "q_value"]
    control += ["null_high", "in_null"]
    assert list(table.columns) == [*COLUMNS, "dataset", "model", "harmless_score", *control]
    assert len(table) == 2 * 24
    assert table["ablation"].drop_duplicates().tolist() == [
        "undifferentiated_attention",
        "scaling_contribution",
    ]
    assert set(table["dataset"]) == {"planted"}
    assert set(table["model"]) == {"LlamaForCausalLM"}
    for _, part in table.groupby("ablation"):
        assert part["rank"].tolist() == list(range(1, 25))
        assert part["score"].is_monotonic_decreasing


def test_each_heads_harmless_score_is_its_own(model, ranking):
    table = ranking.to_frame()
    for ablation in (UndifferentiatedAttention(), ScalingContribution()):
        sides = {
            s: score_heads(model, PROMPTS, ablation=ablation, side=s, execution=QUIET)
            for s in ("harmful", "harmless")
        }
        assert sides["harmless"].per_prompt.shape[-1] == 3
        part = table[table["ablation"] == ablation.name]
        assert part["harmless_score"].nunique() == 24  # or a mix-up could pass
        for row in part.itertuples():
            assert row.score == sides["harmful"].score(row.label)
            assert row.harmless_score == sides["harmless"].score(row.label)


def test_top_keeps_the_first_of_each_ablation(ranking):
    top = ranking.top()
    assert len(top) == 10
    assert top["rank"].tolist() == [1, 2, 3, 4, 5] * 2
    assert len(ranking.top(24)) == 48
    assert ranking.top(1)["score"].tolist() == [s.values.max().item() for s in ranking.harmful]
    for k in (0, 25):
        with pytest.raises(
            ValueError, match=f"top_k is {k}; this model has 24 heads: ask for between 1 and 24"
        ):
            ranking.top(k)


@pytest.mark.parametrize("top_k", [0, -1, 25])
def test_a_top_k_that_cannot_be_is_refused_before_any_pass(model, monkeypatch, top_k):
    monkeypatch.setattr(
        "safetyheads.ranking.ranking.score_measurements", lambda *_, **__: pytest.fail("it ran")
    )
    with pytest.raises(ValueError, match=f"top_k is {top_k}; this model has 24 heads"):
        rank_safety_heads(model, PROMPTS, top_k=top_k)


def test_ablations_that_would_share_a_name_or_are_none_are_refused(model):
    with pytest.raises(ValueError, match=r"one kind twice .*; rank each in a call of its own"):
        rank_safety_heads(
            model, PROMPTS, ablations=[ScalingContribution(0.1), ScalingContribution(0.2)]
        )
    with pytest.raises(ValueError, match="ablations is empty; give at least one"):
        rank_safety_heads(model, PROMPTS, ablations=[])


def test_without_harmless_prompts_there_is_no_such_column(model):
    bare = rank_safety_heads(
        model, list(PROMPTS.harmful), ablations=[ZeroAblation()], execution=QUIET
    )
    assert bare.harmless == (None,)
    table = bare.to_frame()
    assert "harmless_score" not in table.columns
    assert len(table) == 24
    assert len(bare.manifest["runs"]) == 1


def test_limit_keeps_the_first_prompts_spread_over_categories(model):
    few = rank_safety_heads(
        model, PROMPTS, limit=2, metric=Ships(), ablations=[ZeroAblation()], execution=QUIET
    )
    assert few.harmful[0].per_prompt.shape == (4, 6, 2)
    assert few.harmless[0].per_prompt.shape == (4, 6, 2)
    chosen = PROMPTS.limit(2).harmful
    assert chosen == (PROMPTS.harmful[0], PROMPTS.harmful[2])  # one of each category
    whole = score_heads(model, PROMPTS, ablation=ZeroAblation(), execution=QUIET).per_prompt
    assert (few.harmful[0].per_prompt - whole[..., [0, 2]]).abs().max() < 2e-6


def test_a_signed_metric_puts_the_most_negative_shift_first(model):
    shift = rank_safety_heads(model, PROMPTS, ablations=[ZeroAblation()], execution=QUIET)
    assert shift.harmful[0].metric == "refusal_shift"  # the default
    table = shift.to_frame()
    assert table["score"].is_monotonic_increasing
    assert table["score"].iloc[0] < 0 < table["score"].iloc[-1]
    assert isinstance(shift.plot(), plotly.graph_objects.Figure)


def test_the_figures_show_the_ranking(ranking):
    figure = ranking.plot()
    assert isinstance(figure, plotly.graph_objects.Figure)
    assert len(figure.data) >= 2
    text = figure.to_json()
    for ablation in ("undifferentiated", "scaling"):
        assert ablation in text.lower()
    assert isinstance(ranking.plot(k=2), plotly.graph_objects.Figure)
    assert isinstance(ranking.plot_heatmap(), plotly.graph_objects.Figure)


@pytest.fixture(scope="module")
def saved(ranking, tmp_path_factory):
    return ranking.save(tmp_path_factory.mktemp("out") / "new", note="a note")


def test_saved_files_hold_the_whole_ranking(ranking, saved):
    names = sorted(p.name for p in saved.iterdir())
    assert names[:-1] == ["manifest.json", "record.json", "scatter.html", "scores.csv"]
    assert names[-1].startswith("tensors-")
    table = pandas.read_csv(saved / "scores.csv")
    pandas.testing.assert_frame_equal(table, ranking.to_frame(), rtol=1e-12)
    back = Ranking.load(saved)
    assert [some.ablation for some in back.harmful] == [some.ablation for some in ranking.harmful]
    assert torch.equal(back.harmless[1].values, ranking.harmless[1].values)
    assert torch.equal(back.harmless[1].per_prompt, ranking.harmless[1].per_prompt)
    pandas.testing.assert_frame_equal(back.to_frame(), ranking.to_frame(), check_exact=True)
    manifest = json.loads((saved / "manifest.json").read_text())
    assert manifest == ranking.manifest
    assert [
        (r["ablation"]["name"], r["prompts"]["side"], r["prompts"]["count"])
        for r in manifest["runs"]
    ] == [
        ("undifferentiated_attention", "harmful", 4),
        ("scaling_contribution", "harmful", 4),
        ("undifferentiated_attention", "harmless", 3),
        ("scaling_contribution", "harmless", 3),
    ]


def test_the_saved_figure_needs_nothing_from_outside(saved):
    page = (saved / "scatter.html").read_text()
    assert not re.search(r"<script[^>]*\bsrc\s*=", page)
    assert not re.search(r"<link[^>]*\bhref\s*=", page)
    assert "Plotly.newPlot" in page
    assert "a note" in page


def test_no_saved_file_holds_a_prompt(saved):
    texts = [*PROMPTS.harmful, *PROMPTS.harmless]
    files = [p for p in saved.rglob("*") if p.is_file()]
    assert len(files) == 3 + 2
    for file in files:
        data = file.read_bytes()
        assert not [t for t in texts if t.encode() in data], file
        assert b"w60 w61" not in data


def test_a_ranking_by_angles_saves_too(model, tmp_path):
    turned = rank_safety_heads(
        model, PROMPTS, metric=GeneralizedShips(), ablations=[ZeroAblation()], execution=QUIET
    )
    assert set(turned.to_frame()["unit"]) == {"deg"}
    folder = turned.save(tmp_path)
    back = Ranking.load(folder).harmful[0]
    assert back.per_prompt is None
    assert torch.equal(back.readings, turned.harmful[0].readings)


def test_a_ranking_is_what_its_scores_are():
    made = HeadScores(torch.tensor([[1.0, 2.0]]), None, "zero", "ships", "nat")
    other = HeadScores(torch.tensor([[5.0, 7.0]]), None, "zero", "ships", "nat")
    table = Ranking((made,), (other,), "m", "d", 1).to_frame()
    assert table["label"].tolist() == ["L0H1", "L0H0"]
    assert table["harmless_score"].tolist() == [7.0, 5.0]


def test_the_harmless_control_stands_beside_every_score(ranking):
    """Three harmless prompts against four: two sets, not pairs."""
    table = ranking.to_frame()
    for found, scores, (_, part) in zip(
        ranking.specificity, ranking.harmful, table.groupby("ablation", sort=False), strict=True
    ):
        assert found.paired is False
        assert found.n_prompts == (4, 3)
        for row in part.itertuples():
            assert row.specificity == pytest.approx(row.score - row.harmless_score, abs=1e-6)
            assert row.specificity_low <= row.specificity <= row.specificity_high
            assert row.p_value == found.p[row.layer, row.head]
            assert row.p_value <= row.q_value <= 1
            assert row.in_null == (row.specificity <= row.null_high)
        assert part["specificity"].nunique() == 24
        assert scores.provenance["prompts"]["paired"] is False


def test_pairs_are_compared_as_pairs(model):
    paired = PromptSet("pairs", PROMPTS.harmful[:3], PROMPTS.harmless, paired=True)
    found = rank_safety_heads(model, paired, ablations=[ZeroAblation()], execution=QUIET)
    assert found.specificity[0].test == "sign flips"
    one = rank_safety_heads(model, paired, limit=1, ablations=[ZeroAblation()], execution=QUIET)
    assert one.specificity == (None,)
    assert "specificity" not in one.to_frame()


def test_a_random_copy_gives_the_null_band():
    model = load_model(random_model(CONFIGS["llama"](), seed=3), tokenizer())
    kept = torch.random.get_rng_state()
    ranking = rank_safety_heads(
        model, PROMPTS, ablations=[ZeroAblation()], null="random_init", execution=QUIET
    )
    assert torch.random.get_rng_state().equal(kept)
    assert ranking.random.model == "LlamaForCausalLM (random weights, seed 0)"
    assert not torch.equal(ranking.random.harmful[0].values, ranking.harmful[0].values)
    (band,) = ranking.null_bands
    assert band.null == "random_init"
    assert ranking.to_frame()["in_null"].sum() == band.inside.sum()
    assert json.loads(json.dumps(ranking.manifest))["random"]["runs"][0]["model"]["seed"] == 0
    layer = rank_safety_heads(
        model, PROMPTS, ablations=[ZeroAblation()], null="layer", execution=QUIET
    )
    assert layer.null_bands[0].null == "layer"
    assert layer.random is None


def test_a_null_that_cannot_be_had_is_refused(model):
    harmful = PromptSet("bare", PROMPTS.harmful, ())
    with pytest.raises(ValueError, match="bare has no harmless ones"):
        rank_safety_heads(model, harmful, null="random_init")


def test_heads_that_oppose_are_drawn_in_a_panel_of_their_own(model):
    ranking = rank_safety_heads(model, PROMPTS, ablations="zero", top_k=3, execution=QUIET)
    table = ranking.opposing()
    assert (table["score"] > 0).all()
    assert table["score"].is_monotonic_decreasing
    assert table["rank"].tolist() == [1, 2, 3]
    figure = ranking.plot(opposing=True)
    titles = [a.text for a in figure.layout.annotations]
    assert "Heads that oppose them" in " ".join(titles)
    drawn = [t for t in figure.data if t.x is not None and len(t.x) > 1]
    places = sorted(zip(drawn[-1].x, drawn[-1].y, strict=True))
    assert places == sorted(zip(table["layer"], table["head"], strict=True))


def test_a_ranking_tells_what_is_lost_with_a_head_from_what_is_written():
    planted = plant("one", pairs=12)
    ranking = rank_safety_heads(
        planted.model,
        planted.prompts,
        ablations=("zero", "mean", "undifferentiated_attention"),
        top_k=2,
        execution=QUIET,
    )
    (safety,) = map(str, planted.safety)
    found = ranking.carriers.verdicts()
    assert found[safety] == "carrier"
    table = ranking.to_frame()
    assert table["verdict"].tolist() == [found[label] for label in table["label"]]
    said = ranking.carriers_note
    assert said.startswith(f"carrier: {safety}")
    assert said in repr(ranking)
    assert safety in ranking.plot(note="first").layout.annotations[-1].text
    assert "verdict" in format_table(ranking.top())
    pair = dataclasses.replace(
        ranking, harmful=ranking.harmful[::2], harmless=ranking.harmless[::2]
    )
    assert pair.carriers.verdicts()[safety] == "lowers"  # one removal: lost, not yet carried
    assert pair.carriers_note.startswith(f"lowers: {safety}")


def test_what_cannot_be_told_apart_is_said(ranking):
    assert ranking.carriers is None
    assert "carriers cannot be told: " in repr(ranking)
    assert "verdict" not in ranking.to_frame()


def test_what_a_race_or_one_ablation_that_writes_leaves_open_is_said_with_what_to_do(model):
    options = {"metric": "refusal_shift", "top_k": 2, "execution": QUIET}
    pair = ("zero", "undifferentiated_attention")
    raced = rank_safety_heads(model, PROMPTS, ablations=pair, method=Raced(2, 0.3), **options)
    alone = dataclasses.replace(raced, harmful=raced.harmful[1:], harmless=raced.harmless[1:])
    remedy = "find_carrying_groups(model, pairs, [[head] for head in ranking.top()['label']])"
    for some in (raced, alone):
        assert some.carriers is None
        assert some.carriers_note in repr(some)
        assert some.carriers_note.endswith(remedy)
    assert "are estimates; score with method='exact'" in raced.carriers_note
    assert "undifferentiated_attention stands alone" in alone.carriers_note
    removal = dataclasses.replace(raced, harmful=raced.harmful[:1], harmless=raced.harmless[:1])
    assert removal.carriers_note is None
