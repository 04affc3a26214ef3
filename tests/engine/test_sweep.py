"""A sweep does the work it must and no more, stays in its memory, cleans up, and says when it cannot be trusted."""

import copy
import warnings
from collections import Counter

import pytest
import torch

from safetyheads.engine import sweep as module
from safetyheads.engine.execution import Execution
from safetyheads.engine.kernels import Packed, Padded, Whole
from safetyheads.engine.measurement import measure
from safetyheads.engine.sweep import sweep
from safetyheads.heads import Head
from safetyheads.inputs import prepare
from safetyheads.interventions.ablating import AblateHead
from safetyheads.interventions.ablations import (
    MeanAblation,
    ResampleAblation,
    ScalingContribution,
    UndifferentiatedAttention,
    ZeroAblation,
)
from safetyheads.metrics import RefusalShift, Ships
from safetyheads.models.blocks import Blocks
from safetyheads.models.hooked import HookedModel
from safetyheads.models.opening import load_model
from safetyheads.probes.single_heads import score_heads
from safetyheads.prompts import tokenize
from tests.oracles import PlainModel, kl
from tests.zoo import CONFIGS, RAGGED, opened, random_model, sentence, tokenizer

QUIET = Execution(progress=False)

KERNELS = {
    "packed": Packed(),
    "sdpa": Padded("sdpa"),
    "eager": Padded("eager"),
    "hooked": Padded("hooked"),
    "plain": Whole(),
}
LONG = [sentence(*range(10, 20), n, *range(30, 30 + n % 4)) for n in range(50, 57)]
"""Seven prompts that share eleven tokens, of four lengths."""


@pytest.fixture
def model():
    return opened("llama")


def every_head(model, ablation=None):
    heads = [Head(la, he) for la in range(model.n_layers) for he in range(model.n_heads)]
    return [AblateHead(head, ablation or ZeroAblation()) for head in heads]


def ships_of(model, prompts=RAGGED):
    return measure(prepare(model, prompts), metric=Ships())


def ids():
    return [tokenizer()(text)["input_ids"] for text in RAGGED]


def zero_kl(hf, heads):
    plain = PlainModel(hf)
    bases = [plain.run(i)[0] for i in ids()]
    return {
        (la, he): [
            kl(base, plain.run(i, plain.writing_z(la, he, torch.zeros_like))[0])
            for base, i in zip(bases, ids(), strict=True)
        ]
        for la, he in heads
    }


@pytest.mark.parametrize("wrong", ["final_norm", "unembed", "run"])
@pytest.mark.parametrize("ablation", [ZeroAblation(), ScalingContribution(0.0)], ids=repr)
def test_where_resuming_goes_wrong_plain_passes_give_the_scores_and_a_warning_says_so(
    model, monkeypatch, wrong, ablation
):
    heads = [(0, 0), (1, 4), (3, 5)]
    expected = zero_kl(copy.deepcopy(random_model(CONFIGS["llama"]())), heads)
    owner = Blocks if wrong == "run" else HookedModel
    real = getattr(owner, wrong)

    def off(self, *args, **options):
        out = real(self, *args, **options)
        return (
            out + 0.5 * torch.sin(out)
            if wrong != "run" or options.get("attn_out") is not None
            else out
        )

    monkeypatch.setattr(owner, wrong, off)
    with pytest.warns(
        UserWarning, match="differs from the model's own forward pass .*exact and slow"
    ) as seen:
        scores = score_heads(model, RAGGED, ablation=ablation, execution=QUIET)
    assert len(seen) == 1
    assert scores.provenance["engine"] == "plain"
    for (la, he), values in expected.items():
        assert scores.per_prompt[la, he].tolist() == pytest.approx(values, abs=2e-6)
    assert max(max(v) for v in expected.values()) > 1e-3


