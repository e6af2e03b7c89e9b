"""Where grad-cam has `GradCAMPlusPlus`."""

from whycam.compat.pytorch_grad_cam._methods import GradCAMPlusPlus as GradCAMPlusPlus
