"""What all data modules share: splits, loaders, and pixels on the device."""

import csv
import logging
from abc import abstractmethod
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypedDict

import albumentations
import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn

from data_modules.batch import EVALUATION_SETS, FaceBatch, to_float
from data_modules.loader import DiskImages, FaceDataset, FaceLoader, Images, MemoryImages, TrainingLoader
from data_modules.people import Names, part_excluded, part_left_out, read_names, read_photo_names
from data_modules.photos import Hint, Photo, PhotoCheck, PhotoError, PhotoReader, Rejected, progress, read_photos
from data_modules.samplers import (
    BATCH_AUGMENTATION,
    EvaluationBatches,
    SamePersonPartners,
    Shuffled,
    TrainingBatches,
    TrainingPhotos,
    TrainingSampler,
    draw_other_people,
    hash_counters,
)
from data_modules.splits import FaceSplit, Rows, split_faces
from data_modules.transforms import SampleTransforms

log = logging.getLogger(__name__)


class LoadingOptions(TypedDict, total=False):
    """The arguments of FaceDataModule that every data set passes on."""

    batch_size: int
    num_workers: int
    seed: int
    partner: bool
    sample_transforms: list[albumentations.BasicTransform] | None
    batch_transforms: list[nn.Module] | None
    memory_limit: float
    sampler: TrainingSampler | None
    exclude: Path | None
    leave_out: Path | None


class FaceOptions(LoadingOptions, total=False):
    """Those, and the arguments for a split by person."""

    val_identities: int | float
    test_identities: int | float
    held_out_photos: int
    attributes_per_query: int


class _Faces(NamedTuple):
    """A data set once it has been read."""

    photos: list[Photo]
    images: Images
    rejected: list[Rejected]
    split: FaceSplit
    labels: dict[str, Tensor]