def test_a_model_that_can_be_resumed_gives_no_warning(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        swept = sweep(ships_of(model), every_head(model))
    assert swept.exact_resume
    assert swept.readings.shape == (24, 3)


def test_weights_that_are_not_numbers_are_reported_with_the_remedy():
    hf = random_model(CONFIGS["llama"]())
    with torch.no_grad():
        hf.model.layers[2].mlp.down_proj.weight[0, 0] = torch.nan
    broken = load_model(hf, tokenizer())
    with pytest.raises(
        ValueError, match=r"gives NaN logits on the untouched prompts.*load the model in float32"
    ):
        score_heads(broken, RAGGED, execution=QUIET)


def test_an_ablation_that_gives_no_number_names_the_heads(model):
    class Broken:
        name = "broken"
        needs = frozenset[str]()

        def __call__(self, acts):
            return acts.z * torch.nan if acts.z[0, -1, 0] == target else acts.z

    target = None
    batch = tokenize(RAGGED[:1], tokenizer())
    clean = Blocks(model).record(batch.ids)[1]
    resid = Blocks(model).run(0, Blocks(model).embed(batch.ids), clean[0])
    target = Blocks(model).look(1, resid, clean[1], scores=False).z[0, -1, 2, 0].item()
    with pytest.raises(
        ValueError, match=r"ablating L1H2 of .* gives NaN logits; load the model in float32"
    ):
        sweep(ships_of(model, RAGGED[:1]), every_head(model, Broken()))


def state_of(model):
    """All that a sweep could leave behind: hooks, patched forwards, gradients' switch."""
    hooks = Counter()
    twins = [(la, kernel) for la in range(model.n_layers) for kernel in ("packed", "sdpa", "eager")]
    trees = {"": model.bridge, **{str(key): Blocks(model).modules(*key)[0] for key in twins}}
    parts = [(key + name, p) for key, tree in trees.items() for name, p in tree.named_modules()]
    for name, part in parts:
        hooks[name] = (
            len(part._forward_hooks),
            len(part._forward_pre_hooks),
            "forward" in vars(part),
            len(getattr(part, "fwd_hooks", [])),
        )
    return hooks, torch.is_inference_mode_enabled(), torch.is_grad_enabled()


@pytest.mark.parametrize("after", [0, 1, 40])
@pytest.mark.parametrize("kernel", ["packed", "sdpa", "eager", "hooked", "plain"])
def test_an_interrupted_sweep_leaves_the_model_as_it_was(model, monkeypatch, after, kernel):
    batch = tokenize(RAGGED, tokenizer())
    logits, before = (
        model.logits(batch.ids),
        state_of(model),
    )  # TransformerLens sets up hooks in a first pass
    monkeypatch.setattr(module, "fastest", lambda *_: KERNELS[kernel])
    done = []

    def interrupt(rows):
        done.append(rows)
        if sum(done) > after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(
            ships_of(model),
            every_head(model, UndifferentiatedAttention(0.1)),
            rows=6,
            progress=interrupt,
        )
    assert state_of(model) == before
    assert torch.equal(model.logits(batch.ids), logits)


@pytest.mark.parametrize("after", [0, 4, 9])
@pytest.mark.parametrize("kernel", ["packed", "sdpa", "eager", "hooked"])
@pytest.mark.parametrize("part", ["mlp", "self_attn"])
def test_an_error_inside_a_pass_leaves_the_model_as_it_was(model, monkeypatch, part, kernel, after):
    batch = tokenize(RAGGED, tokenizer())
    logits = model.logits(batch.ids)  # TransformerLens sets up hooks in a first pass
    monkeypatch.setattr(module, "fastest", lambda *_: KERNELS[kernel])
    inner = getattr(Blocks(model).modules(2, kernel)[0], part)
    before, calls = state_of(model), []

    def stop(*_):
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt

    handle = inner.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        sweep(ships_of(model), every_head(model), rows=4)
    handle.remove()
    assert state_of(model) == before
    assert torch.equal(model.logits(batch.ids), logits)


def test_a_finished_sweep_leaves_the_model_as_it_was(model):
    batch = tokenize(RAGGED, tokenizer())
    logits, before = (
        model.logits(batch.ids),
        state_of(model),
    )  # TransformerLens sets up hooks in a first pass
    sweep(ships_of(model), every_head(model, UndifferentiatedAttention(0.1)))
    assert state_of(model) == before
    assert torch.equal(model.logits(batch.ids), logits)


@pytest.mark.parametrize("head", [Head(4, 0), Head(0, 6), Head(-1, 0)], ids=str)
def test_a_head_that_is_not_there_is_refused(model, head):
    with pytest.raises(ValueError, match=f"{head} is not in .*layers 0-3 and heads 0-5"):
        sweep(ships_of(model), [AblateHead(head, ZeroAblation())])


@pytest.mark.parametrize("rows", [0, -3])
def test_a_batch_without_rows_is_refused(model, rows):
    with pytest.raises(ValueError, match=f"rows is {rows}; a forward pass needs at least one row"):
        score_heads(
            model,
            RAGGED,
            execution=Execution(rows=rows, progress=False),
        )


def record(monkeypatch):
    """Every block that is run: layer, rows, positions, what of it: attention, the rest, or the whole."""
    seen, run_block, run_attention = [], Blocks.run, Blocks.attend

    def watch_block(self, layer, resid, call, *, attn_out=None, **options):
        seen.append((layer, *resid.shape[:2], "block" if attn_out is None else "rest"))
        return run_block(self, layer, resid, call, attn_out=attn_out, **options)

    def watch_attention(self, layer, resid, call, **options):
        seen.append((layer, *resid.shape[:2], "attention"))
        return run_attention(self, layer, resid, call, **options)

    monkeypatch.setattr(Blocks, "run", watch_block)
    monkeypatch.setattr(Blocks, "attend", watch_attention)
    return seen


@pytest.mark.parametrize("rows", [1, 3, 8, 64])
@pytest.mark.parametrize(
    "ablation",
    [UndifferentiatedAttention(), MeanAblation(), ResampleAblation()],
    ids=lambda a: a.name,
)
def test_no_pass_has_more_rows_than_asked_for(model, monkeypatch, rows, ablation):
    seen = record(monkeypatch)
    sweep(ships_of(model, LONG), every_head(model, ablation)[::5], rows=rows)
    assert max(n for _, n, *_ in seen) <= rows
    assert max(n for _, n, *_ in seen) >= min(rows, 7)  # and the rows asked for are used


def test_progress_counts_every_row_once(model):
    for rows in (1, 5, 64):
        done = []
        sweep(ships_of(model, LONG), every_head(model)[::3], rows=rows, progress=done.append)
        assert sum(done) == 8 * 7
        assert max(done) <= max(rows, 7)


def test_blocks_below_the_ablated_layer_are_run_once_and_not_once_a_head(model, monkeypatch):
    prompts = [sentence(n, n + 1, n + 2) for n in (10, 20, 30)]  # no prefix but BOS
    monkeypatch.setattr(module, "fastest", lambda *_: Padded("eager"))
    seen = record(monkeypatch)
    score_heads(
        model,
        prompts,
        execution=Execution(rows=18, progress=False),
    )
    n_layers, n_heads, n = 4, 6, 3
    top = n_layers - 1
    ablated = Counter()
    for layer, rows, width, what in seen:
        # 3 tokens follow BOS, and of the top layer only the last one is needed.
        if what != "attention" and width == (1 if layer == top else 3):
            ablated[layer] += rows
    baseline = n  # one undisturbed pass
    for layer in range(n_layers):
        assert ablated[layer] == baseline + n_heads * n * (layer + 1)
    naive = n_layers * n_heads * n * n_layers
    assert sum(ablated.values()) - baseline * n_layers == naive * (n_layers + 1) // (2 * n_layers)
    attention = [rows for _, rows, width, what in seen if what == "attention" and width == 3]
    assert sum(attention) == baseline + n_heads * n * top
    clean = [(layer, rows) for layer, rows, width, _ in seen if width == 4]
    assert clean == [(layer, n) for layer in range(n_layers)]


def test_the_ablated_layers_attention_is_not_run_again(model, monkeypatch):
    monkeypatch.setattr(module, "fastest", lambda *_: Padded("eager"))
    seen = record(monkeypatch)
    sweep(ships_of(model, RAGGED[:1]), every_head(model)[-6:], rows=6)
    assert [(layer, what) for layer, rows, _, what in seen if rows == 6] == [(3, "rest")]


def test_the_shared_prefix_is_run_once_a_variant_and_not_once_a_prompt(model, monkeypatch):
    monkeypatch.setattr(module, "fastest", lambda *_: Padded("eager"))
    seen = record(monkeypatch)
    score_heads(
        model,
        LONG,
        execution=Execution(rows=14, progress=False),
    )  # chunks of 7: two heads a pass
    assert tokenize(LONG, tokenizer()).prefix_length == 11
    kinds = Counter((rows, width) for _, rows, width, _ in seen)
    passes = 3  # a layer
    above = passes * (3 + 2 + 1)  # blocks from the ablated layer to the one below the top
    top = passes * 3  # attention in the top layer, where it is not what was ablated
    undisturbed = {(1, 11): 4, (7, 4): 4, (7, 1): 1}
    clean = {(7, 15): 4}
    assert kinds == {
        (2, 11): above + top,
        (14, 4): above + top,
        (14, 1): passes * 4,
        **undisturbed,
        **clean,
    }


def test_scores_do_not_depend_on_the_order_of_prompts_or_interventions(model):
    forth = score_heads(model, LONG, execution=QUIET).per_prompt
    back = score_heads(model, LONG[::-1], execution=QUIET).per_prompt
    assert (forth - back.flip(-1)).abs().max() < 2e-6
    measurement, edits = ships_of(model, LONG), every_head(model)
    swept = sweep(measurement, edits).readings
    assert (swept - sweep(measurement, edits[::-1]).readings.flip(0)).abs().max() < 2e-6
    some = sweep(measurement, [edits[20], edits[3]]).readings
    assert (some - swept[[20, 3]]).abs().max() < 2e-6


def test_many_chunks_give_what_one_prompt_at_a_time_gives(model):
    prompts = [sentence(*range(10, 14), *range(20 + n, 22 + 2 * n)) for n in range(12)]
    together = score_heads(model, prompts, metric=RefusalShift(), execution=QUIET).per_prompt
    for n in (0, 7, 11):
        alone = score_heads(model, [prompts[n]], metric=RefusalShift(), execution=QUIET).per_prompt
        assert (together[..., n] - alone[..., 0]).abs().max() < 1e-5
