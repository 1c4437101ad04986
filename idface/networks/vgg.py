"""The VGG encoder of Bao et al.'s networks I, C and A, and the inverse VGG of their generator."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BOTTOM = 4
"""Side of the smallest feature map, in pixels."""


def stage_widths(image_size: int, width: int) -> list[int]:
    """Channels of each stage from the image down to `BOTTOM` pixels: width x 1, 2, 4, 8, 8 ... as in VGG.

    Args:
        image_size: side of the image in pixels, a power of two of at least 8.
        width: channels of the first stage; VGG has 64.

    Raises:
        ValueError: for any other `image_size`, or a width below 1.
    """
    stages = math.log2(image_size / BOTTOM) if image_size > 0 else 0.0
    if stages < 1 or stages != int(stages):
        raise ValueError(
            f"image_size is {image_size}; these networks halve it down to 4: use 8, 16, 32, 64, 128 or 256"
        )
    if width < 1:
        raise ValueError(f"width is {width}; it counts channels and must be at least 1")
    return [width * min(2**stage, 8) for stage in range(int(stages))]


def brought_to(image: Tensor, side: int) -> Tensor:
    """Square pictures (B, 3, S, S) at another side, (B, 3, side, side), float32; as they are where it is theirs."""
    if image.shape[-1] == side:
        return image
    return F.interpolate(image.float(), (side, side), mode="bilinear", antialias=image.shape[-1] > side)


def conv_block(in_channels: int, out_channels: int) -> list[nn.Module]:
    """3x3 convolution, batch norm, ReLU: the norm follows every (de)convolution, as the paper says."""
    return [
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    ]


class VGGEncoder(nn.Module):
    """Stages of 3x3 convolutions, each closed by 2x2 max pooling: networks I, C and A of Bao et al. up to their heads.

    `out_channels` is the length of what comes out of the last pooling layer.

    Args:
        image_size: side of the input in pixels, a power of two.
        width: channels of the first stage (64 in VGG).
        convolutions: convolutions a stage (VGG-16 has 2, 2, 3, 3, 3; one number serves all stages).
        pool: whether a global average is the last pooling layer. Who somebody is does not depend on where in the
            picture they are, so I and C want it; pose and light do, so A takes the 4x4 map as it is.
    """

    def __init__(self, image_size: int, width: int, convolutions: int, pool: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for stage_width in stage_widths(image_size, width):
            for _ in range(convolutions):
                layers += conv_block(channels, stage_width)
                channels = stage_width
            layers.append(nn.MaxPool2d(2))
        if pool:
            layers.append(nn.AdaptiveAvgPool2d(1))
        self.layers = nn.Sequential(*layers, nn.Flatten())
        self.out_channels = channels if pool else channels * BOTTOM**2

    def forward(self, image: Tensor) -> Tensor:
        """Images (B, 3, S, S) in [-1, 1] to features (B, out_channels)."""
        features: Tensor = self.layers(image)
        return features


class FaceClassifier(nn.Module):
    """Features and identity logits: networks I and C of Bao et al., which share these weights.

    One linear layer follows the last pooling layer, so "the last pooling layer's output" (f_I) and "the input of the
    last FC layer" (f_C) are one vector. It is never the logits: those know only the people of the training set.

    Args:
        backbone: network from images (B, 3, S, S) to features (B, F).
        feature_dim: F.
        num_identities: people in the training set.
    """

    def __init__(self, backbone: nn.Module, feature_dim: int, num_identities: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.feature_dim = feature_dim
        self.head = nn.Linear(feature_dim, num_identities)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, S, S) in [-1, 1] to features (B, F) and logits (B, num_identities)."""
        features = self.backbone(image)
        return features, self.head(features)


class AttributeEncoder(nn.Module):
    """Network A of Bao et al.: the posterior N(mu, exp(eps)) of an attribute vector.

    Args:
        image_size: side of the input in pixels, a power of two.
        width: channels of the first stage.
        convolutions: convolutions a stage.
        attribute_dim: J, length of the attribute vector.
    """

    def __init__(self, image_size: int, width: int, convolutions: int, attribute_dim: int) -> None:
        super().__init__()
        self.backbone = VGGEncoder(image_size, width, convolutions, pool=False)
        self.posterior = nn.Linear(self.backbone.out_channels, 2 * attribute_dim)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, S, S) in [-1, 1] to mean and log variance, float32 (B, J) each."""
        mean, log_variance = self.posterior(self.backbone(image)).float().chunk(2, dim=1)
        return mean, log_variance


class InverseVGG(nn.Module):
    """Generator of Bao et al.: VGG turned round, upsampling for pooling and deconvolution for convolution.

    A deconvolution with stride 1 is a convolution with its kernel turned, so plain convolutions, which run faster,
    stand for them.

    Args:
        input_dim: length of `[f_I, f_A]`.
        image_size: side of the result in pixels, a power of two.
        width: channels of the last stage, before the image.
        convolutions: convolutions a stage.
        grey: whether the pictures are grey: one channel is made, and repeated.
    """

    def __init__(self, input_dim: int, image_size: int, width: int, convolutions: int, grey: bool = False) -> None:
        super().__init__()
        widths = stage_widths(image_size, width)[::-1]
        self.bottom = (widths[0], BOTTOM, BOTTOM)
        self.project = nn.Sequential(
            nn.Linear(input_dim, math.prod(self.bottom), bias=False),
            nn.BatchNorm1d(math.prod(self.bottom)),
            nn.ReLU(inplace=True),
        )
        layers: list[nn.Module] = []
        channels = widths[0]
        for stage_width in widths:
            layers.append(nn.Upsample(scale_factor=2, mode="bilinear"))  # nearest leaves a grid in skin
            for _ in range(convolutions):
                layers += conv_block(channels, stage_width)
                channels = stage_width
        layers += [nn.Conv2d(channels, 1 if grey else 3, 3, padding=1), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, identity: Tensor, attributes: Tensor) -> Tensor:
        """f_I (B, I) and f_A (B, J) to images (B, 3, S, S) in [-1, 1]."""
        x = self.project(torch.cat([identity, attributes], dim=1)).view(-1, *self.bottom)  # (B, 8w, 4, 4)
        image: Tensor = self.layers(x)
        return image.expand(-1, 3, -1, -1)
