"""LFW, in a tiny copy of its published layout."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_modules.lfw import LFWDataModule, read_pairs
from data_modules.orl import orl_root
from data_modules.photos import Rejected
from tests.data_modules.contract import DataModuleContract, Make

PAIRS = """2\t2
Ann_A\t1\t2
Bob_B\t1\t2
Ann_A\t1\tBob_B\t2
Cid_C\t2\tBob_B\t1
Cid_C\t1\t2
Ann_A\t2\t1
Cid_C\t1\tAnn_A\t2
Bob_B\t2\tAnn_A\t1
"""
PEOPLE = ("Ann_A", "Bob_B", "Cid_C", "Dan_D", "Eve_E", "Fay_F")


@pytest.fixture
def lfw(tmp_path: Path) -> Path:
    """Six people with four photos each, pairs and lists of names."""
    for number, name in enumerate(PEOPLE, 1):
        folder = tmp_path / "lfw/lfw-deepfunneled" / name
        folder.mkdir(parents=True)
        for photo in range(1, 5):
            with Image.open(orl_root() / f"s{number}" / f"{photo}.pgm") as image:
                image.convert("RGB").save(folder / f"{name}_{photo:04d}.jpg", quality=95)
    root = tmp_path / "lfw"
    (root / "pairs.txt").write_text(PAIRS)
    for file, people in (("female_names.txt", "AEF"), ("male_names.txt", "BC")):
        names = [name for name in PEOPLE if name[-1] in people]
        (root / file).write_text("\n".join(f"{name}_{n:04d}.jpg" for name in names for n in range(1, 5)) + "\n\n")
    return root


class TestLFW(DataModuleContract):
    @pytest.fixture
    def make(self, lfw: Path, tmp_path: Path) -> Make:
        def make(**options: Any) -> LFWDataModule:
            own = {"align": False, "image_size": 16, "val_identities": 2, "test_identities": 2}
            return LFWDataModule(lfw, cache_dir=tmp_path / "cache", **{**own, **options})

        return make


def test_sex_is_what_the_lists_say(lfw: Path) -> None:
    data = LFWDataModule(lfw, align=False, image_size=16, batch_size=2, val_identities=1, test_identities=1)
    sex = data.labels(data.photos)["sex"]
    for photo, value in zip(data.photos, sex.tolist(), strict=True):
        expected = {"A": -1.0, "E": -1.0, "F": -1.0, "B": 1.0, "C": 1.0}.get(str(photo.person)[-1])
        assert value == expected or (expected is None and value != value)
    for name in ("female_names.txt", "male_names.txt"):
        (lfw / name).unlink()
    without = LFWDataModule(lfw, align=False, image_size=16, batch_size=2, val_identities=1, test_identities=1)
    assert "sex" not in next(iter(without.train_dataloader()))


def test_the_photos_folder_may_be_the_root(lfw: Path) -> None:
    (lfw / "lfw-deepfunneled/pairs.txt").write_text(PAIRS)
    data = LFWDataModule(lfw / "lfw-deepfunneled", align=False, image_size=16)
    assert len(data.list_photos()) == 24
    assert len(data.pairs[0]) == 8


def test_faces_are_found_and_aligned(lfw: Path, tmp_path: Path) -> None:
    data = LFWDataModule(lfw, image_size=32, cache_dir=tmp_path / "cache", batch_size=2)
    assert len(data.photos) == 24
    assert data.rejected == []


def test_what_is_no_photo_of_lfw_is_left_out(lfw: Path, tmp_path: Path) -> None:
    (lfw / "lfw-deepfunneled/Ann_A/Thumbs.db").write_bytes(b"x")
    (lfw / "lfw-deepfunneled/Ann_A/Ann_A_0003.jpg").write_bytes(b"no picture")
    data = LFWDataModule(lfw, align=False, cache_dir=tmp_path / "cache", batch_size=2)
    _ = data.num_identities
    assert {entry.path.name for entry in data.rejected} == {"Thumbs.db", "Ann_A_0003.jpg"}
    found = "\n".join(data.verify())
    assert "24 photos of 6 people, published: 13,233 of 5,749" in found
    assert "4 photos are in neither list of names" in found
    assert "1 of 24 photos cannot be read; the first: Ann_A/Ann_A_0003.jpg" in found
    (lfw / "lfw-deepfunneled/Cid_C/Cid_C_0002.jpg").unlink()
    assert "1 photos of pairs.txt are not there, Cid_C/Cid_C_0002.jpg among them" in "\n".join(data.verify())


def test_what_is_not_lfw_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no photos of LFW.*Expected lfw-deepfunneled or"):
        LFWDataModule(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        LFWDataModule(tmp_path / "gone")


def test_pairs_are_read_with_their_folds(lfw: Path) -> None:
    pairs, fold = read_pairs(lfw / "pairs.txt")
    assert pairs[0] == (("Ann_A", 1), ("Ann_A", 2))
    assert pairs[3] == (("Cid_C", 2), ("Bob_B", 1))
    assert fold.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_a_cut_or_broken_list_is_refused(lfw: Path) -> None:
    file = lfw / "pairs.txt"
    file.write_text(PAIRS.replace("Cid_C\t1\t2\n", ""))
    with pytest.raises(ValueError, match="2 folds of twice 2 pairs but holds 7"):
        read_pairs(file)
    file.write_text(PAIRS.replace("Cid_C\t1\t2\n", "Cid_C\t1\n"))
    with pytest.raises(ValueError, match=r"pairs\.txt, line 6: expected .*found 'Cid_C\\t1'"):
        read_pairs(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "announces 0 folds of twice 0 pairs but holds 0"),
        ("999999999\t0\n", "announces 999999999 folds of twice 0 pairs but holds 0"),
        (f"{'9' * 5_000}\t2\n", r"line 1: expected 'folds pairs', found '9{80}'"),
        ("-2\t-2\n" + "A\t1\t2\n" * 8, "line 1: expected 'folds pairs'"),
        (PAIRS.replace("Ann_A\t1\t2", f"Ann_A\t1\t{'9' * 5_000}"), "line 2: expected 'name number number' or"),
        (PAIRS + "n" * 10**6, "line 10: more than 65,536 characters"),
    ],
)
def test_absurd_pairs_are_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "pairs.txt"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as raised:
        read_pairs(file)
    assert str(file) in str(raised.value)
    assert len(str(raised.value)) < 500


def test_absurd_names_are_left_out(lfw: Path) -> None:
    for name in ("Ann\x1b[2J_A", "n" * 101):
        (lfw / "lfw-deepfunneled" / name).mkdir()
        (lfw / "lfw-deepfunneled" / name / f"{name}_0001.jpg").write_bytes(b"x")
    listed = LFWDataModule(lfw, align=False).list_photos()
    reasons = sorted(entry.reason for entry in listed if isinstance(entry, Rejected))
    assert reasons == [
        "'Ann\\x1b[2J_A' where a person's name was expected",
        "a name of 101 characters, expected 1 to 100",
    ]
    with (lfw / "male_names.txt").open("w") as file:
        file.truncate(2**32)
    data = LFWDataModule(lfw, align=False, image_size=16)
    with pytest.raises(ValueError, match=r"male_names\.txt, line 1: more than 65,536 characters"):
        data.labels(data.photos)
