"""`idface augment`: do synthetic faces make a better recogniser? (*Conditional face synthesis*, section 4.3, table 2.)

OUT/known/, OUT/new/        the synthetic sets, as `idface synthesize` writes them
OUT/ARM-SEED/               a trained recogniser each: light_cnn.safetensors, and result.json with its verification
OUT/augmentation.csv        the table; augmentation.json: the same with all settings; augmentation.png: a plot
"""

import hashlib
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import Trainer, seed_everything
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from data_modules.base import FaceDataModule
from data_modules.joined import JoinedDataModule
from data_modules.lfw import read_pairs
from data_modules.people import plain_name, read_names
from data_modules.photos import Photo, PhotoError, PhotoReader, Pixels
from data_modules.prepared import PreparedDataModule
from idface.callbacks.checkpoint import RunCheckpoint
from idface.checkpoints import best_device, load_model_of
from idface.files import save_tensors, write_csv, write_json
from idface.latent.scoring import is_fast_in_bfloat16
from idface.modules.cond_vaegan import CondVAEGAN
from idface.modules.recognition import LightCNNTraining
from idface.networks.light_cnn import Layers
from idface.pictures import without_mark
from idface.protocols.sources import KnownPeople, digest_of, training_data, training_people
from idface.protocols.synthesize import synthesize
from idface.protocols.verification import Place
from idface.recognition.base import distance
from idface.recognition.calibration import verify
from idface.recognition.light_cnn import LightCNN
from idface.zoo import PREFIX, zoo_names, zoo_people

log = logging.getLogger(__name__)

Arm = Literal["real", "known", "new", "classic"]

ARMS: dict[Arm, str] = {
    "real": "real photos alone",
    "known": "real photos and synthetic faces of the same people",
    "new": "real photos and synthetic faces of new people",
    "classic": "real photos, mirrored, moved, turned, brightened",
}

PUBLISHED = {
    "softmax": {"real": 92.23, "known": 93.53, "new": 93.13},
    "a second loss": {"real": 93.12, "known": 94.22, "new": 94.20},
}
"""The paper's table 2: accuracy on LFW in per cent, LightCNN-29 and Concentrate Loss, trained on FaceScrub."""


class Pairs:
    """Pairs of LFW whose people a training set does not share.

    Args:
        prepared: the prepared set of LFW.
        pairs: LFW's `pairs.txt`.
        trained: people whom any network behind the comparison has seen, however their names are written.
        image_size: side of the pictures in pixels.

    Attributes:
        shared: pairs left out, for they show somebody who was trained on.
        missing: pairs left out, for the set lacks a photo.

    Raises:
        ValueError: a file is not as it should be, too many photos are missing, or too few pairs are left.
    """

    MISSING = 0.05
    """Share of the pairs that may lack a photo, such as one in which no face was found."""

    def __init__(self, prepared: Path, pairs: Path, trained: Collection[str], image_size: int) -> None:
        everything, folds = read_pairs(pairs)
        known = {plain_name(name) for name in trained}
        apart = [row for row, (a, b) in enumerate(everything) if not {plain_name(a[0]), plain_name(b[0])} & known]
        self.shared = len(everything) - len(apart)
        data = PreparedDataModule(str(prepared), image_size=image_size)
        there = {photo.name: photo for photo in data.wanted_photos()[0]}
        read = data.reader([])
        images: dict[Place, Pixels] = {}
        lacking: list[str] = []
        for place in sorted({place for row in apart for place in everything[row]}):
            name = f"{place[0]}/{place[0]}_{place[1]:04d}.jpg"
            try:
                images[place] = read(there[name])
            except (KeyError, PhotoError):
                lacking.append(name)
        kept = [row for row in apart if all(place in images for place in everything[row])]
        self.missing = len(apart) - len(kept)
        if self.missing > self.MISSING * len(apart):
            raise ValueError(
                f"--evaluation {prepared} lacks {len(lacking)} photos of the pairs, {lacking[0]} among them: expected "
                "LFW, as `idface prepare --data lfw` writes it"
            )
        self.same = np.array([everything[row][0][0] == everything[row][1][0] for row in kept], bool)
        self.fold = folds[kept]
        if len(kept) == 0 or any(
            not (self.same[self.fold == fold] == kind).any() for fold in np.unique(folds) for kind in (True, False)
        ):
            raise ValueError(
                f"--pairs {pairs}: {len(kept)} pairs are left, and not every fold has pairs of one person and of two: "
                f"{self.shared} show somebody who was trained on"
            )
        row_of = {place: row for row, place in enumerate(images)}
        self.images = torch.from_numpy(np.stack(list(images.values()))).permute(0, 3, 1, 2).contiguous()
        self.first, self.second = (torch.tensor([row_of[everything[row][side]] for row in kept]) for side in (0, 1))

    def digest(self) -> str:
        """What tells these pairs from others."""
        told = (self.images, self.first, self.second, torch.from_numpy(self.fold))
        return hashlib.sha256(b"".join(each.numpy().tobytes() for each in told)).hexdigest()[:12]

    def accuracy(self, recognizer: LightCNN) -> tuple[float, float]:
        """Mean accuracy over the folds, each by the others' threshold, and its standard deviation; in per cent."""
        embeddings: Tensor = recognizer.embed(self.images)
        apart = distance(embeddings[self.first], embeddings[self.second]).cpu().numpy()
        result = verify(apart, self.same, self.fold)
        return 100 * result.accuracy, 100 * result.accuracy_std


