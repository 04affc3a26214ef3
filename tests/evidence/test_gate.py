"""Known heads pass the gate, decoys and chance do not, and its error rate is what it says."""

import dataclasses

import pytest
import torch

from safetyheads.engine.execution import Execution
from safetyheads.evidence.gate import gate_ranking
from safetyheads.heads import Head
from safetyheads.inputs import prepare
from safetyheads.probes.refusing import first_token_refusals
from safetyheads.ranking.ranking import rank_safety_heads
from safetyheads.validation.planted import plant
from tests.evidence.made_up import scores
from tests.test_stats import normal

QUIET = Execution(progress=False)
PAIRED = {"prompts": {"name": "made up", "paired": True}}


def sides(harmful, harmless, **changes):
    return tuple(scores(side, provenance=PAIRED, **changes) for side in (harmful, harmless))


def noise(seed, n=16, heads=20):
    return sides(*normal(2, 1, heads, n, seed=seed))


def carrying(factor=1.0):
    """Heads that do more and more on harmful prompts, and nothing on harmless ones."""
    steps = factor * torch.linspace(0, 6, 20)[None, :, None]
    return sides(steps + normal(1, 20, 16, seed=1), normal(1, 20, 16, seed=2))


def gate(ranking, **options):
    return gate_ranking(ranking, noise(999), **options)


@pytest.mark.parametrize(("kind", "metric"), [("decoy", "refusal_shift"), ("grouped", "ships")])
def test_planted_heads_pass_and_decoys_do_not(kind, metric):
    planted = plant(kind, pairs=8)
    ranking = rank_safety_heads(
        planted.model,
        planted.prompts,
        ablations="mean",
        metric=metric,
        null="gate",
        execution=QUIET,
    )
    (found,) = ranking.gates
    assert found.refusals == (8, 8)
    assert {Head(*place) for place in found.established.nonzero().tolist()} == planted.safety
    assert found.named == tuple(planted.safety)
    assert "1 of the top 10 established (L2H3)" in repr(ranking)
    table = ranking.to_frame().set_index("label")
    assert table["established"].sum() == 1
    assert table.loc["L2H3", "specificity"] > table.loc["L2H3", "noise_ceiling"]
    assert table["in_null"].sum() == 23
    assert "established (L2H3)" in ranking.plot(note="A note of the caller's.").to_json()
    assert "established (L2H3)" in ranking.manifest["gate"][0]


def test_a_decoy_that_ranks_first_is_not_established():
    planted = plant("redundant", pairs=8)
    ranking = rank_safety_heads(
        planted.model, planted.prompts, ablations="mean", null="gate", execution=QUIET
    )
    assert ranking.top(1)["label"].tolist() == ["L1H5"]
    assert not ranking.gates[0].established.any()
    assert "not established: of what L1H5 does" in repr(ranking)


def test_a_model_that_does_not_refuse_has_no_safety_heads():
    strong = carrying()
    assert gate(strong, refusals=(9, 16)).named
    silent = gate(strong, refusals=(1, 16))
    assert not silent.established.any()
    assert "begins 1 of 16 answers with a refusal" in str(silent)
    assert silent.above.any()


def test_what_a_random_copy_shows_too_is_not_established():
    found = gate_ranking(carrying(), carrying(factor=2.0))
    assert not found.established.any()
    assert "noise ceiling" in str(found)
    assert found.random_ceiling > gate(carrying()).random_ceiling


def test_a_head_that_few_halves_rank_first_is_not_established():
    values = 5 * normal(1, 20, 16, seed=1)
    values[0, 3] = 0.5 + 0.1 * normal(16, seed=2)
    values[0, 4] = torch.tensor([40.0] * 6 + [-24.0] * 10)
    found = gate(sides(values, torch.zeros(1, 20, 16)), top_k=1)
    assert found.repeats[0, 3] < 0.2
    assert found.repeats.sum().item() == pytest.approx(1)
    assert found.reach < 0.6


def test_regular_trifles_do_not_pass():
    values = 1e-3 * (1 + 0.01 * normal(1, 20, 16, seed=1))
    values[0, 3] = 2 + normal(16, seed=2).clamp(-1.5, 1.5)
    found = gate(sides(values, torch.zeros(1, 20, 16)))
    assert found.established.nonzero().tolist() == [[0, 3]]


@pytest.mark.parametrize("n", [8, 20])
def test_chance_calls_a_head_established_as_often_as_it_says(n):
    """With all orders of labels (8 pairs) and with random ones (20), of heads of unequal spread."""
    spread = torch.linspace(0.2, 2, 30)[None, :, None]
    least = []
    for seed in range(150):
        values = spread * normal(2, 1, 30, n, seed=seed)
        found = gate_ranking(sides(*values), noise(5, heads=30), n_resamples=400, seed=seed)
        least.append(found.p.min().item())
    least = torch.tensor(least)
    for level in (0.05, 0.2, 0.5):
        rate = (least <= level).float().mean().item()
        assert abs(rate - level) < 3 * (level * (1 - level) / 150) ** 0.5 + 0.01


def test_p_is_the_share_of_all_orders():
    values = torch.tensor([[[1.0, 2.0, 3.0, 4.0, 5.0]]])
    found = gate(sides(values, torch.zeros_like(values)))
    assert found.p.item() == pytest.approx(1 / 32)
    assert found.labels_ceiling == pytest.approx(13 / 5)


def test_what_cannot_be_tested_is_refused():
    paired = noise(1)
    apart = tuple(dataclasses.replace(side, provenance={}) for side in paired)
    with pytest.raises(ValueError, match="not matched one to one"):
        gate(apart)
    with pytest.raises(ValueError, match="there are 4 pairs; with fewer than 5"):
        gate(noise(1, n=4))
    guessed = (
        dataclasses.replace(paired[0], exact=torch.zeros(1, 20, dtype=torch.bool)),
        paired[1],
    )
    with pytest.raises(ValueError, match="some scores are estimates"):
        gate(guessed)


def test_first_token_refusals_count_what_a_plain_pass_says():
    planted = plant(pairs=3)
    assert first_token_refusals(prepare(planted.model, planted.prompts)) == (3, 3)
    harmless = prepare(planted.model, planted.prompts, side="harmless")
    assert first_token_refusals(harmless, rows=2) == (0, 3)
