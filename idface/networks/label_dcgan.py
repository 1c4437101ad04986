"""Networks of Sanche, *Generating Faces using GANs* (section 3, figure 1), and of what its future work asks for."""

import torch
from torch import Tensor, nn

from idface.networks.vgg import BOTTOM, stage_widths

STAGES = 3
"""Halvings of D and doublings of G: 64 pixels are 8 at the bottom."""


class LabelCoding(nn.Module):
    """Sex and age as numbers in [-1, 1], one an input of both networks.

    Args:
        youngest: years that are -1.
        oldest: years that are 1.
        age_bins: None for the paper's one number an age; or into how many ranges of equal width ages are put, each
            with an input of its own (section 7, "simplify the age parameter"): 1 in the range, -1 in the others.

    Raises:
        ValueError: the ages are in no order, or the bins fewer than two.
    """

    def __init__(self, youngest: float = 10.0, oldest: float = 100.0, age_bins: int | None = None) -> None:
        super().__init__()
        if not youngest < oldest:
            raise ValueError(f"youngest is {youngest} and oldest is {oldest}, expected an age and a greater one")
        if age_bins is not None and age_bins < 2:
            raise ValueError(f"age_bins is {age_bins}, expected 2 or more, or null for ages as one number")
        self.youngest = youngest
        self.oldest = oldest
        self.age_bins = age_bins

    @property
    def length(self) -> int:
        """Numbers of a label."""
        return 1 + (self.age_bins or 1)

    def known(self, sex: Tensor, age: Tensor) -> Tensor:
        """Bool (B,): which labels are ones that the networks are taught."""
        return (sex.abs() == 1) & (age >= self.youngest) & (age <= self.oldest)  # NaN is neither

    def forward(self, sex: Tensor, age: Tensor) -> Tensor:
        """Labels (B, length), float32.

        Args:
            sex: float (B,), -1 female, 1 male, or between.
            age: float (B,), years; beyond the youngest and the oldest it counts as these.
        """
        share = ((age - self.youngest) / (self.oldest - self.youngest)).clamp(0, 1)
        if self.age_bins is None:
            return torch.stack([sex, 2 * share - 1], 1).float()
        place = (share * self.age_bins).long().clamp(max=self.age_bins - 1)
        ages = nn.functional.one_hot(place, self.age_bins) * 2 - 1
        return torch.cat([sex[:, None].float(), ages.float()], 1)


class LabelGenerator(nn.Module):
    """G: noise and labels through two FC layers, then three times upsampling and a 3x3 convolution (4w to 2w, w, 3).

    Args:
        latent_dim: length of the noise (100).
        label_dim: length of a label (2).
        image_size: side of the result in pixels, a multiple of 8; the paper's is 64.
        width: channels of the last stage before the image (16).
        hidden: neurons of the first FC layer; as many as in D.
        batch_norm: whether every layer but the last is followed by batch norm; without it faces came out all alike.

    Raises:
        ValueError: `image_size` is no multiple of 8, or a length is below 1.
    """

    def __init__(
        self,
        latent_dim: int = 100,
        label_dim: int = 2,
        image_size: int = 64,
        width: int = 16,
        hidden: int = 5000,
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        side = _bottom(image_size)
        _check_lengths(latent_dim=latent_dim, label_dim=label_dim, width=width, hidden=hidden)
        self.bottom = (4 * width, side, side)
        bias = not batch_norm

        def normed(norm: type[nn.Module], channels: int) -> list[nn.Module]:
            return [*([norm(channels)] if batch_norm else []), nn.ReLU(inplace=True)]

        self.connected = nn.Sequential(
            nn.Linear(latent_dim + label_dim, hidden, bias=bias),
            *normed(nn.BatchNorm1d, hidden),
            # Each neuron normed by itself, before it has a place: normed over all places of a channel, what is the same
            # in every face takes up the variance, noise loses its say, and faces come out all alike.
            nn.Linear(hidden, 4 * width * side * side, bias=bias),
            *normed(nn.BatchNorm1d, 4 * width * side * side),
        )
        layers: list[nn.Module] = []
        for channels, next_channels in ((4 * width, 2 * width), (2 * width, width)):
            layers += [
                nn.Upsample(scale_factor=2),  # each pixel becomes four
                nn.Conv2d(channels, next_channels, 3, padding=1, bias=bias),
                *normed(nn.BatchNorm2d, next_channels),
            ]
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, 3, 3, padding=1), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, latent: Tensor, label: Tensor) -> Tensor:
        """Latents (B, L) and labels (B, K) to images (B, 3, S, S) in [-1, 1]."""
        x = self.connected(torch.cat([latent, label.to(latent.dtype)], 1)).view(-1, *self.bottom)  # (B, 4w, S/8, S/8)
        image: Tensor = self.layers(x.contiguous(memory_format=torch.channels_last))
        return image


