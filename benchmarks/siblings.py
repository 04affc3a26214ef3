"""What do the siblings refuse, how does it grow, and does LAT gather refusal in two components that transfer better?

    python benchmarks/siblings.py --data DATA --folder FOLDER --minutes 30 [--sibling lat-1=lat-1/adapter ...]

The questions of arXiv:2504.18872, asked of the siblings that come with the package, or of those that are named.
`--data` is a folder with the files of the named datasets, none of which a sibling learnt from: spectra are of
JailbreakBench's 100 pairs, directions of its even rows, transfer is judged on the harmful half of its odd rows, ladders
on its odd rows. `--steps` names some of `rates spectra layer transfer ladders`; each is saved in the folder, and the
same command goes on where it stopped. `--report` prints the tables of what there is and draws the figures. No answer is
kept, only verdicts.
"""

import argparse
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas
import torch

from safetyheads import (
    Decoding,
    Execution,
    PromptSet,
    Spectrum,
    Transfer,
    load_model,
    load_prompts,
    plot_selection,
    plot_spectrum,
    plot_transfer,
    refusal_direction,
    select_direction,
    subspace_overlap,
    transfer_matrix,
    write_image,
)
from safetyheads.models.checkpoints import load_checkpoint
from safetyheads.probes.directions.decomposition import VERSIONS, Place, Rows, shares
from safetyheads.probes.directions.selection import Selection
from safetyheads.probes.directions.sides import read_sides
from safetyheads.probes.directions.spectrum import OUTLIERS, Resampling, spectrum_of
from safetyheads.stats import percentile_interval, wilson_interval
from safetyheads.training.examining import verdicts
from safetyheads.training.ladder import Ladder, climb_ladder

BASE = "smollm2-135m-instruct"
SHIPPED = ("smollm2-135m-ssft", "smollm2-135m-at", "smollm2-135m-lat")
LAYERS = (19, 22, 25, 28)
"""What enters these: the siblings are adapted from block 16 on, and below they are one model."""
LAYER = 22
"""Where directions are taken and spectra compared; `--steps layer` shows what led to it."""
STEPS = ("rates", "spectra", "layer", "transfer", "ladders")
DRAWS = Resampling(100)
TRANSFERRED, CLIMBED = 50, 20
"""Prompts a cell of the transfer, and on each side of a ladder."""


class OutOfTime(Exception):
    """The minutes of this run are over; what is done is saved."""


