"""How far do half-precision weights move the scores?

    python benchmarks/dtypes.py --model smollm2-135m-instruct --prompts 8

Every head is scored with the same weights in float32, bfloat16 and float16; readings are float32 in all three. Printed:
the absolute difference of the scores to float32, Spearman's rank correlation over all heads, and how many of the ten
highest heads are the same. Half precision on a CPU is slow, and is no measure of its speed on a GPU.
"""

import argparse
import time

import torch

from safetyheads import (
    Execution,
    ScalingContribution,
    UndifferentiatedAttention,
    load_model,
    score_heads,
)
from safetyheads.heads import HeadScores
from safetyheads.prompts import load_prompts

QUIET = Execution(progress=False)
ABLATIONS = (UndifferentiatedAttention(), ScalingContribution())


def spearman(one: torch.Tensor, other: torch.Tensor) -> float:
    """Rank correlation over all heads."""
    ranks = [t.flatten().argsort().argsort().double() for t in (one, other)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def top(scores: HeadScores, k: int = 10) -> set[str]:
    """Labels of the k highest heads."""
    return set(scores.top(k)["label"])


def main() -> None:
    """Score with each type and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    prompts = load_prompts("builtin").limit(options.prompts)
    exact: dict[str, HeadScores] = {}
    print(f"{options.model}, {options.prompts} prompts, ships [nat], difference to float32")
    print("| weights | ablation | largest score | max diff | median diff | Spearman | top 10 | s |")
    print("|---|---|---|---|---|---|---|---|")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model = load_model(options.model, dtype=dtype, device=options.device)
        for ablation in ABLATIONS:
            start = time.perf_counter()
            scores = score_heads(model, prompts, ablation=ablation, execution=QUIET)
            seconds = time.perf_counter() - start
            reference = exact.setdefault(ablation.name, scores)
            difference = (scores.values - reference.values).abs()
            print(
                f"| {str(dtype).removeprefix('torch.')} | {ablation.name} | {scores.values.max():.3g} "
                f"| {difference.max():.2g} | {difference.median():.2g} "
                f"| {spearman(scores.values, reference.values):.4f} "
                f"| {len(top(scores) & top(reference))}/10 | {seconds:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
