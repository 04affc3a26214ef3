"""Do the rooms stay small? The limits that keep the house livable, and the exceptions with their reasons."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "safetyheads"
SOURCES = {str(p.relative_to(PACKAGE)): p.read_text() for p in sorted(PACKAGE.rglob("*.py"))}

LINES_OF_A_FILE = 450
LINES_OF_A_CLASS = 260
PARAMETERS = 10
EXCEPTIONS: dict[str, str] = {}
"""What may be larger, as `file`, `file:Class` or `file:function`, and why."""


def too_large(name: str, source: str) -> list[str]:
    """What of a file is beyond the limits."""
    found = [name] if source.count("\n") > LINES_OF_A_FILE else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            found += [f"{name}:{node.name}"] if length > LINES_OF_A_CLASS else []
        elif isinstance(node, ast.FunctionDef):
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = sum(argument.arg not in ("self", "cls") for argument in given)
            found += [f"{name}:{node.name}"] if count > PARAMETERS else []
    return found


def private_imports(source: str) -> list[str]:
    """Names that begin with an underscore and come from another module of the package."""
    return [
        alias.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("safetyheads")
        for alias in node.names
        if alias.name.startswith("_") and not alias.name.startswith("__")
    ]


def says_bridge(source: str) -> list[str]:
    """Where a source names the bridge: as a name, an attribute or a keyword, not in prose."""
    names = []
    for node in ast.walk(ast.parse(source)):
        for field in ("id", "attr", "arg", "name", "module"):
            value = getattr(node, field, None)
            if isinstance(value, str) and re.search(r"\bbridge\b", value):
                names.append(f"line {getattr(node, 'lineno', '?')}: {value}")
    return names


def test_nothing_outgrows_its_limits():
    large = {found for name, source in SOURCES.items() for found in too_large(name, source)}
    assert large <= set(EXCEPTIONS), f"too large: {sorted(large - set(EXCEPTIONS))}"
    assert set(EXCEPTIONS) <= large, f"no longer large: {sorted(set(EXCEPTIONS) - large)}"
    assert all(EXCEPTIONS.values()), "each exception gives its reason"


@pytest.mark.parametrize("name", SOURCES)
def test_a_module_keeps_its_own_things(name):
    assert not private_imports(SOURCES[name])


@pytest.mark.parametrize("name", [n for n in SOURCES if not n.startswith("models/")])
def test_only_the_models_know_the_bridge(name):
    assert not says_bridge(SOURCES[name])


@pytest.mark.parametrize("name", SOURCES)
def test_a_module_says_what_it_is_for(name):
    docstring = ast.get_docstring(ast.parse(SOURCES[name]))
    assert docstring or not SOURCES[name].strip(), f"{name} has no first line"


def test_what_is_too_large_is_seen():
    assert too_large("a.py", "x = 1\n" * 451) == ["a.py"]
    assert too_large("a.py", "class A:\n" + "    x = 1\n" * 260) == ["a.py:A"]
    assert too_large("a.py", f"def f({', '.join(f'a{n}' for n in range(11))}): ...") == ["a.py:f"]
    assert private_imports("from safetyheads.models.hooked import _opened") == ["_opened"]
    assert says_bridge("model.bridge.cfg")
    assert not says_bridge("'a bridge'")
