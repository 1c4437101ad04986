"""`idface edit`: attributes of generated faces changed by vector arithmetic, and what that did (Li & Luo, figure 7)."""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from safetensors import SafetensorError, safe_open
from torch import Tensor

from idface.checkpoints import best_device, load_generator, load_model_of
from idface.files import write_csv
from idface.latent.arithmetic import Directions, EditMeasure, FaceMeter, find_directions, load_directions, measure_edit
from idface.latent.generators import Generator
from idface.latent.results import faces_of, save_latents, standing, titled
from idface.modules.attributes import AttributeClassifier
from idface.pictures import Picture, mark_synthetic, save_synthetic
from idface.recognition.base import Recognizer
from idface.recognition.build import build_recognizer

COUNT = 20_000
"""Generated faces that are labelled."""
RANDOM = "random:"
RANDOM_MOVES = 16
FACES_SEED, MOVES_SEED = 10**9, 2 * 10**9
"""Added to the seed: random faces are none of those that were labelled."""
ROWS = 40
"""Most faces that a picture shows; all are measured."""


def parse_attributes(given: Sequence[str]) -> dict[str, float]:
    """`eyeglasses=+1` and the like as strengths by name.

    Raises:
        ValueError: not of that form, a strength of 0 or none at all, or a name twice.
    """
    strengths: dict[str, float] = {}
    for text in given:
        name, _, number = text.partition("=")
        try:
            strength = float(number)
        except ValueError:
            strength = 0.0
        if not name or not np.isfinite(strength) or strength == 0:
            raise ValueError(
                f"--attribute {text}: expected NAME=STRENGTH with a strength other than 0, as in smiling=+1"
            )
        if name.lower() in strengths:
            raise ValueError(f"--attribute {text}: {name} is given twice, expected once")
        strengths[name.lower()] = strength
    if not strengths:
        raise ValueError("--attribute: none is given, expected one or more, as in smiling=+1")
    return strengths


def edit(
    latent: str,
    attributes: Sequence[str],
    out: Path,
    checkpoint: str | None = None,
    classifier: str = "zoo:attributes",
    recognizer: str = "dlib",
    count: int | None = None,
    seed: int = 0,
    directions: Path | None = None,
    steps: int = 5,
) -> dict[str, Any]:
    """Change attributes of faces by their latents, one at a time and, if there are several, all together.

    Writes into `out`, for each edit (`smiling+1`, `together`): `strips/<edit>.png`, a row a face from unedited to full
    strength; `latents/<edit>.safetensors`, tensor `latent` (N, L). Beside these `grid.png`, a row a face, unedited and
    each edit; `report.json` and `report.csv`: each attribute before and after, its change beside that of random
    directions of the same length, and how far the recogniser sees the face moved from the unedited one.

    Args:
        latent: a safetensors file with a tensor `latent`, (L,) or (N, L); or `random:N` for N faces by chance.
        attributes: `NAME=STRENGTH` each; +1 is one whole difference of means.
        out: folder for the results; made if missing.
        checkpoint: of the generator, or a YAML file that describes one (see `load_generator`); None for the one that
            the latent's file names.
        classifier: checkpoint of an AttributeClassifier.
        recognizer: see `build_recognizer`.
        count: generated faces to label; None for COUNT, or for as many as `directions` is of.
        seed: of the labelled and the random faces, and of the random directions.
        directions: a file to take directions from, or to keep them in if it does not exist yet.
        steps: pictures of a face in a strip.

    Returns:
        What `report.json` holds.

    Raises:
        CheckpointError: a checkpoint cannot be used.
        ValueError: an option is of no use; says which.
    """
    strengths = parse_attributes(attributes)
    if steps < 2:
        raise ValueError(f"--steps is {steps}, expected 2 or more: unedited and edited")
    if seed < 0:
        raise ValueError(f"--seed is {seed}, expected 0 or more")
    latents, metadata = (None, {}) if latent.startswith(RANDOM) else _read_latents(Path(latent))
    checkpoint = checkpoint or metadata.get("checkpoint")
    if checkpoint is None:
        raise ValueError(f"--checkpoint is missing, and --latent {latent} names none: give the generator's")

    device = best_device()
    meter = FaceMeter(load_model_of(AttributeClassifier, classifier, "--classifier").network, device)
    columns = {name: meter.index(name) for name in strengths}  # a misspelt name is told before anything is made
    if len(set(columns.values())) < len(columns):
        raise ValueError(f"--attribute: {' and '.join(columns)} name one attribute twice, expected each once")
    judge = build_recognizer(recognizer).to(device)
    generator = load_generator(checkpoint).to(device)
    if latents is None:
        latents = generator.sample(_random_count(latent), torch.Generator().manual_seed(seed + FACES_SEED))
    _check_latents(latents, metadata, generator, latent, checkpoint)
    found = _directions(generator, meter, count, seed, directions)

    moves = {f"{name}{strengths[name]:+g}": strengths[name] * found.vector(columns[name]) for name in strengths}
    edited = {label: [name] for label, name in zip(moves, strengths, strict=True)}
    if len(moves) > 1:
        edited["together"] = list(strengths)
        moves["together"] = torch.stack(list(moves.values())).sum(0)
    recipe: dict[str, Any] = {"checkpoint": checkpoint, "generator": generator.fingerprint(), "latent": latent}
    recipe |= {"edits": strengths, "classifier": classifier, "count": found.count, "directions_seed": found.seed}
    recipe |= {"seed": seed}
    report: dict[str, Any] = recipe | {
        "recognizer": judge.name,
        "faces": len(latents),
        "random_directions": RANDOM_MOVES,
        "results": [],
    }
    sheet = [_marked(generator, latents[:ROWS])]
    for label, move in track(moves.items(), "Editing", transient=True):
        measured = measure_edit(generator, meter, judge, latents, move, RANDOM_MOVES, seed + MOVES_SEED)
        targets = [columns[name] for name in edited[label]]
        report["results"].append(
            {"edit": label, "length": float(move.norm())}
            | {"directions": [asdict(found.about[column]) for column in targets]}
            | {"identity": _identity(measured, judge)}
            | {"attributes": _changes(measured, meter, found, targets)}
            | {"each_face": _each_face(measured, meter, targets)}
        )
        shares = [step / (steps - 1) for step in range(steps)]
        strip = [_marked(generator, latents[:ROWS] + share * move) for share in shares]
        save_synthetic(
            _sheet(strip, [f"{share:+.2f}" for share in shares]),
            out / "strips" / f"{label}.png",
            recipe | {"edit": label},
        )
        sheet.append(strip[-1])
        save_latents(out / "latents" / f"{label}.safetensors", latents + move, generator, recipe | {"edit": label})
    save_synthetic(
        _sheet(sheet, ["unedited", *(label.replace("_", " ") for label in moves)]),
        out / "grid.png",
        recipe | {"columns": ["unedited", *moves]},
    )
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    _write_table(out / "report.csv", report)
    return report


