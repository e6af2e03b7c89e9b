"""Which explanation method to trust on a network; the public function is `whycam.compare`."""

from whycam.comparison.context import ComparisonContext
from whycam.comparison.measures import MEASURES, Measure, measure
from whycam.comparison.ranking import Comparison, Ranking, compare

__all__ = ["MEASURES", "Comparison", "ComparisonContext", "Measure", "Ranking", "compare", "measure"]
