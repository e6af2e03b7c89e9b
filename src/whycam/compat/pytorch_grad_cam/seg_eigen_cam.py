"""Where grad-cam has `SegEigenCAM`."""

from whycam.compat.pytorch_grad_cam._methods import SegEigenCAM as SegEigenCAM
