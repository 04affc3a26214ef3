"""What does one type? `safetyheads rank`, `merge`, `search`, `maps`, `export` and `demo`."""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from safetyheads import __version__

if TYPE_CHECKING:
    from pandas import DataFrame

    from safetyheads.engine.executors import Executor
    from safetyheads.interventions.ablations import Ablation
    from safetyheads.metrics import Metric
    from safetyheads.ranking.ranking import Ranking

DEMO_MODEL = "qwen2.5-coder-0.5b-instruct"
SMALL_MODEL = "smollm2-135m-instruct"
DEMO_FOLDER = "safetyheads-demo"
DEMO_LIMIT = 6  # pairs; with these the demo ends within three minutes on two cores
ABLATIONS = ("undifferentiated_attention", "scaling_contribution", "zero", "mean", "resample")
DEFAULT_ABLATIONS = ABLATIONS[:2]
METRICS = ("refusal_shift", "ships", "generalized_ships")
EXECUTORS = ("process", "ray")
METHODS = ("exact", "screened")
UNFINISHED = "unfinished"
NEGATIVE_CONTROL = (
    f"{SMALL_MODEL} hardly ever refuses, so these heads are a negative control: "
    "they carry the next token of its answer, not a refusal."
)
NEXT_STEP = (
    "A model that refuses more, on prompts that it refuses:\n"
    f"  safetyheads rank --model {DEMO_MODEL} --prompts malicious_instruct"
    " --metric refusal_shift --limit 8"
)


