"""How well the classifier does, and how far its explanations can be trusted."""

from whycam.metrics.bootstrap import bootstrap_interval
from whycam.metrics.classification import Classification, score_classification, wilson_interval
from whycam.metrics.impute import fill_in
from whycam.metrics.road import Road, road

__all__ = [
    "Classification",
    "Road",
    "bootstrap_interval",
    "fill_in",
    "road",
    "score_classification",
    "wilson_interval",
]
