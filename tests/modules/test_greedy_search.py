"""The DCGAN of GreedySearchModule, its identity-preserving loss, its evaluation, and the search in prediction."""

import csv
import json
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from idface.latent.bank import Bank, build_bank
from idface.latent.scoring import Scorer
from idface.latent.strategies import STRATEGIES, Annealed
from idface.modules.base import MakesFacesFromLatents
from idface.modules.greedy_search import GreedySearchModule
from idface.pictures import is_marked_synthetic
from idface.recognition.dlib_resnet import DlibResNet
from tests.latent.test_bank import Projection
from tests.modules.helpers import Batches, adam, changed, loader, sgd, small_data, snapshot, trainer


class Wide(Projection):
    """The recogniser of one matrix, for 16x16 pixels, with a layer more."""

    name = "wide"
    stage_names = ("pixels", "half", "raw")

    def stages(self, image: Tensor) -> Any:
        image = F.avg_pool2d(image, 2)
        yield "pixels", image
        half = image.flatten(1) @ self.weight.T[:, :8]
        yield "half", half
        yield "raw", image.flatten(1) @ self.weight.T


def small(**arguments: Any) -> GreedySearchModule:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {"latent_dim": 6, "image_size": 16, "width": 4, "discriminator_width": 4}
    return GreedySearchModule(**(defaults | {"optimizer": sgd, "ema_decay": 0.0} | arguments))


@pytest.mark.parametrize("recognizer", [None, Wide()], ids=["plain", "identity"])
def test_each_phase_changes_its_network_alone(recognizer: Wide | None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(identity_recognizer=recognizer)
    seen: dict[str, set[str]] = {}
    phase = GreedySearchModule.phase

    def watched(self: GreedySearchModule, name: str, objective: Tensor, retain_graph: bool = False) -> None:
        before = snapshot(self)
        phase(self, name, objective, retain_graph)
        seen[name] = {key.split(".")[0] for key in changed(before, snapshot(self))}

    monkeypatch.setattr(GreedySearchModule, "phase", watched)
    before = snapshot(model)
    trainer(1).fit(model, loader())
    assert seen == {"generator": {"generator"}, "discriminator": {"discriminator"}}
    assert not any(key.startswith("identity_recognizer") for key in changed(before, snapshot(model)))


def test_losses_and_updates_are_those_of_a_gan_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    recognizer = Wide()
    model = small(identity_recognizer=recognizer, identity_weight=0.5, optimizer=adam, channels_last=False)
    reference = small(optimizer=adam)
    reference.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("identity")})
    recorded: dict[str, float] = {}
    monkeypatch.setattr(GreedySearchModule, "record", lambda _, losses: recorded.update(losses))
    trainer(1).fit(model, loader())

    torch.manual_seed(model._noise_seed.__func__(type("Start", (), {"iteration": 0, "global_rank": 0})()))
    image = Batches()[0]["image"]
    made = reference.generator(torch.rand(6, 6) * 2 - 1)  # as many latents as photos, of length 6
    real, fake = reference.discriminator(image)[1].sigmoid(), reference.discriminator(made)[1].sigmoid()
    assert float(recorded["discriminator"]) == pytest.approx(
        (-real.log().mean() - (1 - fake).log().mean()).item(), rel=1e-5
    )
    assert float(recorded["generator"]) == pytest.approx((-fake.log().mean()).item(), rel=1e-5)

    target, own = (recognizer.features(x, ["half", "raw"]) for x in (image, made))
    costs = torch.cdist(own["raw"], target["raw"]).square().detach()
    best = min(permutations(range(6)), key=lambda order: float(costs[range(6), list(order)].sum()))
    identity = sum(
        (own[key] - target[key][list(best)]).square().mean() / target[key].var(0, correction=0).mean()
        for key in ("half", "raw")
    )
    assert float(recorded["identity"]) == pytest.approx(float(identity) / 2, rel=1e-4)

    objective = -fake.log().mean() + 0.5 * identity / 2
    parameters = list(reference.generator.parameters())
    for parameter, gradient in zip(parameters, torch.autograd.grad(objective, parameters), strict=True):
        parameter.grad = gradient
    adam(parameters).step()
    for name, value in reference.generator.named_parameters():
        torch.testing.assert_close(dict(model.generator.named_parameters())[name], value, rtol=1e-3, atol=2e-5)


