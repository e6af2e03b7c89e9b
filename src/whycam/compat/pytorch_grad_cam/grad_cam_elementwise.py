"""Where grad-cam has `GradCAMElementWise`."""

from whycam.compat.pytorch_grad_cam._methods import GradCAMElementWise as GradCAMElementWise
