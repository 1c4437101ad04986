"""A small network that says how old somebody looks, and of which sex."""

import torch
from torch import Tensor, nn

from idface.networks.vgg import BOTTOM, brought_to, stage_widths

YEARS = 101
"""Ages are 0 to 100; who is older counts as 100."""


class AgeSexNetwork(nn.Module):
    """Stages of two 3x3 convolutions, the first strided, and a linear head on the last 4x4 map.

    Age is a distribution over single years, of which the expected value is taken (DEX, Rothe et al. 2015, section 2.3).

    Args:
        input_size: side to which pictures are brought, in pixels, a power of two.
        width: channels of the first stage.
        dropout: share of the features that the head does not see in a training step.

    Raises:
        ValueError: a size or width that `stage_widths` refuses.
    """

    def __init__(self, input_size: int = 64, width: int = 32, dropout: float = 0.5) -> None:
        super().__init__()
        self.input_size = input_size
        layers: list[nn.Module] = []
        channels = 3
        for stage_width in stage_widths(input_size, width):
            for stride in (2, 1):
                convolution = nn.Conv2d(channels, stage_width, 3, stride=stride, padding=1, bias=False)
                layers += [convolution, nn.BatchNorm2d(stage_width), nn.ReLU(inplace=True)]
                channels = stage_width
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(dropout))
        self.head = nn.Linear(channels * BOTTOM**2, 1 + YEARS)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """What faces look like.

        Args:
            image: (B, 3, S, S) floating point in [-1, 1], in the common aligned frame.

        Returns:
            Logit (B,) of being male, and logits (B, 101) of the years from 0 to 100; both float32.
        """
        logits = self.head(self.layers(brought_to(image, self.input_size))).float()
        return logits[:, 0], logits[:, 1:]


def expected_age(logits: Tensor) -> Tensor:
    """Years (B,) of logits (B, 101): the mean of the distribution."""
    years = torch.arange(YEARS, dtype=logits.dtype, device=logits.device)
    return logits.softmax(1) @ years
