"""Do walks run side by side agree with one plain hooked forward pass a step, and do they know when they cannot?"""

import copy
import functools

import pytest
import torch

from safetyheads.engine.walk import prepare_walk
from safetyheads.heads import Head
from safetyheads.inputs import prepare
from safetyheads.interventions.ablating import AblateHeads
from safetyheads.interventions.ablations import UndifferentiatedAttention, ZeroAblation
from safetyheads.interventions.directions import AblateDirection
from safetyheads.interventions.paths import Arc, FixedSteps, Step, StraightLine
from safetyheads.interventions.targets import (
    AlongDirection,
    NextPrompt,
    RandomDirection,
    TowardPrompts,
)
from safetyheads.models.opening import load_model
from safetyheads.probes.walks.readings import NextToken, Residual
from safetyheads.probes.walks.sensitivity import states_at, trace_sensitivity
from tests.engine.test_variants import Plain
from tests.zoo import CONFIGS, RAGGED, random_model, sentence, tokenizer

PROMPTS = [torch.tensor([tokenizer()(text)["input_ids"]]) for text in RAGGED]
quiet = functools.partial(trace_sensitivity, progress=False)


@pytest.fixture(scope="module", params=list(CONFIGS))
def zoo(request):
    hf = random_model(CONFIGS[request.param]())
    return Plain(copy.deepcopy(hf)), load_model(hf, tokenizer())


@pytest.fixture(scope="module")
def llama():
    hf = random_model(CONFIGS["llama"]())
    return Plain(copy.deepcopy(hf)), load_model(hf, tokenizer())


def plain_states(plain, layer, points, read):
    """What leaves a block, one prompt and step at a time, by plain hooks: [prompt, step, d_model]."""
    found = []
    for ids, own in zip(PROMPTS, points, strict=True):
        for point in own:
            kept = []
            see = plain.leaving(plain.blocks[read], lambda x, k=kept: k.append(x[0, -1]) or x)
            plain.log_probs(ids, [*plain.at_last(layer, point), see])
            found.append(kept[0])
    return torch.stack(found).view(*points.shape[:2], -1)


def test_walks_agree_with_plain_passes_on_every_architecture(zoo):
    plain, model = zoo
    states = torch.stack([plain.state(ids, 1) for ids in PROMPTS])
    steps = StraightLine(1, states, states.roll(-1, 0)).steps(5)
    expected = plain_states(plain, 1, torch.stack([s.points for s in steps], 1), 2)
    walk = prepare_walk(model, prepare(model, RAGGED).batch, steps, 2)
    assert walk.kernel is not None
    found = {p: s for prompts, states in walk.run() for p, s in zip(prompts, states, strict=True)}
    got = torch.stack([found[prompt] for prompt in range(3)])
    assert (expected[:, 0] - expected[:, -1]).abs().max() > 0.1
    assert (got - expected).abs().max() < 2e-5 * expected.abs().max()
    assert walk.deviation < 1e-5


@pytest.mark.parametrize(("layer", "read"), [(0, "pre_norm"), (2, 3), (3, "pre_norm")])
def test_any_layer_is_written(llama, layer, read):
    plain, model = llama
    states = torch.stack([plain.state(ids, layer) for ids in PROMPTS])
    torch.testing.assert_close(states_at(model, prepare(model, RAGGED).batch, layer), states)
    path = Arc(layer, states, states.roll(1, 0))
    points = torch.stack([step.points for step in path.steps(4)], 1)
    expected = plain_states(plain, layer, points, 3)
    traced = quiet(model, RAGGED, path, steps=4, read=read)
    for found, end in ((traced.from_start, 0), (traced.to_end, -1)):
        distances = (expected - expected[:, [end]]).norm(dim=-1)
        torch.testing.assert_close(found, distances, rtol=1e-4, atol=1e-4)
    assert traced.checks.keys() == {"steps", "mirror", "start"}
    assert max(traced.checks.values()) < 1e-5, traced.checks


