"""Training of recognisers: what learns, that it can learn, its figures, that its export is a recogniser."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data_modules.batch import FaceBatch
from idface.modules.recognition import LightCNNTraining
from tests.modules.helpers import changed, sgd, snapshot, trainer

PEOPLE = 3


class Stripes(Dataset[FaceBatch]):
    """Pictures whose stripes say who it is."""

    def __init__(self, count: int, people: range = range(PEOPLE), size: int = 6) -> None:
        noise = torch.Generator().manual_seed(len(people) + count)
        self.identity = torch.randint(people.start, people.stop, (count, size), generator=noise)
        place = torch.linspace(0, 6.28, 32)
        waves = torch.stack([torch.sin(place * (2 + 3 * person)) for person in range(6)])  # (P, 32)
        rows = waves[self.identity][:, :, None, :, None].expand(-1, -1, 3, -1, 32)
        self.image = 0.5 * rows + 0.1 * torch.randn(rows.shape, generator=noise)

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, row: int) -> FaceBatch:
        return {"image": self.image[row], "identity": self.identity[row], "index": self.identity[row]}


def loader(count: int, people: range = range(PEOPLE)) -> DataLoader[FaceBatch]:
    return DataLoader(Stripes(count, people), batch_size=None)


def small(**arguments: Any) -> LightCNNTraining:
    torch.manual_seed(0)
    return LightCNNTraining(**({"num_identities": PEOPLE, "dropout": 0.0, "ema_decay": 0.0} | arguments))


def test_the_network_learns_and_photos_of_nobody_are_passed_over() -> None:
    model = small(optimizer=sgd)
    before = snapshot(model)
    nobody = Stripes(1)
    nobody.identity.fill_(-1)
    trainer(1).fit(model, DataLoader(nobody, batch_size=None))
    assert not changed(before, snapshot(model))
    trainer(1).fit(model, loader(1))
    found = changed(before, snapshot(model))
    assert {name.split(".")[1] for name in found} == {"backbone", "head"}


@pytest.mark.parametrize(("loss", "steps", "least"), [("softmax", 14, 0.9), ("cosface", 40, 0.8)])
def test_it_learns_who_is_who_also_among_others(loss: Any, steps: int, least: float, tmp_path: Path) -> None:
    model = small(loss=loss, margin=0.1, scale=16.0, optimizer=lambda p: torch.optim.AdamW(p, lr=3e-4))
    run = trainer(steps, tmp_path)
    run.fit(model, loader(steps))
    loaders = [loader(4), loader(4, range(3, 6)), DataLoader(Gallery(), batch_size=None)]
    run.test(model, loaders, verbose=False)
    figures = {name: float(value) for name, value in run.callback_metrics.items()}
    assert figures["test/identity/known/top1"] > least  # 1 / 3 by chance
    assert figures["test/identity/unseen/top1"] > 0.5
    assert figures["test/identity/unseen/chance"] == pytest.approx(1 / 6)
    assert figures["test/identity/unseen/faces"] == 24


class Gallery(Stripes):
    """A photo a person."""

    def __init__(self) -> None:
        super().__init__(1, range(6), 6)
        own = Stripes(40, range(6), 6)
        first = [int((own.identity.flatten() == person).nonzero()[0]) for person in range(6)]
        self.image, self.identity = own.image.flatten(0, 1)[first][None], torch.arange(6)[None]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_identities": 1}, "num_identities is 1"),
        ({"layers": 10}, "9 or 29"),
        ({"margin": 0.0}, "margin is 0"),
        ({"scale": -1.0}, "scale -1"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**arguments)


def test_it_makes_no_faces() -> None:
    with pytest.raises(ValueError, match="lightcnn9:FILE"):
        small().predict_step(Stripes(1)[0], 0)


def test_the_margin_and_the_scale_are_of_use(monkeypatch: pytest.MonkeyPatch) -> None:
    losses: dict[float, Tensor] = {}
    for margin in (0.1, 0.6):
        model = small(loss="cosface", margin=margin, scale=8.0)
        monkeypatch.setattr(
            LightCNNTraining, "record", lambda self, found, m=margin: losses.update({m: found["identity"]})
        )
        trainer(1).fit(model, loader(1))
    assert float(losses[0.6] - losses[0.1]) > 1
