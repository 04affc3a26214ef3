"""Are readings float32 or better whatever the weights are, and near those of float32 weights?"""

import pytest
import torch

from safetyheads.engine.execution import Execution
from safetyheads.interventions.ablations import ScalingContribution, UndifferentiatedAttention
from safetyheads.metrics import GeneralizedShips, RefusalShift, Ships
from safetyheads.models.opening import load_model
from safetyheads.probes.single_heads import score_heads
from tests.zoo import CONFIGS, RAGGED, random_model, tokenizer

QUIET = Execution(progress=False)

HALF = [torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def models():
    """One model in three types; the weights of all are those of bfloat16, so that only the arithmetic differs."""
    made = {}
    for dtype in (torch.float32, *HALF):
        made[dtype] = load_model(
            random_model(CONFIGS["llama"](), spread=0.1).bfloat16().to(dtype), tokenizer()
        )
    return made


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("ablation", [UndifferentiatedAttention(), ScalingContribution()])
def test_half_precision_scores_are_float32_and_near_those_of_float32(models, dtype, ablation):
    options = {"ablation": ablation, "execution": QUIET}
    exact = score_heads(models[torch.float32], RAGGED, **options)
    half = score_heads(models[dtype], RAGGED, **options)
    assert models[dtype].dtype == dtype
    assert half.values.dtype == half.per_prompt.dtype == torch.float32
    assert half.provenance["model"]["dtype"] == str(dtype).removeprefix("torch.")
    assert half.provenance["engine"] == "resumed"
    difference = (half.values - exact.values).abs().max()
    assert 0 < difference < 0.25 * exact.values.max()
    both = torch.stack([half.values.flatten(), exact.values.flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.95


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(
    ("metric", "at_least"),
    [
        (Ships(), torch.float32),
        (RefusalShift(), torch.float32),
        (GeneralizedShips("right"), torch.float64),
    ],
)
def test_readings_are_float32_or_better(models, dtype, metric, at_least, monkeypatch):
    kept, real = [], type(metric).gather

    def watched(*arguments):
        kept.append(real(*arguments))
        return kept[-1]

    monkeypatch.setattr(type(metric), "gather", watched)
    scores = score_heads(models[dtype], RAGGED, metric=metric, execution=QUIET)
    assert [reading.dtype for reading in kept] == [at_least] * 4
    assert scores.values.dtype == torch.float32
    assert scores.values.isfinite().all()
