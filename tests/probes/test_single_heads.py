"""One sweep agrees with one hooked forward pass each: on every architecture, for every ablation, whatever the batch."""

import json
from pathlib import Path

import numpy
import pytest
import torch

from safetyheads.engine.measurement import measure
from safetyheads.engine.sweep import sweep
from safetyheads.heads import Head
from safetyheads.inputs import prepare
from safetyheads.interventions.ablations import (
    MeanAblation,
    ResampleAblation,
    ScalingContribution,
    UndifferentiatedAttention,
    ZeroAblation,
)
from safetyheads.metrics import GeneralizedShips, RefusalShift
from safetyheads.models.opening import load_model
from safetyheads.probes.single_heads import score_heads
from safetyheads.prompts import tokenize
from tests.oracles import kl, plain
from tests.zoo import CONFIGS, RAGGED, SIZES, opened, random_model, sentence, tokenizer

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
TOLERANCE = 2e-6  # nat, the issue of float32 noise; the scores compared are 1e-4 and larger


@pytest.fixture(scope="module", params=list(CONFIGS))
def zoo(request):
    return plain(request.param), opened(request.param)


def ids_of(texts):
    return [tokenizer()(text)["input_ids"] for text in texts]


CHECKED = [(0, 0), (1, 1), (1, 3), (2, 2), (2, 4), (2, 5)]
"""The heads that have plain passes: every layer, every head index, every group of keys and values."""


def oracle_kl(plain, prompts, changes_of, checked=CHECKED):
    """KL of the checked heads, [checked, prompt]; `changes_of` gives a head's change for each prompt."""
    bases = [plain.run(ids)[0] for ids in prompts]
    return torch.tensor(
        [
            [
                kl(base, plain.run(ids, change)[0])
                for base, ids, change in zip(bases, prompts, changes_of(*head), strict=True)
            ]
            for head in checked
        ]
    )


def gap(scores, expected):
    """The largest difference of the checked heads from their plain passes."""
    got = torch.stack([scores.per_prompt[head] for head in CHECKED])
    return (got - expected).abs().max()


def undifferentiated_kl(plain, prompts, epsilon=0.0, checked=CHECKED):
    return oracle_kl(
        plain,
        prompts,
        lambda la, he: [plain.undifferentiated(la, he, epsilon)] * len(prompts),
        checked,
    )


def assert_close(scores, expected):
    assert expected.max() > 1e-3, "the comparison would be vacuous"
    assert gap(scores, expected) <= TOLERANCE
    assert scores.provenance["engine"] == "resumed"


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_undifferentiated_attention_agrees_with_plain_passes(zoo, epsilon):
    plain, model = zoo
    expected = undifferentiated_kl(plain, ids_of(RAGGED), epsilon)
    assert_close(score_heads(model, RAGGED, ablation=UndifferentiatedAttention(epsilon)), expected)


@pytest.mark.parametrize("ablation", [ScalingContribution(0.3), ZeroAblation()])
def test_scaling_agrees_with_plain_passes(zoo, ablation):
    plain, model = zoo
    factor = getattr(ablation, "epsilon", 0.0)
    expected = oracle_kl(
        plain, ids_of(RAGGED), lambda la, he: [plain.writing_z(la, he, lambda z: z * factor)] * 3
    )
    assert_close(score_heads(model, RAGGED, ablation=ablation), expected)


def test_mean_ablation_writes_the_mean_over_all_real_tokens(zoo):
    plain, model = zoo
    prompts = ids_of(RAGGED)
    means = [
        torch.cat([plain.z(ids, layer) for ids in prompts]).mean(0)
        for layer in range(model.n_layers)
    ]
    expected = oracle_kl(
        plain, prompts, lambda la, he: [plain.writing_z(la, he, lambda z: means[la][he])] * 3
    )
    assert_close(score_heads(model, RAGGED, ablation=MeanAblation()), expected)


def test_resample_ablation_writes_another_prompts_z_token_by_token(zoo):
    plain, model = zoo
    prompts = [RAGGED[0], RAGGED[2]]  # two prompts: each can only borrow from the other
    first, second = ids_of(prompts)
    shared = 5
    lent = []
    for ids, other in ((first, second), (second, first)):
        source = [
            t if t < shared else max(shared, len(other) - (len(ids) - t)) for t in range(len(ids))
        ]
        lent.append([plain.z(other, layer)[source] for layer in range(model.n_layers)])
    expected = oracle_kl(
        plain,
        [first, second],
        lambda la, he: [plain.writing_z(la, he, lambda _, z=z: z[la][:, he]) for z in lent],
    )
    assert_close(score_heads(model, prompts, ablation=ResampleAblation(seed=1)), expected)


@pytest.mark.parametrize(
    "prompts",
    [
        [RAGGED[0]],
        [RAGGED[1]] * 3,
        [sentence(7), sentence(20, 21, 22, 23, 24, 25, 26, 27)],
        [sentence(*range(10, 30)), sentence(*range(10, 20), 77), sentence(*range(10, 20))],
    ],
    ids=["one", "all-equal", "nothing-shared", "long-prefix"],
)
def test_a_score_does_not_depend_on_what_shares_the_batch(zoo, prompts):
    plain, model = zoo
    alone = {
        text: undifferentiated_kl(plain, ids_of([text]), checked=CHECKED[::2]) for text in prompts
    }
    expected = torch.cat([alone[text] for text in prompts], 1)
    measurement = measure(prepare(model, prompts))
    variants = measurement.variants([Head(*at) for at in CHECKED[::2]])
    for rows in (64, 1, 5):
        swept = sweep(measurement, variants, rows=rows)
        assert (swept.readings - expected).abs().max() <= TOLERANCE


