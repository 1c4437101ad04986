"""Networks of DCGAN (Radford et al., 2015)."""

import math

import torch
from torch import Tensor, nn

from idface.networks.vgg import BOTTOM, stage_widths


class DCGANGenerator(nn.Module):
    """A projection to 4x4, then 4x4 transposed convolutions that double the side; batch norm but on the last.

    Args:
        latent_dim: length of the latent vector (200 in Li & Luo, 100 in DCGAN).
        image_size: side of the result in pixels, a power of two.
        width: channels of the last stage before the image (64 in DCGAN).
    """

    def __init__(self, latent_dim: int = 200, image_size: int = 64, width: int = 64) -> None:
        super().__init__()
        widths = stage_widths(image_size, width)[::-1]
        self.latent_dim = latent_dim
        self.bottom = (widths[0], BOTTOM, BOTTOM)
        self.project = nn.Linear(latent_dim, math.prod(self.bottom), bias=False)  # as a convolution of a 1x1 map
        layers: list[nn.Module] = []
        for channels, next_channels in zip(widths, (*widths[1:], 3), strict=True):
            layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
            last = next_channels == 3
            layers.append(nn.ConvTranspose2d(channels, next_channels, 4, stride=2, padding=1, bias=last))
        self.layers = nn.Sequential(*layers, nn.Tanh())
        self.apply(dcgan_init)

    def forward(self, latent: Tensor) -> Tensor:
        """Latents (B, L) to images (B, 3, S, S) in [-1, 1]."""
        x = self.project(latent).view(-1, *self.bottom)  # (B, 8w, 4, 4)
        image: Tensor = self.layers(x.contiguous(memory_format=torch.channels_last))
        return image


class DCGANDiscriminator(nn.Module):
    """Strided 4x4 convolutions down to 4x4, then one fully connected layer; batch norm but on the first.

    Args:
        image_size: side of the input in pixels, a power of two.
        width: channels of the first stage (64 in DCGAN).
    """

    def __init__(self, image_size: int = 128, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for stage, stage_width in enumerate(stage_widths(image_size, width)):
            layers.append(nn.Conv2d(channels, stage_width, 4, stride=2, padding=1, bias=stage == 0))
            if stage > 0:
                layers.append(nn.BatchNorm2d(stage_width))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
            channels = stage_width
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(channels * 4 * 4, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, S, S) in [-1, 1] to the FC layer's input f_D (B, F) and logits (B,), float32."""
        features = torch.flatten(self.layers(image), 1)  # (B, 8w * 4 * 4)
        return features, self.head(features).float().squeeze(1)


def dcgan_init(module: nn.Module) -> None:
    """DCGAN's start, for `network.apply`: N(0, 0.02) weights, N(1, 0.02) scales of batch norm."""
    if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, std=0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, mean=1.0, std=0.02)
        nn.init.zeros_(module.bias)
