"""Does the trainer find latents that are there, and is what it writes read again?"""

import json

import pytest
import torch

from safetyheads.models.opening import load_model
from safetyheads.saes.autoencoder import Gated, JumpRelu, Relu, Sae, TopK, quality
from safetyheads.saes.loading import load_sae
from safetyheads.saes.writing import save_sae
from safetyheads.training.corpus import Corpus
from safetyheads.training.sae import Coder, SaeRecipe, train_pair, train_sae
from tests.zoo import CONFIGS, random_model, sentence, tokenizer

TINY = SaeRecipe(
    latents=48, k=3, tokens=2000, window=8, rows=16, batch=64, rate=1e-2, dead_after=400
)


def test_latents_that_are_there_are_found():
    """Sparse sums of 12 directions in 8 dimensions, shifted and large."""
    drawn = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(12, 8, generator=drawn), dim=1)
    active = torch.rand(6000, 12, generator=drawn) < 0.12
    states = 30 * (active * (0.5 + torch.rand(6000, 12, generator=drawn))) @ directions + 5
    recipe = SaeRecipe(latents=24, k=3, dead_after=500)
    coder = Coder(states[:1000], recipe)
    before = quality(coder.folded(1, "start"), states[:1000])
    for _ in range(4):
        for some in states[1000:].split(100):
            coder.learn(some, 1e-2)
    found = quality(coder.folded(1, "end"), states[:1000])
    assert found.explained > max(0.9, before.explained + 0.1)
    assert found.l0 <= 3
    learned = torch.nn.functional.normalize(coder.decoder.detach(), dim=1)
    assert (directions @ learned.T).amax(1).median() > 0.95


@pytest.fixture(scope="module")
def llama():
    return load_model(random_model(CONFIGS["llama"](), seed=5), tokenizer())


TEXT = Corpus(tuple(sentence(*range(6 + n % 30, 20 + n % 30)) for n in range(300)), {"made": "up"})


def test_an_sae_and_its_random_twin_are_written_with_a_card(llama, tmp_path):
    pair = train_pair(tmp_path, llama, 1, TINY, TEXT, progress=False)
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["held_out"]["explained"] == pair[0].quality.explained > 0.5
    assert card["held_out, random weights"]["tokens"] == 16 * 7
    assert card["held_out"] != card["held_out, random weights"]
    for place, trained in zip((tmp_path, tmp_path / "random"), pair, strict=True):
        again = load_sae(place)
        assert (again.layer, again.rule) == (1, TopK(3))
        torch.testing.assert_close(again.encoder, trained.sae.encoder, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(again.frequencies, trained.sae.frequencies)
        assert again.frequencies.sum() == pytest.approx(trained.quality.l0, abs=0.05)
    with pytest.raises(ValueError, match="layers 1-3 that a block has written"):
        train_sae(llama, TEXT.paragraphs, 0, TINY)
    with pytest.raises(ValueError, match="rows of 8 tokens; 16 are held out"):
        train_sae(llama, TEXT.paragraphs[:3], 1, TINY)
    with pytest.raises(ValueError, match="batch is 0"):
        SaeRecipe(batch=0)


def test_what_is_written_is_read_again(tmp_path):
    drawn = torch.Generator().manual_seed(0)
    parts = [torch.randn(*shape, generator=drawn) for shape in ((4, 9), (9,), (9, 4), (4,))]
    x = torch.randn(5, 4, generator=drawn)
    for rule in (Relu(), TopK(2), JumpRelu(torch.rand(9, generator=drawn))):
        for centred in (True, False):
            sae = Sae(*parts, rule, layer=3, centred=centred)
            again = load_sae(save_sae(sae, tmp_path, dtype=torch.float32))
            assert torch.equal(again.encode(x), sae.encode(x))
            assert again.layer == 3
    with pytest.raises(ValueError, match="the rule Gated"):
        save_sae(Sae(*parts, Gated(*torch.zeros(3, 9)), layer=3), tmp_path)
    with pytest.raises(ValueError, match="weights beyond"):
        save_sae(Sae(parts[0] * 1e6, *parts[1:], Relu(), layer=3), tmp_path)
