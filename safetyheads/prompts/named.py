"""Which datasets are known by name, and where do their files lie: on this machine, or on the Hub?"""

import json
import os
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from safetyheads.prompts.reading import SUFFIXES, Table
from safetyheads.prompts.sets import PromptSet
from safetyheads.prompts.tables import Asked, as_set, first_column, read_table, sides_of
from safetyheads.storage.hub import hub_answers, hub_silence

DATA_FOLDER_VARIABLE = "SAFETYHEADS_DATA"
"""The environment variable that names a folder with the files of the named datasets."""


class _Part(NamedTuple):
    """One file of a named dataset."""

    stem: str
    """Its name in a local folder, without the suffix."""
    hub_patterns: tuple[str, ...]
    """Its name in the Hub's repository: the first pattern that matches counts."""


class _Dataset(NamedTuple):
    repository: str
    parts: tuple[_Part, ...]
    """The harmful part, and the matched harmless part where that is a file of its own."""
    needs_harmless: bool = False
    """Whether the only part has to hold harmless prompts too."""


_PARQUET = ("data/train-*.parquet", "*.parquet", "*.csv")
NAMED = {
    "jailbreakbench": _Dataset(
        "JailbreakBench/JBB-Behaviors",
        (
            _Part("jailbreakbench_harmful", ("data/harmful-behaviors.csv",)),
            _Part("jailbreakbench_benign", ("data/benign-behaviors.csv",)),
        ),
    ),
    "malicious_instruct": _Dataset(
        "walledai/MaliciousInstruct", (_Part("malicious_instruct", _PARQUET),)
    ),
    "advbench": _Dataset("walledai/AdvBench", (_Part("advbench", _PARQUET),)),
    "xstest": _Dataset(
        "Paul/XSTest",
        (_Part("xstest", ("xstest_prompts.csv", "xstest*.csv", "*.csv", "data/*.parquet")),),
        needs_harmless=True,
    ),
}
DATASETS = ("builtin", *NAMED)
"""The names that `load_prompts` knows."""


def load_builtin() -> PromptSet:
    """The pairs that come with the package."""
    file = resources.files("safetyheads").joinpath("data", "builtin.jsonl")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    source = "the safetyheads package"
    return as_set(sides_of(Table(rows, list(rows[0])), source, Asked()), "builtin", source)


def load_named(name: str, asked: Asked, path: str | os.PathLike[str] | None) -> PromptSet:
    """A dataset that is known by name, from local files or from the Hub."""
    dataset = NAMED[name]
    files, source = _locate(name, dataset, path)
    if len(files) == 2:
        return _load_matched((files[0], files[1]), name, source, asked)
    sides = sides_of(read_table(files[0], asked.encoding), source, asked)
    harmful = as_set(sides, name, source)
    if dataset.needs_harmless and not harmful.harmless:
        raise ValueError(
            f"{files[0]} has no harmless prompts: {name} needs a column 'label' with the words "
            "safe and unsafe"
        )
    return harmful


def _locate(
    name: str, dataset: _Dataset, path: str | os.PathLike[str] | None
) -> tuple[list[Path], str]:
    """The files of a named dataset, and what to record as their source."""
    asked, how = path, f"path={os.fspath(path)!r}" if path is not None else ""
    if asked is None and os.environ.get(DATA_FOLDER_VARIABLE):
        asked = os.environ[DATA_FOLDER_VARIABLE]
        how = f"{DATA_FOLDER_VARIABLE}={asked!r}"
    if asked is None:
        folder = _hub_folder(name, dataset)
        source = f"hub:{dataset.repository}@{folder.name}"
        return [_find_in_snapshot(folder, part) for part in dataset.parts], source
    place = Path(asked).expanduser()
    if not place.exists():
        raise FileNotFoundError(f"{how}: no such file or folder; {_how_to_give(name, dataset)}")
    if place.is_file():
        # A pair of files: the harmless half is looked for beside the harmful one.
        others = [_find_in_folder(place.parent, part, how) for part in dataset.parts[1:]]
        return [place, *others], str(place)
    return [_find_in_folder(place, part, how) for part in dataset.parts], str(place)


