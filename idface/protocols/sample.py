"""`idface sample`: faces of given sexes and ages (Sanche, figures 7, 9 and 10)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.progress import track

from idface.checkpoints import best_device, load_model_of
from idface.files import write_csv
from idface.latent.results import titled
from idface.modules.label_dcgan import LabelConditionedDCGAN, ages_grid
from idface.pictures import mark_synthetic, save_synthetic, to_picture
from idface.protocols.photos import warn_of_older

SEXES = {"female": -1.0, "male": 1.0}
Format = Literal["grid", "images", "folder"]
LABELS = "labels.csv"
MOST_AGES = 1000
MOST_PIXELS = 30_000
"""Height and width of a grid."""
BATCH = 256


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
        out: folder for the results; made if missing. Pictures of another sampling stay there, with a warning.
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
    model = load_model_of(LabelConditionedDCGAN, checkpoint).to(best_device())
    years = parse_ages(ages, model)
    sexes = list(dict.fromkeys(sexes))
    recipe: dict[str, Any] = {"checkpoint": checkpoint, "seed": seed}
    rows, columns = count * len(sexes), len(years)
    if format == "grid" and max(rows, columns) * model.image_size > MOST_PIXELS:
        raise ValueError(
            f"--count {count} and --age {ages}: a grid of {rows} rows and {columns} columns is larger than pictures "
            "can be; ask for fewer, or take --format images"
        )
    latents = model.fixed_latents(count, seed)
    if format == "grid":
        rows_of_sexes = [SEXES[sex] for sex in sexes]
        grid = ages_grid(model, latents, years, rows_of_sexes)
        titles = [f"{age:g}" for age in years]
        picture = np.concatenate([titled(titles, model.image_size), grid])
        save_synthetic(picture, out / "grid.png", recipe | {"sexes": list(sexes), "ages": years, "count": count})
        return [out / "grid.png"]

    folder = out / "faces" if format == "folder" else out
    written: list[tuple[str, str, float, int]] = []
    wanted = [(number, sex, year) for number in range(count) for sex in sexes for year in years]
    batches = [wanted[start : start + BATCH] for start in range(0, len(wanted), BATCH)]
    for batch in track(batches, "Making faces", transient=True, disable=len(batches) < 3):
        numbers, words, asked = zip(*batch, strict=True)
        signs = torch.tensor([SEXES[sex] for sex in words], device=latents.device)
        chosen = latents[list(numbers)]
        made = model.generate(chosen, signs, torch.tensor(asked, device=latents.device))
        for face, (number, sex, year) in zip(to_picture(made), batch, strict=True):
            name = f"{number:0{len(str(count - 1))}d}-{sex}-{year:g}.png"
            label = {"sex": sex, "age": year, "noise": number}
            save_synthetic(mark_synthetic(face), folder / name, recipe | label)
            written.append((name, sex, year, number))
    warn_of_older(out, folder, [row[0] for row in written])
    if format == "folder":
        write_csv(out / LABELS, ("file", "sex", "age", "noise"), written)
    return [folder / row[0] for row in written]


def sex_in_words(sex: float) -> str:
    """ "male" for what is above 0, else "female"."""
    return "male" if sex > 0 else "female"


def parse_ages(text: str, model: LabelConditionedDCGAN, option: str = "--age") -> list[float]:
    """Ages in years, each once: `30`, `20,40,60`, or `15:75:10` for 15, 25 ... 75.

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
            f"{option} {text}: expected an age, several as in 20,40,60, or first:last:step as in 15:75:10"
        ) from None
    ages = list(dict.fromkeys(ages))
    low, high = model.coding.youngest, model.coding.oldest
    if len(ages) > MOST_AGES:
        raise ValueError(f"{option} {text}: {len(ages)} ages, expected {MOST_AGES} at most")
    if outside := [age for age in ages if not low <= age <= high]:
        raise ValueError(f"{option} {text}: {outside[0]:g} is none of the model's ages, {low:g} to {high:g}")
    return ages
