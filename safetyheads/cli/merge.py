"""How does `safetyheads merge` join the parts of a ranking?"""

import argparse
from pathlib import Path
from typing import Any

from safetyheads.cli.options import SMALL_MODEL, add_out, positive_integer
from safetyheads.cli.shown import report


def add(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser("merge", help="join the parts that rank --layers wrote")
    parser.set_defaults(run=run, check=lambda options: None)
    parser.add_argument("parts", nargs="+", type=Path, metavar="FOLDER", help="--out of a part")
    how = "heads shown; by default the parts' K"
    parser.add_argument("--top", type=positive_integer, metavar="K", help=how)
    add_out(parser, "safetyheads-out")


def run(options: argparse.Namespace) -> None:
    """Join parts, save and print."""
    from safetyheads.ranking.merging import merge_rankings

    ranking = merge_rankings(options.parts, top_k=options.top)
    report(ranking, ranking.top_k, options.out, control=ranking.model == SMALL_MODEL)
