"""Metrics of classifiers and of explanation maps."""

from whycam._lazy import lazy_names
from whycam.metrics.classification import Classification, score_classification, wilson_interval
from whycam.metrics.faithfulness.baselines import background
from whycam.metrics.faithfulness.confidence_drop import ConfidenceChange, confidence_change
from whycam.metrics.faithfulness.imputation import noisy_linear_imputation
from whycam.metrics.faithfulness.infidelity import Infidelity, infidelity
from whycam.metrics.faithfulness.insertion_deletion import Curve, deletion, insertion
from whycam.metrics.faithfulness.road import Road, road
from whycam.metrics.localization.grid_pointing import GridPointing, grid_pointing
from whycam.metrics.localization.mosaic import Mosaics, confident, mosaics
from whycam.metrics.localization.pointing_game import cell_shares, energy_pointing, pointing_game
from whycam.metrics.map_complexity import complexity, entropy, sparseness
from whycam.metrics.map_similarity import pearson, spearman, ssim
from whycam.metrics.randomization.reinitialize import reinitialized, reinitialized_by_part
from whycam.metrics.randomization.sanity_check import SanityCheck, sanity_check
from whycam.metrics.robustness.coherency import adcc, arcc, coherency
from whycam.metrics.robustness.sensitivity import max_sensitivity
from whycam.metrics.statistics import bootstrap_interval

__getattr__ = lazy_names(
    __name__,
    moved={
        "MEASURES": "whycam.comparison:METRICS",
        "Comparison": "whycam.comparison:Comparison",
        "Contest": "whycam.comparison:ComparisonContext",
        "Measure": "whycam.comparison:Metric",
        "Standing": "whycam.comparison:Ranking",
        "compare": "whycam:compare",
        "destroyed": "whycam.metrics:reinitialized",
        "fill_in": "whycam.metrics:noisy_linear_imputation",
        "measure": "whycam.comparison:metric",
        "randomised": "whycam.metrics:reinitialized_by_part",
    },
)

__all__ = [
    "Classification", "ConfidenceChange", "Curve", "GridPointing", "Infidelity", "Mosaics", "Road", "SanityCheck",
    "adcc", "arcc", "background", "bootstrap_interval", "cell_shares", "coherency", "complexity",
    "confidence_change", "confident", "deletion", "energy_pointing", "entropy", "grid_pointing", "infidelity",
    "insertion", "max_sensitivity", "mosaics", "noisy_linear_imputation", "pearson", "pointing_game",
    "reinitialized", "reinitialized_by_part", "road", "sanity_check", "score_classification", "sparseness",
    "spearman", "ssim", "wilson_interval",
]  # fmt: skip