def test_the_network_of_the_loss_cannot_judge() -> None:
    model = small(identity_recognizer=Wide(), judge=Wide())
    assert not model.judge_report()["independent"]
    assert small(identity_recognizer=Wide(), judge=Wide(seed=1)).judge_report()["independent"]
    assert small(judge=Wide()).judge_report()["independent"]


def test_the_loss_in_bfloat16_is_still_of_the_same_network() -> None:
    plain, reduced = (small(identity_recognizer=Wide(), identity_bfloat16=each) for each in (False, True))
    assert plain.gradient_fingerprints == reduced.gradient_fingerprints
    assert reduced.identity_recognizer is not None
    assert reduced.identity_recognizer.weight.dtype == torch.bfloat16
    image = Batches()[0]["image"]
    near, exact = (model.identity_recognizer(image) for model in (reduced, plain) if model.identity_recognizer)
    assert near.dtype == torch.float32
    assert 0 < float((near - exact).norm(dim=1).max()) < 0.05
    trainer(1).fit(reduced, loader())


def test_the_last_two_layers_are_the_default() -> None:
    assert small(identity_recognizer=Wide()).identity_layers == ["half", "raw"]
    assert small(identity_recognizer=DlibResNet()).identity_layers == ["pooled", "raw"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latent_dim": 0}, "latent_dim is 0"),
        ({"budget": 0}, "budget is 0"),
        ({"identity_weight": -1.0}, "identity_weight is -1.0"),
        ({"identity_recognizer": Wide(), "identity_layers": ["top"]}, "identity_layers has top; wide has pixels, half"),
        ({"identity_layers": ["raw"]}, "there is none"),
        ({"image_size": 60}, "image_size is 60"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**arguments)


def test_what_is_searched_are_the_averaged_weights_in_evaluation_mode() -> None:
    model = small(ema_decay=0.9, optimizer=adam)
    trainer(4).fit(model, loader())
    assert isinstance(model, MakesFacesFromLatents)
    generator = model.latent_generator()
    latents = generator.sample(5, torch.Generator().manual_seed(0))
    assert (latents.abs() <= 1).all()
    faces = generator(latents)
    assert torch.allclose(faces[2:3], generator(latents[2:3]), atol=1e-6)  # a face does not depend on its batch
    assert torch.equal(faces, model.ema["generator"](latents).clamp(-1, 1))
    assert not torch.equal(faces, model.generator.eval()(latents))
    assert torch.allclose(model(latents), faces, atol=1e-6)


def test_the_evaluation_compares_as_many_generated_faces_as_real_ones(tmp_path: Path) -> None:
    judge = Wide()
    model = small(judge=judge, optimizer=adam)
    data = small_data()
    run = trainer(2, tmp_path, limit_val_batches=None, val_check_interval=1)
    run.fit(model, data)
    figures = {name: float(value) for name, value in run.callback_metrics.items() if name.startswith("val/faces/")}
    assert set(figures) == {f"val/faces/{name}" for name in ("frechet_distance", "variety_generated", "variety_real")}
    images = torch.cat([batch["image"] for part in data.val_dataloader()[:2] for batch in part]).float() / 127.5 - 1
    assert figures["val/faces/variety_real"] == pytest.approx(
        float(torch.pdist(judge(images)).square().mean()), rel=1e-3
    )
    counts = int(model.judged.frechet.real_features_num_samples), int(model.judged.frechet.fake_features_num_samples)
    assert counts == (len(images), len(images))  # of the last of two evaluations

    class Copies(GreedySearchModule):
        def forward(self, latents: Tensor) -> Tensor:
            return self.real

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.real = batch["image"]
            super().validation_step(batch, batch_idx, dataloader_idx)

    model.__class__ = Copies  # type: ignore[assignment]
    run.validate(model, data, verbose=False)
    assert float(run.callback_metrics["val/faces/frechet_distance"]) == pytest.approx(0, abs=1e-3)
    assert figures["val/faces/frechet_distance"] > 0.01
    same = (float(run.callback_metrics[f"val/faces/variety_{each}"]) for each in ("real", "generated"))
    assert next(same) == pytest.approx(next(same))


def test_sample_grids_show_the_same_latents_every_time() -> None:
    model = small()
    (grid,) = model.sample_grids().values()
    assert grid.shape == (8 * 16, 8 * 16, 3)
    assert np.array_equal(grid, next(iter(model.sample_grids().values())))
    assert is_marked_synthetic(grid)


@pytest.mark.parametrize("name", STRATEGIES)
def test_prediction_searches_for_the_people_of_the_photos(name: str, tmp_path: Path) -> None:
    model = small(recognizer=Wide(), judge=Wide(seed=1), strategy=STRATEGIES[name](), budget=200, people=3)
    data = small_data(attributes_per_query=3)  # photos come up again and again
    run = trainer(1, tmp_path)
    run.fit(model, data)
    run.predict(model, data, return_predictions=False)
    folder = tmp_path / "samples" / "predict"
    assert {file.name for file in folder.iterdir() if file.is_file()} == {"results.csv", "overview.png"}
    folders = sorted(each for each in folder.iterdir() if each.is_dir())
    assert len(folders) == 3
    assert {folder.name for folder in folders} <= set(data.identity_names)
    for folder in folders:
        result = json.loads((folder / "result.json").read_text())
        assert 190 < result["evaluations"] <= 200
        person = data.identity_names.index(folder.name)
        shown = np.concatenate([data.split.known["test"], data.split.unseen["test"]])
        assert result["photos"] == (data.split.identity[shown] == person).sum() >= 2
        assert result["judge"]["is_independent"]
        assert 0 <= result["distance"] < 4
        assert result["judge"]["distance"] != result["distance"]
        history = list(csv.DictReader((folder / "history.csv").open(newline="")))
        distances = [float(row["distance"]) for row in history]
        assert distances == sorted(distances, reverse=True)
        with Image.open(folder / "face.png") as face:
            assert face.size == (16, 16)
            assert "Recipe" in face.info


def test_prediction_starts_from_a_bank_and_may_be_guided_by_another_recogniser(tmp_path: Path) -> None:
    data = small_data()
    keep = ModelCheckpoint(tmp_path, filename="last", every_n_train_steps=1)
    trained = small(recognizer=Wide(), ema_decay=0.5)
    trainer(1, tmp_path, callbacks=[keep], enable_checkpointing=True).fit(trained, data)
    guide = Wide(seed=2)
    scorer = Scorer(trained.latent_generator(), guide, precision="float32")
    build_bank(tmp_path / "bank", scorer, 100, progress=lambda _: None)
    model = small(recognizer=guide, bank=tmp_path / "bank", strategy=Annealed(), budget=1, people=2, ema_decay=0.5)
    trainer(1, tmp_path).predict(model, data, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    best = Bank(tmp_path / "bank")
    for folder in (tmp_path / "samples" / "predict").glob("*/"):
        latent = load_file(folder / "latent.safetensors")["latent"]
        assert any(torch.equal(latent, best.latents(torch.tensor([row]))[0]) for row in range(100))


def test_prediction_without_a_recogniser_says_so(tmp_path: Path) -> None:
    model, data = small(), small_data()
    with pytest.raises(ValueError, match=r"model\.recognizer or model\.judge"):
        trainer(1, tmp_path).predict(model, data)
