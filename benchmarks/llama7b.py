"""How long does a sweep of a 7B model's 1,024 heads on 100 prompts take on one GPU, and at what utilisation?

    python benchmarks/llama7b.py

Llama-2-7B's configuration with random weights in bfloat16, 100 random prompts of about 40 tokens that share the first
20, both ablations. Weights that mean nothing cost what weights that mean something cost. Model-flops utilisation counts
2 operations a weight and token that a plain hooked loop would run (`--peak` is the GPU's dense bf16 rate); the engine's
own share counts only the tokens and layers that it runs.
"""

import argparse
import time

import torch

from safetyheads import ScalingContribution, Ships, UndifferentiatedAttention, load_model
from safetyheads.engine.climb import layout
from safetyheads.engine.measurement import Measurement
from safetyheads.engine.sweep import sweep
from safetyheads.inputs import Inputs
from safetyheads.interventions.ablating import AblateHead
from safetyheads.prompts import TokenBatch


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
    """Sweep all heads under both ablations and print time, utilisation and memory."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--shared", type=int, default=20)
    parser.add_argument("--rows", type=int)
    parser.add_argument(
        "--peak", type=float, default=989e12, help="operations a second; an H100's or H200's"
    )
    options = parser.parse_args()
    model = load_model(
        random_llama(options.layers, options.width, options.heads, options.device), NoTokenizer()
    )
    batch = random_prompts(options.prompts, options.shared)
    measurement = Measurement(Inputs(model, batch, (), {}), Ships())
    heads = measurement.heads()
    weights = sum(p.numel() for p in model.hf.parameters())
    block = sum(p.numel() for p in model.hf.model.layers[0].parameters())
    plain = run = 0.0
    for prompts, _ in layout(batch, options.rows, options.device):
        part = batch.select(prompts)
        prefix = part.prefix_length if len(prompts) > 1 else 0
        tokens = prefix + len(prompts) * (part.ids.shape[1] - prefix)
        run += 2.0 * tokens * block * model.n_heads * model.n_layers * (model.n_layers - 1) / 2
        plain += 2.0 * float(part.lengths.sum()) * weights * len(heads)
    if options.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    total = 0.0
    for ablation in (UndifferentiatedAttention(), ScalingContribution()):
        start = time.perf_counter()
        edits = [AblateHead(head, ablation) for head in heads]
        sweep(measurement, edits, rows=options.rows)
        spent = time.perf_counter() - start
        total += spent
        print(
            f"{ablation.name}: {spent:.1f} s; model-flops utilisation {plain / spent / options.peak:.2f} "
            f"of a plain loop's work, {run / spent / options.peak:.2f} of the work that was run",
            flush=True,
        )
    print(f"both: {total:.1f} s for {len(heads)} heads x {options.prompts} prompts")
    if options.device.startswith("cuda"):
        peak = torch.cuda.max_memory_allocated() / 2**30
        print(f"peak memory {peak:.1f} GiB, weights {2 * weights / 2**30:.1f} GiB")


if __name__ == "__main__":
    main()
