"""How much attribute vectors tell of who somebody is (Bao et al. 2018, section 4.2, figure 4)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_modules.batch import to_float
from idface.checkpoints import best_device, load_model_of
from idface.files import write_csv, write_json
from idface.latent.arithmetic import face_box
from idface.metrics.identification import drawn_anew, middle, resampled_shares
from idface.modules.ipgan import OpenSetIPGAN
from idface.protocols.sources import People, strangers

BATCH = 256
HIDDEN = 256
SPLITS = 5
BLOCKS = 8
FEWEST = 4
"""Photos of a person, half to train on and half to ask for; people with fewer are left out."""


class Curves(NamedTuple):
    """Top-1 accuracy of the probe after each epoch, on the photos that it is trained on and on the others."""

    train: list[float]
    val: list[float]
    right: Tensor  # bool, of the others, after the last epoch
    whose: Tensor  # whom they show


def leakage(
    checkpoints: Mapping[str, str], photos: Path | None, out: Path, epochs: int = 60, seed: int = 0
) -> dict[str, Any]:
    """Train a multilayer perceptron to tell people apart by their photos' f_A, for each model.

    Half of each person's photos, drawn at random, are trained on, the others asked for, `SPLITS` times; the same ones
    for all models. What photos of a person share, such as the place and the day, is no identity and yet tells of it:
    beside the models stands what the surroundings of the face tell.

    f_A is taken as it is used after training, the mean, and as G learns from it, a draw (without L_KL the mean).

    Writes into `out`: `curves.csv` and `curves.png`, accuracies after each epoch; `report.json`, for each model the
    last ones (of the others a 95 % interval, by drawing people anew), beside chance and the share of the most frequent
    person among the photos asked for, and the same of f_I, which is to tell people, and of the `surroundings`.

    Args:
        checkpoints: of OpenSetIPGANs, by what they are called.
        photos: a prepared set of people that no model was trained on, for of others f_A may tell more; None for those
            whom the models' own data hold out.
        out: folder for the results; made if missing.
        epochs: of the perceptron.
        seed: of the halves and of the perceptron.

    Returns:
        What `report.json` holds.

    Raises:
        CheckpointError: a checkpoint cannot be used.
        ValueError: there are no two people with four photos or more.
    """
    device = best_device()
    models = {name: load_model_of(OpenSetIPGAN, checkpoint).to(device) for name, checkpoint in checkpoints.items()}
    report: dict[str, Any] = {"photos": photos and str(photos), "epochs": epochs, "seed": seed, "models": {}}
    rows: list[tuple[object, ...]] = []
    drawn: dict[str, Curves] = {}

    def ask(name: str, vector: str, features: Tensor, person: Tensor) -> dict[str, float]:
        curves = [probe(features, person, *halves(person, seed + split), epochs, seed) for split in range(SPLITS)]
        train, val = (np.mean([getattr(each, kind) for each in curves], axis=0).tolist() for kind in ("train", "val"))
        whole = Curves(
            train, val, *(torch.cat([getattr(each, kind) for each in curves]) for kind in ("right", "whose"))
        )
        drawn[f"{name}, {vector}" if name else vector] = whole
        rows.extend((name, vector, epoch, *both) for epoch, both in enumerate(zip(train, val, strict=True), 1))
        low, high = middle(resampled_shares(whole.right, drawn_anew(1 + int(person.max()), 0)[:, whole.whose]))
        return {"train": train[-1], "val": val[-1], "low": low, "high": high}

    for name, model in models.items():
        people = with_enough_photos(strangers(photos, checkpoints[name], model.image_size, model.photos_digest))
        found: dict[str, Any] = {"checkpoint": checkpoints[name]}
        for vector, features in vectors(model, people.images, seed).items():
            found[vector] = ask(name, vector, features, people.person)
        report["models"][name] = found
        report |= {"people": len(people.names), "chance": 1 / len(people.names)}
        report["most_frequent"] = _most_frequent(people.person, seed)
        if "surroundings" not in report:
            report["surroundings"] = ask("", "surroundings", surroundings(people.images), people.person)
    out.mkdir(parents=True, exist_ok=True)
    write_csv(out / "curves.csv", ("model", "vector", "epoch", "train", "val"), rows)
    _plot(drawn, report["chance"], out / "curves.png")
    write_json(out / "report.json", report)
    return report


def with_enough_photos(people: People) -> People:
    """Those of whom there are four photos or more, numbered anew.

    Raises:
        ValueError: there are not two.
    """
    counts = people.person.bincount(minlength=len(people.names))
    enough = (counts >= FEWEST).nonzero()[:, 0]
    if len(enough) < 2:
        raise ValueError(f"--photos: {len(enough)} people have {FEWEST} photos or more, expected 2 or more people")
    number = torch.full((len(counts),), -1)
    number[enough] = torch.arange(len(enough))
    person = number[people.person]
    return People([people.names[row] for row in enough.tolist()], people.images[person >= 0], person[person >= 0])


def halves(person: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Rows of half of each person's photos (N,), and the other rows; of an odd number one more is in the first."""
    order = torch.randperm(len(person), generator=torch.Generator().manual_seed(seed))
    order = order[person[order].argsort(stable=True)]
    counts = person.bincount()
    place = torch.arange(len(person)) - (counts.cumsum(0) - counts)[person[order]]
    first = place < (counts[person[order]] + 1) // 2
    return order[first], order[~first]


