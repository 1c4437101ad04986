"""Training through the framework beside a bare PyTorch loop over the same networks and losses, in one run.

    make bench

Each measurement runs in a process of its own, so that its peak memory is its own. The bare loop has no Lightning, no
logging, no moving average and no checks: what is left is what the method costs.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
import torch.nn.functional as F
import yaml
from kornia.augmentation import RandomHorizontalFlip
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from data_modules.base import FaceDataModule
from data_modules.batch import FaceBatch, to_float
from data_modules.orl import ORLDataModule
from idface.checkpoints import build
from idface.cli import lightning
from idface.losses.adversarial import discriminator_loss
from idface.losses.classification import identity_loss
from idface.losses.matching import feature_matching_loss, reconstruction_loss
from idface.losses.variational import kl_divergence, sample_posterior
from idface.losses.wasserstein import gradient_penalty
from idface.modules.base import FaceModule, frozen_statistics
from idface.modules.cond_vaegan import CondVAEGAN
from idface.modules.ipgan import OpenSetIPGAN
from idface.names import whole_class_paths
from idface.networks.cvae_gan import shrunk

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"
FLIP = {"class_path": "kornia.augmentation.RandomHorizontalFlip"}
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


class Case(NamedTuple):
    """A recipe of `experiments/` and how much of it is measured."""

    name: str
    batch_size: int
    warmup: int
    steps: int
    precision: str = "32-true"
    compile: bool = False

    def __str__(self) -> str:
        return f"{self.name}, batch {self.batch_size}, {self.precision}{', compiled' if self.compile else ''}, {DEVICE}"


def recipe(case: Case) -> tuple[FaceModule, FaceDataModule]:
    """The model and the data of a recipe, with a flip of kornia's as its only augmentation, which both loops share."""
    config = whole_class_paths(yaml.safe_load((EXPERIMENTS / case.name).read_text("utf-8")))
    arguments = config["data"]["init_args"]
    data = ORLDataModule(**(arguments | {"batch_transforms": [RandomHorizontalFlip()], "batch_size": case.batch_size}))
    sizes = {"num_identities": data.num_identities, "image_size": data.image_size, "compile": case.compile}
    model = build({**config["model"], "init_args": config["model"]["init_args"] | sizes}, EXPERIMENTS / case.name)
    return model, data


def now() -> float:
    """The time once the device has done what it was given."""
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter()


class Clock(Callback):
    """Times batches of Trainer.fit after a warm-up and, between them, steps of the bare loop, if asked to.

    The two take turns, so that what else goes on in the machine slows both.
    """

    pairs: ClassVar[list[tuple[float, float]]] = []

    def __init__(self, warmup: int, other: str | None = None) -> None:
        self.warmup = warmup
        self.other = None if other is None else bare(Case(*json.loads(other)))
        self.resumed = 0.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        ended = now()
        if self.other is not None:
            next(self.other)
        if trainer.global_step > self.warmup:
            Clock.pairs.append((ended - self.resumed, now() - ended))
        self.resumed = now()


def framework(case: Case, beside: bool = False) -> list[tuple[float, float]]:
    """Seconds of each batch in `lightning fit`, with the recipe's loggers (W&B offline), callbacks and progress bar.

    With `beside`, a step of the bare loop follows each batch; the second numbers are its seconds.
    """
    overlay = {
        "model": {"init_args": {"compile": case.compile}},
        "data": {"init_args": {"batch_size": case.batch_size, "batch_transforms": [FLIP]}},
        "trainer": {
            "accelerator": "auto",
            "devices": 1,
            "max_steps": case.warmup + case.steps,
            "precision": case.precision,
            "log_every_n_steps": 10,
            "limit_val_batches": 0,
        },
    }
    settings = {"warmup": case.warmup, "other": json.dumps(case) if beside else None}
    clock = {"class_path": "tests.benchmarks.bench_training.Clock", "init_args": settings}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "overlay.yaml"
        path.write_text(yaml.safe_dump(overlay))
        arguments = ["--config", str(EXPERIMENTS / case.name), "--config", str(path), f"--run.root={folder}"]
        lightning(["fit", *arguments, f"--trainer.callbacks+={json.dumps(clock)}"])
    return sys.modules["tests.benchmarks.bench_training"].Clock.pairs  # type: ignore[no-any-return]


