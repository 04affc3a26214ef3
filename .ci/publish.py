"""Where does the project live? Writes its address where a page outside the repository needs one.

`python .ci/publish.py https://github.com/OWNER/safetyheads` puts project URLs into pyproject.toml, makes the README's
relative links and pictures absolute (PyPI shows them then), and puts a Colab badge into every notebook's first text,
with the line that installs the package there. Running it again with another address replaces the first one.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"


def with_urls(pyproject: str, address: str) -> str:
    """pyproject.toml with the project's addresses."""
    pages = {"Repository": "", "Documentation": "/blob/main/docs/index.md"}
    pages |= {"Changelog": "/blob/main/CHANGELOG.md", "Issues": "/issues"}
    table = "[project.urls]\n" + "".join(f'{k} = "{address}{v}"\n' for k, v in pages.items())
    without = re.sub(r"\[project\.urls\]\n(?:\w+ = .*\n)*\n?", "", pyproject)
    return without.replace("[project.scripts]", f"{table}\n[project.scripts]", 1)


def with_links(readme: str, address: str) -> str:
    """The README with absolute links: pictures raw, pages as GitHub shows them."""
    readme = re.sub(r"\]\(https://github\.com/[^/)]+/safetyheads/(?:blob|raw)/main/", "](", readme)
    pictures = rf"![\1]({address}/raw/main/\2)"
    readme = re.sub(r"!\[([^\]]*)\]\((?!\w+:|#)([^)]+)\)", pictures, readme)
    return re.sub(r"\]\((?!\w+:|#)([^)]+)\)", rf"]({address}/blob/main/\1)", readme)


def with_badge(first: str, name: str, address: str) -> str:
    """A notebook's first text with a badge that opens it in Colab, and how to install the package there."""
    first = re.sub(r"\n\n\[!\[Open in Colab\].*\n\nThere, first: `.*`", "", first)
    place = address.removeprefix("https://github.com/")
    link = f"https://colab.research.google.com/github/{place}/blob/main/notebooks/{name}.ipynb"
    return f"{first}\n\n[![Open in Colab]({BADGE})]({link})\n\nThere, first: `%pip install git+{address}`"


def in_source(text: str, name: str, address: str) -> str:
    """A notebook's source with the badge at the end of its first text."""
    head, mark, rest = text.partition("# %% [markdown]\n")
    first, gap, code = rest.partition("\n\n# %%")
    words = "\n".join(line.removeprefix("#").removeprefix(" ") for line in first.split("\n"))
    lines = with_badge(words, name, address).split("\n")
    return head + mark + "\n".join(f"# {line}".rstrip() for line in lines) + gap + code


def main() -> None:
    if len(sys.argv) != 2 or not re.fullmatch(
        r"https://github\.com/[\w.-]+/safetyheads", sys.argv[1]
    ):
        raise SystemExit(
            "name the repository: python .ci/publish.py https://github.com/OWNER/safetyheads"
        )
    address = sys.argv[1]
    for name, change in (("pyproject.toml", with_urls), ("README.md", with_links)):
        (ROOT / name).write_text(change((ROOT / name).read_text("utf-8"), address), "utf-8")
    for source in sorted((ROOT / "notebooks").glob("*.py")):
        source.write_text(in_source(source.read_text("utf-8"), source.stem, address), "utf-8")
    subprocess.run([sys.executable, ROOT / ".ci" / "notebooks.py", "--words"], check=True)


if __name__ == "__main__":
    main()
