from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from idface.recognition import orl
from idface.recognition.dlib_file import read_layers
from idface.recognition.dlib_resnet import DlibResNet, packaged_weights
from tests.recognition.golden import FILE as GOLDEN
from tests.recognition.golden import dlib_descriptors, tinted


@pytest.fixture(scope="module")
def dlib_resnet() -> DlibResNet:
    return DlibResNet()


@pytest.fixture(scope="module")
def file_content() -> bytes:
    return packaged_weights().read_bytes()


def to_images(chips: np.ndarray) -> Tensor:
    return torch.from_numpy(chips).permute(0, 3, 1, 2).float() / 127.5 - 1


def raw(recognizer: DlibResNet, images: Tensor) -> Tensor:
    return recognizer.features(images, ["raw"])["raw"]


def test_equals_the_kept_answers_of_dlib(dlib_resnet: DlibResNet) -> None:
    with np.load(GOLDEN) as golden:
        images, expected = to_images(tinted(golden["chips"])), torch.from_numpy(golden["descriptors"])
    torch.testing.assert_close(raw(dlib_resnet, images), expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(dlib_resnet(images), expected / expected.norm(dim=1, keepdim=True), atol=2e-6, rtol=0)


def test_equals_dlib_on_fresh_faces_and_noise(dlib_resnet: DlibResNet) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2, 150, 150, 3), np.uint8)
    chips = np.concatenate([orl.aligned_photos(150)[[7, 88, 201]], noise])
    expected = torch.from_numpy(dlib_descriptors(chips))
    torch.testing.assert_close(raw(dlib_resnet, to_images(chips)), expected, atol=2e-6, rtol=0)


def test_every_size_gives_nearly_the_same_embedding(dlib_resnet: DlibResNet) -> None:
    with np.load(GOLDEN) as golden:
        reference = dlib_resnet(to_images(tinted(golden["chips"])))
    strangers = (reference[0] - reference[1]).norm()
    for size in (64, 128, 200):
        faces = orl.aligned_photos(size)[[0, 123, 256, 399], :, :, 0]
        assert ((dlib_resnet(to_images(tinted(faces))) - reference).norm(dim=1) < strangers / 4).all()


def test_gradient_reaches_the_image_and_is_right() -> None:
    network = DlibResNet().double()  # in float32 the difference quotient drowns in rounding and kinks
    torch.manual_seed(0)
    with np.load(GOLDEN) as golden:
        image = to_images(tinted(golden["chips"][:1])).double()
    image += 0.02 * torch.randn_like(image)  # repeated borders tie in the max pool
    direction, weights = torch.randn_like(image), torch.randn(128).double()

    def value(step: float) -> Tensor:
        return (dict(network.stages(image + step * direction))["raw"] * weights).sum()

    image.requires_grad_()
    value(0.0).backward()
    assert image.grad is not None
    with torch.no_grad():
        estimate = float(value(1e-7) - value(-1e-7)) / 2e-7
    assert estimate == pytest.approx(float((image.grad * direction).sum()), rel=1e-4)


def test_gradient_flows_through_the_interface(dlib_resnet: DlibResNet) -> None:
    image = (torch.rand(2, 3, 64, 64) * 2 - 1).requires_grad_()
    dlib_resnet(image)[:, 0].sum().backward()
    assert image.grad is not None
    assert (image.grad.abs().sum((1, 2, 3)) > 0).all()
    assert all(parameter.grad is None for parameter in dlib_resnet.parameters())


def test_stays_frozen_and_in_evaluation(dlib_resnet: DlibResNet) -> None:
    parent = nn.ModuleDict({"recognizer": dlib_resnet}).train()
    assert parent.training
    assert not any(module.training for module in dlib_resnet.modules())
    assert not any(parameter.requires_grad for parameter in dlib_resnet.parameters())


def test_computes_in_float32_under_autocast(dlib_resnet: DlibResNet) -> None:
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    expected = dlib_resnet(image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = dlib_resnet(image)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0, rtol=0)


def test_half_precision_images_are_taken(dlib_resnet: DlibResNet) -> None:
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    torch.testing.assert_close(dlib_resnet(image.bfloat16()), dlib_resnet(image.bfloat16().float()))


