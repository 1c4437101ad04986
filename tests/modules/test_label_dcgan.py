"""The label-conditioned GAN: who learns, labels that are used, the gate, the rate, figures."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data_modules.batch import FaceBatch
from idface.modules import label_dcgan
from idface.modules.label_dcgan import LabelConditionedDCGAN, ages_grid, falling_rate
from idface.networks.label_dcgan import LabelCoding
from idface.pictures import is_marked_synthetic
from tests.modules.helpers import adam, changed, sgd, snapshot, trainer

SIZE = 16


class Labelled(Dataset[FaceBatch]):
    """Pictures whose upper half is as bright as somebody is old; the lower half says the sex."""

    def __init__(self, count: int, size: int = 16) -> None:
        noise = torch.Generator().manual_seed(count)
        self.age = 10 + 90 * torch.rand(count, size, generator=noise)
        self.sex = torch.where(torch.rand(count, size, generator=noise) < 0.5, -1.0, 1.0)
        image = torch.empty(count, size, 3, SIZE, SIZE)
        image[..., : SIZE // 2, :] = ((self.age - 55) / 50)[:, :, None, None, None]
        image[..., SIZE // 2 :, :] = (0.8 * self.sex)[:, :, None, None, None]
        self.image = (image + 0.1 * torch.randn(image.shape, generator=noise)).clamp(-1, 1)

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, row: int) -> FaceBatch:
        unknown = torch.full((self.image.shape[1],), -1)
        labels = {"sex": self.sex[row], "age": self.age[row]}
        return {"image": self.image[row], "identity": unknown, "index": unknown, **labels}  # type: ignore[typeddict-item]


def loader(count: int) -> DataLoader[FaceBatch]:
    return DataLoader(Labelled(count), batch_size=None)


def small(**arguments: Any) -> LabelConditionedDCGAN:
    torch.manual_seed(0)
    defaults = {"image_size": SIZE, "latent_dim": 4, "width": 4, "discriminator_width": 8, "hidden": 32}
    return LabelConditionedDCGAN(**(defaults | {"ema_decay": 0.0, "optimizer": sgd} | arguments))


def parts(found: set[str]) -> set[str]:
    return {name.split(".")[0] for name in found}


@pytest.mark.parametrize(
    ("costs", "learning"),
    [
        ((1.0, 1.0), {"generator", "discriminator"}),
        ((0.49, 1.0), {"generator"}),  # D's is below half of G's
        ((0.51, 1.0), {"generator", "discriminator"}),
        ((1.0, 0.32), {"discriminator"}),  # G's is below a third of D's
        ((1.0, 0.34), {"generator", "discriminator"}),
    ],
)
def test_the_stronger_side_rests(costs: tuple[float, float], learning: set[str]) -> None:
    model = small()
    model.costs.copy_(torch.tensor(costs))
    before = snapshot(model)
    trainer(1).fit(model, loader(1))
    found = changed(before, snapshot(model))
    weights = {name for name in found if "running" not in name and "num_batches" not in name}
    assert parts(weights) == {*learning, "costs"}
    of_d, of_g = model.costs.tolist()
    assert (of_d, of_g) != costs  # measured also of who rests, or it would never be let go

    free = small(gate=False)
    free.costs.copy_(torch.tensor(costs))
    assert free.who_learns() == (True, True)


def test_the_gate_stops_a_side_that_is_too_strong_and_lets_it_go_again() -> None:
    model = small(optimizer=lambda p: torch.optim.Adam(p, lr=2e-2))
    learning: list[tuple[bool, bool]] = []
    asked = model.who_learns

    def who_learns() -> tuple[bool, bool]:
        learning.append(asked())
        return learning[-1]

    model.who_learns = who_learns  # type: ignore[method-assign]
    trainer(60).fit(model, loader(60))
    of_d = [d_learns for _, d_learns in learning]
    assert not all(of_d)
    first = of_d.index(False)
    assert any(of_d[first:])
    assert all(g_learns or d_learns for g_learns, d_learns in learning)


def test_costs_are_in_the_checkpoint() -> None:
    model = small()
    model.costs.copy_(torch.tensor([0.25, 2.0]))
    other = small()
    other.load_state_dict(model.state_dict())
    assert other.who_learns() == model.who_learns() == (True, False)


@pytest.mark.parametrize("matching_aware", [False, True])
def test_the_generator_uses_both_labels(matching_aware: bool) -> None:
    model = small(matching_aware=matching_aware, optimizer=adam)
    run = trainer(300)
    run.fit(model, loader(300))
    latents = model.fixed_latents(8)
    means: dict[tuple[float, float], Tensor] = {}
    for sex in (-1.0, 1.0):
        for age in (20.0, 90.0):
            faces = model.generate(latents, torch.full((8,), sex), torch.full((8,), age))
            means[sex, age] = torch.stack([faces[..., : SIZE // 2, :].mean(), faces[..., SIZE // 2 :, :].mean()])
    for sex in (-1.0, 1.0):
        assert means[sex, 90.0][0] - means[sex, 20.0][0] > 0.3  # the upper half is the age's: 1.4 in the data
    for age in (20.0, 90.0):
        assert means[1.0, age][1] - means[-1.0, age][1] > 0.5  # the lower is the sex's: 1.6


def test_photos_without_labels_or_of_other_ages_are_passed_over() -> None:
    batch = Labelled(1)[0]
    batch["age"][0], batch["age"][1], batch["sex"][2] = 5.0, math.nan, math.nan
    fewer = {key: value[3:] for key, value in cast(Mapping[str, Tensor], batch).items()}
    states = []
    for each in (batch, fewer):
        model = small()
        trainer(1).fit(model, DataLoader([each], batch_size=None))  # type: ignore[arg-type]
        states.append(snapshot(model))
    assert not changed(*states)
    batch["age"].fill_(math.nan)
    with pytest.raises(ValueError, match="0 photos of known sex and of an age from 10 to 100"):
        trainer(1).fit(small(), DataLoader([batch], batch_size=None))  # type: ignore[arg-type]
    del batch["age"]
    with pytest.raises(ValueError, match="no age"):
        trainer(1).fit(small(), DataLoader([batch], batch_size=None))  # type: ignore[arg-type]


def test_wrong_labels_are_wrong() -> None:
    sex = torch.tensor([-1.0, -1.0, 1.0, 1.0, 1.0])
    age = torch.tensor([20.0, 25.0, 20.0, 60.0, 65.0])
    for seed in range(10):
        torch.manual_seed(seed)
        other, is_wrong = LabelConditionedDCGAN._wrong_labels(sex, age, LabelCoding()(sex, age))
        assert (other != torch.arange(5)).all()
        alike = {(0, 1), (1, 0), (3, 4), (4, 3)}
        for row in range(5):
            assert bool(is_wrong[row]) == ((row, int(other[row])) not in alike)


def test_with_ages_in_bins_a_wrong_label_is_another_one() -> None:
    sex, age = torch.ones(4), torch.tensor([12.0, 38.0, 41.0, 68.0])
    label = LabelCoding(age_bins=3)(sex, age)
    for seed in range(10):
        torch.manual_seed(seed)
        other, is_wrong = LabelConditionedDCGAN._wrong_labels(sex, age, label)
        for row in range(4):
            assert bool(is_wrong[row]) == ({row, int(other[row])} not in ({0, 1}, {1, 2}, {2, 3}))
    model = small(matching_aware=True, age_bins=3)
    trainer(2).fit(model, loader(2))


def test_resuming_while_a_side_rests_equals_never_having_stopped(tmp_path: Path) -> None:
    def fresh() -> LabelConditionedDCGAN:
        return small(optimizer=lambda p: torch.optim.Adam(p, lr=2e-2), ema_decay=0.9)

    whole = fresh()
    trainer(12).fit(whole, loader(12))
    first = fresh()
    run = trainer(3, enable_checkpointing=True, default_root_dir=tmp_path)
    run.fit(first, loader(12))
    assert not all(first.who_learns())
    run.save_checkpoint(tmp_path / "half.ckpt")
    rest = fresh()
    trainer(12).fit(rest, DataLoader(Later(12, 3), batch_size=None), ckpt_path=tmp_path / "half.ckpt")
    assert not changed(snapshot(whole), snapshot(rest))


class Later(Labelled):
    """The batches from some on, again and again."""

    def __init__(self, count: int, first: int) -> None:
        super().__init__(count)
        self.first = first

    def __getitem__(self, row: int) -> FaceBatch:
        return super().__getitem__((row + self.first) % len(self))


def test_the_rate_falls_as_the_paper_says() -> None:
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=5e-4)
    schedule = falling_rate(optimizer)
    rates = []
    for _ in range(57_600):
        rates.append(optimizer.param_groups[0]["lr"])
        schedule.last_epoch += 1
        optimizer.param_groups[0]["lr"] = 5e-4 * schedule.lr_lambdas[0](schedule.last_epoch)  # type: ignore[attr-defined]
    assert rates[0] == rates[99] == 5e-4
    assert rates[100] == pytest.approx(5e-4 * 0.996)
    assert rates[1000] == pytest.approx(5e-4 * 0.996**10)
    assert next(batch for batch, rate in enumerate(rates) if rate <= 5e-5) == 57_500  # notes: near 57,400
    assert min(rates) == pytest.approx(5e-5)
    with pytest.raises(ValueError, match="factor"):
        falling_rate(optimizer, factor=1.5)


def test_the_rate_falls_in_training() -> None:
    model = small(optimizer=adam)
    run = trainer(101)
    run.fit(model, loader(101))
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3 * 0.996)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_faces_of_photos_labels(precision: str) -> None:
    batch = Labelled(1)[0]
    batch["age"][0] = math.nan
    run = trainer(1, precision=precision)
    (faces,) = run.predict(small(), DataLoader([batch], batch_size=None))  # type: ignore[arg-type, misc]
    assert faces.dtype == torch.float32
    assert bool(faces[0].isnan().all())
    assert not bool(faces[1:].isnan().any())


@pytest.mark.parametrize(("taught", "shown"), [((10, 100), (15, 75)), ((30, 50), (30, 50)), ((80, 90), (80, 90))])
def test_grids_show_ages_that_were_taught(
    taught: tuple[float, float], shown: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Sequence[float]] = []
    monkeypatch.setattr(label_dcgan, "ages_grid", lambda model, latents, ages: asked.append(ages))
    small(youngest=taught[0], oldest=taught[1]).sample_grids()
    assert asked == [pytest.approx(np.linspace(*shown, 7))]


def test_random_faces_are_the_same_every_time() -> None:
    model = small()
    torch.testing.assert_close(model.random_faces(6, 3), model.random_faces(6, 3))
    assert not torch.equal(model.random_faces(6, 3), model.random_faces(6, 4))


def test_grids_share_noise_and_are_marked() -> None:
    model = small(image_size=64)
    grid = ages_grid(model, model.fixed_latents(2), [20, 50, 80])
    assert grid.shape == (4 * 64, 3 * 64, 3)
    assert is_marked_synthetic(grid)
    own = model.generate(model.fixed_latents(2)[1:], torch.tensor([1.0]), torch.tensor([80.0]))
    difference = torch.from_numpy(grid[3 * 64 :, 2 * 64 :].copy()).permute(2, 0, 1) - (own[0] + 1) * 127.5
    assert difference.abs().max() < 3  # the mark's two grey levels, and rounding


class Seer(torch.nn.Module):
    """Sees the true labels of `Labelled`."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        top, low = image[..., : SIZE // 2, :].mean((1, 2, 3)), image[..., SIZE // 2 :, :].mean((1, 2, 3))
        return torch.where(low > 0, 1.0, -1.0), 55 + 50 * top


