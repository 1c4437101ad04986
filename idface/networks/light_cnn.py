"""LightCNN-9 and -29 (Wu et al. 2018, *A Light CNN for Deep Face Representation with Noisy Labels*).

Attribute names are those of the authors' PyTorch weights, so that a published state dict fits as it is.
"""

from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

Layers = Literal[9, 29]

SIDE = 128
"""Of the grey picture that the networks see, in pixels."""
EMBEDDING = 256
"""Length of what the penultimate fully connected layer gives."""


class MaxFeatureMap(nn.Module):
    """A convolution or linear layer of twice as many outputs, and of each two the larger one (section III-A)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int | None = None) -> None:
        super().__init__()
        if kernel is None:
            self.filter: nn.Module = nn.Linear(in_channels, 2 * out_channels)
        else:
            self.filter = nn.Conv2d(in_channels, 2 * out_channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C', ...)."""
        result: Tensor = _LargerHalf.apply(self.filter(x))
        return result


class _LargerHalf(Function):
    """The larger of each two channels, half of all of them apart.

    torch.maximum would do, but its gradient looks for ties: going through LightCNN-9 and back takes 1.8 times as long
    on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=1)
        ctx.save_for_backward(first - second)
        return torch.maximum(first, second)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (difference,) = ctx.saved_tensors
        first = torch.ops.aten.threshold_backward(gradient, difference, 0)
        return torch.cat([first, gradient - first], dim=1)


class Group(nn.Module):
    """A 1x1 layer before a 3x3 one."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv_a = MaxFeatureMap(in_channels, in_channels, 1)
        self.conv = MaxFeatureMap(in_channels, out_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W)."""
        result: Tensor = self.conv(self.conv_a(x))
        return result


class ResidualPair(nn.Module):
    """Two 3x3 layers beside the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = MaxFeatureMap(channels, channels, 3)
        self.conv2 = MaxFeatureMap(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        result: Tensor = x + self.conv2(self.conv1(x))
        return result


class LightCNN9(nn.Module):
    """Nine layers."""

    stage_names = ("pool1", "pool2", "pool3", "pool4", "raw")

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            MaxFeatureMap(1, 48, 5),
            nn.MaxPool2d(2),
            Group(48, 96),
            nn.MaxPool2d(2),
            Group(96, 192),
            nn.MaxPool2d(2),
            Group(192, 128),
            Group(128, 128),
            nn.MaxPool2d(2),
        )
        self.fc1 = MaxFeatureMap(8 * 8 * 128, EMBEDDING)
        self.apply(_keep_scale)

    def stages(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Grey pictures (B, 1, 128, 128) in [0, 1] -> what each pooling layer gives, then "raw" (B, 256)."""
        names = iter(self.stage_names)
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.MaxPool2d):
                yield next(names), x
        yield next(names), self.fc1(x.flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        """Grey pictures (B, 1, 128, 128) in [0, 1] -> (B, 256)."""
        result: Tensor = self.fc1(self.features(x).flatten(1))
        return result


class LightCNN29(nn.Module):
    """Twenty-nine layers: pairs of them with a shortcut before each group."""

    stage_names = ("pool1", "pool2", "pool3", "pool4", "raw")

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = MaxFeatureMap(1, 48, 5)
        channels = (48, 96, 192, 128, 128)
        for number, (before, after, pairs) in enumerate(zip(channels, channels[1:], (1, 2, 3, 4), strict=False), 1):
            self.add_module(f"block{number}", nn.Sequential(*(ResidualPair(before) for _ in range(pairs))))
            self.add_module(f"group{number}", Group(before, after))
        self.pool = nn.MaxPool2d(2)
        self.fc = MaxFeatureMap(8 * 8 * 128, EMBEDDING)
        self.apply(_keep_scale)

    def stages(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Grey pictures (B, 1, 128, 128) in [0, 1] -> what each pooling layer gives, then "raw" (B, 256)."""
        x = self.pool(self.conv1(x))
        yield "pool1", x
        for number in range(1, 5):
            x = getattr(self, f"group{number}")(getattr(self, f"block{number}")(x))
            if number != 3:  # the third group and the fourth block see maps of one size
                x = self.pool(x)
                yield f"pool{min(number + 1, 4)}", x
        yield "raw", self.fc(x.flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        """Grey pictures (B, 1, 128, 128) in [0, 1] -> (B, 256)."""
        *_, (_, raw) = self.stages(x)
        return raw


def light_cnn(layers: Layers) -> LightCNN9 | LightCNN29:
    """The network of so many layers.

    Raises:
        ValueError: there is none of so many.
    """
    if layers not in (9, 29):
        raise ValueError(f"layers is {layers}; LightCNN has 9 or 29")
    return LightCNN9() if layers == 9 else LightCNN29()


def _keep_scale(module: nn.Module) -> None:
    """The larger of two equal normal variables has the mean square of one: weights of variance 1 / fan-in keep it."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class FaceNetwork(nn.Module):
    """A LightCNN and the layer that classifies what it sees, for training.

    Args:
        layers: 9 or 29.
        num_identities: people N.
        dropout: share of the embedding that the classifier does not see in a training step.
        cosine: whether a logit is the cosine of the embedding and a person's weights, as margin losses want it, instead
            of a linear layer.
    """

    def __init__(self, layers: Layers, num_identities: int, dropout: float, cosine: bool) -> None:
        super().__init__()
        self.backbone = light_cnn(layers)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(EMBEDDING, num_identities, bias=not cosine)
        self.cosine = cosine

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Grey pictures (B, 1, 128, 128) in [0, 1] -> embeddings (B, 256) and logits or cosines (B, N), float32."""
        embedding = self.backbone(x)
        seen = self.dropout(embedding)
        if self.cosine:
            with torch.autocast(x.device.type, enabled=False):  # near 1, bfloat16 has steps of 0.004
                cosines = F.linear(F.normalize(seen.float(), dim=1), F.normalize(self.head.weight.float(), dim=1))
            return embedding.float(), cosines
        return embedding.float(), self.head(seen).float()
