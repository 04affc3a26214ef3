"""What does a model look like while it learns? A small decoder trained from scratch, with its checkpoints kept.

`python -m safetyheads.training.decoder FOLDER` trains it on two cores; run again, it goes on where it was stopped. The
steps of training are fixed by the seed: step n draws the same windows of text whenever it is run.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from safetyheads.progress import bar
from safetyheads.storage.files import write_whole
from safetyheads.training.corpus import Corpus, shipped_prose

SEPARATOR = "<|end|>"
"""The token that ends a paragraph."""
STATE_EVERY = 64
"""Steps after which what a stopped run goes on from is written."""
CARD, STATE, TOKENS = "card.json", "state.pt", "tokens.safetensors"


@dataclass(frozen=True)
class Recipe:
    """How the small decoder is built and trained.

    Raises ValueError for a number that is not positive.
    """

    d_model: int = 96
    n_layers: int = 6
    n_heads: int = 4
    d_mlp: int = 256
    d_vocab: int = 2048
    window: int = 64
    """Tokens of one row of training."""
    rows: int = 32
    """Rows of one step."""
    steps: int = 1024
    rate: float = 3e-3
    """Learning rate of AdamW after 64 steps, from which on it falls along a cosine to a tenth."""
    decay: float = 0.1
    """Weight decay."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name not in ("seed", "decay") and value <= 0:
                raise ValueError(f"{name} is {value}; it must be positive")

    @property
    def tokens_a_step(self) -> int:
        return self.window * self.rows

    @property
    def kept_steps(self) -> tuple[int, ...]:
        """After how many steps a checkpoint is kept: none, and the powers of two; and the last."""
        powers = (2**n for n in range(2, math.ceil(math.log2(self.steps)) + 1))
        return tuple(sorted({0, self.steps, *(n for n in powers if n < self.steps)}))

    def rate_at(self, step: int) -> float:
        """The learning rate of one step, counted from 0."""
        warm = min(1.0, (step + 1) / min(64, self.steps))
        return self.rate * warm * (0.55 + 0.45 * math.cos(math.pi * step / self.steps))


def train_decoder(
    folder: str | Path,
    recipe: Recipe | None = None,
    corpus: Corpus | None = None,
    *,
    progress: bool | None = None,
) -> list[Path]:
    """Train a small Llama from scratch; the folders of its checkpoints, by tokens seen, lowest first.

    Each checkpoint is a folder that `load_model` opens, its name the tokens seen: `tokens-0000000000`. `card.json` says
    what was trained on what, with the loss on held-out text at each checkpoint. A run that was stopped goes on from
    its last saved state (every `STATE_EVERY` steps), and gives what one run would have given (on the same kind of
    machine).

    `corpus` is by default `shipped_prose()`; one part in fifty is held out.

    Raises ValueError if the folder holds a training of another recipe or text.
    """
    folder, recipe = Path(folder), recipe or Recipe()
    folder.mkdir(parents=True, exist_ok=True)
    tokens, held_out, about = _text(folder, recipe, corpus, progress)
    _require_same(folder, recipe, about)
    model, optimizer, start, losses = _resumed(folder, recipe)
    with bar(recipe.steps, "training", "step", progress, done=start) as shown:
        for step in range(start, recipe.steps + 1):
            if step in recipe.kept_steps and str(step) not in losses:
                losses[str(step)] = _held_out_loss(model, held_out, recipe)
                _keep(folder, recipe, model, step, losses, about)
            if step % STATE_EVERY == 0 or step == recipe.steps:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                _write_state(folder, {**state, "step": step})
            if step == recipe.steps:
                break
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate_at(step)
            loss = _loss(model, windows(tokens, recipe, step))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            shown.update(1)
    return [_checkpoint(folder, recipe, step) for step in recipe.kept_steps]


def windows(tokens: Int[Tensor, " token"], recipe: Recipe, step: int) -> Int[Tensor, "row pos"]:
    """The rows of one step, drawn by the seed and the step's number alone."""
    drawn = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    starts = torch.randint(len(tokens) - recipe.window, (recipe.rows,), generator=drawn)
    return torch.stack([tokens[s : s + recipe.window] for s in starts.tolist()])


def _loss(model: Any, ids: Int[Tensor, "row pos"]) -> Tensor:
    return model(input_ids=ids, labels=ids, use_cache=False).loss


