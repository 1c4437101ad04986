"""`idface age`: an existing face at other ages (Sanche, section 7), and whether it is still the same person."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from data_modules.photos import Rejected
from idface.checkpoints import best_device, load_model_of
from idface.files import write_csv, write_json
from idface.latent.results import captioned, standing
from idface.modules.label_dcgan import LabelConditionedDCGAN
from idface.pictures import mark_synthetic, save_synthetic, to_picture
from idface.protocols.photos import read_faces, write_rejected
from idface.protocols.sample import SEXES, parse_ages, sex_in_words
from idface.recognition.age_sex import AgeSexEstimator
from idface.recognition.alignment import FaceDetector
from idface.recognition.base import distance
from idface.recognition.build import build_recognizer


def age_photos(
    checkpoint: str,
    photo: Path,
    ages: str,
    out: Path,
    sex: str | None = None,
    own_age: float | None = None,
    steps: int = 200,
    estimator: str = "zoo:age-sex",
    recognizer: str = "dlib",
    align: bool = True,
) -> dict[str, Any]:
    """Show people at other ages: the photo's noise is found, and the generator is given it with another age.

    Writes into `out`: `<photo>.png` for each, the photo, its reconstruction at its own age, and the ages asked for;
    `results.csv`, for each of these the age and sex that the estimator sees and the recogniser's distance to the photo,
    and whether the photo's own age was estimated; `report.json`, the means (of reconstructions no error of the age
    where that was the estimator's); and `rejected.csv` with photos that could not be used.

    Args:
        checkpoint: of a LabelConditionedDCGAN with an encoder, or `zoo:NAME`.
        photo: a photo, or a folder of photos.
        ages: see `parse_ages`.
        out: folder for the results; made if missing.
        sex: "female" or "male", of everybody; None to estimate it.
        own_age: in years, of everybody; None to estimate it.
        steps: by which the encoder's latents are refined; 0 for none.
        estimator: of age and sex, `zoo:NAME` or a file.
        recognizer: see `build_recognizer`; who the faces are.
        align: find each photo's main face and align it as training photos were.

    Returns:
        What `report.json` holds.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        ValueError: an option is of no use, or no photo can be used; says which.
    """
    device = best_device()
    model = load_model_of(LabelConditionedDCGAN, checkpoint).to(device)
    if model.encoder is None:
        raise ValueError(
            f"--checkpoint {checkpoint} has no encoder, which finds a photo's noise: train one by "
            f"experiments/label_encoder.yaml with --model.start {checkpoint}, and give its checkpoint"
        )
    low, high = model.coding.youngest, model.coding.oldest
    if own_age is not None and not low <= own_age <= high:
        raise ValueError(f"--own-age {own_age:g} is none of the model's ages, {low:g} to {high:g}")
    if steps < 0:
        raise ValueError(f"--steps is {steps}, expected 0 or more")
    years = parse_ages(ages, model, "--ages")
    seer = AgeSexEstimator(estimator).to(device)
    judge = build_recognizer(recognizer).to(device)
    rejected: list[Rejected] = []
    photos = read_faces(photo, "--photo", model.image_size, FaceDetector(device) if align else None, rejected, out)
    write_rejected(out, rejected)

    recipe: dict[str, Any] = {"checkpoint": checkpoint, "steps": steps, "estimator": estimator}
    rows: list[tuple[object, ...]] = []
    for name, picture, image in zip(
        photos.names, photos.pictures, track(photos.tensor(device), "Ageing", transient=True), strict=True
    ):
        own_sex, seen_age = seer(image[None])
        if sex is not None:
            own_sex = torch.full_like(own_sex, SEXES[sex])
        own = torch.full_like(seen_age, own_age) if own_age is not None else seen_age.clamp(low, high)
        latents = model.refine(model.encode(image[None], own_sex, own), image[None], own_sex, own, steps)
        asked = torch.cat([own, own.new_tensor(years)])
        faces = model.generate(latents.expand(len(asked), -1), own_sex.expand(len(asked)), asked)
        found_sex, found_age = seer(faces)
        apart = distance(judge.embed(faces), judge.embed(image[None])).tolist()
        kinds = ["reconstruction", *("aged" for _ in years)]
        rows += [
            (name, kind, sex_in_words(float(own_sex)), wanted, sex_in_words(float(seen)), looks, far, own_age is None)
            for kind, wanted, seen, looks, far in zip(
                kinds, asked.tolist(), found_sex, found_age.tolist(), apart, strict=True
            )
        ]
        captions = ["photo", f"own\n{float(own):.0f}", *(f"{year:g}" for year in years)]
        shown = [picture, *(mark_synthetic(face) for face in to_picture(faces))]
        about = {"photo": name, "sex": sex_in_words(float(own_sex)), "own_age": float(own), "ages": years}
        save_synthetic(captioned(shown, captions), out / f"{name}.png", recipe | about)
    header = ("photo", "kind", "sex", "age", "sex_seen", "age_seen", "distance", "own_age_estimated")
    write_csv(out / "results.csv", header, rows)
    report = recipe | {"recognizer": judge.name, "photos": len(photos.names), "results": {}}
    for kind in ("reconstruction", "aged"):
        own_rows = [row for row in rows if row[1] == kind]
        wanted, looks, far = (np.array([row[column] for row in own_rows], dtype=float) for column in (3, 5, 6))
        figures: dict[str, Any] = {"distance": float(far.mean())}
        if kind == "aged" or own_age is not None:
            figures["age_error"] = float(np.abs(wanted - looks).mean())
        if judge.everyday is not None:
            figures["same_person"] = float((far < judge.everyday.unit.best_threshold).mean())
        report["results"][kind] = figures | standing(judge, figures["distance"])
    write_json(out / "report.json", report)
    return report


def in_words(report: dict[str, Any]) -> list[str]:
    """What a report says, a line each for the reconstructions and for the aged faces."""
    lines = []
    for kind, found in report["results"].items():
        line = f"{kind}: {report['recognizer']} sees a mean distance of {found['distance']:.2f}"
        if "same_person" in found:
            line += f", and takes {found['same_person']:.0%} for the person of the photo"
        if "age_error" in found:
            line += f"; they look {found['age_error']:.1f} years off the age asked for"
        lines.append(line)
    return lines
