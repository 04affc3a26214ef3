"""Do layers scored apart join to the bytes of one run, and only where they belong together?"""

import dataclasses

import pytest
import torch

from safetyheads.engine.execution import Execution
from safetyheads.heads import HeadScores
from safetyheads.interventions.ablations import (
    ScalingContribution,
    UndifferentiatedAttention,
    ZeroAblation,
)
from safetyheads.metrics import GeneralizedShips, RefusalShift, Ships
from safetyheads.models.opening import load_model
from safetyheads.probes.single_heads import score_heads, score_layers
from safetyheads.prompts import PromptSet
from safetyheads.ranking.merging import PART, merge_rankings, merge_scores, rank_layers
from safetyheads.ranking.ranking import rank
from safetyheads.ranking.study import Study
from safetyheads.storage.store import Store
from tests.zoo import CONFIGS, RAGGED, opened, random_model, tokenizer

PROMPTS = PromptSet("mine", tuple(RAGGED), ("w7 w8", "w9 w10 w11"))
QUIET = {"execution": Execution(progress=False)}


def into(store, rows=None):
    return Execution(rows=rows, store=store, progress=False)


@pytest.fixture(scope="module")
def model():
    return opened("llama")


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "metric", [Ships(), RefusalShift(), GeneralizedShips("right"), GeneralizedShips("feature0")]
)
@pytest.mark.parametrize("together", [True, False])
def test_merged_layers_are_the_bytes_of_one_run(model, tmp_path, metric, together):
    whole = score_heads(model, RAGGED, metric=metric, **QUIET)
    parts = [
        score_layers(
            model, RAGGED, layers, into(tmp_path / ("" if together else str(n))), metric=metric
        )
        for n, layers in enumerate([[3], range(0, 2), [2, 1]])
    ]
    assert len(set(parts)) == (1 if together else 3)
    whole.save(tmp_path / "whole")
    merge_scores(parts).save(tmp_path / "merged")
    assert contents(tmp_path / "whole") == contents(tmp_path / "merged")
    assert len(contents(tmp_path / "whole")) == 2


def test_a_merged_ranking_is_the_bytes_of_one_run(model, tmp_path):
    study = Study(model, PROMPTS, [ScalingContribution(), ZeroAblation()], top_k=3)
    rank(study, **QUIET).save(tmp_path / "whole")
    parts = [
        rank_layers(study, layers, tmp_path / name, **QUIET)
        for name, layers in {"a": range(2), "b": range(2, 4)}.items()
    ]
    for part in parts:  # a part is no result
        names = {path.name for path in part.iterdir()}
        assert names == {PART, "readings"}
        with pytest.raises(FileNotFoundError):
            HeadScores.load(part)
    merge_rankings(parts).save(tmp_path / "merged")
    whole, merged = contents(tmp_path / "whole"), contents(tmp_path / "merged")
    assert merged == whole
    assert len(whole) == 3 + 2
    assert len(merge_rankings(parts, top_k=1).top()) == 2


def test_missing_layers_are_named(model, tmp_path):
    first = score_layers(model, RAGGED, [1], into(tmp_path / "1"))
    with pytest.raises(
        ValueError,
        match=r"layers 0, 2-3 of undifferentiated_attention, harmful are in none of .*score them",
    ):
        merge_scores([first])
    part = rank_layers(Study(model, PROMPTS), range(3), tmp_path / "2", **QUIET)
    with pytest.raises(ValueError, match=r"layers 3 of undifferentiated_attention, harmful"):
        merge_rankings([part])


def test_a_damaged_layer_is_missing_and_named(model, tmp_path):
    part = score_layers(model, RAGGED, range(4), into(tmp_path))
    file = part / "layer001.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    with (
        pytest.warns(UserWarning, match=r"layer001\.safetensors is damaged"),
        pytest.raises(ValueError, match="layers 1 of"),
    ):
        merge_scores([part])


OTHERS = {
    "template: bare and w9 {q}": {"template": "w9 {q}"},
    "ablation.name: undifferentiated_attention and zero": {"ablation": ZeroAblation()},
    "ablation.epsilon: 0.0 and 0.1": {"ablation": UndifferentiatedAttention(0.1)},
    "metric.name: ships and refusal_shift": {"metric": RefusalShift()},
    "rows: None and 4": {"rows": 4},
    "prompts.count: 3 and 2": {"prompts": RAGGED[:2]},
    "prompts.side: harmful and harmless": {"side": "harmless"},
    "safetyheads: 1 and 2": {"version": "2"},
    "model.weights: ": {"seed": 5},
}


