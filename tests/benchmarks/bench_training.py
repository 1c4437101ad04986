"""Training through the framework beside a bare PyTorch loop over the same networks and losses, in one run.

    make bench

The bare loop has no Lightning, no logging, no moving average and no checks: what is left is what the method costs.
"""

import resource
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import kornia.augmentation as K
import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from data_modules.base import FaceDataModule
from data_modules.batch import FaceBatch
from data_modules.orl import ORLDataModule
from idface.checkpoints import build
from idface.losses.adversarial import discriminator_loss
from idface.losses.classification import identity_loss
from idface.losses.matching import feature_matching_loss, reconstruction_loss
from idface.losses.variational import kl_divergence, sample_posterior
from idface.modules.base import frozen_statistics
from idface.modules.ipgan import OpenSetIPGAN
from idface.names import whole_class_paths

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
ROUNDS = 3


def recipe(name: str, batch_size: int | None) -> tuple[OpenSetIPGAN, FaceDataModule]:
    """The model and the data of a recipe in `experiments/`."""
    config = whole_class_paths(yaml.safe_load((EXPERIMENTS / name).read_text("utf-8")))
    arguments = config["data"]["init_args"] | {"batch_transforms": [K.RandomHorizontalFlip()]}
    data = ORLDataModule(**(arguments | ({"batch_size": batch_size} if batch_size else {})))
    sizes = {"num_identities": data.num_identities, "image_size": data.image_size}
    model = build({**config["model"], "init_args": config["model"]["init_args"] | sizes}, EXPERIMENTS / name)
    assert isinstance(model, OpenSetIPGAN)
    return model, data


class Clock(Callback):
    def __init__(self, warmup: int) -> None:
        self.warmup, self.start, self.seconds = warmup, 0.0, 0.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self.warmup:
            self.start = time.perf_counter()
        self.seconds = (time.perf_counter() - self.start) / max(trainer.global_step - self.warmup, 1)


def framework(name: str, batch_size: int | None, warmup: int, steps: int, folder: Path) -> float:
    """Seconds a batch in `Trainer.fit`, with a CSV log every ten batches and the progress bar."""
    model, data = recipe(name, batch_size)
    clock = Clock(warmup)
    Trainer(
        max_steps=warmup + steps,
        accelerator="auto",
        devices=1,
        logger=CSVLogger(folder),
        log_every_n_steps=10,
        callbacks=[clock],
        enable_checkpointing=False,
        enable_model_summary=False,
        limit_val_batches=0,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    ).fit(model, data)
    return clock.seconds


def on_device(data: FaceDataModule, device: torch.device) -> Iterator[FaceBatch]:
    while True:
        for batch in data.train_dataloader():
            moved = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
            yield data.on_after_batch_transfer(moved, 0)  # type: ignore[arg-type]


def bare(name: str, batch_size: int | None, warmup: int, steps: int) -> float:
    """Seconds a batch of Algorithm 1 written as a plain loop."""
    model, data = recipe(name, batch_size)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device, memory_format=torch.channels_last).train()
    identity_encoder, classifier, generator = model.identity_encoder, model.classifier, model.generator
    attribute_encoder, discriminator = model.attribute_encoder, model.discriminator
    networks = [attribute_encoder, generator, discriminator, classifier]
    parameters = [list(network.parameters()) for network in networks]
    optimizers = [torch.optim.Adam(p, lr=2e-4, betas=(0.5, 0.999)) for p in parameters]

    def learn(which: int, loss: Tensor, retain: bool) -> None:
        for parameter, gradient in zip(
            parameters[which], torch.autograd.grad(loss, parameters[which], retain_graph=retain), strict=True
        ):
            parameter.grad = gradient
        optimizers[which].step()

    start = 0.0
    for step, batch in zip(range(warmup + steps), on_device(data, device), strict=False):
        if step == warmup:
            start = time.perf_counter()
        x_s = x_a = batch["image"]
        weight = 1.0
        if step % 2 == 1:
            x_a, weight = x_s.roll(1, 0), model.transformation_weight
        elif model.same_person_share:
            swap = torch.rand(len(x_s), 1, 1, 1, device=device) < model.same_person_share
            x_s = torch.where(swap, batch["partner"], x_s)
        features, logits = classifier(x_s)
        mean, log_variance = attribute_encoder(x_a)
        vector = features if identity_encoder is None else identity_encoder(x_s)
        result = generator(vector.detach(), sample_posterior(mean, log_variance))
        real, real_logits = discriminator(x_a)
        fake, fake_logits = discriminator(result)
        with frozen_statistics(classifier):
            result_features, _ = classifier(result)
        reconstruction = weight * model.reconstruction_weight * reconstruction_loss(result, x_a)
        matching = feature_matching_loss(fake, real) + feature_matching_loss(result_features, features)
        learn(0, weight * model.kl_weight * kl_divergence(mean, log_variance) + reconstruction, True)
        learn(1, reconstruction + matching, True)
        learn(2, discriminator_loss(real_logits, fake_logits), True)
        learn(3, identity_loss(logits, batch["identity"]), False)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps


@pytest.mark.parametrize(
    ("name", "batch_size", "warmup", "steps"), [("quickstart.yaml", None, 4, 40), ("ipgan.yaml", 4, 1, 4)]
)
def test_training_is_at_most_ten_percent_slower_than_a_bare_loop(
    name: str, batch_size: int | None, warmup: int, steps: int, tmp_path: Path
) -> None:
    pairs = [
        (framework(name, batch_size, warmup, steps, tmp_path), bare(name, batch_size, warmup, steps))
        for _ in range(ROUNDS)
    ]
    ratio = median(ours / theirs for ours, theirs in pairs)
    photos = recipe(name, batch_size)[1].batch_size
    ours, theirs = (median(column) for column in zip(*pairs, strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"\n{name}, batch {photos}: {photos / ours:.1f} images/s, bare loop {photos / theirs:.1f}; "
        f"ratio of times {ratio:.3f} (rounds: {', '.join(f'{a / b:.3f}' for a, b in pairs)}); "
        f"peak memory of the process so far {peak:.2f} GiB"
    )
    assert ratio <= 1.10


def test_loading_takes_at_most_five_percent_of_a_quickstart_step(tmp_path: Path) -> None:
    step = framework("quickstart.yaml", None, 4, 40, tmp_path)
    _, data = recipe("quickstart.yaml", None)
    batches = on_device(data, torch.device("cpu"))
    for _ in range(20):
        next(batches)
    start = time.perf_counter()
    for _ in range(200):
        next(batches)
    loading = (time.perf_counter() - start) / 200
    print(f"\nquickstart: loading, flipping and scaling a batch takes {1e3 * loading:.2f} ms of {1e3 * step:.0f} ms")
    assert loading <= 0.05 * step
