"""Which versions of the libraries beneath was this release tried with, and is another one installed?

Transformers 5.24 renamed an argument, and answers and states went wrong without a word: a version that nobody has tried
is named. docs/versions.md says what was run.
"""

import functools
import re
import warnings
from importlib.metadata import PackageNotFoundError, version

TRIED = {
    "transformers": ("5.9", "5.24"),
    "transformer-lens": ("4.0", "4.3"),
    "torch": ("2.13", "2.14"),
}
"""The lowest and the newest that the tests were run with."""


def untried() -> list[str]:
    """What is installed and lies outside of what was tried, as sentences without a full stop."""
    found = []
    for package, (lowest, newest) in TRIED.items():
        try:
            installed = version(package)
        except PackageNotFoundError:
            continue
        if not _minor(lowest) <= _minor(installed) <= _minor(newest):
            found.append(f"{package} {installed} (tried: {lowest} to {newest})")
    return found


@functools.cache
def warn_of_untried() -> None:
    """Say once, when the package is imported, which installed versions were never tried."""
    if found := untried():
        warnings.warn(
            f"safetyheads was not tried with {', '.join(found)}; numbers may be wrong without a word. Install versions "
            "that were, or run its tests with yours",
            stacklevel=3,
        )


def _minor(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])
