"""Does each head write along a direction what plain passes say, and is what is left of each without the other right?"""

from dataclasses import replace
from functools import partial

import pytest
import torch

from safetyheads.activations.states import Kept, capture_states
from safetyheads.engine.execution import Execution
from safetyheads.heads import Head, HeadScores
from safetyheads.inputs import prepare
from safetyheads.models.opening import load_model
from safetyheads.plots.directions import plot_effects, plot_heads_along
from safetyheads.probes.directions.direction import Direction, refusal_direction
from safetyheads.probes.directions.heads import CONDITIONS, heads_along
from safetyheads.probes.single_heads import score_heads_together
from safetyheads.prompts import PromptSet
from tests.oracles import PlainModel
from tests.zoo import CONFIGS, random_model, sentence, tokenizer

QUIET = Execution(progress=False)
LONG = tuple(sentence(*range(10 + n, 14 + n % 3 + n), 40, 41) for n in range(4))
SHORT = tuple(sentence(50 + n, 60, 61 + n % 2, 40, 41) for n in range(4))
PROMPTS = PromptSet("made up", LONG, SHORT)
LAYER, POSITION = 3, -2


@pytest.fixture(scope="module")
def both():
    hf = random_model(CONFIGS["llama"](), spread=0.5)
    return PlainModel(hf), load_model(hf, tokenizer())


@pytest.fixture(scope="module")
def found(both):
    _, model = both
    direction = refusal_direction(model, PROMPTS, LAYER, position=POSITION, progress=False)
    scores = dict(
        zip(
            ("ships", "refusal_shift"),
            score_heads_together(model, PROMPTS, ["ships", "refusal_shift"], execution=QUIET),
            strict=True,
        )
    )
    options = {"count": 2, "run_causally": 4, "scores": scores, "execution": QUIET}
    return direction, scores, heads_along(model, PROMPTS, direction, **options)


def ids_of(text):
    return tokenizer()(text)["input_ids"]


def keep(kept, x, hook):
    kept.append(x[0, POSITION].clone())


def difference(plain, hooks=()):
    """The mean difference of what enters the layer, from plain passes one prompt at a time."""
    means = []
    for texts in (LONG, SHORT):
        kept = []
        look = (f"blocks.{LAYER}.hook_in", partial(keep, kept))
        for text in texts:
            plain.run(ids_of(text), [*hooks, look])
        means.append(torch.stack(kept).double().mean(0))
    return means[0] - means[1]


def test_what_a_head_writes_is_its_z_through_w_o(both, found):
    plain, model = both
    direction, _, made = found
    unit = direction.unit.float()
    size = model.d_head
    weights = random_model(CONFIGS["llama"](), spread=0.5).state_dict()
    for layer in range(4):
        w_o = weights[f"model.layers.{layer}.self_attn.o_proj.weight"]  # [d_model, head d_head]
        means = [
            torch.stack([plain.z(ids_of(t), layer)[POSITION] for t in texts]).mean(0)
            for texts in (LONG, SHORT)
        ]
        for head in range(6):
            matrix = w_o[:, head * size : (head + 1) * size]
            share = (unit @ matrix).norm() / matrix.norm() * 24**0.5
            assert made.static[layer, head] == pytest.approx(share.item(), rel=1e-5)
            expected = unit @ (matrix @ (means[0] - means[1])[head])
            assert made.written[layer, head] == pytest.approx(expected.item(), abs=1e-4)
    # All heads of a layer together write what its attention does.
    kept = Kept((1,), ("attn_out",), 2, "end")
    out = [
        capture_states(model, prepare(model, PROMPTS, side=side).batch, kept, progress=False)
        for side in ("harmful", "harmless")
    ]
    along = (out[0][0, 0, :, 0].mean(0) - out[1][0, 0, :, 0].mean(0)) @ unit
    assert made.written[1].sum() == pytest.approx(along.item(), abs=1e-4)
    assert made.total == pytest.approx((difference(plain) @ direction.unit).item(), rel=1e-5)
    assert made.written.abs().max() > 0.1


def test_a_heads_causal_part_is_the_difference_without_it(both, found):
    plain, _ = both
    direction, _, made = found
    ran = ~made.causal.isnan()
    assert ran.sum() == 4
    assert not ran[LAYER].any()
    for layer, head in ran.nonzero().tolist():
        hooks = plain.writing_z(layer, head, torch.zeros_like)
        moved = (difference(plain, hooks) - difference(plain)) @ direction.unit
        assert made.causal[layer, head] == pytest.approx(moved.item(), abs=1e-4)
    assert made.causal[ran].abs().max() > 0.05


