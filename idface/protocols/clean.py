"""`idface data clean`: photos whose sex or age is labelled wrongly, as cross-validated predictions see it.

Sanche (sections 4 and 7): one label of IMDB-WIKI in fifty is wrong, which he takes for a reason why ages failed.
"""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from lightning.pytorch import Trainer, seed_everything
from PIL import Image
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data_modules.base import FaceDataModule
from data_modules.batch import FaceBatch, labels_of, to_float
from idface.checkpoints import best_device
from idface.files import whole_file, write_csv, write_json
from idface.modules.age_sex import AgeSexTraining
from idface.networks.age_sex import YEARS, expected_age
from idface.protocols.sample import sex_in_words
from idface.protocols.sources import data_of

SIDE = 64
"""Pixels at which photos are looked at."""
BATCH = 64
MOST_SHOWN = 500
"""Photos on the page; the table has all that are flagged."""
PASSES = 8
"""Of a training over the photos, if nothing else is said."""
WRONG_BY = 20.0
"""Years by which a planted age differs at least from the label."""
NEAR = 5
"""Years to either side of a label that speak for it."""

LIST, TABLE, PAGE = "leave-out.txt", "flagged.csv", "review.html"


class LabelledPhotos(NamedTuple):
    """Photos of known sex and age.

    Attributes:
        names: what the data set calls each.
        images: uint8 (N, 3, S, S).
        person: int64 (N,), -1 unknown.
        sex: (N,), -1 female, 1 male.
        age: (N,), years.
    """

    names: list[str]
    images: Tensor
    person: Tensor
    sex: Tensor
    age: Tensor


class Predicted(NamedTuple):
    """What networks say of photos that they were not trained on.

    Attributes:
        male: logits (N,).
        years: logits (N, 101).
    """

    male: Tensor
    years: Tensor


