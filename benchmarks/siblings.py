"""What do the siblings refuse, how does it grow, and does LAT gather refusal in two components that transfer better?

    python benchmarks/siblings.py --data DATA --folder FOLDER --minutes 30 [--sibling lat-1=lat-1/adapter ...]

The questions of arXiv:2504.18872, asked of the siblings that come with the package, or of those that are named: KIND
for the first seed, KIND-SEED for others. `--data` is a folder with the files of the named datasets, none of which a
sibling learnt from: spectra are of JailbreakBench's 100 pairs, directions of its even rows (the states that the spectra
are read from), transfer is judged on the harmful half of its odd rows, ladders and heads on its odd rows. `--steps`
names some of `rates spectra layer transfer heads ladders`; each is saved in the folder, and the same command goes on
where it stopped. `--report` prints the tables of what there is and draws the figures; `--record FILE` writes what pages
quote. No answer is kept, only verdicts.
"""

import argparse
import itertools
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas
import torch

from safetyheads import (
    Decoding,
    Execution,
    HeadsAlong,
    PromptSet,
    Spectrum,
    Transfer,
    heads_along,
    load_model,
    load_prompts,
    plot_effects,
    plot_heads_along,
    plot_selection,
    plot_spectrum,
    plot_transfer,
    refusal_direction,
    score_heads_together,
    select_direction,
    subspace_overlap,
    transfer_matrix,
    write_image,
)
from safetyheads.models.checkpoints import load_checkpoint
from safetyheads.probes.directions.decomposition import VERSIONS, Place, Rows, shares
from safetyheads.probes.directions.nulls import DRAWN
from safetyheads.probes.directions.selection import Selection
from safetyheads.probes.directions.sides import read_sides
from safetyheads.probes.directions.spectrum import OUTLIERS, Resampling, spectrum_of
from safetyheads.stats import (
    bootstrap_interval,
    percentile_interval,
    permutation_p,
    wilson_interval,
)
from safetyheads.training.examining import verdicts
from safetyheads.training.ladder import Ladder, climb_ladder

BASE = "smollm2-135m-instruct"
SHIPPED = ("smollm2-135m-ssft", "smollm2-135m-at", "smollm2-135m-lat")
LAYERS = (19, 22, 25, 28)
"""What enters these: the siblings are adapted from block 16 on, and below they are one model."""
LAYER = 25
"""Where directions are taken and spectra compared; `--steps layer` shows that those from below take no refusal away."""
STEPS = ("rates", "spectra", "layer", "transfer", "heads", "ladders")
DRAWS = Resampling(100)
COMPARED = ("uncentred", "centred", "uncentred, trimmed")
TRANSFERRED, CLIMBED, ALONG, SCORED = 50, 20, 24, 4
"""Prompts a cell of the transfer, on each side of a ladder, on each side of what heads write, and for their scores."""
Seen = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""At one layer, by model: the first two components' share of each version, as it is and in each draw of pairs."""


class OutOfTime(Exception):
    """The minutes of this run are over; what is done is saved."""