def summary(report: dict[str, Any]) -> list[str]:
    """A report's result in a line each edit and attribute that it aimed at."""
    lines = []
    for result in report["results"]:
        for change in result["attributes"]:
            if change["wanted"]:
                lines.append(
                    f"{result['edit']}: {change['attribute']} {change['before']:.3g} -> {change['after']:.3g}, "
                    f"{change['change_std']:+.2f} standard deviations "
                    f"(random directions {change['random_std_mean']:+.2f} ± {change['random_std_spread']:.2f})"
                )
        identity = result["identity"]
        known = f", {identity['same_person']:.0%} still the same person" if "same_person" in identity else ""
        lines.append(
            f"{result['edit']}: identity moved by {identity['distance']:.3f} "
            f"(random directions {identity['random_mean']:.3f} ± {identity['random_spread']:.3f}){known}"
        )
    return lines


# ------------------------------------------------------------------------------------------------------- what is given


def _random_count(latent: str) -> int:
    number = latent.removeprefix(RANDOM)
    if not number.isdecimal() or int(number) < 1:
        raise ValueError(f"--latent {latent}: expected {RANDOM}N with N of 1 or more, or a .safetensors file")
    return int(number)


def _read_latents(path: Path) -> tuple[Tensor, dict[str, str]]:
    """Latents (N, L) of a file, and its metadata."""
    if not path.is_file():
        raise ValueError(f"--latent {path}: there is no such file; expected a .safetensors file, or {RANDOM}N")
    try:
        with safe_open(path, framework="pt") as file:
            latents: Tensor = file.get_tensor("latent").float()
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"--latent {path} holds no tensor 'latent' ({error}); expected what a search writes"
        ) from error
    latents = latents[None] if latents.ndim == 1 else latents
    if latents.ndim != 2 or not len(latents) or not latents.isfinite().all():
        raise ValueError(f"--latent {path}: 'latent' is {tuple(latents.shape)}, expected (L,) or (N, L), finite")
    return latents, metadata


def _check_latents(
    latents: Tensor, metadata: dict[str, str], generator: Generator, latent: str, checkpoint: str
) -> None:
    of, own = metadata.get("generator"), generator.fingerprint()
    if of not in (None, own) or latents.shape[1] != generator.latent_dim:
        raise ValueError(
            f"--latent {latent} is of generator {of or 'unknown'}, length {latents.shape[1]}; --checkpoint "
            f"{checkpoint} is {own}, length {generator.latent_dim}: give the checkpoint that the latent was found with"
        )


