"""What does a worker save that opens only the blocks from its lowest layer on, and are its numbers the same?

    python benchmarks/upper.py --model smollm2-135m-instruct --first 15
    python benchmarks/upper.py --zoo      # the small architectures of tests/zoo.py: equal to the bit or not

Each opening is in a process of its own, whole and upper in turn (`--times`): processor and wall time from after the
imports to the open and fingerprinted model, the weights that are held, and by how much the process has grown. Then a
few heads are swept here, and in two workers that open upper blocks; the readings are compared.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from safetyheads import Execution, Head, load_model, process_map
from safetyheads.engine.measurement import measure
from safetyheads.engine.run import run
from safetyheads.inputs import prepare
from safetyheads.models.fingerprint import fingerprint
from safetyheads.models.hooked import ModelSource
from safetyheads.models.opening import open_upper
from safetyheads.prompts import load_prompts


def opening(model: str, first: int) -> None:
    """Open a model in this process, and print what it took."""
    import psutil
    import transformers  # noqa: F401  # imports are not what is compared
    from transformer_lens.model_bridge import TransformerBridge  # noqa: F401

    process = psutil.Process()
    before = process.memory_info().rss
    start, wall = time.process_time(), time.perf_counter()
    opened = open_upper(ModelSource(model, "cpu", None), first) if first else load_model(model)
    fingerprint(opened.hf, first)  # a worker compares it, and all weights are then in memory
    found = {"processor": time.process_time() - start, "wall": time.perf_counter() - wall}
    weights = {id(w): w for w in opened.hf.parameters() if not w.is_meta}.values()
    found["weights"] = sum(w.numel() * w.element_size() for w in weights) / 2**20
    found["grown"] = (process.memory_info().rss - before) / 2**20
    print(json.dumps(found))


def compared(model: str, first: int, times: int) -> None:
    """Whole and upper in turn, each in a process of its own."""
    found: dict[int, list[dict[str, float]]] = {0: [], first: []}
    for turn in range(times + 1):  # the first turn fills the cache of files
        for begin in found:
            command = [sys.executable, __file__, "--model", model, "--opening", str(begin)]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            if turn:
                found[begin].append(json.loads(out.splitlines()[-1]))
    for begin, runs in found.items():
        middle = {name: sorted(one[name] for one in runs)[len(runs) // 2] for name in runs[0]}
        print(
            f"{model}, blocks from {begin} on: {middle['processor']:.2f} s of processor time, {middle['wall']:.2f} s; "
            f"weights {middle['weights']:.0f} MiB, process grown by {middle['grown']:.0f} MiB (medians of {times})"
        )


def same(model: str) -> None:
    """A few heads here and in two workers."""
    measurement = measure(prepare(load_model(model), load_prompts("builtin").limit(4)))
    top = measurement.inputs.model.n_layers - 1
    variants = measurement.variants([Head(0, 1), Head(top // 2, 0), Head(top - 1, 2), Head(top, 3)])
    here = run(measurement, variants, Execution(progress=False)).readings
    threads = torch.get_num_threads()
    there = Execution(executor=process_map(2, threads), upper_blocks=True, progress=False)
    print("two workers with upper blocks:", alike(run(measurement, variants, there).readings, here))


def alike(one: torch.Tensor, other: torch.Tensor) -> str:
    """Whether two readings are the same, in words."""
    apart = (one - other).abs().max().item()
    return "the same to the bit" if torch.equal(one, other) else f"apart by {apart:.1e}"


def of_zoo() -> None:
    """Every small architecture, whole and with upper blocks, in this process."""
    from tests.engine.test_upper import Elsewhere
    from tests.zoo import CONFIGS, RAGGED, random_model, tokenizer

    for name, config in CONFIGS.items():
        with tempfile.TemporaryDirectory() as folder:
            random_model(config()).save_pretrained(folder)
            inputs = prepare(load_model(Path(folder), tokenizer()), RAGGED, template="bare")
            measurement = measure(inputs)
            variants = measurement.variants(measurement.heads([0, 2, 3])[::3])
            apart = Execution(executor=Elsewhere(), upper_blocks=True)
            found = run(measurement, variants, apart).readings
            print(f"{name}:", alike(found, run(measurement, variants).readings), flush=True)


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--first", type=int, default=15)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--zoo", action="store_true")
    parser.add_argument("--opening-only", action="store_true", help="sweep nothing")
    parser.add_argument("--opening", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.opening is not None:
        opening(options.model, options.opening)
    elif options.zoo:
        of_zoo()
    else:
        compared(options.model, options.first, options.times)
        if not options.opening_only:
            same(options.model)


if __name__ == "__main__":
    main()
