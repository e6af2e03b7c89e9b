"""Training: recipes, a loop that can be resumed at any step, evaluation, and the learning-rate range test."""

from whycam._lazy import lazy_names
from whycam.training.evaluation import Evaluation, evaluate_logits, evaluate_model, predict_logits
from whycam.training.history import EpochRecord, StepProgress, read_history
from whycam.training.holdout import hold_out
from whycam.training.lr_find import LrFindResult, lr_find, lr_range_test
from whycam.training.multi_seed import SeedsResult, Spread, train_seeds
from whycam.training.presets import RECIPES, find_recipe
from whycam.training.recipe import Recipe
from whycam.training.run_options import RunOptions
from whycam.training.train import TrainingResult, train

__getattr__ = lazy_names(
    __name__,
    moved={
        "Progress": "whycam.training:StepProgress",
        "evaluate": "whycam.training:evaluate_model",
        "measure": "whycam.training:evaluate_logits",
        "predict": "whycam.training:predict_logits",
    },
)

__all__ = [
    "RECIPES", "EpochRecord", "Evaluation", "LrFindResult", "Recipe", "RunOptions", "SeedsResult", "Spread",
    "StepProgress", "TrainingResult", "evaluate_logits", "evaluate_model", "find_recipe", "hold_out", "lr_find",
    "lr_range_test", "predict_logits", "read_history", "train", "train_seeds",
]  # fmt: skip
