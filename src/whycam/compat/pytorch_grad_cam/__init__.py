"""grad-cam 1.5.7's public names and numbers on this engine.

``from whycam.compat.pytorch_grad_cam import GradCAM`` in place of ``from pytorch_grad_cam import GradCAM``, or
`whycam.compat.alias` once, and existing code runs: the classes, what they return (float32 numpy (B, H, W), scaled
before and after the layers are averaged) and the subclassing hooks are the same, and so are the numbers, to 1e-5,
wherever grad-cam's own are deterministic and no defect. What differs, on purpose:

* The model is left as it was: mode, ``.grad``, hooks, modules, also after an exception. grad-cam switches it to eval
  mode for good, clears or fills gradients, and takes it apart for Ablation-CAM and guided backpropagation.
* A layer's activations are its own output, also where an in-place operation follows.
* Activations and gradients are paired by layer, not by position. A module that runs several times is explained at its
  last run. A layer that did not run, or that the score does not depend on, is an error.
* As many targets as images are needed; grad-cam returns zero maps for the images that have none.
* ``with`` hides no exception.
* Random numbers come from a ``seed``.
* TorchScript and exported programs are refused with a reason, compiled and DataParallel models are unwrapped.
* Half precision and autocast work; maps are reduced in float32. ViT grids other than 14×14 are found. Volumes work for
  every method except FullGrad and SESS.
* Nothing is printed and no progress bar drawn.

``docs/compat.md`` has the whole list. New code is better off with `whycam.explain`: signed maps at native resolution,
all layers, methods and targets from one pass.
"""

from whycam.compat.pytorch_grad_cam.ablation_cam import AblationCAM
from whycam.compat.pytorch_grad_cam.ablation_layer import AblationLayer, AblationLayerFasterRCNN, AblationLayerVit
from whycam.compat.pytorch_grad_cam.activations_and_gradients import ActivationsAndGradients
from whycam.compat.pytorch_grad_cam.base_cam import BaseCAM
from whycam.compat.pytorch_grad_cam.eigen_cam import EigenCAM
from whycam.compat.pytorch_grad_cam.eigen_grad_cam import EigenGradCAM
from whycam.compat.pytorch_grad_cam.feature_factorization.deep_feature_factorization import (
    DeepFeatureFactorization,
    run_dff_on_image,
)
from whycam.compat.pytorch_grad_cam.fem import FEM
from whycam.compat.pytorch_grad_cam.finer_cam import FinerCAM
from whycam.compat.pytorch_grad_cam.fullgrad_cam import FullGrad
from whycam.compat.pytorch_grad_cam.grad_cam import GradCAM
from whycam.compat.pytorch_grad_cam.grad_cam_elementwise import GradCAMElementWise
from whycam.compat.pytorch_grad_cam.grad_cam_plusplus import GradCAMPlusPlus
from whycam.compat.pytorch_grad_cam.guided_backprop import GuidedBackpropReLUModel
from whycam.compat.pytorch_grad_cam.hirescam import HiResCAM
from whycam.compat.pytorch_grad_cam.kpca_cam import KPCA_CAM
from whycam.compat.pytorch_grad_cam.layer_cam import LayerCAM
from whycam.compat.pytorch_grad_cam.metrics import arcc, cam_mult_image, perturbation_confidence, road
from whycam.compat.pytorch_grad_cam.random_cam import RandomCAM
from whycam.compat.pytorch_grad_cam.refine_cam import RefineCAM
from whycam.compat.pytorch_grad_cam.score_cam import ScoreCAM
from whycam.compat.pytorch_grad_cam.seg_eigen_cam import SegEigenCAM
from whycam.compat.pytorch_grad_cam.sess import SESS
from whycam.compat.pytorch_grad_cam.shapley_cam import ShapleyCAM
from whycam.compat.pytorch_grad_cam.utils import find_layers, image, model_targets, reshape_transforms
from whycam.compat.pytorch_grad_cam.xgrad_cam import XGradCAM

__all__ = [
    "FEM", "KPCA_CAM", "SESS", "AblationCAM", "AblationLayer", "AblationLayerFasterRCNN", "AblationLayerVit",
    "ActivationsAndGradients", "BaseCAM", "DeepFeatureFactorization", "EigenCAM", "EigenGradCAM", "FinerCAM",
    "FullGrad", "GradCAM", "GradCAMElementWise", "GradCAMPlusPlus", "GuidedBackpropReLUModel", "HiResCAM",
    "LayerCAM", "RandomCAM", "RefineCAM", "ScoreCAM", "SegEigenCAM", "ShapleyCAM", "XGradCAM", "arcc",
    "cam_mult_image", "find_layers", "image", "model_targets", "perturbation_confidence", "reshape_transforms",
    "road", "run_dff_on_image",
]  # fmt: skip
