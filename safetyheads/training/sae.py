"""How is a small sparse autoencoder trained, on a model and on its random copy alike?

A TopK autoencoder (Gao et al., arXiv:2406.04093) on what enters a layer: unit-norm decoder, tied start, an auxiliary
loss for latents that have died. `python -m safetyheads.training.sae FOLDER` trains the one that safetyheads ships.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from safetyheads.activations.states import Kept, capture_states
from safetyheads.models.hooked import HookedModel
from safetyheads.models.opening import load_model, random_copy
from safetyheads.progress import bar
from safetyheads.prompts import TokenBatch
from safetyheads.saes.autoencoder import Quality, Sae, TopK, quality
from safetyheads.saes.writing import save_sae
from safetyheads.training.corpus import Corpus, shipped_prose


@dataclass(frozen=True)
class SaeRecipe:
    """How an SAE is trained.

    Raises ValueError for a number that is not positive.
    """

    latents: int = 1536
    k: int = 32
    """Latents active on an activation."""
    tokens: int = 400_000
    """Activations to train on, each seen once."""
    window: int = 64
    """Tokens of a row of text; the first, which sees nothing before it, is left out."""
    rows: int = 1024
    """Rows whose activations are mixed together."""
    batch: int = 2048
    """Activations of a step."""
    rate: float = 1e-3
    """Learning rate of Adam after a twentieth of the steps; it falls to nothing over the last fifth."""
    dead_after: int = 40_000
    """Activations after which a latent that was active on none is dead, and learns what the others leave over."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name != "seed" and value <= 0:
                raise ValueError(f"{name} is {value}; it must be positive")


@dataclass(frozen=True, eq=False)
class TrainedSae:
    """An SAE, and how well it does on text that it has not seen."""

    sae: Sae
    quality: Quality


