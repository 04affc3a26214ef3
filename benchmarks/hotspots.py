"""What does the time of an exact sweep go to? One pass of the engine under torch's profiler, by operation and by shape.

    python benchmarks/hotspots.py
    python benchmarks/hotspots.py --model qwen2.5-coder-0.5b-instruct --layer 12 --prompts 16

Every head of one layer is ablated and run from there to the last token, as a sweep does it. Matrix products are the
part that a faster kernel of ours could not take away; the rest is what stands between the engine and their rate.
"""

import argparse

import torch
from torch.profiler import ProfilerActivity, profile

from safetyheads import Head, load_model, load_prompts
from safetyheads.engine.climb import all_rows, climb
from safetyheads.engine.kernels import Packed
from safetyheads.engine.measurement import measure
from safetyheads.inputs import prepare

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm")


@torch.inference_mode()
def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--layer", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(options.model)
    prompts = load_prompts("builtin").limit(options.prompts)
    asked = measure(prepare(model, prompts), "undifferentiated_attention", "ships")
    kernel, rows = Packed(), all_rows(model, asked.inputs.batch)[0]
    heads = [Head(options.layer, n) for n in range(min(model.n_heads, rows.width))]
    variants = asked.variants(heads)
    baseline = kernel.baseline(rows).repeated(len(variants))
    *_, (_, site) = climb([rows], {options.layer: variants[0].needs})

    def one_pass() -> None:
        asked.metric.read(kernel.finish(rows, site, variants, None), baseline)

    one_pass()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
        one_pass()
        one_pass()
    total = sum(event.self_cpu_time_total for event in found.key_averages())
    print(
        f"{options.model}, {len(variants)} heads of layer {options.layer}, {options.prompts} prompts, one thread"
    )
    for event in sorted(found.key_averages(), key=lambda e: -e.self_cpu_time_total)[:12]:
        print(f"  {event.self_cpu_time_total / total:6.1%}  {event.key}")
    products = sum(e.self_cpu_time_total for e in found.key_averages() if e.key in PRODUCTS)
    print(f"  {products / total:6.1%}  in matrix products; by shape:")
    shapes = [e for e in found.key_averages(group_by_input_shape=True) if e.key in PRODUCTS]
    for event in sorted(shapes, key=lambda e: -e.self_cpu_time_total)[:6]:
        print(f"  {event.self_cpu_time_total / total:6.1%}  {event.key} {event.input_shapes[:2]}")


if __name__ == "__main__":
    main()
