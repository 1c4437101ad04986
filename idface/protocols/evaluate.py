"""`idface evaluate`: are the faces of a label-conditioned GAN found, obedient, various and new? (Sanche, section 5)."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from data_modules.base import FaceDataModule
from data_modules.batch import EVALUATION_SETS, labels_of, to_float
from idface.checkpoints import best_device, load_model_of
from idface.files import write_csv, write_json
from idface.latent.results import captioned
from idface.metrics.detection import CASCADES, hits_of_each
from idface.metrics.identification import wilson_interval
from idface.metrics.labels import LabelObedience
from idface.metrics.variety import JudgedFaces
from idface.modules.base import digest_of_training_photos
from idface.modules.label_dcgan import LabelConditionedDCGAN
from idface.pictures import Picture, mark_synthetic, save_synthetic, to_picture
from idface.protocols.sample import sex_in_words
from idface.protocols.sources import photos_of_model, training_embeddings
from idface.recognition.age_sex import AgeSexEstimator
from idface.recognition.alignment import SURE, FaceDetector
from idface.recognition.build import build_recognizer

log = logging.getLogger(__name__)

BATCH = 250
FEWEST = 4
"""Faces that can be judged: two halves of them are compared."""
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
    detection, their ratio: `cascades` and each of the seven, `mtcnn`; `age_error`, `age_error_ignoring`,
    `age_correlation`, `sex_accuracy`; `variety`; `frechet_distance`, of half of the faces to the other half of the real
    ones; `intervals`, in `report.json`, of the rates of detection and of `sex_accuracy`, 95 % by Wilson;
    `nearest_training`, the median distance to the nearest training photo, and `nearer_than_most`, the share of
    faces that are nearer to one than 99 of 100 held-out photos are. `nearest.csv` has the nearest training photo of
    each face, `nearest.png` shows those nearest of all.

    Args:
        checkpoint: of a LabelConditionedDCGAN, or `zoo:NAME`.
        out: folder for the results; made if missing.
        data: what the model was trained on, see `photos_of_model`; None for the run's own.
        count: most faces to judge, 4 or more; there are as many as held-out photos of known labels at most.
        seed: of the noise and of the choice of photos.
        estimator: of age and sex, `zoo:NAME` or a file.
        judge: see `build_recognizer`; measures distances.

    Returns:
        What `report.json` holds.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        ValueError: an option is of no use, or the data has no held-out photos with labels.
    """
    if count < FEWEST:
        raise ValueError(f"--count is {count}, expected {FEWEST} or more: distributions are compared")
    device = best_device()
    model = load_model_of(LabelConditionedDCGAN, checkpoint).to(device)
    photos = photos_of_model(checkpoint, data, model.image_size, model.photos_digest)
    real = _some(held_out(photos, model), count, seed)
    seer, measure = AgeSexEstimator(estimator).to(device), build_recognizer(judge).to(device)
    has_seen_none = seer.photos_digest == digest_of_training_photos(photos)
    if not has_seen_none:
        log.warning(
            "--estimator %s was not trained on just the photos that the model was trained on, perhaps on some that are "
            "judged here: its figures of real photos may be too good",
            estimator,
        )
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
    figures: dict[str, dict[str, Any]] = {"real": {}, "generated": {}}
    embedded = {"real": measure.embed(real.images), "generated": measure.embed(made)}
    known, rows = training_embeddings(photos, measure)
    judged = {"real": real.images, "generated": made}
    for kind, images in judged.items():
        figures[kind] |= detection_rates(images) | obedience(seer, images, real.sex, real.age)
        figures[kind] |= _variety(embedded[kind], embedded["real"])
    nearest = {kind: _nearest(embeddings, known) for kind, embeddings in embedded.items()}
    usual = nearest["real"][0].quantile(0.01)
    for kind, (apart, _) in nearest.items():
        figures[kind]["nearest_training"] = float(apart.median())
        figures[kind]["nearer_than_most"] = float((apart < usual).float().mean())

    ratios = {
        name: figures["generated"][name] / rate if rate > 0 else None
        for name, rate in figures["real"].items()
        if name.split("/")[0] in ("cascades", "mtcnn")
    }
    intervals = {
        kind: {name: wilson_interval(of[name], len(real.age)) for name in ("cascades", "mtcnn", "sex_accuracy")}
        for kind, of in figures.items()
    }
    about = {"checkpoint": checkpoint, "faces": len(real.age), "training_photos": len(rows), "seed": seed}
    report: dict[str, Any] = about | {"judge": measure.name, "estimator": estimator}
    report |= {"estimator_has_seen_none": has_seen_none} | figures | {"ratio": ratios, "intervals": intervals}
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "report.json", report)
    apart, place = (each.cpu() for each in nearest["generated"])
    words = [sex_in_words(sex) for sex in real.sex.tolist()]
    names = [photos.photos[row].name for row in rows[place].tolist()]
    columns = zip(range(len(words)), words, real.age.tolist(), names, apart.tolist(), strict=True)
    write_csv(out / "nearest.csv", ("face", "sex", "age", "training_photo", "distance"), list(columns))
    write_csv(
        out / "report.csv",
        ("figure", "real", "generated"),
        [(name, value, figures["generated"][name]) for name, value in figures["real"].items()],
    )
    closest = apart.argsort()[:SHOWN]
    sources = _training_pictures(photos, rows[place[closest]])
    save_synthetic(_pairs(made[closest], sources, apart[closest]), out / "nearest.png", about)
    return report


