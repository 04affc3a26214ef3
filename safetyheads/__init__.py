"""Which attention heads carry a chat model's safety? The names to import, loaded when first used.

>>> import safetyheads
>>> "rank_safety_heads" in dir(safetyheads)
True
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from safetyheads.heads import Head, HeadScores
    from safetyheads.interventions import (
        MeanAblation,
        ResampleAblation,
        ScalingContribution,
        UndifferentiatedAttention,
        ZeroAblation,
    )
    from safetyheads.metrics import GeneralizedShips, RefusalShift, Ships
    from safetyheads.model import HookedModel, load_model
    from safetyheads.plots.files import write_html, write_image
    from safetyheads.plots.heads import plot_head_heatmap, plot_head_scatter
    from safetyheads.probes.ablation import score_heads
    from safetyheads.prompts import TEMPLATES, PromptSet, TokenBatch, load_prompts, tokenize
    from safetyheads.ranking import Ranking, rank_safety_heads

__all__ = [
    "TEMPLATES",
    "GeneralizedShips",
    "Head",
    "HeadScores",
    "HookedModel",
    "MeanAblation",
    "PromptSet",
    "Ranking",
    "RefusalShift",
    "ResampleAblation",
    "ScalingContribution",
    "Ships",
    "TokenBatch",
    "UndifferentiatedAttention",
    "ZeroAblation",
    "__version__",
    "load_model",
    "load_prompts",
    "plot_head_heatmap",
    "plot_head_scatter",
    "rank_safety_heads",
    "score_heads",
    "tokenize",
    "write_html",
    "write_image",
]

_NAMES_OF_MODULE = {
    "heads": "Head HeadScores",
    "interventions": "MeanAblation ResampleAblation ScalingContribution UndifferentiatedAttention "
    "ZeroAblation",
    "metrics": "GeneralizedShips RefusalShift Ships",
    "model": "HookedModel load_model",
    "plots.files": "write_html write_image",
    "plots.heads": "plot_head_heatmap plot_head_scatter",
    "probes.ablation": "score_heads",
    "prompts": "TEMPLATES PromptSet TokenBatch load_prompts tokenize",
    "ranking": "Ranking rank_safety_heads",
}
_MODULE_OF_NAME = {
    name: module for module, names in _NAMES_OF_MODULE.items() for name in names.split()
}

if not TYPE_CHECKING:  # a type checker that sees __getattr__ accepts every misspelt name

    def __getattr__(name: str) -> object:
        """Import a public name's module when the name is first asked for."""
        from importlib import import_module

        if name in _MODULE_OF_NAME:
            value = getattr(import_module(f"{__name__}.{_MODULE_OF_NAME[name]}"), name)
            globals()[name] = value
            return value
        from difflib import get_close_matches

        near = get_close_matches(name, __all__, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]!r}?" if near else "dir(safetyheads) lists the public names."
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; {hint}", name=name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