class FaceDataModule(pl.LightningDataModule):
    """Loads a set of faces for training, validation and test.

    A data set says which photos it has (`list_photos`) and how to read one (`reader`); the rest is here. Photos are
    read when something first asks for them, `num_identities` included.

    Everything that is drawn is a function of `seed` and of a position in the run: the order of photos, partners,
    augmentation on the CPU and on the device. It does not depend on workers, and a run resumed from a checkpoint sees
    what it would have seen.

    `train_dataloader()` gives one loader, `val_dataloader()` and `test_dataloader()` a list in the order of
    EVALUATION_SETS. Loaders share the photos among the processes of a distributed run themselves; the Trainer's
    `use_distributed_sampler` has no effect on them.

    Args:
        image_size: side S of the square images, in pixels.
        batch_size: photos a batch and process; training drops what does not fill one.
        num_workers: processes that decode and augment photos. Where there is nothing of the kind to do, for a set in
            memory without `sample_transforms`, none are started: handing over a batch takes longer than making it.
        seed: of splits, order, partners and augmentation; independent of `seed_everything`.
        val_identities: people to validate on, unseen in training: a count, or a share between 0 and 1.
        test_identities: people to test on, likewise.
        held_out_photos: photos held out of each training person, one of them for the gallery. Who has fewer than twice
            as many photos only trains.
        attributes_per_query: partners, of other people, for each photo in the evaluation sets "known" and "unseen".
        partner: whether training batches carry a partner.
        sample_transforms: albumentations for single training photos, on the CPU.
        batch_transforms: modules for training batches, on the device: kornia's, or any that map float (B, 3, S, S) in
            [0, 1] to the same.
        memory_limit: GiB; a set that fits is decoded once and kept in memory, a larger one is decoded as it is loaded.
        sampler: which photos make a training batch, such as `IdentityBalanced`; None for all of them, shuffled.
        exclude: a text file of people to leave out of every use, a name a line (`idface people` writes one of another
            set): "Aaron_Eckhart" is "aaron eckhart". Who is known by a number is only found by that.
        leave_out: a text file of photos to leave out of every use, a name a line, as `idface data clean` writes it of
            those whose labels are doubtful.

    Raises:
        FileNotFoundError: there is no file `exclude` or `leave_out`.
        ValueError: an option is out of range, or one of these files is no list of names.
    """

    licence: ClassVar[str] = "not stated"
    """What the makers of the set allow, in a sentence, and where it stands."""

    def __init__(
        self,
        image_size: int = 64,
        batch_size: int = 16,
        num_workers: int = 0,
        seed: int = 0,
        val_identities: int | float = 0.1,
        test_identities: int | float = 0.1,
        held_out_photos: int = 2,
        attributes_per_query: int = 1,
        partner: bool = True,
        sample_transforms: list[albumentations.BasicTransform] | None = None,
        batch_transforms: list[nn.Module] | None = None,
        memory_limit: float = 2.0,
        sampler: TrainingSampler | None = None,
        exclude: Path | None = None,
        leave_out: Path | None = None,
    ) -> None:
        super().__init__()
        for option, value in (
            ("image_size", image_size),
            ("batch_size", batch_size),
            ("attributes_per_query", attributes_per_query),
        ):
            if value < 1:
                raise ValueError(f"{option} is {value}, expected 1 or more")
        if num_workers < 0:
            raise ValueError(f"num_workers is {num_workers}, expected 0 (no process but this one) or more")
        self.image_size = image_size
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.val_identities = val_identities
        self.test_identities = test_identities
        self.held_out_photos = held_out_photos
        self.attributes_per_query = attributes_per_query
        self.partner = partner
        self.sample_transforms = SampleTransforms(sample_transforms) if sample_transforms else None
        self.batch_transforms = nn.Sequential(*batch_transforms) if batch_transforms else None
        self.memory_limit = memory_limit
        self.sampler = sampler or Shuffled()
        self.exclude = None if exclude is None else Path(exclude).expanduser()
        self._excluded_names = {} if self.exclude is None else read_names(self.exclude)
        self.leave_out = None if leave_out is None else Path(leave_out).expanduser()
        self._left_out = frozenset() if self.leave_out is None else read_photo_names(self.leave_out)
        self._loaders: list[FaceLoader] = []
        self._train_loader: TrainingLoader | None = None
        self._train_state: dict[str, int] | None = None

    # What a data set must say.

    @abstractmethod
    def list_photos(self) -> list[Photo | Rejected]:
        """Every photo of the set, unreadable ones as well, and the files that are none; in any order."""

    @abstractmethod
    def reader(self, photos: Sequence[Photo]) -> PhotoReader:
        """What reads any of the photos at `image_size`."""

    @abstractmethod
    def find_unusable(self, photos: Sequence[Photo], read: PhotoReader) -> dict[str, str]:
        """Why photos cannot be used, by the name of each that cannot; asked of sets that do not fit in memory."""

    # What a data set may say.

    def labels(self, photos: Sequence[Photo]) -> dict[str, Tensor]:
        """What is known of each photo beside the person: float32 (N, ...) by key of a FaceBatch, NaN where unknown."""
        return {}

    def people_called(self, people: Collection[str]) -> Names:
        """The names of people whose key, `Photo.person`, is none, or not their only one."""
        return {}

    def hints(self, photos: Sequence[Photo]) -> dict[str, Hint]:
        """What the set says of where the face is, by the name of each photo of which it says anything."""
        return {}

    def check(self) -> PhotoCheck | None:
        """What refuses an upright photo by raising PhotoError, where the set has rules of its own; None if not."""
        return None

    def partition(self, photos: Sequence[Photo]) -> dict[str, str]:
        """ "train", "val" or "test" for each person, where the set comes with a split that is to be used."""
        return {}

    def split_photos(self, photos: Sequence[Photo]) -> FaceSplit:
        """Which photo is used for what; see `split_faces`."""
        if (people := len({photo.person for photo in photos} - {None})) < 2:
            raise ValueError(
                f"{type(self).__name__} found {len(photos)} usable photos of {people} known people, "
                "expected two people or more"
            )
        return split_faces(
            [photo.name for photo in photos],
            [photo.person for photo in photos],
            val_identities=self.val_identities,
            test_identities=self.test_identities,
            held_out_photos=self.held_out_photos,
            seed=self.seed,
            assigned=self.partition(photos) or None,
        )

    def verify(self) -> list[str]:
        """What is missing or damaged in the copy at hand, a sentence each; empty if nothing was found."""
        return []

    # What is known of the data.

    def wanted_photos(self) -> tuple[list[Photo], list[Rejected]]:
        """The photos by name, without excluded people's, and the files that are left out without a look at them."""
        listed = self.list_photos()
        photos = sorted(entry for entry in listed if isinstance(entry, Photo))
        rejected = [entry for entry in listed if isinstance(entry, Rejected)]
        if self.exclude is not None:
            called = self.people_called({photo.person for photo in photos if photo.person is not None})
            photos, excluded = part_excluded(photos, self._excluded_names, called, self.exclude)
            rejected += excluded  # last: what is wrong with the set is to be read first
        if self.leave_out is not None:
            photos, listed_there = part_left_out(photos, self._left_out, self.leave_out)
            rejected += listed_there
        return photos, rejected

    @cached_property
    def _faces(self) -> _Faces:
        photos, left_out_unseen = self.wanted_photos()
        total = len(photos) + len(left_out_unseen)
        read = self.reader(photos)
        images: Images
        if len(photos) * self.image_size**2 * 3 <= self.memory_limit * 2**30:
            images, reasons = self._decode(photos, read)
        else:
            reasons = self.find_unusable(photos, read)
            images = DiskImages([photo for photo in photos if photo.name not in reasons], read)
        unusable = [Rejected(photo.path, reasons[photo.name]) for photo in photos if photo.name in reasons]
        rejected = unusable + left_out_unseen
        photos = [photo for photo in photos if photo.name not in reasons]
        left_out = f"{len(rejected)} of {total} files are left out"
        left_out += "".join(f"\n  {path}: {reason}" for path, reason in rejected[:5]) + "\n  ..." * (len(rejected) > 5)
        try:
            split = self.split_photos(photos)
        except ValueError as error:
            raise ValueError(f"{error}; {left_out}") from error
        if rejected:
            log.warning("%s", left_out)
        return _Faces(photos, images, rejected, split, self.labels(photos))

    def _decode(self, photos: list[Photo], read: PhotoReader) -> tuple[MemoryImages, dict[str, str]]:
        """Read all photos; gives the readable ones, and why the others are not."""
        images = torch.empty(len(photos), self.image_size, self.image_size, 3, dtype=torch.uint8)
        reasons: dict[str, str] = {}
        results = progress(read_photos(read, photos), "Reading photos", len(photos))
        row = 0
        for photo, result in zip(photos, results, strict=True):
            if isinstance(result, PhotoError):
                reasons[photo.name] = str(result)
            else:
                images.numpy()[row] = result
                row += 1
        return MemoryImages(images[:row]), reasons

    def people(self) -> list[str]:
        """Names of everybody in the set, sorted; a person's key where no name is known. Decodes no photo."""
        people = {entry.person for entry in self.list_photos() if isinstance(entry, Photo) and entry.person is not None}
        called = self.people_called(people)
        return sorted({next(iter(called.get(person, ())), person) for person in people})

    @property
    def num_identities(self) -> int:
        """People to train on."""
        return self._faces.split.num_train

    @property
    def identity_names(self) -> list[str]:
        """Name of each `identity` in a batch: people to train on, then to validate, then to test on."""
        return self._faces.split.identity_names

    @property
    def photos(self) -> list[Photo]:
        """The photos in use; `index` in a batch counts in this list."""
        return self._faces.photos

    @property
    def split(self) -> FaceSplit:
        """Which photo is used for what."""
        return self._faces.split

    @property
    def paths(self) -> list[Path]:
        """The file of each `index` in a batch."""
        return [photo.path for photo in self._faces.photos]

    @property
    def rejected(self) -> list[Rejected]:
        """Files that were left out, and why."""
        return self._faces.rejected

    # What Lightning calls.

    def setup(self, stage: str) -> None:
        """Read the data set; `stage` is one of Lightning's. Files that are left out are listed in `rejected.csv`."""
        rejected = self._faces.rejected
        if rejected and self.trainer is not None and self.trainer.is_global_zero:
            folder = Path(self.trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "rejected.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
                csv.writer(file).writerows([Rejected._fields, *rejected])
        if stage == "fit":
            self._train_loader = self._train_state = None
            if self.batch_transforms is not None and self.trainer is not None:
                self.batch_transforms.to(self.trainer.strategy.root_device)

    def teardown(self, stage: str) -> None:
        """Stop the workers; `stage` is one of Lightning's."""
        while self._loaders:
            self._loaders.pop().close()

    def train_dataloader(self) -> TrainingLoader:
        """Batches to train on."""
        if overfit := getattr(self.trainer, "overfit_batches", 0):
            raise ValueError(
                f"trainer.overfit_batches={overfit} has no effect on this data: batches are drawn anew in every epoch. "
                "To overfit, give a data set of a few photos"
            )
        faces = self._faces
        rank, world_size = self._place()
        partners = SamePersonPartners(faces.split.train, faces.split.identity) if self.partner else None
        photos = TrainingPhotos(faces.split.train, faces.split.identity, faces.labels, type(self).__name__)
        order = self.sampler.order(photos, self.batch_size, world_size, self.seed)
        loader = TrainingLoader(
            FaceDataset(faces.images, faces.split.identity, self.seed, self.sample_transforms, faces.labels),
            TrainingBatches(order, self.batch_size, self.seed, rank, world_size, partners),
            self.num_workers if self.sample_transforms or isinstance(faces.images, DiskImages) else 0,
            self._on_gpu(),
        )
        if self.trainer is not None:
            if state := self.state_dict():
                loader.load_state_dict(state)
            self._train_loader = loader
        self._loaders.append(loader)
        return loader

    def training_photos(self) -> FaceLoader:
        """Every training photo once, on every rank alike, without partners and augmentation."""
        return self._plain_loader(EvaluationBatches(self._faces.split.train, None, self.batch_size))

    def val_dataloader(self) -> list[FaceLoader]:
        """The loaders of EVALUATION_SETS, with the people to validate on as the unseen ones."""
        return self._evaluation_loaders("val")

    def test_dataloader(self) -> list[FaceLoader]:
        """The loaders of EVALUATION_SETS, with the people to test on as the unseen ones."""
        return self._evaluation_loaders("test")

    def predict_dataloader(self) -> list[FaceLoader]:
        """The test's pairs: the loaders of the first two EVALUATION_SETS."""
        return self.test_dataloader()[:2]

    def _evaluation_loaders(self, stage: str) -> list[FaceLoader]:
        split = self._faces.split
        # Unknown people count as different ones, or nothing of them could be paired.
        person = np.where(split.identity < 0, -1 - np.arange(len(split.identity)), split.identity)
        queries = {"known": split.known[stage], "unseen": split.unseen[stage]}
        everyone = np.concatenate(list(queries.values()))
        draws: dict[str, tuple[Rows, Rows | None]] = {"gallery": (split.gallery, None)}
        for name, rows in queries.items():
            alone = len(np.unique(person[rows])) == 1  # nobody else in the set to take attributes from
            pool = everyone if alone else rows
            draws[name] = draw_other_people(rows, person, pool, self.attributes_per_query, self.seed)
        return [
            self._plain_loader(EvaluationBatches(*draws[name], self.batch_size, *self._place()))
            for name in EVALUATION_SETS
        ]

    def _plain_loader(self, batches: EvaluationBatches) -> FaceLoader:
        """Photos as they are, without augmentation."""
        faces = self._faces
        dataset = FaceDataset(faces.images, faces.split.identity, self.seed, labels=faces.labels)
        workers = self.num_workers if isinstance(faces.images, DiskImages) else 0
        loader = FaceLoader(dataset, batches, workers, self._on_gpu())
        self._loaders.append(loader)
        return loader

    def on_after_batch_transfer(self, batch: FaceBatch, dataloader_idx: int) -> FaceBatch:
        """Turn images to float32 in [-1, 1], channels-last, and apply `batch_transforms` in training."""
        keys = [key for key in ("image", "partner") if key in batch]
        images = self._normalise(torch.cat([batch[key] for key in keys])).contiguous(memory_format=torch.channels_last)
        result = FaceBatch(**batch)
        for key, image in zip(keys, images.split(len(batch["image"])), strict=True):
            result[key] = image
        return result

    def _normalise(self, images: Tensor) -> Tensor:
        trainer = self.trainer
        if self.batch_transforms is None or trainer is None or not trainer.training:
            return to_float(images)
        devices = [images.device] if images.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(
                int(hash_counters(self.seed, BATCH_AUGMENTATION, trainer.global_step, trainer.global_rank))
            )
            return self.batch_transforms(images.float() / 255).clamp(0, 1) * 2 - 1

    def state_dict(self) -> dict[str, Any]:
        """Where the run is in its data.

        Lightning restores a loader's own state only if the checkpoint was saved within an epoch; this one always.
        """
        return self._train_state or {} if self._train_loader is None else self._train_loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from where a checkpoint was saved."""
        self._train_state = state_dict

    def _place(self) -> tuple[int, int]:
        """This process's rank, and the number of processes."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _on_gpu(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
