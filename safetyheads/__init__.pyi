"""Which names are public? The one list of them: type checkers read it, and so does the lazy import.

A new name is a line here and nothing else.
"""

from safetyheads.engine.execution import (
    Execution as Execution,
)
from safetyheads.engine.executors import (
    process_map as process_map,
    ray_map as ray_map,
)
from safetyheads.evidence.agreement import (
    agreement_table as agreement_table,
)
from safetyheads.evidence.carriers import (
    Carriers as Carriers,
    find_carriers as find_carriers,
)
from safetyheads.evidence.published import (
    published_heads as published_heads,
)
from safetyheads.evidence.gate import (
    Gate as Gate,
    gate_ranking as gate_ranking,
)
from safetyheads.evidence.specificity import (
    NullBand as NullBand,
    Specificity as Specificity,
    null_band as null_band,
    specificity as specificity,
)
from safetyheads.evidence.stability import (
    power_curve as power_curve,
    rank_stability as rank_stability,
)
from safetyheads.heads import (
    Audit as Audit,
    Head as Head,
    HeadScores as HeadScores,
    Race as Race,
)
from safetyheads.interventions.ablating import (
    AblateHead as AblateHead,
    AblateHeads as AblateHeads,
    mean_z as mean_z,
)
from safetyheads.interventions.ablations import (
    InterchangeAblation as InterchangeAblation,
    MeanAblation as MeanAblation,
    ResampleAblation as ResampleAblation,
    ScalingContribution as ScalingContribution,
    UndifferentiatedAttention as UndifferentiatedAttention,
    ZeroAblation as ZeroAblation,
)
from safetyheads.interventions.directions import (
    AblateDirection as AblateDirection,
    AddDirection as AddDirection,
)
from safetyheads.interventions.export import (
    Export as Export,
    export_ablated as export_ablated,
)
from safetyheads.interventions.layers import (
    BypassLayers as BypassLayers,
)
from safetyheads.interventions.orthogonalising import (
    export_orthogonalized as export_orthogonalized,
)
from safetyheads.interventions.paths import (
    Arc as Arc,
    FixedSteps as FixedSteps,
    StraightLine as StraightLine,
)
from safetyheads.interventions.synthetic import (
    SaeBaseline as SaeBaseline,
    SaeReconstruction as SaeReconstruction,
    SaeStructured as SaeStructured,
)
from safetyheads.interventions.targets import (
    AlongDirection as AlongDirection,
    NextPrompt as NextPrompt,
    RandomDirection as RandomDirection,
    TowardPrompts as TowardPrompts,
)
from safetyheads.interventions.writing import (
    save_model as save_model,
)
from safetyheads.judges.classifiers import (
    ClassifierJudge as ClassifierJudge,
    GuardJudge as GuardJudge,
)
from safetyheads.judges.keywords import (
    KeywordJudge as KeywordJudge,
)
from safetyheads.judges.serving import (
    ServerJudge as ServerJudge,
)
from safetyheads.judges.verdicts import (
    Judge as Judge,
)
from safetyheads.metrics import (
    GeneralizedShips as GeneralizedShips,
    RefusalShift as RefusalShift,
    Ships as Ships,
)
from safetyheads.models.hooked import (
    HookedModel as HookedModel,
)
from safetyheads.models.interpolating import (
    interpolate as interpolate,
)
from safetyheads.models.opening import (
    load_model as load_model,
    random_copy as random_copy,
)
from safetyheads.plots.agreement import (
    plot_agreement as plot_agreement,
    plot_published_heads as plot_published_heads,
)
from safetyheads.plots.attention import (
    plot_attention_maps as plot_attention_maps,
    plot_hidden_magnitudes as plot_hidden_magnitudes,
)
from safetyheads.plots.behaviour import (
    plot_refusal_under_ablation as plot_refusal_under_ablation,
)
from safetyheads.plots.directions import (
    plot_effects as plot_effects,
    plot_heads_along as plot_heads_along,
    plot_selection as plot_selection,
    plot_transfer as plot_transfer,
)
from safetyheads.plots.divergence import (
    plot_attention_divergence as plot_attention_divergence,
)
from safetyheads.plots.evidence import (
    plot_power as plot_power,
    plot_specificity as plot_specificity,
)
from safetyheads.plots.groups import (
    plot_group_curve as plot_group_curve,
)
from safetyheads.plots.heatmap import (
    plot_head_heatmap as plot_head_heatmap,
)
from safetyheads.plots.scatter import (
    plot_head_scatter as plot_head_scatter,
)
from safetyheads.plots.spectrum import (
    plot_component_cosines as plot_component_cosines,
    plot_planes as plot_planes,
    plot_spectrum as plot_spectrum,
)
from safetyheads.plots.slices import (
    plot_region_slices as plot_region_slices,
)
from safetyheads.plots.traces import (
    plot_detection as plot_detection,
)
from safetyheads.plots.walks import (
    plot_border as plot_border,
    plot_regions as plot_regions,
    plot_synthetic as plot_synthetic,
    plot_walks as plot_walks,
)
from safetyheads.plots.writing import (
    write_html as write_html,
    write_image as write_image,
)
from safetyheads.probes.attention.capture import (
    AttentionCapture as AttentionCapture,
    capture_attention as capture_attention,
)
from safetyheads.probes.attention.divergence import (
    AttentionDivergence as AttentionDivergence,
    attention_divergence as attention_divergence,
)
from safetyheads.probes.attention.grid import (
    Grid as Grid,
)
from safetyheads.probes.attention.hidden import (
    HiddenMagnitudes as HiddenMagnitudes,
    hidden_magnitudes as hidden_magnitudes,
)
from safetyheads.probes.attention.maps import (
    AttentionMaps as AttentionMaps,
    attention_maps as attention_maps,
    compare_captures as compare_captures,
)
from safetyheads.probes.attention.shares import (
    attention_by_segment as attention_by_segment,
)
from safetyheads.probes.backups import (
    Backups as Backups,
    find_backups as find_backups,
)
from safetyheads.probes.behaviour.answers import (
    Behaviour as Behaviour,
    measure_behaviour as measure_behaviour,
)
from safetyheads.probes.behaviour.controls import matched_heads as matched_heads
from safetyheads.probes.behaviour.curves import (
    RefusalCurve as RefusalCurve,
    refusal_under_ablation as refusal_under_ablation,
)
from safetyheads.probes.behaviour.generation import (
    Decoding as Decoding,
)
from safetyheads.probes.behaviour.panel import (
    capability as capability,
    judge_span as judge_span,
)
from safetyheads.probes.behaviour.utility import (
    Utility as Utility,
    lm_eval_model as lm_eval_model,
    measure_utility as measure_utility,
)
from safetyheads.probes.carrying import (
    find_carrying_groups as find_carrying_groups,
)
from safetyheads.probes.directions.direction import (
    Direction as Direction,
    refusal_direction as refusal_direction,
)
from safetyheads.probes.directions.heads import (
    HeadsAlong as HeadsAlong,
    heads_along as heads_along,
)
from safetyheads.probes.directions.nulls import (
    null_directions as null_directions,
)
from safetyheads.probes.directions.selection import (
    Filters as Filters,
    Outcome as Outcome,
    Selection as Selection,
    select_direction as select_direction,
)
from safetyheads.probes.directions.spectrum import (
    Resampling as Resampling,
    Spectrum as Spectrum,
    refusal_spectrum as refusal_spectrum,
)
from safetyheads.probes.directions.transfer import (
    Transfer as Transfer,
    subspace_overlap as subspace_overlap,
    transfer_matrix as transfer_matrix,
)
from safetyheads.probes.groups import (
    GroupSearch as GroupSearch,
    HeadGroup as HeadGroup,
    score_groups as score_groups,
    search_heads as search_heads,
)
from safetyheads.probes.interchange import (
    Interchange as Interchange,
    score_interchange as score_interchange,
)
from safetyheads.probes.single_heads import (
    score_heads as score_heads,
    score_heads_together as score_heads_together,
    score_layers as score_layers,
    screen_heads as screen_heads,
)
from safetyheads.probes.traces.capture import (
    Traces as Traces,
    capture_traces as capture_traces,
)
from safetyheads.probes.traces.detectors import (
    JailbreakDetector as JailbreakDetector,
    fit_detector as fit_detector,
    score_detectors as score_detectors,
)
from safetyheads.probes.walks.border import (
    RefusalBorder as RefusalBorder,
    refusal_border as refusal_border,
)
from safetyheads.probes.walks.readings import (
    FinalNorm as FinalNorm,
    NextToken as NextToken,
    Residual as Residual,
)
from safetyheads.probes.walks.regions import (
    RegionSlice as RegionSlice,
    StableRegions as StableRegions,
    slice_regions as slice_regions,
    stable_regions as stable_regions,
)
from safetyheads.probes.walks.sensitivity import (
    Sensitivity as Sensitivity,
    trace_sensitivity as trace_sensitivity,
)
from safetyheads.probes.walks.synthetic import (
    SyntheticComparison as SyntheticComparison,
    compare_activations as compare_activations,
)
from safetyheads.prompts.dressing import (
    ROLE_PLAY as ROLE_PLAY,
    lengthen as lengthen,
    wrap as wrap,
)
from safetyheads.prompts.loading import (
    load_prompts as load_prompts,
)
from safetyheads.prompts.sets import (
    PromptSet as PromptSet,
)
from safetyheads.prompts.tokens import (
    TEMPLATES as TEMPLATES,
    TokenBatch as TokenBatch,
    tokenize as tokenize,
)
from safetyheads.prompts.windows import (
    text_windows as text_windows,
)
from safetyheads.ranking.merging import (
    merge_rankings as merge_rankings,
    merge_scores as merge_scores,
    rank_layers as rank_layers,
)
from safetyheads.ranking.planning import (
    Plan as Plan,
    plan as plan,
)
from safetyheads.ranking.ranking import (
    Ranking as Ranking,
    rank as rank,
    rank_safety_heads as rank_safety_heads,
)
from safetyheads.ranking.study import (
    Study as Study,
)
from safetyheads.saes.autoencoder import (
    Sae as Sae,
    SparseAutoencoder as SparseAutoencoder,
)
from safetyheads.saes.loading import (
    load_sae as load_sae,
)
from safetyheads.saes.writing import (
    save_sae as save_sae,
)
from safetyheads.screening.audit import (
    Screened as Screened,
)
from safetyheads.screening.race import (
    Raced as Raced,
)
from safetyheads.validation.definitions import (
    Comparison as Comparison,
    Definition as Definition,
    compare_definitions as compare_definitions,
)
from safetyheads.validation.ground_truth import (
    check_methods as check_methods,
)
from safetyheads.validation.planted import (
    Planted as Planted,
    plant as plant,
)

__version__: str
