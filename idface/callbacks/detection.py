"""The curve of Sanche's figure 8: in how many generated faces a detector finds one, during training."""

import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, runtime_checkable

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor

from data_modules.batch import EVALUATION_SETS
from idface.metrics.detection import find_faces_aside
from idface.pictures import Picture, to_picture


@runtime_checkable
class MakesRandomFaces(Protocol):
    """A module whose faces can be counted during training."""

    def random_faces(self, count: int, part: int) -> Tensor:
        """Float (count, 3, S, S) in [-1, 1], of noise and labels by chance; others for another part."""


class DetectionCurve(Callback):
    """Logs `train/detection/cascades`: the share of generated faces in which `find_faces` finds one.

    The faces are those of `random_faces`, by the averaged weights where there are any. They are made between two
    batches, and looked at by threads while training goes on; so a figure may be logged some batches after the one that
    it is of, and under the number of that one. Beside it, once at the beginning, `train/detection/cascades_real`: the
    share of as many photos that the data hold out for validation, where there are any.

    Args:
        every: batches between two figures (the paper's 100).
        faces: how many are looked at for one (the paper's 300).

    Raises:
        ValueError: one of them is below 1.
    """

    def __init__(self, every: int = 100, faces: int = 300) -> None:
        if every < 1 or faces < 1:
            raise ValueError(f"every is {every} and faces {faces}, expected 1 or more of each")
        self.every = every
        self.faces = faces
        self._threads = max(1, len(os.sched_getaffinity(0)) // 2) if hasattr(os, "sched_getaffinity") else 1
        self._pending: dict[tuple[int, str], list[Future[NDArray[np.bool_]]]] = {}
        self._pool: ThreadPoolExecutor | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See that there are faces to look at.

        Raises:
            TypeError: the model makes none from noise alone.
        """
        if not isinstance(pl_module, MakesRandomFaces):
            raise TypeError(
                f"DetectionCurve counts faces made of noise, which {type(pl_module).__name__} does not make: "
                "take it out of trainer.callbacks"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the figure of real photos."""
        if trainer.is_global_zero and len(photos := self._held_out(trainer)):
            self._look_at(photos, trainer.global_step, "cascades_real")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Begin a figure if it is time, and log those that are ready."""
        batches = trainer.global_step
        if trainer.is_global_zero and batches % self.every == 0:
            self._log_ready(trainer, wait=True)  # one at a time, or faces would pile up where batches are faster
            assert isinstance(pl_module, MakesRandomFaces)
            self._look_at(to_picture(pl_module.random_faces(self.faces, batches)), batches, "cascades")
        self._log_ready(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the last ones."""
        self._log_ready(trainer, wait=True)
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no thread behind."""
        self._close()

    def _look_at(self, pictures: Picture, batches: int, name: str) -> None:
        self._pool = self._pool or ThreadPoolExecutor(self._threads, "detection")
        self._pending[batches, name] = find_faces_aside(pictures, self._pool, self._threads)

    def _held_out(self, trainer: Trainer) -> Picture:
        """Photos to validate on, uint8 (N, S, S, 3), as many as faces are looked at or fewer."""
        data: Any = getattr(trainer, "datamodule", None)
        found: list[Picture] = []
        for batch in data.val_dataloader()[EVALUATION_SETS.index("unseen")] if data is not None else ():
            found.append(batch["image"].movedim(1, -1).contiguous().numpy())
            if sum(map(len, found)) >= self.faces:
                break
        return np.concatenate(found)[: self.faces] if found else np.empty((0, 0, 0, 3), np.uint8)

    def _log_ready(self, trainer: Trainer, wait: bool = False) -> None:
        for (batches, name), parts in list(self._pending.items()):
            if not wait and not all(part.done() for part in parts):
                return
            rate = float(np.concatenate([part.result() for part in parts]).mean())
            for logger in trainer.loggers:
                logger.log_metrics({f"train/detection/{name}": rate}, step=batches)
            del self._pending[batches, name]

    def _close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._pool = None
        self._pending = {}
