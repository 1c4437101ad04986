from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from idface.recognition.alignment import FACE_TEMPLATE
from idface.recognition.mobilefacenet import ARCFACE_TEMPLATE, MobileFaceNet, _Network


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Random weights under the names of arcface-pytorch."""
    torch.manual_seed(0)
    network = _Network().train()
    for _ in range(3):
        list(network.stages(torch.randn(8, 3, 112, 112)))
    return {f"arcface.{name}": value for name, value in network.state_dict().items()}


@pytest.fixture(scope="module")
def weights(state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "mobilefacenet.pth"
    torch.save({**state, "head.weight": torch.zeros(10, 128)}, path)
    return path


def test_architecture_is_the_published_one(state: dict[str, torch.Tensor]) -> None:
    assert len(state) == 333
    assert state["arcface.conv_4.model.5.conv_dw.conv.weight"].shape == (256, 1, 3, 3)
    assert state["arcface.conv_45.conv.conv.weight"].shape == (512, 128, 1, 1)
    assert state["arcface.GDC_dw.weight"].shape == (512, 1, 7, 7)
    assert state["arcface.features.weight"].shape == (128, 512, 1, 1)
    trained = sum(value.numel() for name, value in state.items() if "running" not in name and "num_b" not in name)
    assert trained == pytest.approx(0.99e6, rel=0.03)  # Chen et al., table 2: 0.99 million parameters


def test_embeds_frames_and_differentiates(weights: Path) -> None:
    recognizer = MobileFaceNet(weights)
    image = (torch.rand(2, 3, 64, 64) * 2 - 1).requires_grad_()
    features = recognizer.features(image, recognizer.feature_layers)
    assert features["conv1"].shape == (2, 64, 56, 56)
    assert features["conv_3"].shape == (2, 64, 28, 28)
    assert features["conv_5"].shape == (2, 128, 7, 7)
    assert features["embedding"].shape == (2, 128)
    torch.testing.assert_close(features["embedding"].norm(dim=1), torch.ones(2))
    features["embedding"][:, 0].sum().backward()
    assert image.grad is not None
    assert (image.grad.abs().sum((1, 2, 3)) > 0).all()


def test_the_face_lies_where_arcface_puts_it(weights: Path) -> None:
    """White spots at the landmarks of the common frame come out at ArcFace's five points."""
    recognizer = MobileFaceNet(weights)
    size = 224
    pictures = torch.full((5, 1, size, size), -1.0)
    for picture, (x, y) in zip(pictures, FACE_TEMPLATE * size, strict=True):
        picture[0, round(y - 5) : round(y + 5), round(x - 5) : round(x + 5)] = 1
    framed = recognizer.warp(pictures)[:, 0] + 1
    pixels = torch.arange(112.0)
    mass = framed.sum((1, 2))
    found = torch.stack([framed.sum(1) @ pixels / mass, framed.sum(2) @ pixels / mass], 1).numpy()
    assert np.abs(found - ARCFACE_TEMPLATE).max() < 2.5  # pixels: two templates, laid on each other by a similarity


def test_flips_are_averaged(weights: Path) -> None:
    image = torch.rand(2, 3, 112, 112) * 2 - 1
    image[..., :56] = -1  # dark on the left
    both, one = MobileFaceNet(weights, flip=True), MobileFaceNet(weights)
    framed = one.warp(image)
    (*_, (_, raw)), (*_, (_, mirrored)) = one.network.stages(framed), one.network.stages(framed.flip(-1))
    torch.testing.assert_close(both.features(image, ["raw"])["raw"], (raw + mirrored) / 2)
    assert (both(image) - one(image)).norm(dim=1).min() > 1e-4
    assert both.name != one.name  # their distances differ, and so do their thresholds


def test_prefix_and_format_do_not_matter(weights: Path, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    bare = tmp_path / "bare.safetensors"
    save_file({name.removeprefix("arcface."): value for name, value in state.items()}, bare)
    assert MobileFaceNet(bare).fingerprint() == MobileFaceNet(weights).fingerprint()


def test_unfit_files_are_refused(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        MobileFaceNet(tmp_path / "nowhere.pth")
    path = tmp_path / "wider.pth"
    torch.save({**state, "arcface.features.weight": torch.zeros(512, 512, 1, 1)}, path)
    with pytest.raises(ValueError, match=r"wider\.pth does not fit.*'features\.weight': expected \(128, 512, 1, 1\)"):
        MobileFaceNet(path)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"damaged\.safetensors is damaged"):
        MobileFaceNet(damaged)
