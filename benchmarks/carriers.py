"""Do the heads that lower refusal carry it, or does the ablation write what is seen? Groups of a real model, judged.

    python benchmarks/carriers.py --data DIR --pairs 24 --out carriers

The groups are those that `docs/behaviour.md` selected; beside them random heads of the same layers. DIR holds
JailbreakBench's two halves as jailbreakbench_harmful.csv and jailbreakbench_benign.csv (columns Goal), which match.
"""

import argparse
import itertools
from pathlib import Path

import pandas

from safetyheads import PromptSet, find_carrying_groups, load_model
from safetyheads.engine.execution import Execution
from safetyheads.heads import heads_like, parse_heads

GROUPS = {
    "undifferentiated attention's five": "L10H7 L11H3 L10H1 L11H12 L14H10",
    "scaling's three": "L12H2 L8H3 L14H10",
}


def main() -> None:
    """Judge the groups and print the table."""
    parser = argparse.ArgumentParser(description="Do the heads that lower refusal carry it?")
    parser.add_argument("--model", default="qwen2.5-coder-0.5b-instruct")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--draws", type=int, default=4, help="random groups beside each group")
    parser.add_argument("--out", type=Path, default=Path("carriers"))
    options = parser.parse_args()
    sides = [
        tuple(pandas.read_csv(options.data / f"jailbreakbench_{side}.csv")["Goal"])
        for side in ("harmful", "benign")
    ]
    prompts = PromptSet("jailbreakbench", *sides, paired=True).limit(options.pairs)
    model = load_model(options.model)
    named = {name: parse_heads(heads.split()) for name, heads in GROUPS.items()}
    for name, heads in list(named.items()):
        draws = itertools.islice(heads_like(heads, model.n_heads, seed=0), options.draws)
        for n, drawn in enumerate(draws):
            named[f"random {n}, layers of {name}"] = drawn
    found = find_carrying_groups(
        model, prompts, list(named.values()), execution=Execution(store=options.out / "store")
    )
    found.save(options.out / "record")
    names = {"+".join(map(str, heads)): name for name, heads in named.items()}
    table = found.table.assign(group=found.table["label"].map(names))
    columns = [
        "group",
        "ablation",
        "kind",
        "effect",
        "low",
        "high",
        "p_value",
        "q_value",
        "verdict",
    ]
    print(found)
    print(table[columns].to_string(index=False, float_format="%.3g"))


if __name__ == "__main__":
    main()
