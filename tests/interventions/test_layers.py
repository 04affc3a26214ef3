"""Layers left out: in whole passes, in generation with a cache, against a model that lacks them."""

import copy

import pytest
import torch
from torch import nn

from safetyheads.interventions.layers import BypassLayers
from safetyheads.models.opening import load_model
from tests.zoo import CONFIGS, RAGGED, random_model, tokenizer

BYPASSED = (0, 2)
"""The first layer, whose cache tells the model how long the sequence is, and one inside."""


def without(hf, layers):
    """A model of transformers from which the layers are taken out, list, configuration and all."""
    hf = copy.deepcopy(hf)
    kept = [n for n in range(hf.config.num_hidden_layers) if n not in layers]
    parts = [
        (m, name)
        for m in hf.modules()
        for name, part in m.named_children()
        if isinstance(part, nn.ModuleList) and len(part) == hf.config.num_hidden_layers
    ]
    ((owner, name),) = parts
    blocks = nn.ModuleList(getattr(owner, name)[n] for n in kept)
    setattr(owner, name, blocks)
    for number, block in enumerate(blocks):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = number
    if getattr(hf.config, "layer_types", None):
        hf.config.layer_types = [hf.config.layer_types[n] for n in kept]
    hf.config.num_hidden_layers = len(kept)
    return hf


@pytest.fixture(scope="module", params=list(CONFIGS))
def zoo(request):
    hf = random_model(CONFIGS[request.param]())
    return without(hf, BYPASSED), load_model(hf, tokenizer())


def ids_of(text):
    return torch.tensor([tokenizer()(text)["input_ids"]])


@torch.inference_mode()
def test_a_bypassed_model_is_the_model_without_these_layers(zoo):
    shorter, model = zoo
    ids = ids_of(RAGGED[0])
    clean = model.logits(ids)
    with BypassLayers(BYPASSED).active(model):
        bypassed = model.logits(ids)
    expected = shorter(input_ids=ids, use_cache=False).logits
    assert torch.allclose(bypassed, expected, atol=1e-5)
    assert (bypassed - clean).abs().max() > 0.01
    assert torch.equal(model.logits(ids), clean)


@torch.inference_mode()
def test_generation_with_a_cache_leaves_them_out_too(zoo):
    shorter, model = zoo
    ids = ids_of(RAGGED[0])
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    hf = model.hf
    with BypassLayers(BYPASSED).active(model):
        cached = hf.generate(ids, use_cache=True, **options)
        uncached = ids
        for _ in range(5):
            scores = model.logits(uncached)[:, -1]
            scores[:, hf.generation_config.eos_token_id] = -torch.inf
            uncached = torch.cat([uncached, scores.argmax(-1, keepdim=True)], 1)
    assert torch.equal(cached, uncached)
    assert torch.equal(cached, shorter.generate(ids, use_cache=True, **options))
    assert not torch.equal(cached, hf.generate(ids, use_cache=True, **options))


def test_it_begins_at_the_lowest_layer():
    assert BypassLayers((3, 1)).first_layer == 1


@pytest.mark.parametrize("layers", [(), (-1, 2)])
def test_layers_that_cannot_be_are_refused(layers):
    with pytest.raises(ValueError, match="name at least one, counted from 0"):
        BypassLayers(layers)


def test_a_layer_that_the_model_lacks_is_refused():
    model = load_model(random_model(CONFIGS["llama"]()), tokenizer())
    with (
        pytest.raises(ValueError, match=r"layer 4 is not in .*: it has layers 0-3"),
        BypassLayers((1, 4)).active(model),
    ):
        pass
    assert not model.bridge.blocks[1]._forward_hooks