@torch.inference_mode()
def _held_out_loss(model: Any, held_out: Int[Tensor, " token"], recipe: Recipe) -> float:
    """Mean loss in nats a token over 64 rows of text that is never trained on."""
    rows = held_out[: len(held_out) // recipe.window * recipe.window].view(-1, recipe.window)[:64]
    return float(_loss(model, rows))


def _resumed(
    folder: Path, recipe: Recipe
) -> tuple[Any, torch.optim.Optimizer, int, dict[str, float]]:
    """Model and optimizer as they were last saved, or at the beginning, with the losses of the kept steps."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=recipe.d_vocab,
        hidden_size=recipe.d_model,
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.n_heads,
        num_key_value_heads=recipe.n_heads,
        intermediate_size=recipe.d_mlp,
        max_position_embeddings=max(256, recipe.window),
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model: Any = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.rate, betas=(0.9, 0.98), weight_decay=recipe.decay
    )
    if not (folder / STATE).is_file():
        return model, optimizer, 0, {}
    state = torch.load(folder / STATE, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    losses = json.loads((folder / CARD).read_text())["held_out_loss"]
    return model, optimizer, state["step"], losses


def _write_state(folder: Path, state: dict[str, Any]) -> None:
    unfinished = folder / f"{STATE}.part"
    torch.save(state, unfinished)
    unfinished.replace(folder / STATE)


def _checkpoint(folder: Path, recipe: Recipe, step: int) -> Path:
    return folder / f"tokens-{step * recipe.tokens_a_step:010d}"


def _keep(
    folder: Path,
    recipe: Recipe,
    model: Any,
    step: int,
    losses: dict[str, float],
    about: dict[str, Any],
) -> None:
    place = _checkpoint(folder, recipe, step)
    model.save_pretrained(place)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (place / file).write_bytes((folder / file).read_bytes())
    card = {
        "what": "a small Llama trained from scratch by safetyheads.training.decoder",
        "recipe": asdict(recipe),
        "parameters": sum(p.numel() for p in model.parameters()),
        "text": about,
        "held_out_loss": losses,
        "torch": torch.__version__,
    }
    write_whole(folder / CARD, json.dumps(card, indent=2).encode())


def _require_same(folder: Path, recipe: Recipe, about: dict[str, Any]) -> None:
    if not (folder / CARD).is_file():
        return
    card = json.loads((folder / CARD).read_text())
    if card["recipe"] != asdict(recipe) or card["text"] != about:
        raise ValueError(
            f"{folder} holds a training of another recipe or text (see {CARD} in it); name another folder"
        )


def _text(
    folder: Path, recipe: Recipe, corpus: Corpus | None, progress: bool | None
) -> tuple[Int[Tensor, " token"], Int[Tensor, " held_out"], dict[str, Any]]:
    """The tokens to train on, those held out, and where they come from; made once and kept in the folder."""
    from safetensors import safe_open
    from safetensors.torch import save

    place = folder / TOKENS
    if corpus is None and place.is_file():
        with safe_open(place, framework="pt") as file:
            kept = {name: file.get_tensor(name) for name in ("train", "held_out")}
            return kept["train"], kept["held_out"], json.loads(file.metadata()["about"])
    corpus = corpus or shipped_prose(progress=progress)
    tokenizer = _tokenizer(folder, recipe, corpus.paragraphs)
    end = tokenizer.convert_tokens_to_ids(SEPARATOR)
    rows = tokenizer(list(corpus.paragraphs), add_special_tokens=False)["input_ids"]

    def together(some: Sequence[Sequence[int]]) -> Int[Tensor, " some"]:
        return torch.tensor([token for row in some for token in (*row, end)], dtype=torch.long)

    train, held_out = together([r for n, r in enumerate(rows) if n % 50]), together(rows[::50])
    if min(len(train), len(held_out)) <= recipe.window:
        raise ValueError(
            f"the text has {len(train)} tokens to train on and {len(held_out)} held out; a row takes {recipe.window}"
        )
    about = {**corpus.about, "train_tokens": len(train), "held_out_tokens": len(held_out)}
    write_whole(place, save({"train": train, "held_out": held_out}, {"about": json.dumps(about)}))
    return train, held_out, about


def _tokenizer(folder: Path, recipe: Recipe, paragraphs: Sequence[str]) -> Any:
    """Byte pairs learned from the text itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    pairs = Tokenizer(models.BPE())
    pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pairs.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.d_vocab,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pairs.train_from_iterator(paragraphs, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=pairs, bos_token=SEPARATOR, eos_token=SEPARATOR, pad_token=SEPARATOR
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, from the command line."""
    parser = argparse.ArgumentParser(description="Train a small decoder and keep its checkpoints.")
    parser.add_argument("folder", help="where checkpoints and card go")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    train_decoder(asked.folder, Recipe(steps=asked.steps, seed=asked.seed))


if __name__ == "__main__":
    main()
