"""What does one type? `safetyheads rank`, `merge`, `search`, `maps`, `spectrum`, `export`, `train` and `demo`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from safetyheads import __version__
from safetyheads.cli import export, maps, merge, rank, search, spectrum, train
from safetyheads.cli.options import UNFINISHED, as_options, check_writable


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line; nothing heavy is imported for it."""
    parser = argparse.ArgumentParser(
        prog="safetyheads",
        description="Rank the attention heads of a chat model by what their ablation does to it.",
    )
    parser.add_argument("--version", action="version", version=f"safetyheads {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (rank, merge, export, search, maps, spectrum, train):
        command.add(commands)
    rank.add_demo(commands)
    return parser


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse, and refuse an option that the others would leave unread."""
    options = build_parser().parse_args(arguments)
    options.check(options)
    return options


def describe_interruption(folder: Path) -> str:
    """Say after Ctrl-C what there is of this run, and how to go on."""
    unfinished = folder / UNFINISHED
    kept = f"; the layers scored so far are in {unfinished}: the same command goes on from there"
    return (
        f"safetyheads: interrupted; {folder} holds no complete result of this run"
        f"{kept if unfinished.is_dir() else ''}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 2 for bad input or a missing package, 130 after Ctrl-C."""
    # Before torch is imported: threads that spin while they wait make a busy machine several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    options = parse_arguments(arguments)
    try:
        check_writable(options.out)
        options.run(options)
    except KeyboardInterrupt:
        print(f"\n{describe_interruption(options.out)}", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError) as error:
        said = as_options(" ".join(str(error).split()))
        print(f"safetyheads: error: {said}", file=sys.stderr)
        return 2
    return 0