def positive_integer(text: str) -> int:
    """Read a whole number of at least 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"came {text!r}, expected a whole number of at least 1")
    return int(text)


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
    add("--metric", choices=METRICS, default=METRICS[0], help="what is measured (%(default)s)")
    add("--space", choices=("left", "right", "feature0"), help="of generalized_ships (left)")
    add("--rank", type=positive_integer, help="singular vectors of generalized_ships (1)")
    add("--template", help='"chat", "bare", "query" or a text with {q}; by default the model\'s')
    add("--top", type=positive_integer, default=10, metavar="K", help="heads shown (%(default)s)")
    add("--limit", type=positive_integer, metavar="N", help="use N prompts; all when not given")
    add("--batch", type=positive_integer, metavar="ROWS", help="rows of one forward pass")
    add("--device", default="cpu", help="cpu, cuda, cuda:1, mps (%(default)s)")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights; as stored")
    add("--out", type=Path, default=Path("safetyheads-out"), metavar="FOLDER", help="%(default)s")

    add("--plan", action="store_true", help="say what it will cost, and run nothing")
    add("--method", choices=METHODS, default=METHODS[0], help="run every head, or screen first")
    add("--executor", choices=EXECUTORS, help="run in processes, or on Ray; here when not given")
    add("--workers", type=positive_integer, metavar="N", help="processes or Ray workers (2)")
    add("--layers", type=layer_numbers, help="only these, as 0-7: a part, for safetyheads merge")

    merge = commands.add_parser("merge", help="join the parts that rank --layers wrote")
    merge.add_argument("parts", nargs="+", type=Path, metavar="FOLDER", help="--out of a part")
    add = merge.add_argument
    add("--top", type=positive_integer, metavar="K", help="heads shown; by default the parts' K")
    add("--out", type=Path, default=Path("safetyheads-out"), metavar="FOLDER", help="%(default)s")

    export = commands.add_parser("export", help="write the model with some heads ablated")
    add = export.add_argument
    add("--model", required=True, help="Hub id, folder, .gguf or known name")
    add("--heads", required=True, nargs="+", metavar="HEAD", help="L3H7, or 3-7: layer first")
    add("--ablation", choices=ABLATIONS[:4], default=ABLATIONS[0], help="%(default)s")
    add("--epsilon", type=float, help="what the first two ablations leave; their own default")
    add("--prompts", help="whose mean output --ablation mean writes: known name or file")
    add("--template", help="around these prompts; by default the model's")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights; as stored")
    add("--out", type=Path, required=True, metavar="FOLDER", help="a new folder")

    search = commands.add_parser("search", help="add heads greedily to a group, beside random ones")
    add = search.add_argument
    add("--model", default=DEMO_MODEL, help="Hub id, folder, .gguf or known name (%(default)s)")
    add("--prompts", default="builtin", help="known name or .txt .csv .json .jsonl .parquet file")
    add("--prompts-path", metavar="PATH", help="file or folder that holds a named prompt set")
    add("--column", help="the file's column with the prompts; found when not given")
    add("--ablation", choices=ABLATIONS, default=ABLATIONS[0], help="%(default)s")
    add("--epsilon", type=float, help="what the first two ablations leave; their own default")
    add("--seed", type=int, help="of the random groups and the resample ablation (0)")
    add("--metric", choices=METRICS, default="ships", help="what is measured (%(default)s)")
    add("--space", choices=("left", "right", "feature0"), help="of generalized_ships (left)")
    add("--rank", type=positive_integer, help="singular vectors of generalized_ships (1)")
    add("--steps", type=positive_integer, default=3, metavar="S", help="size of the group (3)")
    add("--samples", type=positive_integer, default=20, metavar="N", help="random groups (20)")
    add("--template", help='"chat", "bare", "query" or a text with {q}; by default the model\'s')
    add("--limit", type=positive_integer, metavar="N", help="use N prompts; all when not given")
    add("--batch", type=positive_integer, metavar="ROWS", help="rows of one forward pass")
    add("--device", default="cpu", help="cpu, cuda, cuda:1, mps (%(default)s)")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights; as stored")
    add("--out", type=Path, default=Path("safetyheads-group"), metavar="FOLDER", help="%(default)s")

    maps = commands.add_parser("maps", help="draw where benign and jailbreak prompts attend")
    add = maps.add_argument
    add("--model", action="append", help=f"may be repeated, with a --layer each ({SMALL_MODEL})")
    add("--layer", action="append", type=int, required=True, help="a row of maps; may be repeated")
    add("--benign", help="known name or file; the builtin harmless prompts")
    add("--jailbreak", help="known name or file; the builtin harmful ones in a mild role-play")
    add("--length", type=positive_integer, default=512, help="tokens on each axis (%(default)s)")
    add("--log", choices=("e", "10"), default="e", help="base of the logarithm (%(default)s)")
    add("--floor", type=float, help="attention below counts as it; what gives -10")
    add("--order", choices=("log_of_mean", "mean_of_log"), default="log_of_mean")
    add("--min-prompts", type=positive_integer, default=2, metavar="N", help="else blank (2)")
    add("--divergence", action="store_true", help="also compare every layer and head; slower")
    add("--hidden", action="store_true", help="also draw the hidden states' magnitudes")
    add("--template", help='"chat", "bare", "query" or a text with {q}; by default the model\'s')
    add("--limit", type=positive_integer, metavar="N", help="use N prompts; all when not given")
    add("--device", default="cpu", help="cpu, cuda, cuda:1, mps (%(default)s)")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights; as stored")
    add("--out", type=Path, default=Path("safetyheads-maps"), metavar="FOLDER", help="%(default)s")

    demo = commands.add_parser("demo", help=f"rank {DEMO_MODEL} on builtin prompts, screened")
    add = demo.add_argument
    add("--out", type=Path, default=Path(DEMO_FOLDER), metavar="FOLDER", help="%(default)s")
    add("--limit", type=positive_integer, default=DEMO_LIMIT, metavar="N", help="%(default)s")
    return parser


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse, and refuse an option that the chosen ablations and metric would leave unread."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.command == "merge":
        return options
    if options.command == "maps":
        options.model = options.model or [SMALL_MODEL]
        if len(options.model) == 1:
            options.model *= len(options.layer)
        if len(options.model) != len(options.layer):
            parser.error(
                f"{len(options.model)} --model and {len(options.layer)} --layer: name one model, "
                "or one for each layer"
            )
        return options
    if options.command == "export":
        if options.epsilon is not None and options.ablation not in DEFAULT_ABLATIONS:
            parser.error(f"--epsilon is for {' and '.join(DEFAULT_ABLATIONS)}; leave it out")
        if (options.prompts or options.template) and options.ablation != "mean":
            parser.error("--prompts and --template are for --ablation mean; leave them out")
        options.ablation, options.seed = [options.ablation], None
        return options
    if options.command == "search":
        if options.epsilon is not None and options.ablation not in DEFAULT_ABLATIONS:
            parser.error(f"--epsilon is for {' and '.join(DEFAULT_ABLATIONS)}; leave it out")
        if options.metric != "generalized_ships" and (options.space or options.rank):
            parser.error("--space and --rank are for --metric generalized_ships; leave them out")
        options.ablation = [options.ablation]
        return options
    if options.command == "demo":
        defaults = parser.parse_args(["rank", "--out", str(options.out)])
        defaults.command, defaults.limit, defaults.method = "demo", options.limit, "screened"
        options = defaults
    if options.layers and options.method != "exact":
        parser.error("--method screened looks at all layers; leave out --layers")
    if options.plan and (options.layers or options.executor):
        parser.error("--plan is of a whole run in one process; leave out --layers and --executor")
    if options.workers and not options.executor:
        parser.error("--workers is for --executor process or ray; name one of them")
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
    from safetyheads.interventions.ablations import (
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


def make_executor(options: argparse.Namespace) -> "Executor | None":
    """Build the chosen executor; None runs everything in this process."""
    if options.executor is None:
        return None
    from safetyheads.engine.executors import process_map, ray_map

    workers = options.workers or 2
    try:
        if options.executor == "process":
            return process_map(workers)
        return ray_map(workers, gpus=int(options.device.startswith("cuda")))
    except ImportError as error:  # a missing extra is bad input here, and no traceback
        raise ValueError(error) from None


def format_table(table: "DataFrame") -> str:
    """Lay out the top heads, one block an ablation, harmful beside harmless where there is both."""
    blocks = []
    for (dataset, model, ablation, metric, unit), rows in table.groupby(
        ["dataset", "model", "ablation", "metric", "unit"], sort=False
    ):
        columns = {"rank": "rank", "label": "head", "score": f"harmful [{unit}]"}
        if "harmless_score" in rows and rows["harmless_score"].notna().any():
            columns["harmless_score"] = f"harmless [{unit}]"
        if "specificity" in rows and rows["specificity"].notna().any():
            columns |= {"specificity": f"specificity [{unit}]", "q_value": "q"}
        ordered = rows.sort_values("rank")
        body = ordered[list(columns)].rename(columns=columns)
        for column, kind in (("score", "kind"), ("harmless_score", "harmless_kind")):
            if column in columns and kind in ordered and (ordered[kind] == "estimated").any():
                body[columns[column]] = [
                    f"{'~' if estimated else ''}{score:.4g}"
                    for score, estimated in zip(
                        ordered[column], ordered[kind] == "estimated", strict=True
                    )
                ]
        title = f"Top {len(rows)} heads of {model} on {dataset}: {metric}, {ablation}"
        text = body.to_string(index=False, float_format="{:.4g}".format)
        if "~" in text:
            text += "\n~ estimated, not run"
        blocks.append(f"{title}\n{text}")
    return "\n\n".join(blocks)


def rank(options: argparse.Namespace) -> None:
    """Load, score, save and print: the whole of `safetyheads rank`."""
    check_writable(options.out)

    from safetyheads.engine.execution import Execution
    from safetyheads.models.opening import load_model
    from safetyheads.prompts import load_prompts
    from safetyheads.ranking.ranking import rank as rank_study
    from safetyheads.ranking.study import Study

    ablations, metric = make_ablations(options), make_metric(options)
    execution = Execution(rows=options.batch, executor=make_executor(options))
    prompts = load_prompts(options.prompts, column=options.column, path=options.prompts_path)
    dtype = None
    if options.dtype:
        import torch

        dtype = getattr(torch, options.dtype)
    if sys.stderr.isatty():
        print(f"Opening {options.model} ...", file=sys.stderr)
    model = load_model(options.model, device=options.device, dtype=dtype)
    study = Study(
        model,
        prompts,
        ablations=ablations,
        metric=metric,
        template=options.template,
        limit=options.limit,
        method=options.method,
        top_k=options.top,
    )
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
    ranking = rank_study(study, replace(execution, store=options.out / UNFINISHED))
    report(ranking, options.top, options.out, control=options.model == SMALL_MODEL)
    shutil.rmtree(options.out / UNFINISHED, ignore_errors=True)


def merge(options: argparse.Namespace) -> None:
    """Join parts, save and print: the whole of `safetyheads merge`."""
    check_writable(options.out)

    from safetyheads.ranking.merging import merge_rankings

    ranking = merge_rankings(options.parts, top_k=options.top)
    report(ranking, ranking.top_k, options.out, control=ranking.model == SMALL_MODEL)


def export(options: argparse.Namespace) -> None:
    """Load, edit, save, compare and print: the whole of `safetyheads export`."""
    check_writable(options.out)

    import torch

    from safetyheads.interventions.export import export_ablated
    from safetyheads.models.opening import load_model

    dtype = getattr(torch, options.dtype) if options.dtype else None
    written = export_ablated(
        load_model(options.model, dtype=dtype),
        options.heads,
        options.out,
        ablation=make_ablations(options)[0],
        prompts=options.prompts,
        template=options.template,
    )
    print(f"The ablated model: {written.folder.absolute()}")
    print(f"Weights changed: {', '.join(written.changed)}")
    print(
        f"Logits differ from the hooked model's by at most {written.max_logit_difference:.2g} "
        f"(the largest is {written.largest_logit:.3g})"
    )


def search(options: argparse.Namespace) -> None:
    """Load, search, save and print: the whole of `safetyheads search`."""
    check_writable(options.out)

    import torch

    from safetyheads.engine.execution import Execution
    from safetyheads.models.opening import load_model
    from safetyheads.plots.writing import write_html
    from safetyheads.probes.groups import GroupSearch, search_heads
    from safetyheads.prompts import load_prompts

    prompts = load_prompts(options.prompts, column=options.column, path=options.prompts_path)
    dtype = getattr(torch, options.dtype) if options.dtype else None
    group = search_heads(
        load_model(options.model, device=options.device, dtype=dtype),
        prompts.limit(options.limit) if options.limit else prompts,
        GroupSearch(steps=options.steps, samples=options.samples, seed=options.seed or 0),
        ablation=make_ablations(options)[0],
        metric=make_metric(options),
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


def maps(options: argparse.Namespace) -> None:
    """Load, capture, save and draw: the whole of `safetyheads maps`."""
    check_writable(options.out)

    from safetyheads.models.opening import load_model
    from safetyheads.plots.attention import (
        plot_attention_divergence,
        plot_attention_maps,
        plot_hidden_magnitudes,
    )
    from safetyheads.plots.writing import write_html
    from safetyheads.probes.attention.divergence import attention_divergence
    from safetyheads.probes.attention.grid import Grid
    from safetyheads.probes.attention.hidden import hidden_magnitudes
    from safetyheads.probes.attention.maps import attention_maps
    from safetyheads.prompts import load_prompts, wrap

    benign, jailbreak = (
        load_prompts(options.benign or "builtin"),
        load_prompts(options.jailbreak or "builtin"),
    )
    if options.limit:
        benign, jailbreak = benign.limit(options.limit), jailbreak.limit(options.limit)
    sets = (
        list(benign.harmless or benign.harmful),
        list(jailbreak.harmful) if options.jailbreak else wrap(jailbreak.harmful),
    )
    dtype = None
    if options.dtype:
        import torch

        dtype = getattr(torch, options.dtype)
    names = list(dict.fromkeys(options.model))
    models = {n: load_model(n, device=options.device, dtype=dtype) for n in names}
    grid = Grid(
        length=options.length,
        log=options.log if options.log == "e" else int(options.log),
        floor=options.floor,
        order=options.order,
        min_prompts=options.min_prompts,
        short="blank",
    )
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


def report(ranking: "Ranking", top: int, folder: Path, *, control: bool) -> None:
    """Save a ranking, print its top and say where the rest is."""
    note = NEGATIVE_CONTROL if control else None
    try:
        ranking.save(folder, note=note)
    finally:  # the scores are shown even where the folder has become unwritable meanwhile
        print(format_table(ranking.top(top)))
        for scores in ranking.harmful:
            if scores.audit is not None:
                print(f"\n{scores.ablation}: {scores.audit}")
    print(f"\nThe figure: {(folder / 'scatter.html').absolute()}")
    print(f"All scores: {(folder / 'scores.csv').absolute()}")
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
        {"merge": merge, "export": export, "search": search, "maps": maps}.get(
            options.command, rank
        )(options)
    except KeyboardInterrupt:
        print(f"\n{describe_interruption(options.out)}", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"safetyheads: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
