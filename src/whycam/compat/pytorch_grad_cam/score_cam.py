"""Where grad-cam has `ScoreCAM`."""

from whycam.compat.pytorch_grad_cam._methods import ScoreCAM as ScoreCAM
