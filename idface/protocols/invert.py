"""`idface invert`: a picture with a person's embedding, by descent on pixels (Vendrow & Singhal 2019, 4.1, 5.1)."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress
from torch import Tensor

from data_modules.photos import Rejected
from idface.checkpoints import best_device
from idface.files import write_csv
from idface.latent.inversion import Inverted, default_guide_layer, invert_pixels
from idface.latent.results import standing
from idface.latent.scoring import distance_from_mean
from idface.pictures import mark_synthetic, save_synthetic, to_picture
from idface.protocols.photos import Faces, read_faces, write_rejected
from idface.recognition.alignment import FaceDetector
from idface.recognition.base import Recognizer, resize
from idface.recognition.build import build_recognizer

log = logging.getLogger(__name__)

_READ_AT = 160  # pixels: what recognisers look at, however small the picture to make


def invert(
    target: Path,
    out: Path,
    *,
    each: bool = False,
    guide: Path | None = None,
    guide_layer: str | None = None,
    tv_weight: float = 15.0,
    guide_weight: float = 2.0,
    steps: int = 500,
    size: int = 128,
    recognizer: str | Recognizer = "dlib",
    judge: str | Recognizer | None = None,
    seed: int = 0,
    align: bool = True,
) -> str:
    """Draw a picture that a recogniser takes for the person on some photos.

    Writes into `out`: `results/<name>.png`, marked as synthetic; `strip.png`, a row for each: the photo, the picture on
    its way from noise, and in the end; `history.csv` with every loss at every step; `result.json` with the distance
    from the person, and which percentile of same-person and of different-person pairs that is; and `rejected.csv`.

    Args:
        target: a photo, or a folder of photos.
        out: folder for the results; made if missing.
        each: a result for each photo; else all photos show one person, whose mean embedding is aimed at.
        guide: a photo of a face, of whomever, to stay near in an intermediate layer.
        guide_layer, tv_weight, guide_weight, steps, size, seed: see `invert_pixels`.
        recognizer: whose embedding is inverted: a name that `build_recognizer` knows, or the network itself.
        judge: another one that says afterwards whether it sees the person too. The inverted one always does.
        align: find the faces and align them; without it photos must be aligned already.

    Returns:
        The result in words.

    Raises:
        ValueError: no photo of `target`, or not that of `guide`, can be used; the guide is a folder; the judge is the
            recogniser itself; or what `invert_pixels` and `build_recognizer` raise.
    """
    if guide is None and guide_layer is not None:
        raise ValueError(f"--guide-layer {guide_layer} is of no use without --guide PHOTO")
    if guide is not None and not guide.is_file():
        raise ValueError(f"--guide {guide} is a folder, expected one photo")
    device = best_device()
    network = _network(recognizer).to(device)
    independent = None if judge is None else _network(judge).to(device)
    if independent is not None and independent.fingerprint() == network.fingerprint():
        raise ValueError(f"--judge {independent.name} is the network that is inverted: give another one, or none")

    rejected: list[Rejected] = []
    detector = FaceDetector(device) if align else None
    read_at = max(size, _READ_AT)
    photos = read_faces(target, "--target", read_at, detector, rejected, out)
    guides = None if guide is None else read_faces(guide, "--guide", read_at, detector, rejected, out)
    write_rejected(out, rejected)
    names = photos.names if each else [target.resolve().stem]
    people = _people(network, photos, each)
    with Progress(transient=True) as bar:
        task = bar.add_task("Descending", total=steps)
        found = invert_pixels(
            network,
            people,
            size,
            steps,
            tv_weight=tv_weight,
            guide=None if guides is None else guides.tensor(device),
            guide_layer=guide_layer,
            guide_weight=guide_weight,
            seed=seed,
            progress=lambda done: bar.update(task, completed=done),
        )
    settings: dict[str, Any] = {"method": "pixels", "target": target, "each": each, "recognizer": network.name}
    settings |= {"size": size, "steps": steps, "tv_weight": tv_weight, "seed": seed, "align": align}
    if guide is not None:
        settings |= {"guide": guide, "guide_layer": guide_layer or default_guide_layer(network)}
        settings |= {"guide_weight": guide_weight}
    _write_pictures(found, photos, names, out, settings)
    _write_history(found, names, out / "history.csv")
    judged = _judged(network, found.images, people, is_independent=False)
    lines = [judged]
    if independent is not None:
        people = _people(independent, photos, each)
        lines.append(_judged(independent, found.images, people, is_independent=True))
    results = [{"name": name, "judges": list(rows)} for name, *rows in zip(names, *lines, strict=True)]
    content = json.dumps({**settings, "photos": len(photos.names), "results": results}, indent=2, default=str)
    (out / "result.json").write_text(content + "\n", "utf-8")
    return "\n".join([*(_in_words(result["name"], row) for result in results for row in result["judges"]), str(out)])


def _network(recognizer: str | Recognizer) -> Recognizer:
    return build_recognizer(recognizer) if isinstance(recognizer, str) else recognizer


def _people(recognizer: Recognizer, photos: Faces, each: bool) -> Tensor:
    """Unit embeddings (N, D) of photos, or their mean (1, D): what distances to a person are measured from."""
    embeddings = recognizer.embed(photos.tensor())
    return embeddings if each else embeddings.mean(0, keepdim=True)


def _judged(recognizer: Recognizer, images: Tensor, people: Tensor, is_independent: bool) -> list[dict[str, Any]]:
    """What a recogniser says of results (T, 3, S, S) whose people are (T, D), as they are written: in 8 bits."""
    written = (images * 127.5).round() / 127.5
    embeddings = recognizer.embed(written)
    weights = {"weights": recognizer.fingerprint(), "is_independent": is_independent}
    distances = distance_from_mean(embeddings, people).clamp(min=0).tolist()
    return [standing(recognizer, distance) | weights for distance in distances]


def _write_pictures(found: Inverted, photos: Faces, names: list[str], out: Path, settings: dict[str, Any]) -> None:
    made = to_picture(found.stages)  # (K, T, S, S, 3)
    known = to_picture(resize(photos.tensor(), made.shape[2]))
    rows = []
    for i, name in enumerate(names):
        marked = [mark_synthetic(picture) for picture in made[:, i]]
        save_synthetic(marked[-1], out / "results" / f"{name}.png", settings)
        rows.append(np.concatenate([known[i], *marked], axis=1))
    columns = {"columns": ["photo", *(f"step {step}" for step in found.stage_steps)], "rows": names}
    save_synthetic(np.concatenate(rows), out / "strip.png", settings | columns)


def _write_history(found: Inverted, names: list[str], path: Path) -> None:
    series = {name: values.tolist() for name, values in found.history.items()}
    rows = [
        (name, step, *(values[step][i] for values in series.values()))
        for i, name in enumerate(names)
        for step in range(len(series["loss"]))
    ]
    write_csv(path, ("target", "step", *series), rows)


def _in_words(name: str, row: dict[str, Any]) -> str:
    text = f"{name}: squared distance {row['distance']:.4f} by {row['recognizer']}"
    text += ", another network than was inverted" if row["is_independent"] else ", which was inverted"
    if "threshold" in row:
        text += f"; one person is nearer than {row['threshold']:.4f}; nearer are "
        text += f"{row['same_person_pairs_nearer_percent']:.0f} % of same-person pairs and "
        text += f"{row['different_person_pairs_nearer_percent']:.0f} % of different-person pairs"
    return text
