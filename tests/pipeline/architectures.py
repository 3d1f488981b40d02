"""Image classifiers of the package `transformers`, small, of random weights.

They are built from their configurations alone: nothing is fetched.
"""

import importlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

os.environ.setdefault("HF_HUB_OFFLINE", "1")

CLASSES = 5
TRANSFORMER = {
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1]}
WINDOWS = {
    "patch_size": 2,
    "embed_dim": 8,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One of them."""

    name: str
    prefix: str
    """Of its classes: `{prefix}Config` and `{prefix}ForImageClassification`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    pixels: int = 32
    has_size: bool = True
    """Whether the configuration is told the size of the image."""

    def build(self) -> nn.Module:
        """The module, whose every layer counts; the same one each time."""
        package = importlib.import_module("transformers")
        size = {"image_size": self.pixels} if self.has_size else {}
        config = getattr(package, f"{self.prefix}Config")
        config = config(num_labels=CLASSES, **size, **self.settings)
        torch.manual_seed(0)
        module: nn.Module = getattr(package, f"{self.prefix}ForImageClassification")(config)
        return enlivened(module, torch.randn(48, 3, self.pixels, self.pixels))


UNLIKE = (
    Architecture(
        name="EfficientNet",
        prefix="EfficientNet",
        settings={"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320},
    ),
    Architecture(name="ConvNeXt V2", prefix="ConvNextV2", settings={"num_stages": 2, **STAGES}),
    Architecture(name="Swin", prefix="Swin", settings=WINDOWS),
    Architecture(
        name="BEiT", prefix="Beit", settings={"use_relative_position_bias": True, **TRANSFORMER}
    ),
    Architecture(
        name="PVTv2",
        prefix="PvtV2",
        settings={
            "num_encoder_blocks": 2,
            "sr_ratios": [2, 1],
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "num_attention_heads": [1, 2],
            "mlp_ratios": [2, 2],
            **STAGES,
        },
    ),
    Architecture(
        name="BiT",
        prefix="Bit",
        settings={
            "embedding_size": 8,
            "hidden_sizes": [32, 64],
            "depths": [1, 1],
            "num_groups": 4,
        },
        has_size=False,
    ),
)
"""Those that a test exports, unlike one another; a benchmark exports the others too."""

MORE = (
    Architecture(
        name="ResNet", prefix="ResNet", settings={"embedding_size": 8, **STAGES}, has_size=False
    ),
    Architecture(
        name="RegNet",
        prefix="RegNet",
        settings={"embedding_size": 8, "groups_width": 4, **STAGES},
        has_size=False,
    ),
    Architecture(name="MobileNetV2", prefix="MobileNetV2", settings={"depth_multiplier": 0.35}),
    Architecture(name="ConvNeXt", prefix="ConvNext", settings={"num_stages": 2, **STAGES}),
    Architecture(name="ViT", prefix="ViT", settings=TRANSFORMER),
    Architecture(
        name="DINOv2",
        prefix="Dinov2",
        settings={key: TRANSFORMER[key] for key in TRANSFORMER if key != "intermediate_size"},
    ),
    Architecture(name="MobileNetV1", prefix="MobileNetV1", settings={"depth_multiplier": 0.25}),
    Architecture(name="DeiT", prefix="DeiT", settings=TRANSFORMER),
    Architecture(name="ViT-MSN", prefix="ViTMSN", settings=TRANSFORMER),
    Architecture(name="Data2Vec", prefix="Data2VecVision", settings=TRANSFORMER),
    Architecture(name="Swin V2", prefix="Swinv2", settings=WINDOWS),
    Architecture(
        name="PVT",
        prefix="Pvt",
        settings={
            "num_encoder_blocks": 2,
            "sequence_reduction_ratios": [2, 1],
            "patch_sizes": [4, 2],
            "strides": [4, 2],
            "num_attention_heads": [1, 2],
            "mlp_ratios": [2, 2],
            **STAGES,
        },
    ),
    Architecture(
        name="FocalNet",
        prefix="FocalNet",
        settings={"embed_dim": 8, "focal_levels": [2, 2], "focal_windows": [3, 3], **STAGES},
    ),
    Architecture(
        name="MobileViT",
        prefix="MobileViT",
        settings={
            "hidden_sizes": [16, 24, 32],
            "neck_hidden_sizes": [8, 8, 16, 16, 24, 32, 32],
        },
        pixels=64,
    ),
    Architecture(
        name="MobileViTV2", prefix="MobileViTV2", settings={"width_multiplier": 0.25}, pixels=64
    ),
    Architecture(
        name="LeViT",
        prefix="Levit",
        settings={
            "hidden_sizes": [16, 32, 48],
            "num_attention_heads": [2, 2, 2],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
        },
        pixels=64,
    ),
    Architecture(
        name="PoolFormer",
        prefix="PoolFormer",
        settings={"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]},
        pixels=64,
        has_size=False,
    ),
    Architecture(
        name="CvT",
        prefix="Cvt",
        settings={
            "embed_dim": [8, 16, 32],
            "num_heads": [1, 2, 2],
            "depth": [1, 2, 3],
        },
        pixels=64,
        has_size=False,
    ),
    Architecture(
        name="SegFormer",
        prefix="Segformer",
        settings={
            "hidden_sizes": [8, 8, 16, 16],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 1, 2, 2],
        },
        pixels=64,
        has_size=False,
    ),
    Architecture(
        name="SwiftFormer",
        prefix="SwiftFormer",
        settings={"embed_dims": [8, 16, 16, 24], "depths": [1, 1, 1, 1]},
        pixels=64,
    ),
    Architecture(name="HGNetV2", prefix="HGNetV2", pixels=64, has_size=False),
)


@torch.no_grad()
def enlivened(module: nn.Module, images: torch.Tensor) -> nn.Module:
    """The module with weights so wide that its answers depend on every layer.

    Those that an untrained one starts from are so small that many a network answers zero to any
    image, and a comparison would show nothing. `images` are what its batch norms get to know.
    """
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1 and "token" not in name and "embed" not in name.rpartition(".")[2]:
            parameter.normal_(std=math.sqrt(2 / parameter[0].numel()))
        elif name.endswith("bias"):
            parameter.normal_(std=0.1)
        else:
            parameter.uniform_(0.5, 1.5)
    norms = [one for one in module.modules() if isinstance(one, nn.BatchNorm2d | nn.BatchNorm1d)]
    for norm in norms:
        norm.momentum = None  # the plain mean of what it sees
        norm.reset_running_stats()
    if norms:
        module.train()(images)
    for norm in norms:
        if norm.running_var is not None:
            # A channel that hardly varies would be multiplied until its last rounding counts.
            norm.running_var.clamp_(min=float(norm.running_var.mean()))
    return module.eval()
