"""How does `safetyheads spectrum` say along how many directions harmful and harmless prompts differ?"""

import argparse
from typing import Any

from safetyheads.cli.options import (
    add_model,
    add_out,
    add_reading,
    add_template,
    open_model,
    positive_integer,
    reading,
)


def add(commands: Any) -> None:
    """Describe the command."""
    about = "decompose the differences between harmful and harmless prompts' states"
    parser = commands.add_parser("spectrum", help=about)
    parser.set_defaults(run=run, check=lambda options: None)
    add_model(parser)
    option = parser.add_argument
    option("--prompts", default="builtin", help="with both sides: known name or file (%(default)s)")
    add_reading(parser)
    add_template(parser)
    option("--layer", action="append", type=int, help="repeatable; all but the first otherwise")
    option("--components", type=positive_integer, default=6, metavar="N", help="(%(default)s)")
    option("--no-random", action="store_true", help="without the copy of random weights; faster")
    add_out(parser, "safetyheads-spectrum")


def run(options: argparse.Namespace) -> None:
    """Load, decompose, save and draw."""
    from safetyheads.plots.spectrum import plot_component_cosines, plot_planes, plot_spectrum
    from safetyheads.plots.writing import write_html
    from safetyheads.probes.directions.spectrum import refusal_spectrum
    from safetyheads.prompts import load_prompts

    prompts = load_prompts(options.prompts, **reading(options))
    found = refusal_spectrum(
        open_model(options),
        prompts.limit(options.limit) if options.limit else prompts,
        layers=options.layer,
        components=options.components,
        random_weights=not options.no_random,
        template=options.template,
    )
    folder = found.save(options.out)
    table = found.to_frame()
    table.to_csv(folder / "spectrum.csv", index=False)
    middle = found.layers[len(found.layers) // 2]
    shown = found.layers[:: -(-len(found.layers) // 4)]
    figures = {
        "spectrum": plot_spectrum(table, middle, components=options.components),
        "planes": plot_planes(found.points(), shown),
        "cosines": plot_component_cosines(table, components=min(3, options.components)),
    }
    for stem, figure in figures.items():
        write_html(figure, folder / f"{stem}.html")
    first = table[(table["component"] == 1) & (table["layer"] == middle)]
    columns = ["version", "explained", "low", "high", "chance", "random", "cosine"]
    print(f"{found!r}\nComponent 1 of what enters layer {middle}")
    print(first[[*columns, "outlier_share"]].to_string(index=False, float_format="%.3f"))
    print(folder.absolute())
