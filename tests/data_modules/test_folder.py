"""A folder per person, with everything that people put into folders."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image

import data_modules.prepare.align
from data_modules.batch import FaceBatch
from data_modules.folder import FaceFolderDataModule
from data_modules.orl import ORLDataModule, orl_root
from data_modules.photos import Rejected
from tests.data_modules.contract import DataModuleContract, Make, gather


@pytest.fixture
def folder(face_folder: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(face_folder, tmp_path / "faces"))


@pytest.fixture
def make(folder: Path, tmp_path: Path) -> Callable[..., FaceFolderDataModule]:
    def make(root: Path = folder, **options: object) -> FaceFolderDataModule:
        people = {"val_identities": 1, "test_identities": 1, "image_size": 16, "batch_size": 2}
        return FaceFolderDataModule(root, cache_dir=tmp_path / "cache", **{"align": False, **people, **options})

    return make


class TestFolder(DataModuleContract):
    @pytest.fixture
    def make(self, folder: Path, tmp_path: Path) -> Make:
        strangers = folder / "unlabelled"
        strangers.mkdir()
        for person in range(11, 14):
            shutil.copy(orl_root() / f"s{person}" / "1.pgm", strangers / f"{person}.pgm")
        shutil.copy(folder / "person_1" / "1.png", folder / "person_1" / "5.png")

        def make(**options: object) -> FaceFolderDataModule:
            people = {"val_identities": 2, "test_identities": 2}
            return FaceFolderDataModule(folder, cache_dir=tmp_path / "cache", **{"align": False, **people, **options})

        return make


class TestAlignedFolder(TestFolder):
    @pytest.fixture
    def make(self, face_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
        cache = tmp_path_factory.getbasetemp() / "landmarks"  # shared: faces are looked for once

        def make(**options: object) -> FaceFolderDataModule:
            people = {"val_identities": 2, "test_identities": 2}
            return FaceFolderDataModule(face_folder, cache_dir=cache, **{**people, **options})

        return make


def test_aligned_folder_shows_what_orl_shows(face_folder: Path, tmp_path: Path) -> None:
    aligned = FaceFolderDataModule(face_folder, cache_dir=tmp_path, image_size=64)
    plain = FaceFolderDataModule(face_folder, align=False, cache_dir=tmp_path, image_size=64)
    orl = ORLDataModule(image_size=64)

    def picture(data: FaceFolderDataModule | ORLDataModule, name: str) -> np.ndarray:
        photo = next(photo for photo in data.photos if photo.name == name)
        return data.reader([photo])(photo).astype(float)

    for name, original in (("person_2/3.png", "s2/3.pgm"), ("person_5/1.png", "s5/1.pgm")):
        expected = picture(orl, original)
        assert np.abs(picture(aligned, name) - expected).mean() < 3
        assert np.abs(picture(plain, name) - expected).mean() > 15


# Files that spoil a run, and the reason that is given for each.


def _truncated(path: Path) -> None:
    Image.effect_noise((80, 80), 50).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _bomb(path: Path) -> None:
    Image.new("1", (20_000, 10_000)).save(path)


BAD_FILES = {
    "truncated.jpg": (_truncated, "truncated"),
    "truncated.png": (_truncated, "truncated|cannot be decoded"),
    "truncated.gif": (_truncated, "truncated|cannot be decoded"),
    "empty.jpg": (lambda path: path.touch(), "empty file"),
    "notes.txt": (lambda path: path.write_text("not a face"), "not an image"),
    "text.jpg": (lambda path: path.write_text("neither is this"), "not an image"),
    "Thumbs.db": (lambda path: path.write_bytes(b"\xd0\xcf\x11\xe0" * 100), "not an image"),
    ".hidden.png": (lambda path: Image.new("RGB", (64, 64)).save(path), "hidden"),
    "tiny.png": (lambda path: Image.new("RGB", (64, 2)).save(path), "too small: 64x2"),
    "bomb.png": (_bomb, "too large|decompression bomb"),
    "float.tiff": (lambda path: Image.new("F", (64, 64)).save(path), "floating-point"),
    "nowhere.jpg": (lambda path: path.symlink_to("/nonexistent/photo.jpg"), "cannot be decoded"),
}


class Count(pl.LightningModule):
    """Trains on nothing, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.batches = 0

    def training_step(self, batch: FaceBatch, batch_idx: int) -> torch.Tensor:
        self.batches += 1
        return (self.weight * batch["image"]).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("memory_limit", [2.0, 0.0])
