"""How fast photos become prepared faces, and prepared faces batches.

IDFACE_PHOTOS=FOLDER takes photos from below a folder, such as LFW's, in place of the ORL faces on larger backgrounds.
"""

import os
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch
from PIL import Image

from data_modules.files import files_below
from data_modules.orl import ORLDataModule
from data_modules.photos import Photo, open_photo
from data_modules.prepare.engines import run_locally
from data_modules.prepare.run import CHUNK, prepare
from data_modules.prepare.worker import Chunk, FaceWorker, Settings, unpack_result
from data_modules.prepared import PreparedDataModule
from tests.benchmarks.bench_data import best_of, epoch

CORES = len(os.sched_getaffinity(0))
ROUNDS, PHOTOS = 3, 12 * CHUNK


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Photo]:
    """JPEGs of 250x250, a face in the middle of each; or the first photo of each of the folder's folders."""
    if folder := os.environ.get("IDFACE_PHOTOS"):
        first = {path.parent: path for path in reversed(list(files_below(Path(folder)))) if path.suffix == ".jpg"}
        paths = sorted(first.values())
        return [Photo(path.name, None, path) for path in paths[:: max(1, len(paths) // PHOTOS)][:PHOTOS]]
    root = tmp_path_factory.mktemp("photos")
    noise = np.random.default_rng(0)
    found = []
    for photo in [entry for entry in ORLDataModule().list_photos() if isinstance(entry, Photo)][:PHOTOS]:
        coarse = Image.fromarray(noise.integers(60, 200, (10, 10, 3), np.uint8))
        picture = coarse.resize((250, 250), Image.Resampling.BICUBIC)
        picture.paste(open_photo(photo).resize((115, 140)), (68, 55))
        path = root / f"{photo.name.replace('/', '_')}.jpg"
        picture.save(path, quality=90)
        found.append(Photo(path.name, None, path))
    return found


Boxes = dict[str, np.ndarray]


def photo_by_photo(photos: Sequence[Photo]) -> tuple[float, Boxes]:
    """Photos a second of facenet-pytorch as it comes, and the boxes that it finds."""
    from facenet_pytorch import MTCNN

    torch.set_num_threads(CORES)
    detector = MTCNN(device="cuda" if torch.cuda.is_available() else "cpu")
    detector.detect(open_photo(photos[0]))
    start = time.perf_counter()
    boxes = {photo.name: detector.detect(open_photo(photo), landmarks=True)[0] for photo in photos}
    return len(photos) / (time.perf_counter() - start), boxes


def prepared(photos: Sequence[Photo], workers: int) -> tuple[float, Boxes]:
    """Photos a second of the local engine once it runs, alignment and encoding included, and the boxes."""
    chunks = [Chunk(n, list(photos[n * CHUNK : (n + 1) * CHUNK]), {}) for n in range(len(photos) // CHUNK)]
    boxes: Boxes = {}
    times = []
    for number, result in run_locally(FaceWorker(Settings()), chunks, workers):
        times.append(time.perf_counter())
        for photo, row in zip(chunks[number].photos, unpack_result(result), strict=True):
            if row["photo_box"] is not None:
                boxes[photo.name] = np.array(row["photo_box"])
    # The first chunk of each process waits for it to start; the last ones find the others idle.
    busy = times[workers - 1 : len(times) - workers + 1]
    return CHUNK * (len(busy) - 1) / (busy[-1] - busy[0]), boxes


def test_detection_beside_facenet_pytorch(photos: list[Photo], tmp_path: Path) -> None:
    theirs, ours = [], []
    for _ in range(ROUNDS):
        speed, their_boxes = photo_by_photo(photos[: PHOTOS // 4])
        theirs.append(speed)
        speed, our_boxes = prepared(photos, CORES)
        ours.append(speed)
    data = ORLDataModule()
    data.list_photos = lambda: list(photos)  # type: ignore[method-assign]  # as they are, in any data module
    data.hints = lambda _: {}  # type: ignore[method-assign]
    start = time.perf_counter()
    prepare(lambda _: data, None, "photos", tmp_path / "out", Settings(), engine=run_locally)
    whole = time.perf_counter() - start
    off = [
        np.abs(np.asarray(their_boxes[name], float) - our_boxes[name]).max(1).min()
        for name in their_boxes.keys() & our_boxes.keys()
        if their_boxes[name] is not None
    ]
    ratios = [our / their for our, their in zip(ours, theirs, strict=True)]
    print(
        f"\nprepare, {CORES} processes: {median(ours):.1f} photos/s; facenet-pytorch photo by photo: "
        f"{median(theirs):.1f}; ratio {median(ratios):.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})\n"
        f"  boxes: {sum(each < 0.5 for each in off)} of {len(off)} the same to half a pixel, the others off by "
        f"{[round(float(each), 1) for each in sorted(off) if each >= 0.5]} pixels"
    )
    print(f"  all of prepare on these {len(photos)}, start and sheets included: {len(photos) / whole:.1f} photos/s")
    assert len(off) > 0.95 * PHOTOS / 4
    assert np.mean(np.array(off) < 0.5) > 0.95
    assert median(ratios) >= 2.5


def test_how_it_grows_with_cores(photos: list[Photo]) -> None:
    counts = [n for n in (1, 2, 4, 8, 16) if n <= CORES]
    speeds = [median(prepared(photos, workers)[0] for _ in range(ROUNDS)) for workers in counts]
    print("\nprepare:", ", ".join(f"{speed:.1f} photos/s with {n}" for n, speed in zip(counts, speeds, strict=True)))
    assert all(later > 1.3 * earlier for earlier, later in pairwise(speeds))


def test_loading_from_shards(tmp_path: Path) -> None:
    data = ORLDataModule()
    prepare(lambda _: data, None, "orl", tmp_path / "orl", Settings(size=128), engine=run_locally)
    for workers in (0, 1, 2):
        loaded = PreparedDataModule(
            str(tmp_path / "orl"), image_size=128, batch_size=32, memory_limit=0, num_workers=workers
        )
        speed = best_of(10, epoch(loaded))
        loaded.teardown("fit")
        print(f"\n128x128 JPEGs from shards, {workers} workers: {speed:,.0f} samples/s", end="")
        assert speed > 300
    in_memory = PreparedDataModule(str(tmp_path / "orl"), image_size=128, batch_size=32)
    print(f"\nthe same in memory: {best_of(10, epoch(in_memory)):,.0f} samples/s")
