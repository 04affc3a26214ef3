"""Does each definition of generalized Ships give what it says, and is a head's move blamed on the right switch?"""

import json
from pathlib import Path

import numpy
import pytest
import torch

from safetyheads.heads import HeadScores
from safetyheads.interventions.ablations import ScalingContribution
from safetyheads.metrics import GeneralizedShips
from safetyheads.models.opening import load_model
from safetyheads.probes.single_heads import score_heads
from safetyheads.validation.definitions import (
    CODE_UNTIL_2025,
    CORRECTED,
    PAPER_CODE,
    PAPER_TEXT,
    Comparison,
    Definition,
    compare_definitions,
    one_switch_each,
)
from tests.oracles import plain
from tests.zoo import RAGGED, opened, sentence, tokenizer

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
PROMPTS = [*RAGGED, sentence(10, 11, 70), sentence(10, 80, 81, 82, 83)]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def zoo(request):
    return plain(request.param), opened(request.param)


def test_after_the_norm_a_definition_is_what_score_heads_gives(zoo):
    _, model = zoo
    definitions = [
        Definition("left"),
        Definition("right", space="right", rank=2),
        Definition("feature0", space="feature0"),
        Definition("other", template="query", epsilon=0.1),
    ]
    compared = compare_definitions(model, PROMPTS, definitions, ablation=ScalingContribution)
    for definition, scores in zip(definitions, compared.scores, strict=True):
        alone = score_heads(
            model,
            PROMPTS,
            ablation=ScalingContribution(definition.epsilon),
            metric=GeneralizedShips(definition.space, definition.rank),
            template=definition.template,
        )
        assert torch.allclose(scores.values, alone.values, atol=1e-4)
        assert scores.metric == alone.metric
        assert scores.values.max() > 0.5, "the comparison would be vacuous"


def test_before_the_norm_the_states_are_the_residual_stream(zoo):
    plain, model = zoo
    definitions = [Definition("left", norm="before"), Definition("right", "right", norm="before")]
    compared = compare_definitions(model, PROMPTS, definitions, ablation=ScalingContribution)

    def states(hooks):
        rows = []
        for text in PROMPTS:
            kept = []
            handle = plain.bridge.ln_final.register_forward_pre_hook(
                lambda _module, inputs, kept=kept: kept.append(inputs[0][0, -1])
            )
            plain.run(tokenizer()(text)["input_ids"], hooks)
            handle.remove()
            rows.append(kept[0].double().numpy())
        return numpy.stack(rows)

    base = numpy.linalg.svd(states([]), full_matrices=False)
    for layer, head in [(0, 1), (1, 5), (2, 3)]:
        ablated = numpy.linalg.svd(
            states(plain.writing_z(layer, head, torch.zeros_like)), full_matrices=False
        )
        for scores, vectors in zip(compared.scores, ("left", "right"), strict=True):
            first, second = (
                svd[0][:, 0] if vectors == "left" else svd[2][0] for svd in (base, ablated)
            )
            expected = numpy.degrees(numpy.arccos(min(1.0, abs(float(first @ second)))))
            assert scores.values[layer, head].item() == pytest.approx(expected, abs=0.003)
    after = compare_definitions(model, PROMPTS, [Definition("left")], ablation=ScalingContribution)
    assert not torch.allclose(after.scores[0].values, compared.scores[0].values, atol=0.01)


@pytest.fixture(scope="module")
def llama():
    return opened("llama")


def test_definitions_that_read_the_same_states_share_a_sweep(llama, monkeypatch):
    import safetyheads.validation.definitions

    runs = []
    real = safetyheads.validation.definitions.score_heads_together
    monkeypatch.setattr(
        safetyheads.validation.definitions,
        "score_heads_together",
        lambda *a, **k: (
            runs.append((k["template"], k["ablation"].epsilon, len(a[2]))) or real(*a, **k)
        ),
    )
    compared = compare_definitions(llama, PROMPTS)
    text = "## Query: {q} ## Answer:"
    assert runs == [
        ("bare", 0.0, 2),  # corrected, rank 3, right and feature 0
        ("query", 1e-5, 2),  # the code, and the code until June 2025
        (text, 1e-5, 1),
        ("bare", 0.0, 1),  # before the norm
        ("query", 0.0, 1),
        ("bare", 1e-5, 1),
    ]
    assert len(compared.definitions) == 10, "'bare' is what this tokenizer's model reads anyway"


