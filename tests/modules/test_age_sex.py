"""Training of the estimator of age and sex: that it learns, unknown labels, its export as an estimator."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from idface.checkpoints import export_weights
from idface.losses.attributes import age_loss
from idface.modules.age_sex import AgeSexTraining
from idface.networks.age_sex import YEARS, expected_age
from idface.recognition.age_sex import AgeSexEstimator
from tests.modules.helpers import adam, changed, sgd, snapshot, trainer
from tests.modules.test_label_dcgan import SIZE, Labelled, loader


def small(**arguments: Any) -> AgeSexTraining:
    torch.manual_seed(0)
    return AgeSexTraining(
        **({"input_size": SIZE, "width": 8, "dropout": 0.0, "ema_decay": 0.0, "optimizer": adam} | arguments)
    )


def test_it_learns_both(tmp_path: Path) -> None:
    model = small()
    run = trainer(120, tmp_path)
    run.fit(model, loader(120))
    run.test(model, [loader(4), loader(4), loader(1)], verbose=False)
    figures = {name: float(value) for name, value in run.callback_metrics.items()}
    assert figures["test/labels/unseen/age_error"] < 0.5 * figures["test/labels/unseen/age_error_ignoring"]
    assert figures["test/labels/unseen/sex_accuracy"] > 0.9


def test_unknown_labels_are_passed_over() -> None:
    batch = Labelled(1)[0]
    batch["age"].fill_(math.nan)
    batch["sex"].fill_(math.nan)
    model = small(optimizer=sgd)
    before = snapshot(model)
    trainer(1).fit(model, DataLoader([batch], batch_size=None))  # type: ignore[arg-type]
    weights = [name for name in changed(before, snapshot(model)) if "running" not in name and "num_" not in name]
    assert not weights
    with pytest.raises(ValueError, match="makes no faces"):
        model.predict_step(batch, 0)


def test_age_loss_against_a_plain_formula() -> None:
    noise = torch.Generator().manual_seed(0)
    logits, age = torch.randn(3, YEARS, generator=noise), torch.tensor([0.0, 33.3, 120.0])
    total = 0.0
    for row, years in zip(logits.double(), (0.0, 33.3, 100.0), strict=True):
        weights = [math.exp(-((year - years) ** 2) / 8) for year in range(YEARS)]
        chances = (row.exp() / row.exp().sum()).tolist()
        total -= sum(w / sum(weights) * math.log(p) for w, p in zip(weights, chances, strict=True))
        total += abs(sum(year * p for year, p in enumerate(chances)) - years)
    assert float(age_loss(logits, age)) == pytest.approx(total / 3, rel=1e-4)
    known = age_loss(logits[:2], age[:2])
    torch.testing.assert_close(age_loss(logits, torch.tensor([0.0, 33.3, math.nan])), known)
    assert float(age_loss(logits, torch.full((3,), math.nan))) == 0
    sure = torch.full((1, YEARS), -30.0)
    sure[0, 42] = 30.0
    assert float(expected_age(sure)) == pytest.approx(42)


def test_an_export_is_an_estimator(tmp_path: Path) -> None:
    model = small(ema_decay=0.5)
    model.recipe = {
        "class_path": "idface.modules.age_sex.AgeSexTraining",
        "init_args": {"input_size": SIZE, "width": 8, "ema_decay": 0.5},
    }
    run = trainer(3, tmp_path, enable_checkpointing=True)
    run.fit(model, loader(3))
    run.save_checkpoint(tmp_path / "last.ckpt")
    export_weights(str(tmp_path / "last.ckpt"), tmp_path / "own.safetensors", half=False)
    estimator = AgeSexEstimator(tmp_path / "own.safetensors").train()
    image = Labelled(1)[0]["image"]
    for own, trained in zip(estimator(image), model.eval()(image), strict=True):
        torch.testing.assert_close(own, trained)
    assert not any(parameter.requires_grad for parameter in estimator.parameters())
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="holds no estimator"):
        AgeSexEstimator(tmp_path / "other.pt")
