"""Are the maps those of the plain model, and is what cannot be compared refused?"""

import copy
import math
from dataclasses import fields

import pytest
import torch

from safetyheads.models.opening import load_model
from safetyheads.probes.attention.capture import capture_attention
from safetyheads.probes.attention.grid import Grid
from safetyheads.probes.attention.maps import AttentionMaps, attention_maps, compare_captures
from safetyheads.prompts import PromptSet, tokenize
from tests.probes.attention.plain import long_sets, stacked
from tests.zoo import CONFIGS, RAGGED, opened, random_model, sentence, tokenizer

MORE = [
    sentence(20, 21, 22, 23, 24, 25, 26, 27),
    sentence(30, 31, 32, 33, 34, 35, 36, 37, 38, 39),
]


@pytest.fixture(scope="module")
def llama():
    return opened("llama")


@pytest.mark.parametrize(("log", "floor"), [("e", math.exp(-10)), (10, 1e-10)])
@pytest.mark.parametrize("order", ["log_of_mean", "mean_of_log"])
def test_a_map_is_the_logarithm_of_the_plain_patterns(log, floor, order):
    hf = random_model(CONFIGS["llama"]())
    plain = copy.deepcopy(hf)
    sets = long_sets()
    maps = attention_maps(
        load_model(hf, tokenizer()), *sets, 2, grid=Grid(length=12, log=log, order=order)
    )
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
    maps = attention_maps(llama, benign, jailbreak, 1, grid=Grid(length=10))
    swapped = attention_maps(llama, jailbreak, benign, 1, grid=Grid(length=10))
    assert torch.equal(maps.difference.nan_to_num(), -swapped.difference.nan_to_num())
    assert maps.difference.nan_to_num().abs().max() > 0.1
    assert torch.equal(maps.difference.nan_to_num(), (maps.jailbreak - maps.benign).nan_to_num())


def test_the_same_prompts_twice_differ_nowhere(llama):
    benign, _ = long_sets()
    maps = attention_maps(llama, benign, benign, 1, grid=Grid(length=10))
    assert maps.difference[maps.mask].abs().max() == 0


def test_pairs_that_too_few_prompts_have_are_blank(llama):
    maps = attention_maps(llama, [*RAGGED, *MORE], RAGGED, 0, grid=Grid(length=16, short="blank"))
    assert maps.benign_counts[11, 0] == 1
    assert maps.benign[11].isnan().all()
    assert not maps.benign[10, :11].isnan().any()  # 2 of 5 have 11 tokens
    assert maps.difference.isnan().equal(~maps.mask)
    everything = attention_maps(
        llama, [*RAGGED, *MORE], RAGGED, 0, grid=Grid(length=16, short="blank", min_prompts=1)
    )
    assert not everything.benign[11, :12].isnan().any()


def test_one_head_of_a_capture(llama):
    benign, jailbreak = long_sets()
    captures = [
        capture_attention(llama, texts, per_head=True, grid=Grid(length=10))
        for texts in (benign, jailbreak)
    ]
    maps = compare_captures(*captures, layer=3, head=5)
    alone = attention_maps(llama, benign, jailbreak, 3, heads=[5], grid=Grid(length=10))
    assert torch.allclose(maps.difference, alone.difference, atol=1e-5, equal_nan=True)
    assert maps.heads == alone.heads == (5,)
    with pytest.raises(ValueError, match="name one of them"):
        compare_captures(*captures, layer=3)


def test_maps_are_saved_and_read_back(llama, tmp_path):
    maps = attention_maps(llama, *long_sets(), 1, grid=Grid(length=10), heads=[1, 2])
    again = AttentionMaps.load(maps.save(tmp_path / "maps"))
    for name, value in vars(maps).items():
        read = getattr(again, name)
        if isinstance(value, torch.Tensor):
            assert torch.equal(value.nan_to_num(), read.nan_to_num())
        else:
            assert read == value
    assert "w10" not in (tmp_path / "maps" / "record.json").read_text()
    with pytest.raises(FileNotFoundError, match=r"record\.json"):
        AttentionMaps.load(tmp_path)


