"""What does one type to rank a model's safety heads? `safetyheads rank` and `safetyheads demo`."""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safetyheads import __version__

if TYPE_CHECKING:
    from pandas import DataFrame

    from safetyheads.interventions import Ablation
    from safetyheads.metrics import Metric

DEMO_MODEL = "smollm2-135m-instruct"
DEMO_FOLDER = "safetyheads-demo"
DEMO_LIMIT = 4  # pairs; with these the demo ends within five minutes on two cores
ABLATIONS = ("undifferentiated_attention", "scaling_contribution", "zero", "mean", "resample")
DEFAULT_ABLATIONS = ABLATIONS[:2]
METRICS = ("ships", "generalized_ships", "refusal_shift")
UNFINISHED = "unfinished"
NEGATIVE_CONTROL = (
    f"{DEMO_MODEL} hardly ever refuses, so these heads are a negative control: "
    "they carry the next token of its answer, not a refusal."
)
NEXT_STEP = (
    "A model that refuses more, on prompts that it refuses:\n"
    "  safetyheads rank --model qwen2.5-coder-0.5b-instruct --prompts malicious_instruct"
    " --metric refusal_shift --limit 8"
)


def positive_integer(text: str) -> int:
    """Read a whole number of at least 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"came {text!r}, expected a whole number of at least 1")
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line; nothing heavy is imported for it."""
    parser = argparse.ArgumentParser(
        prog="safetyheads",
        description="Rank the attention heads of a chat model by what their ablation does to it.",
    )
    parser.add_argument("--version", action="version", version=f"safetyheads {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    rank = commands.add_parser(
        "rank", help="score every head and write scores.csv, manifest.json and scatter.html"
    )
    add = rank.add_argument
    add("--model", default=DEMO_MODEL, help="Hub id, folder, .gguf or known name (%(default)s)")
    add("--prompts", default="builtin", help="known name or .txt .csv .json .jsonl .parquet file")
    add("--prompts-path", metavar="PATH", help="file or folder that holds a named prompt set")
    add("--column", help="the file's column with the prompts; found when not given")
    add(
        "--ablation",
        action="append",
        choices=ABLATIONS,
        help="may be repeated; the first two when not given",
    )
    add("--epsilon", type=float, help="what the first two ablations leave; their own default")
    add("--seed", type=int, help="of the resample ablation; its own default")
    add("--metric", choices=METRICS, default=METRICS[0], help="distance to the baseline (ships)")
    add("--space", choices=("left", "right", "feature0"), help="of generalized_ships (left)")
    add("--rank", type=positive_integer, help="singular vectors of generalized_ships (1)")
    add("--template", help='"chat", "bare", "query" or a text with {q}; by default the model\'s')
    add("--top", type=positive_integer, default=10, metavar="K", help="heads shown (%(default)s)")
    add("--limit", type=positive_integer, metavar="N", help="use N prompts; all when not given")
    add("--batch", type=positive_integer, metavar="ROWS", help="rows of one forward pass")
    add("--device", default="cpu", help="cpu, cuda, cuda:1, mps (%(default)s)")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights; as stored")
    add("--out", type=Path, default=Path("safetyheads-out"), metavar="FOLDER", help="%(default)s")

    demo = commands.add_parser("demo", help=f"rank on the defaults: {DEMO_MODEL}, builtin prompts")
    add = demo.add_argument
    add("--out", type=Path, default=Path(DEMO_FOLDER), metavar="FOLDER", help="%(default)s")
    add("--limit", type=positive_integer, default=DEMO_LIMIT, metavar="N", help="%(default)s")
    return parser


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse, and refuse an option that the chosen ablations and metric would leave unread."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.command == "demo":
        defaults = parser.parse_args(["rank", "--out", str(options.out)])
        defaults.command, defaults.limit = "demo", options.limit
        options = defaults
    options.ablation = list(dict.fromkeys(options.ablation or DEFAULT_ABLATIONS))
    if options.epsilon is not None and not set(options.ablation) & set(DEFAULT_ABLATIONS):
        parser.error(f"--epsilon is for {' and '.join(DEFAULT_ABLATIONS)}; leave it out")
    if options.seed is not None and "resample" not in options.ablation:
        parser.error("--seed is for --ablation resample; leave it out")
    if options.metric != "generalized_ships" and (options.space or options.rank):
        parser.error("--space and --rank are for --metric generalized_ships; leave them out")
    return options


