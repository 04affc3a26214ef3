"""What are the figures of docs/stable-regions.md? Each command writes its records and tables into a folder.

    python benchmarks/regions.py sizes --out runs
    python -m safetyheads.training.decoder runs/decoder && python benchmarks/regions.py training --out runs
    python benchmarks/regions.py slices --out runs
    python -m safetyheads.training.sae runs/sae && python benchmarks/regions.py synthetic --out runs
    python benchmarks/regions.py border --out runs --data FOLDER
    python benchmarks/regions.py direction --out runs --data FOLDER

`border` and `direction` take JailbreakBench's two files from a folder; nothing of them is written but numbers. Its
odd rows are walked; the heads were ranked on others. Each border is kept as it is found, and the same command goes on
where it stopped.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas
import torch

from safetyheads import (
    AblateHeads,
    AlongDirection,
    PromptSet,
    load_model,
    load_sae,
    null_directions,
    random_copy,
    refusal_direction,
    slice_regions,
    stable_regions,
    text_windows,
    trace_sensitivity,
)
from safetyheads.heads import Head, parse_heads
from safetyheads.interventions.ablations import as_ablation
from safetyheads.probes.walks.border import RefusalBorder, refusal_border
from safetyheads.probes.walks.regions import regions_table
from safetyheads.probes.walks.synthetic import compare_activations
from safetyheads.training.corpus import shipped_prose

QWEN, SMOL = "qwen2.5-coder-0.5b-instruct", "smollm2-135m-instruct"
RANKED = {
    # On JailbreakBench's even rows: docs/behaviour.md.
    QWEN: {"undifferentiated_attention": ("L10H7", "L11H3", "L10H1", "L11H12", "L14H10")},
    # On built-in pairs: by the README's lines, and notebook 03 by scaling contribution, which is all but zero ablation.
    "smollm2-135m-ssft": {
        "undifferentiated_attention": ("L18H8", "L17H2", "L14H7", "L14H5", "L8H8"),
        "zero": ("L0H6", "L0H8", "L0H7", "L27H5", "L11H8"),
    },
}
"""The five heads whose ablation lowers the refusal log-odds most, by ablation; neither set has a part in the walks."""
SIMILAR = (
    "She opened the dusty book and a cloud of mist",
    "She opened the dusty book and a cloud of dust",
    "She opened the dusty book and a cloud of smoke",
)
DIFFERENT = (
    "The house at the end of the street was very",
    "The house at the end of the street was in",
    "He suddenly looked at his watch and realized he had",
)


def prose(out: Path) -> list[str]:
    """The text that is cut into windows, read once."""
    file = out / "prose.json"
    if not file.is_file():
        file.write_text(json.dumps(shipped_prose().paragraphs))
    return json.loads(file.read_text())


def keep(table: pandas.DataFrame, out: Path, name: str) -> None:
    """Write a table and show it."""
    table.to_csv(out / f"{name}.csv", index=False)
    print(table.to_string(), flush=True)


def sizes(asked: argparse.Namespace, out: Path) -> None:
    """Two sizes, each beside its random copy."""
    found = {}
    for name in (SMOL, QWEN):
        model = load_model(name)
        windows = text_windows(prose(out), model.tokenizer, count=asked.pairs)
        found[name] = stable_regions(model, windows, steps=asked.steps)
        found[name].save(out / f"regions-{name}")
        print(found[name].trained.checks, found[name].random.checks, flush=True)
        curves = [found[name].trained.curve().assign(weights="trained")]
        curves.append(found[name].random.curve().assign(weights="random"))
        pandas.concat(curves).to_csv(out / f"curve-{name}.csv", index=False)
    keep(regions_table(found, "name"), out, "sizes")


def training(asked: argparse.Namespace, out: Path) -> None:
    """The small decoder's checkpoints; its text is held out."""
    found, curves = {}, []
    for folder in sorted((out / "decoder").glob("tokens-*/")):
        model, tokens = load_model(folder), int(folder.name.removeprefix("tokens-"))
        # One paragraph in fifty is held out of training.
        windows = text_windows(prose(out)[::50], model.tokenizer, count=asked.pairs)
        # Seed 0 drew the weights from which training began.
        found[tokens] = stable_regions(model, windows, seed=1, steps=asked.steps)
        curves.append(found[tokens].trained.curve().assign(tokens=tokens))
    pandas.concat(curves).to_csv(out / "training-curves.csv", index=False)
    keep(regions_table(found, "tokens"), out, "training")


def slices(asked: argparse.Namespace, out: Path) -> None:
    """Planes through three prompts that differ in the last word, and three that differ throughout."""
    for name in (SMOL,):
        model = load_model(name)
        for which, opened in (("trained", model), ("random", random_copy(model))):
            for kind, prompts in (("similar", SIMILAR), ("different", DIFFERENT)):
                found = slice_regions(opened, list(prompts), points=asked.points, template="bare")
                found.save(out / f"slice-{name}-{kind}-{which}")


def synthetic(asked: argparse.Namespace, out: Path) -> None:
    """Real, structured, baseline, random and reconstructed activations, in the model and in its random copy."""
    model = load_model(SMOL)
    windows = text_windows(prose(out), model.tokenizer, count=asked.pairs, seed=1)
    tables, all_walks = [], []
    for weights, opened, place in (
        ("trained", model, out / "sae"),
        ("random", random_copy(model), out / "sae" / "random"),
    ):
        found = compare_activations(opened, windows, load_sae(place), steps=asked.steps)
        found.save(out / f"synthetic-{weights}")
        tables.append(found.summary().assign(weights=weights))
        all_walks.append(found.table().assign(weights=weights))
    pandas.concat(all_walks).to_csv(out / "synthetic-walks.csv", index=False)
    keep(pandas.concat(tables), out, "synthetic")


