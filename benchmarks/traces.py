"""How well is a jailbreak told by its trace, its length and its words, and what does bypassing layers do?

    python benchmarks/traces.py --model smollm2-135m-instruct --data ../data --goals 40 --folder traces

`--data` holds jailbreakbench_{harmful,benign,jbc_prompts}.csv. Benign prompts are,
in turn: benign goals, benign goals after as much neutral prose, and benign goals in the jailbreaks' own template.
"""

import argparse
import time
from pathlib import Path

import pandas

from safetyheads import (
    Decoding,
    capture_traces,
    fit_detector,
    lengthen,
    load_model,
    load_prompts,
    measure_behaviour,
    plot_detection,
    score_detectors,
    tokenize,
    wrap,
    write_html,
)
from safetyheads.prompts import shared_template

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", default="smollm2-135m-instruct")
parser.add_argument("--data", type=Path, required=True)
parser.add_argument("--goals", type=int, default=40)
parser.add_argument("--layers", type=int, nargs="+")
parser.add_argument("--shuffles", type=int, default=5)
parser.add_argument(
    "--contrasts", type=int, nargs="+", default=[0, 1, 2], help="which of the three"
)
parser.add_argument("--transductive", action="store_true")
parser.add_argument("--bypass", type=int, default=0, metavar="N", help="prompts to answer")
parser.add_argument("--folder", type=Path, required=True)


def main(options: argparse.Namespace) -> None:
    """Score every contrast; then answer prompts that the first one's detector has not seen, layers bypassed."""
    model, n = load_model(options.model), options.goals
    jailbreak = list(load_prompts(options.data / "jailbreakbench_jbc_prompts.csv").harmful)
    plain = list(load_prompts("jailbreakbench", path=options.data).harmless)
    wrapper = f"{jailbreak[0][: shared_template(jailbreak)[0]]}{{q}}"
    lengths = tokenize(jailbreak[:n], model.tokenizer).lengths.tolist()
    contrasts = {
        "benign goals": plain[:n],
        "benign goals, as long": lengthen(plain[:n], lengths, model.tokenizer),
        "benign goals, same template": wrap(plain[:n], wrapper),
    }
    options.folder.mkdir(parents=True, exist_ok=True)
    tables, first = [], None
    for name in [list(contrasts)[number] for number in options.contrasts]:
        start = time.process_time()
        goals = (range(n), range(n))
        traces = capture_traces(
            model, jailbreak[:n], contrasts[name], layers=options.layers, goals=goals
        )
        first = first or traces
        captured = time.process_time()
        scores = score_detectors(
            traces, shuffles=options.shuffles, transductive=options.transductive
        )
        tables.append(scores.assign(contrast=name))
        seconds = (
            f"{captured - start:.0f} s to capture, {time.process_time() - captured:.0f} s to score"
        )
        print(f"{traces!r}, {name}: {seconds} of CPU")
        shown = scores.pivot_table(
            index=["features", "layer"], columns="classifier", values="f1", dropna=False
        )
        print(shown.dropna(how="all").round(3).to_string(), flush=True)
    table = pandas.concat(tables)
    table.to_csv(options.folder / f"{options.model}.csv", index=False)
    write_html(plot_detection(table, panel="contrast"), options.folder / f"{options.model}.html")
    if options.bypass:
        print(bypass(model, first, jailbreak[n:], plain[n:], options.bypass).to_string())


def bypass(model, traces, jailbreak, plain, count):
    """What the model does with prompts that the detector has not seen, each under its own bypass."""
    detector = fit_detector(traces)
    answers = []
    for kind, prompts in (("jailbreak", jailbreak[:count]), ("benign", plain[:count])):
        for number, prompt in enumerate(prompts):
            skipped = detector.bypass(
                model, prompt
            )  # None: the prompt is answered by the untouched model
            named = {"bypassed": skipped} if skipped else {}
            measured = measure_behaviour(
                model, [prompt], named, decoding=Decoding(24), progress=False
            )
            layers, verdicts = (
                len(skipped.layers) if skipped else 0,
                [a.verdicts[0] for a in measured.answers],
            )
            answers.append((kind, number, "baseline", verdicts[0], 0))
            answers.append((kind, number, "bypassed", verdicts[-1], layers))
    columns = ["prompts", "prompt", "intervention", "verdict", "layers"]
    table = pandas.DataFrame(answers, columns=columns)
    counts = (
        table.groupby(["prompts", "intervention"])["verdict"].value_counts().unstack(fill_value=0)
    )
    return counts.assign(layers=table.groupby(["prompts", "intervention"])["layers"].mean())


if __name__ == "__main__":
    main(parser.parse_args())