class UnmarkedDataModule(PreparedDataModule):
    """A synthetic set without the invisible mark, by which a network could tell its people from real ones."""

    def reader(self, photos: Sequence[Photo]) -> PhotoReader:
        """Reads pictures from the shards and takes the mark off."""
        return UnmarkedReader(super().reader(photos))


@dataclass(frozen=True)
class UnmarkedReader:
    """Reads marked pictures and takes the mark off.

    Attributes:
        read: what reads them.
    """

    read: PhotoReader

    def __call__(self, photo: Photo) -> Pixels:
        """Read a picture as uint8 (size, size, 3)."""
        return without_mark(self.read(photo))


def augment(
    checkpoint: str,
    out: Path,
    evaluation: Path,
    pairs: Path,
    *,
    data: Path | None = None,
    arms: Sequence[Arm] = tuple(ARMS),
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = 2000,
    batch_size: int = 64,
    layers: Layers = 9,
    loss: Literal["softmax", "cosface"] = "softmax",
    learning_rate: float = 5e-4,
    per_identity: int = 200,
    mix: int = 3,
    new_identities: int = 5000,
    per_new_identity: int = 100,
    recognizer: str = "dlib",
    detect: bool = True,
    unchecked: bool = False,
    synthesis_seed: int = 0,
    exclude: Path | None = None,
    precision: str | None = None,
) -> dict[str, Any]:
    """Synthesise, train a recogniser with and without, verify: everything that is not there yet.

    All arms see the same number of batches of the same size, at the same rate, from the same start for one seed; none
    but "classic" augments photos in any other way. Batches are drawn evenly from all photos of an arm: the more
    synthetic ones there are, the fewer real ones it sees.

    Args:
        checkpoint: of a CondVAEGAN, what `load_model` takes.
        out: the folder to write, or to go on with.
        evaluation: LFW, prepared; its people are also those whom no synthetic face may be taken for.
        pairs: LFW's `pairs.txt`. Pairs that show somebody of the training set are left out.
        data: what the model was trained on, see `training_data`.
        arms: which of `ARMS`; "real" is what the others are compared with.
        seeds: of the recognisers' training; three or more for an interval.
        steps, batch_size, layers, loss, learning_rate: of the recognisers' training; see `LightCNNTraining`.
        per_identity, mix, new_identities, per_new_identity, recognizer, detect, unchecked: of the sets, see
            `synthesize`. Checked sets owe something to the recogniser that checked them, and to the one of the
            generator's loss: both have seen photos that "real" and "classic" know nothing of.
        synthesis_seed: of the sets.
        exclude: a list of more people, a name a line, whose pairs are left out: those whom the recogniser of the
            generator's loss was trained on, if they are others than the generator's. Of the zoo's recognisers they are
            known.
        precision: of training, as the Trainer takes it; None for bfloat16 where it is fast.

    Returns:
        What is in `augmentation.json`.

    Raises:
        ValueError, OSError: an argument, the checkpoint or the data are not as they should be.
    """
    if "real" not in arms or len(arms) < 2 or len(set(arms)) < len(arms):
        raise ValueError(f"--arms {' '.join(arms)}: a comparison takes 'real' and another one, each once")
    if len(seeds) < 3 or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(f"--seeds {' '.join(map(str, seeds))}: an interval takes three seeds or more, all different")
    model = load_model_of(CondVAEGAN, checkpoint)
    if "new" in arms and not 2 <= mix <= model.num_identities:
        raise ValueError(
            f"--mix is {mix}; expected 2 or more of the {model.num_identities} people whom the model knows"
        )
    known = KnownPeople(model.num_identities, model.image_size, model.people_digest)
    real = training_data(checkpoint, data, known)
    names = _names_of(real) | _names_behind(model.gradient_fingerprints)
    names |= set() if exclude is None else set(read_names(exclude).values())
    judged = Pairs(evaluation, pairs, names, model.image_size)
    log.warning(
        "%d pairs are left: %d show people of the training set, of %d a photo is missing",
        len(judged.same),
        judged.shared,
        judged.missing,
    )
    if not judged.shared:
        log.warning("no pair shows anybody of the training set: see that its people go by their names")

    sets: dict[str, Path] = {}
    common: dict[str, Any] = {"data": data, "seed": synthesis_seed, "unchecked": unchecked}
    if not unchecked:
        common |= {"evaluation": [evaluation], "recognizer": recognizer, "detect": detect}
    out.mkdir(parents=True, exist_ok=True)
    if "known" in arms:
        sets["known"] = out / "known"
        synthesize(checkpoint, sets["known"], per_identity, **common)
    if "new" in arms:
        sets["new"] = out / "new"
        synthesize(checkpoint, sets["new"], per_new_identity, mix=mix, new_identities=new_identities, **common)
    training = {
        "steps": steps,
        "batch_size": batch_size,
        "layers": layers,
        "loss": loss,
        "learning_rate": learning_rate,
        "precision": precision or _fast_precision(),
        "photos": digest_of(training_people(real)),
        "pairs": judged.digest(),
    }
    results: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    for seed in seeds:
        for arm in arms:
            synthetic = sets.get(arm)
            settings = {**training, "arm": arm, "seed": seed, "set": _told(synthetic)}
            results[arm].append(_trained(out / f"{arm}-{seed}", settings, real, synthetic, judged))
            log.warning("%s, seed %d: %.2f %%", arm, seed, results[arm][-1]["accuracy"])
    rows = table(results)
    summary = {
        "checkpoint": checkpoint,
        "training": training,
        "seeds": list(seeds),
        "pairs": len(judged.same),
        "pairs_shared": judged.shared,
        "pairs_missing": judged.missing,
        "checked_by": None if unchecked else recognizer,
        "generator": model.recipe,
        "interval": "Student's, over the recognisers' seeds; of one generator, one set of each kind, one list of pairs",
        "arms": {row["arm"]: row for row in rows},
        "published": PUBLISHED,
    }
    write_json(out / "augmentation.json", summary)
    write_csv(out / "augmentation.csv", tuple(rows[0]), [tuple(row.values()) for row in rows])
    _plot(rows, out / "augmentation.png", f"LFW, {len(judged.same):,} pairs, {len(set(seeds))} seeds")
    return summary


