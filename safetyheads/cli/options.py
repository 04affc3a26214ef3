"""Which options do commands share, and what do they make of them?

Each `add_...` gives a parser a few options, and what stands beside it reads them: a command takes both or neither.
Nothing heavy is imported before an option is used.
"""

import argparse
import math
import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safetyheads.engine.executors import Executor
    from safetyheads.interventions.ablations import Ablation
    from safetyheads.metrics import Metric
    from safetyheads.models.hooked import HookedModel
    from safetyheads.prompts import PromptSet

DEMO_MODEL = "smollm2-135m-ssft"
SMALL_MODEL = "smollm2-135m-instruct"
ABLATIONS = ("undifferentiated_attention", "scaling_contribution", "zero", "mean", "resample")
DEFAULT_ABLATIONS = ABLATIONS[:2]
METRICS = ("refusal_shift", "ships", "generalized_ships")
PROMPT_SETS = ("builtin", "jailbreakbench", "malicious_instruct", "advbench", "xstest")
EXECUTORS = ("process", "ray")
UNFINISHED = "unfinished"
TEMPLATE = '"chat", "bare", "query" or a text with {q}; by default the model\'s'

Parser = argparse.ArgumentParser


def positive_integer(text: str) -> int:
    """Read a whole number of at least 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"came {text!r}, expected a whole number of at least 1")
    return int(text)


def share(text: str) -> float:
    """Read a number that is neither negative nor infinite, for argparse."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise argparse.ArgumentTypeError(f"came {text!r}, expected a number of at least 0")
    return number


def template(text: str) -> str:
    """Read a template's name, or a text with a place for the prompt, for argparse."""
    if text not in ("chat", "bare", "query") and "{q}" not in text:
        raise argparse.ArgumentTypeError(
            f'came {text!r}, expected "chat", "bare", "query" or a text with {{q}}, where the prompt goes'
        )
    return text


def layer_numbers(text: str) -> list[int]:
    """Read layers such as `0-7` or `0,3,5-7`, for argparse."""
    layers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isdecimal() and (last.isdecimal() if dash else not last)):
            raise argparse.ArgumentTypeError(
                f"came {text!r}, expected layers such as 0-7 or 0,3,5-7"
            )
        layers.update(range(int(first), int(last or first) + 1))
    if not layers:
        raise argparse.ArgumentTypeError(f"came {text!r}, which names no layer: write 0-7, not 7-0")
    return sorted(layers)


# The model -----------------------------------------------------------------------------------------------------------


def add_model(parser: Parser, default: str | None = DEMO_MODEL) -> None:
    """`--model`, `--device` and `--dtype`; without a default the model must be named."""
    about = "Hub id, folder, .gguf or known name" + (f" ({default})" if default else "")
    parser.add_argument("--model", required=default is None, help=about)
    add_device(parser)


