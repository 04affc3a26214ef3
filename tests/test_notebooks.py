"""Do the notebooks and the code of the README run, and is what is stored what the sources say?"""

import os
import re
import runpy
import shutil
from pathlib import Path

import pytest

from tests import zoo

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ROOT / "notebooks"
MODEL_VARIABLE = "SAFETYHEADS_NOTEBOOK_MODEL"


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


@pytest.mark.parametrize("source", sorted(NOTEBOOKS.glob("*.py")), ids=lambda path: path.stem)
def test_a_notebook_runs(source, request, monkeypatch, capsys):
    """On a tiny random model; SAFETYHEADS_NOTEBOOK_MODEL names another."""
    if MODEL_VARIABLE not in os.environ:
        monkeypatch.setenv(MODEL_VARIABLE, str(request.getfixturevalue("tiny_model")))
    names = runpy.run_path(str(source))
    CHECKS[source.stem](names, capsys.readouterr().out)


def check_safety_heads(names, printed):
    table = names["ranking"].to_frame()
    assert len(table) == 2 * names["model"].n_layers * names["model"].n_heads
    assert table["score"].max() > 0
    assert (table["score"] - table["harmless_score"]).abs().max() > 0
    assert names["first"].values.ne(names["undifferentiated"].values).any()
    assert "harmful" in printed


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
    assert names["transfer"].matrix().shape == (2, 3)
    assert names["export"].max_logit_difference < 1e-4 * names["export"].largest_logit
    assert "weights changed" in printed


CHECKS = {
    "01_safety_heads": check_safety_heads,
    "02_attention_maps": check_attention_maps,
    "05_refusal_directions": check_refusal_directions,
}


def test_there_is_a_notebook():
    assert (NOTEBOOKS / "01_safety_heads.py").is_file()


@pytest.mark.parametrize("source", sorted(NOTEBOOKS.glob("*.py")), ids=lambda path: path.stem)
def test_the_stored_notebook_is_its_source(source):
    """If not: jupytext --to ipynb notebooks/*.py"""
    jupytext = pytest.importorskip("jupytext")
    stored, written = jupytext.read(source.with_suffix(".ipynb")), jupytext.read(source)
    assert [(c.cell_type, c.source) for c in stored.cells] == [
        (c.cell_type, c.source) for c in written.cells
    ]
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code), (
        "store it without outputs"
    )


def test_the_code_in_the_readme_runs(tiny_model, tmp_path, monkeypatch):
    """All of it in order, with random models and harmless prompts in place of the named ones."""
    import plotly.graph_objects as go

    blocks = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.M | re.S
    )
    code = "\n".join(blocks)
    for name in ("smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"):
        assert f'"{name}"' in code
        shutil.copytree(tiny_model, tmp_path / "models" / name)
        code = code.replace(f'"{name}"', repr(str(tmp_path / "models" / name)))
    data = tmp_path / "data"
    data.mkdir()
    for stem in ("jailbreakbench_harmful", "jailbreakbench_benign", "malicious_instruct"):
        listeners = enumerate(("friend", "guest", "bank clerk"))
        rows = [f"{index},Explain {stem} to a {listener}\n" for index, listener in listeners]
        (data / f"{stem}.csv").write_text("Index,prompt\n" + "".join(rows))
    monkeypatch.setenv("SAFETYHEADS_DATA", str(data))
    monkeypatch.chdir(tmp_path)
    shown = []
    monkeypatch.setattr(go.Figure, "show", lambda figure: shown.append(figure))
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert len(shown) == 1
    assert (tmp_path / "datasets.html").stat().st_size > 0
    assert (tmp_path / "models.html").stat().st_size > 0
    assert set(names["table"]["model"]) == {"smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"}


@pytest.mark.parametrize(
    "page", ["README.md", "docs/index.md", "docs/method.md", "docs/attention-maps.md"]
)
def test_the_links_of_a_page_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text("utf-8"))
    paths = [link for link in links if "://" not in link]
    assert paths or page == "docs/method.md"
    missing = [link for link in paths if not ((ROOT / page).parent / link).exists()]
    assert not missing
