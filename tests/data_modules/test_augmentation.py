"""Chance that can be repeated, on the CPU and on the device; and the formats of a batch."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import albumentations
import kornia.augmentation
import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser

from data_modules.batch import FaceBatch, to_float, to_uint8
from data_modules.folder import FaceFolderDataModule
from data_modules.transforms import SampleTransforms

IMAGE = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)


class TestSampleTransforms:
    def test_the_same_seed_gives_the_same_picture(self) -> None:
        options = [albumentations.HorizontalFlip(p=0.5), albumentations.ColorJitter(p=1)]
        left, right = SampleTransforms(options), SampleTransforms(options)
        expected = [left(IMAGE, seed) for seed in range(8)]
        assert len({picture.tobytes() for picture in expected}) == 8
        for seed in (5, 2, 7):
            assert np.array_equal(right(IMAGE, seed), expected[seed])

    def test_transforms_are_independent_of_each_other(self) -> None:
        """Two flips, each at even odds, give all four pictures equally often."""
        chain = SampleTransforms([albumentations.HorizontalFlip(p=0.5), albumentations.VerticalFlip(p=0.5)])
        counts = Counter(chain(IMAGE, seed).tobytes() for seed in range(400))
        flips = [IMAGE, IMAGE[:, ::-1], IMAGE[::-1], IMAGE[::-1, ::-1]]
        assert counts.keys() == {np.ascontiguousarray(flip).tobytes() for flip in flips}
        assert sum((count - 100) ** 2 / 100 for count in counts.values()) < 16.3  # chi-squared, p = 0.001

    def test_epochs_differ(self, face_folder: Path) -> None:
        options = {"image_size": 16, "batch_size": 8, "val_identities": 1, "test_identities": 1}
        plain = FaceFolderDataModule(face_folder, align=False, **options).train_dataloader()
        jitter = [albumentations.RandomBrightnessContrast(p=1)]
        augmented = FaceFolderDataModule(
            face_folder, align=False, **options, sample_transforms=jitter
        ).train_dataloader()
        pictures: dict[int, set[bytes]] = {}
        for loader in (plain, augmented, augmented):  # an epoch each, of all eight photos
            for batch in loader:
                for index, image in zip(batch["index"].tolist(), batch["image"], strict=True):
                    pictures.setdefault(index, set()).add(image.numpy().tobytes())
        assert [len(versions) for versions in pictures.values()] == [3] * 8

    def test_image_and_partner_differ(self, face_folder: Path) -> None:
        """A photo that is its own partner still is augmented twice."""
        options = {"image_size": 16, "batch_size": 6, "val_identities": 1, "test_identities": 1}
        data = FaceFolderDataModule(
            face_folder,
            align=False,
            **options,
            unlabelled="person_1",
            sample_transforms=[albumentations.ColorJitter(p=1)],
        )
        pairs = 0
        for batch in data.train_dataloader():
            for image, partner in zip(
                batch["image"][batch["identity"] == -1], batch["partner"][batch["identity"] == -1], strict=True
            ):
                assert not torch.equal(image, partner)
                pairs += 1
        assert pairs >= 2


class TestBatchTransforms:
    @pytest.fixture
    def data(self, face_folder: Path) -> FaceFolderDataModule:
        return FaceFolderDataModule(
            face_folder,
            align=False,
            image_size=16,
            batch_size=6,
            val_identities=1,
            test_identities=1,
            batch_transforms=[kornia.augmentation.RandomHorizontalFlip(p=0.5), kornia.augmentation.RandomAffine(10)],
        )

    def transfer(self, data: FaceFolderDataModule, step: int = 3, rank: int = 0, training: bool = True) -> FaceBatch:
        raw = next(iter(data.train_dataloader()))
        data.trainer = SimpleNamespace(training=training, global_step=step, global_rank=rank)
        batch = data.on_after_batch_transfer(raw, 0)
        data.trainer = None
        return batch

    def test_chance_is_a_function_of_seed_step_and_rank(self, data: FaceFolderDataModule) -> None:
        torch.manual_seed(0)
        first = self.transfer(data)
        torch.manual_seed(99)
        assert torch.equal(self.transfer(data)["image"], first["image"])
        assert not torch.equal(self.transfer(data, step=4)["image"], first["image"])
        assert not torch.equal(self.transfer(data, rank=1)["image"], first["image"])

    def test_the_trainings_own_random_numbers_are_left_alone(self, data: FaceFolderDataModule) -> None:
        torch.manual_seed(0)
        expected = torch.rand(3)
        torch.manual_seed(0)
        self.transfer(data)
        list(data.train_dataloader())
        assert torch.equal(torch.rand(3), expected)

    def test_image_and_partner_are_augmented_apart_and_stay_in_range(self, data: FaceFolderDataModule) -> None:
        raw = next(iter(data.train_dataloader()))
        raw["partner"] = raw["image"]
        data.trainer = SimpleNamespace(training=True, global_step=0, global_rank=0)
        batch = data.on_after_batch_transfer(raw, 0)
        assert not torch.equal(batch["image"], batch["partner"])
        for key in ("image", "partner"):
            assert batch[key].dtype == torch.float32
            assert batch[key].is_contiguous(memory_format=torch.channels_last)
            assert -1 <= batch[key].min() < -0.3 < 0.3 < batch[key].max() <= 1

    def test_evaluation_is_not_augmented(self, data: FaceFolderDataModule) -> None:
        raw = next(iter(data.train_dataloader()))
        assert torch.equal(self.transfer(data, training=False)["image"], to_float(raw["image"]))


def test_pictures_survive_the_round_trip() -> None:
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(to_uint8(to_float(every)), every)
    assert to_float(every).aminmax() == (-1, 1)
    assert to_uint8(torch.tensor([-3.0, 0.0, 5.0])).tolist() == [0, 128, 255]
    assert to_uint8(torch.tensor([0.5], dtype=torch.bfloat16)).tolist() == [191]


YAML = """
data:
  class_path: data_modules.folder.FaceFolderDataModule
  init_args:
    root: {root}
    align: false
    batch_size: 4
    image_size: 16
    val_identities: 0.2
    test_identities: 1
    sample_transforms:
      - class_path: albumentations.HorizontalFlip
        init_args: {{p: 0.5}}
      - class_path: albumentations.ColorJitter
        init_args: {{brightness: [0.8, 1.2], p: 1.0}}
    batch_transforms:
      - class_path: kornia.augmentation.RandomAffine
        init_args: {{degrees: 8.0, p: 0.5}}
