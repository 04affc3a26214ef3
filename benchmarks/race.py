"""What does a race of heads save, what does it miss, and does it know?

    python benchmarks/race.py --model smollm2-135m-instruct --prompts 64 --metric ships
    python benchmarks/race.py --scores scores.pt      # exact scores of each prompt that are there: no pass is run
    python benchmarks/race.py --planted               # a made-up grid of 32 x 32 heads: no model is opened

The exact scores of every head and prompt are kept in `--keep` with the processor time that they took, and used again;
with `--pieces 4` they are computed in four runs of layers of equal work, and after a kill it goes on with the next.
Beside them one race is run for each ablation (`--runs`), with its own processor time, and compared. Over `--seeds`
other orders of the prompts races are then simulated from the exact scores: recall of the exact top ten, the share of
the exact sweep's tokens (the prefix that the prompts share counted once a head, and a head of layer l only from l on),
how many intervals hold the exact score, how often the top ten is the exact one beside the chance that the race claims,
and how much score is lost where it is not. Other numbers of prompts are drawn from those that are there, without
replacement where there are enough.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from safetyheads import Execution, HeadScores, load_model, load_prompts, score_heads, tokenize
from safetyheads.engine.shards import cut
from safetyheads.heads import Head
from safetyheads.probes.single_heads import score_layers
from safetyheads.screening.race import Raced, race, random_order

ABLATIONS = ("undifferentiated_attention", "scaling_contribution")
QUIET = Execution(progress=False)


class Exact(NamedTuple):
    """Scores of every head and prompt, and what a race needs to know of the prompts."""

    scores: torch.Tensor
    """[layer, head, prompt]."""
    largest_first: bool
    prefix: int
    suffix: float
    """Tokens of a prompt behind the prefix, mean."""
    categories: tuple[str, ...] = ()


class Simulated(NamedTuple):
    """One race from exact scores."""

    recall: float
    lost: float
    """Of the top ten's score, what the found ten lack."""
    tokens: float
    passes: float
    inside: float
    claimed: float
    right: bool


def simulate(exact: Exact, method: Raced, seed: int) -> Simulated:
    """Race over known scores."""
    layers, heads, count = exact.scores.shape
    tokens = 0.0
    begun: set[Head] = set()

    def run(asked: Sequence[Head], prompts: Sequence[int]) -> torch.Tensor:
        nonlocal tokens
        for head in asked:
            own = len(prompts) * exact.suffix + (0 if head in begun else exact.prefix)
            tokens += own * (layers - head.layer - 0.5)
        begun.update(asked)
        at = torch.tensor(asked)
        return exact.scores[at[:, 0], at[:, 1]][:, list(prompts)]

    order = random_order(count, exact.categories, seed)
    found = race(run, (layers, heads), order, method, largest_first=exact.largest_first)
    sign = 1.0 if exact.largest_first else -1.0
    true, k = (sign * exact.scores.double().mean(-1)).flatten(), method.top_k
    best = true.topk(k).indices.tolist()
    top = (sign * found.values).flatten().topk(k).indices.tolist()
    whole = (exact.prefix + count * exact.suffix) * heads * sum(la + 0.5 for la in range(layers))
    low, high = (sign * t.flatten().double() for t in (found.low, found.high))
    slack = 1e-6 * true.abs().max()
    held = (true >= torch.minimum(low, high) - slack) & (true <= torch.maximum(low, high) + slack)
    return Simulated(
        recall=len(set(best) & set(top)) / k,
        lost=float(1 - true[top].sum() / true[best].sum()),
        tokens=tokens / whole,
        passes=found.race.passes / exact.scores.numel(),
        inside=float(held.double().mean()),
        claimed=found.race.chance,
        right=set(best) == set(top),
    )


def line(label: str, exact: Exact, method: Raced, seeds: int) -> str:
    """The mean over races of other orders."""
    races = [simulate(exact, method, seed) for seed in range(seeds)]
    mean = {name: np.mean([getattr(one, name) for one in races]) for name in Simulated._fields}
    return (
        f"  {label}: recall {mean['recall']:.3f}, score lost {mean['lost']:.4f}, tokens {mean['tokens']:.3f}, "
        f"pairs {mean['passes']:.3f}, intervals hold {mean['inside']:.3f}, "
        f"top exact {mean['right']:.2f} (claimed {mean['claimed']:.2f})"
    )


def drawn(exact: Exact, count: int, seed: int = 0) -> Exact:
    """The same heads on another number of prompts."""
    there = exact.scores.shape[-1]
    random = np.random.default_rng(seed)
    order = random.permutation(there) if count <= there else random.integers(there, size=count)
    chosen = order[:count].tolist()
    named = tuple(exact.categories[n] for n in chosen) if exact.categories else ()
    return exact._replace(scores=exact.scores[..., chosen], categories=named)


def planted(layers: int = 32, heads: int = 32, count: int = 100, seed: int = 0) -> Exact:
    """A made-up model's divergences: sizes log-normal over heads, spread and skew as SmolLM2's, effects of prompts."""
    random = np.random.default_rng(seed)
    size = np.exp(random.normal(-5.5, 1.1, (layers, heads, 1)))
    spread = np.exp(random.normal(-0.5, 0.35, (layers, heads, 1)))
    effects = spread * random.normal(size=(layers, heads, count)) + 0.3 * random.normal(size=count)
    scores = torch.from_numpy(size * np.exp(effects - spread**2 / 2)).float()
    return Exact(scores, True, prefix=20, suffix=20.0)