def test_the_final_norm_and_the_next_token_are_read(llama):
    plain, model = llama
    path = StraightLine(1, *(torch.randn(2, 3, 24, generator=torch.Generator().manual_seed(0))))
    steps = path.steps(4)
    normed = quiet(model, RAGGED, path, steps=4)
    tokens = quiet(model, RAGGED, path, steps=4, read=NextToken())
    for n, ids in enumerate(PROMPTS):
        states, log_probs = [], []
        for step in steps:
            handle = plain.hf.model.norm.register_forward_hook(
                lambda _m, _i, out, s=states: s.append(out[0, -1])
            )
            log_probs.append(plain.log_probs(ids, plain.at_last(1, step.points[n])))
            handle.remove()
        distance = torch.stack([(s - states[0]).norm() for s in states])
        torch.testing.assert_close(normed.from_start[n], distance, rtol=1e-4, atol=1e-4)
        kl = torch.stack([(log_probs[-1].exp() * (log_probs[-1] - p)).sum() for p in log_probs])
        torch.testing.assert_close(tokens.to_end[n].double(), kl, rtol=1e-4, atol=1e-6)
    assert tokens.unit == "nat"
    assert "start" not in normed.checks  # these walks begin elsewhere


@pytest.mark.parametrize(
    "given",
    [
        AblateHeads((Head(1, 3), Head(2, 0)), ZeroAblation()),
        AblateHeads((Head(2, 2),), UndifferentiatedAttention()),
        AblateDirection(torch.ones(24), 1),
    ],
)
def test_what_is_given_holds_at_every_step(llama, given):
    _, model = llama
    steps = quiet(model, RAGGED, steps=4, given=given)
    assert steps.checks["steps"] < 1e-5  # against whole passes with the same hooks
    assert steps.checks["start"] < 1e-5
    untouched = quiet(model, RAGGED, steps=4)
    assert (steps.from_start - untouched.from_start).abs().max() > 1e-2


def test_the_end_is_the_other_prompts_own_run_where_only_the_last_token_differs(llama):
    _, model = llama
    pair = [sentence(10, 11, 12, 20), sentence(10, 11, 12, 30)]
    forth = quiet(model, pair, read="pre_norm", steps=6)
    batch = prepare(model, pair).batch
    own = states_at(model, batch, 3)
    # Two walks, there and back: swapped prompts mirror the curve, and each ends at the other's own output.
    assert (forth.relative[0] + forth.relative[1].flip(0) - 1).abs().max() < 1e-5
    through = prepare_walk(model, batch, NextPromptLine(model, batch).steps(6), 2)
    ends = next(iter(through.run())).states[:, -1]
    torch.testing.assert_close(ends, own.roll(1, 0), rtol=1e-4, atol=1e-4)


class NextPromptLine(StraightLine):
    def __init__(self, model, batch):
        states = states_at(model, batch, 1)
        super().__init__(1, states, states.roll(-1, 0))


def test_targets_say_where_walks_end(llama):
    _, model = llama
    states = states_at(model, prepare(model, RAGGED).batch, 1)
    others = [sentence(20, 21), sentence(22), sentence(23, 24, 25)]
    matched = quiet(model, RAGGED, TowardPrompts(others), steps=3)
    whole = states_at(model, prepare(model, others).batch, 1) - states
    torch.testing.assert_close(matched.along[:, -1], whole.norm(dim=-1))
    ends = RandomDirection(3).ends(states, lambda _: states)
    assert torch.equal(ends, RandomDirection(3).ends(states, lambda _: states))
    spanned = torch.linalg.lstsq(states.mT, ends.mT).solution.sum(0)
    torch.testing.assert_close(spanned, torch.ones(3), rtol=1e-3, atol=1e-3)
    direction = torch.arange(24.0)
    along = quiet(model, RAGGED, AlongDirection(direction, 2.0, "counting"), steps=3)
    torch.testing.assert_close(along.along[:, 1], torch.ones(3))
    assert along.target == "counting"
    sized = quiet(
        model, RAGGED, way=functools.partial(FixedSteps, size=0.25), steps=5, read=Residual(2)
    )
    torch.testing.assert_close(sized.along[:, -1], torch.ones(3))
    assert (sized.way, sized.read) == ("FixedSteps", "layer 2")


