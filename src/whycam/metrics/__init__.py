"""How well the classifier does, and how far its explanations can be trusted."""

from whycam.metrics.classification import Classification, score_classification, wilson_interval

__all__ = ["Classification", "score_classification", "wilson_interval"]
