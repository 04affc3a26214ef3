"""How long do a sweep and a race of a 7B model's 1,024 heads on 100 prompts take on one GPU, at what utilisation?

    python benchmarks/llama7b.py
    python benchmarks/llama7b.py --rows 128 --rows 512     # several batch sizes, one after the other

Llama-2-7B's configuration with random weights in bfloat16, 100 random prompts of about 40 tokens that share the first
20, both ablations. Weights that mean nothing cost what weights that mean something cost. Model-flops utilisation counts
2 operations a weight and token that a plain hooked loop would run (`--peak` is the GPU's dense bf16 rate); the engine's
own share counts only the tokens and layers that it runs. Heads of random weights differ less than those of a trained
model, so that a race of them drops fewer: its time is an upper bound.
"""

import argparse
import time

import torch

from safetyheads import (
    Execution,
    Raced,
    ScalingContribution,
    Ships,
    UndifferentiatedAttention,
    load_model,
)
from safetyheads.engine.climb import layout
from safetyheads.engine.measurement import Measurement
from safetyheads.engine.rounds import Rounds
from safetyheads.engine.sweep import sweep
from safetyheads.inputs import Inputs
from safetyheads.models.hooked import HookedModel
from safetyheads.prompts import TokenBatch
from safetyheads.screening.race import race, random_order


class NoTokenizer:
    """The model is only ever given tokens."""

    chat_template = None


def random_llama(layers: int, width: int, heads: int, device: str) -> torch.nn.Module:
    """Llama-2's architecture with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=int(width * 11008 / 4096),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=32000,
        max_position_embeddings=4096,
    )
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(default)


def random_prompts(count: int, shared: int) -> TokenBatch:
    """Random tokens, 36 to 44 a prompt, the first `shared` the same."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(36, 45, (count,), generator=generator)
    ids = torch.randint(3, 32000, (count, 44), generator=generator)
    ids[:, :shared] = ids[0, :shared]
    ids = ids.where(torch.arange(44) < lengths[:, None], 0)
    return TokenBatch(ids=ids, lengths=lengths, texts=("",) * count, template="random")


def main() -> None:
    """Sweep and race all heads under both ablations and print time, utilisation and memory."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--shared", type=int, default=20)
    parser.add_argument("--rows", type=int, action="append", help="of a pass; by its tokens")
    parser.add_argument("--method", choices=("exact", "raced"), action="append", help="both")
    parser.add_argument(
        "--peak", type=float, default=989e12, help="operations a second; an H100's or H200's"
    )
    options = parser.parse_args()
    model = load_model(
        random_llama(options.layers, options.width, options.heads, options.device), NoTokenizer()
    )
    batch = random_prompts(options.prompts, options.shared)
    for rows in options.rows or [None]:
        for method in options.method or ["exact", "raced"]:
            both(options, model, batch, rows, method)


def both(
    options: argparse.Namespace,
    model: HookedModel,
    batch: TokenBatch,
    rows: int | None,
    method: str,
) -> None:
    """Both ablations by one method at one batch size."""
    about = {"prompts": {"name": "random", "side": "harmful"}}
    weights = sum(p.numel() for p in model.hf.parameters())
    plain, run = operations(model, batch, rows, options.device)
    cuda = options.device.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    total = 0.0
    for ablation in (UndifferentiatedAttention(), ScalingContribution()):
        measurement = Measurement(Inputs(model, batch, (), about), Ships(), ablation)
        heads = measurement.heads()
        start = time.perf_counter()
        share, said = 1.0, ""
        if method == "exact":
            sweep(measurement, measurement.variants(heads), rows=rows)
        else:
            order, rounds = (
                random_order(len(batch), (), 0),
                Rounds(measurement, Execution(rows=rows)),
            )
            found = race(rounds, (model.n_layers, model.n_heads), order, Raced())
            share, said = found.race.passes / (len(heads) * len(batch)), f"; {found.race}"
        spent = time.perf_counter() - start
        total += spent
        print(
            f"{method}, rows {rows}, {ablation.name}: {spent:.1f} s; model-flops utilisation "
            f"{plain / spent / options.peak:.2f} of a plain loop's work, {share * run / spent / options.peak:.2f} of "
            f"the work that was run{said}",
            flush=True,
        )
    print(
        f"{method}, both: {total:.1f} s for {model.n_layers * model.n_heads} heads x {len(batch)} prompts"
    )
    if cuda:
        peak = torch.cuda.max_memory_allocated() / 2**30
        print(f"peak memory {peak:.1f} GiB, weights {2 * weights / 2**30:.1f} GiB")


def operations(
    model: HookedModel, batch: TokenBatch, rows: int | None, device: str
) -> tuple[float, float]:
    """Operations of a plain hooked loop, and of the sweep."""
    weights = sum(p.numel() for p in model.hf.parameters())
    block = sum(p.numel() for p in model.hf.model.layers[0].parameters())
    plain = run = 0.0
    for prompts, _ in layout(batch, rows, device):
        part = batch.select(prompts)
        prefix = part.prefix_length if len(prompts) > 1 else 0
        tokens = prefix + len(prompts) * (part.ids.shape[1] - prefix)
        run += 2.0 * tokens * block * model.n_heads * model.n_layers * (model.n_layers - 1) / 2
        plain += 2.0 * float(part.lengths.sum()) * weights * model.n_heads * model.n_layers
    return plain, run


if __name__ == "__main__":
    main()
