"""Does one sweep that several metrics read give what each would have given alone?"""

import pytest
import torch

from safetyheads.engine.execution import Execution
from safetyheads.interventions.ablations import ScalingContribution
from safetyheads.metrics import GeneralizedShips, RefusalShift, Ships
from safetyheads.probes.single_heads import score_heads, score_heads_together
from tests.zoo import RAGGED, opened

METRICS = [Ships(), RefusalShift(), GeneralizedShips("right", 2), GeneralizedShips("feature0")]


@pytest.fixture(scope="module")
def model():
    return opened("llama")


def test_each_metric_scores_as_it_does_alone(model, tmp_path):
    options = {"ablation": ScalingContribution(0.3)}
    stored, rows = Execution(rows=5, store=tmp_path), Execution(rows=5)
    together = score_heads_together(model, RAGGED, METRICS, execution=stored, **options)
    again = score_heads_together(model, RAGGED, METRICS, execution=stored, **options)
    assert len(together) == len(METRICS)
    for metric, scores, resumed in zip(METRICS, together, again, strict=True):
        alone = score_heads(model, RAGGED, metric=metric, execution=rows, **options)
        assert alone.values.abs().max() > 1e-3, "the comparison would be vacuous"
        assert torch.allclose(scores.values, alone.values, rtol=1e-6, atol=1e-7)
        assert torch.equal(scores.values, resumed.values)
        assert (scores.per_prompt is None) == (alone.per_prompt is None)
        if scores.per_prompt is not None:
            assert torch.equal(scores.per_prompt, alone.per_prompt)
        else:
            assert torch.equal(scores.readings, alone.readings)
        for field in ("ablation", "metric", "unit", "largest_first", "provenance"):
            assert getattr(scores, field) == getattr(alone, field)


def test_the_heads_run_once_for_all_metrics(model, monkeypatch):
    from safetyheads.probes import single_heads

    calls, real = [], single_heads.run
    monkeypatch.setattr(single_heads, "run", lambda *a, **k: calls.append(k) or real(*a, **k))
    score_heads_together(model, RAGGED, METRICS)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("metrics", "side", "message"),
    [
        ([], "harmful", "there are 0 metrics; give at least one"),
        (METRICS, "harmless", "has no harmless prompts"),
        ([GeneralizedShips(rank=3)], "harmful", "needs at least 4 prompts"),
    ],
)
def test_what_cannot_be_scored_is_refused(model, metrics, side, message):
    with pytest.raises(ValueError, match=message):
        score_heads_together(model, RAGGED, metrics, side=side)
