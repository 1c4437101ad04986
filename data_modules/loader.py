"""From drawn rows to batches, in this process or in workers."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from data_modules.batch import FaceBatch
from data_modules.photos import Photo, PhotoReader
from data_modules.samplers import SAMPLE_AUGMENTATION, Draw, TrainingBatches, hash_counters
from data_modules.splits import Rows
from data_modules.transforms import SampleTransforms

log = logging.getLogger(__name__)


class Images(Protocol):
    """The pixels of a data set."""

    def gather(self, rows: Rows) -> Tensor:
        """Photos as uint8 (B, S, S, 3)."""


class MemoryImages:
    """Photos decoded beforehand: uint8 (N, S, S, 3), so that a batch is one indexing and channels-last already."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def gather(self, rows: Rows) -> Tensor:
        """Photos as uint8 (B, S, S, 3)."""
        return self.images[torch.from_numpy(rows)]


class DiskImages:
    """Photos decoded when they are asked for."""

    def __init__(self, photos: Sequence[Photo], read: PhotoReader) -> None:
        self.photos = photos
        self.read = read

    def gather(self, rows: Rows) -> Tensor:
        """Photos as uint8 (B, S, S, 3)."""
        return torch.stack([torch.from_numpy(self.read(self.photos[row])) for row in rows])


class FaceDataset(Dataset[FaceBatch]):
    """Whole batches by their draws.

    Args:
        images: the pixels.
        identity: (N,) person of every row.
        seed: of the augmentation.
        transforms: augmentation of single photos; image and partner are augmented independently.
    """

    def __init__(self, images: Images, identity: Rows, seed: int, transforms: SampleTransforms | None = None) -> None:
        self.images = images
        self.identity = torch.from_numpy(identity)
        self.seed = seed
        self.transforms = transforms

    def __getitem__(self, draw: Draw) -> FaceBatch:
        rows = torch.from_numpy(draw.rows)
        batch: FaceBatch = {
            "image": self._load(draw.rows, draw.epoch, 0),
            "identity": self.identity[rows],
            "index": rows,
        }
        if draw.partners is not None:
            partners = torch.from_numpy(draw.partners)
            batch["partner"] = self._load(draw.partners, draw.epoch, 1)
            batch["partner_identity"] = self.identity[partners]
            batch["partner_index"] = partners
        return batch

    def _load(self, rows: Rows, epoch: int, role: int) -> Tensor:
        images = self.images.gather(rows)  # (B, S, S, 3)
        if self.transforms is not None:
            for image, seed in zip(
                images.numpy(), hash_counters(self.seed, SAMPLE_AUGMENTATION, epoch, role, rows), strict=True
            ):
                image[:] = self.transforms(image, int(seed))
        return images.permute(0, 3, 1, 2)  # (B, 3, S, S), channels-last in memory


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
        self._loader: DataLoader[FaceBatch] = DataLoader(
            dataset,
            batch_size=None,  # a draw is a whole batch
            sampler=batches,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            worker_init_fn=_one_thread,
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[FaceBatch]:
        yield from self._loader


class TrainingLoader(FaceLoader):
    """A loader that goes on where it stopped: in its next iteration, and from a checkpoint.

    The position is a number of batches since the start of the run, not an epoch and a batch: Lightning's count of
    epochs is off by one or two after it resumes at the end of an epoch under `max_steps`. Under `limit_train_batches`
    one iteration takes up where the last was cut off, so that every photo still comes up.
    """

    def __init__(
        self, dataset: FaceDataset, batches: TrainingBatches, num_workers: int = 0, pin_memory: bool = False
    ) -> None:
        super().__init__(dataset, batches, num_workers, pin_memory)
        self._batches = batches

    def __iter__(self) -> Iterator[FaceBatch]:
        for batch in self._loader:
            self._batches.position += 1  # as batches leave, not as they are drawn: workers draw ahead
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The batches given so far, and how many make an epoch."""
        return {"position": self._batches.position, "batches_per_epoch": len(self)}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from a state; if an epoch has another length by now, from about the same point, with a warning."""
        position = state["position"]
        if state["batches_per_epoch"] != len(self):
            position = round(position / state["batches_per_epoch"] * len(self))
            log.warning(
                "The checkpoint was saved with %d batches an epoch, now there are %d (another batch size, number of "
                "processes or set of photos): the order of photos is not the one that the run would have had.",
                state["batches_per_epoch"],
                len(self),
            )
        self._batches.position = position


def _one_thread(worker: int) -> None:
    cv2.setNumThreads(0)  # PyTorch limits its own threads in a worker, OpenCV does not
