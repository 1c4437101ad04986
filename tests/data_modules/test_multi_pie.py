"""Multi-PIE: sessions, cameras and illuminations in names."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from data_modules.multi_pie import CAMERA_YAW, ILLUMINATIONS, MultiPIEDataModule
from data_modules.orl import orl_root
from tests.data_modules.contract import DataModuleContract
from tests.data_modules.contract import Make as AnyMake

Make = Callable[..., MultiPIEDataModule]


def put(root: Path, subject: int, session: int, camera: str, illumination: int, photo: int = 1) -> Path:
    """A photo where the set has it, in its 4:3 framing."""
    place = root / f"session{session:02}" / "multiview" / f"{subject:03}" / "01" / camera
    place.mkdir(parents=True, exist_ok=True)
    path = place / f"{subject:03}_{session:02}_01_{camera.replace('_', '')}_{illumination:02}.png"
    canvas = Image.new("RGB", (160, 120), "grey")
    with Image.open(orl_root() / f"s{subject}" / f"{photo}.pgm") as image:
        canvas.paste(image.convert("RGB"), (34, 4))
    canvas.save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six subjects, one of them in the second session only, and four photos of each."""
    root = tmp_path / "data"
    for subject in range(1, 7):
        for number, (camera, illumination) in enumerate([("05_1", 0), ("05_1", 6), ("14_0", 0), ("19_1", 19)]):
            put(root, subject, 2 if subject == 6 else 1, camera, illumination, number + 1)
    (root / "session01" / "highres" / "001").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(root / "session01" / "highres" / "001" / "001_01_01.png")
    return root


@pytest.fixture
def make(folder: Path, tmp_path: Path) -> Make:
    def make(root: Path = folder, **options: Any) -> MultiPIEDataModule:
        defaults = {"align": False, "image_size": 16, "batch_size": 2, "val_identities": 1, "test_identities": 1}
        return MultiPIEDataModule(root, cache_dir=tmp_path / "cache", **{**defaults, **options})

    return make


class TestMultiPIE(DataModuleContract):
    @pytest.fixture
    def make(self, folder: Path, tmp_path: Path) -> AnyMake:
        for subject in range(1, 7):
            put(folder, subject, 2 if subject == 6 else 1, "24_0", 3, 5)

        # Without the camera above: its yaw is NaN, which is not equal to itself.
        def make(**options: Any) -> MultiPIEDataModule:
            chosen = {"val_identities": 2, "test_identities": 2, "cameras": ["05_1", "14_0", "240"]}
            return MultiPIEDataModule(folder, cache_dir=tmp_path / "cache", **{"align": False, **chosen, **options})

        return make

    def person_of(self, path: Path) -> str:
        return path.name[:3]


def test_labels_are_those_in_the_names(make: Make) -> None:
    data = make()
    yaws = {51: 0.0, 140: -15.0, 191: math.nan}
    for batch in data.training_photos():
        columns = (batch[key] for key in ("index", "yaw", "camera", "illumination"))
        for row, yaw, camera, illumination in zip(*columns, strict=True):
            assert data.paths[row].stem.split("_")[3:] == [f"{int(camera):03}", f"{int(illumination):02}"]
            torch.testing.assert_close(yaw, torch.tensor(yaws[int(camera)]), equal_nan=True)
            assert yaw.dtype == camera.dtype == illumination.dtype == torch.float32


def test_the_thirteen_yaws_are_fifteen_degrees_apart() -> None:
    assert sorted(yaw for yaw in CAMERA_YAW.values() if yaw is not None) == list(range(-90, 91, 15))
    assert len(CAMERA_YAW) == 15


@pytest.mark.parametrize(
    ("selection", "count"),
    [
        ({"sessions": [1]}, 20),
        ({"cameras": ["05_1"]}, 12),
        ({"cameras": ["051", "191"]}, 18),
        ({"illuminations": [0]}, 12),
        ({"sessions": [1], "cameras": ["05_1"], "illuminations": [0, 6, 19]}, 10),
    ],
)
def test_selections(make: Make, selection: dict[str, list[Any]], count: int) -> None:
    data = make(held_out_photos=0, **selection)
    assert len(data.paths) == count
    assert data.rejected == []


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"sessions": [5]}, r"sessions: found 5, expected some of 1, 2, 3, 4"),
        ({"cameras": ["06_1"]}, r"cameras: found 06_1, expected some of 11_0, "),
        ({"illuminations": [20]}, r"illuminations: found 20, expected some of 0, 1, "),
        ({"illuminations": []}, r"illuminations: found none"),
    ],
)
def test_what_the_set_does_not_have(make: Make, selection: dict[str, list[Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**selection)


def test_a_session_that_is_not_there(make: Make) -> None:
    with pytest.raises(FileNotFoundError, match=r"session04': unpack session 4 there, or choose from 1, 2"):
        _ = make(sessions=[1, 4]).photos


def test_bad_files_are_listed(make: Make, folder: Path) -> None:
    broken = put(folder, 2, 1, "13_0", 1)
    broken.write_bytes(broken.read_bytes()[:300])
    place = broken.parent
    bad = {
        broken.name: "truncated|cannot be decoded",
        "002_01_01_999_00.png": "camera 999",
        "002_01_01_130_20.png": "illumination 20",
        "002_01_01_130.png": "not named",
        "Thumbs.db": "not named",
        "003_01_01_130_02.png": "not in the place that its name says, 'session01/multiview/003/01/13_0/",
    }
    for name in bad:
        if name != broken.name:
            Image.new("RGB", (64, 64)).save(place / name, "PNG")
    for memory_limit in (2.0, 0.0):
        data = make(memory_limit=memory_limit)
        reasons = {entry.path.name: entry.reason for entry in data.rejected}
        assert reasons.keys() == bad.keys()
        for name, expected in bad.items():
            assert any(part in reasons[name] for part in expected.split("|")), (name, reasons[name])
        assert len(data.paths) == 24
    found = "\n".join(make().verify())
    assert "5 files do not belong to the set; the first: session01/multiview/002/01/13_0/002_01_01_130.png" in found
    assert f"1 of 25 photos cannot be read; the first: session01/multiview/002/01/13_0/{broken.name}" in found


def test_verify_says_what_is_missing(make: Make) -> None:
    found = make(sessions=[1], cameras=["05_1"]).verify()  # the whole set is looked at, whatever is selected
    photos = 15 * ILLUMINATIONS
    assert found == [
        f"Session 3 is missing: there is no folder '{make().root / 'session03'}'.",
        f"Session 4 is missing: there is no folder '{make().root / 'session04'}'.",
        "There are 6 subjects, published: 337.",
        "Session 1 has 5 subjects, published: 249.",
        f"Session 1 lacks {5 * 2 * photos - 20:,} of {5 * 2 * photos:,} photos of its subjects; the first: "
        "session01/multiview/001/01/11_0/001_01_01_110_00.png.",
        "Session 2 has 1 subjects, published: 203.",
        f"Session 2 lacks {3 * photos - 4} of {3 * photos} photos of its subjects; the first: "
        "session02/multiview/006/01/11_0/006_02_01_110_00.png.",
    ]


def test_the_wrong_folder(make: Make, folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"no folder .*dat'. Did you mean '{folder}'\?"):
        make(folder.with_name("dat"))
    for wrong in (folder.parent, folder / "session01"):
        with pytest.raises(FileNotFoundError, match=rf"holds no session, expected .* Did you mean '{folder}'\?"):
            _ = make(wrong).photos
