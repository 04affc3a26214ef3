"""How does `safetyheads export` write a model with some heads ablated?"""

import argparse
import functools
from typing import Any

from safetyheads.cli.options import (
    ABLATIONS,
    TEMPLATE,
    add_ablation,
    add_model,
    add_out,
    add_reading,
    check_measurement,
    make_ablations,
    open_model,
    reading,
    template,
)


def add(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser("export", help="write the model with some heads ablated")
    parser.set_defaults(run=run, check=functools.partial(check, parser))
    add_model(parser, default=None)
    option = parser.add_argument
    option("--heads", required=True, nargs="+", metavar="HEAD", help="L3H7, or 3-7: layer first")
    add_ablation(parser, ABLATIONS[:4])
    option("--prompts", help="whose mean output --ablation mean writes: known name or file")
    add_reading(parser)
    option("--template", type=template, help=TEMPLATE)
    add_out(parser, None)


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse options that do not go together."""
    if (options.prompts or options.template) and options.ablation != "mean":
        parser.error("--prompts and --template are for --ablation mean; leave them out")
    if (options.column or options.label or options.encoding) and not options.prompts:
        parser.error("--column, --label and --encoding are for a file of --prompts; leave them out")
    check_measurement(parser, options)


def run(options: argparse.Namespace) -> None:
    """Load, edit, save, compare and print."""
    from safetyheads.heads import parse_heads
    from safetyheads.interventions.export import export_ablated
    from safetyheads.prompts import load_prompts

    heads, ablation = parse_heads(options.heads), make_ablations(options)[0]
    prompts = load_prompts(options.prompts, **reading(options)) if options.prompts else None
    written = export_ablated(
        open_model(options),
        heads,
        options.out,
        ablation=ablation,
        prompts=prompts,
        template=options.template,
    )
    print(f"The ablated model: {written.folder.absolute()}")
    print(f"Weights changed: {', '.join(written.changed)}")
    print(
        f"Logits differ from the hooked model's by at most {written.max_logit_difference:.2g} "
        f"(the largest is {written.largest_logit:.3g})"
    )