def pairs(data: Path, count: int, odd: bool) -> PromptSet:
    """JailbreakBench's matched pairs, of odd or even rows, spread over its ten categories."""
    sides = [
        pandas.read_csv(data / f"jailbreakbench_{side}.csv")["Goal"]
        for side in ("harmful", "benign")
    ]
    rows = sorted(range(int(odd), len(sides[0]), 2), key=lambda row: (row % 10, row))[:count]
    harmful, harmless = (tuple(side.iloc[rows]) for side in sides)
    return PromptSet("jailbreakbench", harmful, harmless, paired=True)


def random_heads(ranked: Sequence[Head], n_heads: int, seed: int) -> tuple[Head, ...]:
    """As many heads as are ranked, of the same layers, and none of these."""
    drawn = torch.Generator().manual_seed(seed)
    chosen: list[Head] = []
    for head in ranked:
        while (
            other := Head(head.layer, int(torch.randint(n_heads, (1,), generator=drawn)))
        ) in chosen or other in ranked:
            pass
        chosen.append(other)
    return tuple(chosen)


def border(asked: argparse.Namespace, out: Path) -> None:
    """The border to refusal at some layers; then with and without the ranked heads, random ones beside."""
    model, prompts = load_model(asked.model), pairs(asked.data, asked.pairs, odd=True)
    tables = []

    def walk(name: str, layer: int, given: AblateHeads | None = None) -> None:
        folder = out / f"border-{name}-{layer}".replace(" ", "-")
        if not folder.exists():
            made = refusal_border(model, prompts, layer, steps=asked.steps, given=given)
            made.save(folder)
        found = RefusalBorder.load(folder)
        print(name, found, flush=True)
        tables.append(found.table().assign(heads=name))
        pandas.concat(tables).to_csv(out / "border.csv", index=False)

    for layer in asked.layers:
        walk("none", layer)
    for name, labels in RANKED[asked.model].items():
        heads, ablation = parse_heads(labels), as_ablation(name)
        for layer in asked.ablated_at:
            walk(f"ranked, {name}", layer, AblateHeads(heads, ablation))
            for seed in range(asked.draws):
                others = random_heads(heads, model.n_heads, seed)
                walk(f"random {seed}, {name}", layer, AblateHeads(others, ablation))
    keep(borders(pandas.concat(tables)), out, "borders")


def borders(table: pandas.DataFrame) -> pandas.DataFrame:
    """A row a walk: pairs that begin without and end in a refusal, where, and how sharp the change is in those."""
    rows = []
    for (name, layer), part in table.groupby(["heads", "layer"], sort=False):
        crossing = part[part["crosses"]]
        row = {"heads": name, "layer": layer, "pairs": len(part)}
        row |= {"begin in one": int((part["start"] > 0).sum())}
        row |= {"end in one": int((part["end"] > 0).sum()), "cross": len(crossing)}
        row |= {"harmful themselves": int((part["harmful"] > 0).sum())}
        for measure in ("crossing", "sharpness", "width"):
            quartiles = crossing[measure].quantile([0.5, 0.25, 0.75])
            names = (measure, f"{measure} low", f"{measure} high")
            row |= dict(zip(names, quartiles, strict=True))
        change = part["end"] - part["start"]
        rows.append(row | {"start": part["start"].mean(), "change": change.mean()})
    return pandas.DataFrame(rows).round(3)


def direction(asked: argparse.Namespace, out: Path) -> None:
    """Walks along the refusal direction and along strong nulls, from harmless prompts, by the same length."""
    model = load_model(asked.model)
    learned, walked = pairs(asked.data, 50, odd=False), pairs(asked.data, asked.pairs, odd=True)
    layer = asked.ablated_at[0]
    refusal = refusal_direction(model, learned, layer)
    vectors = {"refusal": refusal.vector}
    vectors |= {n: d.vector for n, d in null_directions(model, learned, refusal).items()}
    name = f"model.layers.{layer - 1}.mlp.down_proj.weight"
    written = model.plain_weights([name])[name].detach()
    columns = torch.randint(written.shape[1], (3,), generator=torch.Generator().manual_seed(0))
    vectors |= {f"decoder row {n}": written[:, c] for n, c in enumerate(columns, 1)}
    tables = []
    for label, vector in vectors.items():
        target = AlongDirection(vector, refusal.length * asked.reach, label)
        for read in ("post_norm", "next_token"):
            found = trace_sensitivity(
                model, list(walked.harmless), target, layer=layer, read=read, steps=asked.steps
            )
            tables.append(found.measures().assign(direction=label))
        pandas.concat(tables).to_csv(out / "direction.csv", index=False)
    table = pandas.concat(tables)
    which = ["distance", "sharpness", "width", "plateau", "exponent"]
    keep(
        table.groupby(["read", "direction"], sort=False)[which].median().reset_index(),
        out,
        "direction-medians",
    )


COMMANDS: dict[str, Callable[[argparse.Namespace, Path], None]] = {
    function.__name__: function
    for function in (sizes, training, slices, synthetic, border, direction)
}


def main() -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--points", type=int, default=40)
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 8, 12, 16, 20])
    parser.add_argument("--ablated-at", type=int, nargs="*", default=[16])
    parser.add_argument("--model", default=QWEN, help="of border and direction")
    parser.add_argument("--draws", type=int, default=3, help="of random heads")
    parser.add_argument("--reach", type=float, default=2.0)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    start = time.process_time()
    COMMANDS[asked.command](asked, asked.out)
    print(f"{time.process_time() - start:.0f} processor seconds, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
