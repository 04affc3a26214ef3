"""Are the adapters that come with the package whole, small, and of the base that they name?"""

import json

import pytest
import torch

from safetyheads import load_model
from safetyheads.models.checkpoints import KNOWN_MODELS, KNOWN_SIBLINGS, load_checkpoint
from safetyheads.models.checkpoints.adapters import WEIGHTS, read_adapter
from safetyheads.models.checkpoints.known import sibling_folder
from safetyheads.models.checkpoints.unpacked import unpacked_copy
from safetyheads.storage.cache import cache_folder

NAMES = list(KNOWN_SIBLINGS)


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_is_whole_and_of_its_base(name):
    adapter, known = read_adapter(sibling_folder(name)), KNOWN_MODELS[KNOWN_SIBLINGS[name]]
    assert adapter.base == KNOWN_SIBLINGS[name]
    assert adapter.base_sha256 == known.sha256
    assert {m.split(".")[2] for m in adapter.pairs} == {str(n) for n in adapter.layers}
    assert len(adapter.pairs) == len(adapter.layers) * len(adapter.targets)
    assert (sibling_folder(name) / WEIGHTS).stat().st_size < 4e6
    assert all(b.abs().max() > 0 for _, b in adapter.pairs.values())


@pytest.mark.parametrize("name", NAMES)
def test_its_card_says_how_it_came_and_what_it_does(name):
    card = json.loads((sibling_folder(name) / "card.json").read_text())
    assert card["step"] in [int(point["step"]) for point in card["curve"]]
    assert card["recipe"]["kind"] == name.rsplit("-", 1)[1]
    assert {"seed", "learning_rate", "first_layer"} <= set(card["recipe"])
    assert len(card["lessons"]["sha256"]) == 64
    rates = card["measured"]["rates"]
    assert set(rates) >= {"jbb_harmful", "jbb_benign"}
    assert all(0 <= rate["refuse"] <= 1 for rate in rates.values())


def test_a_near_name_is_answered_with_theirs():
    with pytest.raises(ValueError, match="smollm2-135m-ssft"):
        load_checkpoint("smollm2-135m-sft")


@pytest.mark.real
def test_the_ssft_sibling_opens_and_is_not_its_base():
    name = "smollm2-135m-ssft"
    if unpacked_copy(KNOWN_MODELS[KNOWN_SIBLINGS[name]].sha256, cache_folder()) is None:
        pytest.skip("the weights of smollm2-135m-instruct are not unpacked on this machine")
    model = load_model(name)
    base = load_checkpoint(KNOWN_SIBLINGS[name]).model
    ids = torch.tensor([[1, 400, 500, 600]])
    with torch.no_grad():
        assert (model.hf(ids).logits - base(ids).logits).abs().max() > 0.1
    assert model.provenance["base_sha256"] == KNOWN_MODELS[KNOWN_SIBLINGS[name]].sha256