def table(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Accuracy of each arm, and its gain over "real": the mean of the differences of runs of one seed.

    Args:
        results: of each arm, in the order of the seeds, with `accuracy` in per cent and `training_photos`.

    Returns:
        For each arm: `accuracy`, the mean over seeds, and its standard deviation `std`; `gain` in points and the ends
        of its 95 % interval, Student's over the seeds.
    """
    base = np.array([each["accuracy"] for each in results["real"]])
    rows = []
    for arm, runs in results.items():
        accuracy = np.array([each["accuracy"] for each in runs])
        gain = accuracy - base
        half = half_interval(gain)
        mean = float(gain.mean())
        rows.append(
            {
                "arm": arm,
                "training_photos": runs[0]["training_photos"],
                "people": runs[0]["people"],
                "accuracy": float(accuracy.mean()),
                "std": float(accuracy.std(ddof=1)),
                "gain": mean,
                "gain_low": mean - half,
                "gain_high": mean + half,
            }
        )
    return rows


def half_interval(values: NDArray[np.float64]) -> float:
    """Half of Student's 95 % interval of the mean of some values (N,), two or more."""
    return float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)


def in_words(summary: Mapping[str, Any]) -> list[str]:
    """The table as lines."""
    lines = [
        f"LFW, {summary['pairs']:,} pairs ({summary['pairs_shared']:,} of people trained on and "
        f"{summary['pairs_missing']:,} without a photo left out), seeds {summary['seeds']}"
    ]
    for arm, row in summary["arms"].items():
        gain = (
            "" if arm == "real" else f"  {row['gain']:+.2f} points ({row['gain_low']:+.2f} to {row['gain_high']:+.2f})"
        )
        lines.append(f"{arm:8} {row['training_photos']:8,} photos  {row['accuracy']:.2f} ± {row['std']:.2f} %{gain}")
    return lines


def _names_of(data: FaceDataModule) -> set[str]:
    """What the people to train on are called."""
    people = data.identity_names[: data.num_identities]
    called = data.people_called(set(people))
    return {name for person in people for name in (person, *called.get(person, ()))}


