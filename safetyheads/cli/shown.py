"""How does a ranking look in a terminal, and what is said about it?"""

import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING

from safetyheads.cli.options import DEMO_MODEL, SMALL_MODEL

if TYPE_CHECKING:
    from pandas import DataFrame

    from safetyheads.ranking.ranking import Ranking

NEGATIVE_CONTROL = (
    f"{SMALL_MODEL} hardly ever refuses, so these heads are a negative control: "
    "they carry the next token of its answer, not a refusal."
)
SMALL_Q = 0.05
SIGN = (
    "Refusal shift: negative where the head helps the model to refuse; rank 1 is the most negative."
)
NEXT_STEP = (
    "A model that refuses more, on prompts that it refuses:\n"
    f"  safetyheads rank --model {DEMO_MODEL} --prompts malicious_instruct"
    " --metric refusal_shift --limit 8"
)


def report(ranking: "Ranking", top: int, folder: Path, *, control: bool) -> None:
    """Save a ranking, print its top and say where the rest is."""
    note = NEGATIVE_CONTROL if control else None
    sign = SIGN if any(scores.metric == "refusal_shift" for scores in ranking.harmful) else None
    try:
        ranking.save(folder, note=" ".join(filter(None, (sign, note))) or None)
    finally:  # the scores are shown even where the folder has become unwritable meanwhile
        print(format_table(ranking.top(top)))
        if sign:
            print(f"\n{sign}")
        for about_q in dict.fromkeys(q_notes(ranking)):
            print(f"\n{about_q}")
        for scores in ranking.harmful:
            if (said := scores.audit or scores.race) is not None:
                print(f"\n{scores.ablation}: {said}")
        for scores in ranking.harmful:
            if scores.largest_first or not len(other := scores.opposing(3)):
                continue
            named = ", ".join(
                f"{row.label} {'~' if row.kind == 'estimated' else ''}{row.score:+.3g}"
                for row in other.itertuples()
            )
            print(f"\n{scores.ablation}, the other way [{scores.unit}]: {named}")
        for scores, gate in zip(ranking.harmful, ranking.gates, strict=False):
            print(f"\n{scores.ablation}: {gate}")
        if ranking.carriers_note:
            print(f"\nWhat is lost with a head, what an ablation writes: {ranking.carriers_note}")
    print(f"\nThe figure: {(folder / 'scatter.html').absolute()}")
    print(f"All scores: {(folder / 'scores.csv').absolute()}")
    if note:
        print(f"\nNote: {note}\n{NEXT_STEP}")


def q_notes(ranking: "Ranking") -> list[str]:
    """Where so few prompts were compared that hardly a head can get a small q: the reason, for each ablation."""
    from safetyheads.evidence.specificity import least_p

    notes = []
    for found in ranking.specificity:
        if found is None:
            continue
        tests, (n, m) = int(found.p.isfinite().sum()), found.n_prompts
        least = least_p(n, None if found.paired else m)
        needed = math.ceil(least * tests / SMALL_Q)
        if needed > 1:
            compared = f"{n} pairs" if found.paired else f"{n} and {m} prompts"
            enough = next(
                k
                for k in itertools.count(n)
                if least_p(k, None if found.paired else k) * tests <= SMALL_Q
            )
            notes.append(
                f"q: with {compared} no p is below {least:.2g}, so q reaches {SMALL_Q} only if {needed} of the {tests} "
                f"heads have that p; from {enough} {'pairs' if found.paired else 'of each'} on one head can alone"
            )
    return notes


def format_table(table: "DataFrame") -> str:
    """Lay out the top heads, one block an ablation, harmful beside harmless where there is both."""
    blocks = []
    for (dataset, model, ablation, metric, unit), rows in table.groupby(
        ["dataset", "model", "ablation", "metric", "unit"], sort=False
    ):
        columns = {"rank": "rank", "label": "head", "score": f"harmful [{unit}]"}
        if "harmless_score" in rows and rows["harmless_score"].notna().any():
            columns["harmless_score"] = f"harmless [{unit}]"
        if "specificity" in rows and rows["specificity"].notna().any():
            columns |= {"specificity": f"specificity [{unit}]", "q_value": "q"}
        columns |= {name: name for name in ("established", "verdict") if name in rows}
        ordered = rows.sort_values("rank")
        body = ordered[list(columns)].rename(columns=columns)
        for column, kind in (("score", "kind"), ("harmless_score", "harmless_kind")):
            if column in columns and kind in ordered and (ordered[kind] == "estimated").any():
                body[columns[column]] = [
                    f"{'~' if estimated else ''}{score:.4g}"
                    for score, estimated in zip(
                        ordered[column], ordered[kind] == "estimated", strict=True
                    )
                ]
        title = f"Top {len(rows)} heads of {model} on {dataset}: {metric}, {ablation}"
        text = body.to_string(index=False, float_format="{:.4g}".format)
        if "~" in text:
            text += "\n~ estimated, not run"
        blocks.append(f"{title}\n{text}")
    return "\n\n".join(blocks)
