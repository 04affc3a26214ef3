"""How much faster is the sweep than the loops it replaces, and how close to the machine's own speed?

    python benchmarks/engine.py --model smollm2-135m-instruct --prompts 8 --threads 1

Both sides run in one process, in turn, `--repeats` times; ratios are printed as min / median / max.

- batched loop: for each head one `run_with_hooks` pass over all prompts, as right-padded rows, with full logits;
- one by one: for each head and each prompt one pass of batch 1, as the reference code does;
- sweep: `sweep()` over every head of the model (or of `--a-layer` heads in each layer), all fixed costs in it
  (baseline, clean pass, self-check, recorded calls).

A pass of a loop costs the same for every head, so the loops are timed on a few heads spread over the layers and scaled.
The share of the machine's matrix-multiply rate is the sweep's useful multiply-adds (projections and MLPs of the rows
that must run; attention, norms, unembedding and all fixed costs count as loss) over its time, against
`torch.nn.functional.linear` on the same shapes, timed right before.
"""

import argparse
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import torch

from safetyheads import UndifferentiatedAttention, load_model, load_prompts, tokenize
from safetyheads.heads import Head
from safetyheads.interventions import AblateHead
from safetyheads.metrics import Ships, kl_divergence
from safetyheads.sweep import TOKENS_A_PASS, layout, sweep


def seconds(run: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def loop_pass(model: Any, ids: torch.Tensor, lengths: torch.Tensor, head: Head) -> torch.Tensor:
    """One plain hooked pass over rows, zero ablation, full logits, KL at the last tokens."""

    def zero(z: torch.Tensor, hook: Any) -> torch.Tensor:
        z = z.clone()
        z[:, :, head.head] = 0.0
        return z

    name = f"blocks.{head.layer}.attn.hook_z"
    logits = model.bridge.run_with_hooks(
        ids, attention_mask=torch.ones_like(ids), fwd_hooks=[(name, zero)]
    )
    last = logits[torch.arange(len(ids)), lengths - 1].log_softmax(-1)
    return kl_divergence(last, last)


def multiply_adds(model: Any, batch: Any, rows: int | None) -> float:
    """Multiply-adds of projections and MLPs that the sweep of all heads runs after each head's own layer."""
    sizes = [
        (name, p.numel())
        for name, p in model.bridge.original_model.named_parameters()
        if p.ndim == 2 and ".0." in name and "norm" not in name
    ]
    block = sum(size for _, size in sizes)
    mlp = sum(size for name, size in sizes if "mlp" in name)
    tokens = 0
    for prompts, _ in layout(batch, rows):
        part = batch.select(prompts)
        prefix = part.prefix_length if len(prompts) > 1 else 0
        tokens += prefix + len(prompts) * (part.ids.shape[1] - prefix)
    # The ablated layer's attention and the top layer's MLP are not run.
    weights = sum(
        mlp + block * (model.n_layers - layer - 2) + block - mlp
        for layer in range(model.n_layers - 1)
    )
    return 2.0 * weights * tokens * model.n_heads


def matmul_rate(model: Any, tokens: int) -> float:
    """Operations a second of this machine on one block's matrices, at the sweep's number of rows."""
    matrices = [
        p.detach().clone()
        for n, p in model.bridge.original_model.named_parameters()
        if p.ndim == 2 and ".0." in n and "norm" not in n
    ]
    inputs = {m.shape[1]: torch.randn(tokens, m.shape[1]) for m in matrices}

    def once() -> None:
        for m in matrices:
            torch.nn.functional.linear(inputs[m.shape[1]], m)

    once()
    return 2.0 * tokens * sum(m.numel() for m in matrices) / min(seconds(once) for _ in range(10))


class PeakMemory:
    """Resident memory of this process above what it was at the start, sampled every 5 ms."""

    def __enter__(self) -> "PeakMemory":
        self.process, self.highest, self.running = psutil.Process(), 0, True
        self.before = self.process.memory_info().rss
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while self.running:
            self.highest = max(self.highest, self.process.memory_info().rss - self.before)
            time.sleep(0.005)

    def __exit__(self, *_: object) -> None:
        self.running = False
        self.thread.join()


def spread(values: list[float]) -> str:
    """Minimum, median and maximum."""
    return f"{min(values):.2f} / {statistics.median(values):.2f} / {max(values):.2f}"


def sampled(model: Any, count: int) -> Iterator[Head]:
    """A few heads spread evenly over the layers."""
    for n in range(count):
        yield Head((2 * n + 1) * model.n_layers // (2 * count), n % model.n_heads)


@torch.inference_mode()
def main() -> None:
    """Time the three and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--rows", type=int, help="of one forward pass; by its tokens when not given"
    )
    parser.add_argument("--heads", type=int, default=3, help="heads on which the loops are timed")
    parser.add_argument(
        "--a-layer", type=int, help="heads of each layer that are swept; all when not given"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_model(options.model)
    batch = tokenize(load_prompts("builtin").limit(options.prompts).harmful, model.tokenizer)
    a_layer = options.a_layer or model.n_heads
    heads = [Head(la, he) for la in range(model.n_layers) for he in range(a_layer)]
    edits = [AblateHead(head, UndifferentiatedAttention()) for head in heads]
    few = list(sampled(model, options.heads))
    scale = len(heads) / len(few)
    work = multiply_adds(model, batch, options.rows) * a_layer / model.n_heads
    singles = [batch.select([n]) for n in range(min(options.prompts, 2))]
    per_single = options.prompts / len(singles)
    times: dict[str, list[float]] = {
        "batched": [],
        "single": [],
        "sweep": [],
        "share": [],
        "memory": [],
    }
    for _ in range(options.repeats):
        times["batched"].append(
            scale * seconds(lambda: [loop_pass(model, batch.ids, batch.lengths, h) for h in few])
        )
        times["single"].append(
            scale
            * per_single
            * seconds(lambda: [loop_pass(model, s.ids, s.lengths, h) for h in few for s in singles])
        )
        rate = matmul_rate(model, TOKENS_A_PASS["cpu"])
        with PeakMemory() as memory:
            spent = seconds(lambda: sweep(model, batch, edits, Ships(), rows=options.rows))
        times["memory"].append(memory.highest / 2**30)
        times["sweep"].append(spent)
        times["share"].append(work / spent / rate)
    batched = [b / s for b, s in zip(times["batched"], times["sweep"], strict=True)]
    single = [b / s for b, s in zip(times["single"], times["sweep"], strict=True)]
    print(
        f"{model.name}, {options.prompts} prompts of {batch.lengths.min()}-{batch.lengths.max()} tokens "
        f"({batch.prefix_length} shared), {len(heads)} heads, {options.threads} thread(s), min / median / max"
    )
    print(f"  sweep of all heads [s]                       {spread(times['sweep'])}")
    print(f"  batched run_with_hooks loop / sweep          {spread(batched)}")
    print(f"  one pass a head and prompt / sweep           {spread(single)}")
    print(f"  share of the matrix-multiply rate            {spread(times['share'])}")
    print(f"  peak memory beyond the model [GiB]           {spread(times['memory'])}")


if __name__ == "__main__":
    main()
