"""Networks of DCGAN (Radford et al., 2015)."""

import torch
from torch import Tensor, nn

from idface.networks.vgg import stage_widths


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