@pytest.mark.parametrize("field", OTHERS)
def test_parts_of_different_runs_are_refused_with_the_field(model, tmp_path, monkeypatch, field):
    def part(n, layers, prompts=PROMPTS, version="1", seed=0, rows=None, **options):
        monkeypatch.setattr("safetyheads.inputs.version", lambda _: version)
        chosen = load_model(random_model(CONFIGS["llama"](), seed), tokenizer()) if seed else model
        return score_layers(chosen, prompts, layers, into(tmp_path / str(n), rows), **options)

    parts = [part(0, [0, 1]), part(1, [2, 3], **OTHERS[field])]
    with pytest.raises(ValueError, match="of different runs and cannot be merged") as raised:
        merge_scores(parts)
    assert field in str(raised.value)
    assert all(str(part) in str(raised.value) for part in parts)


def test_rankings_of_different_runs_are_refused(model, tmp_path):
    zero = Study(model, PROMPTS, ablations=ZeroAblation())
    dressed = dataclasses.replace(zero, template="w9 {q}")
    first = rank_layers(zero, [0], tmp_path / "a", **QUIET)
    other = rank_layers(dressed, [1], tmp_path / "b", **QUIET)
    with pytest.raises(ValueError, match=r"differ in template: bare and w9 {q}.*but --layers"):
        merge_rankings([first, other])
    more = rank_layers(Study(model, PROMPTS), [1], tmp_path / "c", **QUIET)
    with pytest.raises(ValueError, match=r"zero on harmful.* and .*scaling_contribution on harm"):
        merge_rankings([first, more])
    with pytest.raises(ValueError, match=r"and this run are parts of different runs.*template"):
        rank_layers(dressed, [1], tmp_path / "a", **QUIET)
    assert len(list((tmp_path / "a" / "readings").iterdir())) == 2  # and nothing was run for it


def test_different_numbers_for_one_layer_are_refused(model, tmp_path):
    parts = [score_layers(model, RAGGED, range(4), into(tmp_path / n)) for n in "ab"]
    merge_scores(parts)
    store = Store.reading(parts[1])
    store["layer002"] = store["layer002"] + 1
    with pytest.raises(ValueError, match="hold different numbers for layer 2"):
        merge_scores(parts)


def test_parts_that_would_need_all_layers_or_a_store_are_refused(model, tmp_path):
    for study in (
        Study(model, PROMPTS, method="screened", top_k=2),
        Study(model, PROMPTS, null="random_init"),
        Study(model, PROMPTS, null="gate"),
    ):
        with pytest.raises(ValueError, match="look at all layers"):
            rank_layers(study, [0], tmp_path, **QUIET)
    with pytest.raises(ValueError, match=r"give Execution\(store=folder\)"):
        score_layers(model, RAGGED, [0], Execution())


def test_what_is_no_part_is_said(model, tmp_path):
    with pytest.raises(ValueError, match="no folders to merge"):
        merge_scores([])
    with pytest.raises(FileNotFoundError, match=r"not a folder of readings: no provenance\.json"):
        merge_scores([tmp_path])
    with pytest.raises(FileNotFoundError, match=r"no finished part of a ranking \(no part\.json\)"):
        merge_rankings([tmp_path])
    (tmp_path / PART).write_text("{")
    with pytest.raises(ValueError, match=r"part\.json is damaged .*run that part again"):
        merge_rankings([tmp_path])
    for layers in ([], [4], [-1]):
        with pytest.raises(ValueError, match=r"has layers 0-3: name at least one"):
            score_layers(model, RAGGED, layers, into(tmp_path))


def test_a_metric_of_ones_own_is_given_to_the_merge(model, tmp_path):
    class Doubled(Ships):
        name = "doubled"

        def score(self, readings):
            return 2 * readings.mean(-1), 2 * readings

    part = score_layers(model, RAGGED, range(4), into(tmp_path), metric=Doubled())
    with pytest.raises(ValueError, match=r"doubled is no metric of safetyheads; .*metric=\.\.\."):
        merge_scores([part])
    merged = merge_scores([part], metric=Doubled())
    assert torch.equal(merged.values, score_heads(model, RAGGED, metric=Doubled(), **QUIET).values)