def test_features_by_name(dlib_resnet: DlibResNet) -> None:
    image = torch.rand(2, 3, 150, 150) * 2 - 1
    features = dlib_resnet.features(image, dlib_resnet.feature_layers)
    assert {name: tuple(feature.shape[1:]) for name, feature in features.items()} == {
        "stem": (32, 35, 35),
        "stage1": (32, 35, 35),
        "stage2": (64, 17, 17),
        "stage3": (128, 8, 8),
        "stage4": (256, 4, 4),
        "stage5": (256, 2, 2),
        "pooled": (256,),
        "raw": (128,),
        "embedding": (128,),
    }
    torch.testing.assert_close(features["embedding"], features["raw"] / features["raw"].norm(dim=1, keepdim=True))
    alone = dlib_resnet.features(image, ["stage3"])
    assert list(alone) == ["stage3"]
    torch.testing.assert_close(alone["stage3"], features["stage3"])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "got torch.uint8"),
        (torch.zeros(1, 3, 64, 48), "square"),
        (torch.zeros(3, 64, 64), "square"),
        (torch.zeros(1, 1, 64, 64), "square"),
    ],
)
def test_other_images_are_refused(dlib_resnet: DlibResNet, image: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dlib_resnet(image)


def test_unknown_layers_are_refused(dlib_resnet: DlibResNet) -> None:
    with pytest.raises(ValueError, match=r"no feature layer.*stage9.*stage1"):
        dlib_resnet.features(torch.zeros(1, 3, 64, 64), ["stage9"])


def test_building_it_moves_no_random_state() -> None:
    before = torch.get_rng_state()
    DlibResNet()
    assert torch.equal(before, torch.get_rng_state())


def test_fingerprint_names_the_weights(dlib_resnet: DlibResNet) -> None:
    other = DlibResNet()
    assert other.fingerprint() == dlib_resnet.fingerprint()
    with torch.no_grad():
        other.head.weight[0, 0] += 1e-3
    assert other.fingerprint() != dlib_resnet.fingerprint()


def test_missing_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="no_such_file"):
        DlibResNet(tmp_path / "no_such_file.dat")
    monkeypatch.setattr("idface.recognition.dlib_resnet.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install face-recognition-models"):
        DlibResNet()


@pytest.mark.parametrize("kept", [0, 1, 20, 700, 1_000_000, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, file_content: bytes, kept: int) -> None:
    path = tmp_path / "truncated.dat"
    path.write_bytes(file_content[:kept])
    with pytest.raises(ValueError, match=r"truncated\.dat is no intact dlib face recogniser"):
        DlibResNet(path)


def test_a_single_altered_weight_is_refused(tmp_path: Path, file_content: bytes) -> None:
    path = tmp_path / "altered.dat"
    content = bytearray(file_content)
    content[10_000_000] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged or another model: its SHA-256"):
        DlibResNet(path)


def test_altered_structure_is_refused(file_content: bytes) -> None:
    for alter, message in (
        (file_content.replace(b"loss_metric_2", b"loss_metric_3", 1), "loss_metric_2"),
        (file_content.replace(b"affine_", b"bn_con2", 1), "a known layer, not 'bn_con2'"),
        (file_content + b"\x01", "bytes left over"),
        (b"\x9f" + file_content[1:], "an integer"),
    ):
        with pytest.raises(ValueError, match=message):
            read_layers(alter, "the file")


def test_the_file_is_read_whole(file_content: bytes) -> None:
    layers = read_layers(file_content, "the file")
    kinds = [layer.kind for layer in layers]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "con": 29,
        "affine": 29,
        "relu": 29,
        "add_prev": 14,
        "max_pool": 1,
        "avg_pool": 5,
        "fc": 1,
    }
    # An affine layer has two numbers a filter; folded in they vanish.
    filters = sum(layer.options[0] for layer in layers if layer.kind == "con")
    parameters = sum(parameter.numel() for parameter in DlibResNet().parameters())
    assert sum(layer.parameters.size for layer in layers) == parameters + 2 * filters
