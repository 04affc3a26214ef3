"""Does the fingerprint change with all that changes a model's outputs, and with nothing else?"""

import copy

import pytest
import torch

from safetyheads import Execution, Ships, ZeroAblation, load_model, score_heads
from safetyheads.models.fingerprint import fingerprint
from tests.zoo import CONFIGS, RAGGED, SIZES, random_model, tokenizer


@pytest.fixture
def hf():
    return random_model(CONFIGS["llama"]())


def test_a_copy_and_a_wrapped_model_have_the_fingerprint_of_the_model(hf):
    before = fingerprint(hf)
    assert fingerprint(copy.deepcopy(hf)) == before
    other = random_model(CONFIGS["llama"](), seed=1)
    assert fingerprint(other) != before
    load_model(hf, tokenizer())
    assert fingerprint(hf) == before


def halve(hf):
    with torch.no_grad():
        hf.model.layers[1].self_attn.o_proj.weight.mul_(0.5)


def behind_autograd(hf):
    hf.model.layers[1].self_attn.o_proj.weight.data[0, 0] += 1.0


def buffer(hf):
    hf.model.rotary_emb.inv_freq[1] *= 2


def config(hf):
    hf.config.rms_norm_eps = 0.1


def swapped(hf):
    rows = hf.model.layers[1].self_attn.o_proj.weight.data
    rows[[0, 5]] = rows[[5, 0]]


def scale(hf):
    hf.model.layers[1].self_attn.scaling = 3.0


def hook(hf):
    hf.lm_head.register_forward_hook(lambda _module, _args, out: out.tanh())


def one_sign(hf):
    hf.model.norm.weight.data[3] *= -1


CHANGES = [halve, behind_autograd, swapped, scale, buffer, config, hook, one_sign]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_function_changes_it(hf, change):
    before = fingerprint(hf)
    change(hf)
    assert fingerprint(hf) != before


def test_it_comes_back_with_the_weights(hf):
    before = fingerprint(hf)
    kept = copy.deepcopy(hf.state_dict())
    halve(hf)
    hf.load_state_dict(kept)
    assert fingerprint(hf) == before


def scored(model, folder=None):
    quiet = Execution(store=folder, progress=False)
    return score_heads(
        model, RAGGED, ablation=ZeroAblation(), metric=Ships(), template="bare", execution=quiet
    ).values


@pytest.mark.parametrize("change", [halve, swapped, scale])
def test_a_store_does_not_serve_readings_of_weights_that_were_edited_since(hf, tmp_path, change):
    model = load_model(hf, tokenizer())
    first = scored(model, tmp_path)
    change(hf)
    again = scored(model, tmp_path)
    assert (again - first).abs().max() > 1e-4
    assert torch.equal(again, scored(model))


def test_a_store_does_not_serve_readings_of_another_rope(tmp_path):
    import transformers

    scaled = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
    configs = (
        transformers.LlamaConfig(**SIZES, **rope) for rope in ({}, {"rope_parameters": scaled})
    )
    models = [load_model(random_model(config), tokenizer()) for config in configs]
    first, second = (scored(model, tmp_path) for model in models)
    assert (first - second).abs().max() > 1e-4
    assert torch.equal(second, scored(models[1]))


def test_a_store_cannot_tell_hooks_apart(hf, tmp_path):
    model = load_model(hf, tokenizer())
    first = scored(model)
    hook(hf)
    assert (scored(model) - first).abs().max() > 1e-4
    with pytest.raises(ValueError, match=r"has hooks on lm_head: a store cannot tell"):
        scored(model, tmp_path)
