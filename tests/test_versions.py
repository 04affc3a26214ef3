"""Is a version that was never tried named, and do the bounds of the package say the same?"""

import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest

from safetyheads import versions
from safetyheads.versions import TRIED, untried, warn_of_untried

PYPROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())


@pytest.mark.parametrize(
    ("installed", "named"),
    [
        ("5.9.0", False),
        ("5.24.3", False),
        ("5.25.0", True),
        ("5.8.1", True),
        ("5.100.0.dev0", True),
        ("6.0.0rc1", True),
        ("4.57.6", True),
    ],
)
def test_a_version_outside_of_what_was_tried_is_named(monkeypatch, installed, named):
    inside = {"transformer-lens": "4.1.0", "torch": "2.13.0+cpu"}
    monkeypatch.setattr(versions, "version", {**inside, "transformers": installed}.__getitem__)
    assert untried() == ([f"transformers {installed} (tried: 5.9 to 5.24)"] if named else [])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        warn_of_untried.__wrapped__()
    assert len(said) == named


@pytest.mark.parametrize("package", TRIED)
def test_nothing_newer_than_what_was_tried_is_installed(package):
    (bounds,) = [d for d in PYPROJECT["project"]["dependencies"] if d.startswith(f"{package}>")]
    lowest, newest = TRIED[package]
    major, minor = newest.split(".")
    assert bounds.endswith(f",<{major}.{int(minor) + 1}")
    assert bounds.startswith(f"{package}>={lowest},")


def test_an_untried_version_is_named_at_import():
    """In a process of its own, which is told of another transformers."""
    child = """
import importlib.metadata as metadata
real = metadata.version
metadata.version = lambda name: "5.25.0" if name == "transformers" else real(name)
import safetyheads
"""
    said = subprocess.run(
        [sys.executable, "-c", child], capture_output=True, text=True, check=True
    ).stderr
    assert "was not tried with transformers 5.25.0 (tried: 5.9 to 5.24)" in said
