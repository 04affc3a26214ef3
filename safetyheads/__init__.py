"""Which attention heads carry a chat model's safety? The names to import, loaded when first used.

>>> import safetyheads
>>> "rank_safety_heads" in dir(safetyheads)
True
"""

from typing import TYPE_CHECKING

__version__ = "0.2.0"

if TYPE_CHECKING:
    from safetyheads.engine.execution import Execution
    from safetyheads.engine.executors import process_map, ray_map
    from safetyheads.evidence.agreement import agreement_table
    from safetyheads.evidence.published import published_heads
    from safetyheads.evidence.specificity import NullBand, Specificity, null_band, specificity
    from safetyheads.evidence.stability import power_curve, rank_stability
    from safetyheads.heads import Audit, Head, HeadScores
    from safetyheads.interventions.ablating import AblateHead, AblateHeads, mean_z
    from safetyheads.interventions.ablations import (
        MeanAblation,
        ResampleAblation,
        ScalingContribution,
        UndifferentiatedAttention,
        ZeroAblation,
    )
    from safetyheads.interventions.export import Export, export_ablated
    from safetyheads.interventions.layers import BypassLayers
    from safetyheads.judges.examples import ExampleJudge
    from safetyheads.judges.keywords import KeywordJudge
    from safetyheads.judges.verdicts import Judge
    from safetyheads.metrics import GeneralizedShips, RefusalShift, Ships
    from safetyheads.models.hooked import HookedModel
    from safetyheads.models.opening import load_model, random_copy
    from safetyheads.plots.agreement import plot_agreement, plot_published_heads
    from safetyheads.plots.attention import plot_attention_maps, plot_hidden_magnitudes
    from safetyheads.plots.behaviour import plot_refusal_under_ablation
    from safetyheads.plots.divergence import plot_attention_divergence
    from safetyheads.plots.evidence import plot_power, plot_specificity
    from safetyheads.plots.groups import plot_group_curve
    from safetyheads.plots.heatmap import plot_head_heatmap
    from safetyheads.plots.scatter import plot_head_scatter
    from safetyheads.plots.traces import plot_detection
    from safetyheads.plots.writing import write_html, write_image
    from safetyheads.probes.attention.capture import AttentionCapture, capture_attention
    from safetyheads.probes.attention.divergence import AttentionDivergence, attention_divergence
    from safetyheads.probes.attention.grid import Grid
    from safetyheads.probes.attention.hidden import HiddenMagnitudes, hidden_magnitudes
    from safetyheads.probes.attention.maps import AttentionMaps, attention_maps, compare_captures
    from safetyheads.probes.attention.shares import attention_by_segment
    from safetyheads.probes.behaviour.answers import Behaviour, measure_behaviour
    from safetyheads.probes.behaviour.curves import RefusalCurve, refusal_under_ablation
    from safetyheads.probes.behaviour.generation import Decoding
    from safetyheads.probes.behaviour.utility import Utility, lm_eval_model, measure_utility
    from safetyheads.probes.groups import GroupSearch, HeadGroup, score_groups, search_heads
    from safetyheads.probes.single_heads import (
        score_heads,
        score_heads_together,
        score_layers,
        screen_heads,
    )
    from safetyheads.probes.traces.capture import Traces, capture_traces
    from safetyheads.probes.traces.detectors import (
        JailbreakDetector,
        fit_detector,
        score_detectors,
    )
    from safetyheads.prompts.dressing import ROLE_PLAY, lengthen, wrap
    from safetyheads.prompts.loading import load_prompts
    from safetyheads.prompts.sets import PromptSet
    from safetyheads.prompts.tokens import TEMPLATES, TokenBatch, tokenize
    from safetyheads.ranking.merging import merge_rankings, merge_scores, rank_layers
    from safetyheads.ranking.planning import Plan, plan
    from safetyheads.ranking.ranking import Ranking, rank, rank_safety_heads
    from safetyheads.ranking.study import Study
    from safetyheads.screening.screened import Screened
    from safetyheads.validation.definitions import (
        Comparison,
        Definition,
        compare_definitions,
    )
    from safetyheads.validation.ground_truth import check_methods
    from safetyheads.validation.planted import Planted, plant

