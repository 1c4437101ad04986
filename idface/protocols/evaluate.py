"""`idface evaluate`: are the faces of a label-conditioned GAN found, obedient, various and new? (Sanche, section 5)."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from data_modules.base import FaceDataModule
from data_modules.batch import FaceBatch, labels_of, to_float
from idface.checkpoints import best_device
from idface.files import write_csv, write_json
from idface.latent.results import captioned
from idface.metrics.detection import CASCADES, hits_of_each
from idface.metrics.labels import LabelObedience
from idface.metrics.variety import JudgedFaces
from idface.modules.label_dcgan import LabelConditionedDCGAN
from idface.pictures import Picture, mark_synthetic, save_synthetic, to_picture
from idface.protocols.sample import load_labelled
from idface.protocols.sources import photos_of_model
from idface.recognition.age_sex import AgeSexEstimator
from idface.recognition.alignment import FaceDetector
from idface.recognition.build import build_recognizer

BATCH = 250
SHOWN = 8
"""Samples nearest to a training photo that a picture shows."""


class Labelled(NamedTuple):
    """Photos and their labels.

    Attributes:
        images: uint8 (N, 3, S, S).
        sex: (N,), -1 female, 1 male.
        age: (N,), years.
    """

    images: Tensor
    sex: Tensor
    age: Tensor


def evaluate(
    checkpoint: str,
    out: Path,
    data: Path | None = None,
    count: int = 2000,
    seed: int = 0,
    estimator: str = "zoo:age-sex",
    judge: str = "dlib",
) -> dict[str, Any]:
    """Judge faces of random noise beside as many photos that were held out, of the same sexes and ages.

    Writes into `out`: `report.json` and `report.csv`, each figure of real and of generated faces and, for rates of
    detection, their ratio: `cascades` and each of the seven, `mtcnn`; `age_error`, `age_error_by_chance`,
    `age_correlation`, `sex_accuracy`; `variety` and `frechet_distance` (of real faces: between two halves of them);
    `nearest_training`, the median distance to the nearest training photo. `nearest.png` shows the samples nearest to a
    training photo, each beside it.

    Args:
        checkpoint: of a LabelConditionedDCGAN, or `zoo:NAME`.
        out: folder for the results; made if missing.
        data: what the model was trained on, see `photos_of_model`; None for the run's own.
        count: most faces to judge; there are as many as held-out photos of known labels at most.
        seed: of the noise and of the choice of photos.
        estimator: of age and sex, `zoo:NAME` or a file.
        judge: see `build_recognizer`; measures distances.

    Returns:
        What `report.json` holds.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        ValueError: an option is of no use, or the data has no held-out photos with labels.
    """
    device = best_device()
    model = load_labelled(checkpoint).to(device)
    photos = photos_of_model(checkpoint, data, model.image_size)
    real, training = _some(held_out(photos, model), count, seed), _labelled(photos.training_photos(), model)
    seer, measure = AgeSexEstimator(estimator).to(device), build_recognizer(judge).to(device)
    made = torch.cat(
        [
            torch.from_numpy(to_picture(model.generate(latents, sex.to(device), age.to(device)))).movedim(-1, -3)
            for latents, sex, age in zip(
                model.fixed_latents(len(real.age), seed).split(BATCH),
                real.sex.split(BATCH),
                real.age.split(BATCH),
                strict=True,
            )
        ]
    )
    figures: dict[str, dict[str, float]] = {"real": {}, "generated": {}}
    embedded = {"real": measure.embed(real.images), "generated": measure.embed(made)}
    known = measure.embed(training.images)
    judged = {"real": real.images, "generated": made}
    for kind, images in judged.items():
        figures[kind] |= detection_rates(images) | obedience(seer, images, real.sex, real.age)
        figures[kind] |= _variety(embedded[kind], embedded["real"], kind == "real")
    nearest = {kind: _nearest(embeddings, known) for kind, embeddings in embedded.items()}
    for kind, (apart, _) in nearest.items():
        figures[kind]["nearest_training"] = float(apart.median())

    rates = ("cascades", "mtcnn")
    ratios = {name: figures["generated"][name] / max(figures["real"][name], 1e-9) for name in rates}
    about = {"checkpoint": checkpoint, "faces": len(real.age), "training_photos": len(training.age), "seed": seed}
    report: dict[str, Any] = about | {"judge": measure.name, "estimator": estimator} | figures | {"ratio": ratios}
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "report.json", report)
    write_csv(
        out / "report.csv",
        ("figure", "real", "generated"),
        [(name, value, figures["generated"][name]) for name, value in figures["real"].items()],
    )
    save_synthetic(_pairs(made, training.images, *nearest["generated"]), out / "nearest.png", about)
    return report


def in_words(report: dict[str, Any]) -> list[str]:
    """The main figures, a line each."""
    real, made, ratio = report["real"], report["generated"], report["ratio"]
    return [
        f"found by any of seven cascades: {made['cascades']:.1%} (real {real['cascades']:.1%}, ratio "
        f"{ratio['cascades']:.3f}); by MTCNN: {made['mtcnn']:.1%} (real {real['mtcnn']:.1%}, {ratio['mtcnn']:.3f})",
        f"age: {made['age_error']:.1f} years off on average (a model that ignores it: "
        f"{made['age_error_by_chance']:.1f}; real photos {real['age_error']:.1f}), correlation "
        f"{made['age_correlation']:.2f} (real {real['age_correlation']:.2f})",
        f"sex: {made['sex_accuracy']:.1%} right (real {real['sex_accuracy']:.1%})",
        f"{report['judge']}: two faces are {made['variety']:.2f} apart (real {real['variety']:.2f}); Frechet distance "
        f"{made['frechet_distance']:.3f} (between halves of the real ones {real['frechet_distance']:.3f}); the nearest "
        f"training photo is {made['nearest_training']:.2f} away (from held-out photos {real['nearest_training']:.2f})",
    ]


def detection_rates(images: Tensor) -> dict[str, float]:
    """Share of pictures, uint8 (N, 3, S, S), in which detectors find a face: `cascades` (any), each one, `mtcnn`."""
    pictures = images.movedim(1, -1).contiguous().numpy()
    each = hits_of_each(pictures)
    found: NDArray[np.bool_] = np.any([each[name] for name in CASCADES], axis=0)
    detector = FaceDetector(best_device())
    seen = sum(
        landmarks is not None
        for start in track(range(0, len(pictures), BATCH), "Looking for faces", transient=True)
        for landmarks in detector.detect(list(pictures[start : start + BATCH]))
    )
    rates = {"cascades": float(found.mean()), "mtcnn": seen / len(pictures)}
    return rates | {f"cascades/{name}": float(hits.mean()) for name, hits in each.items()}


def obedience(estimator: AgeSexEstimator, images: Tensor, sex: Tensor, age: Tensor) -> dict[str, float]:
    """See `LabelObedience`; of pictures uint8 (N, 3, S, S) and what was asked for, (N,) each."""
    device = next(estimator.parameters()).device
    metric = LabelObedience()
    for part, *asked in zip(images.split(BATCH), sex.split(BATCH), age.split(BATCH), strict=True):
        seen = estimator(to_float(part).to(device))
        metric.update((asked[0], asked[1]), (seen[0].cpu(), seen[1].cpu()))
    return {name: float(value) for name, value in metric.compute().items()}


def held_out(photos: FaceDataModule, model: LabelConditionedDCGAN) -> Labelled:
    """The photos of labels that the model was taught on which it was not trained.

    Raises:
        ValueError: there are none.
    """
    loaders = [loader for each in (photos.val_dataloader(), photos.test_dataloader()) for loader in each[:2]]
    found = _labelled((batch for loader in loaders for batch in loader), model)
    if len(found.age) < 2:
        raise ValueError(
            f"--data: {len(found.age)} photos of known sex and age were held out of training, expected 2 or more: "
            "set val_share and test_share (or val_identities and test_identities) of the data above 0"
        )
    return found


def _labelled(batches: Iterable[FaceBatch], model: LabelConditionedDCGAN) -> Labelled:
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for batch in batches:
        sex, age = labels_of(batch)
        known = model.coding.known(sex, age)
        parts.append((batch["image"][known], sex[known], age[known]))
    if not parts:
        return Labelled(torch.empty(0, 3, 1, 1, dtype=torch.uint8), torch.empty(0), torch.empty(0))
    return Labelled(*map(torch.cat, zip(*parts, strict=True)))


def _some(photos: Labelled, count: int, seed: int) -> Labelled:
    rows = torch.randperm(len(photos.age), generator=torch.Generator().manual_seed(seed))[:count]
    return Labelled(*(each[rows] for each in photos))


def _variety(embeddings: Tensor, real: Tensor, is_real: bool) -> dict[str, float]:
    """How far apart two faces are, and all of them from real ones; of these one half from the other."""
    metric = JudgedFaces(embeddings.shape[1]).to(embeddings.device)
    half = len(real) // 2
    metric.update(real[:half] if is_real else real, real=True)
    metric.update(real[half:] if is_real else embeddings, real=False)
    found = metric.compute()
    apart = metric.variety_generated
    apart.update(real[:half] if is_real else embeddings[:0])
    return {"variety": float(apart.compute()), "frechet_distance": float(found["frechet_distance"])}


def _nearest(embeddings: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Distance (N,) to the nearest of M known embeddings, and which it is."""
    parts = [(2 - 2 * part @ known.T).min(1) for part in embeddings.split(BATCH)]  # squared, of unit vectors
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def _pairs(made: Tensor, training: Tensor, apart: Tensor, place: Tensor) -> Picture:
    """The samples nearest to a training photo, in a row, each with it below."""
    rows = apart.argsort()[:SHOWN].cpu()
    samples = [mark_synthetic(face) for face in made[rows].movedim(1, -1).numpy()]
    photos = list(training[place.cpu()[rows]].movedim(1, -1).numpy())
    captions = [f"{float(apart[row]):.2f}" for row in rows]
    return np.concatenate([captioned(samples, captions), captioned(photos, ["training"] * len(photos))])
