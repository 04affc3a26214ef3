"""Greedy search finds what plain passes say it should, in the reference code's order, and says what it misses."""

import json
from itertools import combinations, islice
from pathlib import Path

import pytest
import torch

from safetyheads.cli.main import main
from safetyheads.engine.execution import Execution
from safetyheads.heads import Head, heads_like
from safetyheads.interventions.ablations import (
    ScalingContribution,
    UndifferentiatedAttention,
    ZeroAblation,
)
from safetyheads.metrics import GeneralizedShips, RefusalShift
from safetyheads.models.opening import load_model
from safetyheads.plots.groups import plot_group_curve
from safetyheads.probes.groups import GroupSearch, HeadGroup, score_groups, search_heads
from tests.oracles import kl, plain
from tests.zoo import CONFIGS, RAGGED, opened, random_model, tokenizer

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
QUIET = Execution(progress=False)
FEW = GroupSearch(samples=3)


@pytest.fixture(scope="module")
def model():
    return opened("llama")


@pytest.fixture(scope="module")
def group(model):
    return search_heads(model, RAGGED, FEW, ablation=ZeroAblation(), execution=QUIET)


@pytest.fixture(scope="module")
def joint_kl():
    """Mean KL of a set of heads, one plain pass with all its hooks for each prompt."""
    whole = plain("llama")
    prompts = [tokenizer()(text)["input_ids"] for text in RAGGED]
    bases = [whole.run(ids)[0] for ids in prompts]

    def score(heads):
        hooks = [hook for head in heads for hook in whole.writing_z(*head, torch.zeros_like)]
        values = [kl(b, whole.run(i, hooks)[0]) for b, i in zip(bases, prompts, strict=True)]
        return sum(values) / len(values)

    return score


def test_each_step_takes_the_head_that_plain_passes_say(group, joint_kl):
    everyone, found = [Head(la, he) for la in range(4) for he in range(6)], []
    for step in range(3):
        scores = {h: joint_kl([*found, h]) for h in everyone if h not in found}
        for head, score in scores.items():
            assert group.candidates[step][head].item() == pytest.approx(score, abs=5e-6)
        assert group.candidates[step].isnan().sum() == step
        found.append(max(scores, key=scores.get))
        assert group.scores[step].item() == pytest.approx(scores[found[-1]], abs=5e-6)
    assert group.heads == tuple(found)
    assert group.scores[-1] > 1e-2


def test_pairs_and_what_is_left_are_those_of_plain_passes(group, joint_kl):
    assert group.pair_heads[:3] == group.heads
    assert len(set(group.pair_heads)) == 6
    for a, b in combinations(range(6), 2):
        together = joint_kl([group.pair_heads[a], group.pair_heads[b]])
        assert group.pairs[a, b].item() == pytest.approx(together, abs=5e-6)
        parts = sum(joint_kl([group.pair_heads[n]]) for n in (a, b))
        assert group.interactions[a, b].item() == pytest.approx(together - parts, abs=2e-5)
    everyone = [Head(la, he) for la in range(4) for he in range(6)]
    others = [head for head in everyone if head not in group.heads]
    assert group.only == pytest.approx(joint_kl(others), rel=1e-4)
    assert group.everything == pytest.approx(joint_kl(everyone), rel=1e-4)
    assert group.necessity == pytest.approx(group.scores[-1].item() / group.everything)
    assert group.sufficiency == pytest.approx(1 - group.only / group.everything)
    alone = [joint_kl([head]) for head in group.heads]
    assert group.self_repair[2].item() == pytest.approx(
        sum(alone) - group.scores[2].item(), abs=2e-5
    )
    assert group.self_repair[0].item() == pytest.approx(0.0, abs=1e-6)


def test_random_groups_are_of_the_same_layers_and_drawn_by_the_seed(model, group):
    def draws(heads, count, seed=0):
        return list(islice(heads_like(heads, 6, seed), count))

    drawn = draws(group.heads, 40)
    assert drawn == draws(group.heads, 40)
    assert drawn != draws(group.heads, 40, seed=1)
    for heads in drawn:
        assert [head.layer for head in heads] == [head.layer for head in group.heads]
        assert len(set(heads)) == 3
        assert not set(heads) & set(group.heads)
    crowded = (Head(0, 0), Head(0, 1), Head(0, 2), Head(0, 3))
    for heads in draws(crowded, 10):
        assert {Head(0, 4), Head(0, 5)} < set(heads)  # of the group only where there are no others
    first = draws(group.heads, 3)
    expected = score_groups(
        model, RAGGED, [g[:2] for g in first], ablation=ZeroAblation(), execution=QUIET
    )
    assert torch.allclose(group.null[1], expected, atol=1e-6)


def test_a_p_value_counts_the_random_groups_that_reach_the_score(group):
    from dataclasses import replace

    beaten = replace(group, null=torch.tensor([[9.0, 9.0, 0.0]] * 3))
    assert beaten.p_values.tolist() == [0.75] * 3
    signed = replace(beaten, largest_first=False)
    assert signed.p_values.tolist() == [0.5] * 3


def test_a_refusal_shift_takes_the_most_negative(model):
    metric = RefusalShift()
    found = search_heads(
        model, RAGGED, GroupSearch(2, 3), ablation=ZeroAblation(), metric=metric, execution=QUIET
    )
    assert not found.largest_first
    for step, head in enumerate(found.heads):
        scores = found.candidates[step]
        assert scores[head] == scores[~scores.isnan()].min()
    assert found.scores[1] < found.scores[0] < 0


