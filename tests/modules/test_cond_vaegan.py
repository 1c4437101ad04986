"""The conditional VAE-GAN: what learns from what, its ablations, its schedule, its evaluation, that it can learn."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data_modules.batch import FaceBatch
from data_modules.folder import FaceFolderDataModule
from idface.modules.cond_vaegan import CondVAEGAN
from idface.pictures import mark_synthetic, to_picture
from tests.latent.test_bank import Projection
from tests.modules.helpers import PEOPLE, Batches, adam, changed, sgd, small_data, snapshot, trainer


@pytest.fixture(autouse=True)
def seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The noise of a step is that of seed 0, whatever another test has left behind."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")


class Halved(Projection):
    """The recogniser of one matrix, for 32x32 pixels."""

    def stages(self, image: Tensor) -> Any:
        yield from super().stages(F.avg_pool2d(image, 4))


def small(**arguments: Any) -> CondVAEGAN:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {
        "num_identities": PEOPLE,
        "latent_dim": 6,
        "image_size": 32,
        "width": 4,
        "encoder_width": 4,
        "discriminator_width": 4,
        "identity_dim": 5,
        "optimizer": sgd,
        "ema_decay": 0.0,
    }
    return CondVAEGAN(**(defaults | arguments))


def loader(**arguments: Any) -> DataLoader[FaceBatch]:
    return DataLoader(Batches(**({"image_size": 32} | arguments)), batch_size=None)


CVAE = {"discriminators": 0}
CGAN = {"encoder": False}
ALL = {"pixel", "kl", "adversarial", "classification_fake", "features", "critic", "classification_real", "penalty"}


@pytest.mark.parametrize(
    ("arguments", "losses"),
    [
        ({**CVAE, "identity_recognizer": Halved()}, {"pixel", "kl", "identity"}),
        ({}, ALL),
        ({"identity_recognizer": Halved()}, ALL | {"identity"}),
        ({"identity_recognizer": Halved(), "identity_weight": 0.0}, ALL),
        (CVAE, {"pixel", "kl"}),
        (CGAN, ALL - {"pixel", "kl"}),
        ({**CGAN, "identity_recognizer": Halved()}, (ALL - {"pixel", "kl"}) | {"identity"}),
        ({"discriminators": 1}, ALL),
    ],
)
def test_each_phase_changes_its_networks_alone_and_each_model_has_its_losses(
    arguments: dict[str, Any], losses: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small(**arguments)
    seen: dict[str, set[str]] = {}
    recorded: dict[str, Tensor] = {}
    phase = CondVAEGAN.phase

    def watched(self: CondVAEGAN, name: str, objective: Tensor, retain_graph: bool = False) -> None:
        before = snapshot(self)
        phase(self, name, objective, retain_graph)
        seen[name] = {key.split(".")[0] for key in changed(before, snapshot(self))}

    monkeypatch.setattr(CondVAEGAN, "phase", watched)
    monkeypatch.setattr(CondVAEGAN, "record", lambda self, found: recorded.update(found))
    trainer(1).fit(model, loader())
    phases = ["synthesizer", *(["discriminators"] if arguments.get("discriminators", 2) else [])]
    assert seen == {name: {name} for name in phases}
    assert set(recorded) == losses
    assert all(torch.isfinite(value) for value in recorded.values())


def test_losses_and_updates_are_those_of_equation_8_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    recognizer = Halved()
    weights = {"classification": 0.7, "feature": 0.6, "pixel": 9.0, "kl": 0.02, "identity": 0.8, "penalty": 1.3}
    options: dict[str, Any] = {f"{name}_weight": value for name, value in weights.items()}
    model = small(identity_recognizer=recognizer, channels_last=False, **options)
    reference = small(channels_last=False)
    recorded: dict[str, Tensor] = {}
    monkeypatch.setattr(CondVAEGAN, "record", lambda self, found: recorded.update(found))
    trainer(1).fit(model, loader())

    batch = Batches(image_size=32)[0]
    x, c = batch["image"], batch["identity"]
    torch.manual_seed(hash((0, 0, 0)) & 0x7FFF_FFFF_FFFF_FFFF)
    noise = torch.randn(2, len(x), 6)
    generator, encoder = reference.synthesizer.generator, reference.synthesizer.encoder
    assert encoder is not None
    assert reference.discriminators is not None
    mean, log_variance = encoder(x)
    x_encode = generator(mean + torch.exp(log_variance / 2) * noise[0], c)
    x_random = generator(noise[1], c)
    pixel = (x - x_encode).abs().mean()
    kl = (0.5 * (mean**2 + log_variance.exp() - log_variance - 1)).sum(1).mean()
    fr = [recognizer.features(image, ["raw"])["raw"] for image in (x, x_encode, x_random)]
    identity = (fr[0] - fr[1]).abs().mean() + (fr[0] - fr[2]).abs().mean()
    of_g = weights["pixel"] * pixel + weights["kl"] * kl + weights["identity"] * identity
    of_d = torch.zeros(())
    adversarial_d = []
    drawn = torch.where(torch.randint(2, (len(x), 1, 1, 1)) == 0, x_encode, x_random).detach()
    for k, network in enumerate(reference.discriminators.networks):

        def at_scale(image: Tensor, k: int = k) -> Tensor:
            return F.interpolate(image, scale_factor=0.5, mode="area") if k else image

        (real, real_logits, real_features), encoded, randomly = (network(at_scale(i)) for i in (x, x_encode, x_random))
        of_g = of_g - (encoded[0].mean() + randomly[0].mean()) / 2
        of_g = of_g + weights["classification"] * sum(
            -F.log_softmax(logits, 1)[torch.arange(len(c)), c].mean() for logits in (encoded[1], randomly[1])
        )
        of_g = of_g + weights["feature"] * sum(
            (target.detach() - feature).abs().mean()
            for features in (encoded[2], randomly[2])
            for target, feature in zip(real_features, features, strict=True)
        )
        critic = (encoded[0].mean() + randomly[0].mean()) / 2 - real.mean()
        adversarial_d.append(critic)
        share = torch.rand(len(x), 1, 1, 1)
        between = (at_scale(x) + share * (at_scale(drawn) - at_scale(x))).requires_grad_()
        (slope,) = torch.autograd.grad(network(between)[0].sum(), between, create_graph=True)
        penalty = ((slope.flatten(1).square().sum(1).sqrt() - 1) ** 2).mean()
        of_d = of_d + critic + weights["penalty"] * penalty
        of_d = of_d - weights["classification"] * F.log_softmax(real_logits, 1)[torch.arange(len(c)), c].mean()
    for name, value in {"pixel": pixel, "kl": kl, "identity": identity, "critic": sum(adversarial_d)}.items():
        torch.testing.assert_close(recorded[name], value, rtol=1e-4, atol=1e-5, msg=name)
    for network, objective in ((reference.synthesizer, of_g), (reference.discriminators, of_d)):
        gradients = torch.autograd.grad(objective, list(network.parameters()), retain_graph=True)
        trained = (model.synthesizer if network is reference.synthesizer else model.discriminators) or network
        for (name, start), gradient, end in zip(
            network.named_parameters(), gradients, trained.parameters(), strict=True
        ):
            torch.testing.assert_close(start - gradient, end, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_photos_of_nobody_are_refused(face_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(face_folder, tmp_path / "faces"))
    (folder / "unlabelled").mkdir()
    for photo in (1, 2):
        shutil.copy(folder / "person_1" / f"{photo}.png", folder / "unlabelled" / f"{photo}.png")
    own = {"image_size": 32, "batch_size": 4, "val_identities": 0, "test_identities": 0, "partner": False}
    data = FaceFolderDataModule(folder, align=False, cache_dir=tmp_path / "cache", **own)
    with pytest.raises(ValueError, match="2 of the training photos show nobody who is known"):
        trainer(1, tmp_path).fit(small(num_identities=6), data)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_identities": 1}, "num_identities is 1"),
        ({"image_size": 48}, "image_size is 48"),
        ({"latent_dim": 0}, "latent_dim is 0"),
        ({"discriminators": 3}, "discriminators is 3"),
        ({"discriminators": 0, "encoder": False}, "nothing says what a face looks like"),
        ({"kl_weight": -1.0}, "kl_weight is -1"),
        ({"identity_bfloat16": True}, "identity_bfloat16"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**arguments)


def test_the_rate_stays_for_half_of_the_run_and_then_falls_to_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(optimizer=adam)
    rates: list[list[float]] = []
    step = CondVAEGAN.step

    def watched(self: CondVAEGAN, batch: FaceBatch) -> None:
        rates.append([optimizer.param_groups[0]["lr"] for optimizer in self.trainer.optimizers])
        step(self, batch)

    monkeypatch.setattr(CondVAEGAN, "step", watched)
    trainer(8).fit(model, loader(count=8))
    expected = [1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    np.testing.assert_allclose(rates, np.array([expected, expected]).T * 1e-3)
    given = small(scheduler=lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, 0.5, total_iters=100))
    rates.clear()
    trainer(2).fit(given, loader())
    np.testing.assert_allclose(rates, np.full((2, 2), 0.5))


def test_an_identity_recogniser_cannot_judge_and_generating_does_without() -> None:
    recognizer, other = Halved(), Halved(seed=1)
    assert not small(identity_recognizer=recognizer, judge=recognizer).judge_report()["independent"]
    assert small(identity_recognizer=recognizer, judge=other).judge_report()["independent"]
    assert "identity_recognizer" in CondVAEGAN.spared


def test_the_evaluation_makes_a_face_of_the_same_person_for_each_photo(tmp_path: Path) -> None:
    judge = Halved()
    model = small(num_identities=32, judge=judge, optimizer=adam)
    data = small_data(image_size=32)
    run = trainer(2, tmp_path, limit_val_batches=None, val_check_interval=2)
    run.fit(model, data)
    figures = {name.removeprefix("val/faces/"): float(value) for name, value in run.callback_metrics.items()}
    assert {"top1", "top1_real", "chance", "frechet_distance", "variety_generated", "variety_real"} <= set(figures)
    assert figures["chance"] == pytest.approx(1 / 32)
    known = torch.cat([batch["image"] for batch in data.val_dataloader()[0]]).float() / 127.5 - 1
    assert figures["variety_real"] == pytest.approx(float(torch.pdist(judge(known)).square().mean()), rel=1e-3)
    assert int(model.judged.frechet.fake_features_num_samples) == len(known)

    grids = model.sample_grids()
    assert grids["people"].shape == (8 * 32, 9 * 32, 3)
    face = to_picture(model.generate(model.fixed_latents(8), torch.full((8,), min(model._photos))))[0]
    assert np.array_equal(grids["people"][:32, 32:64], mark_synthetic(face))
    assert grids["interpolation"].shape == (8 * 32, 9 * 32, 3)

    class Perfect(CondVAEGAN):
        def generate(self, latents: Tensor, identity: Tensor) -> Tensor:
            faces = {
                int(p): i for b in data.val_dataloader()[2] for p, i in zip(b["identity"], b["image"], strict=True)
            }
            return torch.stack([faces[int(person)] for person in identity]).float() / 127.5 - 1

    model.__class__ = Perfect  # type: ignore[assignment]
    run.validate(model, data, verbose=False)
    assert float(run.callback_metrics["val/faces/top1"]) == 1


def test_prediction_gives_known_people_the_latents_of_others() -> None:
    model = small()
    batch = Batches(image_size=32)[0]
    faces = model.predict_step(batch, 0)
    assert faces is not None
    torch.testing.assert_close(faces, model.generate(model.encode(batch["partner"]), batch["identity"]))
    unknown: FaceBatch = {**batch, "identity": batch["identity"] + PEOPLE}
    made = model.predict_step(unknown, 0).flatten(1).isfinite().all(1)
    assert made.tolist() == (unknown["identity"] < PEOPLE).tolist()
    without = small(encoder=False).predict_step(batch, 0)
    assert without is not None
    assert without.shape == batch["image"].shape


def test_interpolation_goes_from_one_photos_latent_to_the_others_along_a_line() -> None:
    model = small()
    first, second = (Batches(image_size=32)[row]["image"] for row in (0, 1))
    identity = torch.arange(6) % PEOPLE
    ways = model.interpolate(first, second, identity, steps=5)
    assert ways.shape == (6, 5, 3, 32, 32)
    torch.testing.assert_close(ways[:, 0], model.generate(model.encode(first), identity))
    torch.testing.assert_close(ways[:, -1], model.generate(model.encode(second), identity))
    between = 0.75 * model.encode(first) + 0.25 * model.encode(second)
    torch.testing.assert_close(ways[:, 1], model.generate(between, identity))
    with pytest.raises(ValueError, match="steps is 1"):
        model.interpolate(first, second, identity, steps=1)
    with pytest.raises(ValueError, match="without an encoder"):
        small(encoder=False).encode(first)


class Corners(Dataset[FaceBatch]):
    """Pictures whose bright quarter says who it is; how bright it is varies."""

    def __init__(self, count: int) -> None:
        noise = torch.Generator().manual_seed(0)
        self.identity = torch.randint(PEOPLE, (count, 8), generator=noise)
        level = 0.5 + 0.5 * torch.rand((count, 8, 1, 1, 1), generator=noise)
        quarters = F.one_hot(self.identity, 4).float().view(count, 8, 1, 2, 2)
        bright = F.interpolate(quarters.flatten(0, 1), size=32).view(count, 8, 1, 32, 32)
        self.image = (level * (2 * bright - 1)).expand(-1, -1, 3, -1, -1)

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, row: int) -> FaceBatch:
        return {"image": self.image[row], "identity": self.identity[row], "index": self.identity[row]}


@pytest.mark.parametrize(
    ("arguments", "steps", "least"), [({}, 80, 0.9), (CVAE, 80, 0.9), (CGAN, 200, 0.7)], ids=["whole", "cvae", "cgan"]
)
def test_it_learns_whose_face_it_makes(arguments: dict[str, Any], steps: int, least: float) -> None:
    model = small(optimizer=lambda p: torch.optim.Adam(p, lr=2e-3, betas=(0.5, 0.999)), width=8, **arguments)
    trainer(steps).fit(model, DataLoader(Corners(steps), batch_size=None))
    people = torch.arange(PEOPLE).repeat_interleave(16)
    faces = model.generate(model.fixed_latents(len(people)), people)
    brightest = F.adaptive_avg_pool2d(faces.mean(1), 2).flatten(1).argmax(1)
    assert float((brightest == people).float().mean()) > least  # 1 / 4 by chance