def test_generalized_ships_agrees_with_numpy_svd(zoo):
    plain, model = zoo
    prompts = ids_of(RAGGED)

    def states(change=()):
        return numpy.stack([plain.run(ids, change)[1].double().numpy() for ids in prompts])

    def angle(a, b):
        return numpy.degrees(numpy.arccos(min(1.0, abs(float(a @ b)))))

    base = states()
    got = {
        space: score_heads(model, RAGGED, metric=GeneralizedShips(space)).values
        for space in ("left", "right", "feature0")
    }
    for layer, head in [(0, 0), (0, 5), (1, 3), (2, 4), (2, 2)]:
        ablated = states(plain.undifferentiated(layer, head, 0.0))
        (u0, _, v0), (u1, _, v1) = (
            numpy.linalg.svd(m, full_matrices=False) for m in (base, ablated)
        )
        columns = [m[:, 0] / numpy.linalg.norm(m[:, 0]) for m in (base, ablated)]
        expected = {
            "left": angle(u0[:, 0], u1[:, 0]),
            "right": angle(v0[0], v1[0]),
            "feature0": angle(*columns),
        }
        for space, degrees in expected.items():
            assert got[space][layer, head].item() == pytest.approx(degrees, abs=0.003), (
                space,
                layer,
                head,
            )
    assert min(values.max() for values in got.values()) > 0.5


def test_refusal_shift_is_the_signed_change_of_the_log_odds(zoo):
    plain, model = zoo
    tokens = [3, 4, 5]  # I, As, Sorry

    def log_odds(log_probs):
        p = log_probs.exp()[tokens].sum()
        return float(p.log() - (1 - p).log())

    scores = score_heads(model, RAGGED, ablation=ZeroAblation(), metric=RefusalShift())
    for n, ids in enumerate(ids_of(RAGGED)):
        base = log_odds(plain.run(ids)[0])
        for layer, head in [(0, 1), (1, 5), (2, 0)]:
            hooks = plain.writing_z(layer, head, torch.zeros_like)
            expected = log_odds(plain.run(ids, hooks)[0]) - base
            assert scores.per_prompt[layer, head, n].item() == pytest.approx(expected, abs=1e-5)
    assert scores.per_prompt.min() < -1e-3 < 1e-3 < scores.per_prompt.max()
    assert scores.top(1)["score"].item() == scores.values.min().item()


def test_ungrouped_heads_of_one_group_score_apart():
    from transformers import LlamaConfig

    model = load_model(random_model(LlamaConfig(**SIZES)), tokenizer())
    values = score_heads(model, RAGGED).values
    assert values.shape == (3, 6)
    assert len({round(v, 9) for v in values.flatten().tolist()}) == 18


# The reference code's own numbers -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden():
    if not GOLDEN.exists():
        pytest.skip(
            f"{GOLDEN} is not there: the reference code's numbers live outside the repository"
        )
    numbers = json.loads((GOLDEN / "tiny-Llama-mha.json").read_text())
    return numbers, load_model(GOLDEN / "tiny-Llama-mha")


def grid(table, shape=(4, 8)):
    return torch.tensor([[table[f"{la}-{he}"] for he in range(shape[1])] for la in range(shape[0])])


@pytest.mark.parametrize("template", ["direct", "template"])
@pytest.mark.parametrize("kind", ["q", "v"])
def test_ships_agrees_with_the_reference_code(golden, kind, template):
    numbers, model = golden
    ablation = {"q": UndifferentiatedAttention(1e-5), "v": ScalingContribution(1e-5)}[kind]
    text = {"direct": "bare", "template": numbers["templates"]["ships_main_use_tem"]}[template]
    scores = score_heads(model, numbers["prompts"], ablation=ablation, template=text)
    expected = torch.stack([grid(t) for t in numbers["ships_kl_nats"][kind][template]], -1)
    assert (scores.per_prompt - expected).abs().max() <= 2e-6


@pytest.mark.parametrize("space", ["left", "feature0"])
@pytest.mark.parametrize("kind", ["q", "v"])
def test_generalized_ships_agrees_with_the_reference_code(golden, kind, space):
    numbers, model = golden
    ablation = {"q": UndifferentiatedAttention(1e-5), "v": ScalingContribution(1e-5)}[kind]
    metric = GeneralizedShips(space)
    scores = score_heads(
        model, numbers["prompts"], ablation=ablation, metric=metric, template="query"
    )
    expected = grid(numbers[f"generalized_ships_{space}_degrees"][kind])
    assert (scores.values - expected).abs().max() <= 0.03
    if space == "left":
        first = scores.top(1)
        assert (
            f"{first['layer'].item()}-{first['head'].item()}" == numbers["sahara"][kind]["order"][0]
        )


def test_query_template_is_the_reference_codes_dataset_template(golden):
    numbers, model = golden
    assert tokenize(["x"], model.tokenizer, "query").texts == (
        numbers["templates"]["sahara"].replace("{q}", "x"),
    )
