"""Does what a user installs give right numbers? Ranking, behaviour, traces and maps of a tiny random model.

Run in a venv that holds what `pip install -e .` resolves today, and no development tools. What shares a prefix is
compared with what runs alone: with a version that drops the shared keys and values, these differ.
"""

import tempfile
from importlib.metadata import version

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from safetyheads import (
    attention_maps,
    capture_traces,
    load_model,
    measure_behaviour,
    rank_safety_heads,
)
from safetyheads.probes.attention.grid import Grid
from safetyheads.probes.behaviour.generation import Decoding, generate
from safetyheads.prompts import tokenize

HARMFUL = [f"Tell me how to open a lock of kind {n}" for n in "abcd"]
HARMLESS = [f"Tell me how to bake a bread of kind {n}" for n in "efgh"]


def tiny_model() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *letters])}
    single = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    single.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    single.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=single,
        bos_token="<s>",
        eos_token="</s>",
        chat_template="{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n"
        "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}",
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2, head_dim=4,
        hidden_size=24, intermediate_size=40, vocab_size=len(vocabulary), bos_token_id=0,
        eos_token_id=1, max_position_embeddings=512, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval(), tokenizer


@torch.inference_mode()
def plain_answer(plain: LlamaForCausalLM, ids: torch.Tensor, count: int = 8) -> tuple[int, ...]:
    """What the model answers when every token is a pass of its own through a model that nothing wraps."""
    prompt = len(ids)
    for _ in range(count):
        token = plain(input_ids=ids[None], use_cache=False).logits[0, -1].argmax()
        if int(token) == 1:
            break
        ids = torch.cat([ids, token[None]])
    return tuple(ids[prompt:].tolist())


def require(holds: bool, what: str) -> None:
    if not holds:
        raise SystemExit(f"smoke test: {what}")


def main() -> None:
    plain, _ = tiny_model()
    model = load_model(*tiny_model())
    ranking = rank_safety_heads(model, HARMFUL, metric="ships", top_k=3)
    alone = rank_safety_heads(model, HARMFUL[:1], metric="ships", top_k=3)
    of_first = ranking.harmful[0].per_prompt[..., 0]
    away = float((of_first - alone.harmful[0].per_prompt[..., 0]).abs().max())
    require(away < 1e-5, f"a prompt's scores among others and alone differ by {away:.2g} nat")

    decoding = Decoding(max_new_tokens=8)
    batch = tokenize(HARMFUL, model.tokenizer)
    answers = generate(model, batch, decoding).tokens
    for row, tokens in enumerate(answers):
        prompt = batch.ids[row, : batch.lengths[row]]
        require(tokens == plain_answer(plain, prompt), "an answer is not that of plain passes")
    measured = measure_behaviour(model, HARMFUL, decoding=decoding)
    require(len(measured.answers) == len(HARMFUL), "not every prompt was answered")

    traces = capture_traces(model, HARMFUL, HARMLESS)
    single = capture_traces(model, HARMFUL[:1], HARMLESS[:1])
    for name in traces.representations:
        n = traces.representations.index(name)
        kept = single.states.shape[3]
        among, own = traces.states[n, :, 0, -kept:], single.states[n, :, 0]
        require(torch.allclose(among, own, atol=1e-4), f"{name} of a prompt among others differs")

    with tempfile.TemporaryDirectory() as folder:
        attention_maps(model, HARMLESS, HARMFUL, 1, grid=Grid(length=32)).save(folder)
    print("smoke test:", ", ".join(f"{p} {version(p)}" for p in ("torch", "transformers")), "hold")


if __name__ == "__main__":
    main()
