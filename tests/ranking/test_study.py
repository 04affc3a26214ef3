"""Is a study checked where it is made, and the same after a file?"""

import dataclasses
import tomllib

import pytest
import torch

from safetyheads.engine.execution import Execution
from safetyheads.heads import Head
from safetyheads.interventions.ablations import (
    ResampleAblation,
    ScalingContribution,
    UndifferentiatedAttention,
    ZeroAblation,
)
from safetyheads.metrics import GeneralizedShips, RefusalShift, Ships
from safetyheads.probes import single_heads
from safetyheads.prompts import PromptSet
from safetyheads.ranking import ranking as ranking_module
from safetyheads.ranking.ranking import rank, rank_safety_heads
from safetyheads.ranking.study import Study
from safetyheads.screening.audit import Screened
from tests.zoo import CONFIGS, RAGGED, opened, random_model, tokenizer

PROMPTS = PromptSet("mine", tuple(RAGGED), ("w7 w8", "w9 w10 w11"))
QUIET = Execution(progress=False)


@pytest.fixture(scope="module")
def model():
    return opened("llama")


def test_names_and_one_ablation_stand_for_their_values():
    study = Study("m", "builtin", ablations="zero", metric="ships", method="screened", top_k=3)
    assert study.ablations == (ZeroAblation(),)
    assert study.metric == Ships()
    assert study.method == Screened(top_k=3)
    assert study == Study("m", "builtin", [ZeroAblation()], Ships(), method=Screened(3), top_k=3)
    assert Study("m", "builtin", method="exact") == Study("m", "builtin")


FULL = Study(
    'folder "of" models\\a\n\x7f',
    "prompts.csv",
    ablations=[UndifferentiatedAttention(1e-5), ResampleAblation(seed=3)],
    metric=GeneralizedShips("right", 2),
    template="w9 {q} — é",
    limit=12,
    method=Screened(share=0.2, include=(Head(1, 2), Head(0, 3))),
    null="layer",
    top_k=5,
)


BESIDE = Study("m", {"prompts": "bad.txt", "harmless": "good.txt", "label": False})


@pytest.mark.parametrize("study", [FULL, BESIDE, Study("m", "b", metric="ships")])
def test_a_study_in_a_file_is_the_same_study(study, tmp_path):
    path = study.save(tmp_path / "study.toml")
    assert Study.load(path) == study
    assert tomllib.loads(path.read_text())["dataset"] == study.dataset


def test_a_study_is_written_by_hand_in_a_few_lines():
    text = """
    model = "my-model"
    dataset = "builtin"
    ablations = ["zero", {name = "resample", seed = 3}]
    metric = "refusal_shift"
    method = "screened"
    """
    study = Study.from_toml(text)
    assert study.ablations == (ZeroAblation(), ResampleAblation(3))
    assert study.metric == RefusalShift()
    assert study.method == Screened()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('model = "m"', "names no dataset"),
        ('model = "m"\ndataset = "d"\nablation = "zero"', "did you mean 'ablations'"),
        ('model = "m"\ndataset = "d"\nmetric = "ship"', "did you mean 'ships'"),
        (
            'model = "m"\ndataset = "d"\nablations = [{name = "zero", seed = 3}]',
            "does not take seed",
        ),
        ('model = "m"\ndataset = "d"\nmethod = {shore = 0.1}', "did you mean 'share'"),
        ("model = ", "is no TOML"),
    ],
)
def test_a_file_that_is_no_study_is_refused_by_name(tmp_path, text, message):
    path = tmp_path / "study.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as raised:
        Study.load(path)
    assert str(path) in str(raised.value)


def test_what_a_file_cannot_hold_is_said(model):
    for study in (Study(model, "builtin"), Study("m", PROMPTS)):
        with pytest.raises(ValueError, match="which a file cannot hold; give a name or a path"):
            study.to_toml()

    class Mine(ScalingContribution):
        name = "mine"

    with pytest.raises(ValueError, match="mine"):
        Study("m", "builtin", Mine()).to_toml()


def test_the_door_asks_the_study(model):
    study = Study(model, PROMPTS, "zero", "ships", top_k=4)
    behind = rank(study, QUIET)
    door = rank_safety_heads(
        model, PROMPTS, ablations="zero", metric="ships", top_k=4, execution=QUIET
    )
    assert torch.equal(door.harmful[0].values, behind.harmful[0].values)
    assert door.manifest == behind.manifest
    assert door.harmful[0].values.max() > 1e-3


def test_two_executions_of_one_study_agree(model, tmp_path):
    study = Study(model, PROMPTS, "zero", "ships")
    here = rank(study, QUIET)
    stored = rank(study, Execution(store=tmp_path, progress=False))
    few = rank(study, Execution(rows=2, progress=False))
    assert stored.manifest == here.manifest
    for one, other, narrow in zip(
        (*here.harmful, *here.harmless),
        (*stored.harmful, *stored.harmless),
        (*few.harmful, *few.harmless),
        strict=True,
    ):
        assert torch.equal(one.values, other.values)
        assert torch.allclose(one.values, narrow.values, atol=2e-6)


def test_each_side_is_prepared_once_and_screened_once(model, monkeypatch):
    counted = []

    def count(module, name):
        real = getattr(module, name)

        def watched(*arguments, **options):
            counted.append(name)
            return real(*arguments, **options)

        monkeypatch.setattr(module, name, watched)

    from safetyheads import inputs

    count(inputs, "tokenize")
    count(single_heads, "estimate_heads")
    rank(Study(model, PROMPTS, metric="ships", method="screened", top_k=2), QUIET)
    assert counted == ["tokenize", "tokenize", "estimate_heads", "estimate_heads"]


def test_a_random_copy_runs_here_whatever_the_executor_and_says_so(tmp_path, monkeypatch):
    random_model(CONFIGS["llama"]()).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    seen = []

    def watching(function, items):
        items = list(items)
        seen.extend(items)
        return map(function, items)

    study = Study(tmp_path, PROMPTS, "zero", null="random_init")
    with pytest.warns(UserWarning, match="random weights.*runs here, not in the executor"):
        apart = rank(study, Execution(executor=watching, progress=False))
    assert seen
    assert torch.equal(apart.random.harmful[0].values, rank(study, QUIET).random.harmful[0].values)


def test_the_road_carries_few_values(model, monkeypatch):
    """No call between the door and the sweep has more than four values beside what is measured."""
    import inspect

    for function in (
        rank,
        ranking_module.score_measurements,
        single_heads.run,
        single_heads.measure,
    ):
        assert len(inspect.signature(function).parameters) <= 5
    assert len(inspect.signature(rank_safety_heads).parameters) <= 10
    assert [field.name for field in dataclasses.fields(Execution)] == [
        "rows",
        "store",
        "executor",
        "progress",
        "upper_blocks",
    ]
