"""`idface bank`: generated faces to start searches from, and how near they come (Vendrow & Singhal 2019, 4.2, 5.2)."""

import json
import logging
import pkgutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_modules.base import FaceDataModule
from data_modules.photos import PhotoError, Pixels, read_photos
from idface.checkpoints import best_device, load_generator
from idface.files import write_csv
from idface.latent.bank import Bank, Statistics, build_bank, fresh_latents
from idface.latent.scoring import COMPILE_FROM, Precision, Scorer
from idface.names import class_path, data_modules
from idface.recognition.build import build_recognizer

log = logging.getLogger(__name__)

BATCH = 64

PUBLISHED = {
    "generated": {"mean": 7.057, "median": 7.171, "std": 1.085},
    "CelebA": {"mean": 10.200, "median": 10.252, "std": 0.862},
    "ratio": 1.45,
}
"""Vendrow & Singhal's table: L2, "distance" here, of another network's embeddings; 250,000 faces of StyleGAN."""


def build(
    checkpoint: str,
    size: int,
    out: Path,
    recognizer: str = "dlib",
    *,
    seed: int = 0,
    truncation: float = 1.0,
    half: bool = False,
    precision: Precision = "auto",
    compile: bool | None = None,
) -> Bank:
    """Make a bank of a generator's faces, or go on with one, under a progress bar.

    Args:
        checkpoint: what `load_generator` takes.
        size: faces.
        out: the bank's folder.
        recognizer: what embeds them, a name that `build_recognizer` knows.
        seed, truncation, half: see `build_bank`.
        precision: see `Scorer`.
        compile: see `Scorer`; None compiles where the bank is large enough to make up for it.

    Raises:
        ValueError, OSError: what `load_generator`, `build_recognizer` and `build_bank` raise.
    """
    generator = load_generator(checkpoint).to(best_device())
    compile = size >= COMPILE_FROM if compile is None else compile
    scorer = Scorer(generator, build_recognizer(recognizer), precision=precision, compile=compile)
    columns = (
        TextColumn("Building the bank"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns) as bar:
        task = bar.add_task("", total=size, speed="starting")

        def show(done: int) -> None:
            bar.update(task, completed=done)
            speed = bar.tasks[task].speed
            bar.update(task, speed="" if speed is None else f"{speed:.1f} faces/s")

        return build_bank(out, scorer, size, seed=seed, truncation=truncation, half=half, progress=show)


def report(
    folder: Path,
    checkpoint: str,
    data: str,
    root: Path | None,
    targets: int = 500,
    recognizer: str = "dlib",
    out: Path | None = None,
) -> str:
    """How near the best face of a bank comes to generated and to real faces.

    Generated targets are faces of latents that are not in the bank; real ones are photos of a data set, drawn at
    random, at the generator's resolution. Writes `bank_report.csv`, a line for each kind and measure, and
    `bank_report.json`, with the ratios of the means and the paper's figures beside them. Measures are the squared
    distance of unit embeddings, used throughout this project, and its root, L2, the paper's.

    Args:
        folder: the bank's.
        checkpoint: of the generator that the bank is of.
        data: the data module that reads the photos, by name.
        root: the data set's folder; None for "orl", which needs none.
        targets: of each kind; fewer real ones if there are not as many photos.
        recognizer: the recogniser that the bank was embedded by.
        out: where the files go; None for the bank's folder.

    Returns:
        The table, to print.

    Raises:
        ValueError: the bank is of another generator or recogniser, or the data set has fewer than two usable photos;
            or what `Bank` raises.
    """
    if targets < 2:
        raise ValueError(f"--targets {targets}: expected 2 or more")
    if (root is None) != (data == "orl"):
        raise ValueError(f"--data {data} {'takes no' if root else 'needs a'} --root")
    bank = Bank(folder)
    generator = load_generator(checkpoint).to(best_device())
    network = build_recognizer(recognizer).to(generator.device)
    bank.check(generator, network)
    module = pkgutil.resolve_name({**data_modules(), "orl": class_path("ORLDataModule")}[data])
    options = {"image_size": generator.image_size}
    photos = _read_some(module(**options) if root is None else module(root, **options), targets, bank.settings.seed)
    embeddings = {
        "generated": Scorer(generator, network, BATCH, "float32").exact(fresh_latents(bank, generator, targets)),
        data: network.embed(torch.from_numpy(photos).movedim(-1, 1)),
    }
    nearest = {kind: bank.nearest(each)[0].squeeze(1).clamp(min=0) for kind, each in embeddings.items()}
    table = {
        "squared distance": {kind: Statistics.of(distances) for kind, distances in nearest.items()},
        "distance": {kind: Statistics.of(distances.sqrt()) for kind, distances in nearest.items()},
    }
    _write(out or folder, bank, table, data)
    return _as_text(bank, table, data)


def _read_some(data: FaceDataModule, count: int, seed: int) -> Pixels:
    """Photos of a set in an order drawn by the seed, uint8 (N, S, S, 3): the first `count` that can be used."""
    photos, _ = data.wanted_photos()
    order = np.random.default_rng(seed).permutation(len(photos)).tolist()
    pictures: list[Pixels] = []
    while order and len(pictures) < count:
        wanted = count - len(pictures)
        some, order = [photos[i] for i in order[:wanted]], order[wanted:]
        pictures += [each for each in read_photos(data.reader(some), some) if not isinstance(each, PhotoError)]
    if len(pictures) < 2:
        raise ValueError(
            f"{len(pictures)} of {len(photos)} photos can be used, expected 2 or more: see `idface verify`"
        )
    if len(pictures) < count:
        log.warning("only %d of %d photos can be used; all of them are targets", len(pictures), len(photos))
    return np.stack(pictures)


Table = dict[str, dict[str, Statistics]]
"""By measure and kind of target."""


def _ratios(table: Table, data: str) -> dict[str, float]:
    """How much farther real targets are than generated ones, by the means."""
    return {measure: rows[data].mean / rows["generated"].mean for measure, rows in table.items()}


def _write(out: Path, bank: Bank, table: Table, data: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    rows = [(kind, measure, *row) for measure, kinds in table.items() for kind, row in kinds.items()]
    write_csv(out / "bank_report.csv", ("kind", "measure", *Statistics._fields), rows)
    content: dict[str, Any] = {
        "bank": {"size": len(bank), **asdict(bank.settings)},
        "best": {measure: {kind: row._asdict() for kind, row in kinds.items()} for measure, kinds in table.items()},
        "ratio": _ratios(table, data),
        "published": {"distance": PUBLISHED},
    }
    (out / "bank_report.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def _as_text(bank: Bank, table: Table, data: str) -> str:
    width = max(len("generated"), len(data))
    lines = [f"Best of {len(bank):,} faces, embedded by {bank.settings.recognizer}"]
    for measure, kinds in table.items():
        lines.append(f"{measure:<{width + 9}} {'mean':>8} {'median':>8} {'std':>8}")
        for kind, (targets, *values) in kinds.items():
            lines.append(f"  {kind:<{width}} {targets:>6,} " + " ".join(f"{value:>8.4f}" for value in values))
    ratios = ", ".join(f"{ratio:.3f} by {measure}" for measure, ratio in _ratios(table, data).items())
    lines.append(f"{data} over generated, means: {ratios}")
    lines.append(
        "Vendrow & Singhal, by distance of another network's embeddings: 10.200 for CelebA over 7.057, "
        f"{PUBLISHED['ratio']}"
    )
    return "\n".join(lines)
