"""`idface data doubles`: training photos that look like people held out, whatever their names are.

Two sets that call people differently, or not at all, cannot be told apart by name: who is tested on may be in training.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rich.progress import track
from torch import Tensor

from data_modules.base import FaceDataModule
from data_modules.joined import JoinedDataModule
from idface.checkpoints import best_device
from idface.files import write_csv, write_json
from idface.latent.results import captioned
from idface.protocols.sources import data_of_recipe, rows_of, unseen_people
from idface.recognition.base import Recognizer, distance
from idface.recognition.build import build_recognizer

PAIRS = 6
"""Shown in a row of the picture."""
ROWS = 5


def doubles(data: Path, out: Path, recognizer: str = "dlib", share: float = 1e-3) -> dict[str, Any]:
    """Find the training photos of a recipe that look like somebody whom it validates or tests on.

    People of the set that holds them out are somebody else: they have other names. Those of other sets are compared by
    their mean embeddings, and photos of nobody who is known one by one. How near is too near is
    measured on the held-out people: as near as `share` of their pairs. So at most about `share` times their number of
    all people is left out for nothing, and of a person in training who is held out, all photos are.

    Writes into `out`: `leave_out.txt`, the photos by name, for the `leave_out` of the recipe's data; `doubles.csv`, for
    each person or photo whom it resembles and how near; `doubles.png`, pairs of them from the nearest to the limit;
    `report.json`.

    Args:
        data: a recipe.
        out: folder for the results; made if missing.
        recognizer: see `build_recognizer`.
        share: of pairs of different people that may be taken for one.

    Returns:
        What `report.json` holds.

    Raises:
        ValueError, OSError: an option or the recipe is not as it should be.
    """
    if not 0 < share < 1:
        raise ValueError(f"--share is {share:g}, expected a share of pairs between 0 and 1")
    faces = data_of_recipe(data, None)
    network = build_recognizer(recognizer).to(best_device())
    held_out = unseen_people(faces, ("val", "test"))
    if len(held_out.names) < 2:
        raise ValueError(f"--data {data}: it holds out {len(held_out.names)} people, expected two or more")
    centres = torch.stack([_centre(network.embed(held_out.images[rows])) for _, rows in rows_of(held_out.person)])
    first, second = torch.triu_indices(len(centres), len(centres), 1)
    limit = float(distance(centres[first], centres[second]).quantile(share))

    embedded, index = _training(faces, network)
    identity = torch.from_numpy(faces.split.identity[index.numpy()])
    joined = isinstance(faces, JoinedDataModule)
    own = torch.tensor([not joined or faces.photos[row].name.startswith("0/") for row in index.tolist()])
    people = [rows for number, rows in rows_of(identity) if number >= 0 and not bool(own[rows].any())]
    groups = [*people, *(identity < 0).nonzero()]
    found: list[tuple[float, Tensor, int]] = []
    for rows in groups:
        apart = distance(_centre(embedded[rows])[None], centres)
        nearest = int(apart.argmin())
        if float(apart[nearest]) <= limit:
            found.append((float(apart[nearest]), rows, nearest))
    found.sort(key=lambda each: each[0])

    photos = faces.photos
    out.mkdir(parents=True, exist_ok=True)
    names = sorted(photos[int(index[row])].name for _, rows, _ in found for row in rows)
    header = f"# photos of {data} that look like somebody whom it holds out, by {network.name}\n"
    (out / "leave_out.txt").write_text(header + "".join(f"{name}\n" for name in names), "utf-8")
    write_csv(
        out / "doubles.csv",
        ("photo", "photos", "person", "resembles", "distance"),
        [
            (photos[row].name, len(rows), photos[row].person or "", held_out.names[person], f"{apart:.4f}")
            for apart, rows, person in found
            for row in (int(index[rows[0]]),)
        ],
    )
    if found:
        shown = [
            found[place] for place in np.linspace(0, len(found) - 1, min(PAIRS * ROWS, len(found))).round().astype(int)
        ]
        read = faces.reader(photos)
        lines = []
        for number in range(0, len(shown), PAIRS):
            pictures, captions = [], []
            for apart, rows, person in (shown + [shown[-1]] * PAIRS)[number : number + PAIRS]:
                theirs = held_out.images[(held_out.person == person).nonzero()[0, 0]]
                pictures += [read(photos[int(index[rows[0]])]), theirs.permute(1, 2, 0).numpy()]
                captions += [f"trains\n{apart:.3f}", "held out"]
            lines.append(captioned(pictures, captions))
        Image.fromarray(np.concatenate(lines)).save(out / "doubles.png")
    report = {
        "data": str(data),
        "recognizer": f"{network.name} {network.fingerprint()}",
        "share": share,
        "limit": limit,
        "held_out": len(held_out.names),
        "looked_at": {"people": len(people), "photos": sum(map(len, groups))},
        "people": sum(int(identity[rows[0]]) >= 0 for _, rows, _ in found),
        "photos": len(names),
    }
    write_json(out / "report.json", report)
    return report


def _centre(embeddings: Tensor) -> Tensor:
    """Mean direction (D,) of unit embeddings (N, D)."""
    return F.normalize(embeddings.mean(0), dim=0)


@torch.no_grad()
def _training(faces: FaceDataModule, network: Recognizer) -> tuple[Tensor, Tensor]:
    """Embeddings (N, D) of the training photos, and their rows in the data, int64 (N,), on the CPU."""
    embedded, index = [], []
    for batch in track(faces.training_photos(), "Looking at training photos", transient=True):
        embedded.append(network.embed(batch["image"]))
        index.append(batch["index"])
    return torch.cat(embedded), torch.cat(index).cpu()


def in_words(report: dict[str, Any]) -> list[str]:
    """What a report says."""
    return [
        f"{report['photos']:,} of {report['looked_at']['photos']:,} training photos, {report['people']:,} people among "
        f"them, look like one of {report['held_out']} people held out (nearer than {report['limit']:.3f})"
    ]
