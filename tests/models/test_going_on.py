"""Is a cache that attention passes by found before it gives a number?"""

import pytest
import torch

from safetyheads import capture_traces
from safetyheads.models.going_on import cache_fault
from safetyheads.models.opening import load_model
from safetyheads.probes.behaviour.generation import generate
from safetyheads.prompts import tokenize
from tests.zoo import CONFIGS, RAGGED, random_model, tokenizer


@pytest.fixture
def passing_by(monkeypatch):
    """A cache that stores what it is given, and gives back the new keys and values alone."""
    from transformers import DynamicCache

    whole = DynamicCache.update

    def update(self, keys, values, *others, **named):
        whole(self, keys, values, *others, **named)
        return keys, values

    monkeypatch.setattr(DynamicCache, "update", update)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_every_architecture_goes_on_as_it_should(architecture):
    model = load_model(random_model(CONFIGS[architecture]()), tokenizer())
    assert cache_fault(model) is None
    half = load_model(random_model(CONFIGS[architecture]()).bfloat16(), tokenizer())
    assert cache_fault(half) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_are_refused(passing_by, dtype):
    model = load_model(random_model(CONFIGS["llama"]()).to(dtype), tokenizer())
    with pytest.raises(ValueError, match=r"others than after the whole prompt .*docs/versions"):
        generate(model, tokenize(RAGGED, model.tokenizer))


def test_states_come_from_whole_prompts(passing_by):
    model = load_model(random_model(CONFIGS["llama"]()), tokenizer())
    with pytest.warns(UserWarning, match="Prompts run whole here, which is slower"):
        together = capture_traces(model, RAGGED[:2], RAGGED[2:4], length=2)
    with pytest.warns(UserWarning, match="Prompts run whole"):
        alone = capture_traces(model, RAGGED[:1], RAGGED[2:3], length=2)
    torch.testing.assert_close(together.states[:, :, 0], alone.states[:, :, 0])