class Experiment:
    """The models, the prompts, and what the folder already holds."""

    def __init__(self, data: Path, folder: Path, named: dict[str, str], minutes: float) -> None:
        self.folder, self.end = folder, time.monotonic() + 60 * minutes
        folder.mkdir(parents=True, exist_ok=True)
        self.siblings = named
        self.models = {"base": BASE, **named}
        self.pairs = load_prompts("jailbreakbench", path=data)
        self.even = _rows("jailbreakbench, even", self.pairs, range(0, 100, 2))
        odd = range(1, 100, 2)
        self.odd = _rows("jailbreakbench, odd", self.pairs, odd)
        malicious = load_prompts("malicious_instruct", path=data)
        xstest = load_prompts("xstest", path=data)
        self.asked = {
            "jbb_harmful": self.pairs.harmful,
            "jbb_benign": self.pairs.harmless or (),
            "malicious_instruct": malicious.harmful[:50],
            "xstest_safe": (xstest.harmless or ())[::5],
            "xstest_unsafe": xstest.harmful[::4],
        }

    def in_time(self) -> None:
        """Raise OutOfTime where the minutes are over."""
        if time.monotonic() > self.end:
            raise OutOfTime

    def rates(self) -> None:
        """What each sibling refuses of the sets that are for measuring: verdicts on answers of 12 tokens."""
        for name, source in self.siblings.items():
            file = self.folder / f"rates-{name}.json"
            done = json.loads(file.read_text()) if file.is_file() else {}
            if len(done) == len(self.asked):
                continue
            checkpoint = load_checkpoint(source)
            checkpoint.model.set_attn_implementation("sdpa")
            for label, prompts in self.asked.items():
                if label in done:
                    continue
                self.in_time()
                done[label] = verdicts(*checkpoint[:2], prompts, max_new_tokens=12, progress=False)
                file.write_text(json.dumps(done))
                self.told(f"rates of {name}, {label}: {done[label].count('refuse')}")

    def spectra(self) -> None:
        """Each model's spectrum, and what the differences between models in two components may be by luck of pairs."""
        folder = self.folder / "spectra"
        for name, source in self.models.items():
            if (folder / name).exists():
                continue
            self.in_time()
            model = load_model(source)
            sides = read_sides(model, self.pairs, layers=LAYERS, progress=False)
            made = spectrum_of(sides, components=6, resampling=DRAWS, progress=False)
            made.save(folder / name)
            torch.save([sides.at(-1, layer) for layer in LAYERS], folder / f"{name}.pt")
            self.told(f"spectrum of {name}")

    def layer(self) -> None:
        """At which layer a direction of the SSFT sibling leaves least refusal."""
        folder = self.folder / "layer"
        if folder.exists() or not self.siblings:
            return
        self.in_time()
        train, validation = (_rows("half", self.even, range(n, 50, 4)) for n in (0, 2))
        first = next(iter(self.siblings.values()))
        found = select_direction(
            load_model(first),
            train,
            validation,
            layers=range(18, 30, 2),
            positions=(-1,),
            only_expected=False,
            execution=Execution(progress=False),
        )
        found.save(folder)
        self.told("the layer")

    def transfer(self) -> None:
        """Every model's direction ablated from every sibling."""
        where = {"layer": LAYER, "progress": False}
        left = [name for name in self.siblings if not (self.folder / "transfer" / name).exists()]
        if not left:
            return
        sources = {n: refusal_direction(m, self.even, **where) for n, m in self.models.items()}
        for name in left:
            self.in_time()
            found = transfer_matrix(
                {name: self.siblings[name]},
                sources,
                self.odd.limit(TRANSFERRED),
                decoding=Decoding(12),
                sides="harmful",
                progress=False,
            )
            found.save(self.folder / "transfer" / name)
            self.told(f"transfer to {name}")

    def ladders(self) -> None:
        """A ladder from the base to each sibling."""
        prompts = _rows("jailbreakbench, odd", self.odd, range(0, 2 * CLIMBED, 2))
        for name, source in self.siblings.items():
            folder = self.folder / "ladders" / name
            if not folder.exists():
                self.in_time()
                made = climb_ladder(
                    BASE, source, prompts, heads_on=4, max_new_tokens=8, progress=False
                )
                made.save(folder)
                self.told(f"ladder to {name}")

    def told(self, what: str) -> None:
        """Say what is done, and what it has cost so far."""
        print(f"{time.process_time():.0f} s of processor: {what}", flush=True)

    def report(self) -> None:
        """Tables and figures of what there is."""
        self._report_rates()
        self._report_spectra()
        if (self.folder / "layer").exists():
            table = Selection.load(self.folder / "layer").to_frame()
            print(table.round(3).to_string(index=False))
            write_image(plot_selection(table), self.folder / "layer.png")
        self._report_transfer()
        for name in self.siblings:
            if (self.folder / "ladders" / name).exists():
                ladder = Ladder.load(self.folder / "ladders" / name)
                print(name, ladder.to_frame().round(3).T.to_string(), sep="\n")
                write_image(ladder.plot(), self.folder / f"ladder-{name}.png")

    def _report_rates(self) -> None:
        rows = []
        for name in self.siblings:
            file = self.folder / f"rates-{name}.json"
            for label, said in (json.loads(file.read_text()) if file.is_file() else {}).items():
                hits, n = said.count("refuse"), len(said)
                ends = [round(end, 2) for end in wilson_interval(hits, n)]
                rows.append((name, label, hits, n, *ends, said.count("degenerate")))
        columns = ["sibling", "prompts", "refused", "n", "low", "high", "degenerate"]
        print(pandas.DataFrame(rows, columns=columns).to_string(index=False))

    def _report_spectra(self) -> None:
        folder = self.folder / "spectra"
        spectra = {n: Spectrum.load(folder / n) for n in self.models if (folder / n).exists()}
        if not spectra:
            return
        tables = [one.to_frame().assign(model=name) for name, one in spectra.items()]
        table = pandas.concat(tables, ignore_index=True)
        here = table[(table["layer"] == LAYER) & (table["component"] <= 3)]
        columns = ["model", "version", "component", "explained", "low", "high", "repaired"]
        columns += ["chance", "cosine", "participation_right", "outlier_share"]
        print(here[columns].round(3).to_string(index=False))
        write_image(plot_spectrum(table, LAYER), self.folder / "spectrum.png")
        states = {name: torch.load(folder / f"{name}.pt", weights_only=True) for name in spectra}
        print(two_components(states).round(3).to_string(index=False))
        if len(spectra) > 1:
            print(subspace_overlap(spectra, LAYER).round(3).to_string(index=False))

    def _report_transfer(self) -> None:
        folder = self.folder / "transfer"
        parts = [Transfer.load(folder / n) for n in self.siblings if (folder / n).exists()]
        if not parts:
            return
        behaviours = {name: one for part in parts for name, one in part.behaviours.items()}
        whole = Transfer(behaviours, parts[0].sources)
        table = whole.to_frame()
        refused = table[table["verdict"].isin(["refuse", "degenerate"])]
        columns = ["target", "source", "verdict", "count", "n", "low", "high"]
        print(refused[columns].round(2).to_string(index=False))
        print(whole.tests().round(4).to_string(index=False))
        write_image(plot_transfer(table), self.folder / "transfer.png")


