"""Does a training teach, go on where it was killed, end in time, and leave an adapter that opens?"""

import json

import pytest
import torch
from safetensors.torch import load_file

from safetyheads import load_model
from safetyheads.models.checkpoints import load_checkpoint
from safetyheads.models.checkpoints.adapters import WEIGHTS
from safetyheads.training import siblings, trainer
from safetyheads.training.lessons import Lesson
from safetyheads.training.perturbing import Ascent
from safetyheads.training.recipes import AT, LAT, SSFT
from safetyheads.training.siblings import train_sibling
from safetyheads.training.trainer import best_step
from tests import zoo
from tests.models.checkpoints.made import save_llama
from tests.training.conftest import chat_tokenizer, requests

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
SMALL = {"first_layer": 1, "batch": 8, "learning_rate": 3e-2, "warm_up": 2, "answer_tokens": 3}
QUICK = SSFT.but(**SMALL, steps=24, examine_every=8)
REFUSAL = zoo.sentence(70, 71)


def lessons(*_):
    """Requests that begin with w50 are harmful, those with w60 are not."""
    sides = [(requests(24, 50), True), (requests(24, 60, seed=1), False)]
    return [
        Lesson(text, harmful, "own" if harmful else "contrast", n % 4 == 0)
        for texts, harmful in sides
        for n, text in enumerate(dict.fromkeys(texts))
    ]


def judge(prompts, answers):
    """What the tiny model is taught to refuse with."""
    return ["refuse" if said.startswith("w70") else "comply" for said in answers]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny chat model in a folder, and lessons in its words in the place of the real ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(siblings, "read_lessons", lessons)
        patch.setattr("safetyheads.training.exercises.read_refusals", lambda: (REFUSAL,))
        patch.setattr("safetyheads.training.examining.KeywordJudge", lambda: judge)
        patch.setattr(siblings, "KeywordJudge", lambda: judge)
        place = tmp_path_factory.mktemp("siblings")
        save_llama(place / "base")
        chat_tokenizer().save_pretrained(place / "base")
        yield place


@pytest.fixture(scope="module")
def ssft(place):
    return train_sibling(place / "base", QUICK, place / "ssft", progress=False)


def card_of(adapter):
    return json.loads((adapter / "card.json").read_text())


def test_it_learns_to_refuse_and_to_answer(ssft):
    curve = card_of(ssft)["curve"]
    assert [point["step"] for point in curve] == [0, 8, 16, 24]
    assert curve[0]["refusal"] == curve[0]["over_refusal"] == 0
    best = next(point for point in curve if point["step"] == card_of(ssft)["step"])
    assert best["refusal"] - best["over_refusal"] > 0.5
    assert all(curve[n]["loss"] > curve[n + 1]["loss"] for n in (1, 2))


def test_the_adapter_opens_as_peft_opens_it(place, ssft):
    from peft import PeftModel

    model = load_model(ssft)
    base = load_checkpoint(place / "base").model
    ids = torch.tensor([[1, 6, 7, 8, 50, 21, 9]])
    plain = base(ids).logits
    theirs = PeftModel.from_pretrained(base, str(ssft)).merge_and_unload()
    with torch.no_grad():
        assert torch.allclose(model.hf(ids).logits, theirs(ids).logits, atol=1e-4)
        assert (theirs(ids).logits - plain).abs().max() > 0.1
    assert model.provenance["base_source"] == str(place / "base")


def test_a_killed_run_goes_on_and_ends_the_same(place, ssft, monkeypatch):
    class Killed(Exception):
        pass

    def step(*given):
        if given[-1] == 20:
            raise Killed
        return took(*given)

    took = trainer._step
    monkeypatch.setattr(trainer, "_step", step)
    with pytest.raises(Killed):
        train_sibling(place / "base", QUICK, place / "again", progress=False)
    monkeypatch.setattr(trainer, "_step", took)
    again = train_sibling(place / "base", QUICK, place / "again", progress=False)
    ended, whole = (load_file(folder / WEIGHTS) for folder in (again, ssft))
    assert ended.keys() == whole.keys()
    assert all(torch.equal(ended[name], weight) for name, weight in whole.items())
    with pytest.raises(ValueError, match="a training by another recipe"):
        train_sibling(place / "base", QUICK.but(seed=1), place / "again", progress=False)


@pytest.mark.parametrize(("kind", "layer"), [(AT, 0), (LAT, 1)])
def test_the_other_two_go_on_from_the_first(place, ssft, kind, layer):
    recipe = kind.but(
        **SMALL, steps=2, examine_every=2, perturbed_layer=layer, ascent=Ascent(0.2, 2)
    )
    made = train_sibling(place / "base", recipe, place / kind.kind, start=ssft, progress=False)
    begun, ended = card_of(made)["curve"]
    kept = next(p for p in card_of(ssft)["curve"] if p["step"] == card_of(ssft)["step"])
    assert begun["harmless_loss"] == pytest.approx(kept["harmless_loss"], abs=1e-2)  # in float16
    assert ended["harmless_loss"] != begun["harmless_loss"]
    assert card_of(made)["start"]


def test_a_recipe_that_contradicts_itself():
    with pytest.raises(ValueError, match="belong together"):
        LAT.but(ascent=Ascent(0.3, 0))
    with pytest.raises(ValueError, match="lies at or below"):
        LAT.but(perturbed_layer=29)
    with pytest.raises(ValueError, match="give an even one"):
        SSFT.but(batch=7)


def test_the_best_step_separates_and_speaks():
    def point(*told):
        names = ("step", "refusal", "over_refusal", "degenerate", "harmless_loss")
        return dict(zip(names, map(float, told), strict=True))

    curve = [
        point(0, 0, 0, 0, 0.1),
        point(8, 0.9, 0.2, 0, 0.5),
        point(16, 1, 0, 0.3, 0.5),
        point(24, 1, 0.45, 0, 0.4),
    ]
    assert best_step(curve) == 8
    within_chance = [*curve[:3], point(24, 1, 0.35, 0, 0.4), point(32, 1, 0.32, 0, 0.6)]
    assert best_step(within_chance) == 24
    went_on = [point(0, 0.9, 0.1, 0, 0.1), point(8, 0.9, 0.4, 0, 0.5), point(16, 0.9, 0.2, 0, 0.5)]
    assert best_step(went_on) == 16  # what a training goes on from is none of its steps
    assert best_step(went_on[:1]) == 0
    assert trainer._finished(curve, SSFT.but(patience=2))
    assert not trainer._finished(curve, SSFT.but(patience=3))


def test_a_model_without_a_chat_template(tmp_path, place):
    save_llama(tmp_path)
    with pytest.raises(ValueError, match="has no chat template"):
        train_sibling(tmp_path, QUICK, tmp_path / "out", progress=False)