class Experiment:
    """The models, the prompts, and what the folder already holds."""

    def __init__(
        self,
        data: Path,
        folder: Path,
        named: dict[str, str],
        minutes: float,
        prompts: int = TRANSFERRED,
        place: int = LAYER,
    ) -> None:
        self.folder, self.end, self.prompts = folder, time.monotonic() + 60 * minutes, prompts
        self.place = place
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
        """What each model holds at the last token, and, of the first seed, its spectrum with all that it is read by."""
        folder = self.folder / "spectra"
        for name, source in self.models.items():
            whole = _seed(name) == "0"
            if (folder / (name if whole else f"{name}.pt")).exists():
                continue
            self.in_time()
            model = load_model(source)
            sides = read_sides(model, self.pairs, layers=LAYERS, progress=False)
            folder.mkdir(exist_ok=True)
            torch.save([sides.at(-1, layer) for layer in LAYERS], folder / f"{name}.pt")
            if whole:
                made = spectrum_of(sides, components=6, resampling=DRAWS, progress=False)
                made.save(folder / name)
            self.told(f"spectrum of {name}")

    def layer(self) -> None:
        """At which layer a direction of the first sibling leaves least refusal."""
        folder = self.folder / "layer"
        if folder.exists() or not self.siblings:
            return
        self.in_time()
        train, validation = (_rows("half", self.even, range(n, 50, 4)) for n in (0, 2))
        found = select_direction(
            load_model(next(iter(self.siblings.values()))),
            train,
            validation,
            layers=LAYERS,
            positions=(-1,),
            only_expected=False,
            execution=Execution(progress=False),
        )
        found.save(folder)
        self.told("the layer")

    def transfer(self) -> None:
        """Every model's direction ablated from every sibling of its seed, and two that are not refusal's."""
        folder = self.folder / f"transfer-{self.place}"
        for seed, family in families(self.siblings).items():
            sources = self._sources(family)
            for name in family:
                if (folder / name).exists():
                    continue
                self.in_time()
                found = transfer_matrix(
                    {name: self.siblings[name]},
                    sources,
                    self.odd.limit(self.prompts),
                    decoding=Decoding(12),
                    sides="harmful",
                    progress=False,
                )
                found.save(folder / name)
                self.told(f"transfer to {name}, seed {seed}")

    def _sources(self, family: Sequence[str]) -> dict[str, torch.Tensor]:
        """The mean differences of the base and of the siblings, one of prompts dealt anew, and one that is drawn with
        the covariance of the states, both as long as the first sibling's."""
        found = {name: self._difference(name) for name in ("base", *family)}
        states, length = self._even_states(family[0]), found[family[0]].norm()
        generator = torch.Generator().manual_seed(0)
        for kind in ("relabelled", "covariance"):
            drawn = DRAWN[kind](states, states[0].shape[-1], generator).float()
            found[kind] = drawn * length / drawn.norm()
        return found

    def _even_states(self, name: str) -> list[torch.Tensor]:
        """What enters the layer at the last token of the even rows, harmful and harmless, as the spectra's step kept
        it."""
        file = self.folder / "spectra" / f"{name}.pt"
        if not file.is_file():
            raise SystemExit(f"there is no {file}: run --steps spectra first")
        kept = torch.load(file, weights_only=True)[LAYERS.index(self.place)]
        return [side[::2].double() for side in kept]

    def _difference(self, name: str) -> torch.Tensor:
        harmful, harmless = self._even_states(name)
        return (harmful.mean(0) - harmless.mean(0)).float()

    def heads(self) -> None:
        """Which heads of the first sibling write its direction, beside the scores that find safety heads."""
        folder = self.folder / f"heads-{self.place}"
        if folder.exists() or not self.siblings:
            return
        self.in_time()
        model = load_model(next(iter(self.siblings.values())))
        direction = refusal_direction(model, self.even, layer=self.place, progress=False)
        metrics, quiet = ("refusal_shift", "ships"), Execution(progress=False)
        some = self.odd.limit(SCORED)
        found = score_heads_together(model, some, metrics, execution=quiet)
        scores = dict(zip(metrics, found, strict=True))
        more = self.odd.limit(ALONG)
        made = heads_along(model, more, direction, scores=scores, execution=quiet)
        made.save(folder)
        self.told("heads along the direction")

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

    def report(self) -> dict[str, Any]:
        """Tables and figures of what there is; what pages quote of it."""
        told = {"rates": self._report_rates(), **self._report_spectra()}
        if (self.folder / "layer").exists():
            table = Selection.load(self.folder / "layer").to_frame()
            print(table.round(3).to_string(index=False))
            write_image(plot_selection(table), self.folder / "layer.png")
            told["layer"] = rows_of(table)
        for layer in LAYERS:
            told |= self._report_transfer(layer)
            told |= self._report_heads(layer)
        for name in self.siblings:
            if (self.folder / "ladders" / name).exists():
                ladder = Ladder.load(self.folder / "ladders" / name)
                table = ladder.to_frame(LAYER - 1)  # what leaves a layer enters the next
                print(name, table.round(3).T.to_string(), sep="\n")
                write_image(ladder.plot(LAYER - 1), self.folder / f"ladder-{name}.png")
                told[f"ladder to {name}"] = rows_of(table)
        return told

    def _report_rates(self) -> list[dict[str, Any]]:
        rows = []
        for name in self.siblings:
            file = self.folder / f"rates-{name}.json"
            for label, said in (json.loads(file.read_text()) if file.is_file() else {}).items():
                hits, n = said.count("refuse"), len(said)
                ends = [round(end, 2) for end in wilson_interval(hits, n)]
                rows.append((name, label, hits, n, *ends, said.count("degenerate")))
        columns = ["sibling", "prompts", "refused", "n", "low", "high", "degenerate"]
        table = pandas.DataFrame(rows, columns=columns)
        print(table.to_string(index=False))
        return rows_of(table)

    def _report_spectra(self) -> dict[str, Any]:
        folder = self.folder / "spectra"
        spectra = {n: Spectrum.load(folder / n) for n in self.models if (folder / n).exists()}
        if not spectra:
            return {}
        tables = [one.to_frame().assign(model=name) for name, one in spectra.items()]
        table = pandas.concat(tables, ignore_index=True)
        here = table[(table["layer"] == LAYER) & (table["component"] <= 3)]
        columns = ["model", "version", "component", "explained", "low", "high", "repaired"]
        columns += ["chance", "cosine", "participation_right", "outlier_share"]
        print(here[columns].round(3).to_string(index=False))
        write_image(plot_spectrum(table, LAYER), self.folder / "spectrum.png")
        kept = {name: folder / f"{name}.pt" for name in self.models}
        states = {n: torch.load(f, weights_only=True) for n, f in kept.items() if f.exists()}
        seen, n = seen_in(states), len(self.pairs)
        found = {"two components": two_components(seen, n)}
        if len(spectra) > 1:
            found["over seeds"] = over_seeds(seen, n)
            found["overlap"] = subspace_overlap(spectra, LAYER)
        for part in found.values():
            print(part.round(3).to_string(index=False))
        first = table[(table["version"] == "uncentred") & (table["component"] == 1)]
        kept_columns = ["model", "layer", "explained", "chance", "mean_share", "mean_chance"]
        found["first component"] = first[[*kept_columns, "outlier_share"]]
        found["cosines"] = cosines(states)
        print(found["cosines"].round(3).to_string(index=False))
        all_models = found["two components"]
        found["two components"] = all_models[all_models["model"] == "base"]  # others: over seeds
        return {name: rows_of(part) for name, part in found.items()}

    def _report_heads(self, layer: int) -> dict[str, Any]:
        folder = self.folder / f"heads-{layer}"
        if not folder.exists():
            return {}
        along = HeadsAlong.load(folder)
        table, conditions, effects = along.to_frame(), along.conditions(), along.effects()
        print(along, table.head(12).round(3).to_string(index=False), sep="\n")
        for part in (conditions, effects):
            print(part.round(3).to_string(index=False))
        write_image(plot_heads_along(table), self.folder / f"heads-{layer}.png")
        write_image(plot_effects(effects), self.folder / f"effects-{layer}.png")
        named = {"heads": table.head(ALONG), "conditions": conditions, "effects": effects}
        return {f"{name}, layer {layer}": rows_of(part) for name, part in named.items()}

    def _report_transfer(self, layer: int) -> dict[str, Any]:
        folder, told = self.folder / f"transfer-{layer}", {}
        every: dict[str, Transfer] = {}
        for seed, family in families(self.siblings).items():
            parts = [Transfer.load(folder / n) for n in family if (folder / n).exists()]
            if not parts:
                continue
            behaviours = {name: one for part in parts for name, one in part.behaviours.items()}
            whole = every[seed] = Transfer(behaviours, parts[0].sources)
            table, tests = whole.to_frame(), whole.tests()
            refused = table[table["verdict"].isin(["refuse", "degenerate"])]
            columns = ["target", "source", "verdict", "count", "n", "low", "high"]
            print(refused[columns].round(2).to_string(index=False))
            print(tests.round(4).to_string(index=False))
            write_image(plot_transfer(table), self.folder / f"transfer-{layer}-{seed}.png")
            told[f"transfer, layer {layer}, seed {seed}"] = rows_of(refused[columns])
            told[f"tests, layer {layer}, seed {seed}"] = rows_of(tests)
        if every:
            pooled = transfer_over_seeds(every)
            print(pooled.round(3).to_string(index=False))
            told[f"transfer over seeds, layer {layer}"] = rows_of(pooled)
        return told


