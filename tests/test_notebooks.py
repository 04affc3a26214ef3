"""Do the notebooks and the code of the README and the docs run, and is what is stored what the sources say?"""

import os
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import zoo

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ROOT / "notebooks"
MODEL_VARIABLE = "SAFETYHEADS_NOTEBOOK_MODEL"
PLOTLY = "application/vnd.plotly.v1+json"
SMALL = {"TRAIN": "7", "PAIRS": "3", "PROMPTS": "3", "STEPS": "4"}
"""Sizes at which a notebook takes a moment."""


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A folder with a random Llama and a tokenizer that has the builtin prompts' words."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    from safetyheads import load_prompts

    prompts = load_prompts("builtin")
    words = {w for text in prompts.harmful + prompts.harmless for w in re.findall(r"\w+|\W", text)}
    vocab = {"<pad>": 0, "<s>": 1, "</s>": 2}
    for word in ("I", "As", "Sorry", *sorted(words)):
        vocab.setdefault(word, len(vocab))
    tokens = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    tokens.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|\W"), "isolated")
    tokens.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    config = LlamaConfig(
        **{**zoo.SIZES, "vocab_size": len(vocab), "max_position_embeddings": 1024}, head_dim=4
    )
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    zoo.random_model(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """A folder with harmless files under the names of the published sets."""
    folder = tmp_path_factory.mktemp("data")
    verbs = {
        "jailbreakbench_harmful": "Explain",
        "jailbreakbench_benign": "Write",
        "malicious_instruct": "Explain",
    }
    for stem, verb in verbs.items():
        listeners = enumerate(("friend", "guest", "bank clerk"))
        rows = [f"{index},{verb} {stem} to a {listener}\n" for index, listener in listeners]
        (folder / f"{stem}.csv").write_text("Index,prompt\n" + "".join(rows))
    return folder


@pytest.mark.parametrize("source", sorted(NOTEBOOKS.glob("*.py")), ids=lambda path: path.stem)
def test_a_notebook_runs(source, request, monkeypatch, capsys):
    """On a tiny random model; SAFETYHEADS_NOTEBOOK_MODEL names another."""
    if MODEL_VARIABLE not in os.environ:
        monkeypatch.setenv(MODEL_VARIABLE, str(request.getfixturevalue("tiny_model")))
        monkeypatch.setenv("SAFETYHEADS_DATA", str(request.getfixturevalue("tiny_data")))
        for name, size in SMALL.items():
            monkeypatch.setenv(f"SAFETYHEADS_NOTEBOOK_{name}", size)
    names = runpy.run_path(str(source))
    CHECKS[source.stem](names, capsys.readouterr().out)


def check_safety_heads(names, printed):
    table = names["ranking"].to_frame()
    assert len(table) == 2 * names["model"].n_layers * names["model"].n_heads
    assert table["score"].max() > 0
    assert (table["score"] - table["harmless_score"]).abs().max() > 0
    assert set(names["datasets"]["dataset"]) == {"jailbreakbench", "malicious_instruct"}
    assert names["models"]["model"].nunique() == 2
    assert "harmful" in printed


def check_more_than_chance(names, printed):
    assert names["table"]["q_value"].between(0, 1).all()
    assert "smallest p 3.1e-02" in printed
    assert "have q ≤ 0.05" in printed


def check_ablate_and_speak(names, printed):
    curve = names["curve"].to_frame()
    assert set(curve["arm"]) == {"baseline", "top", "random"}
    assert set(names["rates"]["intervention"]) == {"baseline", "silent", "looking everywhere"}
    assert printed.count("How do I bake bread?") == 3


def check_sae_plateaus(names, printed):
    assert names["compared"].table()["kind"].nunique() == 5
    assert "latents of what enters layer 1" in printed


def check_your_own(names, printed):
    assert names["first"].values.abs().max() > 0
    assert names["certain"].metric == "entropy_shift"
    assert names["own"].values.shape == (2, 6)


def check_seven_billion(names, printed):
    weights = {row["model"]: row["weights [1e9]"] for row in names["rows"]}
    assert weights["Llama-2-7b-chat"] == pytest.approx(6.738, abs=1e-3)  # as published
    assert weights["LLaMA-3.1-8B"] == pytest.approx(8.030, abs=1e-3)
    assert weights["GPT-JT-6B"] == pytest.approx(6.05, abs=1e-2)
    assert set(names["both"]["model"]) == {
        f"{name}, one random block" for name in ("Llama-2-7b-chat", "Vicuna-7B")
    }
    assert [row.model for row in names["maps"]] == [
        f"{name}, one random block" for name in ("GPT-JT-6B", "LLaMA-3.1-8B", "Mistral-7B")
    ]


def check_attention_maps(names, printed):
    assert [row.layer for row in names["maps"]] == [0, 1, 2]
    assert all(row.difference[row.mask].abs().max() > 0 for row in names["maps"])
    assert set(names["divergence"].table["comparison"]) >= {"matched", "length_only"}
    assert names["segments"]["segment"].nunique() >= 3
    assert "requests, plain and in" in printed


def check_refusal_directions(names, printed):
    assert set(names["table"]["version"]) >= {"uncentred", "centred, trimmed"}
    assert len(names["nulls"]) == 4
    assert names["along"].heads
    assert names["transfer"].matrix().shape == (1, 5)  # untouched, and four sources
    assert set(names["tables"]["model"]) == {"base", "ssft"}
    assert names["export"].max_logit_difference < 1e-4 * names["export"].largest_logit
    assert "weights changed" in printed


def check_stable_regions(names, printed):
    table = names["regions"].table()
    assert table["weights"].tolist() == ["trained", "random"]
    assert table["sharpness"].between(1, 49).all()
    assert "mirror" in printed
    assert names["ways"]["arc"].way == "Arc"
    assert len(names["planes"]) == 2
    assert names["border"].log_odds.shape == (2, 31)


def check_refusal_border(names, printed):
    ways = [
        f"{kind}, {how}" for how in ("undifferentiated", "silent") for kind in ("ranked", "random")
    ]
    assert list(names["borders"]) == ["none", *ways]
    odds = [border.log_odds for border in names["borders"].values()]
    assert (odds[0] - odds[1]).abs().max() > 0
    assert len(names["rows"]) == 1 + 2 + 2
    assert "ways end in a refusal" in printed


CHECKS = {
    "01_safety_heads": check_safety_heads,
    "02_attention_maps": check_attention_maps,
    "03_more_than_chance": check_more_than_chance,
    "04_ablate_and_speak": check_ablate_and_speak,
    "05_refusal_directions": check_refusal_directions,
    "06_stable_regions": check_stable_regions,
    "07_sae_plateaus": check_sae_plateaus,
    "08_your_own": check_your_own,
    "09_seven_billion": check_seven_billion,
    "10_refusal_border": check_refusal_border,
}


def test_there_is_a_notebook():
    assert (NOTEBOOKS / "01_safety_heads.py").is_file()


@pytest.mark.parametrize("source", sorted(NOTEBOOKS.glob("*.py")), ids=lambda path: path.stem)
def test_the_stored_notebook_is_its_source(source):
    """If not: make notebooks, or where words alone changed, python .ci/notebooks.py --words"""
    jupytext = pytest.importorskip("jupytext")
    stored, written = jupytext.read(source.with_suffix(".ipynb")), jupytext.read(source)
    assert [(c.cell_type, c.source) for c in stored.cells] == [
        (c.cell_type, c.source) for c in written.cells
    ]
    outputs = [out for cell in stored.cells if cell.cell_type == "code" for out in cell.outputs]
    assert not any(out.output_type == "error" or out.get("name") == "stderr" for out in outputs)
    figures = [out.data for out in outputs if {PLOTLY, "image/png"} & set(out.get("data", {}))]
    assert all("image/png" in data for data in figures), "GitHub draws no Plotly figure"
    assert figures, "run it: make notebooks"
    first, last = stored.cells[0].source, stored.cells[-1].source
    assert re.match(r"# .*\?$", first, re.M), "a notebook begins with its question"
    assert last.startswith("## What to conclude, and what not"), "and ends with what follows"


def test_the_stored_notebooks_are_small():
    sizes = {path.name: path.stat().st_size for path in NOTEBOOKS.glob("*.ipynb")}
    assert len(sizes) == len(CHECKS)
    assert sum(sizes.values()) < 4_500_000, sizes


def test_the_code_in_the_readme_runs(tiny_model, tiny_data, tmp_path, monkeypatch):
    """All of it in order, with random models and harmless prompts in place of the named ones."""
    import plotly.graph_objects as go

    blocks = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.M | re.S
    )
    code = "\n".join(blocks)
    for name in ("smollm2-135m-instruct", "smollm2-135m-ssft"):
        assert f'"{name}"' in code
        shutil.copytree(tiny_model, tmp_path / "models" / name)
        code = code.replace(f'"{name}"', repr(str(tmp_path / "models" / name)))
    drawn = '["L18H2", "L17H0", "L14H1", "L14H4", "L8H0"]'
    assert drawn in code
    code = code.replace(drawn, '["L0H1", "L1H2", "L2H3", "L1H4", "L0H5"]')
    monkeypatch.setenv("SAFETYHEADS_DATA", str(tiny_data))
    monkeypatch.chdir(tmp_path)
    shown = []
    monkeypatch.setattr(go.Figure, "show", lambda figure: shown.append(figure))
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert len(shown) == 1
    assert (tmp_path / "datasets.html").stat().st_size > 0
    assert (tmp_path / "models.html").stat().st_size > 0
    assert set(names["table"]["model"]) == {"smollm2-135m-instruct", "smollm2-135m-ssft"}


PAGES = sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES)
def test_a_pages_code_names_nothing_that_it_did_not_import(page):
    """What its blocks say in order can be typed as it stands."""
    ruff = pytest.importorskip("ruff").find_ruff_bin()
    text = (ROOT / page).read_text("utf-8")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S))
    command = [ruff, "check", "--isolated", "--select", "F821", "-"]
    checked = subprocess.run(command, input=code, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    "page", ["README.md", "docs/index.md", "docs/method.md", "docs/attention-maps.md"]
)
def test_the_links_of_a_page_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text("utf-8"))
    paths = [link for link in links if "://" not in link]
    assert paths or page == "docs/method.md"
    missing = [link for link in paths if not ((ROOT / page).parent / link).exists()]
    assert not missing
