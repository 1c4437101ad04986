"""CelebA, in a tiny copy of its published layout."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_modules.celeba import CelebADataModule
from data_modules.orl import ORLDataModule, orl_root
from data_modules.prepare.align import AlignedReader
from tests.data_modules.contract import DataModuleContract, Make

PEOPLE, PHOTOS = 7, 4
NAMES = [f"{person}{photo:05d}.jpg" for person in range(1, PEOPLE + 1) for photo in range(1, PHOTOS + 1)]
PART = {"1": 0, "2": 0, "3": 0, "4": 1, "5": 1, "6": 2, "7": 2}
COLUMNS = ["Bald", "Eyeglasses", "Male", *(f"Attribute_{number}" for number in range(37))]


def source(name: str) -> tuple[str, Path]:
    """The ORL photo that stands for one of CelebA's."""
    key = f"s{name[0]}/{int(name[1:6])}.pgm"
    return key, orl_root() / key


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ORL faces as `img_align_celeba`, enlarged, with lists as CelebA writes them. Do not write to it."""
    root = tmp_path_factory.mktemp("celeba")
    for folder in ("Img/img_align_celeba", "Anno", "Eval"):
        (root / folder).mkdir(parents=True)
    orl = ORLDataModule()
    reader = orl.reader(orl.photos)
    assert isinstance(reader, AlignedReader)
    landmarks = []
    for name in NAMES:
        key, path = source(name)
        with Image.open(path) as photo:
            photo.convert("RGB").resize((184, 224)).save(root / "Img/img_align_celeba" / name, quality=95)
        points = ((reader.landmarks[key] + 0.5) * 2 - 0.5).round().astype(int).ravel()
        landmarks.append(f"{name}  " + "  ".join(map(str, points)))

    def write(name: str, lines: list[str]) -> None:
        (root / name).write_text("\n".join(lines) + "\n")

    write("Anno/identity_CelebA.txt", [f"{name} {name[0]}" for name in NAMES])
    write("Eval/list_eval_partition.txt", [f"{name} {PART[name[0]]}" for name in NAMES])
    rows = [f"{name} {' '.join(' 1' if (n + int(name[0])) % 3 == 0 else '-1' for n in range(40))}" for name in NAMES]
    write("Anno/list_attr_celeba.txt", [str(len(NAMES)), " ".join(COLUMNS), *rows])
    header = "lefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y rightmouth_x rightmouth_y"
    write("Anno/list_landmarks_align_celeba.txt", [str(len(NAMES)), header, *landmarks])
    boxes = [f"{name}  10 20  {100 + int(name[0])} 140" for name in NAMES]
    write("Anno/list_bbox_celeba.txt", [str(len(NAMES)), "image_id x_1 y_1 width height", *boxes])
    return root


class TestCelebA(DataModuleContract):
    @pytest.fixture
    def make(self, published: Path, tmp_path: Path) -> Make:
        def make(**options: Any) -> CelebADataModule:
            own = {"official_split": False, "image_size": 16, "val_identities": 2, "test_identities": 2}
            return CelebADataModule(published, cache_dir=tmp_path, **{**own, **options})

        return make

    def person_of(self, path: Path) -> str:
        return path.name[0]


def test_people_are_used_as_celeba_says(published: Path) -> None:
    data = CelebADataModule(published, image_size=16, batch_size=2, val_identities=0.5)
    assert data.identity_names == ["1", "2", "3", "4", "5", "6", "7"]
    assert data.num_identities == 3
    assert {data.identity_names[i] for i in data.split.identity[data.split.unseen["val"]]} == {"4", "5"}
    assert {data.identity_names[i] for i in data.split.identity[data.split.unseen["test"]]} == {"6", "7"}


def test_labels_follow_their_photo(published: Path) -> None:
    data = CelebADataModule(published, image_size=16, batch_size=4)
    assert data.attribute_names == COLUMNS
    for batch in (*data.train_dataloader(), *(batch for loader in data.test_dataloader() for batch in loader)):
        for row, attributes, sex in zip(batch["index"], batch["attributes"], batch["sex"], strict=True):
            person = int(data.paths[row].name[0])
            expected = [1.0 if (n + person) % 3 == 0 else -1.0 for n in range(40)]
            assert attributes.tolist() == expected
            assert sex == expected[2]
            assert attributes.dtype == torch.float32


def test_faces_are_aligned_by_celebas_own_landmarks(published: Path) -> None:
    data, orl = CelebADataModule(published, image_size=64), ORLDataModule(image_size=64)
    for photo in data.photos[::9]:
        expected = next(each for each in orl.photos if each.name == source(photo.name)[0])
        difference = data.reader(data.photos)(photo).astype(float) - orl.reader(orl.photos)(expected)
        assert np.abs(difference).mean() < 5


def test_bounding_boxes(published: Path) -> None:
    assert CelebADataModule(published).bounding_boxes["300002.jpg"].tolist() == [10, 20, 103, 140]


def copy(published: Path, root: Path) -> Path:
    for path in published.rglob("*"):
        if path.is_file():
            target = root / path.name if path.suffix == ".txt" else root / "img_align_celeba" / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return root


def test_lists_may_lie_beside_the_photos_and_be_fewer(published: Path, tmp_path: Path) -> None:
    root = copy(published, tmp_path / "flat")
    (root / "list_attr_celeba.txt").unlink()
    data = CelebADataModule(root, image_size=16, batch_size=2)
    assert "attributes" not in next(iter(data.train_dataloader()))
    assert "list_attr_celeba.txt is not there." in data.verify()


def test_verify_says_what_is_missing(published: Path, tmp_path: Path) -> None:
    root = copy(published, tmp_path / "damaged")
    (root / "img_align_celeba/100001.jpg").unlink()
    (root / "img_align_celeba/999999.jpg").write_bytes(b"")
    found = "\n".join(CelebADataModule(root).verify())
    assert "28 files; CelebA has 202,599" in found
    assert "names 7 people; CelebA has 10,177" in found
    assert "1 photos of identity_CelebA.txt are not there, 100001.jpg among them" in found
    assert "1 photos are not in identity_CelebA.txt, 999999 among them" in found


def test_a_photo_without_landmarks_or_pixels_is_left_out(published: Path, tmp_path: Path) -> None:
    root = copy(published, tmp_path / "damaged")
    (root / "img_align_celeba/100001.jpg").write_bytes(b"no picture")
    (root / "img_align_celeba/999999.jpg").write_bytes((root / "img_align_celeba/100002.jpg").read_bytes())
    (root / "img_align_celeba/notes.doc").write_bytes(b"x")
    for memory_limit in (2.0, 0.0):
        data = CelebADataModule(root, image_size=16, batch_size=2, memory_limit=memory_limit, cache_dir=tmp_path)
        assert {entry.path.name for entry in data.rejected} == {"100001.jpg", "999999.jpg", "notes.doc"}


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("identity_CelebA.txt", "100001.jpg", r"identity_CelebA\.txt, line 29: 1 fields, expected 2"),
        ("list_eval_partition.txt", "100001.jpg 7", r"list_eval_partition\.txt, line 29: partition '7'"),
        ("list_eval_partition.txt", "100001.jpg 2", r"line 29: person 1 is in 'train' and 'test'"),
        ("list_attr_celeba.txt", "100001.jpg" + " x" * 40, r"list_attr_celeba\.txt, line 31: expected 40 numbers"),
        ("list_landmarks_align_celeba.txt", "100001.jpg 1 2", r"line 31: 3 fields, expected 11"),
        ("list_landmarks_align_celeba.txt", "100001.jpg" + " nan" * 10, r"line 31: expected 10 numbers"),
        ("list_landmarks_align_celeba.txt", "100001.jpg" + " 1e999" * 10, r"line 31: expected 10 numbers"),
        ("identity_CelebA.txt", "100001.jpg ../../etc", r"line 29: person '../../etc', expected a number"),
        ("identity_CelebA.txt", f"100001.jpg {'9' * 5_000}", r"line 29: person '9{40}', expected a number"),
        ("identity_CelebA.txt", "n" * 10**6 + " 1", r"identity_CelebA\.txt, line 29: more than 65,536 characters"),
    ],
)
def test_a_damaged_list_is_named(published: Path, tmp_path: Path, name: str, line: str, message: str) -> None:
    root = copy(published, tmp_path / "damaged")
    with (root / name).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=message):
        _ = CelebADataModule(root, image_size=16).num_identities


def test_a_list_of_wrong_attributes_is_refused(published: Path, tmp_path: Path) -> None:
    root = copy(published, tmp_path / "damaged")
    for header in ("", "1", "1\n" + "Male " * 13_000, "1\n" + "Bald " * 40):
        (root / "list_attr_celeba.txt").write_text(header)
        with pytest.raises(ValueError, match=r"list_attr_celeba\.txt, line 2: .*expected those of CelebA's 40"):
            next(iter(CelebADataModule(root, image_size=16).train_dataloader()))


@pytest.mark.parametrize("name", ["identity_CelebA.txt", "list_eval_partition.txt", "list_landmarks_align_celeba.txt"])
def test_a_line_of_gigabytes_is_not_read(published: Path, tmp_path: Path, name: str) -> None:
    root = copy(published, tmp_path / "damaged")
    with (root / name).open("r+") as file:
        file.truncate(2**32)
    tracemalloc.start()
    with pytest.raises(ValueError, match=rf"{name}, line \d+: more than 65,536 characters"):
        _ = CelebADataModule(root, image_size=16).num_identities
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


def test_what_is_not_celeba_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no 'img_align_celeba'.*Expected CelebA as it is published"):
        CelebADataModule(tmp_path)
