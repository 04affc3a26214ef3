"""Is W + t·(W' − W) the base at 0, the sibling at 1, and a line between and beyond?"""

import pytest
import torch

from safetyheads import interpolate, load_model
from tests import zoo
from tests.models.checkpoints.made import save_llama


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    base = save_llama(place / "base")
    torch.manual_seed(7)
    with torch.no_grad():
        for weight in base.parameters():
            weight.add_(torch.randn_like(weight) / 30)
    base.save_pretrained(place / "sibling")
    zoo.tokenizer().save_pretrained(place / "sibling")
    return place / "base", place / "sibling"


def weights(model):
    return {
        n.replace("._original_component", ""): w.detach() for n, w in model.hf.named_parameters()
    }


def test_both_ends_and_what_lies_beyond(folders):
    base, sibling = (weights(load_model(folder)) for folder in folders)
    at = {t: weights(interpolate(*folders, t)) for t in (0.0, 0.5, 1.0, 1.5)}
    for name, weight in base.items():
        assert torch.equal(at[0.0][name], weight)
        assert torch.equal(at[1.0][name], sibling[name])
        assert torch.allclose(at[0.5][name], (weight + sibling[name]) / 2, atol=1e-6)
        assert torch.allclose(
            at[1.5][name] - at[1.0][name], (sibling[name] - weight) / 2, atol=1e-6
        )
    assert max(float((base[n] - sibling[n]).abs().max()) for n in base) > 0.05


def test_models_that_were_opened_are_opened_anew(folders):
    base = load_model(folders[0])
    before = {n: w.clone() for n, w in weights(base).items()}
    half = interpolate(base, folders[1], 0.5)
    assert half.hf is not base.hf
    assert all(torch.equal(w, before[n]) for n, w in weights(base).items())
    assert "0.5" in half.name


def test_what_is_no_sibling_is_refused(folders, tmp_path):
    from transformers import LlamaConfig

    other = zoo.random_model(LlamaConfig(**{**zoo.SIZES, "intermediate_size": 44}))
    other.save_pretrained(tmp_path)
    zoo.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"is no sibling of base: .* is \(24, 40\) in one and \(24, 44\)"
    ):
        interpolate(folders[0], tmp_path, 0.5)
    with pytest.raises(ValueError, match="t is nan"):
        interpolate(*folders, float("nan"))
    wrapped = load_model(zoo.random_model(zoo.CONFIGS["llama"]()), zoo.tokenizer())
    with pytest.raises(ValueError, match="was loaded by the caller"):
        interpolate(wrapped, folders[1], 0.5)
    with pytest.raises(ValueError, match="a dict came"):
        interpolate({}, folders[1], 0.5)
