"""`idface recombine`: the identity of some photos with the attributes of others (Bao et al., figures 5 and 6)."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from data_modules.photos import Rejected
from idface.checkpoints import best_device, load_model_of
from idface.files import write_csv, write_json
from idface.modules.ipgan import OpenSetIPGAN
from idface.pictures import Picture, mark_synthetic, recombination_grid, save_synthetic, to_picture
from idface.protocols.photos import read_faces, warn_of_older, write_rejected
from idface.recognition.alignment import FaceDetector

log = logging.getLogger(__name__)

BATCH = 64
GRID_LIMIT = 40
"""Most rows, and most columns, that the grid shows; every result has a file of its own."""


def recombine(
    checkpoint: str, identity: Path, attributes: Path, out: Path, align: bool = True, originals: bool = True
) -> dict[str, Any]:
    """Give every attribute photo's face the identity of every identity photo.

    Writes into `out`: `grid.png` (rows identities, columns attributes); `results/<identity>--<attributes>.png`, each
    marked as synthetic; `results.csv` with the model's judge's cosine similarity of each result to its two sources;
    `report.json`, the means; and `rejected.csv` with the photos that could not be used and why, if there are any.

    Args:
        checkpoint: path of a checkpoint or kept weights of an OpenSetIPGAN, or `zoo:NAME`.
        identity: a photo, or a folder of photos (its own folders included), whose people to show.
        attributes: a photo or folder whose pose, light, expression and background to keep.
        out: folder for the results; made if missing.
        align: find each photo's main face and align it as training photos were. Without it photos must be aligned
            already; their middle square is used.
        originals: whether the grid shows the photos. Otherwise each one's reconstruction, by its own identity and
            attributes, stands in its place: for faces that must not be shown to others.

    Returns:
        What `report.json` holds.

    Raises:
        CheckpointError: no such checkpoint, or one of another model.
        ValueError: no photo of `identity`, or none of `attributes`, can be used.
    """
    device = best_device()
    model = load_model_of(OpenSetIPGAN, checkpoint).to(device)
    rejected: list[Rejected] = []
    detector = FaceDetector(device) if align else None
    sources = read_faces(identity, "--identity", model.image_size, detector, rejected, out)
    targets = read_faces(attributes, "--attributes", model.image_size, detector, rejected, out)
    write_rejected(out, rejected)

    judge = model.judge_report()
    if not judge["independent"]:
        log.warning("%s was a loss of this model: its similarities do not tell whose face it is", judge["name"])
    recipe = {"checkpoint": checkpoint, "identity": str(identity), "attributes": str(attributes), "align": align}
    columns = targets.tensor(device)
    codes, judged_columns = _attribute_codes(model, columns), _judged(model, columns)  # the same for every identity
    shown: list[Picture] = []
    rows: list[tuple[object, ...]] = []
    cosines: list[Tensor] = []
    strangers: list[Tensor] = []
    for name, row in zip(track(sources.names, "Recombining", transient=True), sources.tensor(device), strict=True):
        results = _recombine_row(model, row, codes)
        if len(shown) < GRID_LIMIT:
            shown.append(to_picture(results[:GRID_LIMIT]))
        judged_row = _judged(model, row[None])
        similarity = _similarities(_judged(model, results), judged_row, judged_columns, len(results))
        cosines.append(similarity)
        if judged_row is not None and judged_columns is not None:
            strangers.append((judged_columns * judged_row).sum(1).cpu())
        for target, picture, cosine in zip(targets.names, to_picture(results), similarity.tolist(), strict=True):
            file = f"results/{name}--{target}.png"
            save_synthetic(mark_synthetic(picture), out / file, recipe | {"sources": [name, target]})
            told = [f"{value:.4f}" for value in cosine] or ["", ""]
            rows.append((name, target, file, *told, judge["name"] or "", judge["independent"]))
    warn_of_older(out, out / "results", [Path(str(row[2])).name for row in rows])
    header: tuple[str, ...] = ("identity", "attributes", "file", "similarity_to_identity", "similarity_to_attributes")
    header += ("judge", "judge_is_independent")
    write_csv(out / "results.csv", header, rows)
    left, above = (
        faces.pictures[:GRID_LIMIT] if originals else _reconstructions(model, faces.tensor(device)[:GRID_LIMIT])
        for faces in (sources, targets)
    )
    grid = recombination_grid(left, above, np.stack(shown))
    save_synthetic(grid, out / "grid.png", recipe)
    report: dict[str, Any] = recipe | {"people": len(sources.names), "faces": len(rows), "judge": judge}
    every = torch.cat(cosines)
    if every.shape[1]:
        to_identity, to_attributes = every.mean(0).tolist()
        report |= {"similarity_to_identity": to_identity, "similarity_to_attributes": to_attributes}
        report["similarity_of_photos"] = float(torch.cat(strangers).mean())
    write_json(out / "report.json", report)
    return report


def in_words(report: Mapping[str, Any]) -> list[str]:
    """What a report says."""
    line = f"{report['faces']} faces of {report['people']} identity photos"
    judge = report["judge"]
    if judge["name"] is None:
        return [f"{line}; the model has no judge to say who they are"]
    line += (
        f"; {judge['name']} sees a cosine of {report['similarity_to_identity']:.3f} to the identity photos and of "
        f"{report['similarity_to_attributes']:.3f} to the attribute photos on average; of the photos to one another "
        f"{report['similarity_of_photos']:.3f}"
    )
    return [line if judge["independent"] else f"{line}, BUT IT WAS A LOSS OF THIS MODEL"]


def _reconstructions(model: OpenSetIPGAN, images: Tensor) -> Picture:
    """Pictures (N, S, S, 3) of what images (N, 3, S, S) are by their own f_I and f_A."""
    return np.stack([mark_synthetic(face) for face in to_picture(model.recombine(images, images))])


def _attribute_codes(model: OpenSetIPGAN, images: Tensor) -> Tensor:
    """f_A (N, J) of images (N, 3, S, S), in batches."""
    return torch.cat([model.encode_attributes(part) for part in images.split(BATCH)])


def _recombine_row(model: OpenSetIPGAN, source: Tensor, attributes: Tensor) -> Tensor:
    """One identity (3, S, S) with every attribute vector (N, J), in batches."""
    identity = model.encode_identity(source[None])
    return torch.cat([model.generate(identity.expand(len(part), -1), part) for part in attributes.split(BATCH)])


def _judged(model: OpenSetIPGAN, images: Tensor) -> Tensor | None:
    """The judge's embeddings (N, D) of images (N, 3, S, S), in batches; None without a judge."""
    return None if model.judge is None else model.judge.embed(images, BATCH)


def _similarities(results: Tensor | None, source: Tensor | None, attributes: Tensor | None, count: int) -> Tensor:
    """Cosines (N, 2) of results (N, D) to the source (1, D) and to attribute photos (N, D); (N, 0) without a judge."""
    if results is None or source is None or attributes is None:
        return torch.zeros(count, 0)
    return torch.stack([(results * source).sum(1), (results * attributes).sum(1)], 1).cpu()
