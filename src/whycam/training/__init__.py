"""Training: recipes, a loop that resumes anywhere, evaluation, and the learning-rate range test."""

from whycam.training.evaluation import Evaluation, evaluate, measure, predict
from whycam.training.history import EpochRecord, Progress, read_history
from whycam.training.holdout import hold_out
from whycam.training.lr_find import LrFindResult, lr_find, lr_range_test
from whycam.training.multi_seed import SeedsResult, Spread, train_seeds
from whycam.training.presets import RECIPES, find_recipe
from whycam.training.recipe import Recipe
from whycam.training.train import TrainingResult, train

__all__ = [
    "RECIPES",
    "EpochRecord",
    "Evaluation",
    "LrFindResult",
    "Progress",
    "Recipe",
    "SeedsResult",
    "Spread",
    "TrainingResult",
    "evaluate",
    "find_recipe",
    "hold_out",
    "lr_find",
    "lr_range_test",
    "measure",
    "predict",
    "read_history",
    "train",
    "train_seeds",
]