def test_evaluation_says_whether_labels_are_obeyed(tmp_path: Path) -> None:
    model = small(estimator=Seer())
    run = trainer(1, tmp_path, limit_val_batches=1.0)
    run.validate(model, [loader(4), loader(4), loader(1)], verbose=False)
    figures = {name: float(value) for name, value in run.callback_metrics.items()}
    assert figures["val/labels/real/age_error"] < 3
    assert figures["val/labels/real/sex_accuracy"] == 1
    assert figures["val/labels/real/age_correlation"] > 0.99
    untrained = figures["val/labels/generated/age_error"]
    assert untrained > 15
    assert figures["val/labels/real/age_error_ignoring"] == figures["val/labels/generated/age_error_ignoring"] > 15


def trained_generator(folder: Path) -> tuple[LabelConditionedDCGAN, Path]:
    """A model whose faces show their labels and some noise, and its checkpoint."""
    model = small(matching_aware=True, optimizer=adam, ema_decay=0.5)
    run = trainer(150, folder, enable_checkpointing=True)
    run.fit(model, loader(150))
    run.save_checkpoint(folder / "gan.ckpt")
    return model, folder / "gan.ckpt"


def test_the_encoder_learns_against_a_generator_that_stays(tmp_path: Path) -> None:
    gan, start = trained_generator(tmp_path)
    model = small(learns="encoder", start=start, encoder_width=4, optimizer=adam, ema_decay=0.5)
    before = {name: value.clone() for name, value in model.generator.state_dict().items()}
    for name, value in gan.ema["generator"].state_dict().items():
        torch.testing.assert_close(before[name], value)
    batch = Labelled(200)[150]
    labels = batch["sex"], batch["age"]

    def error() -> float:
        faces = model.generate(model.encode(batch["image"], *labels), *labels)
        return float((faces - batch["image"]).abs().mean())

    untrained = error()
    trainer(150, tmp_path).fit(model, loader(150))
    assert not changed(before, model.generator.state_dict())
    assert error() < untrained

    first = model.encode(batch["image"], *labels)
    refined = model.refine(first, batch["image"], *labels, steps=20)
    assert refined.abs().max() <= 1
    after = (model.generate(refined, *labels) - batch["image"]).abs().mean()
    assert float(after) < error()


