"""`idface frontalize`: people from the front, by a frontal face's attributes (Bao et al., section 4.3, figure 7)."""

from pathlib import Path
from typing import Any

import torch
from kornia.color import rgb_to_grayscale
from torch import Tensor

from data_modules.photos import Rejected
from idface.checkpoints import best_device, load_model_of
from idface.files import write_csv, write_json
from idface.latent.arithmetic import FaceMeter, face_box
from idface.latent.results import captioned, standing
from idface.modules.attributes import AttributeClassifier
from idface.modules.ipgan import OpenSetIPGAN
from idface.pictures import mark_synthetic, save_synthetic, to_picture
from idface.protocols.photos import read_faces, write_rejected
from idface.recognition.alignment import FaceDetector
from idface.recognition.base import distance
from idface.recognition.build import build_judge

FRONTAL = 8.0
"""Degrees of yaw up to which a face is one from the front; where there is none, the nearest to it are taken."""
NEAREST = 5
"""Faces that are chosen among then, by their light."""


def frontalize(
    checkpoint: str,
    photo: Path,
    frontal: Path,
    out: Path,
    classifier: str = "zoo:attributes",
    judge: str | None = None,
    align: bool = True,
) -> dict[str, Any]:
    """Show people from the front: with the attributes of a face that is frontal, and lit as theirs is.

    Pose is yaw, measured by landmarks. Of the frontal faces at hand (`FRONTAL`) each photo is given the one whose light
    is nearest to its own: brightness of the whole and of both halves of the face.

    Writes into `out`: `<photo>.png`, the photo, the frontal face, and what comes of both; `results.csv`: yaw before, of
    the frontal face, and after, light before and after, the judge's distance of each result to its photo and to the
    frontal face; `report.json`, the means, and beside them `yaw_frontal` and `light_of_frontal`, what choosing the
    frontal face alone gives: its absolute yaw, and how far its light is from the photo's; `more_turned`, the share of
    photos that are turned further after than before; `same_person_frontal`, how many photos were given a frontal face
    that the judge takes for the same person, None where it has no threshold; `rejected.csv`.

    Args:
        checkpoint: of an OpenSetIPGAN, or `zoo:NAME`.
        photo: a photo, or a folder of photos.
        frontal: a folder of photos, of whomever, some from the front. A photo is barred only from the very same
            picture, not from others of the same person.
        out: folder for the results; made if missing.
        classifier: checkpoint of the AttributeClassifier that finds landmarks.
        judge: see `build_recognizer`; None for the one that the model was built with, or dlib.
        align: find each photo's main face and align it as training photos were.

    Returns:
        What `report.json` holds.

    Raises:
        CheckpointError: a checkpoint cannot be used.
        ValueError: an option is of no use, or no photo can be used; says which.
    """
    device = best_device()
    model = load_model_of(OpenSetIPGAN, checkpoint).to(device)
    meter = FaceMeter(load_model_of(AttributeClassifier, classifier, "--classifier").network, device)
    detector = FaceDetector(device) if align else None
    rejected: list[Rejected] = []
    photos = read_faces(photo, "--photo", model.image_size, detector, rejected, out)
    others = read_faces(frontal, "--frontal", model.image_size, detector, rejected, out)
    write_rejected(out, rejected)
    recognizer = build_judge(judge, model.judge).to(device)

    images, candidates = photos.tensor(device), others.tensor(device)
    before, there = _yaw(meter, images), _yaw(meter, candidates)
    lit, lights = light(images).cpu(), light(candidates).cpu()
    pixels = [each.tobytes() for each in others.pictures]
    same = torch.tensor([[own.tobytes() == each for each in pixels] for own in photos.pictures])  # not by itself
    chosen = choose_frontal(lit, lights, there, same)
    results = torch.cat(
        [model.recombine(own[None], candidates[row][None]) for own, row in zip(images, chosen.tolist(), strict=True)]
    )
    after, lit_after = _yaw(meter, results), light(results).cpu()
    embedded, own, given = (recognizer.embed(faces) for faces in (results, images, candidates[chosen]))
    apart, unlike = distance(embedded, own), distance(embedded, given)
    known = recognizer.everyday
    same_person = None if known is None else int((distance(own, given) < known.unit.best_threshold).sum())

    recipe: dict[str, Any] = {"checkpoint": checkpoint, "photo": str(photo), "frontal": str(frontal)}
    for row, name in enumerate(photos.names):
        faces = [photos.pictures[row], others.pictures[int(chosen[row])], mark_synthetic(to_picture(results[row]))]
        captions = [f"photo\n{before[row]:.0f} deg", f"frontal\n{there[chosen[row]]:.0f}", f"result\n{after[row]:.0f}"]
        about = recipe | {"sources": [name, others.names[int(chosen[row])]]}
        save_synthetic(captioned(faces, captions), out / f"{name}.png", about)
    lights_of = [f"{part}_{when}" for when in ("before", "after") for part in ("brightness", "left", "right")]
    header = ["photo", "frontal", "yaw_before", "yaw_frontal", "yaw_after", *lights_of]
    header += ["distance", "distance_to_frontal"]
    columns = (before, there[chosen], after, *lit.T, *lit_after.T, apart, unlike)
    write_csv(
        out / "results.csv",
        header,
        [
            (name, others.names[int(chosen[row])], *(round(float(column[row]), 4) for column in columns))
            for row, name in enumerate(photos.names)
        ],
    )
    report = recipe | {
        "photos": len(photos.names),
        "yaw_before": float(before.abs().mean()),
        "yaw_frontal": float(there[chosen].abs().mean()),
        "yaw_after": float(after.abs().mean()),
        "more_turned": float((after.abs() > before.abs()).float().mean()),
        "frontal_faces": int((there.abs() <= FRONTAL).sum()),
        "light_change": float((lit - lit_after).abs().mean()),
        "light_of_frontal": float((lit - lights[chosen]).abs().mean()),
        "light_change_to_others": _to_others(lit_after, lit),
        "nearer_to_photo": float((apart < unlike).float().mean()),
        "same_person_frontal": same_person,
        "judge_is_independent": recognizer.fingerprint() not in model.gradient_fingerprints,
        **standing(recognizer, float(apart.mean())),
    }
    write_json(out / "report.json", report)
    return report


