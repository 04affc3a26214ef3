"""What does screening save, what does it miss, and does it know?

    python benchmarks/screening.py --model smollm2-135m-instruct --prompts 8

One run scores every head exactly and screened, under both ablations, and prints for each: the processor time of
the screened run over that of the exact one, how many of the exact top ten it recovered, Spearman's correlation of
estimate and exact score over all heads, how many heads one would have to run by estimate alone to have the top ten,
and the recall that the run claims for itself beside the true one. The exact readings are kept in `--keep` and used
again by later runs, with the time that they took. Below: the claim against the truth over `--audits` random audits.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from safetyheads import ScalingContribution, UndifferentiatedAttention, load_model, load_prompts
from safetyheads.heads import Head, HeadScores
from safetyheads.metrics import GeneralizedShips, Metric, RefusalShift, Ships
from safetyheads.probes.single_heads import score_heads, screen_heads
from safetyheads.screening.audit import Screened, choose
from safetyheads.screening.screened import score_screened
from safetyheads.stats import spearman

METRICS: dict[str, Metric] = {
    "ships": Ships(),
    "refusal_shift": RefusalShift(),
    "left": GeneralizedShips(),
    "right": GeneralizedShips("right"),
}


def exactly(keep: Path, run: dict[str, Any], name: str) -> tuple[HeadScores, float]:
    """The exact scores and the seconds they took, from `keep` where they are there."""
    folder = keep / name
    if not (folder / "seconds.json").exists():
        start = time.process_time()
        score_heads(**run).save(folder)
        (folder / "seconds.json").write_text(json.dumps(time.process_time() - start))
    return HeadScores.load(folder), json.loads((folder / "seconds.json").read_text())


def recovered(scores: HeadScores, exact: HeadScores, k: int) -> float:
    """Share of the exact top k among the heads that were run."""
    return (scores.exact & (exact.ranks <= k)).sum().item() / k


def needed(scores: HeadScores, exact: HeadScores, k: int) -> int:
    """How many heads, best estimate first, hold the exact top k."""
    ranks = torch.empty(exact.values.numel(), dtype=torch.long)
    order = scores.estimates.flatten().argsort(descending=exact.largest_first, stable=True)
    ranks[order] = torch.arange(1, len(order) + 1)
    return int(ranks[(exact.ranks <= k).flatten()].max())


def claims(
    scores: HeadScores, exact: HeadScores, metric: Metric, method: Screened, audits: int
) -> str:
    """The recall that runs with other random audits claim, beside what they had; no pass is run."""
    named, true, held, cost = [], [], 0, []
    rows = exact.per_prompt if exact.readings is None else exact.readings

    def look_up(heads: list[Head]) -> torch.Tensor:
        return torch.stack([rows[head] for head in heads])

    for seed in range(audits):
        fields = {**vars(method), "seed": seed}
        found = score_screened(scores.estimates, metric, Screened(**fields), look_up)
        hit = (found.exact & (exact.ranks <= method.top_k)).sum().item() / method.top_k
        held += found.audit.recall_low <= hit <= found.audit.recall_high
        named.append(found.audit.recall)
        true.append(hit)
        cost.append(found.exact.double().mean().item())
    mean = [sum(some) / audits for some in (named, true, cost)]
    return (
        f"{audits} audits: claimed {mean[0]:.2f}, true {mean[1]:.2f}, interval held {held}, "
        f"heads run {mean[2]:.3f}"
    )


def passes(model: Any, exact: torch.Tensor) -> float:
    """Blocks that the exact heads cost over those that all heads cost: a head of layer l runs the blocks from l on."""
    blocks = torch.arange(model.n_layers, 0, -1) - 0.3
    return float((exact.double().sum(1) * blocks).sum() / (blocks.sum() * model.n_heads))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--metric", choices=METRICS, default="ships")
    parser.add_argument("--share", type=float, default=Screened().share)
    parser.add_argument("--audit", type=float, default=Screened().audit)
    parser.add_argument("--widen", type=float, default=Screened().widen)
    parser.add_argument("--directions", type=int, default=Screened().directions)
    parser.add_argument("--audits", type=int, default=40)
    parser.add_argument("--keep", type=Path, default=Path("build/screening"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    fields = ("share", "audit", "widen", "directions")
    method = Screened(**{name: getattr(options, name) for name in fields})
    model, metric = load_model(options.model), METRICS[options.metric]
    prompts = load_prompts("builtin").limit(options.prompts)
    ablations = [UndifferentiatedAttention(), ScalingContribution()]
    shared: dict[str, Any] = {"model": model, "prompts": prompts, "metric": metric}
    start = time.process_time()
    estimates = screen_heads(**shared, ablations=ablations, directions=method.directions)
    screen = time.process_time() - start
    print(
        f"{model.name}, {options.prompts} prompts, {model.n_layers * model.n_heads} heads, {metric.name}, "
        f"{method}\n  screen for both ablations {screen:.1f} s"
    )
    k, whole, part = method.top_k, 0.0, screen
    for ablation, estimate in zip(ablations, estimates, strict=True):
        run = {**shared, "ablation": ablation}
        name = f"{model.name}-{options.prompts}-{options.metric}-{ablation.name}"
        start = time.process_time()
        scores = score_heads(**run, method=method)
        seconds = (
            time.process_time() - start - screen
        )  # it screens for itself; a ranking screens once
        exact, exact_seconds = exactly(options.keep, run, name)
        whole, part = whole + exact_seconds, part + seconds
        prepared = metric.prepare(model.tokenizer, prompts.harmful)
        best = len(choose(estimate, method, largest_first=metric.largest_first).best)
        rho = spearman(estimate.flatten(), exact.values.flatten())
        print(
            f"  {ablation.name}\n"
            f"    exact {exact_seconds:.1f} s; screened {seconds:.1f} s + screen {screen:.1f} s: "
            f"{(seconds + screen) / exact_seconds:.3f} alone, "
            f"{(seconds + screen / 2) / exact_seconds:.3f} with the screen shared\n"
            f"    heads run {int(scores.exact.sum())} ({best} by estimate), "
            f"{passes(model, scores.exact):.3f} of the exact sweep's blocks\n"
            f"    exact top {k} recovered {recovered(scores, exact, k):.2f}; "
            f"by estimate alone all within the best {needed(scores, exact, k)}; Spearman {float(rho):.3f}\n"
            f"    claimed {scores.audit}; missed at most {scores.audit.missed_at_most}\n"
            f"    {claims(scores, exact, prepared, method, options.audits)}"
        )
    print(f"  both ablations: {part:.1f} s of {whole:.1f} s, {part / whole:.3f}")


if __name__ == "__main__":
    main()
