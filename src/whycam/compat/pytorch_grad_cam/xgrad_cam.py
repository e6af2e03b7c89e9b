"""Where grad-cam has `XGradCAM`."""

from whycam.compat.pytorch_grad_cam._methods import XGradCAM as XGradCAM
