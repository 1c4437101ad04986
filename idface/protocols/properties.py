"""`idface properties`: what noise, signs and amplitude do to a generated face (Li & Luo 2017, figure 6)."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.progress import Progress

from idface.checkpoints import best_device, load_generator
from idface.files import write_csv
from idface.latent.generators import Generator
from idface.latent.properties import QUANTILES, Properties, Property, Spread, measure_properties, variant
from idface.latent.scoring import Scorer
from idface.pictures import Picture, mark_synthetic, save_synthetic, to_picture
from idface.recognition.base import Recognizer
from idface.recognition.build import build_recognizer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BATCH = 32
SHOWN = 4
"""Faces in the pictures."""
TITLES: dict[Property, str] = {
    "noise": "noise of amplitude a",
    "sign": "sign(z)",
    "amplitude": "latent times a",
}


def properties(
    checkpoint: str, out: Path, faces: int = 200, recognizer: str | Recognizer = "dlib", seed: int = 0
) -> str:
    """Measure the three properties of a generator that Li & Luo's search rests on.

    Writes into `out`: `properties.csv` with a line for each change and one for pairs of different faces;
    `properties.json` with the same and what the threshold was measured on; `properties.png`, the curves; and
    `noise.png`, `sign.png` and `amplitude.png`, a row for each of a few faces: the face, then its changed ones.

    Args:
        checkpoint: what `load_generator` takes.
        out: folder for the results; made if missing.
        faces: how many to measure, 3 or more.
        recognizer: what measures identity: a name that `build_recognizer` knows, or the network itself.
        seed: of the latents and the noise.

    Returns:
        The result in words.

    Raises:
        ValueError, OSError: what `load_generator`, `build_recognizer` and `measure_properties` raise.
    """
    generator = load_generator(checkpoint).to(best_device())
    network = build_recognizer(recognizer) if isinstance(recognizer, str) else recognizer
    calibration = network.everyday
    threshold = None if calibration is None else calibration.unit.best_threshold
    with Progress(transient=True) as bar:
        task = bar.add_task("Measuring")
        found = measure_properties(
            Scorer(generator, network, BATCH, "float32"),
            faces,
            seed,
            threshold,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    out.mkdir(parents=True, exist_ok=True)
    recipe = {"checkpoint": checkpoint, "recognizer": network.name, "seed": seed, "faces": faces}
    measured_on = None if calibration is None else calibration.data
    _write_tables(found, out, recipe | {"recognizer_weights": network.fingerprint(), "threshold_from": measured_on})
    _plot(found, out / "properties.png", f"{faces} faces, identity by {network.name}")
    for name in TITLES:
        picture, settings = _strip(generator, found, name, seed)
        save_synthetic(picture, out / f"{name}.png", recipe | {"property": name, "columns": settings})
    return _in_words(found, network.name, measured_on)


def _write_tables(found: Properties, out: Path, recipe: dict[str, Any]) -> None:
    lines = [(line.property, line.setting, line.spread) for line in found.measured]
    lines_and_strangers = [*lines, ("different faces", "", found.strangers)]
    header = ("property", "setting", "mean", "std", *(f"p{each}" for each in QUANTILES), "share_same_person")
    rows = [
        (name, setting, spread.mean, spread.std, *spread.quantiles, "" if spread.same is None else spread.same)
        for name, setting, spread in lines_and_strangers
    ]
    write_csv(out / "properties.csv", header, rows)
    content: dict[str, Any] = recipe | {
        "threshold": found.threshold,
        "noise_limit": found.noise_limit(),
        "published_noise_limit": 0.5,
        "different_faces": _as_json(found.strangers),
    }
    for name in TITLES:
        content[name] = [{"setting": line.setting, **_as_json(line.spread)} for line in found.of(name)]
    (out / "properties.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def _as_json(spread: Spread) -> dict[str, Any]:
    quantiles = {str(percent): value for percent, value in zip(QUANTILES, spread.quantiles, strict=True)}
    return {"mean": spread.mean, "std": spread.std, "quantiles": quantiles, "share_same_person": spread.same}


def _plot(found: Properties, path: Path, title: str) -> None:
    """Distance against each change, with the threshold and the distance of different faces."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(10, 3.4), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(1, 3, sharey=True)
    for ax, name in zip(axes, TITLES, strict=True):
        lines = found.of(name)
        points = [(line.setting, line.spread.quantiles) for line in lines]
        if name == "sign":  # one change: bands without a curve
            points = [(0.0, points[0][1]), (1.0, points[0][1])]
            ax.set_xticks([])
        else:  # no noise, or the latent times 1, leaves the face as it is
            points = sorted([*points, (0.0 if name == "noise" else 1.0, (0.0,) * len(QUANTILES))])
        settings = [setting for setting, _ in points]
        low, lower, median, upper, high = np.array([quantiles for _, quantiles in points]).T
        ax.fill_between(settings, low, high, alpha=0.15, color="C0", linewidth=0, label="5 to 95 %")
        ax.fill_between(settings, lower, upper, alpha=0.3, color="C0", linewidth=0, label="25 to 75 %")
        ax.plot(settings, median, color="C0", label="median")
        _draw_limits(ax, found)
        ax.set_xlabel(TITLES[name], fontsize=9)
        ax.tick_params(labelsize=8)
    axes[0].axvline(0.5, color="0.6", linewidth=0.8)  # the paper's limit
    axes[0].set_ylabel("squared distance from the face", fontsize=9)
    axes[0].set_ylim(bottom=0)
    axes[-1].legend(fontsize=7)
    figure.savefig(path, dpi=120)