def test_bad_files_are_listed_and_the_run_goes_on(
    make: Make, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, memory_limit: float
) -> None:
    for name, (write, _) in BAD_FILES.items():
        write(folder / "person_3" / name)
    (folder / "README.txt").write_text("about the set")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("passed over")

    data = make(memory_limit=memory_limit)
    with caplog.at_level(logging.WARNING):
        trainer = pl.Trainer(
            max_steps=5,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path / "run",
        )
        model = Count()
        trainer.fit(model, data)
    assert model.batches == 5
    reasons = {entry.path.name: entry.reason for entry in data.rejected}
    assert reasons.keys() == BAD_FILES.keys() | {"README.txt"}
    for name, (_, reason) in BAD_FILES.items():
        assert any(part in reasons[name] for part in reason.split("|")), (name, reasons[name])
    assert len(data.paths) == 24
    warnings = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(warnings) == 1
    assert f"{len(BAD_FILES) + 1} of {24 + len(BAD_FILES) + 1} files are left out" in warnings[0]
    listed = (tmp_path / "run" / "rejected.csv").read_text().splitlines()
    assert listed[0] == "path,reason"
    assert len(listed) == 1 + len(reasons)


def test_other_people_are_numbered_as_if_the_bad_were_not_there(make: Make, folder: Path) -> None:
    before = make()
    (folder / "person_0").mkdir()
    (folder / "person_0" / "empty.jpg").touch()
    after = make()
    assert after.identity_names == before.identity_names
    assert gather(after.train_dataloader(), "index") == gather(before.train_dataloader(), "index")


