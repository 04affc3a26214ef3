"""How does `safetyheads rank` read its options, and what does it run? Also `demo`, which is one such run."""

import argparse
import functools
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetyheads.cli.options import (
    DEFAULT_ABLATIONS,
    DEMO_MODEL,
    METRICS,
    SMALL_MODEL,
    UNFINISHED,
    add_ablation,
    add_executor,
    add_metric,
    add_model,
    add_out,
    add_prompts,
    add_rows,
    check_measurement,
    layer_numbers,
    make_ablations,
    make_executor,
    make_metric,
    open_model,
    positive_integer,
    read_prompts,
    share,
)
from safetyheads.cli.shown import report

if TYPE_CHECKING:
    from safetyheads.ranking.study import Study

DEMO_FOLDER = "safetyheads-demo"
DEMO_LIMIT = 12  # pairs: from 11 on one head alone can pass a false discovery rate of 0.05
DEMO_CAUTION = 1.4
"""Of its races, so that it ends in some minutes; the result says how surely its top ten is the exact one."""
METHODS = ("exact", "raced", "screened")
ASKED = [  # what a study's file says, and no option beside it
    *("model", "prompts", "prompts_path", "harmless", "column", "label", "encoding"),
    *("template", "limit"),
    *("ablation", "epsilon", "seed", "metric", "space", "rank", "method", "caution", "top"),
]


def add(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "rank", help="score every head and write scores.csv, manifest.json and scatter.html"
    )
    parser.set_defaults(run=run, check=functools.partial(check, parser))
    what = "a TOML file of Study.save: what is asked, in place of the options for it"
    parser.add_argument("--study", type=Path, metavar="FILE", help=what)
    add_model(parser)
    add_prompts(parser)
    add_ablation(parser, several=True)
    parser.add_argument("--seed", type=int, help="of the resample ablation; its own default")
    add_metric(parser, METRICS[0])
    add_rows(parser)
    add_executor(parser)
    add_out(parser, "safetyheads-out")
    option = parser.add_argument
    option("--top", type=positive_integer, metavar="K", help="heads shown (10)")
    option("--gate", action="store_true", help="say which heads rise above chance; twice the time")
    option("--plan", action="store_true", help="say what it will cost, and run nothing")
    option("--method", choices=METHODS, help="run every head, race them, or screen first (exact)")
    what = "standard errors by which a head must fall behind to drop out of a race (1.8)"
    option("--caution", type=share, metavar="C", help=what)
    option("--layers", type=layer_numbers, help="only these, as 0-7: a part, for safetyheads merge")


def add_demo(commands: Any) -> None:
    """Describe the demo."""
    parser = commands.add_parser("demo", help=f"rank {DEMO_MODEL} on builtin prompts, raced")
    parser.set_defaults(run=run, check=functools.partial(as_rank, parser))
    how = "%(default)s"
    parser.add_argument("--limit", type=positive_integer, default=DEMO_LIMIT, metavar="N", help=how)
    add_out(parser, DEMO_FOLDER)


def as_rank(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Give a demo the options of `rank`."""
    own = argparse.ArgumentParser()
    add(own.add_subparsers())
    defaults = vars(own.parse_args(["rank"])) | {"check": options.check}
    defaults |= {"method": "raced", "caution": DEMO_CAUTION}
    vars(options).update({k: v for k, v in defaults.items() if k not in ("limit", "out")})
    check(parser, options)


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse options that do not go together, and fill in those that were left out."""
    if options.study:
        beside = [name for name in ASKED if getattr(options, name) is not None]
        if beside:
            named = ", ".join(f"--{name.replace('_', '-')}" for name in beside)
            parser.error(f"--study says what is asked; write it there and leave out {named}")
    if options.layers and options.method in METHODS[1:]:
        parser.error(f"--method {options.method} looks at all layers; leave out --layers")
    if options.gate and (options.layers or options.study or options.method in METHODS[1:]):
        parser.error(
            "--gate tests all heads of one run: leave out --layers and --method; a study's file says gate itself"
        )
    if options.plan and (options.layers or options.executor):
        parser.error("--plan is of a whole run in one process; leave out --layers and --executor")
    if options.workers and not options.executor:
        parser.error("--workers is for --executor process or ray; name one of them")
    if options.upper_blocks and not options.executor:
        parser.error("--upper-blocks is for --executor process or ray; name one of them")
    if options.caution is not None and options.method != "raced":
        parser.error("--caution is for --method raced; leave it out")
    options.ablation = options.ablation or list(DEFAULT_ABLATIONS)
    options.metric = options.metric or METRICS[0]
    options.method = options.method or METHODS[0]
    if options.seed is not None and "resample" not in options.ablation:
        parser.error("--seed is for --ablation resample; leave it out")
    check_measurement(parser, options)
    if options.method == "raced" and options.metric == "generalized_ships":
        parser.error("--method raced needs a metric of single prompts; leave it out, or screened")


def study_of(options: argparse.Namespace) -> "Study":
    """What is asked, with the model's name and the prompts read: nothing is opened yet."""
    from safetyheads.ranking.study import Study
    from safetyheads.screening.race import Raced

    if options.study:
        study = Study.load(options.study)
        return replace(study, dataset=study.read())
    method, top = options.method, options.top or 10
    if options.caution is not None:
        method = Raced(top_k=top, caution=options.caution)
    return Study(
        options.model or DEMO_MODEL,
        read_prompts(options),
        ablations=make_ablations(options),
        metric=make_metric(options),
        template=options.template,
        limit=options.limit,
        method=method,
        top_k=top,
        null="gate" if options.gate else "labels",
    )


def run(options: argparse.Namespace) -> None:
    """Load, score, save and print."""
    from safetyheads.engine.execution import Execution

    study = study_of(options)
    named = study.model
    execution = Execution(
        rows=options.batch,
        executor=make_executor(options),
        upper_blocks=options.upper_blocks,
    )
    study = replace(study, model=open_model(options, named))
    if options.plan:
        from safetyheads.ranking.planning import plan

        print(plan(study, execution))
        return
    if options.layers:
        from safetyheads.ranking.merging import rank_layers

        folder = rank_layers(study, options.layers, options.out, execution)
        print(f"A part of a ranking, readings of layers {options.layers}: {folder.absolute()}")
        print("It has no scores yet; join all parts: safetyheads merge FOLDER ... --out RESULT")
        return
    from safetyheads.ranking.ranking import rank

    ranking = rank(study, replace(execution, store=options.out / UNFINISHED))
    report(ranking, study.top_k, options.out, control=named == SMALL_MODEL)
    shutil.rmtree(options.out / UNFINISHED, ignore_errors=True)