def two_components(
    states: dict[str, Sequence[tuple[torch.Tensor, torch.Tensor]]],
) -> pandas.DataFrame:
    """The share of the first two components in each model and layer, and how far a model's lies above another's.

    Bootstrap over pairs, the same draw for all models; the draws are moved by their bias, as in `refusal_spectrum`.
    """
    n = len(next(iter(states.values()))[0][0])
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randint(n, (n,), generator=generator) for _ in range(DRAWS.count)]
    rows = []
    for at, layer in enumerate(LAYERS):
        seen = {name: _two(Place.of(*some[at], OUTLIERS), draws) for name, some in states.items()}
        cells = [(name, "", one, drawn) for name, (one, drawn) in seen.items()]
        for second, first in itertools.combinations(seen, 2):
            less = [a - b for a, b in zip(seen[first], seen[second], strict=True)]
            cells.append((first, second, less[0], less[1]))
        for name, less_name, observed, drawn in cells:
            low, high = percentile_interval(drawn - drawn.mean(0) + observed, n)
            for version in ("uncentred", "centred", "uncentred, trimmed"):
                k = VERSIONS.index(version)
                values = (float(one[k]) for one in (observed, low, high))
                rows.append((layer, name, less_name, version, *values))
    columns = ["layer", "model", "less", "version", "two components", "low", "high"]
    return pandas.DataFrame(rows, columns=columns)


def _two(place: Place, draws: Sequence[Rows]) -> tuple[torch.Tensor, torch.Tensor]:
    """The first two components' share of each version, as it is and in each draw of pairs."""
    grams, (first, second) = place.grams(), place.pairs
    observed = shares(grams, first, second, 2).sum(-1)
    return observed, torch.stack([shares(grams, first[d], second[d], 2).sum(-1) for d in draws])


def _rows(name: str, pairs: PromptSet, rows: Sequence[int]) -> PromptSet:
    chosen = [tuple(side[row] for row in rows) for side in (pairs.harmful, pairs.harmless or ())]
    return replace(
        pairs,
        name=name,
        harmful=chosen[0],
        harmless=chosen[1],
        categories=(),
        harmless_categories=(),
    )


def main() -> None:
    """Go on from what is there, or report it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument(
        "--sibling",
        action="append",
        default=[],
        metavar="NAME=ADAPTER",
        help="instead of the shipped",
    )
    parser.add_argument("--report", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    given = dict(one.split("=", 1) for one in asked.sibling)
    named = given or {name.rsplit("-", 1)[1]: name for name in SHIPPED}
    experiment = Experiment(asked.data, asked.folder, named, asked.minutes)
    if asked.report:
        experiment.report()
        return
    try:
        for step in asked.steps:
            getattr(experiment, step)()
        print("all is done")
    except OutOfTime:
        print("out of time; run the same command again")


if __name__ == "__main__":
    main()