def test_one_switch_is_turned_at_a_time():
    for definition in (CORRECTED, PAPER_CODE, PAPER_TEXT):
        turned = one_switch_each(definition)
        assert all(len(one.differs(definition)) == 1 for one in turned)
        assert {one.differs(definition)[0] for one in turned} == {
            "space", "rank", "norm", "template", "epsilon"
        }  # fmt: skip
    assert PAPER_CODE.differs(CODE_UNTIL_2025) == ("space",)
    assert one_switch_each(CODE_UNTIL_2025)[0].name != "rank 3", "feature 0 takes no rank"


def hand_made(*columns):
    """Scores of one layer's heads under each definition."""
    return tuple(
        HeadScores(torch.tensor([c]), None, "zero", "generalized_ships", "deg") for c in columns
    )


def test_a_move_is_blamed_on_the_switch_that_made_it():
    definitions = (
        CORRECTED,
        Definition("three", rank=3),
        Definition("raw", norm="before"),
        Definition("both", rank=3, norm="before"),
    )
    compared = Comparison(
        definitions,
        hand_made(
            [4.0, 3.0, 2.0, 1.0], [1.0, 4.0, 3.0, 2.0], [3.0, 4.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]
        ),
    )
    moves = compared.moves(k=1).set_index(["label", "definition"])
    assert set(moves.index) == {
        ("L0H0", "three"),
        ("L0H1", "three"),
        ("L0H0", "raw"),
        ("L0H1", "raw"),
    }
    assert moves.loc[("L0H0", "three"), ["switch", "rank", "turned_rank", "places"]].tolist() == [
        "rank", 1, 4, 3
    ]  # fmt: skip
    assert moves.loc[("L0H0", "raw"), ["switch", "places"]].tolist() == ["norm", 1]
    assert moves["most"].to_dict() == {
        ("L0H0", "three"): True,
        ("L0H0", "raw"): False,
        ("L0H1", "three"): True,
        ("L0H1", "raw"): True,
    }
    still = Comparison(definitions[:2], hand_made([2.0, 1.0], [4.0, 3.0])).moves(k=1)
    assert still["most"].tolist() == [False], "a head that stays is moved by nothing"
    agreement = compared.agreement(k=1).set_index(["first", "second"])
    assert agreement.loc[("corrected", "both"), "spearman"] == pytest.approx(-1.0)
    assert len(compared.to_frame()) == 16
    assert set(compared.to_frame()["definition"]) == {"corrected", "three", "raw", "both"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: Definition("x", norm="around"), "norm is 'around'; it must be \"before\""),
        (lambda m: Definition("x", space="up"), "space is 'up'"),
        (lambda m: Definition("x", space="feature0", rank=2), "takes no rank"),
        (lambda m: compare_definitions(m, PROMPTS, []), "the definitions are none"),
        (
            lambda m: compare_definitions(m, PROMPTS, [CORRECTED, CORRECTED]),
            "corrected, corrected; give each its own name",
        ),
        (lambda m: compare_definitions(m, PROMPTS[:3]), "rank 3 needs at least 4 prompts"),
        (lambda m: compare_definitions(m, PROMPTS, side="harmless"), "has no harmless prompts"),
    ],
)
def test_what_cannot_be_compared_is_refused(llama, make, message):
    with pytest.raises(ValueError, match=message):
        make(llama)


def test_the_papers_code_gives_the_golden_values():
    if not GOLDEN.exists():
        pytest.skip(f"{GOLDEN} is not there: the reference code's numbers live outside the tree")
    numbers = json.loads((GOLDEN / "tiny-Llama-mha.json").read_text())
    model = load_model(GOLDEN / "tiny-Llama-mha")
    compared = compare_definitions(model, numbers["prompts"], [PAPER_CODE, CODE_UNTIL_2025])
    for scores, space in zip(compared.scores, ("left", "feature0"), strict=True):
        table = numbers[f"generalized_ships_{space}_degrees"]["q"]
        expected = torch.tensor([[table[f"{la}-{he}"] for he in range(8)] for la in range(4)])
        assert (scores.values - expected).abs().max() <= 0.03