def _names_behind(losses: Collection[str]) -> set[str]:
    """What those are called on whom recognisers of the zoo were trained that were losses, by their fingerprints."""
    if not losses:
        return set()
    people = {f"{PREFIX}{name}": file for name in zoo_names() if (file := zoo_people(name))}
    behind = [file for name, file in people.items() if LightCNN(name).fingerprint() in losses]
    return {name for file in behind for name in read_names(file).values()}


def _trained(
    folder: Path, settings: Mapping[str, Any], real: FaceDataModule, synthetic: Path | None, judged: Pairs
) -> dict[str, Any]:
    """Train one recogniser and verify it, unless that was done."""
    file = folder / "result.json"
    if file.is_file():
        before: dict[str, Any] = json.loads(file.read_text("utf-8"))
        if before["settings"] != settings:
            changed = [key for key, value in settings.items() if before["settings"].get(key) != value]
            raise ValueError(f"{folder} was made with another {', '.join(changed)}: give another --out")
        return before
    seed = settings["seed"]
    size = real.image_size
    sets = [real] if synthetic is None else [real, UnmarkedDataModule(str(synthetic), image_size=size)]
    data = JoinedDataModule(
        sets,
        image_size=size,
        batch_size=settings["batch_size"],
        seed=seed,
        partner=False,
        batch_transforms=classic_transforms() if settings["arm"] == "classic" else None,
    )
    seed_everything(seed, verbose=False)
    steps = settings["steps"]
    model = LightCNNTraining(
        data.num_identities,
        settings["layers"],
        settings["loss"],
        optimizer=lambda p: torch.optim.AdamW(p, lr=settings["learning_rate"], weight_decay=0.05),
        scheduler=lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, steps),
    )
    checkpoint = RunCheckpoint(folder, save_last=True, every_n_train_steps=max(50, steps // 10))
    trainer = Trainer(
        max_steps=steps,
        precision=settings["precision"],
        devices=1,
        logger=False,
        callbacks=[checkpoint],
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    last = folder / "last.ckpt"
    begun = folder / "begun.json"
    if last.exists() and (not begun.exists() or json.loads(begun.read_text("utf-8")) != dict(settings)):
        last.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    write_json(begun, settings)
    try:
        trainer.fit(model, data, ckpt_path=last if last.exists() else None)
    except SystemExit as error:  # how the Trainer passes on that it was interrupted
        raise KeyboardInterrupt from error
    weights = folder / "light_cnn.safetensors"
    state = model.trained("network").state_dict()
    save_tensors({f"network.{name}": value.cpu().contiguous() for name, value in state.items()}, weights)
    accuracy, std = judged.accuracy(LightCNN(weights, settings["layers"]).to(model.device))
    result = {
        "settings": dict(settings),
        "accuracy": accuracy,
        "std_over_folds": std,
        "people": data.num_identities,
        "training_photos": len(data.split.train),
    }
    write_json(file, result)
    for done in (begun, *folder.glob("*.ckpt")):
        done.unlink()
    return result


def classic_transforms() -> list[nn.Module]:
    """What the paper calls traditional augmentation: mirrored, moved, turned, cropped; and light."""
    from kornia.augmentation import ColorJiggle, RandomAffine, RandomHorizontalFlip

    return [
        RandomHorizontalFlip(p=0.5),
        RandomAffine(degrees=10.0, translate=(0.06, 0.06), scale=(0.9, 1.15), padding_mode="reflection", p=0.8),
        ColorJiggle(0.2, 0.2, 0.2, 0.02, p=0.5),
    ]


def _told(synthetic: Path | None) -> Any:
    """What tells one synthetic set from another."""
    if synthetic is None:
        return None
    return json.loads((synthetic / "synthesis.json").read_text("utf-8"))["settings"]


def _fast_precision() -> str:
    return "bf16-mixed" if is_fast_in_bfloat16(best_device()) else "32-true"


def _plot(rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    others = [row for row in rows if row["arm"] != "real"]
    gains = [row["gain"] for row in others]
    ends = np.abs([[row["gain"] - row["gain_low"], row["gain_high"] - row["gain"]] for row in others]).T
    axes.errorbar(gains, range(len(others)), xerr=ends, fmt="o", capsize=4)
    axes.axvline(0, color="0.6", linewidth=0.8)
    axes.set_yticks(range(len(others)), [row["arm"] for row in others])
    axes.set_xlabel("gain over real photos alone, points (95 % interval)")
    axes.set_title(title, fontsize=9)
    axes.margins(y=0.3)
    figure.savefig(path, dpi=150)