def test_invalid_curves_are_counted_and_shown(llama):
    _, model = llama
    same = [RAGGED[0], RAGGED[0], RAGGED[1]]
    traced = quiet(model, same, steps=4)
    assert traced.why_invalid == ("ends alike", "", "")
    table = traced.measures()
    assert table["why_invalid"].tolist() == ["ends alike", "", ""]
    assert table["sharpness"].isna().tolist() == [True, False, False]
    assert "1 invalid" in repr(traced)
    assert traced.curve()["invalid"].tolist() == [1] * 4
    assert traced.quartiles("width").valid == 2
    # Walks that go nowhere are no longer told by what others come to, and rounding is no curve.
    assert quiet(model, RAGGED, TowardPrompts(RAGGED), steps=4).invalid.all()
    states = states_at(model, prepare(model, RAGGED).batch, 1).clone()
    states[1] = torch.nan
    broken = quiet(model, RAGGED, StraightLine(1, states, states.roll(-1, 0)), steps=4)
    assert broken.why_invalid == ("not finite", "not finite", "")


def test_what_cannot_be_walked_is_refused(llama):
    _, model = llama
    states = torch.ones(3, 24)
    with pytest.raises(ValueError, match="count is 1; a line has two ends"):
        quiet(model, RAGGED, steps=1)
    with pytest.raises(ValueError, match=r"layer is 4; .* has layers 0-3"):
        quiet(model, RAGGED, layer=4)
    with pytest.raises(ValueError, match=r"enters layer 2 and reads what leaves layer 1"):
        quiet(model, RAGGED, layer=2, read=1)
    with pytest.raises(ValueError, match=r"points have shape \[2, 24\]"):
        quiet(model, RAGGED, StraightLine(1, states[:2], states[1:]))
    with pytest.raises(ValueError, match=r"points have shape \[3, 23\]"):
        quiet(model, RAGGED, StraightLine(1, states[:, 1:], states[:, 1:]))
    with pytest.raises(ValueError, match="3 prompts walk toward 1"):
        quiet(model, RAGGED, TowardPrompts([RAGGED[0]]))
    with pytest.raises(ValueError, match="there is 1 prompt"):
        quiet(model, RAGGED[:1])
    with pytest.raises(ValueError, match="path is the class NextPrompt"):
        quiet(model, RAGGED, NextPrompt)
    with pytest.raises(ValueError, match="read is 'norm'"):
        quiet(model, RAGGED, read="norm")
    with pytest.raises(ValueError, match="lie opposite"):
        Arc(1, states, -states)
    with pytest.raises(ValueError, match="size is 0"):
        FixedSteps(1, states, -states, 0.0)
    with pytest.raises(ValueError, match="the direction has 23 numbers"):
        quiet(model, RAGGED, AlongDirection(torch.ones(23), 1.0))
    with pytest.raises(ValueError, match="a positive length"):
        AlongDirection(torch.ones(24), 0.0)
    with pytest.raises(ValueError, match="a positive length, finite"):
        AlongDirection(torch.ones(24), float("inf"))
    with pytest.raises(ValueError, match=r"count is 2\.5; a line has two ends"):
        quiet(model, RAGGED, steps=2.5)
    for layer in (True, 1.5, "1"):
        with pytest.raises(ValueError, match=f"layer is {layer!r}; .* has layers 0-3"):
            quiet(model, RAGGED, layer=layer)
    with pytest.raises(ValueError, match=r"way is 'arc'; give StraightLine"):
        quiet(model, RAGGED, way="arc")
    batch = prepare(model, RAGGED).batch
    with pytest.raises(ValueError, match=r"2 steps at the layers \[1, 2\]"):
        prepare_walk(model, batch, [Step(1, states, 0.0), Step(2, states, 1.0)], 3)


def test_where_no_kernel_agrees_plain_passes_are_run(llama, monkeypatch):
    _, model = llama
    expected = quiet(model, RAGGED, steps=3)
    from safetyheads.engine import walk

    monkeypatch.setattr(walk, "run_steps", lambda *args: torch.zeros(1, args[5].shape[1], 24))
    with pytest.warns(UserWarning, match="plain hooked forward pass"):
        plain = quiet(model, RAGGED, steps=3)
    torch.testing.assert_close(plain.from_start, expected.from_start, rtol=1e-4, atol=1e-4)
