"""Which heads has the literature named, and how surely can they be read off its figures?

Zhou et al. 2025 (arXiv:2410.13708) print no table of head scores. Their Figure 5 shows the top ten heads of
Llama-2-7b-chat and Vicuna-7b-v1.5 as markers on a grid of 32 layers and 32 heads; the positions below are readings of
that figure from descriptions of it, not the authors' numbers. Two panels show the same data (Llama-2-7b-chat on
MaliciousInstruct), and comparing both readings tells how good a reading is: of 11 and 9 positions for undifferentiated
attention 5 agree exactly, of 9 and 10 for scaling contribution 4 do, and most of the others have a neighbour one layer
or one head away. So a position is good to about one layer and one head, panels are incomplete (`markers` of ten), and
marker colours are not used at all: only the ends of a panel's colour bar are. The text of the paper and its code name
two heads outright, which are marked `stated`.
"""

from typing import TYPE_CHECKING, NamedTuple

from safetyheads.heads import Head

if TYPE_CHECKING:
    import pandas

N_LAYERS, N_HEADS = 32, 32
"""The grid of both models."""
LLAMA, VICUNA = "Llama-2-7b-chat", "Vicuna-7b-v1.5"
UNDIFFERENTIATED, SCALING = "undifferentiated_attention", "scaling_contribution"
STATED = {(LLAMA, UNDIFFERENTIATED): ("L2H26", "L3H8")}
"""Heads that the paper (L2H26, its most important one) or its code (L2H26, then L3H8) name in so many words."""
OFF_BY = 1
"""Layers and heads by which a reading may be off."""


class _Panel(NamedTuple):
    figure: str
    model: str
    dataset: str
    ablation: str
    bar: tuple[float, float]
    heads: str


_PANELS = (
    _Panel(
        "5a left",
        LLAMA,
        "jailbreakbench",
        UNDIFFERENTIATED,
        (4, 32),
        "L2H1 L2H6 L2H8 L2H26 L3H0 L3H2 L3H7 L3H8 L4H2 L4H7 L28H26",
    ),
    _Panel(
        "5a left",
        LLAMA,
        "jailbreakbench",
        SCALING,
        (4, 32),
        "L1H13 L1H15 L1H21 L1H22 L2H18 L5H15 L9H0 L13H4 L13H23",
    ),
    _Panel(
        "5a right",
        LLAMA,
        "malicious_instruct",
        UNDIFFERENTIATED,
        (0, 21),
        "L2H1 L2H6 L2H8 L2H15 L3H0 L3H2 L3H7 L3H8 L4H2 L4H7 L28H26",
    ),
    _Panel(
        "5a right",
        LLAMA,
        "malicious_instruct",
        SCALING,
        (0, 21),
        "L1H13 L1H15 L1H21 L1H22 L2H25 L2H27 L13H1 L13H4 L13H23",
    ),
    _Panel(
        "5b left",
        LLAMA,
        "malicious_instruct",
        UNDIFFERENTIATED,
        (0, 70),
        "L1H1 L2H15 L2H26 L2H29 L3H2 L3H6 L3H8 L4H7 L28H26",
    ),
    _Panel(
        "5b left",
        VICUNA,
        "malicious_instruct",
        UNDIFFERENTIATED,
        (0, 70),
        "L1H8 L2H1 L3H7 L3H26 L4H2 L6H0 L6H2 L6H6",
    ),
    _Panel(
        "5b right",
        LLAMA,
        "malicious_instruct",
        SCALING,
        (0, 22),
        "L0H13 L0H21 L0H25 L1H8 L1H15 L1H22 L1H27 L13H1 L13H4 L14H23",
    ),
    _Panel(
        "5b right",
        VICUNA,
        "malicious_instruct",
        SCALING,
        (0, 22),
        "L4H15 L5H15 L16H0 L21H10",
    ),
)


def published_heads() -> "pandas.DataFrame":
    """The heads that the paper's Figure 5 shows for Llama-2-7b-chat and Vicuna-7b-v1.5, a row a marker that was read.

    Columns: model, dataset, ablation, figure (panel), layer, head, label; off_by, the layers and heads by which the
    position may be wrong; certainty, `stated` (in words, in the paper or its code), `read twice` (the same position
    in two panels of the same data) or `read once`; markers, how many of the panel's ten (a reading may have
    more: then one of them is wrong); bar_low and bar_high, the ends of the panel's colour bar, Generalized Ships [deg];
    n_layers and n_heads, the grid of the model. There are no scores: single colours could not be read.

    >>> table = published_heads()
    >>> table[table["certainty"] == "stated"]["label"].unique().tolist()
    ['L2H26', 'L3H8']
    """
    import pandas

    rows = []
    for panel in _PANELS:
        labels = panel.heads.split()
        elsewhere = {
            label
            for other in _PANELS
            if other is not panel and other[1:4] == panel[1:4]
            for label in other.heads.split()
        }
        for label in labels:
            stated = label in STATED.get((panel.model, panel.ablation), ())
            certainty = "read twice" if label in elsewhere else "read once"
            rows.append(
                {
                    "model": panel.model,
                    "dataset": panel.dataset,
                    "ablation": panel.ablation,
                    "figure": panel.figure,
                    **Head.parse(label)._asdict(),
                    "label": label,
                    "off_by": 0 if stated else OFF_BY,
                    "certainty": "stated" if stated else certainty,
                    "markers": len(labels),
                    "bar_low": float(panel.bar[0]),
                    "bar_high": float(panel.bar[1]),
                    "n_layers": N_LAYERS,
                    "n_heads": N_HEADS,
                }
            )
    return pandas.DataFrame(rows)