def in_words(report: dict[str, Any]) -> list[str]:
    """The main figures, a line each."""
    real, made, ratio = report["real"], report["generated"], report["ratio"]
    low, high = report["intervals"]["generated"]["cascades"]
    return [
        f"found by any of seven cascades: {made['cascades']:.1%} ({low:.1%} to {high:.1%}; real "
        f"{real['cascades']:.1%}, ratio {_ratio(ratio['cascades'])}); by MTCNN: {made['mtcnn']:.1%} (real "
        f"{real['mtcnn']:.1%}, {_ratio(ratio['mtcnn'])})",
        f"age: {made['age_error']:.1f} years off on average (a model that ignores it comes to "
        f"{made['age_error_ignoring']:.1f} at least; real photos {real['age_error']:.1f}), correlation "
        f"{made['age_correlation']:.2f} (real {real['age_correlation']:.2f})",
        f"sex: {made['sex_accuracy']:.1%} right (real {real['sex_accuracy']:.1%})",
        f"{report['judge']}: two faces are {made['variety']:.2f} apart (real {real['variety']:.2f}); Frechet distance "
        f"{made['frechet_distance']:.3f} (between halves of the real ones {real['frechet_distance']:.3f}); the nearest "
        f"training photo is {made['nearest_training']:.2f} away (from held-out photos {real['nearest_training']:.2f}), "
        f"and nearer than to 99 % of these for {made['nearer_than_most']:.1%}",
    ]


def _ratio(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def detection_rates(images: Tensor) -> dict[str, float]:
    """Share of pictures, uint8 (N, 3, S, S), in which detectors find a face: `cascades` (any), each one, `mtcnn`.

    MTCNN counts where it is sure. By it the photos were chosen and cropped, where they were aligned: that it finds
    nearly all of these says nothing; what it says of generated faces does.
    """
    pictures = images.movedim(1, -1).contiguous().numpy()
    each = hits_of_each(pictures)
    found: NDArray[np.bool_] = np.any([each[name] for name in CASCADES], axis=0)
    detector = FaceDetector(best_device())
    seen = sum(
        any(face.probability >= SURE for face in faces)
        for start in track(range(0, len(pictures), BATCH), "Looking for faces", transient=True)
        for faces in detector.find(list(pictures[start : start + BATCH]))
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
    """The photos of labels that the model was taught, each once, of people on whom it was not trained.

    Raises:
        ValueError: there are fewer than four.
    """
    unseen = EVALUATION_SETS.index("unseen")
    found: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    for loaders in (photos.val_dataloader(), photos.test_dataloader()):
        for batch in loaders[unseen]:
            sex, age = labels_of(batch)
            columns = zip(batch["index"].tolist(), batch["image"], sex, age, strict=True)
            for (row, *photo), is_known in zip(columns, model.coding.known(sex, age).tolist(), strict=True):
                if is_known:
                    found[row] = (photo[0], photo[1], photo[2])
    if len(found) < FEWEST:
        raise ValueError(
            f"--data: {len(found)} photos of known sex and age were held out of training, expected {FEWEST} or more: "
            "set val_share and test_share (or val_identities and test_identities) of the data above 0"
        )
    return Labelled(*(torch.stack(column) for column in zip(*(found[row] for row in sorted(found)), strict=True)))


def _training_pictures(photos: FaceDataModule, rows: Tensor) -> Picture:
    """Some training photos, uint8 (N, S, S, 3), by their rows in the data."""
    wanted, found = set(rows.tolist()), {}
    for batch in photos.training_photos():
        for row, image in zip(batch["index"].tolist(), batch["image"], strict=True):
            if row in wanted:
                found[row] = image.movedim(0, -1).numpy()
    return np.stack([found[row] for row in rows.tolist()])


def _some(photos: Labelled, count: int, seed: int) -> Labelled:
    rows = torch.randperm(len(photos.age), generator=torch.Generator().manual_seed(seed))[:count]
    return Labelled(*(each[rows] for each in photos))


def _variety(embeddings: Tensor, real: Tensor) -> dict[str, float]:
    """How far apart two of N faces are; and how far half of them are, all together, from the other half of N real ones.

    Real faces are compared with themselves so, of as many faces: the Frechet distance of few is larger.
    """
    half = len(real) // 2
    metric = JudgedFaces(embeddings.shape[1]).to(embeddings.device)
    metric.update(real[half : 2 * half], real=True)
    metric.update(embeddings[:half], real=False)
    frechet = float(metric.frechet.compute())
    metric.variety_generated.update(embeddings[half:])
    return {"variety": float(metric.variety_generated.compute()), "frechet_distance": frechet}


def _nearest(embeddings: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distance (N,) to the nearest of M known unit embeddings, and which it is."""
    parts = [(2 - 2 * part @ known.T).min(1) for part in embeddings.split(BATCH)]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def _pairs(made: Tensor, training: Picture, apart: Tensor) -> Picture:
    """Faces uint8 (N, 3, S, S) in a row, each with its nearest training photo below."""
    samples = [mark_synthetic(face) for face in made.movedim(1, -1).numpy()]
    captions = [f"{float(each):.2f}" for each in apart]
    return np.concatenate([captioned(samples, captions), captioned(list(training), ["training"] * len(training))])
