"""Files of prompts, and a byte-level tokenizer, as small as they can be."""

import json
from pathlib import Path

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
SECRET = "zebracorn"  # stands for a text that no message may show


def write_rows(file: Path, rows: list[dict]) -> Path:
    import pandas

    frame = pandas.DataFrame(rows)
    if file.suffix == ".csv":
        frame.to_csv(file, index=False)
    elif file.suffix == ".parquet":
        frame.to_parquet(file)
    elif file.suffix == ".json":
        file.write_text(json.dumps(rows))
    elif file.suffix == ".jsonl":
        file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    return file


CHAT = "{{ bos_token }}{% for m in messages %}[INST] {{ m['content'] }} [/INST]{% endfor %}"
NO_BOS_CHAT = "{% for m in messages %}[INST] {{ m['content'] }} [/INST]{% endfor %}"
TURNS = (
    "<|im_start|>system Be kind <|im_end|> {% for m in messages %}<|im_start|>{{ m['role'] }} "
    "{{ m['content'] }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)
SPECIALS = ["<pad>", "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"]


def make_tokenizer(adds="<s> $A", bos="<s>", chat_template=None, pad="<pad>"):
    """A byte-level tokenizer: `adds` is what it makes of plain text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIALS, *letters])}
    inner = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS])
    if adds != "$A":
        inner.post_processor = processors.TemplateProcessing(
            single=adds, special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=bos,
        eos_token="</s>",
        pad_token=pad,
        unk_token="<unk>",
        chat_template=chat_template,
    )
