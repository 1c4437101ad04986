"""The label-conditioned GAN: a training step beside a bare loop; what balancing and the detection curve cost.

    .venv/bin/pytest --override-ini addopts= -s tests/benchmarks/bench_labels.py

Runs take turns in short blocks, so that what else goes on in the machine slows all of them.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer
from PIL import Image
from torch import Tensor

from data_modules.base import FaceDataModule, LoadingOptions
from data_modules.orl import orl_root
from data_modules.photos import Photo, PhotoReader, Pixels, Rejected
from data_modules.samplers import SexAgeBalanced, Shuffled, TrainingPhotos
from data_modules.splits import FaceSplit, split_photos
from idface.callbacks.detection import DetectionCurve
from idface.modules.label_dcgan import LabelConditionedDCGAN

CUDA = torch.cuda.is_available()
BATCH, SIZE, WARMUP, ROUNDS = 64, 64, 5, 4
BLOCK = 300 if CUDA else 30  # batches
FIGURE = (100, 300) if CUDA else (30, 90)  # batches from one to the next, and faces: three a batch, as in the recipe
DEVICE = torch.device("cuda" if CUDA else "cpu")


class ORLWithLabels(FaceDataModule):
    """The ORL faces, with sexes and ages that are made up, ages as skewed as IMDB-WIKI's."""

    def __init__(self, **options: Unpack[LoadingOptions]) -> None:
        super().__init__(image_size=SIZE, batch_size=BATCH, partner=False, **options)  # type: ignore[misc]

    def list_photos(self) -> list[Photo | Rejected]:
        return [Photo("-".join(file.parts[-2:]), None, file) for file in sorted(orl_root().glob("s*/*.pgm"))]

    def reader(self, photos: Sequence[Photo]) -> PhotoReader:
        return read

    def find_unusable(self, photos: Sequence[Photo], read: PhotoReader) -> dict[str, str]:
        return {}

    def labels(self, photos: Sequence[Photo]) -> dict[str, Tensor]:
        noise = torch.Generator().manual_seed(0)
        sex = torch.where(torch.rand(len(photos), generator=noise) < 0.423, -1.0, 1.0)
        age = (37.35 + 17 * torch.randn(len(photos), generator=noise)).clamp(10, 100)
        age[:32] = 15 + 11 * (torch.arange(32) % 8)  # no bin is empty
        sex[:32] = torch.where(torch.arange(32) < 16, -1.0, 1.0)
        return {"sex": sex, "age": age}

    def split_photos(self, photos: Sequence[Photo]) -> FaceSplit:
        return split_photos([photo.name for photo in photos], val_share=0.0, test_share=0.0, seed=0)


def read(photo: Photo) -> Pixels:
    return np.asarray(Image.open(photo.path).convert("RGB").crop((0, 10, 92, 102)).resize((SIZE, SIZE)))


def now() -> float:
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter()


class Began(Callback):
    """Notes when the warm-up was over."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == WARMUP:
            self.at = now()


def fitted(folder: Path, model: LabelConditionedDCGAN, *callbacks: Callback, balanced: bool) -> float:
    """Seconds from the warm-up's end until training is over, figures that are still being counted included."""
    began = Began()
    trainer = Trainer(
        max_steps=WARMUP + BLOCK,
        accelerator="auto",
        devices=1,
        callbacks=[*callbacks, began],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        default_root_dir=folder,
    )
    trainer.fit(model, ORLWithLabels(sampler=SexAgeBalanced() if balanced else None))
    return now() - began.at


def test_balancing_and_the_detection_curve(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LabelConditionedDCGAN(gate=False)
    fitted(tmp_path, model, balanced=False)
    ratios = []
    for number in range(ROUNDS):
        seconds = {}
        for whole in (False, True) if number % 2 else (True, False):
            curve = [DetectionCurve(*FIGURE)] if whole else []
            seconds[whole] = fitted(tmp_path, model, *curve, balanced=whole)
        ratios.append(seconds[True] / seconds[False])
        told = f"plain {seconds[False]:.2f} s; balanced, with figures {seconds[True]:.2f} s"
        print(f"\n{BLOCK} batches of {BATCH}: {told}")
    print(f"ratio {median(ratios):.3f} ({', '.join(f'{ratio:.3f}' for ratio in ratios)})")
    assert median(ratios) < 1.05


def test_balancing_200_000_photos() -> None:
    noise = np.random.default_rng(0)
    labels = {
        "sex": torch.from_numpy(noise.choice([-1.0, 1.0], 200_000)),
        "age": torch.from_numpy(noise.normal(37.35, 17, 200_000).clip(10, 100)),
    }
    photos = TrainingPhotos(np.arange(200_000), np.full(200_000, -1), labels, "made-up labels")
    seconds = {}
    for name, sampler in (("shuffled", Shuffled()), ("balanced", SexAgeBalanced())):
        order = sampler.order(photos, BATCH, 1, 0)
        begun = time.perf_counter()
        epochs = [order(epoch) for epoch in range(3)]
        seconds[name] = (time.perf_counter() - begun) / sum(len(rows) // BATCH for rows in epochs)
    print(", ".join(f"{name}: {1e6 * each:.0f} microseconds a batch" for name, each in seconds.items()))
    assert seconds["balanced"] < 1e-3


def test_a_step_beside_a_bare_loop(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LabelConditionedDCGAN(gate=False)
    bare = bare_steps(LabelConditionedDCGAN(gate=False))
    for _ in range(WARMUP):
        next(bare)
    fitted(tmp_path, model, balanced=True)
    ratios = []
    for _ in range(ROUNDS):
        own = fitted(tmp_path, model, balanced=True)
        begun = now()
        for _ in range(BLOCK):
            next(bare)
        ratios.append(own / (now() - begun))
    print(f"\n{BATCH * BLOCK / own:.1f} images/s; ratio to a bare loop {median(ratios):.3f}")
    assert median(ratios) < 1.1


def bare_steps(model: LabelConditionedDCGAN) -> Iterator[None]:
    """The paper's step as a plain loop, on batches that are ready; without averages, checks and logs."""
    model.to(DEVICE, memory_format=torch.channels_last)
    generator, discriminator = model.generator, model.discriminator
    assert discriminator is not None
    networks = (generator, discriminator)
    optimizers = [torch.optim.Adam(network.parameters(), lr=5e-4) for network in networks]
    data = ORLWithLabels(sampler=SexAgeBalanced())
    while True:
        for batch in data.train_dataloader():
            batch = data.on_after_batch_transfer({k: v.to(DEVICE) for k, v in batch.items()}, 0)  # type: ignore[assignment, attr-defined, typeddict-item]
            label = model.coding(batch["sex"], batch["age"])
            fake = generator(torch.rand(BATCH, model.latent_dim, device=DEVICE) * 2 - 1, label)
            real_logits, fake_logits = discriminator(batch["image"], label), discriminator(fake, label)
            losses = (F.softplus(-fake_logits).mean(), F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean())
            for which, loss in enumerate(losses):
                own = list(networks[which].parameters())
                for parameter, gradient in zip(
                    own, torch.autograd.grad(loss, own, retain_graph=not which), strict=True
                ):
                    parameter.grad = gradient
                optimizers[which].step()
            yield