def test_of_equal_heads_the_first_is_taken():
    """A model whose heads write nothing: all candidates score zero."""
    hf = random_model(CONFIGS["llama"]())
    with torch.no_grad():
        for layer in hf.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    found = search_heads(
        load_model(hf, tokenizer()), RAGGED, FEW, ablation=ZeroAblation(), execution=QUIET
    )
    assert found.heads == (Head(0, 0), Head(0, 1), Head(0, 2))
    assert found.scores.max() < 1e-6


def test_what_is_saved_is_what_is_loaded(group, tmp_path):
    again = HeadGroup.load(group.save(tmp_path / "group"))
    for name, value in vars(group).items():
        other = getattr(again, name)
        same = value.equal(other) if name in ("scores", "null", "pairs", "only_null") else True
        assert same
        if not isinstance(value, torch.Tensor):
            assert other == value
    assert again.candidates.nan_to_num(-1).equal(group.candidates.nan_to_num(-1))
    table = group.to_frame()
    assert table["label"].tolist() == [str(head) for head in group.heads]
    assert (table["null_low"] <= table["null_mean"]).all()
    assert len(group.pair_frame()) == 15
    assert group.pair_frame()["interaction"].abs().is_monotonic_decreasing
    with pytest.raises(FileNotFoundError, match=r"a folder that a result's save\(\) wrote"):
        HeadGroup.load(tmp_path)


def test_a_search_that_was_killed_goes_on_from_its_store(model, group, tmp_path, monkeypatch):
    options = {
        "ablation": ZeroAblation(),
        "execution": Execution(store=tmp_path, progress=False),
    }
    search_heads(model, RAGGED, GroupSearch(2, 3), **options)
    before = {path.name for path in tmp_path.iterdir()}
    again = search_heads(model, RAGGED, FEW, **options)
    assert again.heads == group.heads
    assert torch.equal(again.null, group.null)
    assert before < {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0; a group has at least one head"),
        ({"steps": 24}, "steps is 24; .* has 24 heads: take from 1 to one less"),
        ({"samples": 0}, "needs at least one random group"),
    ],
)
def test_a_search_that_cannot_be_is_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        search_heads(model, RAGGED, GroupSearch(**options), execution=QUIET)


def test_a_group_by_name_scores_as_the_search_says(model, group):
    names = [str(head) for head in group.heads]
    got = score_groups(model, RAGGED, [names[:1], names], ablation=ZeroAblation(), execution=QUIET)
    assert torch.allclose(got, group.scores[[0, 2]], atol=1e-6)
    with pytest.raises(ValueError, match="only once"):
        score_groups(model, RAGGED, [[names[0], names[0]]], execution=QUIET)


@pytest.mark.parametrize("groups", ["L1H1", ["L1H1"], ["L1H1", "L0H2"]])
def test_heads_where_groups_are_meant_are_refused_with_both_readings(model, groups):
    with pytest.raises(ValueError, match=r"which is one head: .*\[\[\"L1H1\", \.\.\.\]\] for one"):
        score_groups(model, RAGGED, groups)


def test_workers_find_the_group_that_this_process_finds(group, tmp_path):
    folder = tmp_path / "model"
    random_model(CONFIGS["llama"]()).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    execution = Execution(store=tmp_path / "store", executor=map, progress=False)
    apart = search_heads(folder, RAGGED, FEW, ablation="zero", execution=execution)
    assert apart.heads == group.heads
    assert torch.equal(apart.null, group.null)
    assert apart.candidates.nan_to_num(-1).equal(group.candidates.nan_to_num(-1))


def test_the_curve_draws_what_the_table_says(group):
    figure = plot_group_curve(group.to_frame())
    band, null, parts, curve = figure.data
    assert list(curve.y) == group.scores.tolist()
    assert list(parts.y)[-1] == pytest.approx(group.alone.sum().item())
    assert list(null.y) == pytest.approx(group.null.mean(1).tolist())
    assert len(band.x) == 6
    assert figure.layout.xaxis.ticktext[0] == f"1<br>+ {group.heads[0]}"
    with pytest.raises(ValueError, match="the table lacks the columns null_low"):
        plot_group_curve(group.to_frame().drop(columns="null_low"))


def test_the_command_line_writes_what_the_search_found(model, group, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("safetyheads.models.opening.load_model", lambda *_, **__: model)
    questions = tmp_path / "questions.txt"
    questions.write_text("\n".join(RAGGED))
    arguments = ["search", "--prompts", str(questions), "--ablation", "zero", "--samples", "3"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert HeadGroup.load(tmp_path / "out").heads == group.heads
    assert {"group.csv", "pairs.csv", "group.html"} <= {
        p.name for p in (tmp_path / "out").iterdir()
    }
    assert not (tmp_path / "out" / "unfinished").exists()
    assert str(group.heads[2]) in capsys.readouterr().out


# The reference code's own picks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["q", "v"])
def test_sahara_picks_the_reference_codes_heads_in_its_order(kind):
    if not GOLDEN.exists():
        pytest.skip(
            f"{GOLDEN} is not there: the reference code's numbers live outside the repository"
        )
    numbers = json.loads((GOLDEN / "tiny-Llama-mha.json").read_text())
    ablation = {"q": UndifferentiatedAttention(1e-5), "v": ScalingContribution(1e-5)}[kind]
    found = search_heads(
        load_model(GOLDEN / "tiny-Llama-mha"),
        numbers["prompts"],
        FEW,
        ablation=ablation,
        metric=GeneralizedShips("left"),
        template="query",
        execution=QUIET,
    )
    expected = numbers["sahara"][kind]
    assert [f"{la}-{he}" for la, he in found.heads] == expected["order"]
    for step, scores in enumerate(expected["scores_per_step"]):
        for name, degrees in scores.items():
            assert found.candidates[step][Head.parse(name)].item() == pytest.approx(
                degrees, abs=0.03
            )
