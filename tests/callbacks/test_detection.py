"""The detection curve: which batches it is of, who may be looked at, that training is left as it is."""

import csv
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from data_modules.orl import ORLDataModule
from idface.callbacks.detection import DetectionCurve
from idface.loggers import CSVLogger
from idface.metrics import detection
from idface.pictures import Picture
from tests.modules.helpers import changed, loader, small_ipgan, snapshot, trainer
from tests.modules.test_label_dcgan import loader as labelled
from tests.modules.test_label_dcgan import small


def bright(pictures: Picture) -> np.ndarray:
    return pictures.mean((1, 2, 3)) > 127


def test_a_figure_of_every_so_many_batches(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    with mock.patch.object(detection, "find_faces", bright):
        run = trainer(10, tmp_path, callbacks=[DetectionCurve(every=4, faces=50)], logger=logger)
        model = small()
        run.fit(model, labelled(10))
    logger.finalize("success")
    with next(tmp_path.rglob("metrics.csv")).open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/detection/cascades")]
    assert [int(row["step"]) for row in rows] == [4, 8]
    assert all(0 <= float(row["train/detection/cascades"]) <= 1 for row in rows)


def test_real_photos_are_looked_at_once(tmp_path: Path) -> None:
    class Data(ORLDataModule):
        def train_dataloader(self) -> Any:
            return labelled(6)

    logger, data = CSVLogger(tmp_path), Data(image_size=32, batch_size=8)
    seen: list[Picture] = []
    with mock.patch.object(detection, "find_faces", lambda pictures: seen.append(pictures) or bright(pictures)):
        run = trainer(6, tmp_path, callbacks=[DetectionCurve(every=4, faces=9)], logger=logger)
        run.fit(small(), data)
    logger.finalize("success")
    with next(tmp_path.rglob("metrics.csv")).open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/detection/cascades_real")]
    assert [int(row["step"]) for row in rows] == [0]
    photos = np.concatenate([part for part in seen if part.shape[1] == 32 and part.dtype == np.uint8])[:9]
    assert float(rows[0]["train/detection/cascades_real"]) == pytest.approx(bright(photos).mean())


def test_training_is_the_same_with_it(tmp_path: Path) -> None:
    states = []
    for callbacks in ([], [DetectionCurve(every=2, faces=5)]):
        model = small()
        trainer(5, tmp_path, callbacks=callbacks).fit(model, labelled(5))
        states.append(snapshot(model))
    assert not changed(*states)


def test_who_makes_no_faces_of_noise_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"take it out of trainer\.callbacks"):
        trainer(1, tmp_path, callbacks=[DetectionCurve()]).fit(small_ipgan(), loader())
    with pytest.raises(ValueError, match="every is 0"):
        DetectionCurve(every=0)


def test_what_a_thread_fails_at_is_told(tmp_path: Path) -> None:
    def fails(pictures: Picture) -> np.ndarray:
        raise RuntimeError("no cascade")

    with mock.patch.object(detection, "find_faces", fails), pytest.raises(RuntimeError, match="no cascade"):
        trainer(3, tmp_path, callbacks=[DetectionCurve(every=1, faces=2)]).fit(small(), labelled(3))
    torch.manual_seed(0)
