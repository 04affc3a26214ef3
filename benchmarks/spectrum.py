"""How much memory does a spectrum of 1,000 pairs take, at 32 layers of width 4,096? Random states, one position.

    python benchmarks/spectrum.py --pairs 1000 --layers 32 --width 4096 --look 3

The states of both sides are 1.05 GB in float32; everything beside them belongs to one place at a time, so that the
first few layers (`--look`) need as much memory as all.
"""

import argparse
import resource
import time

import torch

from safetyheads.probes.directions.sides import Sides
from safetyheads.probes.directions.spectrum import Resampling, spectrum_of


def main() -> None:
    """Draw the states, decompose them and say what it took."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (
        ("pairs", 1000),
        ("layers", 32),
        ("width", 4096),
        ("look", 32),
        ("resamples", 2),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    drawn = torch.Generator().manual_seed(0)
    shape = (asked.layers, asked.pairs, 1, asked.width)
    harmful, harmless = torch.empty(shape), torch.empty(shape)
    for layer in range(asked.layers):
        harmful[layer].normal_(0.2, 1.0, generator=drawn)
        harmless[layer].normal_(0.0, 1.0, generator=drawn)
    held = _peak()
    some = min(asked.look, asked.layers)
    sides = Sides(harmful[:some], harmless[:some], tuple(range(some)), (-1,), True)
    start, wall = time.process_time(), time.perf_counter()
    made = spectrum_of(sides, resampling=Resampling(asked.resamples))
    print(f"{made}\nstates and libraries {held:.2f} GB, at most {_peak():.2f} GB")
    print(f"{time.process_time() - start:.0f} s of processor, {time.perf_counter() - wall:.0f} s")


def _peak() -> float:
    """The most memory that this process has held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
