"""`idface sample`: faces of given sexes and ages (Sanche, figures 7, 9 and 10)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.progress import track

from idface.checkpoints import CheckpointError, best_device, load_model
from idface.files import write_csv
from idface.latent.results import titled
from idface.modules.label_dcgan import LabelConditionedDCGAN, ages_grid
from idface.pictures import mark_synthetic, save_synthetic, to_picture

SEXES = {"female": -1.0, "male": 1.0}
Format = Literal["grid", "images", "folder"]
LABELS = "labels.csv"
MOST_AGES = 1000


def sample(
    checkpoint: str,
    out: Path,
    sexes: Sequence[str] = ("female", "male"),
    ages: str = "15:75:10",
    count: int = 8,
    seed: int = 0,
    format: Format = "grid",
) -> list[Path]:
    """Make faces of each sex and age, of the same noise.

    Writes into `out`, as `format` says: "grid", `grid.png`, a noise vector a row for each sex, an age a column;
    "images", a PNG each, `<noise>-<sex>-<age>.png`; "folder", the same in `faces/`, and `labels.csv` with the sex, the
    age in years and the noise of each.

    Args:
        checkpoint: of a LabelConditionedDCGAN, or `zoo:NAME`.
        out: folder for the results; made if missing.
        sexes: "female", "male" or both.
        ages: see `parse_ages`.
        count: noise vectors.
        seed: of the noise.
        format: see above.

    Returns:
        The pictures' files.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        ValueError: an option is of no use; says which.
    """
    model = load_labelled(checkpoint).to(best_device())
    years = parse_ages(ages, model)
    recipe: dict[str, Any] = {"checkpoint": checkpoint, "seed": seed}
    latents = model.fixed_latents(count, seed)
    if format == "grid":
        signs = [SEXES[sex] for sex in sexes]
        grid = ages_grid(model, latents, years, signs)
        titles = [f"{age:g}" for age in years]
        picture = np.concatenate([titled(titles, model.image_size), grid])
        save_synthetic(picture, out / "grid.png", recipe | {"sexes": list(sexes), "ages": years, "count": count})
        return [out / "grid.png"]

    folder = out / "faces" if format == "folder" else out
    rows: list[tuple[str, str, float, int]] = []
    for number, latent in enumerate(track(latents, "Making faces", transient=True, disable=count < 100)):
        for sex in sexes:
            age = torch.tensor(years, device=latent.device)
            faces = model.generate(latent.expand(len(years), -1), torch.full_like(age, SEXES[sex]), age)
            for face, year in zip(to_picture(faces), years, strict=True):
                name = f"{number:0{len(str(count - 1))}d}-{sex}-{year:g}.png"
                label = {"sex": sex, "age": year, "noise": number}
                save_synthetic(mark_synthetic(face), folder / name, recipe | label)
                rows.append((name, sex, year, number))
    if format == "folder":
        write_csv(out / LABELS, ("file", "sex", "age", "noise"), rows)
    return [folder / row[0] for row in rows]


def load_labelled(checkpoint: str) -> LabelConditionedDCGAN:
    """The model of a checkpoint, which makes faces of sexes and ages.

    Raises:
        CheckpointError: it cannot be read, or is of another model.
    """
    model = load_model(checkpoint)
    if not isinstance(model, LabelConditionedDCGAN):
        raise CheckpointError(
            f"{checkpoint} is of {type(model).__name__}, which makes no faces of a given sex and age: give a "
            "checkpoint of LabelConditionedDCGAN"
        )
    return model


def parse_ages(text: str, model: LabelConditionedDCGAN) -> list[float]:
    """Ages in years: `30`, `20,40,60`, or `15:75:10` for 15, 25 ... 75.

    Raises:
        ValueError: of another form, too many, or not among those that the model was taught.
    """
    try:
        ages: list[float] = []
        for part in text.split(","):
            bounds = [float(number) for number in part.split(":")]
            if len(bounds) == 1:
                ages += bounds
                continue
            first, last, step = bounds
            if not (step > 0 and first <= last and (last - first) / step < MOST_AGES):
                raise ValueError
            ages += [first + step * place for place in range(int((last - first) / step + 1e-9) + 1)]
    except (ValueError, OverflowError):
        raise ValueError(
            f"--age {text}: expected an age, several as in 20,40,60, or first:last:step as in 15:75:10"
        ) from None
    low, high = model.coding.youngest, model.coding.oldest
    if outside := [age for age in ages if not low <= age <= high]:
        raise ValueError(f"--age {text}: {outside[0]:g} is none of the model's ages, {low:g} to {high:g}")
    return ages
