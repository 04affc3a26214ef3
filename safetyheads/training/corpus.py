"""Which text is on every machine that has this library, and may be trained on? The documentation that packages ship.

The docstrings of Python's standard library and of the packages that safetyheads itself needs: English prose under the
licences of these packages (PSF, BSD, Apache, MIT), with nothing to download. What stays is paragraphs of sentences:
examples, tables and lists of parameters are left out, and each paragraph is taken once.
"""

import ast
import hashlib
import importlib.util
import re
import sysconfig
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from safetyheads.progress import bar

PACKAGES = {
    "numpy": "BSD-3-Clause",
    "scipy": "BSD-3-Clause",
    "pandas": "BSD-3-Clause",
    "torch": "BSD-3-Clause",
    "transformers": "Apache-2.0",
    "transformer_lens": "MIT",
}
"""What is read besides the standard library (PSF-2.0), with the licence of each."""
SHORTEST = 80
"""Characters of the shortest paragraph that is kept."""
PROSE = 0.9
"""The share of letters and spaces from which a paragraph counts as prose."""


class Corpus(NamedTuple):
    """Paragraphs, and where they come from."""

    paragraphs: tuple[str, ...]
    about: dict[str, Any]
    """Packages with version and licence, the number of characters, and the hash of the whole text."""


def shipped_prose(
    packages: Sequence[str] = tuple(PACKAGES), *, progress: bool | None = None
) -> Corpus:
    """The prose in the docstrings of the standard library and of some installed packages, each paragraph once.

    Raises ValueError for a package that is not in `PACKAGES`, ModuleNotFoundError for one that is not installed.
    """
    if strange := sorted(set(packages) - set(PACKAGES)):
        raise ValueError(
            f"{', '.join(strange)} is not among the packages whose licence is known here: {', '.join(PACKAGES)}"
        )
    files = [*_modules(Path(sysconfig.get_path("stdlib")))]
    for name in packages:
        files += _modules(_folder(name))
    kept: dict[str, None] = {}
    with bar(len(files), "reading docstrings", "file", progress) as shown:
        for file in files:
            kept.update(dict.fromkeys(_prose_of(file)))
            shown.update(1)
    text = tuple(kept)
    about = {
        "python": f"{sysconfig.get_python_version()} (PSF-2.0)",
        **{name: f"{version(name.replace('_', '-'))} ({PACKAGES[name]})" for name in packages},
        "characters": sum(map(len, text)),
        "sha256": hashlib.sha256("\n".join(text).encode()).hexdigest(),
    }
    return Corpus(text, about)


def _folder(package: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(f"{package} is not installed; its documentation is read")
    return Path(found.origin).parent


def _modules(folder: Path) -> Iterator[Path]:
    """The modules of a package but its tests, in an order that is the same everywhere."""
    left_out = {"test", "tests", "site-packages", "dist-packages", "idlelib"}
    for path in sorted(folder.rglob("*.py")):
        if not left_out & set(path.relative_to(folder).parts):
            yield path


def _prose_of(file: Path) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_text("utf-8"))
    except (SyntaxError, ValueError):  # templates and files in other encodings
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from prose(ast.get_docstring(node) or "")


def prose(docstring: str) -> Iterator[str]:
    """The paragraphs of a docstring that are sentences, each on one line.

    >>> list(prose("Add.\\n\\nThis long paragraph says in many words that\\n"
    ...     "two numbers are added to each other and given back.\\n\\n>>> 1 + 1"))
    ['This long paragraph says in many words that two numbers are added to each other and given back.']
    """
    for paragraph in re.split(r"\n\s*\n", docstring):
        line = " ".join(paragraph.split())
        if len(line) < SHORTEST or not line[0].isupper() or ">>>" in line:
            continue
        if sum(c.isalpha() or c == " " for c in line) >= PROSE * len(line):
            yield line
