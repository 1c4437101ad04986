import re
from pathlib import Path

import numpy as np
import pytest
import torch
from facenet_pytorch import InceptionResnetV1

from idface.recognition.alignment import FACE_TEMPLATE
from idface.recognition.facenet import FACENET_TEMPLATE, FILES, FaceNet


@pytest.fixture(scope="module")
def original() -> InceptionResnetV1:
    """facenet-pytorch's own network with random weights, their statistics set by some noise."""
    torch.manual_seed(0)
    network = InceptionResnetV1(pretrained=None, classify=False).train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(4, 3, 160, 160))
    return network.eval()


@pytest.fixture(scope="module")
def torch_home(original: InceptionResnetV1, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache as facenet-pytorch leaves it: the weights together with the classifier over the training people."""
    home = tmp_path_factory.mktemp("torch")
    (home / "checkpoints").mkdir()
    state = {**original.state_dict(), "logits.weight": torch.zeros(8631, 512), "logits.bias": torch.zeros(8631)}
    torch.save(state, home / "checkpoints" / FILES["vggface2"])
    return home


@pytest.fixture
def facenet(torch_home: Path, monkeypatch: pytest.MonkeyPatch) -> FaceNet:
    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    return FaceNet()


def test_computes_what_facenet_pytorch_computes(facenet: FaceNet, original: InceptionResnetV1) -> None:
    image = torch.rand(2, 3, 64, 64) * 2 - 1
    framed = facenet.warp(image)
    assert framed.shape == (2, 3, 160, 160)
    pixels = (framed + 1) * 127.5
    with torch.no_grad():
        torch.testing.assert_close(facenet(image), original((pixels - 127.5) / 128), atol=1e-5, rtol=0)


def test_the_face_is_framed_as_in_training(facenet: FaceNet) -> None:
    """A bright spot at each landmark of the common frame must appear where the landmark is in MTCNN's box."""
    size = 320
    pictures = torch.full((5, 1, size, size), -1.0)
    for picture, (x, y) in zip(pictures, FACE_TEMPLATE * size, strict=True):
        picture[0, round(y - 5) : round(y + 5), round(x - 5) : round(x + 5)] = 1
    framed = facenet.warp(pictures)[:, 0] + 1
    pixels = torch.arange(160.0) + 0.5
    mass = framed.sum((1, 2))
    found = torch.stack([(framed.sum(1) @ pixels) / mass, (framed.sum(2) @ pixels) / mass], 1) / 160
    assert np.abs(found.numpy() - FACENET_TEMPLATE).max() < 0.03


def test_features_gradients_and_freezing(facenet: FaceNet) -> None:
    image = (torch.rand(1, 3, 64, 64) * 2 - 1).requires_grad_()
    features = facenet.features(image, facenet.feature_layers)
    assert features["stem"].shape == (1, 256, 17, 17)
    assert features["pooled"].shape == (1, 1792)
    assert features["embedding"].shape == (1, facenet.embedding_dim)
    features["embedding"][0, 0].backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in facenet.parameters())
    assert not facenet.train().network.dropout.training


def test_without_weights_it_says_where_to_put_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = re.escape(str(tmp_path / "checkpoints" / "20180408-102900-casia-webface.pt"))
    with pytest.raises(FileNotFoundError, match=rf"{place}.*weights.*download=True"):
        FaceNet("casia-webface")


def test_downloads_only_when_asked(
    torch_home: Path, original: InceptionResnetV1, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(url: str, destination: str) -> None:
        asked.append(url)
        Path(destination).write_bytes((torch_home / "checkpoints" / FILES["vggface2"]).read_bytes())

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", download)
    first = FaceNet(download=True)
    second = FaceNet(download=True)  # from the cache
    assert [url.rpartition("/")[2] for url in asked] == [FILES["vggface2"]]
    assert first.fingerprint() == second.fingerprint()


def test_unfit_files_are_refused(original: InceptionResnetV1, tmp_path: Path) -> None:
    incomplete = dict(original.state_dict())
    del incomplete["block8.conv2d.bias"]
    for name, content, message in (
        ("incomplete.pt", incomplete, "'block8.conv2d.bias': expected .*, found none"),
        ("list.pt", [1, 2], "expected a state dict"),
        ("code.pt", Path("x"), "no file of weights alone"),
    ):
        torch.save(content, tmp_path / name)
        with pytest.raises(ValueError, match=message):
            FaceNet(weights=tmp_path / name)
    (tmp_path / "damaged.pt").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"damaged\.pt is damaged"):
        FaceNet(weights=tmp_path / "damaged.pt")
    with pytest.raises(ValueError, match="vggface2, casia-webface"):
        FaceNet("imagenet")  # type: ignore[arg-type]


def test_it_has_no_thresholds_until_measured(facenet: FaceNet) -> None:
    with pytest.raises(LookupError, match="No thresholds are known for the recogniser facenet"):
        facenet.thresholds  # noqa: B018
