"""How is a figure written to a file? A web page with Plotly alone, a picture with a local Chrome or Chromium."""

# ruff: noqa: C408  (Plotly's documentation writes attributes as keyword arguments; so does this.)

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetyheads.storage.files import write_whole

if TYPE_CHECKING:
    import plotly.graph_objects


FILL = """<style>html, body {{ margin: 0 }} body > div {{ transform-origin: 0 0 }}</style>
<script>
function fill() {{
  const [width, height] = [{width}, {height}], style = document.body.querySelector("div").style;
  const scale = Math.min(innerWidth / width, Math.max(1, innerHeight / height));
  style.width = width + "px";
  style.transform = `translate(${{(innerWidth - width * scale) / 2}}px) scale(${{scale}})`;
  document.body.style.height = height * scale + "px";
}}
addEventListener("resize", fill);
fill();
</script>
"""
"""What makes a figure of a fixed size as large as the window: as wide, or as high where that is enough."""


def write_html(
    figure: "plotly.graph_objects.Figure",
    path: str | Path,
    *,
    plotly_js: Literal["cdn", "embedded"] = "cdn",
) -> Path:
    """Write a figure as a web page that it fills, and return its path.

    Args:
        figure: the figure.
        path: the file to write; missing parent folders are made.
        plotly_js: `"cdn"`: a page of a few kB that fetches plotly.js from the network when opened;
            `"embedded"`: a page of about 5 MB that opens anywhere.

    Raises:
        ValueError: plotly_js is neither.
        OSError: the file cannot be written there (PermissionError, NotADirectoryError, ...).
    """
    if plotly_js not in ("cdn", "embedded"):
        raise ValueError(
            f'plotly_js is {plotly_js!r}: expected "cdn" (a small page that needs the network) '
            'or "embedded" (about 5 MB, needs nothing)'
        )
    # Plotly would draw a random id; the same figure is to be the same file.
    name = "figure-" + hashlib.sha256(figure.to_json().encode()).hexdigest()[:16]
    own = dict(config=dict(displaylogo=False), div_id=name)
    page = figure.to_html(include_plotlyjs="cdn" if plotly_js == "cdn" else True, **own)
    if figure.layout.width and figure.layout.height:
        size = dict(width=figure.layout.width, height=figure.layout.height)
        page = page.replace("</body>", FILL.format(**size) + "</body>")
    return _write(path, page.encode())


def write_image(
    figure: "plotly.graph_objects.Figure",
    path: str | Path,
    *,
    width: int | None = None,
    height: int | None = None,
    scale: float | int = 2,
    timeout: float | int = 120,
) -> Path:
    """Write a figure as a picture, drawn by a local Chrome or Chromium, and return its path.

    Args:
        figure: the figure.
        path: the file to write; its ending names the format: .png .jpg .webp .svg .pdf.
        width: of the picture in layout pixels; by default the figure's own.
        height: of the picture in layout pixels; by default the figure's own.
        scale: pixels of the file for one layout pixel.
        timeout: seconds until a browser that hangs is killed.

    Raises:
        ValueError: the ending names no format that can be written.
        RuntimeError: kaleido or a browser is missing or does not start; says what to install.
        TimeoutError: the browser took longer than `timeout`.
        OSError: the file cannot be written there (PermissionError, NotADirectoryError, ...).
    """
    formats = ("png", "jpg", "jpeg", "webp", "svg", "pdf")
    ending = Path(path).suffix.lstrip(".").lower()
    if ending not in formats:
        raise ValueError(
            f"{str(path)!r} ends in {Path(path).suffix!r}: expected one of "
            f"{', '.join('.' + name for name in formats)} (for .html there is write_html)"
        )
    if problem := _browser_problem():
        raise RuntimeError(problem)
    options = dict(
        format=ending,
        width=width or figure.layout.width or 700,
        height=height or figure.layout.height or 500,
        scale=scale,
    )
    _make_folder(Path(path))
    return _write(path, _draw(figure.to_dict(), options, timeout))


def _make_folder(path: Path) -> None:
    """Make the folder of a file and find out that the file can be written there."""
    existed = path.exists()
    _try_to_write(path, lambda: path.open("ab").close())
    if not existed:
        path.unlink()


def _write(path: str | Path, content: bytes) -> Path:
    _try_to_write(Path(path), lambda: write_whole(Path(path), content))
    return Path(path)


def _try_to_write(path: Path, write: Any) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write()
    except OSError as error:
        reason = (
            f"cannot write the figure ({error.strerror}); name a file in a folder you may write"
        )
        raise type(error)(error.errno, reason, str(path)) from error


def _browser_problem() -> str | None:
    """What keeps this machine from drawing pictures, and the remedy; None where nothing does."""
    import os

    try:
        from choreographer.browsers.chromium import Chromium
        from kaleido import Kaleido  # noqa: F401
    except ImportError:
        return (
            "writing pictures needs the package kaleido, 1.0 or newer: pip install 'kaleido>=1' "
            "(write_html needs nothing)"
        )
    found = Chromium.find_browser(skip_local=False)
    if found and Path(found).is_file():
        return None
    named = os.environ.get("BROWSER_PATH")
    return (
        "writing pictures needs Chrome or Chromium, and "
        + (f"BROWSER_PATH={named!r} is not a file" if named else "none was found")
        + ". Install one (`apt-get install chromium`, or `plotly_get_chrome` to download one), "
        "or set BROWSER_PATH to its program; write_html needs no browser"
    )


def _draw(figure: dict[str, Any], options: dict[str, Any], timeout: float | int) -> bytes:
    """Draw in a thread with its own event loop, so that notebooks can call it too."""
    import asyncio
    import threading

    from kaleido import Kaleido

    browsers: list[Any] = []
    outcome: list[bytes | BaseException] = []

    async def draw() -> bytes:
        # MathJax would be fetched from the network, which may not answer.
        browsers.append(Kaleido(n=1, timeout=timeout, mathjax=False))
        async with browsers[0] as browser:
            image: bytes = await browser.calc_fig(figure, opts=options)
            return image

    def work() -> None:
        try:
            outcome.append(asyncio.run(draw()))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=work, name="write_image", daemon=True)
    thread.start()
    try:
        thread.join(timeout)
        late = thread.is_alive()
    finally:
        if browsers:
            _end(browsers[0])
    thread.join(10)
    failure = outcome[0] if outcome else TimeoutError()
    if late or isinstance(failure, TimeoutError):
        raise TimeoutError(
            f"the browser drew nothing in {timeout:g} seconds and was ended: try again, raise "
            "timeout, set BROWSER_PATH to another Chrome or Chromium, or use write_html"
        )
    if isinstance(failure, BaseException):
        raise RuntimeError(
            f"the browser failed ({type(failure).__name__}: {failure}): install a Chrome that "
            "works (`plotly_get_chrome`), set BROWSER_PATH to it, or use write_html"
        ) from failure
    return failure


def _end(browser: Any) -> None:
    """Kill a browser that still runs, with all that it started, and take its exit status."""
    import os
    import signal

    process = getattr(browser, "subprocess", None)
    if process is None or process.poll() is not None:
        return
    if hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait(10)
