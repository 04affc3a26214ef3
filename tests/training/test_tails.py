"""Is the tail of a model, behind a beginning that is run once, the model?"""

import pytest
import torch

from safetyheads.training.answering import shared_beginning, tokenize_chats
from safetyheads.training.exercises import Exercise, Shelf, batches, losses
from safetyheads.training.perturbing import Ascent, perturb
from safetyheads.training.tails import Tail
from tests import zoo
from tests.training.conftest import requests

ROWS = [Exercise([30, 31, 9], [50, 51, 2], True), Exercise([40, 41, 42, 43, 9], [60, 61], False)]
BEGINNING = [1, 6, 7, 8]


def whole_loss(model, row):
    """The slow obvious version: one whole row, all logits."""
    ids = torch.tensor([[*BEGINNING, *row.request, *row.answer]])
    steps = model(ids[:, :-1]).logits[0, -len(row.answer) :]
    return torch.nn.functional.cross_entropy(steps, torch.tensor(row.answer))


@pytest.mark.parametrize("first", [0, 1, 3])
def test_a_row_s_loss_and_its_gradient_are_those_of_whole_passes(model, first):
    weight = model.model.layers[3].mlp.up_proj.weight
    expected = torch.stack([whole_loss(model, row) for row in ROWS])
    (slope,) = torch.autograd.grad(expected.sum(), weight)
    tail = Tail(model, first, BEGINNING)
    shelf = Shelf(tail, ROWS)
    for _ in range(2):  # computed, then taken from the shelf
        batch = shelf.take([0, 1])
        found = losses(tail, batch, batch.states, tail.context())
        assert torch.allclose(found, expected, atol=1e-5)
        (same,) = torch.autograd.grad(found.sum(), weight)
        assert torch.allclose(same, slope, atol=1e-5)
        assert slope.abs().max() > 1e-3
    assert batch.request.sum(1).tolist() == [3, 5]


def test_the_model_is_left_as_it_was(model):
    ids = torch.tensor([[1, 6, 7, 8, 30]])
    before = model(ids).logits
    tail = Tail(model, 2, BEGINNING)
    tail.leave(tail.enter(ids), tail.context())
    assert torch.equal(model(ids).logits, before)


def test_only_llama_s_kin_has_a_tail():
    gpt = zoo.random_model(zoo.CONFIGS["gpt2"]())
    with pytest.raises(ValueError, match=r"a GPT2LMHeadModel keeps its blocks elsewhere"):
        Tail(gpt, 0, BEGINNING)


def test_perturbed_states_lie_in_the_ball_and_lose_more(model):
    tail = Tail(model, 1, BEGINNING)
    batch = Shelf(tail, ROWS).take([0, 1])
    lent = [(k.detach(), v.detach()) for k, v in tail.context()]

    def loss(states):
        return losses(tail, batch, states, lent)

    def climbed(steps, radius=0.3, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return perturb(batch.states, batch.request, loss, Ascent(radius, steps), generator)

    with torch.no_grad():
        clean = loss(batch.states)
        start = loss(climbed(0))
    far = climbed(4)
    assert torch.equal(far, climbed(4))
    change = far - batch.states
    assert not change[~batch.request].any()
    norms = torch.linalg.vector_norm(change, dim=(1, 2))
    own = torch.linalg.vector_norm(batch.states * batch.request[..., None], dim=(1, 2))
    assert (norms <= 0.3 * own * (1 + 1e-5)).all()
    assert (norms > 0.1 * own).all()
    with torch.no_grad():
        assert (loss(far) > clean + 0.1).all()
        assert (loss(far) > start).all()


def test_a_step_is_half_harmful_and_a_round_asks_each_once():
    rows = [Exercise([n], [n], n < 6) for n in range(10)]
    steps = list(batches(rows, 4, 6, seed=1))
    assert steps == list(batches(rows, 4, 6, seed=1)) != list(batches(rows, 4, 6, seed=2))
    assert all(sum(rows[n].harmful for n in step) == 2 for step in steps)
    asked = [n for step in steps[:3] for n in step if rows[n].harmful]
    assert sorted(asked) == list(range(6))


def test_requests_share_their_beginning(tokenizer):
    rows = tokenize_chats(tokenizer, requests(4, 50))
    assert shared_beginning(rows) == [*BEGINNING, 50]
