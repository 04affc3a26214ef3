"""Do the curves set the ranking beside random heads of the same layers?"""

import pytest
import torch

from safetyheads.heads import Head, HeadScores
from safetyheads.interventions.ablating import AblateHeads
from safetyheads.interventions.ablations import ScalingContribution
from safetyheads.probes.behaviour.answers import measure_behaviour
from safetyheads.probes.behaviour.curves import random_heads, refusal_under_ablation
from safetyheads.probes.behaviour.generation import Decoding
from tests.probes.behaviour.test_answers import PAIRS, by_length
from tests.zoo import RAGGED, opened

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
    assert len(differences) == 2 * 4 * 2
    row = differences.iloc[0]
    rates = table.query("side == 'harmful' and verdict == 'refuse' and size == 1").set_index("arm")[
        "rate"
    ]
    assert row["difference"] == pytest.approx(rates["top"] - rates["random"].mean())


def test_a_ranking_may_be_head_scores(llama):
    values = torch.zeros(4, 6)
    values[2, 5], values[0, 1] = 2.0, 1.0
    scores = HeadScores(values, None, "scaling_contribution", "ships", "nat")
    curve = refusal_under_ablation(
        llama, RAGGED, scores, sizes=(2,), random_seeds=(), decoding=Decoding(2), progress=False
    )
    assert curve.groups["top 2"].heads == (Head(2, 5), Head(0, 1))
    assert curve.differences().empty


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
