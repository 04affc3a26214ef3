"""Do the maps hold what the plain model attends to?"""

import copy
import math
import random
from types import SimpleNamespace

import pytest
import torch

from safetyheads.activations import patterns
from safetyheads.models.hooked import load_model
from safetyheads.probes.attention import maps as attention
from safetyheads.probes.attention.maps import (
    AttentionMaps,
    attention_maps,
    capture_attention,
    compare_captures,
    hidden_magnitudes,
)
from safetyheads.prompts import PromptSet, tokenize
from tests.zoo import CONFIGS, RAGGED, random_model, sentence, tokenizer

SHAPES = ["llama", "mistral-window", "gemma2-softcap-window", "gemma3-two-ropes", "gpt2", "gptj"]
SHAPES += ["neox", "phi3", "qwen3-qknorm-headdim"]
MORE = [
    sentence(20, 21, 22, 23, 24, 25, 26, 27),
    sentence(30, 31, 32, 33, 34, 35, 36, 37, 38, 39),
]


@pytest.fixture(scope="module")
def llama():
    return load_model(random_model(CONFIGS["llama"]()), tokenizer())


def stacked(hf, texts, size):
    """The plain model's attentions, a pass a prompt: [prompt, layer, head, query, key], NaN where there is none."""
    rows = []
    for text in texts:
        ids = torch.tensor([tokenizer()(text)["input_ids"]])[:, :size]
        with torch.no_grad():
            layers = hf(input_ids=ids, output_attentions=True).attentions
        pattern = torch.stack([layer[0] for layer in layers])
        n = ids.shape[1]
        pattern = pattern.masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(), math.nan)
        pad = (0, size - n) * 2
        rows.append(torch.nn.functional.pad(pattern, pad, value=math.nan))
    return torch.stack(rows)


@pytest.mark.parametrize("name", SHAPES)
def test_a_capture_is_the_stacked_patterns_of_plain_passes(name):
    hf = random_model(CONFIGS[name]())
    plain = copy.deepcopy(hf)
    capture = capture_attention(load_model(hf, tokenizer()), RAGGED, per_head=True, length=12)
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
    apart = capture_attention(llama, RAGGED, layers=[1, 3], heads=[0, 4], per_head=True, length=12)
    one = capture_attention(llama, RAGGED, layers=[3, 1], heads=[4, 0], length=12)
    assert one.layers == (1, 3)
    assert one.mean.shape == (2, 1, 12, 12)
    assert torch.allclose(one.mean, apart.mean.mean(1, keepdim=True), atol=1e-6, equal_nan=True)
    wrong = apart.mean_log.mean(1, keepdim=True)
    assert not torch.allclose(one.mean_log, wrong, atol=1e-3, equal_nan=True)


@pytest.mark.parametrize("tokens", [1, 24, 10_000])
def test_batching_and_padding_change_nothing(llama, tokens, monkeypatch):
    monkeypatch.setattr(patterns, "TOKENS_A_PASS", tokens)
    texts = [*RAGGED, *MORE]
    capture = capture_attention(llama, texts, length=9)
    monkeypatch.setattr(patterns, "TOKENS_A_PASS", 20)
    again = capture_attention(llama, texts[::-1], length=9)
    for field in ("mean", "mean_log", "variance", "counts"):
        assert torch.allclose(
            getattr(capture, field).float(),
            getattr(again, field).float(),
            atol=1e-6,
            equal_nan=True,
        )


def test_rows_of_attention_sum_to_one_and_the_rest_is_blank(llama):
    capture = capture_attention(llama, RAGGED, per_head=True, length=14)
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
    whole = capture_attention(llama, RAGGED, length=12)
    cut = capture_attention(llama, RAGGED, length=7)
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
        capture = capture_attention(llama, RAGGED, layers=2, length=12)
    finally:
        for handle in handles:
            handle.remove()
    assert capture.layers == (2,)
    assert {n for n in runs if n < 0} == {-1, -2, -3}, "block 3 must not be entered"
    assert {n for n in runs if n >= 0} == {0, 1}, "block 2 is left at its pattern"


def test_memory_does_not_grow_with_the_prompts(llama):
    kept = []
    seen = attention._Running.add

    def add(self, pattern, visible):
        kept.append(sum(v.numel() for v in vars(self).values() if isinstance(v, torch.Tensor)))
        seen(self, pattern, visible)

    attention._Running.add = add
    try:
        capture_attention(llama, RAGGED * 4, layers=1, length=12)
    finally:
        attention._Running.add = seen
    assert len(kept) == 12
    assert len(set(kept)) == 1


# --- maps ---------------------------------------------------------------------------------------


