"""Where grad-cam has `KPCA_CAM`."""

from whycam.compat.pytorch_grad_cam._methods import KPCA_CAM as KPCA_CAM