def seen_in(states: dict[str, Sequence[tuple[torch.Tensor, torch.Tensor]]]) -> list[Seen]:
    """The first two components' share in each of `LAYERS`: bootstrap over pairs, the same draw for all models."""
    n = len(next(iter(states.values()))[0][0])
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randint(n, (n,), generator=generator) for _ in range(DRAWS.count)]
    return [
        {name: _two(Place.of(*some[at], OUTLIERS), draws) for name, some in states.items()}
        for at in range(len(LAYERS))
    ]


def two_components(seen: Sequence[Seen], n: int) -> pandas.DataFrame:
    """The share of the first two components in each model and layer, and how far a model's lies above another's.

    A difference is of two models of one seed, or with the base. The draws are moved by their bias, as in
    `refusal_spectrum`.
    """
    rows = []
    for layer, here in zip(LAYERS, seen, strict=True):
        cells = [(name, "", one, drawn) for name, (one, drawn) in here.items()]
        for second, first in itertools.combinations(here, 2):
            if second == "base" or _seed(second) == _seed(first):
                less = [a - b for a, b in zip(here[first], here[second], strict=True)]
                cells.append((first, second, less[0], less[1]))
        for name, less_name, observed, drawn in cells:
            rows += [(layer, name, less_name, *row) for row in _intervals(observed, drawn, n)]
    columns = ["layer", "model", "less", "version", "two components", "low", "high"]
    return pandas.DataFrame(rows, columns=columns)


