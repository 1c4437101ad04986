"""`idface morph`: from the attributes of one photo to those of another, at one identity (Bao et al., section 4.4)."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_modules.photos import Rejected
from idface.checkpoints import best_device, load_model_of
from idface.files import write_json
from idface.latent.results import captioned, standing
from idface.modules.ipgan import OpenSetIPGAN
from idface.pictures import SYNTHETIC, Picture, mark_synthetic, save_synthetic, to_picture
from idface.protocols.photos import Faces, read_faces
from idface.recognition.alignment import FaceDetector
from idface.recognition.base import distance
from idface.recognition.build import build_judge

MOST_STEPS = 2000
FRAME = 20
"""Milliseconds that a film shows a picture at least: viewers slow faster ones down."""
STRIP = 11
"""Most faces that the strip shows; the film has all."""


def morph(
    checkpoint: str,
    first: Path,
    second: Path,
    identity: Path,
    out: Path,
    steps: int = 9,
    seconds: float = 2.0,
    judge: str | None = None,
    align: bool = True,
) -> dict[str, Any]:
    """Interpolate linearly between two photos' attribute vectors, with the identity vector of a third one.

    Writes into `out`: `strip.png`, the first photo, the faces on the way, the second, and below them who it is;
    `morph.gif`, the faces forth and back; `report.json`: `smoothness`, the largest step between neighbouring faces over
    the mean one (1 is even; mean absolute difference of pixels), `change`, the difference between both ends (where
    black to white is 1), and the judge's distance of each face to the identity.

    Args:
        checkpoint: of an OpenSetIPGAN, or `zoo:NAME`.
        first, second: photos whose attributes are the ends.
        identity: a photo of whom all faces shall show.
        out: folder for the results; made if missing.
        steps: faces, those at both ends among them; 2 or more.
        seconds: from end to end in the film.
        judge: see `build_recognizer`; None for the one that the model was built with, or dlib.
        align: find each photo's main face and align it as training photos were.

    Returns:
        What `report.json` holds.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        ValueError: an option is of no use, or a photo cannot be used.
    """
    if steps < 2:
        raise ValueError(f"--steps is {steps}, expected 2 or more: a way has two ends")
    if steps > MOST_STEPS:
        raise ValueError(f"--steps is {steps}, expected {MOST_STEPS} at most")
    if not FRAME * (steps - 1) <= 1000 * seconds <= 3.6e6:
        raise ValueError(
            f"--seconds is {seconds:g}, expected {FRAME * (steps - 1) / 1000:g} for {steps} steps, or more: a film "
            f"shows a picture for {FRAME} milliseconds at least; and 3600 at most"
        )
    device = best_device()
    model = load_model_of(OpenSetIPGAN, checkpoint).to(device)
    detector = FaceDetector(device) if align else None
    rejected: list[Rejected] = []
    ends = [
        _one(read_faces(path, option, model.image_size, detector, rejected, out), path, option)
        for path, option in ((first, "A"), (second, "B"), (identity, "--identity"))
    ]
    a, b, person = (face.tensor(device) for face in ends)
    ways = torch.linspace(0, 1, steps, device=device)[:, None]
    attributes = torch.lerp(model.encode_attributes(a), model.encode_attributes(b), ways)
    who = model.encode_identity(person)
    faces = torch.cat([model.generate(who.expand(len(part), -1), part) for part in attributes.split(64)])

    recognizer = build_judge(judge, model.judge).to(device)
    apart = distance(recognizer.embed(faces), recognizer.embed(person))
    recipe: dict[str, Any] = {"checkpoint": checkpoint, "a": str(first), "b": str(second), "identity": str(identity)}
    recipe |= {"steps": steps}
    is_used = recognizer.fingerprint() in model.gradient_fingerprints
    report = recipe | {
        "smoothness": smoothness(faces),
        "change": float((faces[-1] - faces[0]).abs().mean() / 2),
        "judge_is_independent": not is_used,
        "distances": [round(value, 6) for value in apart.tolist()],
        **standing(recognizer, float(apart.mean())),
    }
    marked = [mark_synthetic(face) for face in to_picture(faces)]
    chosen = np.linspace(0, steps - 1, min(steps, STRIP)).round().astype(int)
    shown = [ends[0].pictures[0], *(marked[row] for row in chosen), ends[1].pictures[0], ends[2].pictures[0]]
    captions = ["A", *(f"{float(ways[row]):.2f}" for row in chosen), "B", "identity"]
    save_synthetic(captioned(shown, captions), out / "strip.png", recipe)
    (out / "morph.gif").write_bytes(film([*marked, *marked[-2:0:-1]], 1000 * seconds / (steps - 1), recipe))
    write_json(out / "report.json", report)
    return report


def in_words(report: dict[str, Any]) -> list[str]:
    """What a report says."""
    lines = [
        f"{report['steps']} faces; the ends differ by {report['change']:.1%} of the range of pixels, the largest "
        f"step is {report['smoothness']:.2f} times the mean one. "
        f"{report['recognizer']} sees them at a squared distance of {report['distance']:.3f} from the identity on "
        "average" + (f" (threshold {report['threshold']:.3f})" if "threshold" in report else "")
    ]
    if not report["judge_is_independent"]:
        lines.append(f"{report['recognizer']} was a loss of this model: its distances do not tell whose faces they are")
    return lines


def smoothness(faces: Tensor) -> float:
    """Largest over mean step, at least 1, of neighbouring faces (N, 3, S, S), N at least 2; 1 where nothing moves."""
    steps = (faces[1:] - faces[:-1]).abs().mean((1, 2, 3))
    return float(steps.max() / steps.mean()) if float(steps.max()) > 0 else 1.0


def film(frames: Sequence[Picture], milliseconds: float, recipe: Mapping[str, Any]) -> bytes:
    """An endless GIF of marked pictures (S, S, 3), each shown so long, with what it is and its recipe as a comment."""
    content = io.BytesIO()
    images = [Image.fromarray(frame).quantize(dither=Image.Dither.NONE) for frame in frames]  # the mark survives
    about = {"DigitalSourceType": SYNTHETIC, "Software": "idface", "Recipe": dict(recipe)}
    images[0].save(
        content,
        "GIF",
        save_all=True,
        append_images=images[1:],
        duration=round(milliseconds),
        loop=0,
        comment=json.dumps(about, default=str).encode(),
    )
    return content.getvalue()


def _one(faces: Faces, path: Path, option: str) -> Faces:
    if len(faces.names) > 1:
        raise ValueError(f"{option} {path}: {len(faces.names)} photos, expected one")
    return faces
