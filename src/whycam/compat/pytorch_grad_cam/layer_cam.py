"""Where grad-cam has `LayerCAM`."""

from whycam.compat.pytorch_grad_cam._methods import LayerCAM as LayerCAM
