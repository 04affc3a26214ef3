"""How much faster is the sweep than the loops it replaces, and how close to the machine's own speed?

    python benchmarks/engine.py --model smollm2-135m-instruct --prompts 8 --threads 1

Both sides run in one process, in turn, `--repeats` times; ratios are printed as min / median / max.

- batched loop: for each head one `run_with_hooks` pass over all prompts, as right-padded rows, with full logits;
- one by one: for each head and each prompt one pass of batch 1, as the reference code does;
- sweep: `sweep()` over every head of the model (or of `--a-layer` heads in each layer), all fixed costs in it
  (baseline, clean pass, self-check, recorded calls).

A pass of a loop costs the same for every head, so the loops are timed on a few heads spread over the layers and scaled.
The share of the machine's matrix-multiply rate is the operations of the sweep's matrix products (projections and MLPs
of the tokens that must run, unembedding of the last ones; attention, norms and all fixed costs count as loss) over its
time, against the projections' and MLPs' products alone, in the same shapes, timed right before.
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
from safetyheads.engine.climb import layout
from safetyheads.engine.measurement import measure
from safetyheads.engine.sweep import sweep
from safetyheads.heads import Head
from safetyheads.inputs import prepare
from safetyheads.interventions.ablating import AblateHead
from safetyheads.metrics import Ships, kl_divergence


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


def matrices(model: Any) -> list[list[torch.Tensor]]:
    """The weights of every block's projections and MLP; the MLP's last."""
    blocks: list[list[torch.Tensor]] = []
    named = dict(model.hf.named_parameters())
    for layer in range(model.n_layers):
        own = [(n, p) for n, p in named.items() if f".{layer}." in n and p.ndim == 2]
        blocks.append([p for _, p in sorted(own, key=lambda item: "mlp" in item[0])])
    return blocks


def multiplications(model: Any, batch: Any, rows: int | None, heads: int) -> tuple[float, float]:
    """Operations of the matrix products that a sweep of `heads` heads a layer runs, and their rate alone.

    The products of projections and MLPs of the tokens that must run, in the shapes in which they run: as many tokens at
    once, layer after layer. The ablated layer's attention and the top layer's MLP are not run.
    """
    blocks = matrices(model)
    mlp = sum(w.numel() for w in blocks[0] if max(w.shape) > model.d_model)
    block = sum(w.numel() for w in blocks[0])
    layers = sum(mlp + block * (model.n_layers - la - 1) - mlp for la in range(model.n_layers - 1))
    vocabulary = int(model.bridge.cfg.d_vocab) * model.d_model
    operations, shapes = 0.0, []
    for prompts, width in layout(batch, rows):
        part = batch.select(prompts)
        prefix = part.prefix_length if len(prompts) > 1 else 0
        tokens = prefix + int((part.lengths - prefix).sum())
        operations += 2.0 * layers * heads * tokens
        operations += 2.0 * vocabulary * heads * model.n_layers * len(prompts)
        passes = -(-heads // width)
        shapes.append(-(-heads // passes) * tokens)
    rates = []
    for tokens in shapes:
        inputs = {w.shape[1]: torch.randn(tokens, w.shape[1]) for own in blocks for w in own}

        def once(inputs: dict[int, torch.Tensor] = inputs) -> None:
            for own in blocks:
                for weight in own:
                    torch.nn.functional.linear(inputs[weight.shape[1]], weight)

        once()
        times = [seconds(once) for _ in range(3)]
        rates.append(2.0 * tokens * block * model.n_layers / statistics.median(times))
    return operations, statistics.mean(rates)


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
    measurement = measure(prepare(model, batch), metric=Ships())
    few = list(sampled(model, options.heads))
    scale = len(heads) / len(few)
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
        work, rate = multiplications(model, batch, options.rows, a_layer)
        with PeakMemory() as memory:
            spent = seconds(lambda: sweep(measurement, edits, rows=options.rows))
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
