"""Which attention heads carry a chat model's safety? The names to import, loaded when first used.

>>> import safetyheads
>>> "rank_safety_heads" in dir(safetyheads)
True
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from safetyheads.agreement import agreement_table
    from safetyheads.definitions import (
        Comparison,
        Definition,
        compare_definitions,
    )
    from safetyheads.evidence import (
        NullBand,
        Specificity,
        null_band,
        power_curve,
        rank_stability,
        specificity,
    )
    from safetyheads.executors import process_map, ray_map
    from safetyheads.export import Export, export_ablated
    from safetyheads.heads import Head, HeadScores
    from safetyheads.interventions import (
        MeanAblation,
        ResampleAblation,
        ScalingContribution,
        UndifferentiatedAttention,
        ZeroAblation,
    )
    from safetyheads.jailbreaks import ROLE_PLAY, lengthen, wrap
    from safetyheads.judges import ExampleJudge, Judge, KeywordJudge
    from safetyheads.metrics import GeneralizedShips, RefusalShift, Ships
    from safetyheads.model import HookedModel, load_model, random_copy
    from safetyheads.parts import merge_rankings, merge_scores, rank_layers
    from safetyheads.planning import Plan, plan
    from safetyheads.plots.agreement import plot_agreement, plot_published_heads
    from safetyheads.plots.attention import (
        plot_attention_divergence,
        plot_attention_maps,
        plot_hidden_magnitudes,
    )
    from safetyheads.plots.behaviour import plot_refusal_under_ablation
    from safetyheads.plots.evidence import plot_power, plot_specificity
    from safetyheads.plots.files import write_html, write_image
    from safetyheads.plots.heads import plot_head_heatmap, plot_head_scatter
    from safetyheads.probes.ablation import score_heads, score_layers
    from safetyheads.probes.attention import (
        AttentionCapture,
        AttentionMaps,
        HiddenMagnitudes,
        attention_maps,
        capture_attention,
        compare_captures,
        hidden_magnitudes,
    )
    from safetyheads.probes.behaviour import (
        Behaviour,
        RefusalCurve,
        measure_behaviour,
        refusal_under_ablation,
    )
    from safetyheads.probes.divergence import (
        AttentionDivergence,
        attention_by_segment,
        attention_divergence,
    )
    from safetyheads.probes.utility import Utility, lm_eval_model, measure_utility
    from safetyheads.prompts import TEMPLATES, PromptSet, TokenBatch, load_prompts, tokenize
    from safetyheads.published import published_heads
    from safetyheads.ranking import Ranking, rank_safety_heads
    from safetyheads.together import score_heads_together

__all__ = [
    "ROLE_PLAY",
    "TEMPLATES",
    "AttentionCapture",
    "AttentionDivergence",
    "AttentionMaps",
    "Behaviour",
    "Comparison",
    "Definition",
    "ExampleJudge",
    "Export",
    "GeneralizedShips",
    "Head",
    "HeadScores",
    "HiddenMagnitudes",
    "HookedModel",
    "Judge",
    "KeywordJudge",
    "MeanAblation",
    "NullBand",
    "Plan",
    "PromptSet",
    "Ranking",
    "RefusalCurve",
    "RefusalShift",
    "ResampleAblation",
    "ScalingContribution",
    "Ships",
    "Specificity",
    "TokenBatch",
    "UndifferentiatedAttention",
    "Utility",
    "ZeroAblation",
    "__version__",
    "agreement_table",
    "attention_by_segment",
    "attention_divergence",
    "attention_maps",
    "capture_attention",
    "compare_captures",
    "compare_definitions",
    "export_ablated",
    "hidden_magnitudes",
    "lengthen",
    "lm_eval_model",
    "load_model",
    "load_prompts",
    "measure_behaviour",
    "measure_utility",
    "merge_rankings",
    "merge_scores",
    "null_band",
    "plan",
    "plot_agreement",
    "plot_attention_divergence",
    "plot_attention_maps",
    "plot_head_heatmap",
    "plot_head_scatter",
    "plot_hidden_magnitudes",
    "plot_power",
    "plot_published_heads",
    "plot_refusal_under_ablation",
    "plot_specificity",
    "power_curve",
    "process_map",
    "published_heads",
    "random_copy",
    "rank_layers",
    "rank_safety_heads",
    "rank_stability",
    "ray_map",
    "refusal_under_ablation",
    "score_heads",
    "score_heads_together",
    "score_layers",
    "specificity",
    "tokenize",
    "wrap",
    "write_html",
    "write_image",
]

_NAMES_OF_MODULE = {
    "agreement": "agreement_table",
    "definitions": "Comparison Definition compare_definitions",
    "evidence": "NullBand Specificity null_band power_curve rank_stability specificity",
    "executors": "process_map ray_map",
    "export": "Export export_ablated",
    "heads": "Head HeadScores",
    "interventions": "MeanAblation ResampleAblation ScalingContribution UndifferentiatedAttention "
    "ZeroAblation",
    "jailbreaks": "ROLE_PLAY lengthen wrap",
    "judges": "ExampleJudge Judge KeywordJudge",
    "metrics": "GeneralizedShips RefusalShift Ships",
    "model": "HookedModel load_model random_copy",
    "parts": "merge_rankings merge_scores rank_layers",
    "plots.agreement": "plot_agreement plot_published_heads",
    "plots.attention": "plot_attention_divergence plot_attention_maps plot_hidden_magnitudes",
    "plots.behaviour": "plot_refusal_under_ablation",
    "plots.evidence": "plot_power plot_specificity",
    "planning": "Plan plan",
    "plots.files": "write_html write_image",
    "plots.heads": "plot_head_heatmap plot_head_scatter",
    "probes.ablation": "score_heads score_layers",
    "probes.attention": "AttentionCapture AttentionMaps HiddenMagnitudes attention_maps "
    "capture_attention compare_captures hidden_magnitudes",
    "probes.behaviour": "Behaviour RefusalCurve measure_behaviour refusal_under_ablation",
    "probes.divergence": "AttentionDivergence attention_by_segment attention_divergence",
    "probes.utility": "Utility lm_eval_model measure_utility",
    "prompts": "TEMPLATES PromptSet TokenBatch load_prompts tokenize",
    "published": "published_heads",
    "ranking": "Ranking rank_safety_heads",
    "together": "score_heads_together",
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
