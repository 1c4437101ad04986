"""The real photos that a protocol works with: those that a model was trained on, and prepared sets."""

import hashlib
import json
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import yaml
from PIL import Image
from rich.progress import track
from torch import Tensor

from data_modules.base import FaceDataModule
from data_modules.folder import FaceFolderDataModule
from data_modules.loader import FaceLoader
from data_modules.photos import PhotoError, read_photos
from data_modules.prepare.shards import MANIFEST
from data_modules.prepared import PreparedDataModule
from idface.checkpoints import find_checkpoint
from idface.errors import explain
from idface.modules.base import digest_of_names, digest_of_training_photos
from idface.names import whole_class_paths
from idface.recognition.base import Recognizer
from idface.run import run_of

BATCH = 256


class KnownPeople(NamedTuple):
    """Whom a model knows.

    Attributes:
        num_identities: how many.
        image_size: side of its pictures in pixels.
        digest: what tells them from others, if it is known, see `digest_of_names`.
    """

    num_identities: int
    image_size: int
    digest: str | None


class People(NamedTuple):
    """Photos and whose they are.

    Attributes:
        names: of the people.
        images: uint8 (N, 3, S, S).
        person: int64 (N,), which of the names.
    """

    names: list[str]
    images: Tensor
    person: Tensor


def training_data(checkpoint: str, given: Path | None, known: KnownPeople) -> FaceDataModule:
    """The data that a model was trained on.

    Args:
        checkpoint: what `load_model` takes; a checkpoint in a run's folder has its data in the run's `config.yaml`.
        given: that file or another recipe whose `data` it is; or a prepared set all of whose photos it was trained
            on.
        known: whom the model knows.

    Raises:
        FileNotFoundError: nothing was given and the checkpoint lies in no run.
        ValueError: the recipe has no `data`, or its people are not those whom the model knows.
    """
    given = given or _recipe_of_run(checkpoint)
    if given.is_dir():
        data: FaceDataModule = PreparedDataModule(
            str(given),
            official_split=False,
            image_size=known.image_size,
            val_identities=0,
            test_identities=0,
            held_out_photos=0,
        )
    else:
        data = data_of_recipe(given, known.image_size)
    names = data.identity_names[: data.num_identities]
    if len(names) != known.num_identities or known.digest not in (None, digest_of_names(names)):
        kind = "other people" if len(names) == known.num_identities else f"{len(names)} people"
        raise ValueError(
            f"--data {given}: the model knows {known.num_identities} people, but these data train {kind}: "
            "give the data that it was trained on, split in the same way"
            + (", such as the config.yaml of its run: of a folder, everybody is meant" if given.is_dir() else "")
        )
    return data


def photos_of_model(checkpoint: str, given: Path | None, image_size: int, digest: str | None) -> FaceDataModule:
    """The data that a model was trained on, whoever they show, with its own split.

    Args:
        checkpoint, given: as for `training_data`.
        image_size: side of the pictures in pixels.
        digest: what tells the photos that it was trained on from others, if it is known.

    Raises:
        FileNotFoundError: nothing was given and the checkpoint lies in no run.
        ValueError: the recipe has no `data`, what was given is no prepared set, or it trains on other photos.
    """
    given = given or _recipe_of_run(checkpoint)
    data = data_of(given, image_size)
    if digest is not None and digest_of_training_photos(data) != digest:
        raise ValueError(
            f"--data {given}: these data train on other photos than {checkpoint} was trained on, so what it has not "
            "seen is not known: give the config.yaml of its run, or the same set with the same shares and seed"
        )
    return data


def data_of(given: Path, image_size: int) -> FaceDataModule:
    """The data of a recipe, or a prepared set with the split that is usual.

    Raises:
        ValueError, FileNotFoundError: it is neither.
    """
    if given.is_dir():
        return PreparedDataModule(str(given), image_size=image_size)
    return data_of_recipe(given, image_size)


def _recipe_of_run(checkpoint: str) -> Path:
    run = run_of(find_checkpoint(checkpoint))
    if run is None:
        raise FileNotFoundError(
            f"{checkpoint} lies in no run's folder, so the photos that it was trained on are not known. Give "
            "--data the config.yaml of its run, or the prepared set that it was trained on"
        )
    return run / "config.yaml"


def data_of_recipe(file: Path, image_size: int | None) -> FaceDataModule:
    """The data that a recipe describes, with pictures of that side or, for None, of its own.

    Raises:
        ValueError: it describes none.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    if file.is_dir():
        raise ValueError(f"--data {file}: a folder, expected a recipe such as the config.yaml of a run")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(FaceDataModule, "data")
    try:
        recipe = whole_class_paths(yaml.safe_load(file.read_text("utf-8")))
        described = recipe.get("data") if isinstance(recipe, dict) else None
        if not isinstance(described, dict):
            raise ValueError("it has no `data`, expected a recipe such as the config.yaml of a run")
        if image_size is not None:
            described["init_args"] = {**(described.get("init_args") or {}), "image_size": image_size}
        data: FaceDataModule = parser.instantiate_classes(parser.parse_object({"data": described})).data
    except (ArgumentError, ValueError, OSError, yaml.YAMLError) as error:
        raise ValueError(f"--data {file}: {explain(str(error), ())}") from error
    return data


def training_people(data: FaceDataModule) -> People:
    """The photos that a model was trained on, without augmentation; people are numbered as the model's labels are."""
    batches = list(data.training_photos())
    images, person = (torch.cat([batch[key] for batch in batches]) for key in ("image", "identity"))
    known = person >= 0
    return People(data.identity_names[: data.num_identities], images[known], person[known])


