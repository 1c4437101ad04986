"""One step axis for everything that is logged."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class StepCount(Callback):
    """Number what is logged by `trainer.global_step`: a value at step s tells of the model after s batches.

    Lightning keeps a count of its own for loggers. It lags by one in validation, leads by one after some resumes and is
    zero in tests.
    """

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Before each batch."""
        self._set(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before each validation."""
        self._set(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before a test."""
        self._set(trainer)

    @staticmethod
    def _set(trainer: Trainer) -> None:
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
