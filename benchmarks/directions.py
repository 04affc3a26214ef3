"""Does ablating one direction take refusal away, and would another do the same? Held-out prompts, one small model.

    python benchmarks/directions.py --data DATA --folder FOLDER --minutes 30

The direction is selected on the even rows of JailbreakBench (Arditi et al., arXiv:2406.11717). What the model then says
is judged on its odd rows, on MaliciousInstruct and on XSTest's safe prompts (which stand on the side that is asked),
beside the untouched model and the nulls. Each step is saved in the folder: run the command again until it says that all
is done; `--report` prints the tables of what there is. `--data` is a folder with the files of the named datasets. No
answer is kept, only verdicts and hashes.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas
import torch

from safetyheads import (
    Decoding,
    PromptSet,
    load_model,
    load_prompts,
    measure_utility,
    plot_selection,
    write_image,
)
from safetyheads.engine.execution import Execution
from safetyheads.interventions.named import all_active
from safetyheads.probes.behaviour.answers import Behaviour, measure_behaviour
from safetyheads.probes.directions.direction import Direction, refusal_direction
from safetyheads.probes.directions.nulls import null_directions
from safetyheads.probes.directions.selection import Selection, select_direction
from safetyheads.stats import mcnemar_p, wilson_interval

MODEL = "qwen2.5-coder-0.5b-instruct"
TRAIN, VALIDATION = 40, 10
HELD_OUT = 24
POSITIONS = (-5, -1)
LAYERS = (6, 8, 10, 12, 14, 16, 18)
DECODING = Decoding(12)
NULLS = ("concept: verse", "relabelled 1", "covariance 1", "isotropic 1")
NULLS += ("concept: politeness", "relabelled 2", "covariance 2", "isotropic 2")


class OutOfTime(Exception):
    """The minutes of this run are over; what is done is saved."""


class Experiment:
    """The model, the prompts, and what the folder already holds."""

    def __init__(self, data: Path, folder: Path, minutes: float) -> None:
        self.folder, self.end = folder, time.monotonic() + 60 * minutes
        folder.mkdir(parents=True, exist_ok=True)
        self.model = load_model(MODEL)
        pairs = load_prompts("jailbreakbench", path=data)
        even = range(0, len(pairs), 2)
        self.train = _rows("train", pairs, even[:TRAIN])
        self.validation = _rows("validation", pairs, even[TRAIN : TRAIN + VALIDATION])
        odd = sorted(range(1, len(pairs), 2), key=lambda row: (row % 10, row))  # ten a category
        malicious = load_prompts("malicious_instruct", path=data)
        table = pandas.read_csv(data / "xstest.csv")
        safe = table[table["label"] == "safe"]["prompt"].tolist()[::10][:HELD_OUT]
        self.asked = {
            "jailbreakbench": _rows("jailbreakbench", pairs, odd[:HELD_OUT]),
            "malicious_instruct": PromptSet(
                "malicious_instruct", malicious.harmful[::4][:HELD_OUT]
            ),
            "xstest, safe": PromptSet("xstest, safe", tuple(safe)),
        }

    def in_time(self) -> None:
        """Raise OutOfTime where the minutes are over."""
        if time.monotonic() > self.end:
            raise OutOfTime

    def selection(self) -> Selection:
        """All candidates on the even rows."""
        folder = self.folder / "selection"
        if not folder.exists():
            start = time.process_time()
            made = select_direction(
                self.model,
                self.train,
                self.validation,
                layers=LAYERS,
                positions=POSITIONS,
                execution=Execution(store=self.folder / "store"),
            )
            made.save(folder)
            print(f"selection: {time.process_time() - start:.0f} s of processor", flush=True)
        return Selection.load(folder)

    def directions(self) -> dict[str, Direction]:
        """The selected direction, a singular vector at its place, and the nulls."""
        folder = self.folder / "directions"
        chosen = self.selection().direction
        if not (folder / "done").exists():
            found = {"refusal": chosen}
            found["component 2"] = refusal_direction(
                self.model, self.train, chosen.layer, position=chosen.position, component=2
            )
            nulls = null_directions(self.model, self.train, chosen, count=2)
            found |= {name: nulls[name] for name in NULLS}
            for name, one in found.items():
                one.save(folder / name.replace(": ", "-").replace(" ", "-"))
            (folder / "done").write_text(json.dumps(list(found)))
        names = json.loads((folder / "done").read_text())
        return {
            name: Direction.load(folder / name.replace(": ", "-").replace(" ", "-"))
            for name in names
        }

    def cell(self, dataset: str, name: str, stack: list[Any]) -> pandas.DataFrame:
        """The judged answers to one dataset under one intervention."""
        folder = (
            self.folder
            / "cells"
            / f"{dataset.replace(', ', '-')}-{name.replace(': ', '-').replace(' ', '-')}"
        )
        if not folder.exists():
            self.in_time()
            start = time.process_time()
            with all_active(stack, self.model):
                made = measure_behaviour(
                    self.model, self.asked[dataset], decoding=DECODING, progress=False
                )
            answers = tuple(replace(answer, intervention=name) for answer in made.answers)
            replace(made, answers=answers).save(folder)
            print(f"{time.process_time() - start:.0f} s: {dataset}, {name}", flush=True)
        return Behaviour.load(folder).to_frame()

    def run(self) -> None:
        """All steps, in the order of what they tell."""
        print(self.selection())
        directions = self.directions()
        for dataset in self.asked:
            self.cell(dataset, "baseline", [])
            self.cell(dataset, "refusal", [directions["refusal"].ablated()])
        for name in ("component 2", *NULLS):
            for dataset in ("malicious_instruct", "jailbreakbench"):
                self.cell(dataset, name, [directions[name].ablated()])
        self.utility(directions)
        for name in NULLS[:4]:
            self.cell("xstest, safe", name, [directions[name].ablated()])
        self.cell("jailbreakbench", "added", [directions["refusal"].added()])

    def report(self) -> None:
        """Tables of what there is: the candidates, and the rates beside the untouched model, prompt by prompt."""
        if (self.folder / "selection").exists():
            made = Selection.load(self.folder / "selection")
            print(made, made.used, sep="\n")
            print(made.to_frame().round(3).to_string())
            write_image(plot_selection(made.to_frame()), self.folder / "candidates.png")
        cells = [Behaviour.load(folder) for folder in sorted((self.folder / "cells").glob("*"))]
        said = {key: given for one in cells for key, given in one.verdicts().items()}
        rows = []
        for (dataset, side, name), given in said.items():
            base = said.get((dataset, side, "baseline"), given)
            for verdict in ("refuse", "comply", "degenerate"):
                hits = [v == verdict for v in given]
                low, high = wilson_interval(sum(hits), len(hits))
                p = mcnemar_p(hits, [v == verdict for v in base])
                where = (dataset, side, name, verdict, sum(hits), len(hits))
                rows.append((*where, round(low, 2), round(high, 2), round(p, 4)))
        columns = ["dataset", "side", "ablated", "verdict", "count", "n", "low", "high", "p"]
        table = pandas.DataFrame(rows, columns=columns)
        print(table.sort_values(["side", "dataset", "verdict", "count"]).to_string(index=False))
        if (self.folder / "utility.csv").exists():
            print(pandas.read_csv(self.folder / "utility.csv").round(3).to_string(index=False))

    def utility(self, directions: dict[str, Direction]) -> pandas.DataFrame:
        """Cross-entropy and multiple choice with some directions ablated."""
        file = self.folder / "utility.csv"
        if not file.exists():
            self.in_time()
            some = ("refusal", "concept: verse", "covariance 1", "isotropic 1")
            named = {name: directions[name].ablated() for name in some}
            measure_utility(self.model, named, progress=False).to_frame().to_csv(file, index=False)
        return pandas.read_csv(file)


def _rows(name: str, pairs: PromptSet, rows: Any) -> PromptSet:
    return PromptSet(
        name,
        tuple(pairs.harmful[row] for row in rows),
        tuple(pairs.harmless[row] for row in rows),
        paired=True,
        source=pairs.source,
    )


def main() -> None:
    """Go on from what is there, or report it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--report", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    experiment = Experiment(asked.data, asked.folder, asked.minutes)
    if asked.report:
        experiment.report()
        return
    try:
        experiment.run()
        print("all is done")
    except OutOfTime:
        print("out of time; run the same command again")


if __name__ == "__main__":
    main()