def long_sets(seed=0, n=4, length=12):
    draw = random.Random(seed)
    return [
        [sentence(*(draw.randrange(6, 97) for _ in range(length))) for _ in range(n)]
        for _ in range(2)
    ]


@pytest.mark.parametrize(("log", "floor"), [("e", math.exp(-10)), (10, 1e-10)])
@pytest.mark.parametrize("order", ["log_of_mean", "mean_of_log"])
def test_a_map_is_the_logarithm_of_the_plain_patterns(log, floor, order):
    hf = random_model(CONFIGS["llama"]())
    plain = copy.deepcopy(hf)
    sets = long_sets()
    maps = attention_maps(load_model(hf, tokenizer()), *sets, 2, length=12, log=log, order=order)
    base = math.e if log == "e" else 10.0
    for texts, found in zip(sets, (maps.benign, maps.jailbreak), strict=True):
        pattern = stacked(plain, texts, 12)[:, 2].mean(1)
        if order == "log_of_mean":
            expected = pattern.mean(0).clamp_min(floor).log() / math.log(base)
        else:
            expected = (pattern.clamp_min(floor).log() / math.log(base)).mean(0)
        assert torch.allclose(found, expected, atol=1e-5, equal_nan=True)
    assert maps.floor == floor
    assert maps.mask.equal(torch.ones(12, 12, dtype=torch.bool).tril())


def test_swapping_the_sets_turns_the_difference_round(llama):
    benign, jailbreak = long_sets()
    maps = attention_maps(llama, benign, jailbreak, 1, length=10)
    swapped = attention_maps(llama, jailbreak, benign, 1, length=10)
    assert torch.equal(maps.difference.nan_to_num(), -swapped.difference.nan_to_num())
    assert maps.difference.nan_to_num().abs().max() > 0.1
    assert torch.equal(maps.difference.nan_to_num(), (maps.jailbreak - maps.benign).nan_to_num())


def test_the_same_prompts_twice_differ_nowhere(llama):
    benign, _ = long_sets()
    maps = attention_maps(llama, benign, benign, 1, length=10)
    assert maps.difference[maps.mask].abs().max() == 0


def test_pairs_that_too_few_prompts_have_are_blank(llama):
    maps = attention_maps(llama, [*RAGGED, *MORE], RAGGED, 0, length=16, short="blank")
    assert maps.benign_counts[11, 0] == 1
    assert maps.benign[11].isnan().all()
    assert not maps.benign[10, :11].isnan().any()  # 2 of 5 have 11 tokens
    assert maps.difference.isnan().equal(~maps.mask)
    everything = attention_maps(
        llama, [*RAGGED, *MORE], RAGGED, 0, length=16, short="blank", min_prompts=1
    )
    assert not everything.benign[11, :12].isnan().any()


def test_one_head_of_a_capture(llama):
    benign, jailbreak = long_sets()
    captures = [
        capture_attention(llama, texts, per_head=True, length=10) for texts in (benign, jailbreak)
    ]
    maps = compare_captures(*captures, layer=3, head=5)
    alone = attention_maps(llama, benign, jailbreak, 3, heads=[5], length=10)
    assert torch.allclose(maps.difference, alone.difference, atol=1e-5, equal_nan=True)
    assert maps.heads == alone.heads == (5,)
    with pytest.raises(ValueError, match="name one of them"):
        compare_captures(*captures, layer=3)


def test_maps_are_saved_and_read_back(llama, tmp_path):
    maps = attention_maps(llama, *long_sets(), 1, length=10, heads=[1, 2])
    again = AttentionMaps.load(maps.save(tmp_path / "maps"))
    for name, value in vars(maps).items():
        read = getattr(again, name)
        if isinstance(value, torch.Tensor):
            assert torch.equal(value.nan_to_num(), read.nan_to_num())
        else:
            assert read == value
    assert "w10" not in (tmp_path / "maps" / "manifest.json").read_text()
    with pytest.raises(FileNotFoundError, match=r"maps\.safetensors"):
        AttentionMaps.load(tmp_path)


def test_the_table_has_a_row_a_pair(llama):
    maps = attention_maps(llama, *long_sets(), 1, length=10)
    table = maps.to_frame()
    assert len(table) == 55
    row = table.iloc[30]
    assert row["difference"] == pytest.approx(
        maps.difference[int(row["query"]), int(row["key"])].item()
    )


