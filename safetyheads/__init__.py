"""Which attention heads carry a chat model's safety? The names to import, loaded when first used.

>>> import safetyheads
>>> "rank_safety_heads" in dir(safetyheads)
True
"""

import ast
import warnings
from importlib import import_module
from pathlib import Path

__version__ = "0.2.0"

# What the libraries below say in Jupyter on their first import, where ipywidgets is missing; text bars do without it.
warnings.filterwarnings("ignore", message="IProgress not found")


def _modules_of_names() -> dict[str, str]:
    """Each public name with the module that has it, as the stub beside this file imports them.

    `lazy_loader.attach_stub` reads stubs too; it names no near match of a misspelt name, and with that added nothing
    would be saved.
    """
    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text("utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


_MODULES = _modules_of_names()
__all__ = [*sorted(_MODULES), "__version__"]
import_module("safetyheads.versions").warn_of_untried()  # before the first number, and not with it


def __getattr__(name: str) -> object:
    """Import a public name's module when the name is first asked for."""
    if name in _MODULES:
        value = getattr(import_module(_MODULES[name]), name)
        globals()[name] = value
        return value
    from difflib import get_close_matches

    near = get_close_matches(name, __all__, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]!r}?" if near else "dir(safetyheads) lists the public names."
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; {hint}", name=name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
