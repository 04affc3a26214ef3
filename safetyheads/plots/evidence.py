"""Does a head stand out from its controls, and how many prompts does the ranking need? Drawn from tables.

`plot_specificity` takes the table of `Ranking.to_frame()`, of which it uses the columns label, ablation, metric, unit,
rank, specificity, specificity_low, specificity_high, q_value, null_high and in_null, and for the titles dataset and
model. `plot_power` takes one or several
tables of `power_curve`. Plots never compute scores.
"""

# ruff: noqa: C408  (Plotly's documentation writes attributes as keyword arguments; so does this.)

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from safetyheads.plots.frame import about, axis, caption, require_columns, sheet
from safetyheads.plots.style import DARK, human

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

SPECIFICITY_COLUMNS = (
    *("label", "ablation", "metric", "unit", "rank", "specificity", "specificity_low"),
    *("specificity_high", "q_value", "null_high", "in_null"),
)
POWER_COLUMNS = ("ranking", "prompts", "against", "k", "spearman", "spearman_low", "spearman_high")
GREY, FOUND = "#a6a6a6", "#c2185b"
LINES = ("#440154", "#1b9e77", "#d95f02", "#3b528b")
PANEL_WIDTH, ROW, LEFT, TOP, BOTTOM = 380, 26, 84, 70, 84


def plot_specificity(
    table: "pandas.DataFrame", *, k: int = 10, q: float = 0.05, note: str | None = None
) -> "plotly.graph_objects.Figure":
    """Show how much more the top k heads matter on harmful than on harmless prompts: a panel an ablation.

    Heads stand in the order of their rank, with the bootstrap interval of their specificity. Grey heads do not rise
    above the null, whose upper end the tick marks; red ones pass at the false discovery rate `q`, over all heads.

    Raises ValueError if a column is missing, no head has a specificity, or k < 1.

    Example:
        >>> import pandas
        >>> row = dict(label="L2H1", ablation="zero", metric="ships", unit="nat", rank=1, specificity=0.4)
        >>> row |= dict(specificity_low=0.2, specificity_high=0.6, q_value=0.01, null_high=0.1, in_null=False)
        >>> plot_specificity(pandas.DataFrame([row])).layout.xaxis.title.text
        'Specificity: harmful − harmless Ships [nat]'
    """
    from plotly.subplots import make_subplots

    require_columns(
        table, SPECIFICITY_COLUMNS, "Ranking.to_frame() of a dataset with harmless prompts"
    )
    if k < 1:
        raise ValueError(f"k is {k}: expected 1 or more heads to draw in each panel")
    tested = table[table["specificity"].notna()]
    if tested.empty:
        raise ValueError("no head has a specificity: there is nothing to draw")
    ablations = tested["ablation"].drop_duplicates().tolist()
    rest = about(tested)
    names = [escape(f"{human(a)}, {rest}" if rest else human(a), quote=False) for a in ablations]
    figure = make_subplots(cols=len(ablations), subplot_titles=names, horizontal_spacing=0.12)
    figure.update_annotations(yshift=6, font=dict(size=13))
    shown: set[str] = set()
    for column, ablation in enumerate(ablations, 1):
        part = tested[tested["ablation"] == ablation].nsmallest(k, "rank")
        inside = part["in_null"].astype(str) == "True"
        passed = (part["q_value"] < q) & (part["specificity"] > 0)
        lines = zip(part["rank"], part["label"], strict=True)
        part = part.assign(name=[f"{rank}. {label}" for rank, label in lines])
        kinds = (
            ("inside the null", inside & ~passed, GREY, "white"),
            ("above the null", ~inside & ~passed, DARK, "white"),
            (f"q < {q:g}", passed, FOUND, FOUND),
        )
        for kind, chosen, color, fill in kinds:
            rows = part[chosen]
            if rows.empty:
                continue
            figure.add_scatter(
                x=rows["specificity"],
                y=rows["name"],
                mode="markers",
                name=kind,
                legendgroup=kind,
                showlegend=kind not in shown,
                marker=dict(size=9, color=fill, line=dict(color=color, width=2)),
                error_x=dict(
                    array=rows["specificity_high"] - rows["specificity"],
                    arrayminus=rows["specificity"] - rows["specificity_low"],
                    color=color,
                    thickness=1.6,
                    width=0,
                ),
                customdata=rows[["specificity_low", "specificity_high", "q_value"]].to_numpy(),
                hovertemplate="<b>%{y}</b><br>%{x:.4g} (%{customdata[0]:.4g} to %{customdata[1]:.4g})"
                "<br>q %{customdata[2]:.3g}<extra></extra>",
                row=1,
                col=column,
            )
            shown.add(kind)
        figure.add_scatter(
            x=part["null_high"],
            y=part["name"],
            mode="markers",
            name="upper end of the null",
            legendgroup="null",
            showlegend=column == 1,
            marker=dict(symbol="line-ns", size=13, line=dict(color=GREY, width=2)),
            hovertemplate="null up to %{x:.4g}<extra></extra>",
            row=1,
            col=column,
        )
        metric, unit = part["metric"].iloc[0], part["unit"].iloc[0]
        figure.update_xaxes(
            title=dict(text=_axis_title(metric, unit), font=dict(size=13)),
            row=1,
            col=column,
        )
        figure.update_yaxes(
            categoryorder="array", categoryarray=part["name"][::-1].tolist(), row=1, col=column
        )
    figure.update_xaxes(axis(zeroline=True, zerolinecolor=DARK, zerolinewidth=1))
    figure.update_yaxes(range=[-0.7, min(k, int(tested.groupby("ablation").size().max())) - 0.3])
    figure.update_yaxes(axis())
    height = TOP + ROW * min(k, len(tested)) + BOTTOM
    _finish(figure, len(ablations) * (PANEL_WIDTH + 60) + 20, height, note)
    return figure


