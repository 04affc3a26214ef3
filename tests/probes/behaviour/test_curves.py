"""Do the curves set the ranking beside random heads of the same layers?"""

import pytest
import torch

from safetyheads.engine.execution import Execution
from safetyheads.heads import Head, HeadScores
from safetyheads.inputs import prepare
from safetyheads.interventions.ablating import AblateHeads, mean_z
from safetyheads.interventions.ablations import ScalingContribution, as_ablation
from safetyheads.plots.behaviour import plot_refusal_under_ablation
from safetyheads.probes.behaviour import curves
from safetyheads.probes.behaviour.answers import Answer, Behaviour, measure_behaviour
from safetyheads.probes.behaviour.controls import how_far, matched_heads, random_heads
from safetyheads.probes.behaviour.curves import Arm, RefusalCurve, refusal_under_ablation
from safetyheads.probes.behaviour.generation import Decoding
from safetyheads.probes.single_heads import score_heads
from safetyheads.prompts import load_prompts
from tests.probes.behaviour.test_answers import PAIRS, by_length
from tests.zoo import RAGGED, opened

QUIET = Execution(progress=False)
HEADS = (Head(0, 1), Head(2, 3), Head(2, 4))


@pytest.fixture(scope="module")
def llama():
    return opened("llama", spread=0.5)


def test_refusal_under_ablation_sets_the_ranking_beside_random_heads_of_the_same_layers(llama):
    ranking = [Head(1, 2), Head(1, 3), Head(3, 0), Head(0, 5)]
    curve = refusal_under_ablation(
        llama,
        PAIRS,
        ranking,
        ablation=ScalingContribution(),
        sizes=(1, 3),
        random_seeds=(0, 1),
        judge=by_length,
        decoding=Decoding(4),
        progress=False,
    )
    assert list(curve.groups) == [
        "top 1",
        "random 1, seed 0",
        "random 1, seed 1",
        "top 3",
        "random 3, seed 0",
        "random 3, seed 1",
    ]
    assert curve.groups["top 3"].heads == tuple(ranking[:3])
    for seed in (0, 1):
        small, large = (curve.groups[f"random {size}, seed {seed}"].heads for size in (1, 3))
        assert large[:1] == small
        assert [h.layer for h in large] == [1, 1, 3]
        assert not set(large) & set(ranking[:3])
        assert len(set(large)) == 3
    table = curve.to_frame()
    assert table.query("arm == 'baseline'")["size"].eq(0).all()
    # The rates are those of measuring the group by itself.
    alone = measure_behaviour(
        llama,
        PAIRS,
        {"x": AblateHeads(tuple(ranking[:3]), ScalingContribution())},
        judge=by_length,
        decoding=Decoding(4),
        progress=False,
    ).rates()
    ours = table.query("arm == 'top' and size == 3")["count"].tolist()
    assert ours == alone.query("intervention == 'x'")["count"].tolist()
    differences = curve.differences()
    assert len(differences) == 2 * 4 * 2 * 3
    assert differences["draws"].eq(2).all()
    row = differences.iloc[0]
    assert row["compared"] == "top - random"
    rates = table.query("side == 'harmful' and verdict == 'refuse' and size == 1").set_index("arm")[
        "rate"
    ]
    assert row["difference"] == pytest.approx(rates["top"] - rates["random"].mean())
    control = differences.iloc[2]
    assert control["compared"] == "random - baseline"
    assert control["difference"] == pytest.approx(rates["random"].mean() - untouched(table))


def untouched(table):
    some = table.query("side == 'harmful' and verdict == 'refuse' and arm == 'baseline'")
    return some["rate"].item()


