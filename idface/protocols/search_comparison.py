"""Every search strategy on the same people, at the same budgets.

python -m idface.protocols.search_comparison --checkpoint CKPT --root LFW-PREPARED --bank BANK --out DIR

The people are those of a set that `idface prepare` has written; with `--apart-from` those who look like anybody in the
generator's training set are left out. What has been measured is kept in `DIR/results.csv` at once, and not again.
"""

import argparse
import csv
import json
import resource
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.progress import Progress
from safetensors.torch import load_file
from torch import Tensor

from data_modules.photos import Photo
from data_modules.prepared import PreparedDataModule
from idface.checkpoints import best_device, load_generator
from idface.files import save_tensors, write_csv
from idface.latent.bank import Bank
from idface.latent.results import captioned, faces_of, is_independent, search_progress
from idface.latent.scoring import Scorer, distance_from_mean
from idface.latent.search import mean_embedding, search
from idface.latent.strategies import STRATEGIES
from idface.names import RECOGNIZERS
from idface.pictures import Picture, mark_synthetic, save_synthetic
from idface.recognition.base import Recognizer
from idface.recognition.build import build_recognizer

BUDGETS = (1_000, 10_000, 50_000)
RESULTS = "results.csv"
PEOPLE = "people.csv"
PEOPLE_HEADER = ("strategy", "budget", "photos", "person", "distance", "judge_distance")


class Target(NamedTuple):
    """Somebody to search for."""

    name: str
    photos: Picture  # (P, S, S, 3)


class Cell(NamedTuple):
    """What one strategy did within one budget, over all people."""

    strategy: str
    budget: int
    photos: int
    people: int
    distance_mean: float
    distance_std: float
    """Over people."""
    evaluations: int
    """Of one person."""
    evaluations_per_second: float
    seconds: float
    """For all people together."""
    peak_memory_mib: float
    """Of the process; on a GPU, of its memory."""
    judge_distance_mean: float | str
    judge_distance_std: float | str


