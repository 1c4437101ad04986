"""What tests all over the tree share."""

import os
from pathlib import Path

import pytest
from PIL import Image

from data_modules.orl import orl_root

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):  # several processes: a share of the cores each
    import torch

    threads = max(1, (os.cpu_count() or 1) // workers)
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # of what they start


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
