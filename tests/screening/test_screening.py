"""A screen is exact for small steps, never passes for a measurement, and says honestly what it may have missed."""

import functools
import math
import random
from dataclasses import dataclass

import pandas
import pytest
import torch

from safetyheads.cli.main import parse_arguments
from safetyheads.cli.shown import format_table
from safetyheads.engine.climb import TOKENS_A_PASS
from safetyheads.engine.execution import Execution
from safetyheads.heads import Audit, Head, HeadScores
from safetyheads.interventions.ablations import (
    MeanAblation,
    ResampleAblation,
    ScalingContribution,
    UndifferentiatedAttention,
)
from safetyheads.metrics import GeneralizedShips, LastToken, RefusalShift, Ships, kl_divergence
from safetyheads.models.opening import load_model
from safetyheads.plots.heatmap import plot_head_heatmap
from safetyheads.plots.scatter import plot_head_scatter
from safetyheads.probes import single_heads
from safetyheads.probes.single_heads import score_heads, score_heads_together, screen_heads
from safetyheads.prompts import PromptSet, tokenize
from safetyheads.ranking.ranking import rank_safety_heads
from safetyheads.screening.audit import Screened, choose, judge, most_in_population
from safetyheads.screening.estimates import estimate_heads
from safetyheads.screening.screened import score_screened
from tests.zoo import CONFIGS, RAGGED, opened, random_model, sentence, tokenizer

QUIET = Execution(progress=False)

PROMPTS = PromptSet(
    "planted",
    harmful=tuple(sentence(10, 11, n, n + 1, *range(20, 20 + n % 3)) for n in (60, 62, 64, 67)),
    harmless=tuple(sentence(10, 11, n, n + 1, n + 2) for n in (80, 83, 86)),
    categories=("a", "a", "b", "b"),
)


@dataclass(frozen=True)
class Partway:
    """A hundredth of the way from z to what an ablation puts there: a step small enough for first order."""

    whole: object
    share: float = 0.01
    name: str = "partway"

    @property
    def needs(self):
        return self.whole.needs

    def __call__(self, acts):
        return acts.z + self.share * (self.whole(acts) - acts.z)


@functools.cache
def in_double(name="llama"):
    return load_model(random_model(CONFIGS[name]()).double(), tokenizer())


@pytest.fixture(scope="module")
def model():
    return opened("llama")


def error(estimate, exact):
    return float((estimate - exact).norm() / exact.norm())


@pytest.mark.parametrize("name", CONFIGS)
def test_estimates_become_exact_as_steps_become_small_on_every_architecture(name):
    model, steps = in_double(name), [Partway(ScalingContribution(0.0), s) for s in (0.1, 0.01)]
    estimates = screen_heads(model, RAGGED, ablations=steps, directions=24, progress=False)
    exact = [score_heads(model, RAGGED, ablation=a, execution=QUIET).values for a in steps]
    wide, narrow = (error(e, x) for e, x in zip(estimates, exact, strict=True))
    assert narrow < 0.02
    assert narrow < wide / 5  # first order: a tenth of the step, a tenth of the error
    assert exact[1].min() > 0


WHOLE = [
    UndifferentiatedAttention(),
    UndifferentiatedAttention(0.3),
    MeanAblation(),
    ResampleAblation(),
]
METRICS = [
    Ships(),
    RefusalShift(),
    GeneralizedShips(),
    GeneralizedShips(rank=2),
    GeneralizedShips("right"),
    GeneralizedShips("feature0"),
]


@pytest.fixture(scope="module")
def screens():
    """Every metric's estimates under every ablation, and the exact scores: each ablation is swept once for all metrics,
    each metric's gradients are taken once for all ablations."""
    model, ablations = in_double(), [Partway(whole) for whole in WHOLE]
    estimates = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(TOKENS_A_PASS, "cpu", 60)  # several passes
        for metric in METRICS:
            estimates[metric.name] = screen_heads(
                model, RAGGED, ablations=ablations, metric=metric, directions=64, progress=False
            )
        exact = [
            score_heads_together(model, RAGGED, METRICS, ablation=ablation, execution=QUIET)
            for ablation in ablations
        ]
    return estimates, exact