__all__ = [
    "ROLE_PLAY",
    "TEMPLATES",
    "AblateHead",
    "AblateHeads",
    "AttentionCapture",
    "AttentionDivergence",
    "AttentionMaps",
    "Audit",
    "Behaviour",
    "BypassLayers",
    "Comparison",
    "Decoding",
    "Definition",
    "ExampleJudge",
    "Execution",
    "Export",
    "GeneralizedShips",
    "Grid",
    "GroupSearch",
    "Head",
    "HeadGroup",
    "HeadScores",
    "HiddenMagnitudes",
    "HookedModel",
    "JailbreakDetector",
    "Judge",
    "KeywordJudge",
    "MeanAblation",
    "NullBand",
    "Plan",
    "Planted",
    "PromptSet",
    "Ranking",
    "RefusalCurve",
    "RefusalShift",
    "ResampleAblation",
    "ScalingContribution",
    "Screened",
    "Ships",
    "Specificity",
    "Study",
    "TokenBatch",
    "Traces",
    "UndifferentiatedAttention",
    "Utility",
    "ZeroAblation",
    "__version__",
    "agreement_table",
    "attention_by_segment",
    "attention_divergence",
    "attention_maps",
    "capture_attention",
    "capture_traces",
    "check_methods",
    "compare_captures",
    "compare_definitions",
    "export_ablated",
    "fit_detector",
    "hidden_magnitudes",
    "lengthen",
    "lm_eval_model",
    "load_model",
    "load_prompts",
    "mean_z",
    "measure_behaviour",
    "measure_utility",
    "merge_rankings",
    "merge_scores",
    "null_band",
    "plan",
    "plant",
    "plot_agreement",
    "plot_attention_divergence",
    "plot_attention_maps",
    "plot_detection",
    "plot_group_curve",
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
    "rank",
    "rank_layers",
    "rank_safety_heads",
    "rank_stability",
    "ray_map",
    "refusal_under_ablation",
    "score_detectors",
    "score_groups",
    "score_heads",
    "score_heads_together",
    "score_layers",
    "screen_heads",
    "search_heads",
    "specificity",
    "tokenize",
    "wrap",
    "write_html",
    "write_image",
]

_NAMES_OF_MODULE = {
    "evidence.agreement": "agreement_table",
    "validation.definitions": "Comparison Definition compare_definitions",
    "evidence.specificity": "NullBand Specificity null_band specificity",
    "evidence.stability": "power_curve rank_stability",
    "engine.execution": "Execution",
    "engine.executors": "process_map ray_map",
    "interventions.export": "Export export_ablated",
    "validation.ground_truth": "check_methods",
    "heads": "Audit Head HeadScores",
    "interventions.ablating": "AblateHead AblateHeads mean_z",
    "interventions.ablations": "MeanAblation ResampleAblation ScalingContribution "
    "UndifferentiatedAttention ZeroAblation",
    "interventions.layers": "BypassLayers",
    "judges.examples": "ExampleJudge",
    "judges.keywords": "KeywordJudge",
    "judges.verdicts": "Judge",
    "metrics": "GeneralizedShips RefusalShift Ships",
    "models.hooked": "HookedModel",
    "models.opening": "load_model random_copy",
    "ranking.merging": "merge_rankings merge_scores rank_layers",
    "validation.planted": "Planted plant",
    "plots.agreement": "plot_agreement plot_published_heads",
    "plots.attention": "plot_attention_maps plot_hidden_magnitudes",
    "plots.divergence": "plot_attention_divergence",
    "plots.behaviour": "plot_refusal_under_ablation",
    "plots.evidence": "plot_power plot_specificity",
    "ranking.planning": "Plan plan",
    "plots.writing": "write_html write_image",
    "plots.groups": "plot_group_curve",
    "plots.heatmap": "plot_head_heatmap",
    "plots.scatter": "plot_head_scatter",
    "plots.traces": "plot_detection",
    "probes.single_heads": "score_heads score_heads_together score_layers screen_heads",
    "probes.attention.capture": "AttentionCapture capture_attention",
    "probes.attention.divergence": "AttentionDivergence attention_divergence",
    "probes.attention.grid": "Grid",
    "probes.attention.hidden": "HiddenMagnitudes hidden_magnitudes",
    "probes.attention.maps": "AttentionMaps attention_maps compare_captures",
    "probes.attention.shares": "attention_by_segment",
    "probes.behaviour.answers": "Behaviour measure_behaviour",
    "probes.behaviour.curves": "RefusalCurve refusal_under_ablation",
    "probes.behaviour.generation": "Decoding",
    "probes.groups": "GroupSearch HeadGroup score_groups search_heads",
    "probes.traces.capture": "Traces capture_traces",
    "probes.traces.detectors": "JailbreakDetector fit_detector score_detectors",
    "probes.behaviour.utility": "Utility lm_eval_model measure_utility",
    "prompts.dressing": "ROLE_PLAY lengthen wrap",
    "prompts.loading": "load_prompts",
    "prompts.sets": "PromptSet",
    "prompts.tokens": "TEMPLATES TokenBatch tokenize",
    "evidence.published": "published_heads",
    "ranking.ranking": "Ranking rank rank_safety_heads",
    "ranking.study": "Study",
    "screening.screened": "Screened",
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
