"""`idface data doubles`: training photos that look like people held out, whatever their names are.

Two sets that call people differently, or not at all, cannot be told apart by name: who is tested on may be in training.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from data_modules.joined import JoinedDataModule, own_name
from data_modules.photos import Photo
from idface.checkpoints import best_device
from idface.files import write_csv, write_json
from idface.latent.results import captioned
from idface.protocols.sources import data_of_recipe, rows_of, training_embeddings, unseen_people
from idface.recognition.base import distance
from idface.recognition.build import build_recognizer

PAIRS = 6
"""Shown in a row of the picture."""
ROWS = 5


def doubles(data: Path, out: Path, recognizer: str = "dlib", share: float = 1e-3) -> dict[str, Any]:
    """Find the training photos of a recipe that look like somebody whom it validates or tests on.

    People of the set that holds them out are somebody else: they have other names. Those of other sets are compared by
    their mean embeddings, and photos of nobody who is known one by one. How near is too near is measured on the
    held-out people, for means as near as `share` of their pairs, for single photos as near as `share` of pairs of one's
    photo and another's mean. So at most about `share` times their number of all people and single photos is left out
    for nothing. Somebody held out who is in training is left out as far as these limits find them, see `recall`.

    Writes into `out`: `leave_out.txt`, the photos by name, for the `leave_out` of the recipe's data; `doubles.csv`, for
    each person or photo whom it resembles and how near; `doubles.png`, pairs of them from the nearest to the limit;
    `report.json`, whose `recall` is what `recall_of` gives for the held-out people.

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
    network = build_recognizer(recognizer).to(best_device())
    faces = data_of_recipe(data, None)
    held_out = unseen_people(faces, ("val", "test"))
    if len(held_out.names) < 2:
        raise ValueError(f"--data {data}: it holds out {len(held_out.names)} people, expected two or more")
    single = network.embed(held_out.images).cpu()
    centres = torch.stack([_centre(single[rows]) for _, rows in rows_of(held_out.person)])
    first, second = torch.triu_indices(len(centres), len(centres), 1)
    limit = float(distance(centres[first], centres[second]).quantile(share))
    across = distance(single[:, None], centres)[held_out.person[:, None] != torch.arange(len(centres))]
    single_limit = float(np.quantile(across.numpy(), share))

    embedded, index = training_embeddings(faces, network)
    embedded = embedded.cpu()
    photos = [faces.photos[row] for row in index.tolist()]
    identity = torch.from_numpy(faces.split.identity[index.numpy()])
    joined = isinstance(faces, JoinedDataModule)
    own = torch.tensor([not joined or own_name(photo)[0] == 0 for photo in photos])
    people = [rows for number, rows in rows_of(identity) if number >= 0 and not bool(own[rows].any())]
    groups = [*people, *(identity < 0).nonzero()]
    if not groups:
        raise ValueError(
            f"--data {data}: all its training photos are of the set that holds people out, and have names: nobody in "
            "it can be somebody held out. Expected a JoinedDataModule of several sets, or photos of nobody known"
        )
    found: list[tuple[float, list[Photo], int]] = []
    for rows in groups:
        apart = distance(_centre(embedded[rows])[None], centres)
        nearest = int(apart.argmin())
        if float(apart[nearest]) <= (limit if identity[rows[0]] >= 0 else single_limit):
            found.append((float(apart[nearest]), [photos[row] for row in rows.tolist()], nearest))
    found.sort(key=lambda each: each[0])

    out.mkdir(parents=True, exist_ok=True)
    names = sorted(photo.name for _, theirs, _ in found for photo in theirs)
    header = f"# photos of {data} that look like somebody whom it holds out, by {network.name}\n"
    (out / "leave_out.txt").write_text(header + "".join(f"{name}\n" for name in names), "utf-8")
    write_csv(
        out / "doubles.csv",
        ("photo", "photos", "person", "resembles", "distance"),
        [
            (theirs[0].name, len(theirs), theirs[0].person or "", held_out.names[person], f"{apart:.4f}")
            for apart, theirs, person in found
        ],
    )
    if found:
        shown = [
            found[place] for place in np.linspace(0, len(found) - 1, min(PAIRS * ROWS, len(found))).round().astype(int)
        ]
        read = faces.reader(faces.photos)
        lines = []
        for number in range(0, len(shown), PAIRS):
            pictures, captions = [], []
            for apart, alike, person in (shown + [shown[-1]] * PAIRS)[number : number + PAIRS]:
                theirs = held_out.images[(held_out.person == person).nonzero()[0, 0]]
                pictures += [read(alike[0]), theirs.permute(1, 2, 0).numpy()]
                captions += [f"trains\n{apart:.3f}", "held out"]
            lines.append(captioned(pictures, captions))
        Image.fromarray(np.concatenate(lines)).save(out / "doubles.png")
    report = {
        "data": str(data),
        "recognizer": f"{network.name} {network.fingerprint()}",
        "share": share,
        "limit": limit,
        "single_limit": single_limit,
        "held_out": len(held_out.names),
        "recall": recall_of(single, held_out.person, limit, single_limit),
        "looked_at": {"people": len(people), "photos": sum(map(len, groups))},
        "people": sum(theirs[0].person is not None for _, theirs, _ in found),
        "photos": len(names),
    }
    write_json(out / "report.json", report)
    return report


def recall_of(single: Tensor, person: Tensor, limit: float, single_limit: float) -> dict[str, float | None]:
    """How many of the people held out, and of their photos, such limits find again by their other photos.

    It is an estimate for doubles in training: the mean of somebody there may be of more or fewer photos than these
    halves, is compared with the mean of all photos held out, and its photos may be of another kind.

    Args:
        single: unit embeddings (N, D) of photos.
        person: int64 (N,), whose they are.
        limit: distance between means up to which two people are taken for one.
        single_limit: distance of a photo from a mean up to which it is taken for that person's.

    Returns:
        Of those with two photos or more: `people`, the share for whom the mean of every other photo lies within `limit`
        of the mean of the rest; `photos`, the share of their photos within `single_limit` of the mean of that person's
        other photos. None for both where nobody has two.
    """
    several = [single[rows] for _, rows in rows_of(person) if len(rows) > 1]
    if not several:
        return {"people": None, "photos": None}
    halves = [float(distance(_centre(own[::2]), _centre(own[1::2]))) for own in several]
    others = [
        float(distance(own[row], _centre(torch.cat([own[:row], own[row + 1 :]]))))
        for own in several
        for row in range(len(own))
    ]
    return {
        "people": float(np.mean([apart <= limit for apart in halves])),
        "photos": float(np.mean([apart <= single_limit for apart in others])),
    }


def _centre(embeddings: Tensor) -> Tensor:
    """Mean direction (D,) of unit embeddings (N, D)."""
    return F.normalize(embeddings.mean(0), dim=0)


def in_words(report: dict[str, Any]) -> list[str]:
    """What a report says."""
    lines = [
        f"{report['photos']:,} of {report['looked_at']['photos']:,} training photos, {report['people']:,} people among "
        f"them, look like one of {report['held_out']} people held out (nearer than {report['limit']:.3f}; "
        f"photos of nobody known: {report['single_limit']:.3f})"
    ]
    recall = report["recall"]
    if recall["people"] is not None:
        lines.append(
            f"these limits find {recall['people']:.0%} of the people held out, and {recall['photos']:.0%} of their "
            "photos, again by their other photos: an estimate of how many of them are found in training"
        )
    return lines
