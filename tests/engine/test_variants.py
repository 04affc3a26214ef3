"""Directions and walks run through the sweep of heads: do they agree with one plain hooked forward pass each?"""

import functools
from dataclasses import replace

import pytest
import torch

from safetyheads.engine.execution import Execution
from safetyheads.engine.kernels import Padded, Whole
from safetyheads.engine.measurement import measure
from safetyheads.engine.run import run
from safetyheads.engine.sweep import sweep
from safetyheads.heads import Head
from safetyheads.inputs import prepare
from safetyheads.interventions.ablating import AblateHead, AblateHeads
from safetyheads.interventions.ablations import MeanAblation, ZeroAblation
from safetyheads.interventions.directions import AblateDirection, AddDirection
from safetyheads.interventions.paths import Path, StraightLine
from safetyheads.interventions.site import AllAtOnce, Variant
from safetyheads.metrics import Ships
from safetyheads.models.opening import load_model
from safetyheads.storage.store import Store
from tests.zoo import CONFIGS, RAGGED, opened, random_model, tokenizer

PROMPTS = [torch.tensor([tokenizer()(text)["input_ids"]]) for text in RAGGED]
QUIET = Execution(progress=False)
POST_NORM = ("gemma2-softcap-window", "gemma3-two-ropes")


class Plain:
    """A model of transformers and nothing else, whose modules are hooked by hand."""

    def __init__(self, hf):
        self.hf = hf
        inner = next(getattr(hf, n) for n in ("model", "transformer", "gpt_neox") if hasattr(hf, n))
        self.blocks = getattr(inner, "layers", None) or inner.h
        name = next(n for n in ("self_attn", "attn", "attention") if hasattr(self.blocks[0], n))
        self.attentions = [getattr(block, name) for block in self.blocks]

    @torch.no_grad()
    def log_probs(self, ids, hooks=()):
        handles = [place(hook) for place, hook in hooks]
        try:
            return self.hf(input_ids=ids, use_cache=False).logits[0, -1].double().log_softmax(-1)
        finally:
            for handle in handles:
                handle.remove()

    def entering(self, layer, change):
        """A hook on what enters a block."""

        def hook(_module, args, kwargs):
            if args:
                return (change(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

        place = functools.partial(self.blocks[layer].register_forward_pre_hook, with_kwargs=True)
        return place, hook

    def leaving(self, module, change):
        """A hook on what a module gives."""

        def hook(_module, _args, out):
            return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

        return module.register_forward_hook, hook

    def without(self, direction, first=0, mlp="mlp"):
        """Arditi's hooks: out of what enters a block, what attention gives and what the MLP (or the block) gives."""
        unit = direction / direction.norm()
        change = lambda x: x - (x @ unit)[..., None] * unit  # noqa: E731
        hooks = []
        for layer in range(first, len(self.blocks)):
            writer = getattr(self.blocks[layer], mlp) if mlp else self.blocks[layer]
            hooks += [
                self.entering(layer, change),
                self.leaving(self.attentions[layer], change),
                self.leaving(writer, change),
            ]
        return hooks

    def state(self, ids, layer):
        """What enters a block at the last token."""
        kept = []
        self.log_probs(ids, [self.entering(layer, lambda x: kept.append(x[0, -1].clone()) or x)])
        return kept[0]

    def at_last(self, layer, point):
        def change(x):
            x = x.clone()
            x[0, -1] = point
            return x

        return [self.entering(layer, change)]


@pytest.fixture(scope="module", params=list(CONFIGS))
def zoo(request):
    return request.param, Plain(random_model(CONFIGS[request.param]())), opened(request.param)


@pytest.fixture(scope="module")
def llama():
    return Plain(random_model(CONFIGS["llama"]())), opened("llama")


def vectors(model, count=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, model.d_model, generator=generator)


def ships_of(model):
    return measure(prepare(model, RAGGED), metric=Ships())


def plain_kl(plain, hooks_of):
    """KL of each prompt, from one plain pass with its hooks."""
    found = []
    for n, ids in enumerate(PROMPTS):
        base, changed = plain.log_probs(ids), plain.log_probs(ids, hooks_of(n))
        found.append((base.exp() * (base - changed)).sum())
    return torch.stack(found)


def assert_close(got, expected):
    assert expected.max() > 1e-3, "the comparison would be vacuous"
    assert (got - expected).abs().max() <= 2e-6 * max(1.0, expected.max().item())


def test_directions_agree_with_plain_passes_on_every_architecture(zoo):
    name, plain, model = zoo
    one, other, added = vectors(model)
    variants = [
        AblateDirection(one),
        AblateDirection(5 * other, first_layer=2),
        AddDirection(added, layer=1),
    ]
    assert all(isinstance(variant, Variant) for variant in variants)
    swept = sweep(ships_of(model), variants)
    assert swept.exact_resume
    # Behind a norm of its own, what an MLP gives is projected where it leaves the block.
    mlp = None if name in POST_NORM else "mlp"
    expected = [
        plain_kl(plain, lambda _: plain.without(one, 0, mlp)),
        plain_kl(plain, lambda _: plain.without(other, 2, mlp)),
        plain_kl(plain, lambda _: [plain.entering(1, lambda x: x + added)]),
    ]
    assert_close(swept.readings, torch.stack(expected))


def line(plain, layer=1):
    """From each prompt's own activation to the next prompt's."""
    states = torch.stack([plain.state(ids, layer) for ids in PROMPTS])
    return StraightLine(layer, states, states.roll(-1, 0))


def test_a_walk_of_eight_steps_agrees_with_plain_passes_on_every_architecture(zoo):
    _, plain, model = zoo
    path = line(plain)
    assert isinstance(path, Path)
    steps = path.steps(8)
    swept = sweep(ships_of(model), steps)
    assert swept.exact_resume
    expected = [plain_kl(plain, lambda n, s=s: plain.at_last(1, s.points[n])) for s in steps]
    assert_close(swept.readings, torch.stack(expected))
    assert swept.readings[0].abs().max() < 1e-6  # where the walk begins nothing is changed
    assert swept.readings[-1].min() > 1e-4


def test_several_at_once_are_what_their_plain_hooks_do_together(zoo):
    name, plain, model = zoo
    one, added, _ = vectors(model)
    path = line(plain)
    both = [
        AllAtOnce((AblateDirection(one), AddDirection(added, 1))),
        AllAtOnce((path.steps(3)[1], AblateDirection(one, 2))),
    ]
    swept = sweep(ships_of(model), both)
    assert swept.exact_resume
    mlp = None if name in POST_NORM else "mlp"
    middle = path.steps(3)[1].points
    expected = [
        plain_kl(
            plain,
            lambda _: [
                *plain.without(one, 0, mlp),
                plain.entering(1, lambda x: x + added),
            ],
        ),
        plain_kl(plain, lambda n: [*plain.at_last(1, middle[n]), *plain.without(one, 2, mlp)]),
    ]
    assert_close(swept.readings, torch.stack(expected))


@pytest.mark.parametrize("rows", [1, None])
def test_heads_and_a_direction_at_once_agree_with_whole_passes(llama, rows):
    """In flight, heads and directions are tested alone against plain hooks."""
    _, model = llama
    one, _, added = vectors(model)
    zero = ZeroAblation()
    variants = [
        AllAtOnce((AblateDirection(one), AblateHead(Head(2, 3), zero))),
        AllAtOnce((AblateHead(Head(1, 0), zero), AblateHeads((Head(1, 2), Head(2, 3)), zero))),
        AllAtOnce((AblateHead(Head(1, 0), MeanAblation()), AddDirection(added, 1))),
        AblateHeads((Head(1, 0), Head(1, 2), Head(2, 3)), zero),
    ]
    measurement = ships_of(model)
    swept = sweep(measurement, variants, rows=rows)
    assert swept.exact_resume
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("safetyheads.engine.sweep.fastest", lambda *_: Whole())
        whole = sweep(measurement, variants, rows=rows)
    assert not whole.exact_resume
    assert_close(swept.readings, whole.readings.double())
    assert_close(swept.readings[1], swept.readings[3].double())


def test_what_is_given_is_ablated_under_a_direction_too(llama):
    _, model = llama
    (one, *_), zero = vectors(model), ZeroAblation()
    given = AblateHeads((Head(0, 1), Head(2, 3)), zero)
    measurement = replace(ships_of(model), given=given)
    for first in (0, 2):
        together = AllAtOnce((AblateDirection(one, first), given))
        swept = sweep(measurement, [AblateDirection(one, first)])
        assert swept.exact_resume
        assert_close(swept.readings, sweep(ships_of(model), [together]).readings.double())


def test_what_sweeps_in_one_order_sweeps_in_another_and_beside_heads(llama):
    plain, model = llama
    variants = [
        *line(plain, 2).steps(2),
        AblateDirection(vectors(model)[0]),
        AblateHead(Head(2, 5), ZeroAblation()),
    ]
    measurement = ships_of(model)
    forth, back = sweep(measurement, variants), sweep(measurement, variants[::-1])
    assert (forth.readings - back.readings.flip(0)).abs().max() < 2e-6
    for variant, reading in zip(variants, forth.readings, strict=True):
        assert (sweep(measurement, [variant]).readings[0] - reading).abs().max() < 2e-6


@pytest.mark.parametrize("kernel", [Padded("sdpa"), Padded("eager"), Padded("hooked"), Whole()])
def test_every_kernel_gives_the_same(llama, monkeypatch, kernel):
    plain, model = llama
    variants = [*map(AblateDirection, vectors(model)), *line(plain).steps(3)]
    expected = sweep(ships_of(model), variants).readings
    monkeypatch.setattr("safetyheads.engine.sweep.fastest", lambda *_: kernel)
    assert_close(sweep(ships_of(model), variants).readings, expected.double())


def test_a_store_an_executor_and_going_on_come_for_nothing(tmp_path):
    folder = tmp_path / "model"
    random_model(CONFIGS["llama"]()).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    measurement = ships_of(load_model(folder))
    directions = [AblateDirection(v, n) for n, v in enumerate(vectors(measurement.inputs.model))]
    points = torch.randn(3, 24, generator=torch.Generator().manual_seed(2))
    variants = [*directions, *StraightLine(1, points, -points).steps(8)]
    here = run(measurement, variants, QUIET)
    seen = []

    def apart(function, items):
        items = list(items)
        seen.extend(v for shard in items for v in shard.variants)
        return map(function, items)

    stored = replace(QUIET, store=tmp_path / "store", executor=apart)
    assert torch.equal(run(measurement, variants, stored).readings, here.readings)
    assert len(seen) == len(variants)
    (kept,) = (tmp_path / "store").iterdir()
    del Store.reading(kept)["layer001"]
    seen.clear()
    assert torch.equal(run(measurement, variants, stored).readings, here.readings)
    assert {v.first_layer for v in seen} == {1}
    # Another direction of the same shape has a store of its own.
    others = [AblateDirection(-2 * d.direction + 1, d.first_layer) for d in directions]
    again = run(measurement, [*others, *variants[3:]], replace(stored, executor=None))
    assert len(list((tmp_path / "store").iterdir())) == 2
    assert not torch.equal(again.readings[:3], here.readings[:3])


@pytest.mark.parametrize("where", [AblateDirection, lambda v: AddDirection(v, 0)])
@pytest.mark.parametrize(
    "vector", [torch.ones(2, 24), torch.tensor([1.0, torch.nan]), torch.tensor([torch.inf, 0.0])]
)
def test_what_is_no_direction_is_refused(where, vector):
    from jaxtyping import TypeCheckError

    with pytest.raises((ValueError, TypeCheckError)):
        where(vector)


def test_a_variant_that_does_not_fit_the_model_is_refused(llama):
    _, model = llama
    measurement = ships_of(model)
    with pytest.raises(ValueError, match="points nowhere"):
        AblateDirection(torch.zeros(24))
    with pytest.raises(ValueError, match=r"the direction has 23 numbers, .* has 24"):
        sweep(measurement, [AblateDirection(torch.ones(23))])
    with pytest.raises(ValueError, match=r"from layer 4 on: .* has layers 0-3"):
        sweep(measurement, [AblateDirection(torch.ones(24), 4)])
    with pytest.raises(ValueError, match=r"shape \[2, 24\]; .*a point for each prompt"):
        sweep(measurement, StraightLine(1, torch.ones(2, 24), torch.zeros(2, 24)).steps(2))
    with pytest.raises(ValueError, match="count is 1; a line has two ends"):
        StraightLine(1, torch.ones(2, 24), torch.zeros(2, 24)).steps(1)
    with pytest.raises(ValueError, match="each head only once"):
        AllAtOnce((AblateHead(Head(1, 1), ZeroAblation()), AblateHead(Head(1, 1), ZeroAblation())))


def test_a_direction_stays_ablated_in_flight_and_leaves_no_trace(llama):
    plain, model = llama
    one = vectors(model)[0]
    before = model.logits(PROMPTS[0])
    with torch.inference_mode(), AblateDirection(one).active(model):
        inside = model.logits(PROMPTS[0])[0, -1].double().log_softmax(-1)
    expected = plain.log_probs(PROMPTS[0], plain.without(one))
    assert (inside - expected).abs().max() < 1e-5
    assert (plain.log_probs(PROMPTS[0]) - expected).abs().max() > 1e-2
    assert torch.equal(model.logits(PROMPTS[0]), before)


def test_a_step_that_gives_no_number_is_named(llama):
    _, model = llama
    nowhere = torch.full((3, 24), torch.nan)
    (step, _) = StraightLine(1, nowhere, nowhere).steps(2)
    with pytest.raises(ValueError, match=r"a step of 0 at layer 1 of .* gives NaN logits"):
        sweep(ships_of(model), [step, AblateHead(Head(0, 0), ZeroAblation())])
