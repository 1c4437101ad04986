"""Networks of the conditional VAE-GAN for augmentation (*Conditional face synthesis*, sections 3.2 and 3.3)."""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BOTTOM = 2
"""Side of the map that the generator starts from, in pixels: six doublings make 128."""
SLOPE = 0.01
"""Of the discriminators' leaky ReLU (section 4)."""


def doublings(image_size: int) -> int:
    """How often a map of `BOTTOM` pixels is doubled to get the image.

    Raises:
        ValueError: `image_size` is no power of two of at least 32.
    """
    count = math.log2(image_size / BOTTOM) if image_size > 0 else 0.0
    if count < 4 or count != int(count):
        raise ValueError(
            f"image_size is {image_size}; these networks halve it down to {BOTTOM}: use 32, 64, 128 or 256"
        )
    return int(count)


class ResidualDown(nn.Module):
    """A residual block that halves the side (figure 3): two 3x3 convolutions beside an averaged 1x1 one.

    Instance norm follows each convolution of the trunk; the paper says "after each convolution layer". The shortcut has
    none, so that a map's overall level, which the norm takes away, still gets through.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.InstanceNorm2d(out_channels, affine=True),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1, bias=False),
            nn.InstanceNorm2d(out_channels, affine=True),
        )
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(in_channels, out_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H / 2, W / 2)."""
        return F.relu(self.trunk(x) + self.shortcut(x))