def made_up_curve(random, top, n=24, seeds=10):
    """A curve of answers that are made up: who refuses untouched, under the top head and under each random one."""

    def answers(name, hits):
        said = ["refuse" if hit else "comply" for hit in hits]
        return [
            Answer("set", "harmful", k, name, (v,), 0.0, 1, True, "") for k, v in enumerate(said)
        ]

    groups = {"top 1": Arm("top", 1, 0, (Head(0, 0),))}
    groups |= {f"random {k}": Arm("random", 1, k, (Head(0, k + 1),)) for k in range(seeds)}
    made = answers("baseline", [k < n // 2 for k in range(n)]) + answers("top 1", top)
    for k in range(seeds):
        made += answers(f"random {k}", random)
    return RefusalCurve(Behaviour(tuple(made), ("one",), "model"), groups, "zero")


def test_a_control_that_moves_the_outcome_is_said():
    curve = made_up_curve(random=[True] * 24, top=[False] * 24)
    assert curve.control_note == (
        "the control is not neutral: random heads move refusals by +50% on set, harmful (1 heads)"
    )
    table = curve.to_frame()
    assert set(table[table["control_moves"]]["verdict"]) == {"refuse", "comply"}
    figure = plot_refusal_under_ablation(table)
    notes = [a.text for a in figure.layout.annotations if a.text and "random heads" in a.text]
    assert notes == ["<i>random heads move this too (1)</i>"] * 2


def test_arms_are_compared_once_for_each_judge(monkeypatch):
    curve = made_up_curve(random=[True] * 24, top=[False] * 24)
    calls, real = [], curves.permutation_p
    monkeypatch.setattr(curves, "permutation_p", lambda some: calls.append(1) or real(some))
    first = curve.differences()
    first["q"] = 2.0  # what the caller got is its own
    curve.to_frame(), curve.control_note
    assert (len(calls), curve.differences()["q"].max() <= 1) == (1, True)


def test_a_neutral_control_is_called_so():
    curve = made_up_curve(random=[k < 12 for k in range(24)], top=[False] * 24)
    assert curve.control_note == "10 draws of random heads leave refusals where they were"
    assert not curve.to_frame()["control_moves"].any()
    found = curve.differences().set_index(["compared", "verdict"])["difference"]
    assert found["top - baseline", "refuse"] == found["top - random", "refuse"] == -0.5


def test_random_heads_move_the_output_as_far_as_the_top_ones():
    values = torch.zeros(2, 8)
    values[0] = torch.tensor([9.0, 8.5, 0, 0, 0, 0, 0, 0])
    values[1] = torch.tensor([0, 0, 3.0, 2.9, 3.1, 0, 0, 0])
    moved = HeadScores(values, None, "zero", "ships", "nat")
    drawn = matched_heads([Head(0, 0), Head(1, 2)], moved, 2)
    assert set(drawn) == {(Head(0, 1), Head(1, 3)), (Head(0, 1), Head(1, 4))}
    with pytest.raises(ValueError, match="the layers of these 1 heads have 7 others"):
        matched_heads([Head(0, 0)], moved, 8)


def test_the_draws_are_matched_on_how_far_the_ablation_moves_these_prompts(llama):
    options = {"ablation": "zero", "sizes": (2,), "decoding": Decoding(2), "progress": False}
    curve = refusal_under_ablation(llama, PAIRS, HEADS[1:], random_seeds=range(10), **options)
    moved = score_heads(llama, PAIRS, ablation="zero", metric="ships", execution=QUIET)
    drawn = [arm for arm in curve.groups.values() if arm.arm == "random"]
    assert [arm.heads for arm in drawn] == matched_heads(HEADS[1:], moved, len(drawn))
    assert len(drawn) == 6  # of four other heads in the layer there are no more
    for arm in curve.groups.values():
        assert arm.moved == pytest.approx(float(sum(moved.values[h] for h in arm.heads)))
    assert " 2 of them move the output by " in curve.control_note
    loose = refusal_under_ablation(
        llama, PAIRS, HEADS[1:], random_seeds=(0, 1), moved=False, **options
    )
    found = [arm.heads for arm in loose.groups.values() if arm.arm == "random"]
    assert found == [random_heads(HEADS[1:], 6, seed) for seed in (0, 1)]
    assert "move the output" not in loose.control_note


def test_mean_ablation_writes_the_mean_over_these_prompts(llama):
    options = {"judge": by_length, "decoding": Decoding(4), "progress": False, "sides": "harmful"}
    curve = refusal_under_ablation(
        llama, PAIRS, HEADS[1:], ablation="mean", sizes=(2,), random_seeds=(0,), **options
    )
    mean = mean_z(llama, prepare(llama, PAIRS).batch)
    alone = {"top 2": AblateHeads(HEADS[1:], as_ablation("mean"), mean)}
    plain = measure_behaviour(llama, PAIRS, alone, **options)
    ours = [a.digest for a in curve.behaviour.answers if a.intervention == "top 2"]
    assert ours == [a.digest for a in plain.answers if a.intervention == "top 2"]
    with pytest.raises(ValueError, match="borrows from another prompt"):
        refusal_under_ablation(llama, PAIRS, HEADS[1:], ablation="resample", sizes=(2,), **options)


def test_heads_of_other_layers_are_not_run_for_it(llama):
    moved = how_far(llama, load_prompts(PAIRS), HEADS, as_ablation("zero"), progress=False)
    assert moved.values.isnan().all(1).tolist() == [False, True, False, True]


def test_opposing_heads_are_asked_and_every_group_says_how_far_it_moves(llama):
    values = torch.zeros(4, 6)
    values[2, 5], values[0, 1], values[3, 3] = -2.0, 1.0, 3.0
    ranking = HeadScores(values, None, "zero", "refusal_shift", "nat", largest_first=False)
    moved = HeadScores(values.abs(), None, "zero", "ships", "nat")
    options = {"sizes": (1,), "random_seeds": (3, 4), "decoding": Decoding(2), "progress": False}
    curve = refusal_under_ablation(
        llama, RAGGED, ranking, ablation="zero", moved=moved, opposing=True, **options
    )
    assert curve.groups["opposing 1"] == Arm("opposing", 1, 0, (Head(3, 3),), 3.0)
    assert curve.groups["top 1"].moved == 2.0
    assert curve.groups["random 1, seed 3"].moved == 0.0
    assert set(curve.differences()["compared"]) == {
        *("top - random", "top - baseline", "random - baseline"),
        *("opposing - random", "opposing - baseline"),
    }
    names = [trace.name for trace in plot_refusal_under_ablation(curve.to_frame()).data]
    assert "Opposing heads" in names
    with pytest.raises(ValueError, match="moved has refusal_shift under zero; give score_heads"):
        refusal_under_ablation(llama, RAGGED, ranking, ablation="zero", moved=ranking, **options)
    options["sizes"] = (3,)
    with pytest.raises(ValueError, match="2 heads move refusal_shift the other way"):
        refusal_under_ablation(llama, RAGGED, ranking, ablation="zero", opposing=True, **options)


def test_a_ranking_may_be_head_scores(llama):
    values = torch.zeros(4, 6)
    values[2, 5], values[0, 1] = 2.0, 1.0
    scores = HeadScores(values, None, "scaling_contribution", "ships", "nat")
    curve = refusal_under_ablation(
        llama, RAGGED, scores, sizes=(2,), random_seeds=(), decoding=Decoding(2), progress=False
    )
    assert curve.groups["top 2"].heads == (Head(2, 5), Head(0, 1))
    assert set(curve.differences()["compared"]) == {"top - baseline"}
    assert curve.control_note is None


def test_rankings_that_do_not_do_are_refused(llama):
    with pytest.raises(
        ValueError, match="3 different heads and 3 in all; the largest size asks for 5"
    ):
        refusal_under_ablation(llama, RAGGED, HEADS)
    with pytest.raises(ValueError, match="1 different heads and 2 in all"):
        refusal_under_ablation(llama, RAGGED, ["L0H1", "0-1"], sizes=[2])
    with pytest.raises(ValueError, match="different numbers of at least 1"):
        refusal_under_ablation(llama, RAGGED, HEADS, sizes=[0])
    with pytest.raises(ValueError, match="layer 0 has 4 heads, too many of which are ranked"):
        random_heads([Head(0, 0), Head(0, 1), Head(0, 2)], n_heads=4, seed=0)