"""


class TestCommandLine:
    def parse(self, text: str) -> Any:
        parser = LightningArgumentParser(exit_on_error=False)
        parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
        return parser.instantiate_classes(parser.parse_string(text)).data

    def test_transforms_are_built_from_yaml(self, face_folder: Path) -> None:
        data = self.parse(YAML.format(root=face_folder))
        assert isinstance(data, FaceFolderDataModule)
        assert (data.val_identities, data.test_identities) == (0.2, 1)
        assert isinstance(data.batch_transforms[0], kornia.augmentation.RandomAffine)
        by_hand = FaceFolderDataModule(
            face_folder,
            align=False,
            batch_size=4,
            image_size=16,
            val_identities=0.2,
            test_identities=1,
            sample_transforms=[
                albumentations.HorizontalFlip(p=0.5),
                albumentations.ColorJitter(brightness=(0.8, 1.2), p=1.0),
            ],
        )
        for left, right in zip(data.train_dataloader(), by_hand.train_dataloader(), strict=True):
            assert torch.equal(left["image"], right["image"])

    def test_misspelt_options_are_refused(self, face_folder: Path) -> None:
        for right, wrong in (("batch_size", "batchsize"), ("degrees", "degres"), ("p: 0.5", "odds: 0.5")):
            with pytest.raises(Exception, match=rf"(?i){wrong.split(':')[0]}"):
                self.parse(YAML.format(root=face_folder).replace(right, wrong))