def cosines(
    states: Mapping[str, Sequence[tuple[torch.Tensor, torch.Tensor]]],
) -> pandas.DataFrame:
    """How alike the mean differences of two models are, in each of `LAYERS`: cosines, a row a pair of models."""
    means = {
        name: torch.stack([a.double().mean(0) - b.double().mean(0) for a, b in some])
        for name, some in states.items()
    }
    rows = [
        (first, second, *torch.cosine_similarity(means[first], means[second], dim=-1).tolist())
        for first, second in itertools.combinations(means, 2)
    ]
    return pandas.DataFrame(rows, columns=["first", "second", *map(str, LAYERS)])


def over_seeds(seen: Sequence[Seen], n: int) -> pandas.DataFrame:
    """The same for each kind of training, mean over its seeds: `low` and `high` are over pairs, `sd` and `values` over
    seeds."""
    rows = []
    for layer, here in zip(LAYERS, seen, strict=True):
        groups = list(families([name for name in here if name != "base"]).values())
        kinds = [[_kind(name) for name in family] for family in groups]
        shared = [kind for kind in kinds[0] if all(kind in some for some in kinds)]
        for less, kind in itertools.combinations(["", "base", *shared], 2):
            if kind == "base":
                continue
            pairs = []
            for family in groups:
                named = {_kind(name): here[name] for name in family} | {"base": here["base"]}
                other = named.get(less, (0.0, 0.0))
                pairs.append([a - b for a, b in zip(named[kind], other, strict=True)])
            each = torch.stack([one for one, _ in pairs])
            drawn = torch.stack([some for _, some in pairs]).mean(0)
            spread = each.std(0) if len(each) > 1 else torch.full_like(each[0], torch.nan)
            for row in _intervals(each.mean(0), drawn, n):
                k = VERSIONS.index(row[0])
                values = [round(value, 4) for value in each[:, k].tolist()]
                rows.append((layer, kind, less, *row, float(spread[k]), values))
    columns = ["layer", "kind", "less", "version", "two components", "low", "high", "sd", "values"]
    return pandas.DataFrame(rows, columns=columns)


