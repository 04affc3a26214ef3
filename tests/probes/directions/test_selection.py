"""Does selection find the direction that plain hooked passes find, and does it say why the others fell?"""

import pytest
import torch

from safetyheads.engine.execution import Execution
from safetyheads.interventions.directions import AblateDirection
from safetyheads.probes.directions.direction import Direction, refusal_direction
from safetyheads.probes.directions.nulls import null_directions, other_concepts
from safetyheads.probes.directions.selection import Filters, Outcome, select_direction
from safetyheads.probes.directions.sides import read_sides
from safetyheads.prompts import PromptSet
from tests.zoo import opened, sentence, tokenizer

QUIET = Execution(progress=False)
LONG = tuple(sentence(*range(10 + n, 14 + n % 3 + n), 40, 41) for n in range(7))
SHORT = tuple(sentence(50 + n, 60, 61 + n % 2, 40, 41) for n in range(7))
TRAIN = PromptSet("train", LONG[:4], SHORT[:4], paired=True)
VALIDATION = PromptSet("validation", LONG[4:], SHORT[4:])
ANY = {"only_expected": False, "execution": QUIET}


@pytest.fixture(scope="module")
def model():
    return opened("llama", spread=0.5)


@pytest.fixture(scope="module")
def selection(model):
    return select_direction(model, TRAIN, VALIDATION, positions=[-1, -2], **ANY)


@torch.inference_mode()
def odds(model, text, *interventions):
    """Refusal log-odds and log-probabilities of one prompt, from one plain pass."""
    ids = torch.tensor([tokenizer()(text)["input_ids"]])
    for one in interventions:
        with one.active(model):
            log_probs = model.logits(ids)[0, -1].double().log_softmax(-1)
    if not interventions:
        log_probs = model.logits(ids)[0, -1].double().log_softmax(-1)
    p = log_probs.exp()[[3, 4, 5]].sum()  # I, As, Sorry
    return (p / (1 - p)).log(), log_probs


def test_every_candidate_does_what_plain_hooked_passes_do(model, selection):
    assert (selection.layers, selection.positions) == ((1, 2, 3), (-2, -1))
    sides = read_sides(model, TRAIN, positions=[-2, -1], progress=False)
    assert torch.allclose(selection.vectors.double(), sides.mean_differences(), atol=1e-5)
    for p, position in enumerate((-2, -1)):
        for n, layer in enumerate((1, 2, 3)):
            found = selection.candidate(layer, position)
            assert torch.equal(found.vector, selection.vectors[p, n])
            without, added = found.ablated(), found.added()
            for k, (harmful, harmless) in enumerate(zip(LONG[4:], SHORT[4:], strict=True)):
                clean, before = odds(model, harmless)
                assert selection.baseline[1][k] == pytest.approx(clean.item(), abs=1e-4)
                assert selection.bypass[p, n, k] == pytest.approx(
                    odds(model, harmful, without)[0].item(), abs=1e-4
                )
                assert selection.induce[p, n, k] == pytest.approx(
                    odds(model, harmless, added)[0].item(), abs=1e-4
                )
                after = odds(model, harmless, without)[1]
                kl = (before.exp() * (before - after)).sum().item()
                assert selection.kl[p, n, k] == pytest.approx(kl, abs=1e-4)
    assert selection.bypass.std() > 0.1
    assert selection.kl.min() > 1e-3


def test_the_lowest_bypass_that_passes_is_taken_and_every_other_says_why(selection):
    from dataclasses import replace

    loose = replace(selection, filters=Filters(kl=100.0, induce=-100.0))
    table = loose.to_frame()
    assert table["felled_by"].value_counts().to_dict() == {"": 4, "layer": 2}  # int(0.8 * 4) = 3
    assert table[table.felled_by == "layer"]["beyond_layer"].tolist() == [1, 1]
    best = loose.direction
    early = loose.bypass[:, :2].mean(-1)
    p, n = divmod(int(early.argmin()), 2)
    assert (best.position, best.layer) == ((-2, -1)[p], (1, 2)[n])
    assert table["chosen"].tolist() == [True, *[False] * 5]
    kl, induce = loose.kl.mean(-1), loose.induce.mean(-1)
    tight = replace(selection, filters=Filters(1.0, kl.median().item(), induce.median().item()))
    table = tight.to_frame().set_index(["position", "layer"])
    for p, position in enumerate((-2, -1)):
        for n, layer in enumerate((1, 2, 3)):
            row = table.loc[(position, layer)]
            over = max(0.0, (kl[p, n] - tight.filters.kl).item())
            under = max(0.0, (tight.filters.induce - induce[p, n]).item())
            assert row.beyond_kl == pytest.approx(over, abs=1e-5)
            assert row.below_induce == pytest.approx(under, abs=1e-5)
            names = [name for name, miss in (("kl", over), ("induce", under)) if miss]
            assert row.felled_by == ", ".join(names)
    nothing = replace(selection, filters=Filters(kl=0.0, induce=100.0))
    with pytest.raises(ValueError, match=r"none of 6 candidates passes .* by kl, induce"):
        _ = nothing.direction
    broken = replace(loose, bypass=torch.full_like(loose.bypass, torch.nan))
    assert set(broken.to_frame()["felled_by"]) == {"no number"}


