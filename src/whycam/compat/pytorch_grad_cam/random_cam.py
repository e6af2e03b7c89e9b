"""Where grad-cam has `RandomCAM`."""

from whycam.compat.pytorch_grad_cam._methods import RandomCAM as RandomCAM