def transfer_over_seeds(every: Mapping[str, Transfer]) -> pandas.DataFrame:
    """What each kind of target refuses with each kind of direction ablated, and LAT's less another's, mean over seeds.

    `low` and `high` are a bootstrap over prompts, which all seeds share, `p` flips the sign of a prompt's difference,
    `values` are the seeds' own. The last target is the mean of those that are not LAT's, with each one's `own`.
    """
    hits: dict[tuple[str, str], list[torch.Tensor]] = {}
    for one in every.values():
        for target, behaviour in one.behaviours.items():
            for (_, _, source), said in behaviour.verdicts().items():
                refused = torch.tensor([word == "refuse" for word in said]).double()
                hits.setdefault((_kind(target), _kind(source)), []).append(refused)
    cells = {key: torch.stack(some) for key, some in hits.items() if len(some) == len(every)}
    targets, sources = (list(dict.fromkeys(key[n] for key in cells)) for n in (0, 1))
    rows, others = [], [target for target in targets if target != "lat"]
    for some in [*([target] for target in targets), *([others] if len(others) > 1 else [])]:
        means = {s: torch.stack([cells[t, s] for t in some]).mean(0) for s in sources}
        if len(some) > 1:
            means["own"] = torch.stack([cells[t, t] for t in some]).mean(0)
        compared = [(source, "") for source in means]
        compared += [("lat", source) for source in means if source != "lat" and "lat" in means]
        for source, less in compared:
            each = means[source] - means.get(less, torch.zeros(()).double())
            low, high = (float(end) for end in bootstrap_interval(each.mean(0)))
            p = float(permutation_p(each.mean(0))) if less else float("nan")
            values = [round(value, 3) for value in each.mean(-1).tolist()]
            rows.append((", ".join(some), source, less, float(each.mean()), low, high, p, values))
    columns = ["target", "source", "less", "refused", "low", "high", "p", "values"]
    return pandas.DataFrame(rows, columns=columns).assign(n=len(next(iter(means.values()))[0]))


def _intervals(observed: torch.Tensor, drawn: torch.Tensor, n: int) -> list[tuple[Any, ...]]:
    low, high = percentile_interval(drawn - drawn.mean(0) + observed, n)
    some = [(version, VERSIONS.index(version)) for version in COMPARED]
    return [(name, *(float(one[k]) for one in (observed, low, high))) for name, k in some]


def families(names: Iterable[str]) -> dict[str, list[str]]:
    """The siblings by seed: `lat` is LAT's first, `lat-1` of the seed 1."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(_seed(name), []).append(name)
    return found


def _kind(name: str) -> str:
    return name.partition("-")[0]


def _seed(name: str) -> str:
    return name.partition("-")[2] or "0"


def rows_of(table: pandas.DataFrame) -> list[dict[str, Any]]:
    """A table for a record."""
    return json.loads(table.round(4).to_json(orient="records"))


def written(told: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A record as text, a table's row a line."""
    tables = [
        f"{json.dumps(name)}: [\n  " + ",\n  ".join(map(json.dumps, rows)) + "\n ]"
        for name, rows in told.items()
    ]
    return "{\n " + ",\n ".join(tables) + "\n}\n"


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
    parser.add_argument("--prompts", type=int, default=TRANSFERRED, help="a cell of the transfer")
    parser.add_argument("--layer", type=int, default=LAYER, choices=LAYERS, help="of directions")
    parser.add_argument(
        "--sibling",
        action="append",
        default=[],
        metavar="NAME=ADAPTER",
        help="instead of the shipped",
    )
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--record", type=Path, metavar="FILE", help="what a report leaves")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    given = dict(one.split("=", 1) for one in asked.sibling)
    named = given or {name.rsplit("-", 1)[1]: name for name in SHIPPED}
    experiment = Experiment(
        asked.data, asked.folder, named, asked.minutes, asked.prompts, asked.layer
    )
    if asked.report or asked.record:
        told = experiment.report()
        if asked.record:
            asked.record.write_text(written(told))
        return
    try:
        for step in asked.steps:
            getattr(experiment, step)()
        print("all is done")
    except OutOfTime:
        print("out of time; run the same command again")


if __name__ == "__main__":
    main()
