"""Where grad-cam has `EigenGradCAM`."""

from whycam.compat.pytorch_grad_cam._methods import EigenGradCAM as EigenGradCAM
