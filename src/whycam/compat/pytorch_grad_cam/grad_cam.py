"""Where grad-cam has `GradCAM`."""

from whycam.compat.pytorch_grad_cam._methods import GradCAM as GradCAM