def check_writable(folder: Path) -> None:
    """Raise an OSError before hours of work if nothing can be written to a folder."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise type(error)(
            f"--out {folder}: cannot write in {existing} ({error.strerror}); name another folder"
        ) from None


def make_ablations(options: argparse.Namespace) -> "list[Ablation]":
    """Build the chosen ablations, their own defaults where no option says otherwise."""
    from safetyheads.interventions import (
        Ablation,
        MeanAblation,
        ResampleAblation,
        ScalingContribution,
        UndifferentiatedAttention,
        ZeroAblation,
    )

    epsilon = {} if options.epsilon is None else {"epsilon": options.epsilon}
    seed = {} if options.seed is None else {"seed": options.seed}
    makers: dict[str, Callable[[], Ablation]] = {
        "undifferentiated_attention": lambda: UndifferentiatedAttention(**epsilon),
        "scaling_contribution": lambda: ScalingContribution(**epsilon),
        "zero": ZeroAblation,
        "mean": MeanAblation,
        "resample": lambda: ResampleAblation(**seed),
    }
    return [makers[name]() for name in options.ablation]


def make_metric(options: argparse.Namespace) -> "Metric":
    """Build the chosen metric."""
    from safetyheads.metrics import GeneralizedShips, RefusalShift, Ships

    if options.metric == "generalized_ships":
        return GeneralizedShips(space=options.space or "left", rank=options.rank or 1)
    return Ships() if options.metric == "ships" else RefusalShift()


def format_table(table: "DataFrame") -> str:
    """Lay out the top heads, one block an ablation, harmful beside harmless where there is both."""
    blocks = []
    for (dataset, model, ablation, metric, unit), rows in table.groupby(
        ["dataset", "model", "ablation", "metric", "unit"], sort=False
    ):
        columns = {"rank": "rank", "label": "head", "score": f"harmful [{unit}]"}
        if "harmless_score" in rows and rows["harmless_score"].notna().any():
            columns["harmless_score"] = f"harmless [{unit}]"
        body = rows.sort_values("rank")[list(columns)].rename(columns=columns)
        title = f"Top {len(rows)} heads of {model} on {dataset}: {metric}, {ablation}"
        blocks.append(f"{title}\n{body.to_string(index=False, float_format='{:.4g}'.format)}")
    return "\n\n".join(blocks)


def rank(options: argparse.Namespace) -> None:
    """Load, score, save and print: the whole of `safetyheads rank`."""
    check_writable(options.out)

    from safetyheads.model import load_model
    from safetyheads.prompts import load_prompts
    from safetyheads.ranking import rank_safety_heads

    ablations, metric = make_ablations(options), make_metric(options)
    prompts = load_prompts(options.prompts, column=options.column, path=options.prompts_path)
    dtype = None
    if options.dtype:
        import torch

        dtype = getattr(torch, options.dtype)
    if sys.stderr.isatty():
        print(f"Opening {options.model} ...", file=sys.stderr)
    model = load_model(options.model, device=options.device, dtype=dtype)
    ranking = rank_safety_heads(
        model,
        prompts,
        ablations=ablations,
        metric=metric,
        top_k=options.top,
        template=options.template,
        limit=options.limit,
        store=options.out / UNFINISHED,
        **({"rows": options.batch} if options.batch else {}),
    )
    note = NEGATIVE_CONTROL if options.model == DEMO_MODEL else None
    try:
        ranking.save(options.out, note=note)
    finally:  # the scores are shown even where the folder has become unwritable meanwhile
        print(format_table(ranking.top(options.top)))
    shutil.rmtree(options.out / UNFINISHED, ignore_errors=True)
    print(f"\nThe figure: {(options.out / 'scatter.html').absolute()}")
    print(f"All scores: {(options.out / 'scores.csv').absolute()}")
    if note:
        print(f"\nNote: {note}\n{NEXT_STEP}")


def describe_interruption(folder: Path) -> str:
    """Say after Ctrl-C what there is of this run, and how to go on."""
    unfinished = folder / UNFINISHED
    kept = f"; the layers scored so far are in {unfinished}: the same command goes on from there"
    return (
        f"safetyheads: interrupted; {folder} holds no complete result of this run"
        f"{kept if unfinished.is_dir() else ''}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 2 for bad input, 130 after Ctrl-C."""
    options = parse_arguments(arguments)
    # Before torch is imported: threads that spin while they wait make a busy machine several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        rank(options)
    except KeyboardInterrupt:
        print(f"\n{describe_interruption(options.out)}", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"safetyheads: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