def test_the_encoder_finds_the_noise_of_generated_faces(tmp_path: Path) -> None:
    gan = small()
    for part in range(50):  # G is as it began, full of noise, but for its statistics
        gan.generator(gan.fixed_latents(64, part), torch.ones(64, 2))
    torch.save({"state_dict": gan.state_dict()}, tmp_path / "gan.ckpt")
    settings = {"start": tmp_path / "gan.ckpt", "encoder_width": 8, "latent_weight": 10.0}
    model = small(learns="encoder", **settings, optimizer=lambda p: torch.optim.Adam(p, 5e-3))
    noise, labels = model.fixed_latents(64, 5), (torch.ones(64), torch.full((64,), 40.0))
    faces = model.generate(noise, *labels)

    def unlike() -> float:
        return float((model.encode(faces, *labels) - noise).square().mean())

    before = unlike()
    trainer(200).fit(model, loader(200))
    assert unlike() < 0.7 * before


def test_an_encoder_needs_a_generator_of_its_sizes(tmp_path: Path) -> None:
    gan = small()
    torch.save({"state_dict": gan.state_dict()}, tmp_path / "gan.ckpt")
    with pytest.raises(ValueError, match=r"holds no G of these sizes \(\d+ of \d+ tensors differ"):
        small(learns="encoder", start=tmp_path / "gan.ckpt", width=8)
    with pytest.raises(ValueError, match="zoo:label-dcgan holds no G of these sizes"):
        small(learns="encoder", start=Path("zoo:label-dcgan"))
    with pytest.raises(ValueError, match="learns: encoder"):
        small(start=tmp_path / "gan.ckpt")
    with pytest.raises(ValueError, match="was taught ages from 10 to 100, not 10 to 60"):
        small(learns="encoder", start=tmp_path / "gan.ckpt", oldest=60)
    with pytest.raises(ValueError, match=r"give --model\.start"):
        trainer(1).fit(small(learns="encoder"), loader(1))
    with pytest.raises(ValueError, match="has no encoder"):
        gan.encode(torch.zeros(1, 3, SIZE, SIZE), torch.ones(1), torch.ones(1))


def test_prediction_leaves_out_photos_without_labels() -> None:
    model = small()
    run = trainer(1)
    batch = Labelled(1)[0]
    batch["age"][3] = 5.0
    (faces,) = run.predict(model, DataLoader([batch], batch_size=None))  # type: ignore[arg-type, misc]
    made = faces.flatten(1).isfinite().all(1)
    assert made.tolist() == [row != 3 for row in range(16)]
