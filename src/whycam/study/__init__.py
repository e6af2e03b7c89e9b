"""The main job: find what a classifier gets wrong, explain it, keep the result in a study folder."""

from whycam.study.config import Config
from whycam.study.folder import Study
from whycam.study.predict import evaluate
from whycam.study.run import run_study

__all__ = ["Config", "Study", "evaluate", "run_study"]
