"""How well the classifier does, and how far its explanations can be trusted."""

from whycam.metrics.agreement import pearson, spearman, ssim
from whycam.metrics.bootstrap import bootstrap_interval
from whycam.metrics.classification import Classification, score_classification, wilson_interval
from whycam.metrics.coherency import adcc, arcc, coherency
from whycam.metrics.comparison import Comparison, Standing, compare
from whycam.metrics.confidence import ConfidenceChange, confidence_change
from whycam.metrics.contest import Contest
from whycam.metrics.curves import Curve, deletion, insertion
from whycam.metrics.fills import background
from whycam.metrics.grid import GridPointing, grid_pointing
from whycam.metrics.impute import fill_in
from whycam.metrics.measures import MEASURES, Measure, measure
from whycam.metrics.mosaic import Mosaics, confident, mosaics
from whycam.metrics.pointing import cell_shares, energy_pointing, pointing_game
from whycam.metrics.randomise import destroyed, randomised
from whycam.metrics.road import Road, road
from whycam.metrics.sanity import SanityCheck, sanity_check
from whycam.metrics.shape import complexity, entropy, sparseness
from whycam.metrics.stability import Infidelity, infidelity, max_sensitivity

__all__ = [
    "MEASURES",
    "Classification",
    "Comparison",
    "ConfidenceChange",
    "Contest",
    "Curve",
    "GridPointing",
    "Infidelity",
    "Measure",
    "Mosaics",
    "Road",
    "SanityCheck",
    "Standing",
    "adcc",
    "arcc",
    "background",
    "bootstrap_interval",
    "cell_shares",
    "coherency",
    "compare",
    "complexity",
    "confidence_change",
    "confident",
    "deletion",
    "destroyed",
    "energy_pointing",
    "entropy",
    "fill_in",
    "grid_pointing",
    "infidelity",
    "insertion",
    "max_sensitivity",
    "measure",
    "mosaics",
    "pearson",
    "pointing_game",
    "randomised",
    "road",
    "sanity_check",
    "score_classification",
    "sparseness",
    "spearman",
    "ssim",
    "wilson_interval",
]