def clean(
    data: Path,
    out: Path,
    folds: int = 5,
    steps: int | None = None,
    share: float = 0.05,
    plant: float = 0.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Flag the photos whose labels are least likely by networks that were trained without them.

    Photos are parted into folds, those of a person into one. For each fold a network is trained on the others
    (`AgeSexTraining`), and says how likely the fold's labels are; its confidence is corrected by one temperature for
    sexes and one for ages, which make all labels as likely as they can be. Flagged are the labels that are least
    likely beside the likeliest ones of the same photo.

    Writes into `out`: `flagged.csv`, the flagged photos, the worst first, with labels and what was seen;
    `leave-out.txt`, their names, which every data module leaves out when it is given as `leave_out`; `review.html`,
    their pictures, to reject or keep each, and to save the list that comes of it; `report.json`. With planted labels
    there is neither list nor page: some of their photos are labelled rightly in the set.

    Args:
        data: a recipe with its data, or a prepared set.
        out: folder for the results; made if missing.
        folds: parts, 2 or more.
        steps: batches of 64 of each training; None for eight times all photos, and 300 at least.
        share: of the photos, how many to flag.
        plant: share of the photos to give a wrong label first, to see how many of them are found; half of these get the
            other sex, half an age at least 20 years off.
        seed: of folds, trainings and what is planted.

    Returns:
        What `report.json` holds.

    Raises:
        ValueError: an option is of no use, or the data has no photos of known sex and age.
    """
    if folds < 2:
        raise ValueError(f"--folds is {folds}, expected 2 or more: labels are judged by networks trained without them")
    if not 0 < share < 1:
        raise ValueError(f"--share is {share:g}, expected a share of the photos between 0 and 1")
    if not 0 <= plant < 1:
        raise ValueError(f"--plant is {plant:g}, expected a share of the photos between 0 and 1")
    try:
        photos = labelled_photos(data_of(data, SIDE))
    except ValueError as error:
        raise ValueError(f"--data {data}: {str(error).removeprefix('--data: ')}") from error
    if len(photos.names) < 10 * folds:
        found = f"{len(photos.names)} photos of known sex and age"
        raise ValueError(f"--data {data}: {found}, expected {10 * folds} or more for {folds} folds")
    planted = torch.zeros(len(photos.names), dtype=torch.bool)
    given = photos
    if plant:
        photos, planted = plant_errors(photos, plant, seed)
    steps = steps or max(300, PASSES * len(photos.names) // BATCH)
    predicted = cross_validated(photos, folds, steps, seed, out)
    doubt = doubts(predicted, photos.sex, photos.age)
    flagged = doubt.argsort(descending=True)[: max(1, round(share * len(doubt)))]

    sex_seen, age_seen = predicted.male > 0, expected_age(predicted.years)
    report: dict[str, Any] = {"data": str(data), "photos": len(photos.names), "folds": folds, "steps": steps}
    report |= {"seed": seed, "flagged": len(flagged)}
    report |= {
        "age_error": float((age_seen - given.age).abs().mean()),
        "sex_accuracy": float((sex_seen == (given.sex > 0)).float().mean()),
    }
    if plant:
        count = int(planted.sum())
        first = doubt.argsort(descending=True)[:count]
        report["planted"] = {
            "photos": count,
            "found": int(planted[flagged].sum()),
            "among_as_many_worst": int(planted[first].sum()),
        }
    out.mkdir(parents=True, exist_ok=True)
    rows = [
        (
            photos.names[row],
            sex_in_words(float(photos.sex[row])),
            round(float(photos.age[row]), 1),
            sex_in_words(float(sex_seen[row])),
            round(float(age_seen[row]), 1),
            round(float(doubt[row]), 2),
            *([bool(planted[row])] if plant else []),
        )
        for row in flagged.tolist()
    ]
    header = ("photo", "sex", "age", "sex_seen", "age_seen", "doubt", *(["planted"] if plant else []))
    write_csv(out / TABLE, header, rows)
    for name in (LIST, PAGE):
        (out / name).unlink(missing_ok=True)
    write_json(out / "report.json", report)
    if plant:
        return report
    about = f"# Photos whose labels `idface data clean` doubts, the worst first: {len(rows)} of {len(photos.names)}."
    with whole_file(out / LIST) as file:
        file.write_text("\n".join([about, *(str(row[0]) for row in rows)]) + "\n", "utf-8")
    _write_page(out / PAGE, rows, photos.images[flagged], str(data))
    return report


def in_words(report: dict[str, Any]) -> list[str]:
    """What a report says."""
    lines = [
        f"{report['flagged']:,} of {report['photos']:,} photos are flagged. Predictions are {report['age_error']:.1f} "
        f"years off the labels on average, and agree on {report['sex_accuracy']:.1%} of the sexes"
    ]
    if "planted" in report:
        found = report["planted"]
        lines.append(
            f"Of {found['photos']:,} wrong labels that were planted, {found['found']:,} are flagged "
            f"({found['among_as_many_worst']:,} among as many of the worst)"
        )
    return lines


def labelled_photos(data: FaceDataModule) -> LabelledPhotos:
    """Every photo of known sex and age, whatever the data's split uses it for."""
    total = len(data.photos)
    images = torch.empty(total, 3, data.image_size, data.image_size, dtype=torch.uint8)
    person, sex, age = torch.full((total,), -1), torch.full((total,), torch.nan), torch.full((total,), torch.nan)
    for loader in (data.training_photos(), *data.val_dataloader(), *data.test_dataloader()):
        for batch in loader:
            rows = batch["index"]
            images[rows], person[rows] = batch["image"], batch["identity"]
            sex[rows], age[rows] = labels_of(batch)
    known = ((sex.abs() == 1) & ~age.isnan()).nonzero()[:, 0]
    if not len(known):
        raise ValueError("no photo is of known sex and age")
    names = [data.photos[row].name for row in known.tolist()]
    return LabelledPhotos(names, images[known], person[known], sex[known], age[known])


def plant_errors(photos: LabelledPhotos, share: float, seed: int) -> tuple[LabelledPhotos, Tensor]:
    """Give some photos a wrong label; also bool (N,), which."""
    noise = torch.Generator().manual_seed(seed)
    count = len(photos.names)
    chosen = torch.randperm(count, generator=noise)[: round(share * count)]
    sex, age = photos.sex.clone(), photos.age.clone()
    others, aged = chosen[::2], chosen[1::2]
    sex[others] = -sex[others]
    for row in aged.tolist():
        far = ((photos.age - photos.age[row]).abs() >= WRONG_BY).nonzero()[:, 0]
        if not len(far):
            raise ValueError(f"--plant: no age is {WRONG_BY:g} years from {photos.age[row]:g}: there is no wrong one")
        age[row] = photos.age[far[torch.randint(len(far), (), generator=noise)]]
    planted = torch.zeros(count, dtype=torch.bool)
    planted[chosen] = True
    return photos._replace(sex=sex, age=age), planted


def cross_validated(photos: LabelledPhotos, folds: int, steps: int, seed: int, out: Path) -> Predicted:
    """What networks say of each photo that were trained on the other folds."""
    fold = fold_of(photos.person, folds, seed)
    male, years = torch.empty(len(fold)), torch.empty(len(fold), YEARS)
    for number in track(range(folds), "Training", transient=True):
        inside = fold == number
        model = _train(photos, (~inside).nonzero()[:, 0], steps, seed * folds + number, out)
        network = model.trained("network").to(best_device()).eval()
        rows = inside.nonzero()[:, 0]
        with torch.no_grad():
            for part in rows.split(4 * BATCH):
                logits = network(to_float(photos.images[part]).to(best_device()))
                male[part], years[part] = (each.cpu() for each in logits)
    return Predicted(male, years)


def fold_of(person: Tensor, folds: int, seed: int) -> Tensor:
    """The fold, int64 (N,), of each photo; all of a known person's (N,) in one, unknown ones (-1) each for itself."""
    alone = torch.where(person < 0, -1 - torch.arange(len(person)), person)
    people, number = alone.unique(return_inverse=True)
    return torch.randperm(len(people), generator=torch.Generator().manual_seed(seed))[number] % folds


def doubts(predicted: Predicted, sex: Tensor, age: Tensor) -> Tensor:
    """How much less likely each label is than the likeliest one of its photo, (N,): a logarithm, 0 or more.

    The likelihood of an age is the mean chance of the years near it. Beside the likeliest one, or labels of the old, of
    whose ages nobody is sure, would be doubted most.
    """
    male, logits = predicted
    label = torch.arange(len(age)), age.round().long().clamp(0, YEARS - 1)
    heat_of_sex = min(_temperatures(), key=lambda heat: float(_unlikely_sex(male / heat, sex).mean()))
    heat_of_age = min(_temperatures(), key=lambda heat: float(_unlikely_ages(logits / heat)[label].mean()))
    of_ages = _unlikely_ages(logits / heat_of_age)
    return torch.relu(-male / heat_of_sex * sex) + of_ages[label] - of_ages.min(1).values


def _temperatures() -> list[float]:
    return [2 ** (step / 4) for step in range(-8, 17)]


def _unlikely_sex(male: Tensor, sex: Tensor) -> Tensor:
    return torch.nn.functional.softplus(-male * sex)


def _unlikely_ages(logits: Tensor) -> Tensor:
    """Minus the logarithm of the mean chance of the years near each age, (N, 101)."""
    chances = torch.nn.functional.avg_pool1d(
        logits.softmax(1)[:, None], 2 * NEAR + 1, stride=1, padding=NEAR, count_include_pad=False
    )
    return -chances[:, 0].clamp(min=1e-12).log()


class _Photos(Dataset[FaceBatch]):
    """Batches of some photos, half of them in the mirror."""

    def __init__(self, photos: LabelledPhotos, rows: Tensor) -> None:
        self.photos = photos
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, chosen: list[int]) -> FaceBatch:
        rows = self.rows[chosen]
        image = to_float(self.photos.images[rows])
        image = torch.where(torch.rand(len(rows), 1, 1, 1) < 0.5, image, image.flip(-1))
        batch = {"image": image, "identity": self.photos.person[rows], "index": rows}
        return {**batch, "sex": self.photos.sex[rows], "age": self.photos.age[rows]}  # type: ignore[typeddict-item]


