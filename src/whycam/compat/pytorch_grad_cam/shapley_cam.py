"""Where grad-cam has `ShapleyCAM`."""

from whycam.compat.pytorch_grad_cam._methods import ShapleyCAM as ShapleyCAM