def test_no_usable_photo(make: Make, folder: Path) -> None:
    for path in folder.glob("*/*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"0 usable photos of 0 known people(.|\n)*24 of 24(.|\n)*empty file"):
        _ = make().num_identities


def test_one_person_only(make: Make, folder: Path) -> None:
    for person in range(2, 7):
        shutil.rmtree(folder / f"person_{person}")
    with pytest.raises(ValueError, match=r"holds 1 person's folder"):
        _ = make().num_identities
    (folder / "person_2").mkdir()
    (folder / "person_2" / "empty.jpg").touch()
    with pytest.raises(ValueError, match=r"4 usable photos of 1 known people, expected two"):
        _ = make().num_identities


def test_the_folder_above_is_recognised(make: Make, folder: Path) -> None:
    shutil.rmtree(folder.parent / "cache", ignore_errors=True)
    above = folder.parent / "above"
    above.mkdir()
    folder.rename(above / "faces")
    with pytest.raises(ValueError, match=rf"Did you mean '{above / 'faces'}'\?"):
        _ = make(above).num_identities


def test_a_misspelt_folder(make: Make, folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"no folder .*fases'. Did you mean '{folder}'\?"):
        make(folder.parent / "fases")
    with pytest.raises(FileNotFoundError, match=r"Did you mean .*person_1"):
        _ = make(unlabelled="persn_1").num_identities


def test_unlabelled_photos_only_train(make: Make, folder: Path, tmp_path: Path) -> None:
    for place in (Path("person_4"), tmp_path / "strangers"):
        if place.is_absolute():
            (folder / "person_4").rename(place)
        data = make(unlabelled=str(place))
        assert len(data.identity_names) == 5
        batches = list(data.train_dataloader())
        strangers = {row for batch in batches for row in batch["index"][batch["identity"] == -1].tolist()}
        assert strangers <= {
            row for row, path in enumerate(data.paths) if path.parent.name in ("person_4", "strangers")
        }
        assert len(strangers) >= 3
        for loader in (*data.val_dataloader(), *data.test_dataloader()):
            assert -1 not in gather(loader, "identity")
        for batch in batches:
            unknown = batch["identity"] == -1
            assert torch.equal(batch["partner_index"][unknown], batch["index"][unknown])
            assert torch.equal(batch["partner"][unknown], batch["image"][unknown])


def test_a_run_without_evaluation_people(make: Make) -> None:
    """Nothing held out, nobody kept apart: the loaders are empty, and Lightning runs over them."""
    data = make(val_identities=0, test_identities=0, held_out_photos=0)
    assert data.num_identities == 6
    assert len(data.split.train) == 24

    class Evaluate(Count):
        def validation_step(self, batch: FaceBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
            raise AssertionError("there is nothing to validate on")

    model = Evaluate()
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_steps=2, accelerator="cpu", enable_model_summary=False, val_check_interval=1, **options)
    trainer.fit(model, data)
    assert model.batches == 2


def test_photos_may_lie_deeper(make: Make, folder: Path) -> None:
    (folder / "person_1" / "session" / "day").mkdir(parents=True)
    (folder / "person_1" / "1.png").rename(folder / "person_1" / "session" / "day" / "1.png")
    data = make()
    assert len(data.paths) == 24
    assert sorted(data.identity_names) == [f"person_{n}" for n in range(1, 7)]


def test_a_photo_that_vanishes_in_the_run_is_replaced(
    make: Make, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = make(memory_limit=0, batch_size=6)
    loader = data.train_dataloader()
    victim = int(loader.batches.draw(0).rows[0])
    data.paths[victim].unlink()
    for batch in loader:
        assert victim not in batch["index"]
        assert victim not in batch["partner_index"]
        assert torch.equal(batch["identity"], batch["partner_identity"])
        assert batch["image"].float().std((1, 2, 3)).min() > 5
    assert str(data.paths[victim]) in caplog.text


class TestCache:
    def count_calls(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        looked: list[int] = []

        class Detector:
            def __init__(self, device: str) -> None: ...

            def detect(self, images: list[np.ndarray]) -> list[np.ndarray | None]:
                looked.append(len(images))
                face = np.array([(30, 40), (60, 40), (45, 60), (35, 80), (55, 80)], np.float32)
                return [None if image.max() == 0 else face for image in images]

        monkeypatch.setattr(data_modules.prepare.align, "FaceDetector", Detector)
        return looked

    @pytest.mark.parametrize("memory_limit", [2.0, 0.0])
    def test_faces_are_looked_for_once(
        self, make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch, memory_limit: float
    ) -> None:
        looked = self.count_calls(monkeypatch)
        Image.new("RGB", (92, 112)).save(folder / "person_1" / "faceless.png")
        (folder / "person_1" / "broken.png").write_bytes(b"\x89PNG")
        for _ in range(2):
            data = make(align=True, memory_limit=memory_limit)
            assert {entry.path.name: entry.reason for entry in data.rejected} == {
                "broken.png": "not an image in a known format",
                "faceless.png": "no face found in it",
            }
            assert sum(looked) == 25

        changed = folder / "person_2" / "2.png"
        Image.new("RGB", (92, 112)).save(changed)
        assert changed in [entry.path for entry in make(align=True, memory_limit=memory_limit).rejected]
        assert sum(looked) == 26

    def test_an_interrupted_start_goes_on(self, make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        looked = self.count_calls(monkeypatch)
        detect = data_modules.prepare.align.FaceDetector.detect

        def interrupted(self: object, images: list[np.ndarray]) -> list[np.ndarray | None]:
            if looked:
                raise KeyboardInterrupt
            return detect(self, images)

        monkeypatch.setattr(data_modules.prepare.align.FaceDetector, "detect", interrupted)
        with pytest.raises(KeyboardInterrupt):
            _ = make(align=True).num_identities
        monkeypatch.setattr(data_modules.prepare.align.FaceDetector, "detect", detect)
        assert make(align=True).num_identities == 4
        assert sum(looked) == 24

    def test_a_cache_that_cannot_be_written_is_done_without(
        self, make: Make, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "file").touch()
        data = FaceFolderDataModule(folder, align=False, cache_dir=tmp_path / "file", memory_limit=0, batch_size=2)
        assert len(list(data.train_dataloader())) > 0
        assert "set cache_dir" in caplog.text


def test_control_characters_in_names_are_left_out(make: Callable[..., FaceFolderDataModule], folder: Path) -> None:
    """They could forge lines of a log or a list."""
    shutil.copytree(folder / "person_1", folder / "person\n1")
    (folder / "person_2" / "a\x1b[2J.png").write_bytes(b"x")
    rejected = [entry for entry in make().list_photos() if isinstance(entry, Rejected)]
    assert {entry.reason for entry in rejected} == {"control characters in its name"}
    assert len(rejected) == len(list((folder / "person_1").iterdir())) + 1
