"""Does a capture hold what the plain model attends to?"""

import copy
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from safetyheads.activations import patterns
from safetyheads.models.opening import load_model
from safetyheads.models.watching import watch_patterns
from safetyheads.probes.attention import capture as module
from safetyheads.probes.attention.capture import capture_attention
from safetyheads.probes.attention.grid import Grid
from tests.probes.attention.plain import stacked
from tests.zoo import CONFIGS, RAGGED, opened, random_model, sentence, tokenizer

SHAPES = ["llama", "mistral-window", "gemma2-softcap-window", "gemma3-two-ropes", "gpt2", "gptj"]
SHAPES += ["neox", "phi3", "qwen3-qknorm-headdim"]
MORE = [
    sentence(20, 21, 22, 23, 24, 25, 26, 27),
    sentence(30, 31, 32, 33, 34, 35, 36, 37, 38, 39),
]


@pytest.fixture(scope="module")
def llama():
    return opened("llama")


@pytest.mark.parametrize("name", SHAPES)
def test_a_capture_is_the_stacked_patterns_of_plain_passes(name):
    hf = random_model(CONFIGS[name]())
    plain = copy.deepcopy(hf)
    capture = capture_attention(
        load_model(hf, tokenizer()), RAGGED, per_head=True, grid=Grid(length=12)
    )
    expected = stacked(plain, RAGGED, 12)
    # Outside a sliding window the plain model has exact zeros.
    expected = expected.where(expected != 0, math.nan)
    counts = (~expected.isnan()).sum(0)
    assert (capture.counts[:, None] == counts).all()
    mean = expected.nanmean(0)
    assert capture.mean.isnan().equal(counts == 0)
    assert torch.allclose(capture.mean, mean, atol=1e-6, equal_nan=True)
    logs = expected.clamp_min(capture.floor).log().nanmean(0)
    assert torch.allclose(capture.mean_log, logs, atol=1e-5, equal_nan=True)
    spread = (expected - mean).square().nansum(0) / (counts - 1)
    spread = spread.where(counts > 1, math.nan)
    assert torch.allclose(capture.variance, spread, atol=1e-6, equal_nan=True)
    assert capture.mean[capture.mean > 0].std() > 0.05, "the comparison would be vacuous"


def test_averaged_heads_are_averaged_before_the_logarithm(llama):
    apart = capture_attention(
        llama, RAGGED, layers=[1, 3], heads=[0, 4], per_head=True, grid=Grid(length=12)
    )
    one = capture_attention(llama, RAGGED, layers=[3, 1], heads=[4, 0], grid=Grid(length=12))
    assert one.layers == (1, 3)
    assert one.mean.shape == (2, 1, 12, 12)
    assert torch.allclose(one.mean, apart.mean.mean(1, keepdim=True), atol=1e-6, equal_nan=True)
    wrong = apart.mean_log.mean(1, keepdim=True)
    assert not torch.allclose(one.mean_log, wrong, atol=1e-3, equal_nan=True)


@pytest.mark.parametrize("tokens", [1, 24, 10_000])
def test_batching_and_padding_change_nothing(llama, tokens, monkeypatch):
    monkeypatch.setattr(patterns, "TOKENS_A_PASS", tokens)
    texts = [*RAGGED, *MORE]
    capture = capture_attention(llama, texts, grid=Grid(length=9))
    monkeypatch.setattr(patterns, "TOKENS_A_PASS", 20)
    again = capture_attention(llama, texts[::-1], grid=Grid(length=9))
    for field in ("mean", "mean_log", "variance", "counts"):
        assert torch.allclose(
            getattr(capture, field).float(),
            getattr(again, field).float(),
            atol=1e-6,
            equal_nan=True,
        )


def test_rows_of_attention_sum_to_one_and_the_rest_is_blank(llama):
    capture = capture_attention(llama, RAGGED, per_head=True, grid=Grid(length=14))
    longest = int(capture.lengths.max())
    sums = capture.mean.nansum(-1)
    assert torch.allclose(sums[..., :longest], torch.ones(()), atol=1e-6)
    assert capture.mean[..., longest:, :].isnan().all()
    above = torch.ones(14, 14, dtype=torch.bool).triu(1)
    assert capture.mean[..., above].isnan().all()
    assert capture.counts[..., above].sum() == 0
    assert capture.counts[0].diagonal()[:longest].tolist() == [
        int((capture.lengths > n).sum()) for n in range(longest)
    ]


def test_cutting_prompts_changes_nothing_before_the_cut(llama):
    whole = capture_attention(llama, RAGGED, grid=Grid(length=12))
    cut = capture_attention(llama, RAGGED, grid=Grid(length=7))
    assert torch.allclose(cut.mean, whole.mean[..., :7, :7], atol=1e-6, equal_nan=True)


def test_nothing_runs_above_the_highest_layer(llama):
    runs = []
    blocks = [*llama.bridge.blocks]
    handles = [
        block.register_forward_hook(lambda *_, n=n: runs.append(n))
        for n, block in enumerate(blocks)
    ]
    handles += [
        block.register_forward_pre_hook(lambda *_, n=n: runs.append(-1 - n))
        for n, block in enumerate(blocks)
    ]
    try:
        capture_attention(llama, RAGGED, layers=2, grid=Grid(length=12))
        runs.clear()  # the gate sees the hooks, and looks with whole passes once
        capture = capture_attention(llama, RAGGED, layers=2, grid=Grid(length=12))
    finally:
        for handle in handles:
            handle.remove()
    assert capture.layers == (2,)
    assert {n for n in runs if n < 0} == {-1, -2, -3}, "block 3 must not be entered"
    assert {n for n in runs if n >= 0} == {0, 1}, "block 2 is left at its pattern"


def test_memory_does_not_grow_with_the_prompts(llama):
    kept = []
    seen = module._Running.add

    def add(self, pattern, visible):
        kept.append(sum(v.numel() for v in vars(self).values() if isinstance(v, torch.Tensor)))
        seen(self, pattern, visible)

    module._Running.add = add
    try:
        capture_attention(llama, RAGGED * 4, layers=1, grid=Grid(length=12))
    finally:
        module._Running.add = seen
    assert len(kept) == 12
    assert len(set(kept)) == 1


def test_a_layer_without_attention_is_refused(llama, monkeypatch):
    hooks = {k: v for k, v in llama.bridge.hook_dict.items() if "blocks.2.attn" not in k}
    known = {name: getattr(llama.bridge, name) for name in ("blocks", "cfg", "original_model")}
    stand_in = replace(llama, bridge=SimpleNamespace(hook_dict=hooks, **known))
    with pytest.raises(ValueError, match=r"layer 2 of .* computes no attention pattern"):
        watch_patterns(stand_in, torch.ones(1, 3, dtype=torch.int64), [2], print)


def test_attention_that_shows_no_pattern_is_said(monkeypatch):
    """As with GPT-J under transformers 5.24, loaded without attn_implementation="eager"."""
    model = load_model(random_model(CONFIGS["llama"]()), tokenizer())
    monkeypatch.setattr(type(model), "forward", lambda *_, **__: None)
    with pytest.raises(ValueError, match=r"showed no attention pattern.*attn_implementation='eag"):
        capture_attention(model, RAGGED)