class Encoder(nn.Module):
    """E: a convolution, four residual blocks that halve the side, one linear layer to mean and log variance of P(z|x).

    Args:
        latent_dim: length L of z (256 in the paper).
        image_size: side of the input in pixels.
        width: channels of the first convolution.
    """

    def __init__(self, latent_dim: int = 256, image_size: int = 128, width: int = 64) -> None:
        super().__init__()
        widths = [width * min(2**stage, 8) for stage in range(5)]
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False), nn.InstanceNorm2d(width, affine=True), nn.ReLU(inplace=True)
        )
        self.blocks = nn.Sequential(*(ResidualDown(a, b) for a, b in pairwise(widths)))
        self.posterior = nn.Linear(widths[-1] * (image_size // 16) ** 2, 2 * latent_dim)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, S, S) in [-1, 1] to mean and log variance, (B, L) float32 each."""
        x = self.blocks(self.stem(image))  # (B, 8w, S / 16, S / 16)
        mean, log_variance = self.posterior(x.flatten(1)).float().chunk(2, dim=1)
        return mean, log_variance


class ConditionalGenerator(nn.Module):
    """G: z and an identity to a 2x2 map, then transposed convolutions that double the side, six for 128 pixels.

    The identity enters through a linear embedding: what a mixture of labels gives is the mixture of what they give.
    Instance norm follows every transposed convolution but the last.

    Args:
        num_identities: people N.
        latent_dim: length L of z.
        image_size: side of the result in pixels.
        width: channels of the last stage before the image.
        identity_dim: length of an identity's embedding.
    """

    def __init__(
        self,
        num_identities: int,
        latent_dim: int = 256,
        image_size: int = 128,
        width: int = 32,
        identity_dim: int = 256,
    ) -> None:
        super().__init__()
        steps = doublings(image_size)
        widths = [width * min(2**stage, 16) for stage in range(steps)][::-1]
        self.identity = nn.Linear(num_identities, identity_dim, bias=False)
        nn.init.normal_(self.identity.weight)  # as large as z, whose entries have a deviation of one as well
        self.bottom = (widths[0], BOTTOM, BOTTOM)
        self.project = nn.Linear(latent_dim + identity_dim, math.prod(self.bottom))
        layers: list[nn.Module] = [nn.ReLU(inplace=True)]
        for channels, next_channels in zip(widths, (*widths[1:], 3), strict=True):
            last = next_channels == 3
            layers.append(nn.ConvTranspose2d(channels, next_channels, 4, stride=2, padding=1, bias=last))
            if not last:
                layers += [nn.InstanceNorm2d(next_channels, affine=True), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Tanh())

    def embed(self, identity: Tensor) -> Tensor:
        """Identities as vectors (B, I): labels int64 (B,), or mixtures of them as weights (B, N), which are linear."""
        if identity.is_floating_point():
            embedded: Tensor = self.identity(identity)
            return embedded
        return F.embedding(identity, self.identity.weight.T)

    def forward(self, latent: Tensor, identity: Tensor) -> Tensor:
        """Latents (B, L) and identities, as `embed` takes them, to images (B, 3, S, S) in [-1, 1]."""
        x = self.project(torch.cat([latent, self.embed(identity)], dim=1)).view(-1, *self.bottom)
        image: Tensor = self.layers(x)
        return image


class Discriminator(nn.Module):
    """D^k: strided 4x4 convolutions, six for 128 pixels, with a critic's head and one that tells who it is.

    No norm: a gradient penalty is of each image by itself. The heads are linear. The critic's has no bias: the loss
    does not change when a constant is added to its output, so nothing would hold a bias.

    Args:
        num_identities: people N.
        image_size: side of the input at the finest scale in pixels; sets the number of convolutions, so that the
            discriminators of all scales have the same structure.
        scale: by how much this one's input is smaller.
        width: channels of the first convolution.
    """

    MATCHED = 3
    """Last convolutions whose features are matched (section 3.4)."""

    def __init__(self, num_identities: int, image_size: int = 128, scale: int = 1, width: int = 64) -> None:
        super().__init__()
        steps = doublings(image_size)
        widths = [3, *(width * min(2**stage, 8) for stage in range(steps))]
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in pairwise(widths))
        length = widths[-1] * max(1, BOTTOM // scale) ** 2
        self.source = nn.Linear(length, 1, bias=False)
        self.identity = nn.Linear(length, num_identities)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Images (B, 3, S / scale, S / scale) to the critic's values (B,), logits (B, N), float32, and features."""
        features: list[Tensor] = []
        for layer in self.layers:
            image = F.leaky_relu(layer(image), SLOPE)
            features.append(image)
        flat = image.flatten(1)
        return self.source(flat).float().squeeze(1), self.identity(flat).float(), features[-self.MATCHED :]


class Synthesizer(nn.Module):
    """E and G, which learn together: faces of given people, from a photo's latent and from the prior's.

    Args:
        generator: G.
        encoder: E; None for faces from the prior alone.
    """

    def __init__(self, generator: ConditionalGenerator, encoder: Encoder | None) -> None:
        super().__init__()
        self.generator = generator
        self.encoder = encoder

    def forward(
        self, image: Tensor, identity: Tensor, noise: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, Tensor] | None]:
        """Faces of the people of photos.

        Args:
            image: x, (B, 3, S, S) in [-1, 1].
            identity: c, as `ConditionalGenerator.embed` takes it.
            noise: normal, (kinds, B, L): of x_encode, where there is E; of x_random, where it is wanted.

        Returns:
            The faces (B, 3, S, S), in that order; mean and log variance of P(z|x), (B, L) each, where there is E.
        """
        latents, posterior = list(noise), None
        if self.encoder is not None:
            posterior = self.encoder(image)
            mean, log_variance = posterior
            latents[0] = mean + noise[0] * (0.5 * log_variance).exp()
        made = self.generator(torch.cat(latents), torch.cat([identity] * len(latents)))
        return made.chunk(len(latents)), posterior


class Views(NamedTuple):
    """What one discriminator makes of images."""

    values: Tensor
    """Of the critic, (B,) float32."""
    logits: Tensor
    """Of people, (B, N) float32."""
    features: list[Tensor]
    """Of the last convolutions, (B, C, H, W) each."""


class MultiScaleDiscriminator(nn.Module):
    """D^1, D^2, ...: discriminators of the same structure, each before images of half the side of the one before.

    Args:
        count: how many.
        num_identities, image_size, width: see `Discriminator`.
    """

    def __init__(self, count: int, num_identities: int, image_size: int = 128, width: int = 64) -> None:
        super().__init__()
        self.networks = nn.ModuleList(
            Discriminator(num_identities, image_size, 2**scale, width) for scale in range(count)
        )

    def forward(self, image: Tensor) -> list[Views]:
        """Images (B, 3, S, S) in [-1, 1] to what each discriminator makes of them."""
        return [Views(*network(shrunk(image, scale))) for scale, network in enumerate(self.networks)]

    def critics(self) -> list[Callable[[Tensor], Tensor]]:
        """For each discriminator a function from images (B, 3, S / scale, S / scale) to the critic's values (B,).

        They go past what was compiled, for a penalty differentiates twice, which compiled networks refuse.
        """
        return [partial(_values, network) for network in self.networks]


def shrunk(image: Tensor, scale: int) -> Tensor:
    """Images (B, C, S, S), halved `scale` times by averaging."""
    return F.avg_pool2d(image, 2**scale) if scale else image


def _values(network: nn.Module, image: Tensor) -> Tensor:
    values: Tensor = network.forward(image)[0]
    return values
