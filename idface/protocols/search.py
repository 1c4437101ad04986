"""`idface search`: the face of a given person in a generator (Li & Luo; Vendrow & Singhal)."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from data_modules.photos import Rejected
from idface.checkpoints import best_device, load_generator
from idface.files import write_csv
from idface.latent.bank import Bank
from idface.latent.generators import Generator
from idface.latent.results import captioned, faces_of, search_people
from idface.latent.scoring import Precision
from idface.latent.search import Found
from idface.latent.strategies import STRATEGIES
from idface.pictures import Picture, mark_synthetic, save_synthetic
from idface.protocols.photos import Faces, read_faces, write_rejected
from idface.recognition.alignment import FaceDetector
from idface.recognition.build import build_recognizer

log = logging.getLogger(__name__)


class Person(NamedTuple):
    """Who is searched for."""

    name: str
    faces: Faces


def search_photos(
    checkpoint: str,
    target: Path,
    out: Path,
    strategy: str = "hybrid",
    budget: int = 10_000,
    bank: Path | None = None,
    recognizer: str = "dlib",
    judge: str | None = None,
    seed: int = 0,
    align: bool = True,
    precision: Precision = "auto",
    compile: bool | None = None,
) -> Path:
    """Search a generator's latent space for the faces of people.

    Writes into `out`: for each person a folder with what `write_found` writes; `results.csv`; `overview.png`, a row a
    person; and `rejected.csv` with the photos that could not be used and why, if there are any. A search that was
    stopped goes on when it is called again with the same arguments.

    Args:
        checkpoint: what `load_generator` takes.
        target: a photo; a folder with photos of one person; or a folder with a folder for each of several people.
        out: folder for the results; made if missing.
        strategy: a key of STRATEGIES.
        budget: evaluations for each person.
        bank: what `idface bank build` has written, for the strategies that make use of one.
        recognizer: what measures distances, as `build_recognizer` takes it.
        judge: another one, which looks at the results only.
        seed: of all that is drawn.
        align: find each photo's main face and align it. Without, photos must be aligned; their middle is used.
        precision, compile: see `Scorer`; None compiles where it is worth the wait.

    Returns:
        The overview's path.

    Raises:
        CheckpointError, ValueError, FileNotFoundError: an argument cannot be used; the message says why.
    """
    device = best_device()
    generator = load_generator(checkpoint).to(device)
    guide = build_recognizer(recognizer).to(device)
    judging = None if judge is None else build_recognizer(judge).to(device)
    if judging is not None and judging.fingerprint() == guide.fingerprint():
        raise ValueError(f"--judge {judge}: it guides the search, so it cannot judge; give another recogniser")
    opened = None
    if bank is not None:
        opened = Bank(bank)
        opened.check(generator, guide)

    rejected: list[Rejected] = []
    people = _read_people(target, generator.image_size, FaceDetector(device) if align else None, rejected, out)
    write_rejected(out, rejected)
    photos = {person.name: person.faces.tensor() for person in people}
    recipe = {"checkpoint": checkpoint, "target": str(target)}
    results = search_people(
        photos, generator, guide, STRATEGIES[strategy](), budget, seed, out, recipe, opened, judging, precision, compile
    )
    rows = []
    for name, (_, result) in results.items():
        rows.append({"person": name, **_flat(result)})
        print(_in_words(name, result))
    write_csv(out / "results.csv", list(rows[0]), [list(row.values()) for row in rows])
    picture = _overview(people, [found for found, _ in results.values()], generator)
    save_synthetic(picture, out / "overview.png", recipe | {"strategy": strategy, "budget": budget, "seed": seed})
    return out / "overview.png"


def _read_people(
    target: Path, size: int, detector: FaceDetector | None, rejected: list[Rejected], out: Path
) -> list[Person]:
    """The person of a photo or of a folder of photos, or those of a folder of folders."""
    option = "--target"
    made = out.resolve()
    inside = sorted(p for p in target.iterdir() if not p.name.startswith(".")) if target.is_dir() else []
    folders = [path for path in inside if path.is_dir() and path.resolve() != made]
    if not folders:
        name = target.stem if target.is_file() else target.resolve().name
        return [Person(name, read_faces(target, option, size, detector, rejected, out))]
    if loose := [path for path in inside if path.is_file()]:
        raise ValueError(
            f"{option} {target}: holds both folders and files, '{loose[0].name}' among them. Give a photo, a folder "
            "with the photos of one person, or a folder with nothing but a folder for each person"
        )
    people = []
    for folder in folders:
        try:
            people.append(Person(folder.name, read_faces(folder, option, size, detector, rejected, out)))
        except ValueError as error:  # the others are searched for all the same
            log.warning("%s is left out: %s", folder.name, error)
    if not people:
        raise ValueError(f"{option} {target}: no photo in any of its {len(folders)} folders can be used")
    return people


def _flat(result: dict[str, Any]) -> dict[str, Any]:
    """A result without a table in it: what the judge says gets names of its own."""
    judged = result.get("judge", {})
    return {key: value for key, value in result.items() if key != "judge"} | {
        f"judge_{key}": value for key, value in judged.items()
    }


def _in_words(name: str, result: dict[str, Any]) -> str:
    text = f"{name}: distance {result['distance']:.4f} from {result['photos']} photos by {result['recognizer']}"
    if "threshold" in result:
        text += f"; nearer are {result['same_person_pairs_nearer_percent']:.0f} % of same-person pairs and "
        text += f"{result['different_person_pairs_nearer_percent']:.1f} % of different-person pairs"
    return f"{text}; {result['evaluations']:,} evaluations, {result['seconds']:.1f} s"


def _overview(people: list[Person], found: list[Found], generator: Generator) -> Picture:
    """A row a person: a photo, and the face found."""
    faces = faces_of(generator, torch.stack([each.latent for each in found]))
    pairs = [
        captioned([person.faces.pictures[0], mark_synthetic(face)], [person.name[:12], f"found\n{each.distance:.3f}"])
        for person, each, face in zip(people, found, faces, strict=True)
    ]
    columns = min(len(pairs), 6)
    blank = np.full_like(pairs[0], 255)
    pairs += [blank] * (-len(pairs) % columns)
    rows = [np.concatenate(pairs[start : start + columns], axis=1) for start in range(0, len(pairs), columns)]
    return np.concatenate(rows)
