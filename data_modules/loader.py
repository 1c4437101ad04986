"""From drawn rows to batches, in this process or in workers."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from data_modules.batch import FaceBatch
from data_modules.photos import ManyReader, Photo, PhotoError, PhotoReader, Pixels
from data_modules.samplers import SAMPLE_AUGMENTATION, Draw, TrainingBatches, hash_counters
from data_modules.splits import Rows
from data_modules.transforms import SampleTransforms

log = logging.getLogger(__name__)


class Images(Protocol):
    """The pixels of a data set."""

    def gather(self, rows: Rows) -> tuple[Pixels, NDArray[np.bool_]]:
        """Photos as uint8 (B, S, S, 3), and (B,) which of them could be read."""


class MemoryImages:
    """Photos decoded beforehand: a batch is one indexing.

    Args:
        images: uint8 (N, S, S, 3).
    """

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def gather(self, rows: Rows) -> tuple[Pixels, NDArray[np.bool_]]:
        """Photos as uint8 (B, S, S, 3), all of them good."""
        # NumPy copies a batch in microseconds; PyTorch would wake its threads, milliseconds where the cores are busy.
        return self.images.numpy()[rows], np.ones(len(rows), np.bool_)


class DiskImages:
    """Photos decoded when they are asked for.

    Args:
        photos: the N photos, each known to have been readable once.
        read: reads one.
    """

    def __init__(self, photos: Sequence[Photo], read: PhotoReader) -> None:
        self.photos = photos
        self.read = read

    def gather(self, rows: Rows) -> tuple[Pixels, NDArray[np.bool_]]:
        """Photos as uint8 (B, S, S, 3), and (B,) which of them could be read; the others are black."""
        photos = [self.photos[row] for row in rows]
        read = self.read.read_many(photos) if isinstance(self.read, ManyReader) else [*map(self._attempt, photos)]
        for photo, image in zip(photos, read, strict=True):
            if isinstance(image, PhotoError):
                log.warning("%s cannot be read any more (%s): another photo takes its place", photo.path, image)
        good = np.array([not isinstance(image, PhotoError) for image in read])
        black = np.zeros_like(
            next((image for image in read if not isinstance(image, PhotoError)), np.empty(0, np.uint8))
        )
        return np.stack([black if isinstance(image, PhotoError) else image for image in read]), good

    def _attempt(self, photo: Photo) -> Pixels | PhotoError:
        try:
            return self.read(photo)
        except PhotoError as error:
            return error


class FaceDataset(Dataset[FaceBatch]):
    """Whole batches by their draws.

    Args:
        images: the pixels.
        identity: (N,) person of every row.
        seed: of the augmentation.
        transforms: augmentation of single photos; image and partner are augmented independently.
        labels: (N, ...) what else is known of every row, by its key in a batch.
    """

    def __init__(
        self,
        images: Images,
        identity: Rows,
        seed: int,
        transforms: SampleTransforms | None = None,
        labels: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.images = images
        self.identity = identity
        self.seed = seed
        self.transforms = transforms
        self.labels = labels or {}

    def __getitem__(self, draw: Draw) -> FaceBatch:
        """The batch of a draw. In place of what cannot be read any more, others of the batch come twice."""
        roles = [draw.rows] if draw.partners is None else [draw.rows, draw.partners]
        gathered = [self.images.gather(rows) for rows in roles]
        good = np.logical_and.reduce([readable for _, readable in gathered])
        images = [pixels for pixels, _ in gathered]
        if not good.any():
            raise OSError("Not one photo of a batch can be read any more: has the data set's folder gone?")
        if not good.all():
            chosen = np.arange(len(good))
            chosen[~good] = np.resize(np.flatnonzero(good), np.count_nonzero(~good))
            roles, images = [rows[chosen] for rows in roles], [pixels[chosen] for pixels in images]
        batch: FaceBatch = {
            "image": self._finish(images[0], roles[0], draw.epoch, 0),
            "identity": torch.from_numpy(self.identity[roles[0]]),
            "index": torch.from_numpy(roles[0]),
        }
        for key, column in self.labels.items():
            batch[key] = column[roles[0]]  # type: ignore[literal-required]
        if draw.partners is not None:
            batch["partner"] = self._finish(images[1], roles[1], draw.epoch, 1)
            batch["partner_identity"] = torch.from_numpy(self.identity[roles[1]])
            batch["partner_index"] = torch.from_numpy(roles[1])
        return batch

    def _finish(self, images: Pixels, rows: Rows, epoch: int, role: int) -> Tensor:
        if self.transforms is not None:
            seeds = hash_counters(self.seed, SAMPLE_AUGMENTATION, epoch, role, rows)
            images = np.stack([self.transforms(image, int(seed)) for image, seed in zip(images, seeds, strict=True)])
        return torch.from_numpy(images).permute(0, 3, 1, 2)  # (B, 3, S, S), channels-last in memory


class FaceLoader:
    """Loads batches, one epoch an iteration.

    It is not a DataLoader but holds one: Lightning would want to put its own sampler into a DataLoader.

    Args:
        dataset: gives a batch for a draw.
        batches: the draws.
        num_workers: processes that load; 0 loads in this one.
        pin_memory: whether to copy batches into page-locked memory, for a GPU.
    """

    def __init__(
        self, dataset: FaceDataset, batches: Sampler[Draw], num_workers: int = 0, pin_memory: bool = False
    ) -> None:
        self.batches = batches
        self._loader: DataLoader[FaceBatch] = DataLoader(
            dataset,
            batch_size=None,  # a draw is a whole batch
            sampler=batches,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            worker_init_fn=_one_thread,
            generator=torch.Generator(),  # else each epoch draws a seed from the training's own random numbers
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[FaceBatch]:
        yield from self._loader

    def close(self) -> None:
        """Stop the workers. Left to the garbage collector, they may be waited for for seconds each."""
        iterator = self._loader._iterator
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            iterator._shutdown_workers()
            self._loader._iterator = None


class TrainingLoader(FaceLoader):
    """A loader that goes on where it stopped: in its next iteration, and from a checkpoint.

    The position is a number of batches since the start of the run, not an epoch and a batch: Lightning's count of
    epochs is off by one or two after it resumes at the end of an epoch under `max_steps`. Under `limit_train_batches`
    one iteration takes up where the last was cut off, so that every photo still comes up.
    """

    batches: TrainingBatches

    def __iter__(self) -> Iterator[FaceBatch]:
        for batch in self._loader:
            self.batches.position += 1  # as batches leave, not as they are drawn: workers draw ahead
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The batches given so far, and how many make an epoch."""
        return {"position": self.batches.position, "batches_per_epoch": len(self)}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from a state; if an epoch has another length by now, from about the same point, with a warning."""
        position = state["position"]
        if state["batches_per_epoch"] != len(self):
            position = round(position / state["batches_per_epoch"] * len(self))
            log.warning(
                "The checkpoint was saved with %d batches an epoch, now there are %d (another batch size, number of "
                "processes, sampler or set of photos): the order of photos is not the one that the run would have had.",
                state["batches_per_epoch"],
                len(self),
            )
        self.batches.position = position


def _one_thread(worker: int) -> None:
    cv2.setNumThreads(0)  # PyTorch limits its own threads in a worker, OpenCV does not
