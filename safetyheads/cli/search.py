"""How does `safetyheads search` look for heads that matter together?"""

import argparse
import functools
import shutil
from typing import Any

from safetyheads.cli.options import (
    UNFINISHED,
    add_ablation,
    add_metric,
    add_model,
    add_out,
    add_prompts,
    add_rows,
    check_measurement,
    make_ablations,
    make_metric,
    open_model,
    positive_integer,
    read_prompts,
)


def add(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser("search", help="add heads greedily to a group, beside random ones")
    parser.set_defaults(run=run, check=functools.partial(check_measurement, parser))
    add_model(parser)
    add_prompts(parser)
    add_ablation(parser)
    add_metric(parser, "ships")
    parser.set_defaults(metric="ships")
    add_rows(parser)
    add_out(parser, "safetyheads-group")
    option = parser.add_argument
    option("--seed", type=int, help="of the random groups and the resample ablation (0)")
    option("--steps", type=positive_integer, default=3, metavar="S", help="size of the group (3)")
    option("--samples", type=positive_integer, default=20, metavar="N", help="random groups (20)")


def run(options: argparse.Namespace) -> None:
    """Load, search, save and print."""
    from safetyheads.engine.execution import Execution
    from safetyheads.plots.writing import write_html
    from safetyheads.probes.groups import GroupSearch, search_heads

    prompts = read_prompts(options)
    ablation, metric = make_ablations(options)[0], make_metric(options)
    group = search_heads(
        open_model(options),
        prompts.limit(options.limit) if options.limit else prompts,
        GroupSearch(steps=options.steps, samples=options.samples, seed=options.seed or 0),
        ablation=ablation,
        metric=metric,
        template=options.template,
        execution=Execution(rows=options.batch, store=options.out / UNFINISHED),
    )
    group.save(options.out)
    columns = [
        "size",
        "label",
        "score",
        "alone",
        "self_repair",
        "null_mean",
        "null_high",
        "p_value",
    ]
    print(f"Heads ablated together, {group.ablation}: {group.metric} [{group.unit}]")
    table = group.to_frame()[columns].rename(columns={"label": "head added"})
    print(table.to_string(index=False, float_format="{:.4g}".format))
    print(f"\nAll heads: {group.everything:.4g}; all but the group: {group.only:.4g}")
    print("\nPairs that do most beyond the sum of their heads")
    pairs = group.pair_frame().head(5)[["first", "second", "together", "interaction"]]
    print(pairs.to_string(index=False, float_format="{:.4g}".format))
    page = write_html(group.plot(), options.out / "group.html", plotly_js="embedded")
    shutil.rmtree(options.out / UNFINISHED, ignore_errors=True)
    print(f"\nThe figure: {page.absolute()}")
