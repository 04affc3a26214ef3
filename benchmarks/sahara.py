"""Does a group that greedy search finds (Sahara) take away more refusals than the best single heads?

    python benchmarks/sahara.py --data DATA

SmolLM2-135M that was taught to refuse: three heads searched on four prompts of JailbreakBench by the refusal shift,
beside the three that rank first alone on the same prompts and five draws of random heads of the group's layers; then
refusals of 40 prompts of MaliciousInstruct under each. About ten minutes of one core.
"""

import argparse
from pathlib import Path

import pandas

from safetyheads import (
    AblateHeads,
    Decoding,
    GroupSearch,
    load_model,
    load_prompts,
    measure_behaviour,
    score_heads,
    search_heads,
)
from safetyheads.interventions.ablations import as_ablation
from safetyheads.probes.behaviour.controls import random_heads
from safetyheads.stats import mcnemar_p

MODEL, PAIRS, ASKED, SIZE, DRAWS = "smollm2-135m-ssft", 4, 40, 3, 5
RUNS = (("undifferentiated_attention", "refusal_shift"), ("zero", "refusal_shift"))


def main() -> None:
    """Search, rank, ask."""
    parser = argparse.ArgumentParser(description="Does a group do more than single heads?")
    parser.add_argument("--data", type=Path, required=True)
    data = parser.parse_args().data
    model = load_model(MODEL)
    searched = load_prompts("jailbreakbench", path=data).limit(PAIRS)
    asked = load_prompts("malicious_instruct", path=data).limit(ASKED)
    for name, metric in RUNS:
        ablation = as_ablation(name)
        options = {"ablation": ablation, "metric": metric}
        group = search_heads(
            model, searched, GroupSearch(SIZE, samples=10, pair_heads=SIZE), **options
        )
        singles = score_heads(model, searched, **options).top(SIZE)["label"]
        print(f"{name}, {metric}\n{group.to_frame().to_string()}", flush=True)
        ways = {"group": group.heads, "single heads": tuple(singles)}
        ways |= {f"random {n}": random_heads(group.heads, model.n_heads, n) for n in range(DRAWS)}
        found = measure_behaviour(
            model,
            asked,
            {way: AblateHeads(heads, ablation) for way, heads in ways.items()},
            sides="harmful",
            decoding=Decoding(12),
            progress=False,
        )
        said = {way: [v == "refuse" for v in some] for (*_, way), some in found.verdicts().items()}
        rows = [
            {
                "taken away": way,
                "heads": " ".join(map(str, ways.get(way, ()))),
                "refused": sum(hits),
                "of": len(hits),
                "p": mcnemar_p(said["baseline"], hits),
                "p, group": mcnemar_p(said["group"], hits),
            }
            for way, hits in said.items()
        ]
        print(pandas.DataFrame(rows).to_string(float_format="%.2g"), flush=True)


if __name__ == "__main__":
    main()
