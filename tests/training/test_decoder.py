"""Does the small decoder learn, keep its checkpoints, and go on as if it had never been stopped?"""

import json
from dataclasses import replace

import pytest

from safetyheads.training import decoder
from safetyheads.training.corpus import Corpus, prose, shipped_prose
from safetyheads.training.decoder import Recipe, train_decoder

TINY = Recipe(16, 1, 2, 24, 300, window=8, rows=4, steps=9, rate=1e-2)
WORDS = ["the model reads every word", "and the reader asks why", "a number is given back"]
TEXT = Corpus(
    tuple(f"{WORDS[n % 3]} {n} times, {WORDS[(n + 1) % 3]}." for n in range(60)), {"made": "up"}
)


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


class Stopped(Exception):
    pass


def test_a_stopped_training_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    whole = train_decoder(tmp_path / "whole", TINY, TEXT, progress=False)
    assert [p.name for p in whole] == [f"tokens-{32 * n:010d}" for n in (0, 4, 8, 9)]
    monkeypatch.setattr(decoder, "STATE_EVERY", 4)
    drawn = decoder.windows

    def stop(tokens, recipe, step):
        if step == 6:
            raise Stopped
        return drawn(tokens, recipe, step)

    monkeypatch.setattr(decoder, "windows", stop)
    with pytest.raises(Stopped):
        train_decoder(tmp_path / "parts", TINY, TEXT, progress=False)
    monkeypatch.setattr(decoder, "windows", drawn)
    parts = train_decoder(tmp_path / "parts", TINY, TEXT, progress=False)
    assert [weights(p) for p in parts] == [weights(p) for p in whole]
    assert weights(whole[0]) != weights(whole[-1])
    card = json.loads((tmp_path / "parts" / "card.json").read_text())
    losses = list(card["held_out_loss"].values())
    assert losses[-1] < losses[0] - 0.1
    assert card["text"]["made"] == "up"
    with pytest.raises(ValueError, match="another recipe or text"):
        train_decoder(tmp_path / "parts", replace(TINY, rate=1.0), TEXT, progress=False)


def test_what_cannot_be_trained_is_refused(tmp_path):
    with pytest.raises(ValueError, match="steps is 0"):
        Recipe(steps=0)
    with pytest.raises(ValueError, match="a row takes 64"):
        train_decoder(tmp_path, replace(TINY, window=64), TEXT._replace(paragraphs=("a b",)))
    with pytest.raises(ValueError, match="plotly is not among the packages"):
        shipped_prose(["plotly"])
    assert Recipe().kept_steps == (0, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
    assert Recipe().rate_at(1023) < 0.11 * Recipe().rate


def test_prose_is_told_from_lists_and_examples():
    text = "\n\n".join(
        [
            "This sentence is long enough to count, because it goes on and on about what it does not say.",
            "x : int, optional\n    y : float\n    z : list of (int, float), [1, 2, 3], {4: 5}, 6, 7, 8, 9, 10",
            ">>> This sentence is long enough, but it is an example that somebody has typed into a shell",
            "Short.",
        ]
    )
    (kept,) = prose(text)
    assert kept.startswith("This sentence is long enough to count")
    assert len(kept) > 80
