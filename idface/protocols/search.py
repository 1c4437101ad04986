"""`idface search`: the face of a given person in a generator (Li & Luo; Vendrow & Singhal)."""

import logging
from pathlib import Path
from typing import NamedTuple

from rich.progress import track

from data_modules.photos import Rejected
from idface.checkpoints import best_device, load_generator
from idface.latent.bank import Bank
from idface.latent.results import in_words, search_people, write_overview
from idface.latent.scoring import Precision
from idface.latent.strategies import STRATEGIES
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

    Writes into `out`: for each person a folder with what `write_found` writes; `results.csv` and `overview.png` of all
    people that were ever found there; and `rejected.csv` with the photos that could not be used and why, if there are
    any. A search that was stopped goes on when it is called again with the same arguments.

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
    for name, result in results.items():
        print(in_words(name, result))
    return write_overview(out)


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
    for folder in track(folders, f"Reading {option}", transient=True):
        try:
            people.append(Person(folder.name, read_faces(folder, option, size, detector, rejected, out)))
        except ValueError as error:  # the others are searched for all the same
            log.warning("%s is left out: %s", folder.name, error)
    if not people:
        raise ValueError(f"{option} {target}: no photo in any of its {len(folders)} folders can be used")
    return people
