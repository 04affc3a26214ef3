"""Run the notebooks from top to bottom and keep what comes out: figures as Plotly's, with a picture beside each.

`python .ci/notebooks.py` runs all of notebooks/*.py, or those that are named, and writes the .ipynb beside each. GitHub
draws no Plotly figure, so every one has a PNG too, for which kaleido and a Chrome or Chromium are needed. What is said
on standard error (bars, warnings of libraries) is not kept. With `--words` nothing is run: the text cells alone are
taken over from the sources, whose code must be what was run.
"""

import json
import os
import sys
import time
from pathlib import Path

import jupytext
import plotly.graph_objects as go
from nbclient import NotebookClient

from safetyheads import write_image

FOLDER = Path(__file__).parents[1] / "notebooks"
SECONDS = 3600
PLOTLY = "application/vnd.plotly.v1+json"
LARGEST = 100_000
"""Characters of a figure that is kept as Plotly's own; a larger one is kept as its picture alone."""


def run(source: Path) -> None:
    """Run one, and write it down."""
    notebook = jupytext.read(source)
    notebook.metadata.pop("jupytext", None)
    NotebookClient(notebook, timeout=SECONDS, kernel_name="python3").execute()
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata.pop("execution", None)  # times, which differ from run to run
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
            for out in cell.outputs:
                data = out.get("data", {})
                if "image/png" in data and len(json.dumps(data.get(PLOTLY))) > LARGEST:
                    del data[PLOTLY]
    jupytext.write(notebook, source.with_suffix(".ipynb"), fmt="ipynb")


def take_words(source: Path) -> None:
    """Take over the text cells of a source whose code has not changed."""
    written, stored = jupytext.read(source), jupytext.read(source.with_suffix(".ipynb"))
    pairs = list(zip(written.cells, stored.cells, strict=True))
    for new, old in pairs:
        if new.cell_type != old.cell_type or (new.cell_type == "code" and new.source != old.source):
            raise SystemExit(f"{source.name}: its code has changed; run it")
    for new, old in pairs:
        old.source = new.source
    jupytext.write(stored, source.with_suffix(".ipynb"), fmt="ipynb")


def main() -> None:
    words = "--words" in sys.argv
    named = [Path(name).resolve().with_suffix(".py") for name in sys.argv[1:] if name != "--words"]
    sources = named or sorted(FOLDER.glob("*.py"))
    if words:
        for source in sources:
            take_words(source)
        return
    write_image(go.Figure(), FOLDER / "try.png")  # says what is missing
    (FOLDER / "try.png").unlink()
    os.environ["PLOTLY_RENDERER"] = "plotly_mimetype+png"
    # A kernel's folder is the repository, whatever it was started from.
    os.chdir(FOLDER.parent)
    for source in sources:
        start = time.monotonic()
        run(source)
        size = source.with_suffix(".ipynb").stat().st_size
        print(f"{source.stem}: {time.monotonic() - start:.0f} s, {size / 1e6:.2f} MB", flush=True)


if __name__ == "__main__":
    main()
