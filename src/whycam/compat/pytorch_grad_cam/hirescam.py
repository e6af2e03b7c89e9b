"""Where grad-cam has `HiResCAM`."""

from whycam.compat.pytorch_grad_cam._methods import HiResCAM as HiResCAM
