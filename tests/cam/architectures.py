"""Small models of the transformers library with random weights."""

from __future__ import annotations

import pytest

transformers = pytest.importorskip("transformers")


def vit(**changes):
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=64, patch_size=8,
        num_labels=5, **changes,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


def dinov2():
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=2, image_size=56, patch_size=7,
        num_register_tokens=4, num_labels=5,
    )  # fmt: skip
    return transformers.Dinov2WithRegistersForImageClassification(config)


def swin():
    config = transformers.SwinConfig(
        image_size=64, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4, num_labels=5
    )
    return transformers.SwinForImageClassification(config)


def resnet():
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24], depths=[1, 1, 1], layer_type="basic", num_labels=5
    )
    return transformers.ResNetForImageClassification(config)


def convnext():
    config = transformers.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_labels=5, image_size=64)
    return transformers.ConvNextForImageClassification(config)


def segformer():
    config = transformers.SegformerConfig(
        hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=16,
        num_labels=5,
    )  # fmt: skip
    return transformers.SegformerForSemanticSegmentation(config)