def _draw_limits(ax: "Axes", found: Properties) -> None:
    median = found.strangers.quantiles[QUANTILES.index(50)]
    ax.axhline(median, color="C3", linestyle=":", linewidth=1.2, label="different faces, median")
    if found.threshold is not None:
        ax.axhline(found.threshold, color="C2", linestyle="--", linewidth=1.2, label="threshold of one person")


@torch.no_grad()
def _strip(generator: Generator, found: Properties, name: Property, seed: int) -> tuple[Picture, list[float | None]]:
    """A few faces, each with its changed ones to its right, and the setting of every column, None for unchanged."""
    settings = [line.setting for line in found.of(name)]
    changed = [variant(generator, found.latents, name, setting, seed + 1) for setting in settings]
    columns = [generator(latents[:SHOWN].to(generator.device)) for latents in (found.latents, *changed)]
    faces = to_picture(torch.stack(columns, dim=1))  # (rows, columns, S, S, 3)
    marked = [np.concatenate([mark_synthetic(face) for face in row], axis=1) for row in faces]
    return np.concatenate(marked), [None, *settings]


def _in_words(found: Properties, recognizer: str, measured_on: str | None) -> str:
    """A table to print."""
    title = f"Squared distance from the unchanged face by {recognizer}, {len(found.latents):,} faces"
    lines = [title, f"{'':<20} {'mean':>7} {'std':>7} {'5 %':>7} {'95 %':>7}  one person"]
    rows = [(f"{line.property} {line.setting:g}", line.spread) for line in found.measured]
    for label, spread in [*rows, ("different faces", found.strangers)]:
        same = "" if spread.same is None else f"{spread.same:>9.1%}"
        low, high = spread.quantiles[0], spread.quantiles[-1]
        label = "sign" if label == "sign 1" else label
        lines.append(f"{label:<20} {spread.mean:>7.4f} {spread.std:>7.4f} {low:>7.4f} {high:>7.4f}  {same}")
    if found.threshold is not None:
        lines.append(f"One person: nearer than {found.threshold:.4f}, measured on {measured_on}")
        limit = found.noise_limit()
        open_end = " at least" if limit == max(line.setting for line in found.of("noise")) else ""
        lines.append(f"Most faces stay the same person up to noise of {limit:g}{open_end}; Li & Luo: 0.5")
    if found.strangers.same is not None and found.strangers.same > 0.5:
        lines.append("But so do most different faces: the generator makes one person, and the rest says nothing")
    return "\n".join(lines)
