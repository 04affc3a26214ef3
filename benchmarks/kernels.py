"""Which way of running a block is fastest, for short and for long prompts?

    python benchmarks/kernels.py --model smollm2-135m-instruct

Each of the model's kernels runs all blocks on the same rows, in turn, `--repeats` times: "sdpa" and "eager" are the
plain blocks beneath the bridge, "hooked" has the hook points. The share of each is its time over the hooked blocks'.
"""

import argparse
import statistics
import time

import torch

from safetyheads import load_model
from safetyheads.engine.climb import TOKENS_A_PASS
from safetyheads.models.blocks import Blocks


@torch.inference_mode()
def main() -> None:
    """Time all kernels and print a line for each length."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--lengths", type=int, nargs="+", default=[24, 48, 256, 512, 1024])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_model(options.model)
    kernels = [
        kernel for kernel in Blocks(model).kernels if kernel != "packed"
    ]  # the same attention as sdpa
    generator = torch.Generator().manual_seed(0)
    print(
        f"{model.name}, about {TOKENS_A_PASS['cpu']} tokens a pass; time over the hooked blocks', min / median / max"
    )
    for length in options.lengths:
        rows = max(1, TOKENS_A_PASS["cpu"] // length)
        ids = torch.randint(100, 10000, (rows, length), generator=generator)
        resid, calls = Blocks(model).embed(ids), Blocks(model).record(ids[:1])[1]
        times: dict[str, list[float]] = {kernel: [] for kernel in kernels}
        states = {}
        for _ in range(options.repeats):
            for kernel in kernels:
                start, rows_in = time.perf_counter(), resid
                for layer, call in enumerate(calls):
                    rows_in = Blocks(model).run(layer, rows_in, call, kernel=kernel)
                times[kernel].append(time.perf_counter() - start)
                states[kernel] = model.final_norm(rows_in[:, -1])
        line = f"  {rows:3} x {length:4} tokens, hooked {statistics.median(times['hooked']):.2f} s"
        for kernel in kernels[:-1]:
            shares = [t / b for t, b in zip(times[kernel], times["hooked"], strict=True)]
            off = (states[kernel] - states["hooked"]).abs().max() / states["hooked"].abs().max()
            line += (
                f"; {kernel} {min(shares):.2f} / {statistics.median(shares):.2f} / {max(shares):.2f}"
                f" (states differ by {off:.0e})"
            )
        print(line, flush=True)


if __name__ == "__main__":
    main()