@pytest.mark.parametrize("n", range(len(WHOLE)), ids=[repr(whole) for whole in WHOLE])
@pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.name)
def test_every_ablation_and_metric_has_its_screen(n, metric, screens):
    estimates, exact = screens
    estimate, scores = estimates[metric.name][n], exact[n][METRICS.index(metric)]
    assert scores.metric == metric.name
    # Random directions know a length only on average.
    assert error(estimate, scores.values) < (0.25 if "right" in metric.name else 0.03)


def test_several_ablations_share_the_backward_passes(model):
    ablations = [UndifferentiatedAttention(), MeanAblation()]
    both = screen_heads(model, PROMPTS, ablations=ablations, progress=False)
    for ablation, together in zip(ablations, both, strict=True):
        (alone,) = screen_heads(model, PROMPTS, ablations=[ablation], progress=False)
        assert torch.allclose(alone, together, rtol=1e-5)
    assert error(*both) > 0.1


def test_logit_gradients_are_those_of_autograd():
    for name in ("gemma2-softcap-window", "granite-scaled-logits", "gptj"):
        model = in_double(name)
        states = torch.randn(3, model.d_model, dtype=torch.float64, requires_grad=True)
        tokens = torch.tensor([[5, 90], [1, 2], [40, 7]])
        rows = model.logit_gradients(states, tokens)
        logits = model.unembed(states).gather(1, tokens)
        for n in range(2):
            (slow,) = torch.autograd.grad(logits[:, n].sum(), states, retain_graph=True)
            assert torch.allclose(rows[:, n], slow)


def test_progress_counts_every_pass(model):
    batch = tokenize(RAGGED, tokenizer())
    done = []
    estimate_heads(model, batch, [MeanAblation()], Ships(), directions=5, progress=done.append)
    assert sum(done) == 3 * (2 + 5)


def test_the_model_is_left_as_it_was_and_a_caller_may_be_in_inference_mode(model):
    hf = model.hf
    before = [p.requires_grad for p in hf.parameters()]
    with torch.inference_mode():
        inside = screen_heads(model, RAGGED, ablations=[MeanAblation()], progress=False)[0]
    outside = screen_heads(model, RAGGED, ablations=[MeanAblation()], progress=False)[0]
    assert torch.equal(inside, outside)
    assert [p.requires_grad for p in hf.parameters()] == before
    assert all(p.grad is None for p in hf.parameters())
    assert not outside.requires_grad


def test_a_metric_without_a_slope_at_the_baseline_is_refused(model):
    class Squared(RefusalShift):
        name = "squared"

        def read(self, ablated: LastToken, baseline: LastToken):
            return kl_divergence(baseline.log_probs, ablated.log_probs)

    with pytest.raises(ValueError, match=r'squared has no screen.*use method="exact"'):
        score_heads(model, RAGGED, metric=Squared(tokens=(3,)), method="screened", execution=QUIET)


# Choice and audit ----------------------------------------------------------------------------------------------------


