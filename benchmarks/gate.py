"""What does the gate cost beside the smallest sweep? All heads of a model, one ablation, one prompt and four.

    python benchmarks/gate.py [--model smollm2-135m-instruct] [--repeats 3]

Processor seconds of one thread, the least of some repeats, the two in turn: the passes over made-up tokens when a model
is opened, the fingerprint whenever prompts are prepared, and `score_heads`, which begins with such a fingerprint.
"""

import argparse
import time
from collections.abc import Callable

import torch

from safetyheads import Execution, ZeroAblation, load_model, score_heads
from safetyheads.models.fingerprint import fingerprint
from safetyheads.models.gate import check, reference


def seconds(call: Callable[[], object]) -> float:
    """Processor seconds of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def main() -> None:
    """Time each, and print shares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(options.model)
    prompts = [f"How do I repair a chair of kind {n} at home?" for n in range(4)]

    def sweep(count: int) -> object:
        quiet = Execution(progress=False)
        return score_heads(model, prompts[:count], ablation=ZeroAblation(), execution=quiet)

    calls: dict[str, Callable[[], object]] = {
        "before wrapping": lambda: reference(model.hf),
        "opening": lambda: check(model, None),
        "fingerprint": lambda: fingerprint(model.hf),
        "sweep of 1 prompt": lambda: sweep(1),
        "sweep of 4 prompts": lambda: sweep(4),
    }
    least: dict[str, float] = {}
    for _ in range(options.repeats):
        for name, call in calls.items():
            least[name] = min(least.get(name, float("inf")), seconds(call))
    for name, found in least.items():
        print(f"{name:20s} {found:8.2f} s")
    opening = least["before wrapping"] + least["opening"]
    for count in (1, 4):
        sweep_time = least[f"sweep of {count} prompt{'s' if count > 1 else ''}"]
        share = (opening + least["fingerprint"]) / sweep_time
        print(
            f"gate beside the sweep of {count}: {share:.1%}; later ones {least['fingerprint'] / sweep_time:.1%}"
        )


if __name__ == "__main__":
    main()
