"""What tests of protocols share."""

import shutil
from pathlib import Path

import pytest

from tests.data_modules.test_prepared import KnownFaces, prepare


@pytest.fixture(scope="session")
def sets(face_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Prepared faces of four people to train on, and of two others. Do not write to them."""
    root = tmp_path_factory.mktemp("sets")
    for name, people in (("training", range(1, 5)), ("evaluation", range(5, 7))):
        for person in people:
            shutil.copytree(face_folder / f"person_{person}", root / f"{name}-photos" / f"person_{person}")
        prepare(KnownFaces, root / f"{name}-photos", root / name)
    return root / "training", root / "evaluation"