def world(noise, seed, layers=20, heads=10):
    """Exact scores, and estimates that are wrong by a log-normal factor."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(layers, heads, generator=generator).exp()
    return (
        scores * torch.exp(noise * torch.randn(layers, heads, generator=generator))
    ) ** 0.7 * 3, scores


def run_screened(estimates, scores, method):
    return score_screened(
        estimates,
        Ships(),
        method,
        lambda heads: torch.stack([scores[head].repeat(2) for head in heads]),
    )


def true_recall(found, scores, k=10):
    best = scores.flatten().topk(k).indices
    return found.exact.flatten()[best].double().mean().item()


@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
def test_the_interval_holds_the_true_recall(noise):
    held, bounded, named, true = 0, 0, [], []
    for seed in range(40):
        estimates, scores = world(noise, seed)
        found = run_screened(estimates, scores, Screened(widen=1.0, seed=seed, share=0.15))
        recall = true_recall(found, scores)
        held += found.audit.recall_low <= recall + 1e-9 and recall <= found.audit.recall_high + 1e-9
        missed = int((scores > scores[found.exact].topk(10).values[-1]).sum()) - 9
        bounded += missed <= found.audit.missed_at_most
        named.append(found.audit.recall)
        true.append(recall)
    assert held >= 36  # an interval of 95 %
    assert bounded >= 36
    assert abs(sum(named) - sum(true)) / 40 < 0.12


def test_estimates_that_know_nothing_give_no_confidence():
    _, scores = world(0, 0)
    nothing = torch.rand(scores.shape, generator=torch.Generator().manual_seed(3)) + 0.1
    found = run_screened(nothing, scores, Screened(widen=1.0))
    assert found.audit.recall < 0.5
    assert found.audit.missed_at_most > 10
    assert run_screened(nothing, scores, Screened(widen=0.02)).exact.sum() > 150  # it widens


def test_good_estimates_give_confidence_and_cost_little():
    estimates, scores = world(0.02, 1)
    found = run_screened(estimates, scores, Screened())
    assert true_recall(found, scores) == 1
    assert found.audit.recall > 0.97
    assert found.exact.sum() < 50


def test_exact_scores_stay_and_estimates_are_calibrated():
    estimates, scores = world(0.1, 2)
    found = run_screened(estimates, scores, Screened())
    assert torch.equal(found.values[found.exact], scores[found.exact])
    rest = found.values[~found.exact] / scores[~found.exact]
    assert rest.log().mean().abs() < 0.1
    assert (estimates / scores)[~found.exact].log().mean().abs() > 0.3  # not so before
    assert found.per_prompt[~found.exact].isnan().all()
    assert not found.per_prompt[found.exact].isnan().any()
    assert found.values[~found.exact].max() < found.values[found.exact].topk(10).values[-1]


@pytest.mark.parametrize("largest_first", [True, False])
def test_a_signed_metric_is_judged_on_its_own_scale(largest_first):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(20, 10, generator=generator)
    estimates = scores + 0.05 * torch.randn(20, 10, generator=generator)
    method = Screened(audit=0.1)
    choice = choose(estimates, method, largest_first=largest_first)
    exact = torch.zeros(200, dtype=torch.bool)
    exact[choice.best] = exact[choice.audit] = True
    exact = exact.reshape(20, 10)
    judged = judge(estimates, scores, exact, choice, method, largest_first=largest_first)
    assert judged.audit.recall > 0.9
    assert (judged.values - scores)[~exact].abs().max() < 0.3
    best = scores.flatten().topk(10, largest=largest_first).indices
    assert exact.flatten()[best].all()


def test_all_heads_run_is_no_estimate():
    estimates, scores = world(1.0, 0)
    found = run_screened(estimates, scores, Screened(share=1.0))
    assert found.exact.all()
    assert torch.equal(found.values, scores)
    assert (found.audit.recall, found.audit.recall_low, found.audit.missed_at_most) == (1, 1, 0)
    assert str(found.audit) == "all 200 heads run exactly"


def test_the_bound_is_the_hypergeometric_one_by_counting():
    draw = random.Random(0)
    for population, sample, hits in [(30, 6, 0), (30, 6, 2), (12, 12, 5), (9, 3, 3)]:
        bound = most_in_population(population, sample, hits)
        assert hits <= bound <= population
        for count, expected in ((bound, True), (bound + 1, False)):
            if count > population - (sample - hits):
                continue
            trials = [
                sum(n < count for n in draw.sample(range(population), sample)) for _ in range(8000)
            ]
            share = sum(t <= hits for t in trials) / len(trials)
            assert (share > 0.05 - 0.01) if expected else (share < 0.05 + 0.01)


def test_the_audit_is_a_fair_draw_of_the_rest():
    estimates, _ = world(1.0, 0)
    seen = torch.zeros(200)
    for seed in range(300):
        choice = choose(estimates, Screened(seed=seed))
        assert not set(choice.best.tolist()) & set(choice.audit.tolist())
        seen[choice.audit] += 1
    rest = choose(estimates, Screened()).best.tolist()
    drawn = seen[[n for n in range(200) if n not in rest]]
    assert drawn.min() > 0
    assert abs(drawn.mean() - 300 * 8 / 180) < 1e-6
    assert torch.equal(
        choose(estimates, Screened(seed=5)).audit, choose(estimates, Screened(seed=5)).audit
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"share": 0.0}, "share is 0.0; it must be above 0"),
        ({"audit": -0.1}, "audit is -0.1; it must be between 0 and 1"),
        ({"widen": 0.0}, "widen is 0.0; it must be above 0"),
        ({"directions": 0}, "directions is 0; it must be at least 1"),
        ({"top_k": 0}, "top_k is 0; it must be at least 1"),
    ],
)
def test_a_method_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Screened(**fields)


# score_heads ---------------------------------------------------------------------------------------------------------

FEW = Screened(top_k=3, share=0.2, audit=0.1, widen=0.5)


@pytest.fixture(scope="module")
def pair(model):
    return (
        score_heads(model, PROMPTS, method=FEW, execution=QUIET),
        score_heads(model, PROMPTS, execution=QUIET),
    )


def test_what_is_called_exact_is_the_exact_sweeps_score(pair):
    screened, exact = pair
    ran = screened.exact
    assert 5 <= ran.sum() < 24
    assert (screened.values - exact.values)[ran].abs().max() < 2e-6
    assert (screened.per_prompt - exact.per_prompt)[ran].abs().max() < 2e-6
    assert not (screened.values == exact.values)[~ran].any()
    assert screened.per_prompt[~ran].isnan().all()
    assert exact.exact is None
    assert exact.audit is None
    assert screened.provenance["method"]["name"] == "screened"


def test_the_table_says_which_scores_are_estimates(pair):
    screened, exact = pair
    table = screened.to_frame()
    kinds = dict(zip(table["label"], table["kind"], strict=True))
    for layer in range(4):
        for head in range(6):
            name = "exact" if screened.exact[layer, head] else "estimated"
            assert kinds[f"L{layer}H{head}"] == name
    assert set(exact.to_frame()["kind"]) == {"exact"}
    assert set(screened.top(3)["kind"]) == {"exact"}
    layer, head = (~screened.exact).nonzero()[0].tolist()
    with pytest.raises(ValueError, match=f"L{layer}H{head} was not run: its score is estimated at"):
        screened.score((layer, head))


def test_a_screened_result_survives_the_disk(pair, tmp_path):
    screened, _ = pair
    again = HeadScores.load(screened.save(tmp_path))
    assert again.audit == screened.audit
    assert torch.equal(again.exact, screened.exact)
    assert torch.equal(again.estimates, screened.estimates)
    assert again.to_frame().equals(screened.to_frame())


def test_wrong_estimates_are_never_reported_as_scores(model, pair, monkeypatch):
    wrong = pair[1].values.flatten().flip(0).reshape(4, 6) * 1000
    for widen in (0.3, 1.0):
        method = Screened(top_k=3, share=0.2, audit=0.1, widen=widen)
        monkeypatch.setattr(single_heads, "estimate_heads", lambda *_, **__: wrong[None])
        scores = score_heads(model, PROMPTS, method=method, execution=QUIET)
        assert (scores.values - pair[1].values)[scores.exact].abs().max() < 2e-6
        assert (scores.to_frame()["kind"] == "estimated").sum() == (~scores.exact).sum()


def test_included_heads_are_run(model):
    wanted = (Head(3, 5), Head(3, 4))
    method = Screened(top_k=1, share=0.01, audit=0.0, widen=1.0, include=wanted)
    scores = score_heads(model, PROMPTS, method=method, execution=QUIET)
    assert all(scores.exact[head] for head in wanted)
    assert scores.exact.sum() == 3
    with pytest.raises(ValueError, match="L9H0 is not in this model: it has layers 0-3"):
        score_heads(model, PROMPTS, method=Screened(include=(Head(9, 0),)), execution=QUIET)


def test_a_store_never_mixes_a_subset_with_whole_layers(model, pair, tmp_path):
    first = score_heads(
        model,
        PROMPTS,
        method=FEW,
        execution=Execution(store=tmp_path, progress=False),
    )
    whole = score_heads(
        model,
        PROMPTS,
        execution=Execution(store=tmp_path, progress=False),
    )
    again = score_heads(
        model,
        PROMPTS,
        method=FEW,
        execution=Execution(store=tmp_path, progress=False),
    )
    assert torch.equal(whole.values, pair[1].values)
    assert torch.equal(first.values, again.values)
    assert torch.equal(first.exact, again.exact)
    assert len(list(tmp_path.iterdir())) >= 2


def test_a_ranking_scores_the_same_heads_on_both_sides(model):
    ranking = rank_safety_heads(model, PROMPTS, method="screened", top_k=2, execution=QUIET)
    for harmful, harmless in zip(ranking.harmful, ranking.harmless, strict=True):
        assert harmful.audit.top_k == 2
        assert (harmless.exact | ~harmful.exact).all()
        assert not harmless.exact.all()
    table = ranking.top(2)
    assert set(table["kind"]) == set(table["harmless_kind"]) == {"exact"}
    whole = ranking.to_frame()
    assert (whole["kind"] == "estimated").any()
    shown = format_table(whole)
    estimated = whole[whole["kind"] == "estimated"].iloc[0]
    assert f"~{estimated['score']:.4g}" in shown
    assert shown.count("~ estimated, not run") == 2
    assert "~" not in format_table(table)


def test_the_command_line_takes_the_method():
    assert parse_arguments(["rank"]).method == "exact"
    assert parse_arguments(["rank", "--method", "screened"]).method == "screened"
    with pytest.raises(SystemExit):
        parse_arguments(["rank", "--method", "screened", "--layers", "0-3"])


def test_the_audit_prints_what_it_knows():
    audit = Audit(10, 270, 40, 12, 0, 0.97, 0.8, 1.0, 30)
    assert str(audit) == (
        "40 of 270 heads run exactly, the others estimated; recall of the top 10: 0.97 (0.80 to 1.00)"
    )


def test_figures_mark_estimates(pair):
    table = pair[0].to_frame()
    (points, *_) = (t for t in plot_head_scatter(table, k=24).data if t.x[0] is not None)
    assert list(points.marker.symbol) == [
        "circle" if kind == "exact" else "circle-open-dot" for kind in table["kind"]
    ]
    shown = {text: rank for text, (_, rank) in zip(points.text, points.customdata, strict=True)}
    assert [str(rank).endswith("estimated") for rank in shown.values()] == [
        kind == "estimated" for kind in table["kind"]
    ]
    heat, hatch, *_ = plot_head_heatmap(table).data
    places = set(zip(hatch.x, hatch.y, strict=True))
    assert places == {(la, he) for la, he in (~pair[0].exact).nonzero().tolist()}
    layer, head = next(iter(places))
    assert str(heat.customdata[head][layer]).endswith(", estimated")
    plain = plot_head_scatter(pair[1].to_frame(), k=24).data
    assert plain[0].marker.symbol == "circle"
    assert isinstance(table, pandas.DataFrame)
    assert math.isfinite(points.marker.size)
