"""What does capturing one layer's attention cost beside a forward pass that stops at that layer?

    python benchmarks/attention.py --model smollm2-135m-instruct --tokens 512 --threads 1

Both sides run in one process, in turn, `--repeats` times for each layer. Printed are ratios of CPU time, min / median
/ max.

- stopped pass: the model's own forward pass, left when the block of that layer has given its output;
- capture: `capture_attention` of that layer, mean over heads, with the running mean, mean logarithm and variance;
- capture per head: the same, heads kept apart.

The prompts are token tensors, so neither side tokenizes.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from safetyheads import load_model
from safetyheads.inputs import Inputs
from safetyheads.probes.attention.capture import Asked, captured
from safetyheads.probes.attention.grid import Grid
from safetyheads.prompts import TokenBatch


def seconds(run: Callable[[], Any]) -> float:
    """CPU time of one call, all threads together; on a shared machine wall time would measure the neighbours."""
    start = time.process_time()
    run()
    return time.process_time() - start


def stopped_pass(model: Any, ids: torch.Tensor, layer: int) -> None:
    """The model's own forward pass, one prompt at a time, left after one block."""

    class Reached(Exception):
        pass

    def stop(*_: Any) -> None:
        raise Reached

    handle = model.bridge.blocks[layer].register_forward_hook(stop)
    try:
        for row in ids:
            with contextlib.suppress(Reached):
                model.logits(row[None])
    finally:
        handle.remove()


def spread(values: list[float]) -> str:
    """Minimum, median and maximum."""
    return f"{min(values):.2f} / {statistics.median(values):.2f} / {max(values):.2f}"


@torch.inference_mode()
def main() -> None:
    """Time both and print a line a layer."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 4, 14])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_model(options.model)
    vocabulary = len(model.tokenizer)
    ids = torch.randint(
        vocabulary // 2,
        (options.prompts, options.tokens),
        generator=torch.Generator().manual_seed(0),
    )
    text = model.tokenizer.decode(ids[0])
    batch = TokenBatch(
        ids, torch.full((len(ids),), options.tokens), (text,) * len(ids), "random tokens"
    )

    inputs = Inputs(model, batch, (), {})
    grid = Grid(length=options.tokens, floor=1e-5)

    def capture(layer: int, per_head: bool) -> None:
        # Below the door: random tokens have no text that would give them back.
        asked = Asked((layer,), tuple(range(model.n_heads)), per_head)
        captured(inputs, asked, grid, progress=False)

    print(
        f"{model.name}, {options.prompts} prompts of {options.tokens} tokens, {options.threads} thread(s), "
        f"{options.repeats} repeats, min / median / max"
    )
    for layer in options.layers:
        times: dict[str, list[float]] = {"pass": [], "capture": [], "per head": []}
        for _ in range(options.repeats + 1):
            times["pass"].append(seconds(lambda: stopped_pass(model, ids, layer)))  # noqa: B023
            times["capture"].append(seconds(lambda: capture(layer, False)))  # noqa: B023
            times["per head"].append(seconds(lambda: capture(layer, True)))  # noqa: B023
        plain = times["pass"][1:]  # the first round warms up
        print(f"  layer {layer}: stopped pass [s]         {spread(plain)}")
        for name in ("capture", "per head"):
            ratios = [t / p for t, p in zip(times[name][1:], plain, strict=True)]
            print(f"    {name} / stopped pass".ljust(36) + spread(ratios))


if __name__ == "__main__":
    main()
