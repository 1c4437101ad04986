"""What tests all over the tree share."""

from pathlib import Path

import pytest
from PIL import Image

from data_modules.orl import orl_root


@pytest.fixture(scope="session")
def face_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six people with four photos each, `<root>/person_<n>/<photo>.png`: ORL faces, 92x112. Do not write to it."""
    root = tmp_path_factory.mktemp("data") / "faces"
    for person in range(1, 7):
        folder = root / f"person_{person}"
        folder.mkdir(parents=True)
        for photo in range(1, 5):
            with Image.open(orl_root() / f"s{person}" / f"{photo}.pgm") as image:
                image.save(folder / f"{photo}.png")
    return root