def _how_to_give(name: str, dataset: _Dataset) -> str:
    wanted = " and ".join(f"{part.stem}.csv" for part in dataset.parts)
    return (
        f"load_prompts({name!r}, path=...) and {DATA_FOLDER_VARIABLE} take a folder with {wanted} "
        f"(or {', '.join(s for s in SUFFIXES if s != '.csv')}); path= takes a file too"
    )


def _find_in_folder(folder: Path, part: _Part, how: str) -> Path:
    for suffix in (".csv", *SUFFIXES):
        if (folder / (part.stem + suffix)).is_file():
            return folder / (part.stem + suffix)
    raise FileNotFoundError(
        f"{how}: expected a file {part.stem}.csv (or {', '.join(SUFFIXES)}) in {str(folder)!r}, "
        "and there is none"
    )


def _find_in_snapshot(folder: Path, part: _Part) -> Path:
    for pattern in part.hub_patterns:
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            raise ValueError(
                f"{len(found)} files of the Hub's repository match {pattern!r} and one was "
                f"expected: pass path= with a file of {part.stem}"
            )
        if found:
            return found[0]
    raise FileNotFoundError(f"no file {' or '.join(part.hub_patterns)} in {str(folder)!r}")


def _load_matched(files: tuple[Path, Path], name: str, source: str, asked: Asked) -> PromptSet:
    """Join a harmful and a harmless file on their column Index, in the order of the first."""
    tables, indices = [read_table(file, asked.encoding) for file in files], []
    for file, (rows, columns) in zip(files, tables, strict=True):
        index_column = first_column(columns, ("index",))
        if index_column is None:
            raise ValueError(f"{str(file)!r} has no column 'Index' to match its rows by")
        indices.append([str(row.get(index_column)).strip() for row in rows])
    ours, theirs = indices
    if sorted(ours) != sorted(theirs) or len(set(ours)) != len(ours):
        alone = sorted(set(ours) ^ set(theirs))[:5]
        raise ValueError(
            f"{str(files[0])!r} ({len(ours)} rows) and {str(files[1])!r} ({len(theirs)} rows) do "
            "not match: expected each Index once in both"
            + (f", and only one has {', '.join(index[:30] for index in alone)}" if alone else "")
        )
    (harmful_rows, harmful_columns), (harmless_rows, harmless_columns) = tables
    asked = replace(asked, label=False)  # the file says it
    row_of = dict(zip(theirs, harmless_rows, strict=True))
    matched = [row_of[index] for index in ours]
    harmful = sides_of(Table(harmful_rows, harmful_columns), source, asked)
    harmless = sides_of(Table(matched, harmless_columns), source, asked)
    return replace(
        as_set(harmful, name, source),
        harmless=harmless.harmful,
        paired=True,
        harmless_categories=harmless.categories,
    )


def _hub_folder(name: str, dataset: _Dataset) -> Path:
    """The local snapshot of a dataset's repository: from the Hub's cache, else downloaded."""
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError

    patterns = [pattern for part in dataset.parts for pattern in part.hub_patterns]

    def snapshot(local_files_only: bool) -> Path:
        folder = huggingface_hub.snapshot_download(
            dataset.repository,
            repo_type="dataset",
            allow_patterns=patterns,
            local_files_only=local_files_only,
        )
        for part in dataset.parts:
            _find_in_snapshot(Path(str(folder)), part)
        return Path(str(folder))

    try:
        return snapshot(local_files_only=True)
    except FileNotFoundError:  # not cached
        pass
    comes_from = f"{name!r} comes from the Hub ({dataset.repository})"
    remedy = f"{_how_to_give(name, dataset)}. 'builtin' needs no network"
    if not hub_answers():
        raise ConnectionError(f"{comes_from}, which is out of reach ({hub_silence()}): {remedy}")
    try:
        return snapshot(local_files_only=False)
    except GatedRepoError as error:
        raise PermissionError(
            f"{comes_from}, which wants its terms accepted: do that at "
            f"https://huggingface.co/datasets/{dataset.repository} and log in "
            f"(`hf auth login`), or: {remedy}"
        ) from error
    except ValueError:
        raise
    except Exception as error:
        raise ConnectionError(
            f"{comes_from}, which did not hand it over ({type(error).__name__}): {remedy}"
        ) from error
