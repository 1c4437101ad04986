"""LightCNN: the published structure and names, what it sees, its files."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idface.networks.light_cnn import FaceNetwork, Group, MaxFeatureMap, light_cnn
from idface.recognition.alignment import FACE_TEMPLATE
from idface.recognition.build import build_recognizer
from idface.recognition.light_cnn import LightCNN, grey_picture


def published(layers: Any, folder: Path) -> Path:
    """A file as the authors publish theirs, with random weights."""
    torch.manual_seed(layers)
    state = {f"module.{name}": value for name, value in light_cnn(layers).state_dict().items()}
    path = folder / f"LightCNN_{layers}Layers_checkpoint.pth.tar"
    state |= {"module.fc2.weight": torch.zeros(11, 256), "module.fc2.bias": torch.zeros(11)}
    torch.save({"epoch": 80, "arch": "LightCNN", "state_dict": state, "prec1": 98.0}, path)
    return path


@pytest.mark.parametrize(("layers", "millions", "convolutions"), [(9, 5.556, 9), (29, 12.637, 29)])
def test_architecture_is_the_published_one(layers: Any, millions: float, convolutions: int) -> None:
    network = light_cnn(layers)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.03)  # Wu et al., table I
    assert sum(isinstance(module, nn.Conv2d) for module in network.modules()) == convolutions
    names = dict(network.named_parameters())
    expected = (
        {"features.0.filter.weight": (96, 1, 5, 5), "features.4.conv_a.filter.weight": (192, 96, 1, 1)}
        | {"features.7.conv.filter.weight": (256, 128, 3, 3), "fc1.filter.weight": (512, 8192)}
        if layers == 9
        else {"conv1.filter.weight": (96, 1, 5, 5), "block3.2.conv2.filter.weight": (384, 192, 3, 3)}
        | {"group4.conv.filter.bias": (256,), "fc.filter.weight": (512, 8192)}
    )
    assert {name: tuple(names[name].shape) for name in expected} == expected


def test_of_each_two_features_the_larger_one_is_left() -> None:
    layer = MaxFeatureMap(3, 4, 3)
    x = torch.randn(2, 3, 8, 8)
    filtered = layer.filter(x)
    expected = torch.where(filtered[:, :4] > filtered[:, 4:], filtered[:, :4], filtered[:, 4:])
    assert torch.equal(layer(x), expected)
    group = Group(4, 6)
    torch.testing.assert_close(group(expected), group.conv(group.conv_a(expected)))


def test_its_gradient_is_that_of_the_larger_half() -> None:
    layer = MaxFeatureMap(3, 4, 3).double()
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x)
    weights = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    (own,) = torch.autograd.grad((layer(x) * weights).sum(), x)
    (plain,) = torch.autograd.grad((torch.maximum(*layer.filter(x).chunk(2, 1)) * weights).sum(), x)
    torch.testing.assert_close(own, plain)


def test_it_sees_the_luma_of_the_whole_frame_in_0_to_1() -> None:
    image = torch.rand(2, 3, 64, 64) * 2 - 1
    grey = grey_picture(image)
    assert grey.shape == (2, 1, 128, 128)
    luma = ((image / 2 + 0.5) * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    torch.testing.assert_close(grey, F.interpolate(luma, size=128, mode="bilinear"), rtol=1e-4, atol=1e-4)
    assert grey_picture(torch.ones(1, 3, 128, 128)).min() > 0.999
    # Wu et al., section IV-A: eyes' middle in row 40, mouth's in row 88 of 128
    rows = FACE_TEMPLATE[[0, 3], 1] * 128
    assert abs(rows - [40, 88]).max() < 0.6


@pytest.mark.parametrize("layers", [9, 29])
def test_published_files_load_and_embed(layers: Any, tmp_path: Path) -> None:
    path = published(layers, tmp_path)
    recognizer = build_recognizer(f"lightcnn{layers}:{path}")
    image = (torch.rand(2, 3, 64, 64) * 2 - 1).requires_grad_()
    features = recognizer.features(image, recognizer.feature_layers)
    sides = {"pool1": 64, "pool2": 32, "pool3": 16, "pool4": 8}
    assert {name: features[name].shape[-1] for name in sides} == sides
    torch.manual_seed(layers)
    network = light_cnn(layers)
    # processors and memory formats round differently; features go up to 3 or so
    torch.testing.assert_close(features["raw"], network(grey_picture(image)), rtol=1e-3, atol=2e-3)
    torch.testing.assert_close(features["embedding"], F.normalize(features["raw"]))
    features["embedding"][:, 0].sum().backward()
    assert image.grad is not None
    assert float(image.grad.abs().max()) > 0


def test_what_was_trained_here_loads_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = FaceNetwork(9, 5, 0.5, cosine=False)
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    torch.save(state, tmp_path / "own.pt")
    image = torch.rand(2, 3, 128, 128) * 2 - 1
    raw = LightCNN(tmp_path / "own.pt").features(image, ["raw"])["raw"]
    torch.testing.assert_close(raw, network.eval()(grey_picture(image))[0], rtol=1e-3, atol=2e-3)


def test_the_one_that_comes_with_the_project() -> None:
    recognizer = LightCNN("zoo:lightcnn9")
    assert recognizer.name == "lightcnn9"
    with pytest.raises(FileNotFoundError, match="Did you mean 'zoo:lightcnn9'"):
        LightCNN("zoo:lightcnn")


def test_files_of_other_networks_are_refused(tmp_path: Path) -> None:
    path = published(9, tmp_path)
    with pytest.raises(ValueError, match="does not fit"):
        LightCNN(path, layers=29)
    with pytest.raises(ValueError, match="9 or 29"):
        LightCNN(path, layers=10)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        LightCNN(tmp_path / "nothing.pth")


def test_cosines_are_cosines() -> None:
    network = FaceNetwork(9, 5, 0.0, cosine=True)
    embedding, cosines = network(torch.rand(2, 1, 128, 128))
    assert network.head.bias is None
    expected: Tensor = F.cosine_similarity(embedding[:, None], network.head.weight[None], dim=2)
    torch.testing.assert_close(cosines, expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(torch.rand(2, 1, 128, 128))[1].dtype == torch.float32
