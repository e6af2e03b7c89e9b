"""Where grad-cam has `FEM`."""

from whycam.compat.pytorch_grad_cam._methods import FEM as FEM