def _train(photos: LabelledPhotos, rows: Tensor, steps: int, seed: int, out: Path) -> AgeSexTraining:
    seed_everything(seed, verbose=False)
    model = AgeSexTraining(
        scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps), ema_decay=0.99
    )
    batch = min(BATCH, len(rows))
    loader = DataLoader(_Photos(photos, rows), batch, shuffle=True, drop_last=True, collate_fn=lambda batch: batch)
    trainer = Trainer(
        max_steps=steps,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        default_root_dir=out,
    )
    try:
        trainer.fit(model, loader)
    except SystemExit as error:  # how the Trainer passes on that it was interrupted
        raise KeyboardInterrupt from error
    return model


def _write_page(file: Path, rows: Sequence[Sequence[Any]], images: Tensor, data: str) -> None:
    environment = Environment(
        loader=PackageLoader("idface.protocols"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    shown = [
        dict(zip(("photo", "sex", "age", "sex_seen", "age_seen"), row[:5], strict=True)) | {"picture": _embedded(image)}
        for row, image in zip(rows[:MOST_SHOWN], images.movedim(1, -1).numpy(), strict=False)
    ]
    rest = [str(row[0]) for row in rows[MOST_SHOWN:]]
    page = environment.get_template("review.html.j2").render(shown=shown, rest=rest, data=data, list=LIST)
    with whole_file(file) as unfinished:
        unfinished.write_text(page, "utf-8")


def _embedded(picture: np.ndarray) -> str:
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
