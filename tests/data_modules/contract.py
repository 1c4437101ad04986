"""What every data module keeps to. A test file for one subclasses `DataModuleContract` and says how to make it."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import albumentations
import numpy as np
import pytest
import torch
from torch import Tensor

from data_modules.base import FaceDataModule
from data_modules.batch import FaceBatch
from data_modules.samplers import IdentityBalanced, SexAgeBalanced

Make = Callable[..., FaceDataModule]


def same(left: FaceBatch, right: FaceBatch) -> bool:
    return left.keys() == right.keys() and all(
        torch.allclose(left[key], right[key], rtol=0, atol=0, equal_nan=True) for key in left
    )


def gather(loader: Any, key: str) -> list[int]:
    return torch.cat([batch[key] for batch in loader]).tolist() if len(loader) else []


class DataModuleContract:
    """Needs a fixture `make`: options -> data module with two or more people each to train, validate and test on."""

    @pytest.fixture
    def make(self) -> Make:
        raise NotImplementedError

    def person_of(self, path: Path) -> str:
        """Who is on a photo, as the layout on disk says, whatever the data module says."""
        return path.parent.name

    def test_training_batches(self, make: Make) -> None:
        data = make(image_size=24, batch_size=4)
        loader = data.train_dataloader()
        batches = list(loader)
        assert len(batches) == len(loader) == len(data.split.train) // 4
        for batch in batches:
            for key in ("image", "partner"):
                assert batch[key].shape == (4, 3, 24, 24)
                assert batch[key].dtype == torch.uint8
                assert batch[key].is_contiguous(memory_format=torch.channels_last)
            for key in ("identity", "index", "partner_identity", "partner_index"):
                assert batch[key].shape == (4,)
                assert batch[key].dtype == torch.int64
            assert batch["identity"].min() >= -1
            assert batch["identity"].max() < data.num_identities
        assert max(batch["image"].float().std() for batch in batches) > 10, "pictures, not blanks"

    def test_its_licence_is_stated(self, make: Make) -> None:
        licence = type(make()).licence
        assert len(licence) > 20
        assert licence != FaceDataModule.licence
        assert licence.isprintable()

    def test_num_identities_comes_before_setup(self, make: Make) -> None:
        data = make()
        assert data.num_identities == data.split.num_train >= 2
        assert len(set(data.identity_names)) == len(data.identity_names) > data.num_identities

    def test_an_image_is_its_photo(self, make: Make) -> None:
        data = make(image_size=24, batch_size=4)
        photos = {photo.path: photo for photo in data.photos}
        read = data.reader(list(photos.values()))
        for batch in data.train_dataloader():
            for role in ("", "partner_"):
                for image, index, identity in zip(
                    batch["partner" if role else "image"], batch[role + "index"], batch[role + "identity"], strict=True
                ):
                    path = data.paths[index]
                    assert np.array_equal(image.permute(1, 2, 0), read(photos[path]))
                    assert identity == -1 or data.identity_names[identity] == self.person_of(path)

    def test_training_validation_and_test_share_nobody(self, make: Make) -> None:
        data = make(batch_size=2)

        def people(rows: list[int]) -> set[str]:
            return {self.person_of(data.paths[row]) for row in rows}

        train = people(gather(data.train_dataloader(), "index")) | people(data.split.train.tolist())
        known, val, gallery = (people(gather(loader, "index")) for loader in data.val_dataloader())
        known_test, test, _ = (people(gather(loader, "index")) for loader in data.test_dataloader())
        assert known | known_test <= train
        assert min(len(train), len(val), len(test)) >= 2
        assert len(train | val | test) == len(train) + len(val) + len(test)
        assert val | test <= gallery

    def test_photos_have_one_use(self, make: Make) -> None:
        data = make(batch_size=2)
        known, unseen, gallery = (set(gather(loader, "index")) for loader in data.val_dataloader())
        known_test, test, same_gallery = (set(gather(loader, "index")) for loader in data.test_dataloader())
        assert gallery == same_gallery
        train = set(data.split.train.tolist())
        for partner_index in gather(data.train_dataloader(), "partner_index"):
            assert partner_index in train
        uses = [train, known, known_test, unseen, test, gallery]
        assert sum(map(len, uses)) == len(set.union(*uses)) == len(data.paths)

    def test_gallery_is_one_photo_a_person(self, make: Make) -> None:
        data = make(batch_size=2)
        people = gather(data.val_dataloader()[2], "identity")
        assert len(set(people)) == len(people)
        assert all("partner" not in batch for batch in data.val_dataloader()[2])

    def test_identities_are_numbered_by_use(self, make: Make) -> None:
        data = make(batch_size=2)
        known, val, _ = (set(gather(loader, "identity")) for loader in data.val_dataloader())
        _, test, _ = (set(gather(loader, "identity")) for loader in data.test_dataloader())
        assert known <= set(range(data.num_identities))
        assert data.num_identities <= min(val) <= max(val) < min(test) <= max(test) < len(data.identity_names)

    def test_training_partners_are_the_same_person(self, make: Make) -> None:
        data = make(batch_size=2)
        trained = [self.person_of(data.paths[row]) for row in data.split.train]
        for batch in data.train_dataloader():
            assert torch.equal(batch["identity"], batch["partner_identity"])
            for identity, row, partner in zip(batch["identity"], batch["index"], batch["partner_index"], strict=True):
                person = self.person_of(data.paths[row])
                assert self.person_of(data.paths[partner]) == person
                alone = identity == -1 or trained.count(person) == 1
                assert (row == partner) == alone

    def test_evaluation_partners_are_other_people(self, make: Make) -> None:
        data = make(batch_size=5, attributes_per_query=2)
        for loader in (*data.val_dataloader()[:2], *data.test_dataloader()[:2]):
            pairs = list(zip(gather(loader, "index"), gather(loader, "partner_index"), strict=True))
            assert len(set(pairs)) == len(pairs)
            person = {row: self.person_of(data.paths[row]) for row, _ in pairs}
            for row in person:
                others = sum(name != person[row] for name in person.values())
                if others == 0:  # nobody else in this set: attributes come from the other one
                    others = 2
                assert sum(query == row for query, _ in pairs) == min(2, others)
            train = set(data.split.train.tolist())
            for row, partner in pairs:
                assert self.person_of(data.paths[row]) != self.person_of(data.paths[partner])
                assert partner not in train

    def test_prediction_gets_the_tests_pairs(self, make: Make) -> None:
        data = make(batch_size=5)
        for predicted, tested in zip(data.predict_dataloader(), data.test_dataloader()[:2], strict=True):
            assert len(predicted) == len(tested) > 0
            assert all(map(same, predicted, tested))

    def test_an_epoch_visits_no_photo_twice(self, make: Make) -> None:
        data = make(batch_size=3)
        loader = data.train_dataloader()
        first, second = gather(loader, "index"), gather(loader, "index")
        for epoch in (first, second):
            assert len(set(epoch)) == len(epoch) == len(loader) * 3
            assert set(epoch) <= set(data.split.train.tolist())
        assert first != second

    def test_batches_of_two_photos_a_person(self, make: Make) -> None:
        data = make(batch_size=2, sampler=IdentityBalanced(2))
        batches = list(data.train_dataloader())
        assert len(batches) >= 2
        for batch in batches:
            first, second = (self.person_of(data.paths[row]) for row in batch["index"])
            assert first == second
            assert batch["index"][0] != batch["index"][1]
        people = [int(batch["identity"][0]) for batch in batches]
        assert len(set(people)) == len(people)
        workers = make(batch_size=2, sampler=IdentityBalanced(2), num_workers=2, memory_limit=0)
        assert all(map(same, workers.train_dataloader(), batches))
        workers.teardown("fit")

    def test_batches_by_sex_and_age(self, make: Make) -> None:
        labels = make().labels(make().photos)
        if {"sex", "age"} <= labels.keys():
            data = make(batch_size=2, sampler=SexAgeBalanced(bins=1, youngest=0, oldest=120))
            sexes = set(labels["sex"][data.split.train].tolist())
            assert all(set(batch["sex"].tolist()) == sexes for batch in data.train_dataloader())
        else:
            missing = "age" if "sex" in labels else "sex"
            with pytest.raises(ValueError, match=rf"label '{missing}', which {type(make()).__name__} does not give"):
                make(sampler=SexAgeBalanced()).train_dataloader()

    def test_people_can_be_left_out(self, make: Make, tmp_path: Path) -> None:
        whole = make()
        person = whole.identity_names[0]
        (tmp_path / "exclude.txt").write_text(f"# tested on elsewhere\n{person.upper().replace('_', ' ')}\n")
        data = make(exclude=tmp_path / "exclude.txt", val_identities=1)
        assert person not in data.identity_names
        assert {photo.person for photo in whole.photos} - {photo.person for photo in data.photos} == {person}
        gone = {photo.path for photo in whole.photos if photo.person == person}
        reason = f"{person} is named in {tmp_path / 'exclude.txt'}"
        assert {entry.path for entry in data.rejected if entry.reason == reason} == gone
        assert person in data.people()
        with pytest.raises(FileNotFoundError, match=rf"exclude: .*Did you mean '{tmp_path / 'exclude.txt'}'"):
            make(exclude=tmp_path / "excluded.txt")

    def test_two_instances_agree(self, make: Make) -> None:
        flip = {"sample_transforms": [albumentations.HorizontalFlip(p=0.5)]}
        left, right = make(batch_size=4, **flip), make(batch_size=4, **flip)
        assert left.identity_names == right.identity_names
        assert all(map(same, left.train_dataloader(), right.train_dataloader()))
        for one, other in zip(left.val_dataloader(), right.val_dataloader(), strict=True):
            assert len(one) == len(other)
            assert all(map(same, one, other))
        another = make(batch_size=4, seed=1)
        assert another.identity_names != left.identity_names
        assert gather(another.train_dataloader(), "index") != gather(make(batch_size=4).train_dataloader(), "index")

    def test_workers_and_disk_change_nothing(self, make: Make) -> None:
        options = {"batch_size": 4, "sample_transforms": [albumentations.RandomBrightnessContrast(p=1)]}
        here, workers, disk = make(**options), make(**options, num_workers=2), make(**options, memory_limit=0)
        expected = list(here.train_dataloader())
        for data in (workers, disk):
            loader = data.train_dataloader()
            assert len(loader) == len(expected)
            assert all(map(same, loader, expected))
            data.teardown("fit")

    def test_partners_can_be_left_out(self, make: Make) -> None:
        data = make(batch_size=2, partner=False)
        keys = next(iter(data.train_dataloader())).keys()
        assert keys == {"image", "identity", "index"} | data.labels(data.photos).keys()

    def test_images_on_the_device(self, make: Make) -> None:
        data = make(image_size=16, batch_size=4)
        raw = next(iter(data.train_dataloader()))
        batch = data.on_after_batch_transfer(raw, 0)
        for key in ("image", "partner"):
            image: Tensor = batch[key]
            assert image.dtype == torch.float32
            assert image.is_contiguous(memory_format=torch.channels_last)
            assert torch.allclose(image, raw[key].double().div(255).mul(2).sub(1).float(), atol=1e-6)
        assert torch.equal(batch["index"], raw["index"])

    def test_a_batch_too_large_is_refused(self, make: Make) -> None:
        with pytest.raises(ValueError, match=r"batch_size=100000.*lower batch_size to"):
            make(batch_size=100_000).train_dataloader()

    def test_an_unknown_option_is_refused(self, make: Make) -> None:
        with pytest.raises(TypeError, match="batchsize"):
            make(batchsize=3)

    def test_it_can_be_sent_to_another_process(self, make: Make) -> None:
        data = make(batch_size=4, memory_limit=0)
        dataset = pickle.loads(pickle.dumps(data.train_dataloader()._loader.dataset))
        draw = next(iter(data.train_dataloader().batches))
        assert same(dataset[draw], next(iter(data.train_dataloader())))
