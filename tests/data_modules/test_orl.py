"""The ORL faces."""

from typing import Any

import numpy as np
import pytest

from data_modules.orl import ORLDataModule, orl_root
from idface.recognition.alignment import FACE_TEMPLATE
from tests.data_modules.contract import DataModuleContract, Make


class TestORL(DataModuleContract):
    @pytest.fixture
    def make(self) -> Make:
        def make(**options: Any) -> ORLDataModule:
            return ORLDataModule(**{"image_size": 16, **options})

        return make


def test_forty_people_with_ten_photos_each() -> None:
    data = ORLDataModule()
    assert len(data.paths) == 400
    assert data.rejected == []
    assert all(path.is_relative_to(orl_root()) for path in data.paths)
    assert np.unique(data.split.identity, return_counts=True)[1].tolist() == [10] * 40
    assert data.num_identities == 32
    assert (len(data.split.train), len(data.split.gallery)) == (256, 40)
    assert {stage: len(rows) for stage, rows in data.split.known.items()} == {"val": 16, "test": 16}
    assert {stage: len(rows) for stage, rows in data.split.unseen.items()} == {"val": 36, "test": 36}


def test_faces_are_aligned() -> None:
    """Eyes are darker than the cheeks below them: in the mean face, where the template says they are."""
    data = ORLDataModule(image_size=64, batch_size=256)
    mean = next(iter(data.train_dataloader()))["image"].float().mean((0, 1))
    for x, y in FACE_TEMPLATE[:2] * 64:
        eye = mean[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2].mean()
        cheek = mean[int(y) + 9 : int(y) + 12, int(x) - 1 : int(x) + 2].mean()
        assert eye < cheek - 25
