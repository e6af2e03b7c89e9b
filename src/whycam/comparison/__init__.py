"""Compare explanation methods on one network; the public function is `whycam.compare`."""

import whycam.comparison.builtin_metrics  # noqa: F401 (registers the metrics)
from whycam.comparison.context import ComparisonContext
from whycam.comparison.ranking import Comparison, Ranking
from whycam.comparison.registry import METRICS, Metric, metric
from whycam.comparison.run import compare

__all__ = ["METRICS", "Comparison", "ComparisonContext", "Metric", "Ranking", "compare", "metric"]
