"""Do imports only point down, and do the rooms stay small? This table is the diagram of the package."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "safetyheads"
FLOORS = [  # a folder or a file of the top; it imports from the lines above its own, and within its own folder
    ["choices", "versions"],
    ["storage", "metrics", "stats", "progress"],
    ["prompts"],
    ["models", "heads", "plots", "judges", "saes"],
    ["inputs", "interventions", "activations", "evidence"],
    ["engine"],
    ["screening"],
    ["probes"],
    ["ranking", "validation"],
    ["training"],
    ["reports", "__init__"],
    ["cli"],
    ["__main__"],
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
MODULES = {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in PACKAGE.rglob("*.py")}


def room_of(module: str) -> str:
    return module.split(".")[0]


def imported(source: str) -> list[str]:
    """The package's own modules that a source text imports, wherever in it the import stands."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: spell the import from safetyheads"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    inner = [n.removeprefix("safetyheads").removeprefix(".") for n in names]
    inner = [i for n, i in zip(names, inner, strict=True) if f"{n}.".startswith("safetyheads.")]
    return [i if room_of(i) in FLOOR else "__init__" for i in inner if i != "__version__"]


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_point_down(module):
    room = room_of(module)
    assert room in FLOOR, f"{room} has no floor: give it a line in the table above"
    found = imported(MODULES[module].read_text())
    upward = [m for m in found if room_of(m) != room and FLOOR[room_of(m)] >= FLOOR[room]]
    assert not upward, f"{module} (floor {FLOOR[room]}) imports {upward}, not below it"


def test_an_upward_import_is_seen():
    assert imported("def f():\n    from safetyheads.models import x") == ["models.x"]
    assert imported("import safetyheads.probes.groups as a") == ["probes.groups"]
    assert imported("from safetyheads import Head, __version__") == ["__init__"]
