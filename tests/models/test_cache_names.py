"""Does attention get its cache under the name that it reads, whatever transformers calls it?"""

from typing import Any

import pytest
import torch
from torch import nn

from safetyheads.models.cache_names import cache_argument, name_caches
from safetyheads.models.opening import load_model
from tests.zoo import CONFIGS, random_model, tokenizer


class _Renamed(nn.Module):
    """Attention since transformers 5.24."""

    def forward(self, hidden_states: Any, cache: Any = None, **others: Any) -> Any:
        return hidden_states, cache, sorted(others)


class _Before(nn.Module):
    def forward(self, hidden_states: Any, past_key_values: Any = None, **others: Any) -> Any:
        return hidden_states, past_key_values, sorted(others)


class _Computes(nn.Module):
    """Attention as TransformerLens writes it: one name, the rest is passed by."""

    def __init__(self, own: nn.Module) -> None:
        super().__init__()
        self.original_component = own

    def forward(self, hidden_states: Any, **kwargs: Any) -> Any:
        return hidden_states, kwargs.get("past_key_values"), sorted(kwargs)


class _Delegates(_Computes):
    def forward(self, hidden_states: Any, **kwargs: Any) -> Any:
        return self.original_component(hidden_states, **kwargs)


class _Bridge:
    def __init__(self, *attentions: nn.Module) -> None:
        self.blocks = [nn.Module() for _ in attentions]
        for block, attention in zip(self.blocks, attentions, strict=True):
            block.attn = attention
        self.blocks.append(nn.Module())  # another kind of block has no attention


def test_renamed_caches_reach_attention_that_reads_the_old_name_and_such_that_reads_the_new():
    computes, delegates = _Computes(_Renamed()), _Delegates(_Renamed())
    assert computes(0, cache="kept")[1] is None, "nothing to mend"
    name_caches(bridge := _Bridge(computes, delegates))
    name_caches(bridge)
    assert computes(0, cache="kept")[1] == "kept"
    assert delegates(0, cache="kept", mask=1) == (0, "kept", ["mask"])
    assert delegates(0, mask=1) == (0, None, ["mask"])
    assert len(computes._forward_pre_hooks) == 1


def test_attention_of_before_is_left_alone():
    computes, delegates = _Computes(_Before()), _Delegates(_Before())
    name_caches(_Bridge(computes, delegates))
    assert not computes._forward_pre_hooks
    assert not delegates.original_component._forward_pre_hooks
    assert delegates(0, past_key_values="kept") == (0, "kept", [])


def test_the_name_is_read_from_the_signature():
    assert [cache_argument(m) for m in (_Renamed(), _Before())] == ["cache", "past_key_values"]


@pytest.mark.parametrize("architecture", CONFIGS)
def test_every_architecture_goes_on_from_a_cache_as_from_the_whole_prompt(architecture):
    from transformers import DynamicCache

    model = load_model(random_model(CONFIGS[architecture]()), tokenizer())
    ids = torch.arange(3, 15)[None]
    real = torch.ones(1, 12, dtype=torch.bool)
    whole = model.next_logits(ids, real, DynamicCache())
    cache = DynamicCache()
    model.next_logits(ids[:, :7], real[:, :7], cache)
    assert torch.allclose(model.next_logits(ids[:, 7:], real, cache), whole, atol=1e-5)
    alone = model.next_logits(ids[:, 7:], real[:, 7:], DynamicCache())
    assert not torch.allclose(alone, whole, atol=1e-4), "the cache does nothing"
