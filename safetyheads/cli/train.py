"""How does `safetyheads train` make a sibling that refuses?"""

import argparse
import functools
from pathlib import Path
from typing import Any

from safetyheads.cli.options import SMALL_MODEL, Parser, add_out, positive_integer

KINDS = ("ssft", "at", "lat")


def add(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser("train", help="teach a small chat model to refuse, as an adapter")
    parser.set_defaults(run=run, check=functools.partial(_check, parser))
    option = parser.add_argument
    about = "fine-tuning on refusals, or with perturbed embeddings, or with perturbed states"
    option("kind", choices=KINDS, help=about)
    option(
        "--model", default=SMALL_MODEL, help="known name or folder, of Llama's kin (%(default)s)"
    )
    option("--device", default="cpu", help="cpu, cuda, cuda:1, mps (%(default)s)")
    option(
        "--advbench",
        metavar="PATH",
        help="a folder or file with AdvBench; the Hub's when not given",
    )
    option("--start", type=Path, metavar="FOLDER", help="an adapter to go on from")
    option("--steps", type=positive_integer, metavar="N", help="at most; the recipe's own")
    option(
        "--batch", type=positive_integer, metavar="N", help="lessons in a step; the recipe's own"
    )
    option("--seed", type=int, default=0, help="of all that is drawn (%(default)s)")
    add_out(parser, "safetyheads-sibling")


def _check(parser: Parser, options: argparse.Namespace) -> None:
    if options.kind != "ssft" and options.start is None:
        parser.error(
            f"{options.kind} goes on from a model that was taught to refuse: --start with the adapter of "
            "`safetyheads train ssft`, or with a folder of safetyheads/data/siblings"
        )


def run(options: argparse.Namespace) -> None:
    """Train, and say what came of it."""
    import json

    from safetyheads.prompts import load_prompts
    from safetyheads.training.recipes import RECIPES
    from safetyheads.training.siblings import train_sibling

    asked = {"steps": options.steps, "batch": options.batch, "seed": options.seed}
    recipe = RECIPES[options.kind].but(**{k: v for k, v in asked.items() if v is not None})
    adapter = train_sibling(
        options.model,
        recipe,
        options.out,
        advbench=load_prompts("advbench", path=options.advbench),
        start=options.start,
        device=options.device,
    )
    card = json.loads((adapter / "card.json").read_text())
    print("step  refusal  over-refusal  degenerate  harmless loss")
    for at in card["curve"]:
        print(
            f"{at['step']:4.0f}  {at['refusal']:7.2f}  {at['over_refusal']:12.2f}  {at['degenerate']:10.2f}  "
            f"{at['harmless_loss']:13.3f}"
        )
    print(f"\nThe adapter of step {card['step']} is in {adapter}: load_model({str(adapter)!r})")