def training_embeddings(data: FaceDataModule, recognizer: Recognizer) -> tuple[Tensor, Tensor]:
    """Embeddings (M, D) of the training photos, and their rows in the data, int64 (M,)."""
    photos = track(data.training_photos(), "Looking at training photos", transient=True)
    batches = [(recognizer.embed(batch["image"]), batch["index"]) for batch in photos]
    embeddings, rows = zip(*batches, strict=True)
    return torch.cat(embeddings), torch.cat(rows)


def held_out_people(data: FaceDataModule) -> People:
    """The photos of training people that were held out of training, gallery and all.

    Raises:
        ValueError: there are none.
    """
    found = _evaluated([*data.val_dataloader(), *data.test_dataloader()], range(data.num_identities), data)
    if found is None:
        raise ValueError("--data: no photos were held out of training: set held_out_photos of the data to 2 or more")
    return found._replace(names=found.names[: data.num_identities])


def unseen_people(data: FaceDataModule, stages: Sequence[Literal["val", "test"]] = ("test",)) -> People:
    """The photos of the people to validate or test on, whom training does not see, gallery and all.

    Raises:
        ValueError: there are none.
    """
    found = evaluated_people(data, stages)
    if found is None:
        raise ValueError("--data: there is nobody to test on: set test_identities of the data to 2 or more")
    return found


def strangers(photos: Path | None, checkpoint: str, image_size: int, digest: str | None) -> People:
    """People on whom a model was not trained: those of a prepared set, or those whom its own data hold out.

    Args:
        photos: the set; None for the people to validate and test on of the model's run.
        checkpoint, image_size, digest: as for `photos_of_model`.

    Raises:
        FileNotFoundError, ValueError: there are none.
    """
    if photos is not None:
        return people_of(photos, image_size, "--photos")
    try:
        data = photos_of_model(checkpoint, None, image_size, digest)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"--photos is missing, and {checkpoint} lies in no run whose data say who was held out: give a prepared "
            "set of people on whom it was not trained"
        ) from error
    return unseen_people(data, ("val", "test"))


def evaluated_people(data: FaceDataModule, stages: Sequence[Literal["val", "test"]] = ("val", "test")) -> People | None:
    """As `unseen_people`, or None if there are none."""
    rows = np.concatenate([data.split.unseen[stage] for stage in stages])
    wanted = set(data.split.identity[rows].tolist()) - {-1}  # the gallery has others too
    loaders = {"val": data.val_dataloader, "test": data.test_dataloader}
    found = _evaluated([loader for stage in stages for loader in loaders[stage]()], wanted, data) if wanted else None
    if found is None:
        return None
    number, person = found.person.unique(return_inverse=True)
    return People([found.names[row] for row in number.tolist()], found.images, person)


def _evaluated(loaders: Sequence[FaceLoader], wanted: Container[int], data: FaceDataModule) -> People | None:
    """The photos of people of the wanted numbers that loaders give, each once."""
    kept: dict[int, tuple[Tensor, int]] = {}
    for loader in loaders:
        for batch in loader:
            for row, image, person in zip(
                batch["index"].tolist(), batch["image"], batch["identity"].tolist(), strict=True
            ):
                if person in wanted:
                    kept[row] = image, person
    if not kept:
        return None
    images, people = zip(*(each for _, each in sorted(kept.items())), strict=True)
    return People(data.identity_names, torch.stack(images), torch.tensor(people))


def side_of(folder: Path, option: str) -> int:
    """Side of the pictures of a set that was prepared or synthesised, in pixels.

    Raises:
        ValueError: it is neither; names the option.
    """
    if (folder / MANIFEST).is_file():
        return int(json.loads((folder / MANIFEST).read_text("utf-8"))["settings"]["size"])
    for file in (folder / "faces").glob("*/*.png"):
        with Image.open(file) as image:
            return image.width
    raise ValueError(f"{option} {folder}: expected a folder that `idface synthesize` or `idface prepare` has written")


def people_of(folder: Path, image_size: int, option: str) -> People:
    """Everybody in a set that was prepared or synthesised, in either format.

    Raises:
        FileNotFoundError, ValueError: there is none, or it is not as it should be; names the option.
    """
    try:
        data: FaceDataModule
        if (folder / "faces").is_dir() and not (folder / MANIFEST).is_file():
            data = FaceFolderDataModule(folder / "faces", align=False, image_size=image_size)
        else:
            data = PreparedDataModule(str(folder), image_size=image_size)
        photos = [photo for photo in data.wanted_photos()[0] if photo.person is not None]
        read = data.reader(photos)
    except (ValueError, OSError) as error:
        raise type(error)(f"{option} {folder}: {error}") from error
    names = sorted({photo.person for photo in photos if photo.person is not None})
    number = {name: row for row, name in enumerate(names)}
    kept = [
        (pixels, number[str(photo.person)])
        for photo, pixels in zip(photos, read_photos(read, photos), strict=True)
        if not isinstance(pixels, PhotoError)
    ]
    if not kept:
        raise ValueError(f"{option} {folder}: nobody in it is known, expected a set of people with names")
    images = torch.from_numpy(np.stack([pixels for pixels, _ in kept])).permute(0, 3, 1, 2)
    return People(names, images.contiguous(), torch.tensor([person for _, person in kept]))


def digest_of(people: People) -> str:
    """Twelve hexadecimal digits that tell some photos and their people from others."""
    digest = hashlib.sha256("\n".join(people.names).encode("utf-8", "surrogateescape"))
    digest.update(people.person.numpy().tobytes())
    digest.update(people.images.contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def rows_of(person: Tensor) -> Iterator[tuple[int, Tensor]]:
    """For each number in `person`, int64 (N,), the rows where it stands."""
    numbers, counts = person.unique(return_counts=True)
    yield from zip(numbers.tolist(), person.argsort(stable=True).split(counts.tolist()), strict=True)