def test_a_prompt_set_gives_its_harmless_half_as_benign(llama):
    benign, jailbreak = long_sets()
    both = PromptSet("both", tuple(jailbreak), tuple(benign))
    maps = attention_maps(llama, both, both, 1, length=10)
    expected = attention_maps(llama, benign, jailbreak, 1, length=10)
    assert torch.equal(maps.difference.nan_to_num(), expected.difference.nan_to_num())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"jailbreak": []}, "there are no Jailbreak prompts"),
        ({"benign": ["w7 w8"]}, "there is 1 Benign prompt; a mean over prompts needs at least 2"),
        ({"length": 20}, r"0 of the 4 Benign prompts fill the grid of 20 tokens .* length=13"),
        ({"layer": 4}, "layer 4 is not in .*: it has layers 0-3"),
        ({"layer": -1}, "layer -1 is not in"),
        ({"heads": [6]}, "has the heads 0-5 in each layer"),
        ({"log": 2}, 'the base of the logarithm is "e" or 10'),
        ({"order": "mean"}, '"log_of_mean" or "mean_of_log"'),
        ({"floor": 0.0}, "above 0 and below 1"),
        ({"min_prompts": 0}, "needs at least one prompt"),
        ({"short": "pad"}, '"error" or "blank"'),
    ],
)
def test_what_cannot_be_drawn_is_refused(llama, change, message):
    benign, jailbreak = long_sets()
    options = {"benign": benign, "jailbreak": jailbreak, "layer": 1, "length": 10, **change}
    with pytest.raises(ValueError, match=message):
        attention_maps(llama, **options)


def test_sets_in_two_templates_are_refused(llama):
    benign, jailbreak = long_sets()
    batches = [tokenize(benign, tokenizer(), "bare"), tokenize(jailbreak, tokenizer(), "w9 {q}")]
    with pytest.raises(ValueError, match="tokenize both with the same"):
        attention_maps(llama, *batches, 1, length=10)


def test_tokens_of_another_tokenizer_are_refused(llama):
    other = copy.deepcopy(tokenizer())
    other.add_tokens(["w7 w8"])
    batch = tokenize(["w7 w8 w9", "w7 w8 w10"], other)
    with pytest.raises(ValueError, match="another tokenizer than"):
        attention_maps(llama, batch, batch, 1, length=3)
    own = tokenize(["w7 w8 w9", "w7 w8 w10"], tokenizer())
    assert attention_maps(llama, own, own, 1, length=3).difference[2, 0] == 0


def test_captures_of_two_models_are_refused(llama):
    other = load_model(random_model(CONFIGS["llama"](), seed=5), tokenizer())
    captures = [capture_attention(m, RAGGED, layers=1, length=6) for m in (llama, other)]
    with pytest.raises(ValueError, match="captured with different model"):
        compare_captures(*captures, layer=1)
    with pytest.raises(ValueError, match="layer 2 was not captured in both"):
        compare_captures(captures[0], captures[0], layer=2)


def test_a_layer_without_attention_is_refused(llama, monkeypatch):
    hooks = {k: v for k, v in llama.bridge.hook_dict.items() if "blocks.2.attn" not in k}
    stand_in = SimpleNamespace(**vars(llama), n_layers=4, n_heads=6, context=64)
    stand_in.bridge = SimpleNamespace(hook_dict=hooks, blocks=llama.bridge.blocks)
    with pytest.raises(ValueError, match=r"layer 2 of .* computes no attention pattern"):
        type(llama).visit_patterns(stand_in, torch.ones(1, 3, dtype=torch.int64), [2], print)


def test_prompts_beyond_the_models_context_are_refused(llama):
    texts = [sentence(*[10] * 70)] * 2
    with pytest.raises(ValueError, match="takes 64: shorten it, or pass length=64"):
        attention_maps(llama, texts, texts, 1, length=70)
    assert attention_maps(llama, texts, texts, 1, length=64).mask[63, 0]


def test_hidden_magnitudes_are_norms_of_the_plain_models_states():
    hf = random_model(CONFIGS["gpt2"]())
    plain = copy.deepcopy(hf)
    benign, jailbreak = long_sets()
    found = hidden_magnitudes(load_model(hf, tokenizer()), benign, jailbreak, length=15)
    logs = []
    for text in jailbreak:
        ids = torch.tensor([tokenizer()(text)["input_ids"]])
        with torch.no_grad():
            states = plain(input_ids=ids, output_hidden_states=True).hidden_states
        logs.append(torch.stack(states)[:, 0].norm(dim=-1).log())
    expected = torch.stack(logs).mean(0)
    assert found.jailbreak.shape == (5, 15)
    # The last of Hugging Face's states comes after the final norm.
    assert torch.allclose(found.jailbreak[:-1, :13], expected[:-1], atol=1e-5)
    assert found.jailbreak[:, 13:].isnan().all()
    assert torch.equal(found.difference[:, :13], (found.jailbreak - found.benign)[:, :13])
