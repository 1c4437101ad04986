import pytest
import torch
from torch import nn

from idface.networks.dcgan import DCGANDiscriminator
from idface.networks.vgg import AttributeEncoder, FaceClassifier, InverseVGG, VGGEncoder, stage_widths


@pytest.mark.parametrize("size", [16, 32, 64, 128])
def test_shapes_at_every_size(size: int) -> None:
    image = torch.rand(2, 3, size, size) * 2 - 1
    encoder = VGGEncoder(size, 4, 1, pool=True)
    features, logits = FaceClassifier(encoder, encoder.out_channels, 5)(image)
    assert features.shape == (2, stage_widths(size, 4)[-1])
    assert logits.shape == (2, 5)
    mean, log_variance = AttributeEncoder(size, 4, 1, 6)(image)
    assert mean.shape == log_variance.shape == (2, 6)
    result = InverseVGG(features.shape[1] + 6, size, 4, 1)(features, mean)
    assert result.shape == image.shape
    assert result.abs().max() <= 1
    f_d, d_logits = DCGANDiscriminator(size, 4)(image)
    assert f_d.shape == (2, stage_widths(size, 4)[-1] * 16)
    assert d_logits.shape == (2,)


def test_widths_are_those_of_vgg_at_the_papers_size() -> None:
    assert stage_widths(128, 64) == [64, 128, 256, 512, 512]
    convolutions = [m for m in VGGEncoder(128, 64, 2, pool=True).modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [64, 64, 128, 128, 256, 256, 512, 512, 512, 512]


@pytest.mark.parametrize("size", [0, 4, 48, 100])
def test_a_size_that_does_not_halve_down_to_four_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"image_size is {size}"):
        stage_widths(size, 8)


def test_features_are_what_goes_into_the_last_layer_and_logits_are_not() -> None:
    encoder = VGGEncoder(16, 4, 1, pool=True)
    classifier = FaceClassifier(encoder, encoder.out_channels, 3).eval()
    features, logits = classifier(torch.rand(2, 3, 16, 16))
    assert torch.allclose(logits, features @ classifier.head.weight.T + classifier.head.bias, atol=1e-6)


def test_grey_results_have_three_equal_channels() -> None:
    result = InverseVGG(6, 16, 4, 1, grey=True)(torch.rand(3, 4), torch.rand(3, 2))
    assert result.shape == (3, 3, 16, 16)
    assert torch.equal(result[:, 0], result[:, 1])
    assert torch.equal(result[:, 0], result[:, 2])


def test_the_discriminator_has_no_batch_norm_on_its_first_layer() -> None:
    kinds = [type(m) for m in DCGANDiscriminator(32, 4).layers]
    assert kinds[:3] == [nn.Conv2d, nn.LeakyReLU, nn.Conv2d]
    assert nn.BatchNorm2d in kinds
