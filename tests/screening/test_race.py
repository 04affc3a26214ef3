"""A race calls exact what is exact, knows how sure it is of the rest, and costs no more than it says."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from scipy.stats import t as student

from safetyheads.engine.execution import Execution
from safetyheads.engine.kernels import Packed, Padded
from safetyheads.engine.measurement import measure
from safetyheads.engine.rounds import Rounds
from safetyheads.heads import Head, HeadScores
from safetyheads.inputs import prepare
from safetyheads.metrics import Ships
from safetyheads.models.blocks import Blocks
from safetyheads.models.hooked import ModelSource
from safetyheads.models.opening import load_model
from safetyheads.probes.single_heads import score_heads
from safetyheads.prompts import PromptSet
from safetyheads.ranking.planning import plan
from safetyheads.ranking.ranking import rank
from safetyheads.ranking.study import Study
from safetyheads.screening.intervals import means
from safetyheads.screening.pivots import Population
from safetyheads.screening.race import Raced, expected_passes, race, random_order
from safetyheads.storage.store import Store
from tests.zoo import CONFIGS, opened, random_model, sentence, tokenizer

QUIET = Execution(progress=False)


def prompts(count, shared=8):
    """Prompts of several lengths that share a beginning."""
    rest = [[(7 * i + 13 * n) % 60 + 30 for n in range(3 + i % 4)] for i in range(count)]
    return tuple(sentence(*range(10, 10 + shared), *ids) for ids in rest)


BOTH = PromptSet("race", prompts(9), prompts(9, shared=6), categories=("a", "b", "c") * 3)


@pytest.fixture(scope="module")
def model():
    return opened("llama", spread=0.5)


def planted(heads=120, count=48, seed=0, spread=0.6, signed=False):
    """Scores of heads and prompts whose means fall by a constant factor, skewed and with effects of prompts."""
    random = np.random.default_rng(seed)
    size = np.exp(-4 * random.permutation(heads) / heads)
    effects = random.normal(0, spread, (heads, count)) + random.normal(0, spread / 2, count)
    if signed:
        return size[:, None] * (random.normal(size=(heads, 1)) + effects)
    return size[:, None] * np.exp(effects)


def looked_up(scores, sign=1.0):
    ran = []

    def run(heads, chosen):
        ran.append((len(heads), len(chosen)))
        return torch.from_numpy(sign * scores[np.ix_([h.head for h in heads], list(chosen))])

    return run, ran


# What is run ---------------------------------------------------------------------------------------------------------


FEW = ["llama", "mistral-window", "gemma2-softcap-window", "gpt2", "neox"]


@pytest.mark.parametrize("name", FEW)
def test_what_is_called_exact_is_what_the_sweep_gives(name):
    model = load_model(random_model(CONFIGS[name]()), tokenizer())
    exact = score_heads(model, BOTH, execution=QUIET)
    raced = score_heads(
        model, BOTH, method=Raced(top_k=3, growth=1.6, caution=0.3), execution=QUIET
    )
    assert 3 <= raced.race.run < raced.race.heads == exact.values.numel()
    assert raced.exact.sum() == raced.race.run
    assert (raced.prompts_run[raced.exact] == 9).all()
    both = ~raced.per_prompt.isnan()
    assert both.sum() == raced.race.passes == raced.prompts_run.sum()
    assert torch.allclose(raced.per_prompt[both], exact.per_prompt[both], atol=2e-6, rtol=1e-5)
    assert torch.allclose(raced.values[raced.exact], exact.values[raced.exact], atol=2e-6)
    assert exact.values.max() > 1e-3


@pytest.mark.parametrize("ablation", ["mean", "resample"])
def test_an_ablation_that_looks_at_other_prompts_looks_at_all_of_them_in_every_round(
    model, ablation
):
    exact = score_heads(model, BOTH, ablation=ablation, metric="refusal_shift", execution=QUIET)
    raced = score_heads(
        model,
        BOTH,
        ablation=ablation,
        metric="refusal_shift",
        method=Raced(top_k=3),
        execution=QUIET,
    )
    both = ~raced.per_prompt.isnan()
    assert both.any()
    assert not both.all()
    assert torch.allclose(raced.per_prompt[both], exact.per_prompt[both], atol=1e-5)


@pytest.mark.parametrize("kernel", [Packed(), Padded("sdpa"), Padded("eager"), Padded("hooked")])
def test_a_prefix_is_run_once_a_head_by_every_kernel(model, monkeypatch, kernel):
    rounds = Rounds(measure(prepare(model, BOTH), metric=Ships()), QUIET)
    _opened, references, kept = rounds._open()
    assert kept is not None
    rounds._opened = kernel, references, kept
    tokens = []
    run = Blocks.run

    def counted(self, layer, resid, call, **options):
        tokens.append(resid.shape[0] * resid.shape[1])
        return run(self, layer, resid, call, **options)

    monkeypatch.setattr(Blocks, "run", counted)
    heads = [Head(1, 0), Head(1, 3), Head(2, 5)]
    first = rounds(heads, [0, 4])
    with_prefix = sum(tokens)
    tokens.clear()
    again = rounds(heads, [4, 0])
    assert torch.allclose(first, again[:, [1, 0]], atol=2e-6)
    assert first.max() > 1e-3
    # A clean pass and a baseline run the prefix all the same.
    assert sum(tokens) <= with_prefix - 3 * inputs_prefix(model)


def inputs_prefix(model):
    return prepare(model, BOTH).batch.prefix_length


def test_a_race_that_was_killed_goes_on_where_it_was(model, tmp_path, monkeypatch):
    asked = {"method": Raced(top_k=3), "execution": Execution(store=tmp_path, progress=False)}
    whole = score_heads(model, BOTH, method=Raced(top_k=3), execution=QUIET)
    written = Store.__setitem__

    def killed(self, key, value):
        written(self, key, value)
        if key.startswith("round02"):
            raise KeyboardInterrupt

    monkeypatch.setattr(Store, "__setitem__", killed)
    with pytest.raises(KeyboardInterrupt):
        score_heads(model, BOTH, **asked)
    monkeypatch.undo()
    ran = []
    finish = Packed.finish

    def counted(self, rows, site, variants, *rest):
        ran.append(len(variants) * len(rows.prompts))
        return finish(self, rows, site, variants, *rest)

    monkeypatch.setattr(Packed, "finish", counted)
    resumed = score_heads(model, BOTH, **asked)
    assert sum(ran) < whole.race.passes - 24 * 2
    assert torch.equal(resumed.exact, whole.exact)
    assert resumed.race == whole.race
    assert torch.allclose(resumed.values, whole.values, atol=1e-6)
    ran.clear()
    assert torch.equal(score_heads(model, BOTH, **asked).values, resumed.values)
    assert sum(ran) == 0


def test_a_race_runs_in_workers(model, monkeypatch):
    here = score_heads(model, BOTH, method=Raced(top_k=3, growth=2.0), execution=QUIET)
    opened = dataclasses.replace(model, opened_from=ModelSource("a name", "cpu", None))
    rounds = Rounds(measure(prepare(opened, BOTH), metric=Ships()), Execution(executor=map))
    monkeypatch.setattr("safetyheads.engine.shards._open", lambda source, first: model)
    apart = rounds([Head(2, 1), Head(0, 3)], [5, 2])
    known = here.per_prompt[[2, 0], [1, 3]][:, [5, 2]]
    seen = ~known.isnan()
    assert seen.any()
    assert torch.allclose(apart[seen], known[seen], atol=2e-6)
    with pytest.raises(ValueError, match="leave executor out"):
        Rounds(measure(prepare(opened, BOTH), "mean", Ships()), Execution(executor=map))


# What is said --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [False, True])
def test_a_race_finds_the_top_and_says_how_surely(signed):
    """Over seeds: recall, coverage of the intervals, and the chance that the top is exact against how often it is."""
    recall, inside, claimed, right, cost = [], [], [], [], []
    for seed in range(40):
        scores = planted(seed=seed, signed=signed)
        true = scores.mean(1)
        run, _ = looked_up(scores)
        order = random_order(48, (), seed)
        found = race(run, (1, 120), order, Raced())
        best, top = (
            set(np.argsort(-true)[:10]),
            found.values.flatten().argsort(descending=True)[:10],
        )
        assert found.exact.flatten()[top].all()
        recall.append(len(best & set(top.tolist())) / 10)
        right.append(best == set(top.tolist()))
        claimed.append(found.race.chance)
        cost.append(found.race.passes / scores.size)
        out = ~found.exact.flatten().numpy()
        low, high = (t.flatten().numpy()[out] for t in (found.low, found.high))
        inside.append(((true[out] >= low) & (true[out] <= high)).mean())
    assert np.mean(recall) >= 0.94
    assert np.mean(cost) < 0.5
    assert 0.92 <= np.mean(inside) <= 0.97
    assert abs(np.mean(claimed) - np.mean(right)) <= 0.13


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("count", [3, 24])
def test_intervals_hold_where_nothing_was_chosen(count, signed):
    inside, sides = [], []
    for seed in range(20):
        scores = planted(seed=seed, signed=signed)
        ran = np.zeros(scores.shape, bool)
        ran[:, np.random.default_rng(seed).permutation(48)[:count]] = True
        low, high = means(scores, ran).interval()
        true = scores.mean(1)
        inside.append(((true >= low) & (true <= high)).mean())
        sides.append([(true < low).mean(), (true > high).mean()])
    assert 0.91 <= np.mean(inside) <= 0.98
    assert np.mean(sides, 0).max() <= 0.06


def test_made_up_heads_with_normal_scores_give_students_t():
    """A moderated variance has its own degrees of freedom and those of the prior (Smyth 2004)."""
    normal = np.random.default_rng(1).normal(size=20_000)
    population = Population(np.full(9, 2.5), 4.0, normal, positive=False)
    found = population.pivots([5], 1000)[5]
    assert np.allclose(
        np.quantile(found, [0.05, 0.5, 0.95]), student.ppf([0.05, 0.5, 0.95], 8), atol=0.12
    )
    skewed = Population(np.full(9, 0.5), 4.0, normal, positive=True).pivots([5], 1000)[5]
    assert np.quantile(skewed, 0.975) > -np.quantile(skewed, 0.025)


def test_a_head_is_weighed_by_how_many_are_as_large():
    """Two prompts that promise much are less believed of a head among many small ones than among large ones."""
    scores = planted(seed=2, heads=200)
    order = np.argsort(-scores.mean(1))
    ran = np.zeros(scores.shape, bool)
    ran[:, :2] = True
    ran[order[:12]] = True
    border = scores.mean(1)[order[9]]
    among_all = means(scores, ran).above(border)
    among_large = means(scores[order[:40]], ran[order[:40]]).above(border)
    done = ran.all(1)
    assert (among_all[done] == (scores.mean(1) > border)[done]).all()
    assert 0 < among_all[order[12:40]].sum() < 0.8 * among_large[12:].sum()


def test_scores_that_rank_downward_are_raced_downward():
    scores = planted(seed=3, signed=True)
    up, down = (
        race(looked_up(scores, sign)[0], (1, 120), range(48), Raced(), largest_first=sign > 0)
        for sign in (1.0, -1.0)
    )
    assert torch.allclose(up.values, -down.values)
    assert torch.allclose(up.low, -down.high)
    assert up.race == down.race
    assert (down.low <= down.high).all()


def test_a_covariate_sharpens_means_and_a_useless_one_costs_nothing():
    scores = planted(heads=200, seed=1)
    random = np.random.default_rng(0)
    ran = np.zeros(scores.shape, bool)
    ran[:, random.permutation(48)[:6]] = True
    alone, noise = means(scores, ran), means(scores, ran, np.exp(random.normal(size=scores.shape)))
    good = means(scores, ran, scores * np.exp(random.normal(0, 0.2, scores.shape)))
    assert good.error.mean() < 0.6 * alone.error.mean()
    assert abs(noise.error.mean() / alone.error.mean() - 1) < 0.02
    assert np.abs(noise.mean / alone.mean - 1).mean() < 0.02
    true = scores.mean(1)
    assert np.abs(good.mean - true).mean() < 0.6 * np.abs(alone.mean - true).mean()


def test_means_are_unbiased_and_errors_end_with_the_prompts():
    scores = planted(heads=40, count=12)
    random = np.random.default_rng(0)
    found = []
    for _ in range(400):
        ran = np.zeros(scores.shape, bool)
        ran[:, random.permutation(12)[:3]] = True
        found.append(means(scores, ran).mean)
    true, error = scores.mean(1), np.std(found, 0) / 20
    assert (np.abs(np.mean(found, 0) - true) < 4 * error).all()
    assert (means(scores, np.ones_like(scores, bool)).error == 0).all()


def test_the_passes_to_come_are_about_those_that_come():
    ratios = []
    for seed in range(10):
        run, _ = looked_up(planted(heads=270, count=64, seed=seed))
        found = race(run, (1, 270), random_order(64, (), seed), Raced())
        ratios.append(sum(expected_passes(Raced(), 270, 64)) / found.race.passes)
    assert 0.4 < np.mean(ratios) < 2.5


def test_prompts_are_drawn_over_all_categories():
    categories = "aaaabbbbcccc"
    orders = [random_order(12, categories, seed) for seed in range(30)]
    assert all(sorted(order) == list(range(12)) for order in orders)
    assert all({categories[p] for p in order[:3]} == set("abc") for order in orders)
    assert len({order[0] for order in orders}) > 6


# Through the doors ---------------------------------------------------------------------------------------------------


def test_a_ranking_is_raced_and_its_exact_heads_stand_beside_their_harmless_scores(model):
    study = Study(model, BOTH, ablations="zero", metric="ships", method="raced", top_k=4)
    assert study.method == Raced(top_k=4)
    found = rank(study, QUIET)
    (harmful,), (harmless,) = found.harmful, found.harmless
    assert torch.equal(harmful.exact, harmless.exact)
    assert harmless.values.isnan().equal(~harmful.exact)
    table = found.top(4)
    assert (table["kind"] == "exact").all()
    assert (table["harmless_kind"] == "exact").all()
    assert {"prompts_run", "low", "high"} <= set(table)
    exact = score_heads(model, BOTH, ablation="zero", side="harmless", execution=QUIET)
    assert torch.allclose(harmless.values[harmful.exact], exact.values[harmful.exact], atol=2e-6)
    everything = found.to_frame()
    assert set(everything["harmless_kind"]) == {"exact", "not run"}
    assert everything[everything["kind"] == "exact"]["q_value"].notna().all()
    assert "heads run on all 9 prompts" in str(harmful.race)


def test_a_raced_study_is_a_file_and_has_a_plan(model, tmp_path):
    study = Study("m", "builtin", method=Raced(top_k=3, include=(Head(1, 2),)))
    assert Study.from_toml(study.to_toml()) == study
    raced = plan(Study(model, BOTH, ablations="zero", method=Raced(top_k=2)), QUIET)
    exact = plan(Study(model, BOTH, ablations="zero"), QUIET)
    assert raced.variants < exact.variants
    assert raced.tokens < exact.tokens


def test_raced_scores_are_a_record(model, tmp_path):
    found = score_heads(model, BOTH, method=Raced(top_k=3), execution=QUIET)
    found.save(tmp_path / "scores")
    loaded = HeadScores.load(tmp_path / "scores")
    assert loaded.race == found.race
    assert torch.equal(loaded.low, found.low)
    assert torch.equal(loaded.prompts_run, found.prompts_run)
    assert spearmanr(loaded.values.flatten(), found.values.flatten()).statistic > 0.999


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"first": 1}, "at least 2"),
        ({"top_k": 0}, "at least 1"),
        ({"growth": 1.0}, "above 1"),
        ({"caution": 0.0}, "above 0"),
        ({"include": (Head(9, 9),)}, "not in this model"),
        ({"top_k": 25}, "has 24 heads"),
    ],
)
def test_a_race_that_cannot_be_is_refused(model, fields, says):
    with pytest.raises(ValueError, match=says):
        score_heads(model, BOTH, method=Raced(**fields), execution=QUIET)


def test_a_metric_of_all_prompts_together_is_not_raced(model):
    with pytest.raises(ValueError, match="a race compares means over prompts"):
        score_heads(model, BOTH, metric="generalized_ships", method="raced", execution=QUIET)