def test_the_table_has_a_row_a_pair(llama):
    maps = attention_maps(llama, *long_sets(), 1, grid=Grid(length=10))
    table = maps.to_frame()
    assert len(table) == 55
    row = table.iloc[30]
    assert row["difference"] == pytest.approx(
        maps.difference[int(row["query"]), int(row["key"])].item()
    )


def test_a_prompt_set_gives_its_harmless_half_as_benign(llama):
    benign, jailbreak = long_sets()
    both = PromptSet("both", tuple(jailbreak), tuple(benign))
    maps = attention_maps(llama, both, both, 1, grid=Grid(length=10))
    expected = attention_maps(llama, benign, jailbreak, 1, grid=Grid(length=10))
    assert torch.equal(maps.difference.nan_to_num(), expected.difference.nan_to_num())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"jailbreak": []}, "there are no Jailbreak prompts"),
        ({"benign": ["w7 w8"]}, "there is 1 Benign prompt; a mean over prompts needs at least 2"),
        (
            {"length": 20},
            r"0 of the 4 Benign prompts fill the grid of 20 tokens .* Grid\(length=13\)",
        ),
        ({"layer": 4}, "layer 4 is not in .*: it has layers 0-3"),
        ({"layer": -1}, "layer -1 is not in"),
        ({"heads": [6]}, "has the heads 0-5 in each layer"),
        ({"log": 2}, 'the base of the logarithm is "e" or 10'),
        ({"order": "mean"}, '"log_of_mean" or "mean_of_log"'),
        ({"floor": 0.0}, "above 0 and below 1"),
        ({"min_prompts": 0}, "needs at least one prompt"),
        ({"short": "pad"}, '"error" or "blank"'),
        ({"length": 1}, "length is 1; a map needs at least 2 tokens"),
    ],
)
def test_what_cannot_be_drawn_is_refused(llama, change, message):
    benign, jailbreak = long_sets()
    laid_out = {f.name: change[f.name] for f in fields(Grid) if f.name in change}
    options = {"benign": benign, "jailbreak": jailbreak, "layer": 1, **change}
    asked = {name: value for name, value in options.items() if name not in laid_out}
    with pytest.raises(ValueError, match=message):
        attention_maps(llama, **asked, grid=Grid(**{"length": 10, **laid_out}))


def test_sets_in_two_templates_are_refused(llama):
    benign, jailbreak = long_sets()
    batches = [tokenize(benign, tokenizer(), "bare"), tokenize(jailbreak, tokenizer(), "w9 {q}")]
    with pytest.raises(ValueError, match="tokenize both with the same"):
        attention_maps(llama, *batches, 1, grid=Grid(length=10))


def test_tokens_of_another_tokenizer_are_refused(llama):
    other = copy.deepcopy(tokenizer())
    other.add_tokens(["w7 w8"])
    batch = tokenize(["w7 w8 w9", "w7 w8 w10"], other)
    with pytest.raises(ValueError, match="another tokenizer than"):
        attention_maps(llama, batch, batch, 1, grid=Grid(length=3))
    own = tokenize(["w7 w8 w9", "w7 w8 w10"], tokenizer())
    assert attention_maps(llama, own, own, 1, grid=Grid(length=3)).difference[2, 0] == 0


def test_captures_of_two_models_are_refused(llama):
    other = load_model(random_model(CONFIGS["llama"](), seed=5), tokenizer())
    captures = [capture_attention(m, RAGGED, layers=1, grid=Grid(length=6)) for m in (llama, other)]
    with pytest.raises(ValueError, match="captured with different model"):
        compare_captures(*captures, layer=1)
    with pytest.raises(ValueError, match="layer 2 was not captured in both"):
        compare_captures(captures[0], captures[0], layer=2)


def test_prompts_beyond_the_models_context_are_refused(llama):
    texts = [sentence(*[10] * 70)] * 2
    with pytest.raises(ValueError, match="takes 64: shorten it, or pass length=64"):
        attention_maps(llama, texts, texts, 1, grid=Grid(length=70))
    assert attention_maps(llama, texts, texts, 1, grid=Grid(length=64)).mask[63, 0]