def plain_batches(data: FaceDataModule) -> Iterator[FaceBatch]:
    """Batches for a bare loop: on the device, flipped, in [-1, 1]."""
    assert data.batch_transforms is not None
    while True:
        for batch in data.train_dataloader():
            keys = [key for key in ("image", "partner") if key in batch]
            images = torch.cat([batch[key] for key in keys]).to(DEVICE)  # type: ignore[literal-required]
            images = data.batch_transforms(images.float() / 255) * 2 - 1
            images = images.contiguous(memory_format=torch.channels_last)
            shown = dict(zip(keys, images.split(len(batch["identity"])), strict=True))
            others = {key: value.to(DEVICE) for key, value in batch.items() if isinstance(value, Tensor)}
            yield others | shown  # type: ignore[misc]


def bare(case: Case) -> Iterator[None]:
    """The method of a recipe written as a plain loop, a batch at a time."""
    model, data = recipe(case)
    model.to(DEVICE, memory_format=torch.channels_last).train()
    if isinstance(model, CondVAEGAN):
        return bare_cond_vaegan(model, data, case)
    assert isinstance(model, OpenSetIPGAN)
    return bare_ipgan(model, data, case)


class Learner:
    """Networks that learn in turns, each by an Adam of its own."""

    def __init__(self, networks: Sequence[nn.Module], case: Case) -> None:
        if case.compile:
            torch._functorch.config.donated_buffer = False
            for network in networks:
                network.compile()
        self.parameters = [list(network.parameters()) for network in networks]
        self.optimizers = [torch.optim.Adam(p, lr=2e-4, betas=(0.5, 0.999)) for p in self.parameters]

    def __call__(self, which: int, loss: Tensor, retain: bool) -> None:
        """Let one network learn."""
        own = self.parameters[which]
        for parameter, gradient in zip(own, torch.autograd.grad(loss, own, retain_graph=retain), strict=True):
            parameter.grad = gradient
        self.optimizers[which].step()


def bare_cond_vaegan(model: CondVAEGAN, data: FaceDataModule, case: Case) -> Iterator[None]:
    """Equation 8 with the weights of the recipe, all of which are 1 but for the pixel loss's and KL's."""
    synthesizer, discriminators, recognizer = model.synthesizer, model.discriminators, model.identity_recognizer
    assert discriminators is not None
    assert recognizer is not None
    learn = Learner([synthesizer, discriminators], case)
    for batch in plain_batches(data):
        mixed = case.precision != "32-true"
        with torch.autocast(DEVICE.type, torch.bfloat16) if mixed else nullcontext():
            image, identity = batch["image"], batch["identity"]
            noise = torch.randn(2, len(image), model.latent_dim, device=DEVICE)
            faces, posterior = synthesizer(image, identity, noise)
            both = torch.cat(faces)
            with torch.no_grad():
                own = recognizer.features(image, ["raw"])["raw"]
            seen = recognizer.features(both, ["raw"])["raw"]
            of_g = 10 * F.l1_loss(faces[0], image) + 0.01 * kl_divergence(*posterior)
            of_g = of_g + 2 * F.l1_loss(seen, torch.cat([own, own]))
            of_d = torch.zeros((), device=DEVICE)
            people = torch.cat([identity, identity])
            drawn = torch.where(torch.rand(len(image), 1, 1, 1, device=DEVICE) < 0.5, *faces).detach()
            views = zip(discriminators(image), discriminators(both), discriminators.critics(), strict=True)
            for scale, (real, fake, critic) in enumerate(views):
                of_g = of_g - fake.values.mean() + 2 * F.cross_entropy(fake.logits, people)
                for a, b in zip(real.features, fake.features, strict=True):
                    of_g = of_g + 2 * F.l1_loss(b, torch.cat([a, a]).detach())
                of_d = of_d + fake.values.mean() - real.values.mean() + F.cross_entropy(real.logits, identity)
                of_d = of_d + gradient_penalty(critic, shrunk(image, scale), shrunk(drawn, scale))
            learn(0, of_g, True)
            learn(1, of_d, False)
        yield