def _directions(generator: Generator, meter: FaceMeter, count: int | None, seed: int, file: Path | None) -> Directions:
    if file is not None and file.exists():
        found = load_directions(file, generator, meter)
        if count not in (None, found.count):
            raise ValueError(
                f"--count is {count:,}, but --directions {file} is of {found.count:,} faces: give one of the two alone"
            )
        return found
    found = find_directions(generator, meter, COUNT if count is None else count, seed)
    if file is not None:
        found.save(file)
    return found


# ----------------------------------------------------------------------------------------------------- what is written


def _identity(measured: EditMeasure, judge: Recognizer) -> dict[str, Any]:
    """Distances from the unedited face, means over faces; and what they mean, where the recogniser is calibrated."""
    random = measured.random_distance.mean(1)  # (R,), a random edit of all faces each
    figures = standing(judge, float(measured.distance.mean()))
    figures |= {"random_mean": float(random.mean()), "random_spread": float(random.std())}
    if "threshold" in figures:
        figures["same_person"] = float((measured.distance < figures["threshold"]).float().mean())
        figures["random_same_person"] = float((measured.random_distance < figures["threshold"]).float().mean())
    return figures


def _changes(
    measured: EditMeasure, meter: FaceMeter, found: Directions, targets: Sequence[int]
) -> list[dict[str, Any]]:
    """Every attribute's mean over faces before and after, the wanted ones first."""
    std = found.std.clamp(min=1e-12)
    before, after, random = (meter.shown(each) for each in (measured.before, measured.after, measured.random_after))
    change = ((measured.after - measured.before) / std).mean(0)
    random_change = ((measured.random_after - measured.before) / std).mean(1)  # (R, K)
    random_shown = (random - before).mean(1)
    rows = []
    for column in sorted(range(len(meter.names)), key=lambda column: column not in targets):
        rows.append(
            {
                "attribute": meter.names[column],
                "wanted": column in targets,
                "before": float(before[:, column].mean()),
                "after": float(after[:, column].mean()),
                "change": float((after - before)[:, column].mean()),
                "random_change_mean": float(random_shown[:, column].mean()),
                "random_change_spread": float(random_shown[:, column].std()),
                "change_std": float(change[column]) if found.std[column] else 0.0,
                "random_std_mean": float(random_change[:, column].mean()) if found.std[column] else 0.0,
                "random_std_spread": float(random_change[:, column].std()) if found.std[column] else 0.0,
            }
        )
    return rows


def _each_face(measured: EditMeasure, meter: FaceMeter, targets: Sequence[int]) -> list[dict[str, Any]]:
    before, after = meter.shown(measured.before), meter.shown(measured.after)
    return [
        {meter.names[column]: [float(before[face, column]), float(after[face, column])] for column in targets}
        | {
            "distance": float(measured.distance[face]),
            "random_distance": float(measured.random_distance[:, face].mean()),
        }
        for face in range(len(before))
    ]


def _write_table(path: Path, report: dict[str, Any]) -> None:
    """`report.csv`: a line an edit and attribute, and one for the identity, whose "after" is its squared distance."""
    keys = ["attribute", "wanted", "before", "after", "change", "random_change_mean", "random_change_spread"]
    keys += ["change_std", "random_std_mean", "random_std_spread"]
    rows: list[list[object]] = []
    for result in report["results"]:
        identity = result["identity"]
        moved = identity["distance"]
        rows.append([result["edit"], "identity_distance", "", 0.0, moved, moved])
        rows[-1] += [identity["random_mean"], identity["random_spread"], "", "", ""]
        rows += [[result["edit"], *(change[key] for key in keys)] for change in result["attributes"]]
    shown = [[f"{value:.5g}" if isinstance(value, float) else value for value in row] for row in rows]
    write_csv(path, ["edit", *keys], shown)


def _marked(generator: Generator, latents: Tensor) -> Picture:
    """Marked faces, uint8 (N, S, S, 3)."""
    return np.stack([mark_synthetic(face) for face in faces_of(generator, latents)])


def _sheet(columns: Sequence[Picture], titles: Sequence[str]) -> Picture:
    """Columns of faces, uint8 (N, S, S, 3) each, side by side, with what each is below it."""
    faces = np.concatenate([np.concatenate(list(column), 0) for column in columns], 1)
    side = columns[0].shape[1]
    lines = ["\n".join(textwrap.wrap(title, max(1, side // 6))[:2]) for title in titles]
    return np.concatenate([faces, titled(lines, side)])
