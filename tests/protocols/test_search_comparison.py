"""The table of strategies and budgets."""

import csv
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from data_modules.prepared import PreparedDataModule
from idface.latent.scoring import Scorer
from idface.latent.strategies import STRATEGIES
from idface.protocols.search_comparison import Cell, Target, _read_cells, choose_people, compare
from idface.recognition.dlib_resnet import DlibResNet
from tests.data_modules.test_prepared import KnownFaces, prepare
from tests.latent.test_generators import Generator, network


@pytest.fixture(scope="module")
def faces(face_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedDataModule:
    return PreparedDataModule(
        str(prepare(KnownFaces, face_folder, tmp_path_factory.mktemp("prepared") / "x")), image_size=16
    )


def people(faces: PreparedDataModule, small: Scorer) -> list[Target]:
    return choose_people(faces, 2, 3, small.recognizer, None)


def small_scorer() -> Scorer:
    return Scorer(Generator(network(), 6), DlibResNet(), batch_size=8, precision="float32")


def test_every_strategy_is_measured_on_the_same_people_once(faces: PreparedDataModule, tmp_path: Path) -> None:
    small = small_scorer()
    chosen = people(faces, small)
    arguments = (small, chosen, tmp_path, list(STRATEGIES), [20], [1, 3], None, None, {"what": 1})
    cells = compare(*arguments)
    assert [(cell.strategy, cell.photos) for cell in cells] == [
        (name, count) for count in (1, 3) for name in STRATEGIES
    ]
    for cell in cells:
        assert cell.people == 2
        assert 15 < cell.evaluations <= 20
        assert cell.distance_std > 0
        assert cell.evaluations_per_second > 0
        assert 50 < cell.peak_memory_mib < 100_000
    assert _read_cells(tmp_path / "results.csv") == [Cell(*cell) for cell in cells]
    with Image.open(tmp_path / "faces-20-3.png") as picture:
        assert picture.height == 2 * (16 + 26)

    def never(*_: object) -> torch.Tensor:
        raise AssertionError("measured again")

    rows = list(csv.DictReader((tmp_path / "people.csv").open(newline="")))
    assert len(rows) == 2 * len(cells)
    for cell in cells:
        own = [float(r["distance"]) for r in rows if (r["strategy"], r["photos"]) == (cell.strategy, str(cell.photos))]
        assert sum(own) / 2 == pytest.approx(cell.distance_mean)

    small.distances = never  # type: ignore[method-assign]
    (tmp_path / "faces-20-3.png").unlink()
    assert compare(*arguments) == cells
    assert (tmp_path / "faces-20-3.png").exists()  # from the latents that were kept
    with pytest.raises(ValueError, match="comparison with other settings"):
        compare(*arguments[:-1], {"what": 2})


def test_people_who_look_like_the_training_set_are_left_out(
    faces: PreparedDataModule, face_folder: Path, tmp_path: Path
) -> None:
    guide = DlibResNet()
    everybody = choose_people(faces, 6, 3, guide, None)
    assert [target.name for target in everybody] == [f"person_{number}" for number in range(1, 7)]
    assert all(target.photos.shape == (3, 16, 16, 3) for target in everybody)
    for number in (2, 5):  # two of them are in the other set as well
        shutil.copytree(face_folder / f"person_{number}", tmp_path / "other" / f"person_{number}")
    large, other = (  # so that they can be told apart
        PreparedDataModule(str(prepare(KnownFaces, root, tmp_path / f"prepared-{root.name}", size=64)), image_size=64)
        for root in (face_folder, tmp_path / "other")
    )
    names = [target.name for target in choose_people(large, 4, 3, guide, other)]
    assert names == ["person_1", "person_3", "person_4", "person_6"]
    assert len(choose_people(large, 1, 3, guide, other)) == 1
    with pytest.raises(ValueError, match="--people 7: 6 people have 3 photos: ask for fewer"):
        choose_people(large, 7, 3, guide, other)