def measured(options: argparse.Namespace, ablation: str) -> tuple[HeadScores, float]:
    """Exact scores and the processor time they took, from `--keep` where they are there."""
    quiet = Execution(progress=False, store=options.keep / "readings")
    name = f"{options.model.replace('/', '-')}-{options.prompts}-{options.metric}-{ablation}"
    folder = options.keep / name
    seconds = folder / "seconds.json"
    if not seconds.exists():
        model = load_model(options.model)
        prompts = load_prompts("builtin").limit(options.prompts)
        heads = dict.fromkeys(range(model.n_layers), model.n_heads)
        spent = 0.0
        for number, layers in enumerate(cut(heads, model.n_layers, options.pieces, each=1)):
            piece = options.keep / f"{name}-{number}-of-{options.pieces}.json"
            if not piece.exists():
                start = time.process_time()
                score_layers(
                    model, prompts, layers, quiet, ablation=ablation, metric=options.metric
                )
                piece.write_text(json.dumps(time.process_time() - start))
            spent += json.loads(piece.read_text())
        score_heads(model, prompts, ablation=ablation, metric=options.metric, execution=quiet).save(
            folder
        )
        seconds.write_text(json.dumps(spent))
    return HeadScores.load(folder), json.loads(seconds.read_text())


def of_model(options: argparse.Namespace) -> None:
    """Races of a real model, run and simulated."""
    model = load_model(options.model)
    prompts = load_prompts("builtin").limit(options.prompts)
    batch = tokenize(prompts.harmful, model.tokenizer)
    suffix = float(batch.lengths.float().mean()) - batch.prefix_length
    for ablation in options.ablation or ABLATIONS:
        scores, spent = measured(options, ablation)
        if scores.per_prompt is None:
            raise ValueError(f"{options.metric} has no score of each prompt")
        exact = Exact(
            scores.per_prompt, scores.largest_first, batch.prefix_length, suffix, prompts.categories
        )
        print(f"{options.model}, {options.prompts} prompts, {options.metric}, {ablation}")
        for seed in range(options.runs):
            start = time.process_time()
            raced = score_heads(
                model,
                prompts,
                ablation=ablation,
                metric=options.metric,
                method=Raced(caution=options.caution, seed=seed),
                execution=QUIET,
            )
            own = time.process_time() - start
            known = ~raced.per_prompt.isnan()
            apart = (raced.per_prompt - scores.per_prompt)[known].abs().max().item()
            found = (raced.ranks <= 10) & (scores.ranks <= 10)
            print(
                f"  run, seed {seed}: {own:.1f} of {spent:.1f} s, {own / spent:.3f}; recall "
                f"{found.sum().item() / 10:.2f}; scores apart by at most {apart:.1e}; {raced.race}"
            )
        every_count(exact, options)


def every_count(exact: Exact, options: argparse.Namespace) -> None:
    """Simulated races on several numbers of prompts."""
    for caution in options.cautions or [options.caution]:
        method = Raced(caution=caution)
        label = f"caution {caution}, {exact.scores.shape[-1]} prompts"
        print(line(label, exact, method, options.seeds))
    for count in options.counts:
        some = drawn(exact, count)
        label = f"{count} prompts" + (" (drawn twice)" if count > exact.scores.shape[-1] else "")
        print(line(label, some, Raced(caution=options.caution), options.seeds))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add: Any = parser.add_argument
    add("--model", default="smollm2-135m-instruct")
    add("--prompts", type=int, default=64)
    add("--metric", default="ships")
    add("--ablation", action="append", choices=ABLATIONS)
    add("--threads", type=int, default=1)
    add("--seeds", type=int, default=20)
    add("--runs", type=int, default=1, help="races that are run, of each ablation")
    add("--caution", type=float, default=Raced().caution)
    add("--cautions", type=float, nargs="*", help="several, simulated side by side")
    add("--counts", type=int, nargs="*", default=[16, 32, 100, 400])
    add("--pieces", type=int, default=1, help="of the exact sweep, each kept when it is done")
    add("--keep", type=Path, default=Path("build/race"))
    add("--scores", type=Path, help="a file of torch.save: per_prompt, prefix, lengths, and more")
    add("--downward", action="store_true", help="of --scores: the most negative is the first")
    add("--name", default="per_prompt", help="of --scores: which tensor")
    add("--planted", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.planted:
        print("planted, 32 x 32 heads, 100 prompts of 40 tokens, 20 shared")
        for count in (16, 64, 100, 400):
            print(line(f"{count} prompts", planted(count=count), Raced(), options.seeds))
    elif options.scores:
        kept = torch.load(options.scores)
        suffix = float(kept["lengths"].float().mean()) - kept["prefix"]
        named = tuple(kept.get("categories", ()))
        if not named:
            named = load_prompts("builtin").limit(kept[options.name].shape[-1]).categories
        exact = Exact(kept[options.name], not options.downward, kept["prefix"], suffix, named)
        print(f"{options.scores.name}, {options.name}")
        every_count(exact, options)
    else:
        of_model(options)


if __name__ == "__main__":
    main()
