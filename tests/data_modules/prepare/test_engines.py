"""Engines: local processes that die, Ray, and what a preparation costs in memory."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_modules.folder import FaceFolderDataModule
from data_modules.photos import Hint, Photo, PhotoCheck
from data_modules.prepare import run
from data_modules.prepare.engines import CRASHED, run_locally, run_on_ray
from data_modules.prepare.worker import Settings
from tests.data_modules.prepare.helpers import contents, face, in_process, orl
from tests.data_modules.prepare.rules import CRASHES, REFUSED, crash
from tests.data_modules.test_prepared import KnownFaces


def prepare(
    root: Path, out: Path, engine: Any, module: type[FaceFolderDataModule] = KnownFaces, shard: int = 12
) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "CHUNK", 4)
        options = {"engine": engine, "workers": 2, "shard_size": shard, "device": "cpu"}
        run.prepare(module, root, "test", out, Settings(32), **options)
    return out


class Crashing(KnownFaces):
    """The folder `face_folder` with odd photos among its own."""

    def check(self) -> PhotoCheck:
        return crash

    def hints(self, photos: Sequence[Photo]) -> dict[str, Hint]:
        known = super().hints([photo for photo in photos if "odd" not in photo.name])
        return known | {photo.name: next(iter(known.values())) for photo in photos if "odd" in photo.name}


def test_a_photo_that_crashes_the_process_is_rejected_alone(face_folder: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(face_folder, tmp_path / "raw"))
    face(9, 1).resize(REFUSED).save(root / "person_3" / "odd.png")
    face(9, 2).resize(CRASHES).save(root / "person_6" / "odd.png")  # the last by name: other chunks stay as they are
    out = prepare(root, tmp_path / "out", run_locally, Crashing)
    lines = (out / "rejected.csv").read_text().splitlines()
    assert lines[1:] == ["person_3/odd.png,person_3,not to our taste", f"person_6/odd.png,person_6,{CRASHED}"]
    (root / "person_6" / "odd.png").unlink()
    without = contents(prepare(root, tmp_path / "without", in_process, Crashing))
    shards = [name for name in without if name.startswith("shards/")]
    assert len(shards) == 3
    assert {name: contents(out)[name] for name in (*shards, "index.parquet")} == {
        name: without[name] for name in (*shards, "index.parquet")
    }


def test_ray_prepares_the_same(face_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        there = prepare(face_folder, tmp_path / "ray", run_on_ray, shard=24)
    finally:
        ray.shutdown()
    assert contents(there) == contents(prepare(face_folder, tmp_path / "here", in_process, shard=24))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"needs Ray: pip install"):
        prepare(face_folder, tmp_path / "none", run_on_ray)


MEASURE = """
import resource, sys
from pathlib import Path
from data_modules.folder import FaceFolderDataModule
from data_modules.photos import Photo
from data_modules.prepare import run
from data_modules.prepare.worker import RESULT, Settings, _pack
import numpy as np, pyarrow as pa
from hashlib import sha256

file, out = Path(sys.argv[1]), Path(sys.argv[2])
content = file.read_bytes()
points = np.arange(10, dtype=np.float32)

class Many(FaceFolderDataModule):
    def list_photos(self):
        people = [f"person_{n // 20}" for n in range(count)]
        return [Photo(f"{person}/a_name_of_usual_length_{n}.jpg", person, file) for n, person in enumerate(people)]

def engine(worker, chunks, workers):
    for chunk in chunks:
        rows = [
            {"image": content, "landmarks": points, "photo_landmarks": points, "photo_box": points[:4],
             "photo_sha256": sha256(photo.name.encode()).digest(), "photo_width": 9, "photo_height": 9}
            if hash(photo.name[-5]) % 4 else {"reason": "no face found in it", "photo_sha256": bytes(32)}
            for photo in chunk.photos
        ]
        yield chunk.number, _pack(pa.Table.from_pylist(rows, RESULT))

for count in (2_000, 20_000):
    run.prepare(Many, file.parent, "many", out / str(count), Settings(16), engine=engine, shard_size=1024, device="cpu")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_photos(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    with Image.open(orl(1, 1)) as image:
        image.convert("RGB").resize((16, 16)).save(tmp_path / "raw" / "a.png")
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path / "raw" / "a.png", tmp_path / "out"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
    )
    few, many = (int(line) * 1024 for line in measured.stdout.splitlines() if line.isdigit())
    a_photo = (many - few) / 18_000
    # About 100 were measured; the results of 18,000 photos, if they were kept, would be 700 each.
    assert a_photo < 500, f"{a_photo:.0f} bytes a photo"
