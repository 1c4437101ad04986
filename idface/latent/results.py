"""What a search has found, as files: the face, its latent, how near it is and how it got there."""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from idface.files import save_tensors, whole_file, write_csv
from idface.latent.bank import Bank
from idface.latent.generators import Generator
from idface.latent.scoring import COMPILE_FROM, Precision, Scorer
from idface.latent.search import JOURNAL, Found, Milestone, Step, mean_embedding, search
from idface.latent.strategies import SearchStrategy
from idface.pictures import Picture, mark_synthetic, save_synthetic, to_picture
from idface.recognition.alignment import FaceDetector
from idface.recognition.base import Recognizer

log = logging.getLogger(__name__)

STAGES = 8
"""Faces of a strip between the photos and the result."""


def search_people(
    people: Mapping[str, Tensor],
    generator: Generator,
    guide: Recognizer,
    strategy: SearchStrategy,
    budget: int,
    seed: int,
    out: Path,
    recipe: Mapping[str, Any],
    bank: Bank | None = None,
    judge: Recognizer | None = None,
    precision: Precision = "auto",
    compile: bool | None = None,
    journal: str = JOURNAL,
    progress: bool = True,
) -> dict[str, dict[str, Any]]:
    """Search for people by their photos, and write what `write_found` writes into a folder for each.

    Who was found there before, by the same photos and settings, is not searched for again. `write_overview` shows all.

    Args:
        people: by name, the aligned photos of each, float32 (P, 3, S, S) in [-1, 1].
        generator: what is searched.
        guide: what measures distances.
        strategy, budget, seed: see `search`.
        out: where the folders go. A search that was stopped goes on when it is called again with the same arguments.
        recipe: what else made the results.
        bank: where the strategies that make use of one start.
        judge: another recogniser, which looks at the results only.
        precision, compile: see `Scorer`; None compiles where it is worth the wait.
        journal: name, in `out`, of the folder for what a stopped search goes on from; removed in the end.
        progress: whether to show a bar.

    Returns:
        For each name, the content of its `result.json`.

    Raises:
        ValueError: the bank is of another generator or recogniser; a folder in `out` has somebody of that name who was
            found in another way; or what `search` raises.
    """
    if bank is not None and not strategy.uses_bank:
        log.warning("%s draws its own start and makes no use of a bank", type(strategy).__name__)
        bank = None
    elif bank is not None:
        bank.check(generator, guide)
    settings: dict[str, Any] = {"strategy": repr(strategy), "budget": budget, "seed": seed, "precision": precision}
    settings |= {"generator": generator.fingerprint(), "recognizer": f"{guide.name} {guide.fingerprint()}"}
    settings["judge"] = judge and f"{judge.name} {judge.fingerprint()}"
    settings["bank"] = bank and f"{len(bank):,} faces, seed {bank.settings.seed}"
    told = {name: settings | {"photos": _digest(images)} for name, images in people.items()}
    results = {name: before for name in people if (before := _found_before(out / name, told[name]))}
    if (out / journal).exists():  # of all of them: they were being written when it was stopped
        results = {}
    wanted = {name: images for name, images in people.items() if name not in results}
    if results:
        log.warning("%d of %d people were found in '%s' before", len(results), len(people), out)
    if not wanted:
        return results

    means = torch.stack([mean_embedding(guide.embed(images)) for images in wanted.values()])
    total = budget * len(wanted)
    if compile is None:
        compile = not strategy.uses_gradients and total >= COMPILE_FROM
    scorer = Scorer(generator, guide, precision=precision, compile=compile)
    starts = None if bank is None else bank.starts(means)
    with search_progress(total) if progress else nullcontext(lambda *_: None) as tell:
        every = search(scorer, means, strategy, budget, seed, starts, out / journal, tell)
    detector = FaceDetector(generator.device)
    for (name, images), found in zip(wanted.items(), every, strict=True):
        judged = None if judge is None else judge.embed(images)
        of_this = {**recipe, "person": name, "settings": told[name]}
        results[name] = write_found(
            out / name, found, to_picture(images), generator, guide, of_this, judge, judged, detector
        )
    shutil.rmtree(out / journal, ignore_errors=True)  # all that came of it is written
    return {name: results[name] for name in people}


def _digest(images: Tensor) -> str:
    """What tells some photos from others."""
    return hashlib.sha256(to_picture(images).tobytes()).hexdigest()[:12]


