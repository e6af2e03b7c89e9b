"""Where grad-cam has `EigenCAM`."""

from whycam.compat.pytorch_grad_cam._methods import EigenCAM as EigenCAM
