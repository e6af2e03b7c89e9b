"""Small detectors with random weights, for both forms of output that `whycam.cam.detections` accepts."""

from __future__ import annotations

import torch
from torch import nn


class ListOfDicts(nn.Module):
    """Returns for each image a mapping of boxes in pixels, labels and scores above a threshold, as in torchvision.

    Every position of the feature map proposes one box.
    """

    def __init__(self, classes=4, channels=6, threshold=0.25):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.down = nn.Conv2d(channels, channels, 3, padding=1, stride=4)
        self.classify = nn.Conv2d(channels, classes, 1)
        self.locate = nn.Conv2d(channels, 4, 1)
        self.threshold = threshold

    def forward(self, images):
        features = self.down(self.act(self.conv(images))).tanh()
        probabilities = self.classify(features).softmax(1).flatten(2).transpose(1, 2)
        height, width = images.shape[2:]
        rows, columns = features.shape[2:]
        y, x = torch.meshgrid(
            (torch.arange(rows) + 0.5) * height / rows, (torch.arange(columns) + 0.5) * width / columns, indexing="ij"
        )
        center = torch.stack([x, y], -1).flatten(0, 1).to(images)
        offset = self.locate(features).flatten(2).transpose(1, 2)
        center, half_size = center + offset[..., :2], 4 * offset[..., 2:].exp()
        boxes = torch.cat([center - half_size, center + half_size], -1)
        result = []
        for image_boxes, scores in zip(boxes, probabilities, strict=True):
            best, labels = scores.max(1)
            keep = (best > self.threshold).nonzero()[:, 0]
            result.append({"boxes": image_boxes[keep], "labels": labels[keep], "scores": best[keep]})
        return result


class Mirrored(nn.Module):
    """A detector that runs on the mirrored image and reports boxes in the coordinates of the original image."""

    def __init__(self, detector):
        super().__init__()
        self.detector = detector

    def forward(self, images):
        found = self.detector(images.flip(-1))
        for detections in found:
            left, top, right, bottom = detections["boxes"].unbind(1)
            detections["boxes"] = torch.stack([images.shape[-1] - right, top, images.shape[-1] - left, bottom], 1)
        return found


def detr():
    """DETR with a convolutional backbone, six queries and three classes."""
    import transformers

    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False, backbone_config=backbone, use_pretrained_backbone=False, backbone=None, num_queries=6,
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, num_labels=3,
    )  # fmt: skip
    return transformers.DetrForObjectDetection(config)


def yolos():
    """YOLOS: a transformer whose detection tokens come after the image's tokens."""
    import transformers

    config = transformers.YolosConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=[32, 48],
        patch_size=8, num_detection_tokens=5, num_labels=3,
    )  # fmt: skip
    return transformers.YolosForObjectDetection(config)