class LabelDiscriminator(nn.Module):
    """D: the image and a constant plane a label, three 3x3 convolutions with ReLU and 2x2 max pooling, two FC layers.

    Args:
        label_dim: length of a label (2).
        image_size: side of the images in pixels, a multiple of 8; the paper's is 64.
        width: channels of the first convolution (16), doubled by each other one.
        hidden: neurons of the first FC layer (5000).

    Raises:
        ValueError: `image_size` is no multiple of 8, or a length is below 1.
    """

    def __init__(self, label_dim: int = 2, image_size: int = 64, width: int = 16, hidden: int = 5000) -> None:
        super().__init__()
        side = _bottom(image_size)
        _check_lengths(label_dim=label_dim, width=width, hidden=hidden)
        layers: list[nn.Module] = []
        channels = 3 + label_dim
        for stage in range(STAGES):
            next_channels = width * 2**stage
            layers += [nn.Conv2d(channels, next_channels, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
            channels = next_channels
        self.layers = nn.Sequential(*layers)
        self.connected = nn.Sequential(
            nn.Linear(channels * side * side, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, 1)
        )

    def forward(self, image: Tensor, label: Tensor) -> Tensor:
        """Images (B, 3, S, S) in [-1, 1] and labels (B, K) to logits (B,), float32; high is real, and of this label."""
        x = self.layers(with_planes(image, label))  # (B, 4w, S/8, S/8)
        logits: Tensor = self.connected(torch.flatten(x, 1)).float().squeeze(1)
        return logits


class LatentEncoder(nn.Module):
    """From a face to the noise that G makes it of (section 7): strided 3x3 convolutions down to 4x4, one FC layer.

    The label is given beside the image, as D is given it: what it says need not be in the noise.

    Args:
        latent_dim: length of the noise.
        label_dim: length of a label.
        image_size: side of the images in pixels, a power of two.
        width: channels of the first stage.
    """

    def __init__(self, latent_dim: int = 100, label_dim: int = 2, image_size: int = 64, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3 + label_dim
        for stage_width in stage_widths(image_size, width):
            convolution = nn.Conv2d(channels, stage_width, 3, stride=2, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(stage_width), nn.ReLU(inplace=True)]
            channels = stage_width
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * BOTTOM**2, latent_dim), nn.Tanh())

    def forward(self, image: Tensor, label: Tensor) -> Tensor:
        """Images (B, 3, S, S) in [-1, 1] and labels (B, K) to latents (B, L) in (-1, 1), the prior's cube; float32."""
        latent: Tensor = self.layers(with_planes(image, label)).float()
        return latent


def with_planes(image: Tensor, label: Tensor) -> Tensor:
    """Images (B, 3, S, S) and labels (B, K) as (B, 3 + K, S, S): a constant plane a number."""
    planes = label.to(image.dtype)[:, :, None, None].expand(-1, -1, *image.shape[2:])
    return torch.cat([image, planes], 1).contiguous(memory_format=torch.channels_last)


def _bottom(image_size: int) -> int:
    if image_size < 2**STAGES or image_size % 2**STAGES:
        raise ValueError(f"image_size is {image_size}; these networks halve it {STAGES} times: use a multiple of 8")
    return image_size // 2**STAGES


def _check_lengths(**lengths: int) -> None:
    for name, value in lengths.items():
        if value < 1:
            raise ValueError(f"{name} is {value}, expected 1 or more")
