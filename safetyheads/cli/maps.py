"""How does `safetyheads maps` draw where benign and jailbreak prompts attend?"""

import argparse
import functools
from pathlib import Path
from typing import Any

from safetyheads.cli.options import (
    SMALL_MODEL,
    add_device,
    add_out,
    add_reading,
    add_template,
    open_model,
    positive_integer,
    reading,
    share,
)


def add(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser("maps", help="draw where benign and jailbreak prompts attend")
    parser.set_defaults(run=run, check=functools.partial(check, parser))
    option = parser.add_argument
    how = f"may be repeated, with a --layer each ({SMALL_MODEL})"
    option("--model", action="append", help=how)
    option("--layer", action="append", type=int, required=True, help="a row of maps; repeatable")
    add_device(parser)
    option("--benign", help="known name or file; the builtin harmless prompts")
    option("--jailbreak", help="known name or file; the builtin harmful ones in a mild role-play")
    add_reading(parser)
    add_template(parser)
    option("--length", type=positive_integer, default=512, help="tokens on each axis (%(default)s)")
    option("--log", choices=("e", "10"), default="e", help="base of the logarithm (%(default)s)")
    option("--floor", type=share, help="attention below counts as it; what gives -10")
    option("--order", choices=("log_of_mean", "mean_of_log"), default="log_of_mean")
    option("--min-prompts", type=positive_integer, default=2, metavar="N", help="else blank (2)")
    option("--divergence", action="store_true", help="also compare every layer and head; slower")
    option("--hidden", action="store_true", help="also draw the hidden states' magnitudes")
    add_out(parser, "safetyheads-maps")


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """A model for each layer, or one for all."""
    options.model = options.model or [SMALL_MODEL]
    if len(options.model) == 1:
        options.model *= len(options.layer)
    if len(options.model) != len(options.layer):
        parser.error(
            f"{len(options.model)} --model and {len(options.layer)} --layer: name one model, "
            "or one for each layer"
        )


def read_sets(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """The benign and the jailbreak prompts."""
    from safetyheads.prompts import load_prompts, wrap

    benign, jailbreak = (
        load_prompts(given, **reading(options)) if given else load_prompts("builtin")
        for given in (options.benign, options.jailbreak)
    )
    if options.limit:
        benign, jailbreak = benign.limit(options.limit), jailbreak.limit(options.limit)
    return (
        list(benign.harmless or benign.harmful),
        list(jailbreak.harmful) if options.jailbreak else wrap(jailbreak.harmful),
    )


def run(options: argparse.Namespace) -> None:
    """Load, capture, save and draw."""
    from safetyheads.plots.attention import plot_attention_maps, plot_hidden_magnitudes
    from safetyheads.plots.divergence import plot_attention_divergence
    from safetyheads.plots.writing import write_html
    from safetyheads.probes.attention.divergence import attention_divergence
    from safetyheads.probes.attention.grid import Grid
    from safetyheads.probes.attention.hidden import hidden_magnitudes
    from safetyheads.probes.attention.maps import attention_maps

    sets = read_sets(options)
    grid = Grid(
        length=options.length,
        log=options.log if options.log == "e" else int(options.log),
        floor=options.floor,
        order=options.order,
        min_prompts=options.min_prompts,
        short="blank",
    )
    models = {name: open_model(options, name) for name in dict.fromkeys(options.model)}
    drawn = []
    for name, layer in zip(options.model, options.layer, strict=True):
        found = attention_maps(models[name], *sets, layer, grid=grid, template=options.template)
        folder = found.save(options.out / f"{Path(found.model).name}-layer{layer}")
        both = int(found.mask.any(1).sum())
        print(f"{found.model}, layer {layer}: {folder.absolute()}")
        print(f"  both sets reach the first {both} of {options.length} tokens; blank beyond")
        drawn.append(found)
    figures = {"maps": plot_attention_maps(drawn)}
    if options.hidden:
        magnitudes = [
            hidden_magnitudes(model, *sets, grid=grid, template=options.template)
            for model in models.values()
        ]
        figures["hidden"] = plot_hidden_magnitudes(magnitudes)
    if options.divergence:
        for model in models.values():
            compared = attention_divergence(model, *sets, template=options.template)
            stem = f"divergence-{Path(model.name).name}"
            compared.table.to_csv(options.out / f"{stem}.csv", index=False)
            figures[stem] = plot_attention_divergence(compared.table, title=model.name)
            columns = ["label", "divergence", "null_high", "p_value", "q_value"]
            print(f"\nHeads of {model.name} that differ most at matched length [nat]")
            top = compared.top(5)[columns]
            print(top.to_string(index=False, float_format="{:.4g}".format))
    for stem, figure in figures.items():
        page = write_html(figure, options.out / f"{stem}.html", plotly_js="embedded")
        print(f"The figure: {page.absolute()}")
