"""Make the README's picture with the README's own code, and say what that costs.

`python .ci/readme.py` runs the first Python block of README.md and writes the figure that it shows to
docs/images/scatter.png; with `--all` it runs the second block too, which needs JailbreakBench.
"""

import re
import sys
import time
from pathlib import Path

import plotly.graph_objects as go

from safetyheads import write_image

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "images" / "scatter.png"


def main() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    names: dict[str, object] = {}
    go.Figure.show = lambda figure: write_image(figure, PICTURE)
    for block in blocks[: 2 if "--all" in sys.argv else 1]:
        wall, busy = time.perf_counter(), time.process_time()
        exec(compile(block, "README.md", "exec"), names)
        wall, busy = time.perf_counter() - wall, time.process_time() - busy
        print(f"{wall:.0f} s, {busy:.0f} processor seconds, imports and opening among them")


if __name__ == "__main__":
    main()