def choose_people(
    data: PreparedDataModule, count: int, photos: int, guide: Recognizer, apart_from: PreparedDataModule | None
) -> list[Target]:
    """People with enough photos, evenly over the alphabet, who look least like anybody in another set.

    Args:
        data: where they are taken from.
        count: how many.
        photos: of each, the first by name.
        guide: what tells how much somebody looks like another.
        apart_from: that other set: only the half of the people whose nearest photo in it is the farthest are taken. No
            threshold would do, for among thousands of photos everybody has a double.

    Raises:
        ValueError: there are not as many.
    """
    of_person: dict[str, list[Photo]] = defaultdict(list)
    for photo in data.list_photos():
        if isinstance(photo, Photo) and photo.person is not None:
            of_person[photo.person].append(photo)
    enough = {name: sorted(found)[:photos] for name, found in sorted(of_person.items()) if len(found) >= photos}
    read = data.reader([])
    candidates = [Target(name, np.stack([read(photo) for photo in found])) for name, found in enough.items()]
    if apart_from is not None and len(candidates) > count:
        others = _all_embeddings(apart_from, guide)  # (N, D)
        means = torch.stack([mean_embedding(_embedded(guide, target.photos)) for target in candidates])  # (T, D)
        nearest = 2 - 2 * (others @ means.T).amax(0)
        far = nearest.argsort(descending=True)[: max(count, len(candidates) // 2)].sort().values
        candidates = [candidates[row] for row in far.tolist()]
    if len(candidates) < count:
        raise ValueError(
            f"--people {count}: {len(candidates)} people have {photos} photos"
            ": ask for fewer people or --photos, or give a larger --root"
        )
    return [candidates[row] for row in np.linspace(0, len(candidates) - 1, count).round().astype(int)]


def _embedded(recognizer: Recognizer, pictures: Picture) -> Tensor:
    """Unit embeddings (N, D), on the CPU, of pictures (N, S, S, 3)."""
    return recognizer.embed(torch.from_numpy(pictures).movedim(-1, 1)).cpu()


def _all_embeddings(data: PreparedDataModule, recognizer: Recognizer) -> Tensor:
    photos = [photo for photo in data.list_photos() if isinstance(photo, Photo)]
    read, parts = data.reader([]), []
    fast = recognizer.in_bfloat16()
    with Progress(transient=True) as bar:
        task = bar.add_task("Looking for people who are in both sets", total=len(photos))
        for start in range(0, len(photos), 64):
            parts.append(_embedded(fast, np.stack([read(photo) for photo in photos[start : start + 64]])))
            bar.update(task, completed=start + 64)
    return torch.cat(parts)


def compare(
    scorer: Scorer,
    people: Sequence[Target],
    out: Path,
    strategies: Sequence[str],
    budgets: Sequence[int],
    photo_counts: Sequence[int],
    bank: Bank | None,
    judge: Recognizer | None,
    recipe: dict[str, Any],
) -> list[Cell]:
    """Fill the table of strategies and budgets; cells in `out/results.csv` are not measured again."""
    out.mkdir(parents=True, exist_ok=True)
    settings = out / "settings.json"
    wanted = json.dumps(recipe | {"people": [target.name for target in people]}, indent=2, default=str) + "\n"
    if settings.exists() and settings.read_text("utf-8") != wanted:
        raise ValueError(f"'{out}' holds a comparison with other settings ({settings}); give another --out")
    settings.write_text(wanted, "utf-8")
    cells = _read_cells(out / RESULTS)
    done = {(cell.strategy, cell.budget, cell.photos) for cell in cells}
    for budget in budgets:
        for count in photo_counts:
            chosen = [Target(target.name, target.photos[:count]) for target in people]
            means = torch.stack([mean_embedding(_embedded(scorer.recognizer, target.photos)) for target in chosen])
            starts = None if bank is None else bank.starts(means)
            for name in strategies:
                if (name, budget, count) in done:
                    continue
                cell, latents, each = _measure(scorer, chosen, means, name, budget, starts, judge)
                save_tensors({"latents": latents}, _latents_file(out, cell))
                write_csv(out / PEOPLE, PEOPLE_HEADER, [*_read_rows(out / PEOPLE), *each])
                cells.append(cell)
                write_csv(out / RESULTS, Cell._fields, cells)
                print(_in_words(cell), flush=True)
            shown = [cell for cell in cells if (cell.budget, cell.photos) == (budget, count)]
            picture = _picture(scorer, chosen, {cell.strategy: load_file(_latents_file(out, cell)) for cell in shown})
            save_synthetic(picture, out / f"faces-{budget}-{count}.png", recipe | {"budget": budget})
    return cells


def _latents_file(out: Path, cell: Cell) -> Path:
    return out / f"latents-{cell.strategy}-{cell.budget}-{cell.photos}.safetensors"


def _measure(
    scorer: Scorer,
    people: Sequence[Target],
    means: Tensor,
    name: str,
    budget: int,
    starts: Tensor | None,
    judge: Recognizer | None,
) -> tuple[Cell, Tensor, list[tuple[object, ...]]]:
    """One cell, the latents found (T, L), and a row for each person."""
    strategy = STRATEGIES[name]()
    _reset_peak_memory(scorer.device)
    started = time.perf_counter()
    with search_progress(budget * len(people), f"{name}, {budget:,}, {len(people[0].photos)} photos") as tell:
        found = search(scorer, means, strategy, budget, starts=starts if strategy.uses_bank else None, progress=tell)
    seconds = time.perf_counter() - started
    latents = torch.stack([each.latent for each in found])
    distances = torch.tensor([each.distance for each in found])
    judged: Tensor | None = None
    if judge is not None:
        own = torch.stack([mean_embedding(_embedded(judge, target.photos)) for target in people])
        judged = distance_from_mean(_embedded(judge, faces_of(scorer.generator, latents)), own)
    evaluations = sum(each.evaluations for each in found)
    cell = Cell(
        name,
        budget,
        len(people[0].photos),
        len(people),
        float(distances.mean()),
        float(distances.std()) if len(found) > 1 else 0.0,
        evaluations // len(found),
        evaluations / seconds,
        seconds,
        _peak_memory(scorer.device),
        "" if judged is None else float(judged.mean()),
        "" if judged is None else float(judged.std()) if len(found) > 1 else 0.0,
    )
    values = zip(people, distances.tolist(), [""] * len(found) if judged is None else judged.tolist(), strict=True)
    rows: list[tuple[object, ...]] = [
        (name, budget, cell.photos, target.name, distance, by_judge) for target, distance, by_judge in values
    ]
    return cell, latents, rows


def _read_rows(path: Path) -> list[list[str]]:
    """The rows of a table below its header; none if it is not there."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))[1:]


def _read_cells(path: Path) -> list[Cell]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows: list[dict[str, Any]] = [
            {field: text if field == "strategy" else _value(text) for field, text in row.items()}
            for row in csv.DictReader(file)
        ]
    return [Cell(**row) for row in rows]


def _value(text: str) -> float | int | str:
    return text if not text else int(text) if text.isdecimal() else float(text)


def _in_words(cell: Cell) -> str:
    text = f"{cell.strategy:9} {cell.budget:6,} evaluations, {cell.photos} photos: "
    text += f"{cell.distance_mean:.4f} +- {cell.distance_std:.4f}, {cell.evaluations_per_second:,.0f}/s, "
    text += f"{cell.peak_memory_mib:,.0f} MiB"
    return text + (f", judge {cell.judge_distance_mean:.4f}" if cell.judge_distance_mean != "" else "")


def _picture(scorer: Scorer, people: Sequence[Target], found: dict[str, dict[str, Tensor]]) -> Picture:
    """A row a person: a photo, and what each strategy has found."""
    faces = {name: faces_of(scorer.generator, tensors["latents"]) for name, tensors in found.items()}
    rows = []
    for row, target in enumerate(people):
        shown = [target.photos[0], *(mark_synthetic(each[row]) for each in faces.values())]
        rows.append(captioned(shown, [target.name.replace("_", " ")[:11], *faces]))
    return np.concatenate(rows)


def _reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # Linux lets the highest resident size start anew; elsewhere it is the process's so far
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 1024


def main(arguments: list[str] | None = None) -> None:
    """Compare search strategies and print a line for each."""
    parser = argparse.ArgumentParser("python -m idface.protocols.search_comparison", description=main.__doc__)
    parser.add_argument("--checkpoint", required=True, metavar="CKPT", help="of the generator")
    parser.add_argument("--root", required=True, metavar="FOLDER", help="a prepared set with the people to search for")
    parser.add_argument("--apart-from", metavar="FOLDER", help="the prepared set that the generator was trained on")
    parser.add_argument("--bank", type=Path, metavar="BANK", help="of the generator's faces")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--recognizer", default="dlib", help=f"one of {RECOGNIZERS}")
    parser.add_argument("--judge", help="another one, which looks at the results")
    parser.add_argument("--people", type=int, default=8)
    parser.add_argument("--photos", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS))
    parser.add_argument("--strategies", nargs="+", choices=list(STRATEGIES), default=list(STRATEGIES))
    options = parser.parse_args(arguments)

    for name in ("people", "photos", "budgets"):
        if np.min(getattr(options, name)) < 1:
            parser.error(f"--{name} counts from 1")
    device = best_device()
    generator = load_generator(options.checkpoint).to(device)
    guide = build_recognizer(options.recognizer).to(device)
    judge = None if options.judge is None else build_recognizer(options.judge).to(device)
    bank = None
    if options.bank is not None:
        bank = Bank(options.bank)
        bank.check(generator, guide)
    size = generator.image_size
    apart = None if options.apart_from is None else PreparedDataModule(options.apart_from, image_size=size)
    data = PreparedDataModule(options.root, image_size=size)
    people = choose_people(data, options.people, max(options.photos), guide, apart)
    scorer = Scorer(generator, guide, compile=True)
    if judge is not None and not is_independent(judge, guide, generator):
        parser.error(f"--judge {options.judge}: it guides the search or trained the generator, so it cannot judge")
    recipe: dict[str, Any] = {"generator": generator.fingerprint(), "precision": scorer.precision, "seed": 0}
    recipe |= {"recognizer": f"{guide.name} {guide.fingerprint()}", "root": options.root}
    recipe |= {"judge": judge and f"{judge.name} {judge.fingerprint()}", "apart_from": options.apart_from}
    recipe |= {"bank": bank and {"size": len(bank), **asdict(bank.settings)}, "device": str(device)}
    recipe |= {"strategies": {name: repr(STRATEGIES[name]()) for name in options.strategies}}
    compare(scorer, people, options.out, options.strategies, options.budgets, options.photos, bank, judge, recipe)


if __name__ == "__main__":
    main()
