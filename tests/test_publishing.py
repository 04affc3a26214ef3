"""Can the project be published: with links that work from outside, and an sdist of all that its pages name?"""

import runpy
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
ADDRESS = "https://github.com/someone/safetyheads"
PUBLISH = runpy.run_path(str(ROOT / ".ci" / "publish.py"))


def test_the_readme_gets_absolute_links():
    with_links = PUBLISH["with_links"]
    page = "![a](docs/images/a.png) [b](docs/b.md) [c](https://arxiv.org/x) [d](#d)"
    absolute = with_links(page, ADDRESS)
    assert absolute == (
        f"![a]({ADDRESS}/raw/main/docs/images/a.png) [b]({ADDRESS}/blob/main/docs/b.md) "
        "[c](https://arxiv.org/x) [d](#d)"
    )
    assert with_links(absolute, ADDRESS) == absolute
    assert "](docs/" not in with_links((ROOT / "README.md").read_text("utf-8"), ADDRESS)


def test_pyproject_gets_the_projects_addresses():
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    once = PUBLISH["with_urls"](text, ADDRESS)
    assert tomllib.loads(once)["project"]["urls"]["Repository"] == ADDRESS
    assert PUBLISH["with_urls"](once, ADDRESS) == once
    assert tomllib.loads(once)["project"]["scripts"] == tomllib.loads(text)["project"]["scripts"]


def test_a_notebook_gets_a_badge_once():
    in_source = PUBLISH["in_source"]
    for source in sorted((ROOT / "notebooks").glob("*.py")):
        text = source.read_text("utf-8")
        once = in_source(text, source.stem, ADDRESS)
        assert (
            once.count(
                f"colab.research.google.com/github/someone/safetyheads/blob/main/notebooks/{source.stem}"
            )
            == 1
        )
        assert in_source(once, source.stem, ADDRESS) == once
        code = [block for block in text.split("# %%") if not block.startswith(" [markdown]")]
        assert all(block in once for block in code)


def test_the_sdist_has_what_the_pages_name():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]
    held = set(build["targets"]["sdist"]["include"])
    assert {"/benchmarks", "/notebooks", "/docs", "/tests", "/.ci", "/Makefile"} <= held
