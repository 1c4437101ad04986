"""How fast the loaders are, and where augmentation is cheaper.

On a Xeon, one thread, while other programs ran, in microseconds an image; the flip at even odds, the others always:

    64x64, batch 16     flip    affine   colour jitter   the three
    albumentations        77       523             307         737
    kornia               157       436            2069        2273

    128x128, batch 16
    albumentations        90       651             634        1356
    kornia              1138      1906            9264        8955

So on a CPU augmentation belongs into `sample_transforms`, where it also runs beside the training as soon as there are
`num_workers`. kornia's place, `batch_transforms`, is the GPU, while the CPU's cores are busy decoding photos.
"""

import time
from collections.abc import Callable
from pathlib import Path

import albumentations
import kornia.augmentation
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from data_modules.base import FaceDataModule
from data_modules.folder import FaceFolderDataModule
from data_modules.orl import ORLDataModule
from data_modules.transforms import SampleTransforms


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def best_of(rounds: int, function: Callable[[], int]) -> float:
    """The most images a second that `function`, which says how many it made, reached in a round."""
    speeds = []
    for _ in range(rounds):
        start = time.perf_counter()
        images = function()
        speeds.append(images / (time.perf_counter() - start))
    return max(speeds)


def epoch(data: FaceDataModule) -> Callable[[], int]:
    loader = data.train_dataloader()
    return lambda: sum(len(batch["image"]) + len(batch["partner"]) for batch in loader)


def test_loader_in_memory() -> None:
    data = ORLDataModule(image_size=64, batch_size=16)
    loading = best_of(20, epoch(data))
    batch = next(iter(data.train_dataloader()))

    def normalise() -> int:
        for _ in range(50):
            data.on_after_batch_transfer(batch, 0)
        return 50 * 2 * 16

    print(f"\nORL in memory, 64x64: {loading:,.0f} images/s loaded, {best_of(20, normalise):,.0f} images/s normalised")
    assert loading > 20_000


@pytest.mark.parametrize("workers", [0, 2])
def test_folder_decoded_on_the_fly(tmp_path: Path, workers: int) -> None:
    """Photos as in LFW: JPEG, 250x250."""
    noise = np.random.default_rng(0)
    for person in range(8):
        (tmp_path / f"person_{person}").mkdir()
        for photo in range(16):
            coarse = Image.fromarray(noise.integers(0, 255, (25, 25, 3), np.uint8))
            coarse.resize((250, 250), Image.Resampling.BICUBIC).save(tmp_path / f"person_{person}" / f"{photo}.jpg")
    data = FaceFolderDataModule(
        tmp_path, align=False, cache_dir=tmp_path / "cache", memory_limit=0, num_workers=workers
    )
    assert data.num_identities == 6

    def decode() -> int:
        for path in data.paths:
            with Image.open(path) as image:
                np.asarray(image.resize((64, 64), Image.Resampling.LANCZOS))
        return len(data.paths)

    bare, speed = best_of(5, decode), best_of(5, epoch(data))
    data.teardown("fit")
    print(
        f"\nJPEGs 250x250 -> 64x64: {speed:,.0f} images/s with {workers} workers, {bare:,.0f} with a loop over Pillow"
    )
    assert speed > 0.5 * bare


def test_augmentation_on_the_cpu() -> None:
    per_sample = SampleTransforms(
        [
            albumentations.HorizontalFlip(p=0.5),
            albumentations.Affine(translate_percent=0.03, scale=(0.95, 1.05), rotate=(-5, 5), p=1),
            albumentations.ColorJitter((0.8, 1.2), (0.8, 1.2), (0.8, 1.2), (-0.02, 0.02), p=1),
        ]
    )
    per_batch = nn.Sequential(
        kornia.augmentation.RandomHorizontalFlip(p=0.5),
        kornia.augmentation.RandomAffine(5, (0.03, 0.03), (0.95, 1.05), p=1),
        kornia.augmentation.ColorJiggle(0.2, 0.2, 0.2, 0.02, p=1),
    )
    images = np.random.default_rng(0).integers(0, 255, (16, 64, 64, 3), np.uint8)
    tensors = torch.from_numpy(images).permute(0, 3, 1, 2)

    def run_albumentations() -> int:
        np.stack([per_sample(image, seed) for seed, image in enumerate(images)])
        return len(images)

    def run_kornia() -> int:
        per_batch(tensors.float() / 255)
        return len(images)

    sample, batch = best_of(20, run_albumentations), best_of(20, run_kornia)
    print(
        f"\nflip, affine, colour jitter on the CPU, 64x64: {sample:,.0f} images/s albumentations, {batch:,.0f} kornia"
    )
    assert sample > 1.5 * batch
