"""Checkpoints that lose nothing."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn


class RunCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, which also saves `last.ckpt` when training ends between two intervals.

    Lightning's own drops the batches since the last interval, and `lightning test --ckpt_path last` would not test the
    model that training ended with. It also saves `last.ckpt` when training is interrupted (Ctrl-C) or terminated
    (SIGTERM, as `kill` and batch systems send it), by Lightning or by a handler that another library put before it.
    """

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what the last interval did not."""
        super().on_train_end(trainer, pl_module)
        self._save_rest(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save what a stopped training has learnt; a batch that Ctrl-C cut off may be in it in part."""
        super().on_exception(trainer, pl_module, exception)
        if isinstance(exception, KeyboardInterrupt | SystemExit) and trainer.state.fn == TrainerFn.FITTING:
            self._save_rest(trainer)

    def _save_rest(self, trainer: Trainer) -> None:
        """Save what `last.ckpt` does not hold yet."""
        if self.save_last and self._last_global_step_saved != trainer.global_step and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