def plot_power(
    curves: "pandas.DataFrame | Mapping[str, pandas.DataFrame]",
    *,
    against: str = "other prompts",
    note: str | None = None,
) -> "plotly.graph_objects.Figure":
    """Show how the agreement of two rankings grows with the prompts: Spearman of all heads, overlap of the top k.

    `curves` is a table of `power_curve`, or several by name, such as `{"Ships": table}`. `against` is `other prompts`
    (two disjoint sets) or `all prompts` (a set against all of them). Bands hold 95 % of the random draws.

    Raises ValueError if a column is missing, or no row compares `against` that.
    """
    from plotly.subplots import make_subplots

    named = curves if isinstance(curves, Mapping) else {"": curves}
    figure = make_subplots(
        cols=2, subplot_titles=["Rank correlation", "Overlap of the top"], horizontal_spacing=0.13
    )
    figure.update_annotations(yshift=8)
    top = 0
    for number, (name, table) in enumerate(named.items()):
        require_columns(table, POWER_COLUMNS, "power_curve(...)")
        name = name or str(table["ranking"].iloc[0])
        rows = table[table["against"] == against].sort_values("prompts")
        if rows.empty:
            raise ValueError(
                f"no row of {name} compares against {against!r}; "
                f"there are {', '.join(map(repr, table['against'].unique()))}"
            )
        color = LINES[number % len(LINES)]
        top = int(rows["k"].iloc[0])
        for column, value in ((1, "spearman"), (2, "overlap")):
            figure.add_scatter(
                x=[*rows["prompts"], *rows["prompts"][::-1]],
                y=[*rows[f"{value}_high"], *rows[f"{value}_low"][::-1]],
                mode="lines",
                fill="toself",
                fillcolor=color,
                opacity=0.15,
                line=dict(width=0),
                hoverinfo="skip",
                showlegend=False,
                row=1,
                col=column,
            )
            figure.add_scatter(
                x=rows["prompts"],
                y=rows[value],
                mode="lines+markers",
                name=human(name),
                legendgroup=name,
                showlegend=column == 1,
                line=dict(color=color, width=2),
                marker=dict(size=7, color=color),
                hovertemplate="%{x} prompts: %{y:.3f}<extra></extra>",
                row=1,
                col=column,
            )
    figure.update_xaxes(axis(title=dict(text="Prompts in a set", font=dict(size=13))))
    figure.update_xaxes(type="log", tickvals=[2**p for p in range(1, 12)], minor=dict(ticks=""))
    figure.update_yaxes(axis(zeroline=True, zerolinecolor=DARK))
    figure.update_yaxes(title=dict(text="Spearman", font=dict(size=13)), row=1, col=1)
    figure.update_yaxes(title=dict(text=f"Jaccard of the top {top}", font=dict(size=13)), col=2)
    _finish(figure, 2 * (PANEL_WIDTH + 60), 400, note)
    return figure


def _axis_title(metric: str, unit: str) -> str:
    sides = "harmless − harmful" if metric == "refusal_shift" else "harmful − harmless"
    return f"Specificity: {sides} {human(metric)}" + (f" [{unit}]" if unit else "")


def _finish(figure: Any, width: int, height: int, note: str | None) -> None:
    """Size, legend and caption."""
    extra, notes = caption(note, width=width, left=LEFT, below=BOTTOM - 28)
    margins = dict(left=LEFT, right=20, top=TOP, bottom=BOTTOM + extra)
    figure.update_layout(
        **sheet(width, height + extra, **margins),
        legend=dict(
            **dict(orientation="h", itemsizing="constant", traceorder="normal"),
            **dict(x=0, xanchor="left", y=1, yref="container", yanchor="top"),
        ),
    )
    for made in notes:
        figure.add_annotation(made)
