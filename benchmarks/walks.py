"""How much faster are the steps of a walk side by side than a pass each, and what do they cost beyond the passes?

    python benchmarks/walks.py --pairs 1000 --sample 200 --repeats 1

All sides run in one process, in turn, `--repeats` times, in processor seconds and in wall time; ratios are
min / median / max. The other sides are timed before the walk and after it, on the first `--sample` pairs, and scaled.

- loop: for each step (timed on a few, and scaled: all cost the same) one pass of the whole model over 100 pairs at
  most, the step hooked in, as the code of arXiv:2409.17113 does (all positions, all layers, all logits);
- one by one: the same with one pair a pass, timed on a few and scaled;
- walk: `trace_sensitivity` on all pairs, all fixed costs in it (capture, record, checks, distances);
- passes: the blocks above the written layer alone, on rows of the walk's shapes that are there already.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from safetyheads import load_model, trace_sensitivity
from safetyheads.engine.walk import TOKENS_A_PASS, side_by_side
from safetyheads.inputs import prepare
from safetyheads.models.blocks import Blocks
from safetyheads.prompts.windows import text_windows
from safetyheads.training.corpus import shipped_prose


def seconds(run: Callable[[], Any]) -> tuple[float, float]:
    """Processor and wall seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.process_time() - cpu, time.perf_counter() - wall


@torch.inference_mode()
def loop(model: Any, ids: torch.Tensor, layer: int, points: torch.Tensor) -> None:
    """One pass a step, over all rows at once."""
    block = model.bridge.blocks[layer]
    for step in range(points.shape[1]):

        def write(_module: Any, args: Any, kwargs: Any, step: int = step) -> Any:
            states = args[0] if args else kwargs["hidden_states"]
            states = states.clone()
            states[:, -1] = points[:, step]
            return (
                ((states, *args[1:]), kwargs)
                if args
                else (args, {**kwargs, "hidden_states": states})
            )

        handle = block.register_forward_pre_hook(write, with_kwargs=True)
        model.states_and_logits(ids)
        handle.remove()


@torch.inference_mode()
def passes(model: Any, ids: torch.Tensor, layer: int, steps: int) -> Callable[[], None]:
    """The blocks from a layer on, on rows of the shapes of a walk."""
    before = ids.shape[1] - 1
    kernel = next(name for name in Blocks(model).kernels if name != "packed")
    calls = [side_by_side(call, before, steps) for call in Blocks(model).record(ids[:1])[1]]
    size = max(1, round(TOKENS_A_PASS["cpu"] / (before + steps)))
    row = torch.randn(size, before + steps, model.d_model)

    @torch.inference_mode()
    def run() -> None:
        for some in torch.arange(len(ids)).split(size):
            states = row[: len(some)]
            for at in range(layer, model.n_layers):
                states = Blocks(model).run(at, states, calls[at], kernel=kernel)

    return run


def main() -> None:
    """Run all sides in turn and print their ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=10)
    parser.add_argument("--layer", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--text", type=Path, help="the prose.json that regions.py keeps")
    parser.add_argument("--sample", type=int, help="pairs of the other sides; all by default")
    asked = parser.parse_args()
    model = load_model(asked.model)
    texts = json.loads(asked.text.read_text()) if asked.text else shipped_prose().paragraphs
    windows = text_windows(texts, model.tokenizer, length=asked.tokens, count=asked.pairs)
    ids, pairs = prepare(model, windows).batch.ids, len(windows)
    points = torch.randn(pairs, asked.steps, model.d_model)
    sample = min(asked.sample or pairs, pairs)
    bare = passes(model, ids[:sample], asked.layer, asked.steps)
    few, together, some = min(pairs, 2), min(sample, 100), min(asked.steps, 3)
    others: dict[str, tuple[Callable[[], Any], float]] = {
        "passes": (bare, pairs / sample),
        "loop": (
            lambda: loop(model, ids[:together], asked.layer, points[:together, :some]),
            asked.steps / some * pairs / together,
        ),
        "one by one": (
            lambda: [
                loop(model, ids[n : n + 1], asked.layer, points[n : n + 1, :some])
                for n in range(few)
            ],
            asked.steps / some * pairs / few,
        ),
    }
    found: dict[str, list[tuple[float, float]]] = {}

    def timed(name: str, run: Callable[[], Any], scale: float = 1.0) -> tuple[float, float]:
        cpu, wall = (scale * spent for spent in seconds(run))
        print(f"{name}: {cpu:.2f} s of processor, {wall:.2f} s", flush=True)
        return cpu, wall

    def walk() -> None:
        about = {"steps": asked.steps, "layer": asked.layer}
        print(trace_sensitivity(model, windows, **about, progress=False).checks, flush=True)

    for _ in range(asked.repeats):
        before = {name: timed(name, *other) for name, other in others.items()}
        found.setdefault("walk", []).append(timed("walk", walk))
        after = {name: timed(name, *other) for name, other in others.items()}
        for name in others:
            means = [sum(both) / 2 for both in zip(before[name], after[name], strict=True)]
            found.setdefault(name, []).append((means[0], means[1]))
    print(
        f"{model.name}, {pairs} pairs x {asked.steps} steps x {asked.tokens} tokens, {torch.get_num_threads()} threads"
    )
    for name, over in (("loop", "walk"), ("one by one", "walk"), ("passes", "walk")):
        for which, kind in enumerate(("processor", "wall")):
            ratios = sorted(
                a[which] / b[which] for a, b in zip(found[name], found[over], strict=True)
            )
            low, middle, high = ratios[0], ratios[len(ratios) // 2], ratios[-1]
            print(f"{name} / {over}, {kind}: {low:.2f} / {middle:.2f} / {high:.2f}")
    best = min(cpu for cpu, _ in found["walk"])
    print(f"1,000 pairs at this rate: {best / pairs * 1000 / 60:.1f} processor minutes")


if __name__ == "__main__":
    main()
