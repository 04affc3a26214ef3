"""How is a map of attention laid out, and what does it show where there is little of it?"""

import math
from dataclasses import dataclass

LENGTH = 512
"""Tokens on each axis of a map, as in the published figure."""
FLOORS: dict[str | int, float] = {"e": math.exp(-10.0), 10: 1e-10}
"""The least attention that a map shows, by the base of its logarithm: -10 at the lower end of the colour bar."""
ORDERS = ("log_of_mean", "mean_of_log")


@dataclass(frozen=True)
class Grid:
    """The tokens on a map's axes, and how attention becomes a colour.

    Raises ValueError for a size, a base, an order or a floor that no map can have.

    >>> Grid(length=64, log=10).least
    1e-10
    """

    length: int = LENGTH
    """Tokens on each axis; longer prompts are cut there."""
    log: str | int = "e"
    """Base of the logarithm, "e" or 10."""
    floor: float | None = None
    """Attention below it counts as it; by default what puts the least value at -10."""
    order: str = "log_of_mean"
    """"log_of_mean" over prompts, or "mean_of_log"."""
    min_prompts: int = 2
    """Pairs of tokens that fewer prompts have are left blank."""
    short: str = "error"
    """What to do if fewer than `min_prompts` prompts fill the grid: "error", or "blank", which leaves it so."""

    def __post_init__(self) -> None:
        if not isinstance(self.log, str | int) or self.log not in FLOORS:
            raise ValueError(f'log is {self.log!r}; the base of the logarithm is "e" or 10')
        if self.order not in ORDERS:
            raise ValueError(f'order is {self.order!r}; it must be "log_of_mean" or "mean_of_log"')
        if self.short not in ("error", "blank"):
            raise ValueError(f'short is {self.short!r}; it must be "error" or "blank"')
        if type(self.min_prompts) is not int or self.min_prompts < 1:
            raise ValueError(
                f"min_prompts is {self.min_prompts!r}; a pair needs at least one prompt, in whole numbers"
            )
        if type(self.length) is not int or self.length < 2:
            raise ValueError(
                f"length is {self.length!r}; a map needs at least 2 tokens on its axes, in whole numbers"
            )
        if not (isinstance(self.least, int | float) and 0 < self.least < 1):
            raise ValueError(
                f"floor is {self.floor!r}; it is an attention weight above 0 and below 1"
            )

    @property
    def least(self) -> float:
        """The attention below which all counts as this much."""
        return FLOORS[self.log] if self.floor is None else self.floor

    @property
    def scale(self) -> float:
        """The natural logarithm of the base."""
        return 1.0 if self.log == "e" else math.log(10.0)


PUBLISHED = Grid()
"""512 tokens, as in the published figure."""


def as_grid(value: Grid) -> Grid:
    """A grid; ValueError for anything else."""
    if isinstance(value, Grid):
        return value
    hint = f"Grid(length={value})" if isinstance(value, int) else "Grid(length=512)"
    raise ValueError(f"grid is {value!r}; give {hint}")