def add_device(parser: Parser) -> None:
    """Where the model lies, and in what numerics."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps (%(default)s)")
    types = ("float32", "bfloat16", "float16")
    parser.add_argument("--dtype", choices=types, help="of the weights; as stored")


def open_model(options: argparse.Namespace, name: Any = None) -> "HookedModel":
    """Open the model that was named."""
    import torch

    from safetyheads.models.opening import load_model

    name = name or options.model or DEMO_MODEL
    if sys.stderr.isatty():
        print(f"Opening {name} ...", file=sys.stderr)
    dtype = getattr(torch, options.dtype) if options.dtype else None
    return load_model(name, device=options.device, dtype=dtype)


# The prompts ---------------------------------------------------------------------------------------------------------


def add_prompts(parser: Parser) -> None:
    """`--prompts` with what belongs to it, `--template` and `--limit`."""
    add = parser.add_argument
    kinds = "or a .txt .csv .tsv .json .jsonl .parquet file"
    add("--prompts", help=f"{', '.join(PROMPT_SETS)} {kinds} (builtin)")
    add("--prompts-path", metavar="PATH", help="file or folder that holds a named prompt set")
    add("--harmless", metavar="FILE", help="harmless prompts to stand beside those of --prompts")
    add_reading(parser)
    add_template(parser)


def add_reading(parser: Parser) -> None:
    """`--column`, `--label` and `--encoding`: how a file of prompts is read."""
    add = parser.add_argument
    add("--column", help="the file's column with the prompts; found when not given")
    how = "the column that says which prompts are harmful, or none if all are; found when not given"
    add("--label", metavar="COLUMN", help=how)
    add("--encoding", help="of a text file; UTF-8 when not given")


def reading(options: argparse.Namespace) -> dict[str, Any]:
    """What `load_prompts` takes of these."""
    label = False if options.label == "none" else options.label
    return {"column": options.column, "label": label, "encoding": options.encoding}


OWN_NAMES = {"top_k": "top", "path": "prompts-path", "rows": "batch", "min_prompts": "min-prompts"}
"""Arguments whose option has another name."""
ARGUMENTS = (
    *OWN_NAMES,
    *("column", "label", "encoding", "harmless", "template", "method", "device", "dtype", "metric"),
    *("ablation", "limit", "layers", "steps", "samples", "seed", "length", "floor", "order"),
    "epsilon",
)


def as_options(text: str) -> str:
    """An error's advice in the words of the command line.

    >>> as_options("say which with label=, or label=False; encoding='latin-1' perhaps")
    "say which with --label, or --label none; --encoding 'latin-1' perhaps"
    >>> as_options('top_k is 500; use method="exact"')
    '--top is 500; use --method "exact"'
    """

    def option(name: str) -> str:
        return f"--{OWN_NAMES.get(name, name)}"

    names = "|".join(ARGUMENTS)
    text = re.sub(r"\blabel=False\b", "--label none", text)
    text = re.sub(rf"^({names}) (is|has)\b", lambda found: f"{option(found[1])} {found[2]}", text)
    return re.sub(
        rf"(?<![\w(])({names})=(?=(.?))",
        lambda found: option(found[1]) + (" " if found[2].strip(" ,;:.)") else ""),
        text,
    )


def add_template(parser: Parser) -> None:
    """`--template` and `--limit`."""
    parser.add_argument("--template", type=template, help=TEMPLATE)
    how = "use N prompts; all when not given"
    parser.add_argument("--limit", type=positive_integer, metavar="N", help=how)


def read_prompts(options: argparse.Namespace) -> "PromptSet":
    """Read the prompts that were named; all of them, since a study cuts them itself."""
    from safetyheads.prompts import load_prompts

    given = {"harmless": options.harmless, "path": options.prompts_path, **reading(options)}
    given = {name: value for name, value in given.items() if value is not None}
    return load_prompts(options.prompts or "builtin", **given)


# What is done to a head, and what is measured ------------------------------------------------------------------------


def add_ablation(
    parser: Parser, choices: tuple[str, ...] = ABLATIONS, *, several: bool = False
) -> None:
    """`--ablation`, which may be repeated if `several`, and `--epsilon`."""
    if several:
        about = "may be repeated; the first two when not given"
        parser.add_argument("--ablation", action="append", choices=choices, help=about)
    else:
        about = f"what is done to a head ({choices[0]})"
        parser.add_argument("--ablation", choices=choices, default=choices[0], help=about)
    parser.add_argument("--epsilon", type=share, help="what the first two leave; their own default")


def add_metric(parser: Parser, default: str) -> None:
    """`--metric` with what belongs to it."""
    add = parser.add_argument
    add("--metric", choices=METRICS, help=f"what is measured ({default})")
    add("--space", choices=("left", "right", "feature0"), help="of generalized_ships (left)")
    add("--rank", type=positive_integer, help="singular vectors of generalized_ships (1)")


def check_measurement(parser: Parser, options: argparse.Namespace) -> None:
    """Refuse an option that the chosen ablations and metric would leave unread."""
    chosen = options.ablation if isinstance(options.ablation, list) else [options.ablation]
    if options.epsilon is not None and not set(chosen) & set(DEFAULT_ABLATIONS):
        parser.error(f"--epsilon is for {' and '.join(DEFAULT_ABLATIONS)}; leave it out")
    options.ablation = list(dict.fromkeys(chosen))
    if not hasattr(options, "metric"):
        return
    if options.metric != "generalized_ships" and (options.space or options.rank):
        parser.error("--space and --rank are for --metric generalized_ships; leave them out")


def make_ablations(options: argparse.Namespace) -> "tuple[Ablation, ...]":
    """The chosen ablations, their own defaults where no option says otherwise."""
    from safetyheads.interventions.ablations import as_ablations

    def fields(name: str) -> dict[str, Any]:
        own: dict[str, Any] = {"name": name}
        if name in DEFAULT_ABLATIONS and options.epsilon is not None:
            own["epsilon"] = options.epsilon
        if name == "resample" and getattr(options, "seed", None) is not None:
            own["seed"] = options.seed
        return own

    return as_ablations([fields(name) for name in options.ablation])


def make_metric(options: argparse.Namespace) -> "Metric":
    """The chosen metric."""
    from safetyheads.metrics import as_metric

    given = {"space": options.space, "rank": options.rank}
    return as_metric({"name": options.metric} | {k: v for k, v in given.items() if v is not None})


# How it runs, and where the result goes ------------------------------------------------------------------------------


def add_rows(parser: Parser) -> None:
    """`--batch`."""
    how = "rows of one forward pass"
    parser.add_argument("--batch", type=positive_integer, metavar="ROWS", help=how)


def add_out(parser: Parser, default: str | None) -> None:
    """`--out`; without a default a new folder must be named."""
    about: dict[str, Any] = {"required": True, "help": "a new folder"}
    if default:
        about = {"default": Path(default), "help": "%(default)s"}
    parser.add_argument("--out", type=Path, metavar="FOLDER", **about)


def add_executor(parser: Parser) -> None:
    """`--executor`, `--workers` and `--upper-blocks`."""
    add = parser.add_argument
    add("--executor", choices=EXECUTORS, help="run in processes, or on Ray; here when not given")
    add("--workers", type=positive_integer, metavar="N", help="processes or Ray workers (2)")
    add("--upper-blocks", action="store_true", help="a worker opens only the blocks that it needs")


def make_executor(options: argparse.Namespace) -> "Executor | None":
    """The chosen executor; None runs everything in this process."""
    if options.executor is None:
        return None
    from safetyheads.engine.executors import process_map, ray_map

    workers = options.workers or 2
    try:
        if options.executor == "process":
            return process_map(workers)
        return ray_map(workers, gpus_per_worker=int(options.device.startswith("cuda")))
    except ImportError as error:  # a missing extra is bad input here, and no traceback
        raise ValueError(error) from None


def check_writable(folder: Path) -> None:
    """Raise an OSError before hours of work if nothing can be written to a folder."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise type(error)(
            f"--out {folder}: cannot write in {existing} ({error.strerror}); name another folder"
        ) from None
