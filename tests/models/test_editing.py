"""Heads ablated in flight: in whole passes, in generation with a cache, block by block, row by row."""

import pytest
import torch
from transformers import DynamicCache

from safetyheads.heads import Head
from safetyheads.interventions.ablating import AblateHead, AblateHeads, mean_z
from safetyheads.interventions.ablations import (
    MeanAblation,
    ResampleAblation,
    ScalingContribution,
    UndifferentiatedAttention,
    ZeroAblation,
)
from safetyheads.models.blocks import Blocks
from safetyheads.models.cache_names import cache_argument
from safetyheads.models.editing import editing
from safetyheads.models.opening import load_model
from safetyheads.models.replaying import SharedPrefix
from safetyheads.prompts import tokenize
from tests.oracles import PlainModel, Shrunk, plain
from tests.zoo import CONFIGS, RAGGED, opened, random_model, tokenizer

GROUP = (Head(0, 1), Head(1, 2), Head(1, 5), Head(2, 0))
"""Two heads of one layer, and of different key/value groups where there are groups."""


@pytest.fixture(scope="module", params=list(CONFIGS))
def zoo(request):
    return plain(request.param), opened(request.param)


def ids_of(text):
    return torch.tensor([tokenizer()(text)["input_ids"]])


@torch.inference_mode()
def last(model, ids, **options):
    return model.hf(input_ids=ids, **options).logits[:, -1].log_softmax(-1)


def plainly(plain, ids, ablation):
    """The group ablated by one plain hook or changed weight a head, all at once."""
    hooks, shrunk = [], []
    for layer, head in GROUP:
        if isinstance(ablation, UndifferentiatedAttention):
            change = plain.undifferentiated(layer, head, ablation.epsilon)
            if isinstance(change, Shrunk):
                shrunk += change.rows
            else:
                hooks += change
        else:
            hooks += plain.writing_z(layer, head, lambda z: z * ablation.epsilon)
    change = Shrunk(tuple(shrunk), ablation.epsilon) if shrunk else hooks
    return plain.run(ids[0].tolist(), change)[0]


SCALED_QUERY = UndifferentiatedAttention(0.3)  # needs the values, the mask and the scores


@pytest.mark.parametrize("ablation", [SCALED_QUERY, ScalingContribution(0.3)], ids=repr)
def test_a_group_in_flight_equals_plain_hooked_passes(zoo, ablation):
    plain, model = zoo
    ids = ids_of(RAGGED[0])
    base, expected = last(model, ids)[0], plainly(plain, ids, ablation)
    with AblateHeads(GROUP, ablation).active(model):
        got = last(model, ids, use_cache=False)[0]
    assert (expected - base).abs().max() > 1e-2
    assert (got - expected).abs().max() < 1e-5
    assert torch.equal(last(model, ids)[0], base)


@pytest.mark.parametrize("ablation", [SCALED_QUERY, UndifferentiatedAttention()], ids=repr)
def test_with_a_cache_as_without(zoo, ablation):
    """The prompt in two pieces, then token by token: each step sees the keys that are cached."""
    _, model = zoo
    ids = ids_of(RAGGED[0])
    with AblateHeads(GROUP, ablation).active(model), torch.inference_mode():
        whole = model.logits(ids)[0]
        cache, steps = DynamicCache(config=model.hf.config), []
        for piece in ids.split([4, 3, *[1] * (ids.shape[1] - 7)], dim=1):
            hf = model.hf
            out = hf(input_ids=piece, **{cache_argument(hf): cache})
            steps.append(out.logits[0])
    assert (torch.cat(steps) - whole).abs().max() < 1e-4
    assert (whole - model.logits(ids)[0]).abs().max() > 1e-2


def test_generation_with_left_padding_follows_each_prompt_alone(zoo):
    _, model = zoo
    hf, options = model.hf, {"max_new_tokens": 6, "do_sample": False}
    options |= {"output_logits": True, "return_dict_in_generate": True, "eos_token_id": None}
    padded = tokenizer()(RAGGED, padding=True, padding_side="left", return_tensors="pt")
    inputs = {"input_ids": padded["input_ids"], "attention_mask": padded["attention_mask"]}
    inputs["pad_token_id"] = 0
    with AblateHeads(GROUP, UndifferentiatedAttention()).active(model):
        together = torch.stack(hf.generate(**inputs, **options).logits, 1)
        for n, text in enumerate(RAGGED):
            alone = hf.generate(ids_of(text), use_cache=False, pad_token_id=0, **options)
            assert (together[n] - torch.stack(alone.logits, 1)[0]).abs().max() < 1e-4
    free = torch.stack(hf.generate(**inputs, **options).logits, 1)
    assert (together - free).abs().max() > 1e-2


