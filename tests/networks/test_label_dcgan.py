"""Networks of the label-conditioned GAN: the paper's sizes, labels as numbers, bad arguments."""

import math

import pytest
import torch

from idface.networks.label_dcgan import LabelCoding, LabelDiscriminator, LabelGenerator, LatentEncoder, with_planes


def test_the_papers_sizes() -> None:
    with torch.device("meta"):
        generator, discriminator = LabelGenerator(), LabelDiscriminator()
    shapes = {name: tuple(value.shape) for name, value in discriminator.named_parameters() if value.ndim > 1}
    assert list(shapes.values()) == [(16, 5, 3, 3), (32, 16, 3, 3), (64, 32, 3, 3), (5000, 64 * 8 * 8), (1, 5000)]
    shapes = {name: tuple(value.shape) for name, value in generator.named_parameters() if value.ndim > 1}
    assert list(shapes.values()) == [(5000, 102), (64 * 8 * 8, 5000), (32, 64, 3, 3), (16, 32, 3, 3), (3, 16, 3, 3)]
    norms = [type(module).__name__ for module in generator.modules() if "Norm" in type(module).__name__]
    assert norms == ["BatchNorm1d"] * 2 + ["BatchNorm2d"] * 2  # not on the output
    assert not any("Norm" in type(module).__name__ for module in discriminator.modules())


@pytest.mark.parametrize("batch_norm", [True, False])
def test_shapes_and_ranges(batch_norm: bool) -> None:
    generator = LabelGenerator(6, 2, 24, 4, 10, batch_norm)
    image = generator(torch.rand(5, 6), torch.rand(5, 2))
    assert image.shape == (5, 3, 24, 24)
    assert image.abs().max() <= 1
    assert any("Norm" in type(module).__name__ for module in generator.modules()) == batch_norm
    assert LabelDiscriminator(2, 24, 4, 10)(image, torch.rand(5, 2)).shape == (5,)
    assert LatentEncoder(6, 2, 16, 4)(torch.zeros(5, 3, 16, 16), torch.rand(5, 2)).shape == (5, 6)


def test_what_is_the_same_in_all_faces_does_not_drown_the_noise() -> None:
    """Every neuron under the convolutions varies with the noise, however large its mean is."""
    torch.manual_seed(0)
    generator = LabelGenerator(width=4, hidden=50)
    second = generator.connected[3]
    assert isinstance(second, torch.nn.Linear)
    second.weight.data += 1.0  # all that all faces share
    below = generator.connected[:-1](torch.cat([torch.rand(64, 100) * 2 - 1, torch.ones(64, 2)], 1))  # before the ReLU
    assert below.std(0, correction=0).sub(1).abs().max() < 0.01


def test_labels_are_planes_of_the_image() -> None:
    image, label = torch.rand(2, 3, 8, 8), torch.tensor([[1.0, -0.5], [-1.0, 0.25]])
    planes = with_planes(image, label)
    assert planes.shape == (2, 5, 8, 8)
    torch.testing.assert_close(planes[:, :3], image)
    assert (planes[1, 4] == 0.25).all()


def test_ages_10_to_100_are_minus_1_to_1() -> None:
    coding = LabelCoding()
    sex, age = torch.tensor([-1.0, 1.0, 1.0, -1.0]), torch.tensor([10.0, 100.0, 55.0, 120.0])
    expected = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [1.0, 0.0], [-1.0, 1.0]])
    torch.testing.assert_close(coding(sex, age), expected)
    assert coding.known(sex, age).tolist() == [True, True, True, False]
    unknown = torch.tensor([math.nan, 1.0, 0.0])
    assert coding.known(unknown, torch.tensor([50.0, math.nan, 50.0])).tolist() == [False] * 3


def test_binned_ages_have_an_input_each() -> None:
    coding = LabelCoding(age_bins=3)
    label = coding(torch.ones(4), torch.tensor([10.0, 39.9, 40.0, 100.0]))
    assert label.shape == (4, coding.length) == (4, 4)
    assert label[:, 1:].tolist() == [[1, -1, -1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="image_size is 20"):
        LabelGenerator(image_size=20)
    with pytest.raises(ValueError, match="hidden is 0"):
        LabelDiscriminator(hidden=0)
    with pytest.raises(ValueError, match="age_bins is 1"):
        LabelCoding(age_bins=1)
    with pytest.raises(ValueError, match="youngest is 50 and oldest is 20"):
        LabelCoding(50, 20)
