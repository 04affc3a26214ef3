"""Is there one bar for the whole, and are there plain lines where there is no terminal?"""

import re
import subprocess
import sys

import pytest
import torch

from safetyheads import PromptSet, progress
from safetyheads.engine.execution import Execution
from safetyheads.probes.behaviour.generation import Decoding
from safetyheads.probes.directions.selection import select_direction
from safetyheads.probes.directions.transfer import transfer_matrix
from safetyheads.probes.groups import GroupSearch, search_heads
from safetyheads.ranking.ranking import rank_safety_heads
from tests import zoo

HARMFUL, HARMLESS = (tuple(zoo.sentence(5, 6 + n, 7, at) for n in range(3)) for at in (8, 9))


@pytest.fixture
def drawn(monkeypatch):
    """The bars that were drawn, with where they ended."""
    ends = []
    made = progress._bar

    def spied(*given, **look):
        bar = made(*given, **look)
        close = bar.close
        bar.close = lambda: (ends.append((bar.desc, bar.n, bar.total, given[0])), close())
        return bar

    monkeypatch.setattr(progress, "_bar", spied)
    return ends


@pytest.mark.parametrize("method", ["raced", "screened"])
def test_a_ranking_has_one_bar_that_ends_at_its_end(drawn, method, capsys):
    dataset = PromptSet("mine", HARMFUL, HARMLESS, paired=True)
    asked = {"metric": "ships", "method": method, "top_k": 2}
    rank_safety_heads(zoo.opened("llama"), dataset, execution=Execution(progress=True), **asked)
    ((label, done, total, _),) = drawn
    assert label.startswith("ranking ")
    assert done == total > 0
    shown = capsys.readouterr().err
    assert "harmless" in shown  # which part runs stands beside it
    assert "pass/s" not in shown


def searched(model, prompts):
    few = GroupSearch(steps=2, samples=2, pair_heads=3)
    search_heads(model, prompts, few, execution=Execution(progress=True))


def selected(model, prompts):
    told = {"layers": 2, "positions": -1, "only_expected": False}
    other = PromptSet("other", (zoo.sentence(5, 11, 7),), (zoo.sentence(5, 12, 7),) * 2)
    select_direction(model, prompts, other, execution=Execution(progress=True), **told)


def transferred(model, prompts):
    sources = {"one": torch.ones(model.d_model), "two": torch.arange(1.0, model.d_model + 1)}
    told = {"decoding": Decoding(2), "sides": "harmful", "progress": True}
    transfer_matrix({"llama": model}, sources, prompts, **told)


@pytest.mark.parametrize(
    ("work", "labels"),
    [
        (searched, ["search, "]),
        (selected, ["reading, ", "selecting, "]),
        (transferred, ["transfer, "]),
    ],
)
def test_work_of_several_parts_has_one_bar_whose_length_is_known_at_the_start(drawn, work, labels):
    work(zoo.opened("llama"), PromptSet("mine", HARMFUL, HARMLESS, paired=True))
    assert [bar[0][: len(label)] for bar, label in zip(drawn, labels, strict=True)] == labels
    _, done, _, expected = drawn[-1]
    assert done == expected > 0


def test_a_whole_follows_what_its_parts_come_to():
    with progress.whole(10, "all", shown=False), progress.bar(4, "a", "row", cost=2.0) as part:
        outer = progress._OUTER.get()
        assert (part.total, outer.drawn.total) == (4, 10)
        part.total = 8  # four rows more than thought: eight more of the whole
        assert outer.drawn.total == 18
        part.update(3)
        assert part.n == 3
    assert progress._OUTER.get() is None
    assert not isinstance(progress.bar(1, "alone", "row", shown=False), progress._Part)


def test_lines_where_there_is_no_terminal():
    code = (
        "import time; from safetyheads import progress\n"
        "progress.QUIET = progress.BETWEEN = 0.02\n"
        "with progress.bar(4, 'walk', 'step') as shown:\n"
        "    for _ in range(4): time.sleep(0.03); shown.update()\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = said.stderr.splitlines()
    assert "\r" not in said.stderr
    assert all(re.fullmatch(r"walk: \d+ %, 00:0\d gone, \S+ left", line) for line in lines), lines
    assert lines[-1].startswith("walk: 100 %")


def test_what_is_quick_says_nothing_without_a_terminal(capsys):
    with progress.bar(3, "walk", "step") as shown:
        shown.update(3)
    with progress.whole(4, "all"), progress.bar(3, "walk", "step") as part:
        part.total = 5
        part.update(5)
    assert capsys.readouterr().err == ""


def test_jupyter_without_widgets_gives_no_warning():
    code = (
        "import sys, types, warnings\n"
        "warnings.simplefilter('error')\n"
        "sys.modules['IPython'] = types.SimpleNamespace(\n"
        "    get_ipython=lambda: types.SimpleNamespace(config={'IPKernelApp': {}}))\n"
        "import safetyheads, tqdm.auto\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_was_done_before_says_nothing_of_the_time_left(capsys):
    for shown in (None, True):
        with progress.bar(100, "walk", "step", shown, done=90) as drawn:
            drawn.update()
            assert (drawn.n, drawn.initial) == (91, 90)  # the rate is of what came since
    with progress.whole(100, "all"), progress.bar(100, "walk", "step", done=90) as part:
        assert part.n == 90
    capsys.readouterr()