def test_only_prompts_that_do_as_expected_count(model):
    before = {text: odds(model, text)[0].item() for text in (*LONG, *SHORT)}
    # A made-up refusal token that the model gives more than half to one of the prompts.
    token = int(odds(model, LONG[0])[1].argmax())
    with pytest.raises(ValueError, match=r"the model (refuses none|would refuse all) of the \d"):
        select_direction(model, TRAIN, VALIDATION, execution=QUIET)
    assert max(before.values()) < 0  # by its own refusal tokens it refuses nothing
    chosen = Outcome(tokens=tuple(range(3, 97)))
    with pytest.raises(ValueError, match=r"would refuse all of the \d harmless prompts"):
        select_direction(model, TRAIN, VALIDATION, outcome=chosen, execution=QUIET)
    assert Outcome(tokens=(token,)).prepare(tokenizer(), ["a"]).tokens == (token,)


def test_a_direction_is_the_mean_difference_or_a_component(model, tmp_path):
    found = refusal_direction(model, TRAIN, 2, progress=False)
    first, second = read_sides(model, TRAIN, layers=2, progress=False).at(-1, 2)
    assert torch.allclose(found.vector, first.mean(0) - second.mean(0), atol=1e-5)
    part = refusal_direction(model, TRAIN, 2, component=2, progress=False)
    _, _, v = torch.linalg.svd((first - second).double())
    assert abs(part.unit @ v[1]) == pytest.approx(1.0, abs=1e-6)
    assert part.length == pytest.approx(found.length, rel=1e-5)
    assert (found.source, part.source) == ("mean difference", "component 2")
    again = Direction.load(found.save(tmp_path))
    assert torch.equal(again.vector, found.vector)
    assert isinstance(again.ablated(), AblateDirection)
    assert torch.equal(again.added(-2.0).vector, -2 * found.vector)
    assert again.added().layer == 2


def test_nulls_stand_at_the_same_place_and_are_as_long(model):
    chosen = refusal_direction(model, TRAIN, 2, progress=False)
    concepts = {"made up": VALIDATION}
    made = null_directions(model, TRAIN, chosen, count=2, concepts=concepts, progress=False)
    kinds = [f"{kind} {n}" for kind in ("relabelled", "covariance", "isotropic") for n in (1, 2)]
    assert list(made) == ["concept: made up", *kinds]
    assert all(one.length == pytest.approx(chosen.length, rel=1e-5) for one in made.values())
    assert {(one.layer, one.position) for one in made.values()} == {(2, -1)}
    first, second = read_sides(model, VALIDATION, layers=2, progress=False).at(-1, 2)
    concept = torch.nn.functional.normalize((first.mean(0) - second.mean(0)).double(), dim=0)
    assert made["concept: made up"].unit @ concept == pytest.approx(1.0, abs=1e-5)
    # What is drawn from the states lies in what they span about their means; what is isotropic does not.
    states = [
        side - side.mean(0) for side in read_sides(model, TRAIN, layers=2, progress=False).at(-1, 2)
    ]
    within = torch.linalg.qr(torch.cat(states).double().mT)[0]
    assert (within.mT @ made["covariance 1"].unit).norm() == pytest.approx(1.0, abs=1e-4)
    assert (within.mT @ made["isotropic 1"].unit).norm() < 0.9
    again = null_directions(model, TRAIN, chosen, count=2, concepts=concepts, progress=False)
    assert all(torch.equal(again[name].vector, one.vector) for name, one in made.items())
    assert len(other_concepts()) == 6
    texts = [t for some in other_concepts().values() for t in (*some.harmful, *some.harmless)]
    assert len(set(texts)) == len(texts) == 144


def test_what_cannot_be_selected_is_refused(model):
    with pytest.raises(ValueError, match="share 1 prompts"):
        select_direction(model, TRAIN, PromptSet("x", LONG[3:], SHORT[4:]), **ANY)
    with pytest.raises(ValueError, match="same on average"):
        refusal_direction(model, PromptSet("x", LONG, LONG), 2, progress=False)
    with pytest.raises(ValueError, match=r"same on average .* a zero vector is no candidate"):
        select_direction(model, TRAIN, VALIDATION, layers=[0, 1], **ANY)
    with pytest.raises(ValueError, match="component is 4, and there are 4 pairs"):
        refusal_direction(model, TRAIN, 2, component=4, progress=False)
    with pytest.raises(ValueError, match="zero"):
        Direction(torch.zeros(24), 1, -1, "made up", "m")
    with pytest.raises(ValueError, match="last_layer is 0"):
        Filters(last_layer=0.0)
    short = Direction(torch.ones(23), 1, -1, "made up", "another model")
    with pytest.raises(ValueError, match=r"the direction has 23 numbers, .* has 24"):
        null_directions(model, TRAIN, short, kinds=["isotropic"])
    with pytest.raises(ValueError, match=r"kinds are .* give some of concept, relabelled"):
        null_directions(model, TRAIN, short, kinds=["random"])