def test_heads_and_direction_are_ablated_together_and_apart(both, found):
    plain, model = both
    direction, _, made = found
    below = made.written[:LAYER].flatten()
    assert [h.layer * 6 + h.head for h in made.heads] == below.argsort(descending=True)[:2].tolist()
    gone = [h for head in made.heads for h in plain.writing_z(*head, torch.zeros_like)]
    after = difference(plain, gone)
    along, cosine = made.left["heads"]
    assert along == pytest.approx((after @ direction.unit / made.total).item(), rel=1e-4)
    assert cosine == pytest.approx((after @ direction.unit / after.norm()).item(), rel=1e-4)
    assert tuple(made.odds) == CONDITIONS

    def odds(text, hooks, ablated):
        if ablated:
            with (
                torch.inference_mode(),
                direction.ablated().active(model),
                model.bridge.hooks(fwd_hooks=hooks),
            ):
                log_probs = (
                    model.logits(torch.tensor([ids_of(text)]))[0, -1].double().log_softmax(-1)
                )
        else:
            log_probs = plain.run(ids_of(text), hooks)[0]
        p = log_probs.exp()[[3, 4, 5]].sum()
        return (p / (1 - p)).log().item()

    for name, hooks, ablated in (
        ("untouched", [], False),
        ("heads", gone, False),
        ("direction", [], True),
        ("heads and direction", gone, True),
    ):
        expected = [odds(text, hooks, ablated) for text in LONG]
        assert made.odds[name].tolist() == pytest.approx(expected, abs=1e-4)
    means = {name: values.mean().item() for name, values in made.odds.items()}
    table = made.conditions().set_index("condition")
    assert table.loc["heads", "shift"] == pytest.approx(
        means["heads"] - means["untouched"], abs=1e-5
    )
    assert table.loc["heads", "along"] == pytest.approx(along)
    assert table.loc["direction", "along"] == 0
    assert {h.layer for h in made.random_heads} == {h.layer for h in made.heads}
    effects = made.effects().set_index("effect")
    alone = effects.loc["heads", "shift"] + effects.loc["direction, heads gone", "shift"]
    other = effects.loc["direction", "shift"] + effects.loc["heads, direction gone", "shift"]
    assert alone == pytest.approx(other)
    assert alone == pytest.approx(means["heads and direction"] - means["untouched"], abs=1e-5)
    assert (effects["low"] <= effects["shift"]).all()
    assert effects.loc["direction", "low"] < 0 < effects.loc["direction", "high"]
    assert effects["share"].isna().all(), "a direction without an effect has no shares"
    bars = plot_effects(made.effects()).data[0]
    assert list(bars.x) == effects["shift"].tolist()
    with pytest.raises(ValueError, match="lacks the columns share"):
        plot_effects(made.effects().drop(columns="share"))


def test_a_share_is_of_an_effect_that_is_there(found):
    _, _, made = found
    zero = torch.zeros(4)
    odds = {
        "untouched": zero,
        "heads": zero - torch.tensor([1.0, 1.2, 0.8, 1.0]),
        "random heads": zero,
        "direction": zero - torch.tensor([4.0, 4.4, 3.6, 4.0]),
        "heads and direction": zero - 4,
    }
    made = replace(made, odds=odds)
    table = made.effects().set_index("effect")["share"]
    assert table.tolist() == pytest.approx([0.25, 0, 1, 0, 0.75], abs=1e-6)
    assert made.share == pytest.approx(0.25)
    assert "move by -1.00 nat, without the direction by -4.00" in repr(made)
    assert plot_effects(made.effects()).layout.annotations[0].text == "25%"


def test_scores_stand_beside_and_what_does_not_fit_is_refused(both, found):
    _, model = both
    direction, scores, made = found
    table = made.to_frame().set_index("label")
    assert len(table) == 24
    assert table.loc["L2H3", "ships"] == scores["ships"].score("L2H3")
    assert table["chosen"].sum() == 2
    assert table["written_share"].sum() == pytest.approx(made.written.sum().item() / made.total)
    with pytest.raises(ValueError, match=r"given as 'ships' are refusal_shift of \[4, 6\]"):
        heads_along(
            model, PROMPTS, direction, scores={"ships": scores["refusal_shift"]},
            run_causally=1, execution=QUIET,
        )  # fmt: skip
    embedded = Direction(direction.vector, 0, -1, "made up", "m")
    with pytest.raises(ValueError, match="layer 0, which no head has written"):
        heads_along(model, PROMPTS, embedded, execution=QUIET)
    with pytest.raises(ValueError, match="L9H9 is not in"):
        heads_along(model, PROMPTS, direction, heads=["L9H9"], execution=QUIET)
    gemma = load_model(random_model(CONFIGS["gemma2-softcap-window"]()), tokenizer())
    with pytest.raises(ValueError, match="norms what its heads write"):
        heads_along(gemma, PROMPTS, direction, execution=QUIET)
    figure = plot_heads_along(made.to_frame())
    assert len(figure.data) == 2 * 3
    assert sorted(figure.data[5].text) == sorted(map(str, made.heads))
    nothing = made.to_frame().assign(causal=torch.nan, ships=torch.nan, refusal_shift=torch.nan)
    with pytest.raises(ValueError, match="nothing to draw against"):
        plot_heads_along(nothing)
    assert isinstance(scores["ships"], HeadScores)
    assert isinstance(made.heads[0], Head)
