"""Sets joined to train on together."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from data_modules.folder import FaceFolderDataModule
from data_modules.joined import JoinedDataModule
from data_modules.orl import orl_root
from tests.data_modules.contract import DataModuleContract, Make


@pytest.fixture
def make(face_folder: Path, tmp_path: Path) -> Make:
    """The faces of six people; and more photos of these, whose names are written otherwise, and of two others."""
    more = tmp_path / "more"
    for name, person in [(f"Person {number}", number) for number in range(1, 7)] + [("new_1", 9), ("new_2", 10)]:
        (more / name).mkdir(parents=True)
        for photo in range(5, 8):
            shutil.copy(orl_root() / f"s{person}" / f"{photo}.pgm", more / name)

    def make(**options: object) -> JoinedDataModule:
        split = {key: options.pop(key) for key in ("val_identities", "test_identities") if key in options}
        size = {"image_size": options.get("image_size", 64), "seed": options.get("seed", 0)}
        own = {"align": False, "cache_dir": tmp_path / "cache", **size}
        first = FaceFolderDataModule(face_folder, **{"val_identities": 2, "test_identities": 2, **split, **own})
        return JoinedDataModule([first, FaceFolderDataModule(more, **own)], **options)

    return make


class TestJoined(DataModuleContract):
    @pytest.fixture
    def make(self, make: Make) -> Make:
        return make

    def person_of(self, path: Path) -> str:
        return path.parent.name.replace("Person ", "person_")


def test_the_first_set_is_split_as_it_is_alone_and_the_others_only_train(make: Make) -> None:
    data = make()
    assert isinstance(data, JoinedDataModule)
    alone = data.sets[0]
    held_out = set(alone.identity_names[alone.num_identities :])
    assert len(held_out) == 4
    trained = set(alone.identity_names[: alone.num_identities])
    assert set(data.identity_names[: data.num_identities]) == trained | {"new_1", "new_2"}
    assert data.identity_names[data.num_identities :] == alone.identity_names[alone.num_identities :]

    def names(module: FaceFolderDataModule | JoinedDataModule, rows: np.ndarray) -> set[str]:
        return {module.photos[row].name.removeprefix("0/") for row in rows}

    for use in ("val", "test"):
        assert names(data, data.split.known[use]) == names(alone, alone.split.known[use])
        assert names(data, data.split.unseen[use]) == names(alone, alone.split.unseen[use])
    assert names(data, data.split.gallery) == names(alone, alone.split.gallery)
    more = {photo.name for photo in data.photos if photo.name.startswith("1/")}
    also = {name.replace("person_", "Person ") for name in trained} | {"new_1", "new_2"}
    assert {name.split("/")[1] for name in more} == also
    assert names(data, data.split.train) == names(alone, alone.split.train) | more
    reasons = [entry.reason for entry in data.rejected if "more" in str(entry.path)]
    assert len(reasons) == 3 * len(held_out)
    assert all("the first set validates or tests on person_" in reason for reason in reasons)
    own = {data.split.identity[row] for row, photo in enumerate(data.photos) if photo.person == min(trained)}
    assert own == {data.identity_names.index(min(trained))}  # one person in both sets


def test_sets_of_other_sizes_and_none_are_refused(make: Make, face_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"image_size is 32, but that of sets\[0\] is 64"):
        JoinedDataModule([FaceFolderDataModule(face_folder, align=False)], image_size=32)
    with pytest.raises(ValueError, match="held_out_photos has no effect here"):
        JoinedDataModule([FaceFolderDataModule(face_folder, align=False)], held_out_photos=3)
    with pytest.raises(ValueError, match="sets is empty"):
        JoinedDataModule([])
