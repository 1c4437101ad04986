"""One bar for a whole training."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.utilities.types import STEP_OUTPUT


class TrainingProgress(TQDMProgressBar):
    """A bar over all batches of the training, where Lightning's starts anew each epoch: it tells the time left.

    Epochs of small sets last seconds, and iteration counts are what these papers train by.

    Args:
        refresh_rate: batches between two updates; each reads the losses, which a GPU has to be waited for.
    """

    def __init__(self, refresh_rate: int = 10) -> None:
        super().__init__(refresh_rate=refresh_rate)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar, from where a resumed training stands."""
        super().on_train_start(trainer, pl_module)
        bar: Tqdm = self.train_progress_bar
        total = trainer.estimated_stepping_batches
        bar.reset(int(total) if total != float("inf") else None)
        bar.initial = bar.n = trainer.global_step
        bar.set_description("Training")

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Nothing: the bar goes on."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar on."""
        step = trainer.global_step
        if self.is_enabled and (step % self.refresh_rate == 0 or step == self.train_progress_bar.total):
            self.train_progress_bar.n = step
            self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module))  # redraws the bar

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing: the bar goes on."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The losses, for the end of the bar."""
        prefix = "train/loss/"
        metrics = trainer.callback_metrics.items()
        return {name.removeprefix(prefix): f"{float(loss):.3g}" for name, loss in metrics if name.startswith(prefix)}
