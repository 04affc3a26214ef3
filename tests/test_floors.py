"""Do imports only point down? This table is the diagram of the package."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "safetyheads"
FLOORS = [  # a module imports from the floors above its own line, never from its own line or below
    ["files"],
    [
        "blocks",
        "prompts",
        "heads",
        "metrics",
        "executors",
        "checkpoints",
        "judges",
        "plots.style",
        "plots.files",
    ],
    [
        "stats",
        "model",
        "store",
        "published",
        "plots.heads",
        "plots.groups",
        "plots.traces",
        "plots.behaviour",
        "jailbreaks",
        "plots.attention",
    ],
    ["interventions", "planted", "evidence", "agreement", "plots.agreement", "plots.evidence"],
    ["sweep", "export", "runs", "patterns"],
    ["shards", "screening"],
    [
        f"probes.{n}"
        for n in (
            "attention",
            "divergence",
            "ablation",
            "groups",
            "directions",
            "sensitivity",
            "behaviour",
            "utility",
            "traces",
        )
    ],
    ["ranking", "report", "together"],
    ["parts", "definitions", "planning", "ground_truth"],
    ["__main__", "__init__", "probes.__init__", "plots.__init__"],
]
FLOOR = {module: floor for floor, modules in enumerate(FLOORS) for module in modules}
MODULES = {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in PACKAGE.rglob("*.py")}


def imported(source: str) -> list[str]:
    """The package's own modules that a source text imports, wherever in it the import stands."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: spell the import from safetyheads"
            names += [f"{node.module}.{a.name}" for a in node.names if a.name != "__version__"]
    inner = [name.removeprefix("safetyheads.") for name in names if name.startswith("safetyheads")]
    known = [[m for m in FLOOR if f"{name}.".startswith(f"{m}.")] for name in inner]
    return [found[0] if found else "__init__" for found in known]


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_point_down(module):
    assert module in FLOOR, f"{module} has no floor: give it a line in the table above"
    upward = [m for m in imported(MODULES[module].read_text()) if FLOOR[m] >= FLOOR[module]]
    assert not upward, f"{module} (floor {FLOOR[module]}) imports {upward}, not below it"


def test_an_upward_import_is_seen():
    assert imported("def f():\n    from safetyheads.model import x") == ["model"]
    assert imported("import safetyheads.probes.ablation as a") == ["probes.ablation"]
    assert imported("from safetyheads.plots import heads, __version__") == ["plots.heads"]
    assert imported("from safetyheads import Head, __version__") == ["__init__"]