def _to_others(after: Tensor, before: Tensor) -> float | None:
    """Mean absolute difference of results (N, L) from the photos (N, L) of others; None where there is one."""
    apart = (after[:, None] - before[None]).abs().mean(2)
    return float(apart[~torch.eye(len(apart), dtype=torch.bool)].mean()) if len(apart) > 1 else None


def in_words(report: dict[str, Any]) -> list[str]:
    """What a report says."""
    to_others = report["light_change_to_others"]
    others = "" if to_others is None else f", to the light of any other photo {to_others:.3f}"
    lines = [
        f"{report['photos']} photos: yaw {report['yaw_before']:.1f} degrees before, {report['yaw_after']:.1f} after "
        f"(frontal faces: {report['yaw_frontal']:.1f}), {report['more_turned']:.0%} are turned further; light changes "
        f"by {report['light_change']:.3f} of 1 (to the frontal face's {report['light_of_frontal']:.3f}{others}); "
        f"{report['frontal_faces']} faces to take it from were frontal (yaw of {FRONTAL:.0f} degrees at most)"
        + ("" if report["frontal_faces"] else ": the ones nearest to it were taken; give --frontal others"),
        f"{report['recognizer']} sees the results at a squared distance of {report['distance']:.3f} from the photos on "
        f"average, and {report['nearer_to_photo']:.0%} of them nearer to these than to the frontal face's person",
    ]
    if report["same_person_frontal"]:
        lines.append(
            f"{report['same_person_frontal']} photos were given a frontal face that the judge takes for the same person"
        )
    if not report["judge_is_independent"]:
        lines.append(f"{report['recognizer']} was a loss of this model: its distances do not tell whose faces they are")
    return lines


def light(images: Tensor) -> Tensor:
    """How faces (B, 3, S, S) in [-1, 1] are lit: (B, 3), the brightness from 0 to 1 of all, and of either half."""
    low, high = face_box(images.shape[-1])
    grey = rgb_to_grayscale(images[..., low:high, low:high].float())[:, 0] / 2 + 0.5
    left, right = grey.chunk(2, dim=-1)
    return torch.stack([part.mean((1, 2)) for part in (grey, left, right)], 1)


def choose_frontal(own: Tensor, light: Tensor, yaw: Tensor, barred: Tensor | None = None) -> Tensor:
    """Which of M faces each of N photos is given.

    Args:
        own: (N, 3), the photos' light.
        light: (M, 3), the faces'.
        yaw: (M,) degrees, the faces'.
        barred: bool (N, M), which must not be given.

    Returns:
        int64 (N,).
    """
    if barred is not None and bool(barred.any()):
        allowed = [(~row).nonzero()[:, 0] for row in barred]
        if not all(map(len, allowed)):
            raise ValueError("--frontal holds the photo itself alone, expected photos of others too")
        parts = [
            rows[choose_frontal(each[None], light[rows], yaw[rows])] for each, rows in zip(own, allowed, strict=True)
        ]
        return torch.cat(parts)
    frontal = (yaw.abs() <= FRONTAL).nonzero()[:, 0]
    if not len(frontal):
        frontal = yaw.abs().argsort()[:NEAREST]
    return frontal[torch.cdist(own, light[frontal]).argmin(1)]


def _yaw(meter: FaceMeter, images: Tensor) -> Tensor:
    column = meter.names.index("yaw")
    return torch.cat([meter.scores(part)[:, column] for part in images.split(64)]).cpu()