def test_block_by_block_with_a_shared_prefix(zoo):
    _, model = zoo
    ids = torch.cat([ids_of(RAGGED[0])[:, :8], ids_of(RAGGED[2])[:, :8]])
    prefix_calls, suffix_calls = Blocks(model).record(ids[:1], 5)
    with AblateHeads(GROUP, UndifferentiatedAttention()).active(model), torch.inference_mode():
        expected = model.logits(ids)[:, -1]
        resid = Blocks(model).embed(ids)
        head, tail = resid[:1, :5], resid[:, 5:]
        for layer in range(model.n_layers):
            cache = SharedPrefix()
            head = Blocks(model).run(layer, head, prefix_calls[layer], cache=cache)
            tail = Blocks(model).run(layer, tail, suffix_calls[layer], cache=cache)
        got = model.unembed(model.final_norm(tail[:, -1]))
    assert (got - expected).abs().max() < 1e-4


@pytest.fixture
def model():
    return load_model(random_model(CONFIGS["llama"]()), tokenizer())


def test_rows_of_one_pass_can_have_different_heads_ablated(model):
    ids = ids_of(RAGGED[0])
    variants = [AblateHeads((Head(1, 2),), ZeroAblation()), AblateHeads(GROUP, ZeroAblation())]
    edits = [e for n, v in enumerate(variants) for e in v.edits(model, part=(n + 1, 3))]
    with editing(model, edits):
        rows = last(model, ids.expand(6, -1))
    assert torch.allclose(rows[:2], last(model, ids), atol=1e-5)
    for n, variant in enumerate(variants):
        with variant.active(model):
            alone = last(model, ids)
        assert torch.allclose(rows[2 * n + 2 : 2 * n + 4], alone, atol=1e-5)
    assert (rows[2] - rows[4]).abs().max() > 1e-2


def test_mean_ablation_in_flight_writes_the_mean_over_the_real_tokens(model):
    batch = tokenize(RAGGED, tokenizer())
    mean = mean_z(model, batch)
    plain = PlainModel(random_model(CONFIGS["llama"]()))
    all_z = torch.cat([plain.z(ids_of(text)[0].tolist(), 2) for text in RAGGED])
    assert torch.allclose(mean[2], all_z.mean(0), atol=1e-6)
    ids = ids_of(RAGGED[1])
    with AblateHeads((Head(2, 3),), MeanAblation(), mean=mean).active(model):
        got = last(model, ids)[0]
    hooks = plain.writing_z(2, 3, lambda _: all_z.mean(0)[3])
    assert (got - plain.run(ids[0].tolist(), hooks)[0]).abs().max() < 1e-5


def test_one_head_is_a_group_of_one(model):
    ids, head = ids_of(RAGGED[0]), Head(1, 2)
    with AblateHead(head, ZeroAblation()).active(model):
        alone = last(model, ids)
    with AblateHeads((head,), ZeroAblation()).active(model):
        assert torch.equal(last(model, ids), alone)
    assert (alone - last(model, ids)).abs().max() > 1e-3


def test_nothing_is_left_behind_after_an_error(model):
    ids = ids_of(RAGGED[0])
    before = last(model, ids)
    attentions = [model.bridge.blocks[layer].attn for layer in (0, 1, 2)]
    hooks = [(dict(a._forward_hooks), dict(a._forward_pre_hooks)) for a in attentions]

    class Broken:
        name, needs = "broken", frozenset[str]()

        def __call__(self, acts):
            raise RuntimeError("no")

    with pytest.raises(RuntimeError), AblateHeads(GROUP, Broken()).active(model):
        last(model, ids)
    with (
        pytest.raises(ValueError),
        AblateHeads((Head(0, 0), Head(9, 0)), ZeroAblation()).active(model),
    ):
        pass
    assert torch.equal(last(model, ids), before)
    assert [(dict(a._forward_hooks), dict(a._forward_pre_hooks)) for a in attentions] == hooks


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AblateHeads((), ZeroAblation()), "heads are none; name at least one"),
        (lambda: AblateHeads((Head(0, 1), Head(0, 1)), ZeroAblation()), "L0H1, L0H1.*only once"),
        (lambda: AblateHeads((Head(7, 1),), ZeroAblation()), "L7H1 is not in .*layers 0-3"),
        (lambda: AblateHead(Head(0, 6), ZeroAblation()), "L0H6 is not in .*heads 0-5"),
        (lambda: AblateHeads(GROUP, MeanAblation()), r"mean=mean_z\(model, batch\)"),
        (lambda: AblateHead(Head(0, 1), ResampleAblation()), "none to borrow from"),
    ],
)
def test_what_cannot_be_ablated_in_flight_is_refused(model, make, message):
    with pytest.raises(ValueError, match=message), make().active(model):
        pass


def test_a_groups_first_layer_is_its_lowest():
    assert AblateHeads((Head(2, 0), Head(1, 2)), ZeroAblation()).first_layer == 1
