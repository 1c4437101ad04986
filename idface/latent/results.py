"""What a search has found, as files: the face, its latent, how near it is and how it got there."""

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
from safetensors.torch import save_file
from torch import Tensor

from idface.files import write_csv
from idface.latent.bank import Bank
from idface.latent.generators import Generator
from idface.latent.scoring import COMPILE_FROM, Precision, Scorer
from idface.latent.search import JOURNAL, Found, Milestone, Step, mean_embedding, search
from idface.latent.strategies import SearchStrategy
from idface.pictures import Picture, mark_synthetic, save_synthetic, to_picture
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
) -> dict[str, tuple[Found, dict[str, Any]]]:
    """Search for people by their photos, and write what `write_found` writes into a folder for each.

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
        For each name, what was found and the content of its `result.json`.

    Raises:
        ValueError: the bank is of another generator or recogniser, or what `search` raises.
    """
    means = torch.stack([mean_embedding(guide.embed(images)) for images in people.values()])
    starts = None
    if bank is not None and not strategy.uses_bank:
        log.warning("%s draws its own start and makes no use of a bank", type(strategy).__name__)
    elif bank is not None:
        bank.check(generator, guide)
        starts = bank.starts(means)
    total = budget * len(people)
    if compile is None:
        compile = not strategy.uses_gradients and total >= COMPILE_FROM
    scorer = Scorer(generator, guide, precision=precision, compile=compile)
    with search_progress(total) if progress else nullcontext(lambda *_: None) as tell:
        every = search(scorer, means, strategy, budget, seed, starts, out / journal, tell)
    recipe = {**recipe, "strategy": repr(strategy), "budget": budget, "seed": seed, "recognizer": guide.name}
    recipe |= {"precision": scorer.precision, "bank": bank and str(bank.folder)}
    results = {}
    for (name, images), found in zip(people.items(), every, strict=True):
        judged = None if judge is None else judge.embed(images)
        told = recipe | {"person": name}
        result = write_found(out / name, found, to_picture(images), generator, guide, told, judge, judged)
        results[name] = (found, result)
    shutil.rmtree(out / journal, ignore_errors=True)  # all that came of it is written
    return results


def write_found(
    folder: Path,
    found: Found,
    photos: Picture,
    generator: Generator,
    recognizer: Recognizer,
    recipe: Mapping[str, Any],
    judge: Recognizer | None = None,
    judged_photos: Tensor | None = None,
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
    if judge is not None and judged_photos is not None:
        shown = judge.embed(torch.from_numpy(face).movedim(-1, 0)[None])
        result["judge"] = standing(judge, float((shown - judged_photos).square().sum(1).mean()))
        result["judge"]["is_independent"] = is_independent(judge, recognizer, generator)
    save_synthetic(mark_synthetic(face), folder / "face.png", recipe)
    save_latents(folder / "latent.safetensors", found.latent, generator, recipe)
    history = [(step.evaluations, f"{step.distance:.6f}") for step in found.history]
    write_csv(folder / "history.csv", Step._fields, history)
    save_synthetic(_strip(found, photos, generator), folder / "strip.png", recipe)
    (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    return result


def save_latents(path: Path, latents: Tensor, generator: Generator, recipe: Mapping[str, Any]) -> None:
    """Keep latents (L,) or (N, L) as the tensor `latent` of a safetensors file that names their generator."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"generator": generator.fingerprint(), "recipe": json.dumps(recipe, default=str)}
    if "checkpoint" in recipe:
        metadata["checkpoint"] = str(recipe["checkpoint"])
    save_file({"latent": latents.contiguous()}, path, metadata)


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
    return [next(each for each in milestones if each.distance <= distance + 1e-9) for distance in wanted]


def captioned(pictures: Sequence[Picture], captions: Sequence[str], gap: int = 2) -> Picture:
    """Pictures (S, S, 3) of one size in a row on white, with a text of two lines below each."""
    side = pictures[0].shape[0]
    canvas = Image.new("RGB", (len(pictures) * (side + gap) - gap, side + 26), "white")
    draw = ImageDraw.Draw(canvas)
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        canvas.paste(Image.fromarray(picture), (number * (side + gap), 0))
        draw.multiline_text((number * (side + gap) + 2, side), caption, fill="black", spacing=0, font_size=10)
    return np.asarray(canvas)