def bare_ipgan(model: OpenSetIPGAN, data: FaceDataModule, case: Case) -> Iterator[None]:
    """Algorithm 1."""
    identity_encoder, classifier, generator = model.identity_encoder, model.classifier, model.generator
    attribute_encoder, discriminator = model.attribute_encoder, model.discriminator
    learn = Learner([attribute_encoder, generator, discriminator, classifier], case)
    vectors = torch.zeros(len(data.photos), 128, device=DEVICE)
    if model.precompute_identity:
        assert identity_encoder is not None
        with torch.no_grad():
            for photos in data.training_photos():
                vectors[photos["index"].to(DEVICE)] = identity_encoder(to_float(photos["image"].to(DEVICE)))

    for step, batch in enumerate(plain_batches(data)):
        mixed = case.precision != "32-true"
        with torch.autocast(DEVICE.type, torch.bfloat16) if mixed else nullcontext():
            x_s = x_a = batch["image"]
            weight, row = 1.0, batch["index"]
            if step % 2 == 1:
                x_a, weight = x_s.roll(1, 0), model.transformation_weight
            elif model.same_person_share:
                swap = torch.rand(len(x_s), device=DEVICE) < model.same_person_share
                x_s = torch.where(swap[:, None, None, None], batch["partner"], x_s)
                row = torch.where(swap, batch["partner_index"], row)
            features, logits = classifier(x_s)
            mean, log_variance = attribute_encoder(x_a)
            if model.precompute_identity:
                vector = vectors[row]
            else:
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
        yield


def measured(kind: str, case: Case) -> tuple[list[tuple[float, float]], float]:
    """What `framework` gives, and the GiB of memory used at the most (the GPU's, if there is one), in a process of its
    own. Of kind "framework", "bare" (no times) or "both".
    """
    command = [sys.executable, "-m", "tests.benchmarks.bench_training", kind, json.dumps(case)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-3000:]
    pairs, memory = json.loads(result.stdout.splitlines()[-1])
    return pairs, memory


ON_CPU = [Case("quickstart.yaml", 16, 4, 40), Case("ipgan.yaml", 4, 2, 10), Case("cond_vaegan.yaml", 4, 2, 10)]
ON_GPU = [
    Case("quickstart.yaml", 16, 20, 200),
    Case("ipgan.yaml", 32, 20, 100),
    Case("ipgan.yaml", 32, 20, 100, "bf16-mixed"),
    Case("ipgan.yaml", 32, 20, 100, "bf16-mixed", True),
    Case("cond_vaegan.yaml", 32, 20, 100),
    Case("cond_vaegan.yaml", 32, 20, 100, "bf16-mixed", True),
]


@pytest.mark.parametrize("case", ON_GPU if CUDA else ON_CPU, ids=str)
def test_training_is_at_most_ten_percent_slower_than_a_bare_loop(case: Case) -> None:
    pairs, _ = measured("both", case)
    ours, theirs = (sum(seconds) / len(pairs) for seconds in zip(*pairs, strict=True))
    ratio = median(a / b for a, b in pairs)
    few = case._replace(steps=2)
    memory, bare_memory = (measured(kind, few)[1] for kind in ("framework", "bare"))
    print(
        f"\n{case}: {case.batch_size / ours:.2f} images/s, bare loop {case.batch_size / theirs:.2f}; ratio of times, "
        f"median of {len(pairs)} batches in turn: {ratio:.3f}, of their sums: {ours / theirs:.3f}; "
        f"peak memory {memory:.2f} GiB, bare loop {bare_memory:.2f} GiB"
    )
    assert ratio <= 1.10


def test_loading_takes_at_most_five_percent_of_a_quickstart_step() -> None:
    case = ON_CPU[0]
    pairs, _ = measured("framework", case)
    step = median(seconds for seconds, _ in pairs)
    _, data = recipe(case)
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        training=True, global_step=0, global_rank=0, world_size=1, overfit_batches=0, strategy=strategy
    )

    def batches() -> Iterator[FaceBatch]:
        while True:
            for batch in data.train_dataloader():
                yield data.on_after_batch_transfer(batch, 0)

    loaded = batches()
    for _ in range(20):
        next(loaded)
    began = time.perf_counter()
    for _ in range(200):
        next(loaded)
    seconds = (time.perf_counter() - began) / 200
    print(
        f"\nquickstart: loading, flipping and scaling a batch takes {1e3 * seconds:.2f} ms of {1e3 * step:.0f} ms; "
        f"{case.batch_size / seconds:.0f} images/s"
    )
    assert seconds <= 0.05 * step


if __name__ == "__main__":
    kind, case = sys.argv[1], Case(*json.loads(sys.argv[2]))
    if kind == "bare":
        pairs = [(0.0, 0.0) for _ in zip(range(case.warmup + case.steps), bare(case), strict=False)]
    else:
        pairs = framework(case, beside=kind == "both")
    used = torch.cuda.max_memory_allocated() if CUDA else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10
    print(json.dumps([pairs, used / 2**30]))
