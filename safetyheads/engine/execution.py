"""How does a sweep run? Never what comes out of it."""

from dataclasses import dataclass
from pathlib import Path

from safetyheads.engine.executors import Executor


@dataclass(frozen=True)
class Execution:
    """How a sweep runs: pass it as `execution`. Two executions of one measurement give the same numbers, to the bit
    where `rows` is the same and up to rounding where it is not.

    Raises ValueError for fewer than one row, or an executor that cannot be called.

    >>> Execution(rows=64, store="readings").rows
    64
    """

    rows: int | None = None
    """(variant, prompt) rows in one forward pass, which bound the memory; as many as are fast by default."""
    store: str | Path | None = None
    """A folder where finished layers are kept: a run that was killed goes on from there. Its key has the name and the
    fields of an ablation of your own, not its code."""
    executor: Executor | None = None
    """Where the passes run: `process_map(...)`, `ray_map(...)` or anything that maps like `map`; here by default. The
    model must then be given by name, path or Hub id."""
    progress: bool | None = None
    """Whether to show a bar with the time left; by default where standard error is a terminal."""
    upper_blocks: bool = False
    """Whether each worker of the executor reads only the blocks from its lowest layer on and gets the clean stream that
    enters it: less to load and to hold, the same numbers. Each worker then has one run of layers."""

    def __post_init__(self) -> None:
        if self.rows is not None and not (type(self.rows) is int and self.rows >= 1):
            raise ValueError(
                f"rows is {self.rows!r}; a forward pass needs at least one row, in whole numbers"
            )
        if self.store is not None and not isinstance(self.store, str | Path):
            raise ValueError(
                f"store is a {type(self.store).__name__}; name a folder for the finished layers"
            )
        if self.upper_blocks and self.executor is None:
            raise ValueError(
                "upper_blocks says how the workers of an executor open the model, and there is none; give "
                "process_map(...) or ray_map(...), or leave it out"
            )
        if self.executor is not None and not callable(self.executor):
            raise ValueError(
                f"executor is {self.executor!r}; give process_map(...), ray_map(...) or what maps like map"
            )
        if not isinstance(self.progress, bool | None):
            raise ValueError(f"progress is {self.progress!r}; it must be True, False or None")


HERE = Execution()
"""In this process, with nothing stored."""