def _found_before(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a search with these settings has written into a folder; None if nothing was finished there."""
    file = folder / "result.json"
    if not file.is_file():
        return None
    result: dict[str, Any] = json.loads(file.read_text("utf-8"))
    before = result.get("settings", {})
    for key, value in settings.items():
        if before.get(key) != value:
            raise ValueError(
                f"'{folder}' holds what another search has found: its {key} is {before.get(key)}, here it is {value}. "
                "Give another folder for the results, or remove that one"
            )
    return result


def write_found(
    folder: Path,
    found: Found,
    photos: Picture,
    generator: Generator,
    recognizer: Recognizer,
    recipe: Mapping[str, Any],
    judge: Recognizer | None = None,
    judged_photos: Tensor | None = None,
    detector: FaceDetector | None = None,
) -> dict[str, Any]:
    """Write `face.png`, `latent.safetensors`, `history.csv`, `strip.png` and `result.json` of one person's search.

    Args:
        folder: where to; made if missing.
        found: what the search has found.
        photos: the person's aligned photos, uint8 (P, S, S, 3).
        generator: what it was found in.
        recognizer: what measured the distances.
        recipe: what made it: kept in the pictures and beside the latent.
        judge: another recogniser, which did not guide the search.
        judged_photos: its embeddings of the photos, (P, D).
        detector: says whether the picture shows a face at all; None does not ask.

    Returns:
        The content of `result.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    face = faces_of(generator, found.latent[None])[0]
    result: dict[str, Any] = {
        "photos": len(photos),
        "evaluations": found.evaluations,
        "seconds": round(found.seconds, 2),
    }
    result |= standing(recognizer, found.distance)
    if detector is not None:
        result["face_detected"] = detector.detect([face])[0] is not None
    if judge is not None and judged_photos is not None:
        shown = judge.embed(torch.from_numpy(face).movedim(-1, 0)[None])
        result["judge"] = standing(judge, float((shown - judged_photos).square().sum(1).mean()))
        result["judge"]["is_independent"] = is_independent(judge, recognizer, generator)
    result |= {key: value for key, value in recipe.items() if key not in result}
    save_synthetic(mark_synthetic(face), folder / "face.png", recipe)
    save_latents(folder / "latent.safetensors", found.latent, generator, recipe)
    history = [(step.evaluations, f"{step.distance:.6f}") for step in found.history]
    write_csv(folder / "history.csv", Step._fields, history)
    save_synthetic(_strip(found, photos, generator), folder / "strip.png", recipe)
    with whole_file(folder / "result.json") as unfinished:  # last: it says that the others are there
        unfinished.write_text(json.dumps(result, indent=2, default=str) + "\n", "utf-8")
    return result


def in_words(name: str, result: Mapping[str, Any]) -> str:
    """A result in a line, and one more for what the judge says."""
    text = f"{name}: {_seen(result)}; {result['evaluations']:,} evaluations, {result['seconds']:.1f} s"
    if not result.get("face_detected", True):
        text += "\n  but the picture shows nothing that a detector takes for a face"
    if "judge" in result:
        text += f"\n  another recogniser: {_seen(result['judge'])}"
    return text


def _seen(result: Mapping[str, Any]) -> str:
    text = f"distance {result['distance']:.4f} by {result['recognizer']}"
    if "threshold" in result:
        verdict = "the same person" if result["distance"] < result["threshold"] else "somebody else"
        text += f", {verdict} by its threshold of {result['threshold']:.3f} (nearer are "
        text += f"{result['same_person_pairs_nearer_percent']:.0f} % of same-person and "
        text += f"{result['different_person_pairs_nearer_percent']:.1f} % of different-person pairs)"
    return text


def write_overview(out: Path) -> Path:
    """Write `results.csv`, a line for each person found in a folder, and `overview.png`: a photo of each and the face.

    Returns:
        The picture's path.
    """
    folders = sorted(file.parent for file in out.glob("*/result.json"))
    rows = [{"person": folder.name, **_flat(json.loads((folder / "result.json").read_text()))} for folder in folders]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    write_csv(out / "results.csv", columns, [[row.get(key, "") for key in columns] for row in rows])
    pairs = []
    for folder, row in zip(folders, rows, strict=True):
        face = np.asarray(Image.open(folder / "face.png"))
        side = len(face)
        photo = np.asarray(Image.open(folder / "strip.png"))[:side, :side]
        pairs.append(captioned([photo, face], [_two_lines(folder.name, side), f"found\n{row['distance']:.3f}"]))
    columns_of_pairs = min(len(pairs), 6)
    pairs += [np.full_like(pairs[0], 255)] * (-len(pairs) % columns_of_pairs)
    starts = range(0, len(pairs), columns_of_pairs)
    picture = np.concatenate([np.concatenate(pairs[start : start + columns_of_pairs], axis=1) for start in starts])
    save_synthetic(picture, out / "overview.png", {"people": [folder.name for folder in folders]})
    return out / "overview.png"


def _flat(result: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A result without a table in it: what the judge says, and the settings, get names of their own."""
    flat: dict[str, Any] = {}
    for key, value in result.items():
        flat |= _flat(value, f"{key}_") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _two_lines(name: str, side: int) -> str:
    """A name cut to what fits below a picture of so many pixels."""
    first, _, last = name.replace("_", " ").rpartition(" ")
    letters = max(1, side // 6)
    return f"{first[:letters]}\n{last[:letters]}" if first else last[:letters]


def save_latents(path: Path, latents: Tensor, generator: Generator, recipe: Mapping[str, Any]) -> None:
    """Keep latents (L,) or (N, L) as the tensor `latent` of a safetensors file that names their generator."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"generator": generator.fingerprint(), "recipe": json.dumps(recipe, default=str)}
    if "checkpoint" in recipe:
        metadata["checkpoint"] = str(recipe["checkpoint"])
    save_tensors({"latent": latents.contiguous()}, path, metadata)


@contextmanager
def search_progress(total: int, title: str = "Searching") -> Iterator[Callable[[int, float], None]]:
    """A bar over the evaluations of a search, with the best distance: what `search` takes as `progress`."""
    columns = (TextColumn(title), BarColumn(), TextColumn("{task.completed:,}/{task.total:,}"))
    with Progress(*columns, TextColumn("{task.description}"), TimeRemainingColumn()) as bar:
        task = bar.add_task("", total=total)

        def tell(evaluations: int, distance: float) -> None:
            bar.update(task, completed=evaluations, description=f"best distance {distance:.4f}")

        yield tell
        bar.update(task, completed=total)


def is_independent(judge: Recognizer, guide: Recognizer, generator: Generator) -> bool:
    """Whether a judge neither guided the search nor was a loss of the generator; warns if it is not."""
    fingerprint = judge.fingerprint()
    if fingerprint == guide.fingerprint():
        log.warning("%s guided the search: that it finds its faces near tells nothing", judge.name)
    elif fingerprint in generator.gradient_fingerprints:
        log.warning("%s was a loss of the generator: that it finds its faces near tells nothing", judge.name)
    else:
        return True
    return False


def standing(recognizer: Recognizer, distance: float) -> dict[str, Any]:
    """A distance beside those of pairs of one person, and of two, where they were measured for this recogniser.

    Pairs are of single photos: a mean distance from several photos of a person varies less than those do.
    """
    result: dict[str, Any] = {"recognizer": recognizer.name, "distance": round(distance, 6)}
    calibration = recognizer.everyday
    if calibration is None:
        return result
    same, different = calibration.unit.standing(distance)
    return result | {
        "same_person_pairs_nearer_percent": round(same, 2),
        "different_person_pairs_nearer_percent": round(different, 2),
        "threshold": round(calibration.unit.best_threshold, 6),
        "pairs": calibration.data,
    }


@torch.no_grad()
def faces_of(generator: Generator, latents: Tensor) -> Picture:
    """The faces uint8 (N, S, S, 3) of latents (N, L)."""
    parts = latents.to(generator.device).split(64)
    return np.concatenate([to_picture(generator(part)) for part in parts])


def _strip(found: Found, photos: Picture, generator: Generator, most_photos: int = 5) -> Picture:
    """The person's photos, the best faces on the way, and the result, with what each is below it."""
    chosen = [*_spread(found.milestones), Milestone(found.evaluations, found.distance, found.latent)]
    faces = faces_of(generator, torch.stack([milestone.latent for milestone in chosen]))
    pictures = [*photos[:most_photos], *(mark_synthetic(face) for face in faces)]
    captions = ["photo"] * len(photos[:most_photos])
    captions += [f"{milestone.evaluations:,}\n{milestone.distance:.3f}" for milestone in chosen]
    captions[-1] = f"result\n{found.distance:.3f}"
    return captioned(pictures, captions)


def _spread(milestones: Sequence[Milestone]) -> list[Milestone]:
    """The first face and some of the later ones, evenly spread over the gain in distance."""
    if len(milestones) <= STAGES:
        return list(milestones)
    first, last = milestones[0].distance, milestones[-1].distance
    wanted = np.linspace(first, last, STAGES + 1)[:-1]
    chosen = (next(row for row, each in enumerate(milestones) if each.distance <= goal + 1e-9) for goal in wanted)
    return [milestones[row] for row in dict.fromkeys(chosen)]  # one large gain may reach several goals


def captioned(pictures: Sequence[Picture], captions: Sequence[str], gap: int = 2) -> Picture:
    """Pictures (S, S, 3) of one size in a row on white, with a text of two lines below each."""
    side = pictures[0].shape[0]
    spaces = [np.full((side, gap, 3), 255, np.uint8)] * (len(pictures) - 1)
    row = [part for pair in zip(pictures, [*spaces, pictures[0][:, :0]], strict=True) for part in pair]
    return np.concatenate([np.concatenate(row, 1), titled(captions, side, gap)])


def titled(titles: Sequence[str], side: int, gap: int = 0) -> Picture:
    """Texts of two lines in a row on white, uint8 (26, W, 3): one in every `side` pixels and the gap beside it."""
    canvas = Image.new("RGB", (len(titles) * (side + gap) - gap, 26), "white")
    draw = ImageDraw.Draw(canvas)
    for number, title in enumerate(titles):
        draw.multiline_text((number * (side + gap) + 2, 0), title, fill="black", spacing=0, font_size=10)
    return np.asarray(canvas)