def train_sae(
    model: HookedModel,
    paragraphs: Sequence[str],
    layer: int,
    recipe: SaeRecipe | None = None,
    *,
    progress: bool | None = None,
) -> TrainedSae:
    """Train a TopK SAE on what enters a layer while a model reads some text.

    The first rows of the text are held out: on them quality is measured, and how often each latent is active.

    Raises ValueError for a layer that nothing of the model has written yet, and for too little text.
    """
    recipe = recipe or SaeRecipe()
    if not 1 <= layer < model.n_layers:
        raise ValueError(
            f"layer is {layer}; {model.name} has layers 1-{model.n_layers - 1} that a block has written for"
        )
    rows = _rows(model, paragraphs, recipe)
    per_row = recipe.window - 1
    held_out, training = rows[: recipe.rows], rows[recipe.rows :]
    steps = min(recipe.tokens, len(training) * per_row) // recipe.batch
    if steps < 2:
        raise ValueError(
            f"the text has {len(rows)} rows of {recipe.window} tokens; {recipe.rows} are held out, and training takes "
            f"{2 * recipe.batch // per_row + 1} more at least"
        )
    test = _states(model, held_out, layer)
    coder = Coder(test, recipe)
    with bar(steps, f"SAE of {model.name}", "step", progress) as shown:
        for step, some in zip(range(steps), _batches(model, training, layer, recipe), strict=False):
            coder.learn(some, _rate(recipe, step, steps))
            shown.update(1)
    sae = coder.folded(layer, f"SAE of {model.name}, layer {layer}")
    active = torch.stack(
        [(sae.encode(s) != 0).double().mean(0) for s in test.split(len(test) // 4)]
    )
    sae = replace(sae, frequencies=active.mean(0).float())
    return TrainedSae(sae, quality(sae, test))


class Coder:
    """An SAE while it learns, on activations scaled to a mean length of sqrt(d_model)."""

    def __init__(self, states: Float[Tensor, "row d_model"], recipe: SaeRecipe) -> None:
        self.recipe, self.scale = recipe, states.shape[1] ** 0.5 / float(states.norm(dim=-1).mean())
        drawn = torch.Generator().manual_seed(recipe.seed)
        decoder = torch.randn(recipe.latents, states.shape[1], generator=drawn)
        self.decoder = torch.nn.functional.normalize(decoder, dim=1).requires_grad_()
        self.encoder = self.decoder.detach().T.clone().requires_grad_()
        self.encoder_bias = torch.zeros(recipe.latents, requires_grad=True)
        self.decoder_bias = _geometric_median(states[:4096] * self.scale).requires_grad_()
        self.idle = torch.zeros(recipe.latents, dtype=torch.long)
        weights = [self.encoder, self.encoder_bias, self.decoder, self.decoder_bias]
        self.optimizer = torch.optim.Adam(weights)

    def learn(self, states: Float[Tensor, "row d_model"], rate: float) -> None:
        """One step."""
        x = states * self.scale
        outputs = (x - self.decoder_bias) @ self.encoder + self.encoder_bias
        latents = TopK(self.recipe.k)(outputs)
        rest = x - latents @ self.decoder - self.decoder_bias
        size = (x - x.mean(0)).square().sum().detach()
        loss = rest.square().sum() / size
        self.idle += len(x)
        self.idle[(latents != 0).any(0)] = 0
        dead = self.idle >= self.recipe.dead_after
        if dead.any():
            spare = TopK(min(2 * self.recipe.k, int(dead.sum())))(outputs[:, dead])
            missed = rest.detach() - spare @ self.decoder[dead]
            loss = loss + missed.square().sum() / rest.detach().square().sum() / 32
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            self.decoder /= self.decoder.norm(dim=1, keepdim=True)

    def folded(self, layer: int, name: str) -> Sae:
        """The SAE, for activations as they are."""
        with torch.no_grad():
            return Sae(
                encoder=self.encoder * self.scale,
                encoder_bias=self.encoder_bias.detach().clone(),
                decoder=self.decoder / self.scale,
                decoder_bias=self.decoder_bias / self.scale,
                rule=TopK(self.recipe.k),
                layer=layer,
                name=name,
            )


def _rate(recipe: SaeRecipe, step: int, steps: int) -> float:
    warm, left = (step + 1) / (0.05 * steps), (steps - step) / (0.2 * steps)
    return recipe.rate * min(1.0, warm, left)


def _geometric_median(points: Float[Tensor, "row d_model"]) -> Float[Tensor, " d_model"]:
    """The point from which the distances add up to least, by Weiszfeld's iteration."""
    centre = points.mean(0)
    for _ in range(20):
        weights = 1 / (points - centre).norm(dim=-1).clamp_min(1e-6)
        centre = (weights[:, None] * points).sum(0) / weights.sum()
    return centre


def _rows(
    model: HookedModel, paragraphs: Sequence[str], recipe: SaeRecipe
) -> Int[Tensor, "row pos"]:
    """Paragraphs in an order of the seed, end to end, cut into rows."""
    drawn = torch.Generator().manual_seed(recipe.seed)
    needed = (recipe.rows + recipe.tokens // (recipe.window - 1) + 1) * recipe.window
    tokens: list[int] = []
    for number in torch.randperm(len(paragraphs), generator=drawn).tolist():
        found = model.tokenizer(paragraphs[number], add_special_tokens=False, verbose=False)
        tokens += found["input_ids"]
        if len(tokens) >= needed:
            break
    return torch.tensor(tokens[: len(tokens) // recipe.window * recipe.window]).view(
        -1, recipe.window
    )


def _states(
    model: HookedModel, rows: Int[Tensor, "row pos"], layer: int
) -> Float[Tensor, "token d_model"]:
    """What enters a layer at every token but each row's first."""
    window = rows.shape[1]
    lengths = torch.full((len(rows),), window)
    batch = TokenBatch(rows, lengths, ("",) * len(rows), "bare")
    kept = Kept((layer - 1,), ("resid_post",), window - 1, "end")
    return capture_states(model, batch, kept, progress=False)[0, 0].flatten(0, 1).clone()


def _batches(
    model: HookedModel, rows: Int[Tensor, "row pos"], layer: int, recipe: SaeRecipe
) -> Iterator[Float[Tensor, "token d_model"]]:
    """Activations of many rows at a time, mixed."""
    drawn = torch.Generator().manual_seed(recipe.seed)
    for some in rows.split(recipe.rows):
        states = _states(model, some, layer)
        mixed = states[torch.randperm(len(states), generator=drawn)]
        yield from (b for b in mixed.split(recipe.batch) if len(b) == recipe.batch)


def train_pair(
    folder: str | Path,
    model: Any = "smollm2-135m-instruct",
    layer: int = 1,
    recipe: SaeRecipe | None = None,
    corpus: Corpus | None = None,
    *,
    progress: bool | None = None,
) -> tuple[TrainedSae, TrainedSae]:
    """Train an SAE of a model and one of its random copy, and write both with a card that has the quality of both.

    The model's goes into `folder`, the copy's into `folder/random`.
    """
    recipe = recipe or SaeRecipe()
    corpus = corpus or shipped_prose(progress=progress)
    opened = load_model(model)
    pair = []
    for which in (opened, random_copy(opened)):
        pair.append(train_sae(which, corpus.paragraphs, layer, recipe, progress=progress))
    card = {
        "what": f"a TopK SAE of what enters layer {layer} of {opened.name}, trained by safetyheads.training.sae",
        "recipe": asdict(recipe),
        "text": corpus.about,
        "model": opened.provenance,
        "held_out": asdict(pair[0].quality),
        "held_out, random weights": asdict(pair[1].quality),
    }
    for place, trained in zip((Path(folder), Path(folder) / "random"), pair, strict=True):
        save_sae(trained.sae, place)
        (place / "card.json").write_text(json.dumps(card, indent=2))
    return pair[0], pair[1]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, from the command line."""
    parser = argparse.ArgumentParser(description="Train a small SAE and that of a random copy.")
    parser.add_argument("folder", help="where both and their card go")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--layer", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=SaeRecipe.tokens)
    asked = parser.parse_args(arguments)
    train_pair(asked.folder, asked.model, asked.layer, SaeRecipe(tokens=asked.tokens))


if __name__ == "__main__":
    main()