@torch.no_grad()
def vectors(model: OpenSetIPGAN, images: Tensor, seed: int) -> dict[str, Tensor]:
    """`f_A` (the mean), `f_A drawn` and `f_I` of photos, uint8 (N, 3, S, S): (N, J) and (N, I), on the CPU."""
    encoder = model.trained("attribute_encoder")
    found: dict[str, list[Tensor]] = {"f_A": [], "f_A drawn": [], "f_I": []}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for part in images.split(BATCH):
            photos = to_float(part).to(model.device)
            mean, log_variance = (each.cpu() for each in encoder(model.seen(photos)))
            found["f_A"].append(mean)
            found["f_A drawn"].append(model.draw_attributes(mean, log_variance))
            found["f_I"].append(model.encode_identity(photos).cpu())
    return {name: torch.cat(parts) for name, parts in found.items()}


def surroundings(images: Tensor) -> Tensor:
    """What photos, uint8 (N, 3, S, S), show around the face, as means of 8 x 8 blocks, of which it has none: (N, D)."""
    photos = to_float(images)
    low, high = face_box(photos.shape[-1])
    photos[..., low:high, low:high] = 0
    return F.adaptive_avg_pool2d(photos, BLOCKS).flatten(1)


def _most_frequent(person: Tensor, seed: int) -> float:
    asked = halves(person, seed)[1]
    return float(person[asked].bincount().max() / len(asked))


def probe(features: Tensor, person: Tensor, trained: Tensor, asked: Tensor, epochs: int, seed: int) -> Curves:
    """What a multilayer perceptron learns of people from vectors.

    Args:
        features: (N, D).
        person: int64 (N,).
        trained, asked: rows to learn from, and to be asked for.
        epochs: over the first.
        seed: of its start and of the order.

    Returns:
        Its accuracies.
    """
    # one scale for all of them: numbers that the KL loss has made small are to stay small
    features = (features - features[trained].mean(0)) / features[trained].std(0).square().mean().sqrt().clamp(min=1e-6)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Linear(features.shape[1], HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, int(person.max()) + 1),
        )
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-2)
        train: list[float] = []
        val: list[float] = []
        for _ in range(epochs):
            for rows in trained[torch.randperm(len(trained))].split(64):
                optimizer.zero_grad()
                F.cross_entropy(network(features[rows]), person[rows]).backward()
                optimizer.step()
            with torch.no_grad():
                right = network(features).argmax(1) == person
            train.append(float(right[trained].float().mean()))
            val.append(float(right[asked].float().mean()))
    return Curves(train, val, right[asked], person[asked])


def _plot(drawn: Mapping[str, Curves], chance: float, path: Path) -> None:
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for number, (name, curves) in enumerate(drawn.items()):
        epochs = range(1, len(curves.val) + 1)
        axes.plot(epochs, curves.val, color=f"C{number}", label=f"{name}: other photos")
        axes.plot(epochs, curves.train, color=f"C{number}", linestyle=":", label=f"{name}: trained on")
    axes.axhline(chance, color="grey", linewidth=1, label="chance")
    axes.set(xlabel="epoch", ylabel="top-1 accuracy of the perceptron", ylim=(0, 1))
    axes.legend(fontsize="x-small")
    figure.savefig(path, dpi=120)
