"""Are the magnitudes those of the plain model's states?"""

import copy

import torch

from safetyheads.models.opening import load_model
from safetyheads.probes.attention.grid import Grid
from safetyheads.probes.attention.hidden import hidden_magnitudes
from tests.probes.attention.plain import long_sets
from tests.zoo import CONFIGS, random_model, tokenizer


def test_hidden_magnitudes_are_norms_of_the_plain_models_states():
    hf = random_model(CONFIGS["gpt2"]())
    plain = copy.deepcopy(hf)
    benign, jailbreak = long_sets()
    found = hidden_magnitudes(load_model(hf, tokenizer()), benign, jailbreak, grid=Grid(length=15))
    logs = []
    for text in jailbreak:
        ids = torch.tensor([tokenizer()(text)["input_ids"]])
        with torch.no_grad():
            states = plain(input_ids=ids, output_hidden_states=True).hidden_states
        logs.append(torch.stack(states)[:, 0].norm(dim=-1).log())
    expected = torch.stack(logs).mean(0)
    assert found.jailbreak.shape == (4, 15)
    # The last of Hugging Face's states comes after the final norm.
    assert torch.allclose(found.jailbreak[:-1, :13], expected[:-1], atol=1e-5)
    assert found.jailbreak[:, 13:].isnan().all()
    assert torch.equal(found.difference[:, :13], (found.jailbreak - found.benign)[:, :13])
