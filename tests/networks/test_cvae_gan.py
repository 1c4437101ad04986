"""The networks of the conditional VAE-GAN: shapes, what the paper says of their structure, linear identities."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from idface.networks.cvae_gan import (
    ConditionalGenerator,
    Discriminator,
    Encoder,
    MultiScaleDiscriminator,
    Synthesizer,
    doublings,
)


def generator(image_size: int = 32) -> ConditionalGenerator:
    torch.manual_seed(0)
    return ConditionalGenerator(5, latent_dim=6, image_size=image_size, width=4, identity_dim=7)


@pytest.mark.parametrize("image_size", [32, 64, 128])
def test_sizes(image_size: int) -> None:
    image = torch.randn(2, 3, image_size, image_size)
    mean, log_variance = Encoder(6, image_size, width=4)(image)
    assert mean.shape == log_variance.shape == (2, 6)
    made = generator(image_size)(mean, torch.tensor([0, 4]))
    assert made.shape == image.shape
    assert made.abs().max() <= 1
    for views, scale in zip(MultiScaleDiscriminator(2, 5, image_size, width=4)(image), (1, 2), strict=True):
        assert views.values.shape == (2,)
        assert views.logits.shape == (2, 5)
        sides = [feature.shape[-1] for feature in views.features]
        assert sides == [max(1, side // scale) for side in (8, 4, 2)]


def test_at_the_papers_size_the_structure_is_the_papers() -> None:
    encoder, decoder, critic = Encoder(), ConditionalGenerator(10), Discriminator(10)
    assert len(encoder.blocks) == 4
    assert decoder.bottom[1:] == (2, 2)
    assert sum(isinstance(layer, nn.ConvTranspose2d) for layer in decoder.layers) == 6
    assert sum(isinstance(layer, nn.InstanceNorm2d) for layer in decoder.layers) == 5
    assert len(critic.layers) == 6
    assert not any(isinstance(module, nn.modules.batchnorm._NormBase) for module in critic.modules())
    own = [[tuple(p.shape) for p in d.layers.parameters()] for d in MultiScaleDiscriminator(2, 10).networks]
    assert own[0] == own[1]


@pytest.mark.parametrize("size", [0, 16, 48, 100])
def test_other_sizes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="use 32, 64, 128 or 256"):
        doublings(size)


def test_an_identity_is_linear_in_its_mixture() -> None:
    network = generator()
    weights = torch.tensor([[0.5, 0.25, 0.25, 0.0, 0.0]])
    labels = network.embed(torch.tensor([0, 1, 2]))
    torch.testing.assert_close(network.embed(weights), weights[:, :3] @ labels)
    corner = F.one_hot(torch.tensor([3]), 5).float()
    torch.testing.assert_close(network.embed(corner), network.embed(torch.tensor([3])))
    latent = torch.randn(1, 6)
    torch.testing.assert_close(network(latent, corner), network(latent, torch.tensor([3])))
    mixed = network.project(torch.cat([latent, network.embed(weights)], 1))
    apart = [network.project(torch.cat([latent, label[None]], 1)) for label in labels]
    torch.testing.assert_close(mixed, sum(w * part for w, part in zip(weights[0, :3], apart, strict=True)))


def test_both_kinds_of_faces_are_of_the_photos_people() -> None:
    torch.manual_seed(0)
    network = Synthesizer(generator(), Encoder(6, 32, width=4))
    image, identity, noise = torch.randn(3, 3, 32, 32), torch.tensor([1, 0, 4]), torch.randn(2, 3, 6)
    (encoded, drawn), posterior = network(image, identity, noise)
    assert posterior is not None
    mean, log_variance = posterior
    latent = mean + noise[0] * torch.exp(log_variance / 2)
    torch.testing.assert_close(encoded, network.generator(latent, identity))
    torch.testing.assert_close(drawn, network.generator(noise[1], identity))
    without = Synthesizer(network.generator, None)
    (alone,), nothing = without(image, identity, noise[1:])
    assert nothing is None
    torch.testing.assert_close(alone, drawn)
