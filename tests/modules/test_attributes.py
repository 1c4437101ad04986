"""The attribute classifier: what learns, what is refused, that it can learn."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data_modules.batch import FaceBatch
from idface.modules.attributes import MIRRORED, AttributeClassifier, mirror
from idface.recognition.alignment import FACE_TEMPLATE, LANDMARKS
from tests.modules.helpers import changed, sgd, snapshot, trainer


class Labelled(Dataset[FaceBatch]):
    """Pictures of noise on grey; "bright" ones are brighter, and their landmarks lie farther to the right."""

    def __init__(self, count: int, size: int = 8) -> None:
        noise = torch.Generator().manual_seed(0)
        self.bright = torch.rand((count, size), generator=noise) < 0.5
        level = self.bright.float() - 0.5
        self.image = level[..., None, None, None] + 0.1 * torch.randn(count, size, 3, 16, 16, generator=noise)
        other = torch.where(torch.rand((count, size), generator=noise) < 0.5, 1.0, float("nan"))
        self.attributes = torch.stack([torch.where(self.bright, 1.0, -1.0), other], -1)
        shift = torch.stack([level, torch.zeros_like(level)], -1)[:, :, None]
        self.landmarks = (torch.from_numpy(FACE_TEMPLATE) * 16 - 0.5) + shift

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, row: int) -> FaceBatch:
        people = torch.arange(self.image.shape[1])
        return {
            "image": self.image[row],
            "identity": people,
            "index": people,
            "attributes": self.attributes[row],
            "landmarks": self.landmarks[row],
        }


def loader(count: int = 4) -> DataLoader[FaceBatch]:
    return DataLoader(Labelled(count), batch_size=None)


def small(**arguments: Any) -> AttributeClassifier:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {"attributes": ["Bright", "Odd"], "input_size": 16, "width": 4, "dropout": 0.0}
    return AttributeClassifier(**(defaults | arguments))


def test_the_network_learns_and_nothing_else_changes() -> None:
    model = small(optimizer=sgd, ema_decay=0.0)
    before = snapshot(model)
    trainer(1).fit(model, loader())
    found = changed(before, snapshot(model))
    assert {name.split(".")[0] for name in found} == {"network"}
    assert {name for name in found if "head" in name} == {
        f"network.{head}.{part}" for head in ("attribute_head", "landmark_head") for part in ("weight", "bias")
    }
    assert "network.mean_face" not in found


def test_it_learns_labels_and_landmarks(tmp_path: Path) -> None:
    model = small(reported=["Bright"], mirror=False, ema_decay=0.5)
    runner = trainer(60, tmp_path)
    runner.fit(model, loader(60))
    figures = runner.test(model, [loader(8)] * 3, verbose=False)[0] | runner.callback_metrics
    assert figures["test/attributes/unseen/Bright/auc"] > 0.99
    assert figures["test/attributes/known/Bright/balanced_accuracy"] > 0.95
    untrained = 0.5 / 16 / (FACE_TEMPLATE[1, 0] - FACE_TEMPLATE[0, 0])  # the mean face's error
    assert figures["test/attributes/unseen/landmark_error"] < untrained / 2


def test_a_mirrored_mirror_image_is_the_picture() -> None:
    image, landmarks = torch.rand(2, 3, 8, 8), torch.rand(2, 5, 2)
    once = mirror(image, landmarks)
    twice = mirror(*once)
    assert torch.equal(twice[0], image)
    assert twice[1] is not None
    assert torch.allclose(twice[1], landmarks)


def test_in_the_mirror_landmarks_stay_on_their_pixels_and_keep_their_order() -> None:
    image, landmarks = torch.zeros(1, 3, 8, 8), torch.zeros(1, 5, 2)
    for point, (x, y) in enumerate([(1, 2), (6, 2), (3, 4), (2, 6), (5, 6)]):
        image[0, :, y, x] = point + 1
        landmarks[0, point] = (torch.tensor([x, y]) + 0.5) / 8  # as the module scales pixels
    flipped, points = mirror(image, landmarks)
    assert points is not None
    pixels = (points[0] * 8 - 0.5).round().long()
    seen = [int(flipped[0, 0, y, x]) - 1 for x, y in pixels.tolist()]
    assert seen == list(MIRRORED)
    assert [LANDMARKS[point].replace("left", "right") for point in (0, 3)] == [LANDMARKS[seen[0]], LANDMARKS[seen[3]]]
    assert points[0, 0, 0] < points[0, 1, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attributes": []}, "expected one name or more"),
        ({"attributes": ["A", "A"]}, "each once"),
        ({"reported": ["Brihgt"]}, "reported names Brihgt"),
        ({"input_size": 48}, "input_size|image_size"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**arguments)


def test_batches_without_labels_are_refused() -> None:
    batch = Labelled(1)[0]
    model = small()
    with pytest.raises(ValueError, match="batches carry 2 attributes, expected 1"):
        small(attributes=["A"]).labels(batch)
    without: FaceBatch = {key: batch[key] for key in ("image", "identity", "index", "attributes")}  # type: ignore
    with pytest.raises(ValueError, match="landmark_weight=0"):
        model.labels(without)
    attributes, landmarks = small(landmark_weight=0.0).labels(without)
    assert landmarks is None
    assert isinstance(attributes, Tensor)


def test_labels_in_another_order_are_refused() -> None:
    class Data:
        attribute_names = ("Odd", "Bright")

    class FakeTrainer:
        datamodule = Data()

    model = small()
    model._trainer = FakeTrainer()  # type: ignore
    with pytest.raises(ValueError, match="Expected the same names in the same order"):
        model.setup("fit")


def test_there_is_nothing_to_predict() -> None:
    with pytest.raises(ValueError, match="makes no faces"):
        small().predict_step(Labelled(1)[0], 0)
