"""Small random models of every supported architecture, with all sizes different, so that a swapped axis cannot pass.

`llama` has four layers and the others three: each layer more is a third more of the suite.
"""

import functools
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT: dict[str, Any] = {
    "vocab_size": 97,
    "n_embd": 24,
    "n_layer": 3,
    "n_head": 6,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _config(name: str, **values: Any) -> Callable[[], Any]:
    def build() -> Any:
        import transformers

        return getattr(transformers, name)(**values)

    return build


CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": _config("LlamaConfig", **{**SIZES, "num_hidden_layers": 4}, head_dim=4),
    "llama-mha": _config("LlamaConfig", **{**SIZES, "num_key_value_heads": 6}),
    "llama-tied": _config("LlamaConfig", **SIZES, tie_word_embeddings=True),
    "mistral-window": _config("MistralConfig", **SIZES, head_dim=4, sliding_window=5),
    "qwen2": _config("Qwen2Config", **SIZES),
    "qwen3-qknorm-headdim": _config("Qwen3Config", **SIZES, head_dim=8),
    "gemma2-softcap-window": _config(
        "Gemma2Config", **SIZES, head_dim=8, sliding_window=5, query_pre_attn_scalar=8
    ),
    "gemma3-two-ropes": _config(
        "Gemma3TextConfig",
        **SIZES,
        head_dim=8,
        sliding_window=5,
        query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "granite-scaled-logits": _config("GraniteConfig", **SIZES, logits_scaling=2.0),
    "phi3": _config("Phi3Config", **SIZES),
    "gpt2": _config("GPT2Config", **GPT),
    "gptj": _config("GPTJConfig", **GPT, rotary_dim=2),
    "neox": _config(
        "GPTNeoXConfig",
        **{k: v for k, v in SIZES.items() if k != "num_key_value_heads"},
        rotary_pct=0.5,
    ),
}


def random_model(config: Any, seed: int = 0, spread: float = 0.2) -> Any:
    """A random model of a configuration, with weights large enough that heads matter."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config._attn_implementation = "eager"
    config.initializer_range = spread
    return AutoModelForCausalLM.from_config(config).eval()


@functools.cache
def opened(name: str, spread: float = 0.2) -> Any:
    """The model of an architecture, opened once for all tests: they leave it as it was."""
    from safetyheads.models.opening import load_model

    return load_model(random_model(CONFIGS[name](), spread=spread), tokenizer())


def opened_where_right(hf: Any) -> Any:
    """A model, opened; the test is skipped where the gate finds that an old TransformerLens runs it wrongly."""
    import pytest

    from safetyheads.models.opening import load_model

    old = version("transformer-lens").startswith("4.0.")
    try:
        return load_model(hf, tokenizer())
    except ValueError as error:
        if old and "the model gives other logits than as it came" in str(error):
            pytest.skip(f"TransformerLens 4.0 runs it wrongly, and it is refused: {error}")
        raise


@functools.cache
def tokenizer() -> Any:
    """Words w3 ... w96 for tokens 3 ... 96, a BOS in front, no chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {"<pad>": 0, "<s>": 1, "</s>": 2, "I": 3, "As": 4, "Sorry": 5}
    vocab |= {f"w{n}": n for n in range(6, 97)}
    words = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def sentence(*ids: int) -> str:
    """The text of some token ids."""
    return " ".join(f"w{n}" for n in ids)


RAGGED = [
    sentence(10, 11, 12, 13, 40, 41, 42, 43, 44, 45, 46),
    sentence(10, 11, 12, 13, 50, 51),
    sentence(10, 11, 12, 13, 60, 61, 62, 63, 64),
]
"""Three prompts of different lengths that share five tokens with the BOS, longer than the windows of the zoo."""
