"""People to leave out, by lists of their names."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_modules.folder import FaceFolderDataModule
from data_modules.orl import orl_root
from data_modules.people import plain_name, read_names
from data_modules.utkface import UTKFaceDataModule

Make = Callable[..., FaceFolderDataModule]


@pytest.fixture
def make(face_folder: Path, tmp_path: Path) -> Make:
    """A set of six people: give `exclude` as the text of the list."""

    def make(exclude: str | bytes, root: Path = face_folder, **options: Any) -> FaceFolderDataModule:
        file = tmp_path / "people.txt"
        file.write_bytes(exclude if isinstance(exclude, bytes) else exclude.encode())
        defaults = {"align": False, "image_size": 16, "val_identities": 1, "test_identities": 1}
        return FaceFolderDataModule(root, cache_dir=tmp_path / "cache", exclude=file, **{**defaults, **options})

    return make


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What is logged, also by Lightning's logger, which may keep its messages to itself."""
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "propagate", True)
    caplog.set_level(logging.INFO)
    return caplog


@pytest.mark.parametrize(
    "names",
    [
        ("Aaron_Eckhart", "aaron eckhart", "Aaron Eckhart", " AARON-ECKHART. "),
        ("Beyoncé", "Beyonce\u0301", "beyonce", "BEYONCÉ"),
        ("Robert Downey, Jr.", "Robert_Downey_Jr"),
        ("Franz Strauß", "FRANZ STRAUSS"),
        ("Ｌｉ　Ｎａ", "Li_Na"),  # noqa: RUF001 full-width letters
        ("李娜", " 李_娜"),
    ],
)
def test_a_name_is_the_same_however_it_is_written(names: tuple[str, ...]) -> None:
    assert len({plain_name(name) for name in names}) == 1
    assert plain_name(names[0])


def test_other_names_are_others() -> None:
    names = ("Ann Lee", "Anna Lee", "s1", "s11", "李娜", "李", "Ivan", "Иван")
    assert len({plain_name(name) for name in names}) == len(names)


@pytest.mark.parametrize("memory_limit", [2.0, 0.0])
def test_the_named_are_left_out_before_they_are_read(
    make: Make, face_folder: Path, told: pytest.LogCaptureFixture, memory_limit: float
) -> None:
    decoded: list[str] = []

    class Watched(FaceFolderDataModule):
        def reader(self, photos: Any) -> Any:
            decoded.extend(photo.person for photo in photos)
            return super().reader(photos)

    names = "\ufeff# to be tested on\n\nPERSON 2\r\nperson-5\nNobody Else\n---\n"
    data = make(names, memory_limit=memory_limit)
    data.__class__ = Watched
    assert {photo.person for photo in data.photos} == {"person_1", "person_3", "person_4", "person_6"}
    assert set(decoded) == {"person_1", "person_3", "person_4", "person_6"}
    assert len(data.identity_names) == 4
    assert {entry.path for entry in data.rejected} == {
        path for number in (2, 5) for path in (face_folder / f"person_{number}").iterdir()
    }
    assert {entry.reason for entry in data.rejected} == {
        f"{person} is named in {data.exclude}" for person in ("person_2", "person_5")
    }
    assert f"2 of the 6 people are among the 3 named in '{data.exclude}': their 8 photos are left out" in told.text
    assert "8 of 24 files are left out" in told.text


def test_the_split_is_that_of_the_others(make: Make, face_folder: Path, tmp_path: Path) -> None:
    """As if the set had never held them."""
    shutil.copytree(face_folder, tmp_path / "faces", ignore=shutil.ignore_patterns("person_2", "person_5"))
    without, excluded = make("", tmp_path / "faces"), make("person 2\nperson 5")
    assert without.identity_names == excluded.identity_names
    assert without.split.train.tolist() == excluded.split.train.tolist()


def test_what_is_wrong_with_the_set_is_told_first(make: Make, face_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(face_folder, tmp_path / "faces")
    (tmp_path / "faces/person_6/4.png").write_bytes(b"no picture")
    data = make("person_1", tmp_path / "faces")
    assert [entry.path.name for entry in data.rejected] == ["4.png", "1.png", "2.png", "3.png", "4.png"]
    assert "not an image" in data.rejected[0].reason


def test_a_list_that_names_nobody_here(make: Make, told: pytest.LogCaptureFixture) -> None:
    assert len(make("Aaron_Eckhart\nZoe").photos) == 24
    warning = next(record for record in told.records if record.levelname == "WARNING")
    expected = "people.txt' (2, such as 'Aaron_Eckhart') is one of this set, whose people have names such as 'person_1'"
    assert expected in warning.getMessage()
    told.clear()
    assert len(make("# nobody yet\n").photos) == 24
    assert "people.txt' is one of this set" in told.text


def test_where_nobody_is_known(tmp_path: Path, told: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "utkface"
    root.mkdir()
    for photo in (1, 2, 3):
        with Image.open(orl_root() / f"s1/{photo}.pgm") as image:
            image.save(root / f"25_0_2_2017011617452512{photo}.jpg.chip.jpg", "JPEG")
    (tmp_path / "names.txt").write_text("Ann")
    data = UTKFaceDataModule(
        root, align=False, cache_dir=tmp_path, exclude=tmp_path / "names.txt", val_share=0.0, test_share=0.0
    )
    assert len(data.photos) == 3
    assert "is one of this set, whose people are not known: nobody is left out" in told.text


def test_if_too_few_are_left_it_says_why(make: Make) -> None:
    with pytest.raises(ValueError, match=r"expected two people or more; 20 of 24 files are left out(.|\n)*is named in"):
        _ = make("\n".join(f"person {number}" for number in range(1, 6))).photos


def test_lists_that_are_none(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"exclude: '.*people\.txt' is not UTF-8 text .* save it as UTF-8"):
        make("Zoë\n".encode("utf-16"))
    with pytest.raises(ValueError, match=r"people\.txt', line 2: 'Ann\\t3' holds a tab, expected a name"):
        make("Zoe\nAnn\t3\n")
    (tmp_path / "lfw.txt").write_text("Ann")
    with pytest.raises(FileNotFoundError, match=rf"exclude: there is no file .*Did you mean '{tmp_path / 'lfw.txt'}'"):
        read_names(tmp_path / "lfw.tx")
    with pytest.raises(FileNotFoundError, match="exclude: there is no file"):
        read_names(tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"Did you mean '{tmp_path}'"):
        read_names(tmp_path.with_name(tmp_path.name + "x") / "lfw.txt")


def test_people_are_listed_once_and_sorted(make: Make) -> None:
    assert make("person 1").people() == [f"person_{number}" for number in range(1, 7)]
