"""What do all figures share? Ink, font, and what a reader calls the values of a table."""

import re

DARK = "#262626"
BLANK = "#e2e2e2"
"""Where a map has nothing to show; white is the middle of its colours."""
FONT = "Arial, Helvetica, Liberation Sans, DejaVu Sans, sans-serif"

NAMES = {
    "undifferentiated_attention": "Undifferentiated Attention",
    "scaling_contribution": "Scaling Contribution",
    "zero": "Zero Ablation",
    "mean": "Mean Ablation",
    "resample": "Resample Ablation",
    "ships": "Ships",
    "generalized_ships": "Generalized Ships",
    "refusal_shift": "Refusal Shift",
    "builtin": "Builtin Prompts",
    "jailbreakbench": "JailbreakBench",
    "malicious_instruct": "Malicious Instruct",
    "advbench": "AdvBench",
    "xstest": "XSTest",
}
"""What a reader calls the values of a table; any other value is shown as it is."""


def human(value: str) -> str:
    """A table's value in a reader's words.

    Example:
        >>> human("generalized_ships(left, rank 1)"), human("my_ablation")
        ('Generalized Ships (left, rank 1)', 'my_ablation')
    """
    word = re.match(r"\w*", value)[0]  # type: ignore[index]
    rest = value[len(word) :]
    return NAMES[word] + (" " if rest[:1] == "(" else "") + rest if word in NAMES else value
