"""Where metrics and pictures go: a CSV file and Weights & Biases, both inside the run folder."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer, loggers
from lightning.pytorch.utilities import rank_zero_only

from idface.pictures import Picture, save_synthetic
from idface.run import run_folder


class CSVLogger(loggers.CSVLogger):
    """Metrics in `<save_dir>/metrics.csv`, a row a step, written at once so that a killed run keeps them all.

    Args:
        save_dir: folder of the file; None for the stage's folder in the run folder (`fit`, `test`, ...).
        prefix: put before every metric's name.
    """

    def __init__(self, save_dir: str | None = None, prefix: str = "") -> None:
        super().__init__(save_dir or ".", name="", version="", prefix=prefix, flush_logs_every_n_steps=1)
        self.placed = save_dir is not None

    def place(self, folder: Path) -> None:
        """Write into `folder`, unless a folder was asked for."""
        if not self.placed:
            self._root_dir = self._save_dir = str(folder)
            self.placed = True


class WandbLogger(loggers.WandbLogger):
    """A W&B run a run folder, with `trainer.global_step` (batches) as the step of every metric.

    Offline unless the user is logged in (`wandb login`, WANDB_API_KEY, netrc); never asks. What WANDB_MODE or
    `wandb offline` say goes first. Offline runs are sent later by `wandb sync <run>/wandb/offline-run-*`.

    Args:
        project: W&B's project.
        name: name of the run; None for `<experiment>/<N>`.
        save_dir: folder that W&B's own folder `wandb` is made in; None for the run folder.
        entity: user or team; None for the user's default.
        group: group of runs.
        tags: tags of the run.
    """

    def __init__(
        self,
        project: str = "idface",
        name: str | None = None,
        save_dir: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
    ) -> None:
        super().__init__(
            name=name,
            save_dir=save_dir or ".",
            project=project,
            entity=entity,
            group=group,
            tags=tags,
            settings={"quiet": True},  # says where the files are, and leaves the figures to the files
        )
        self._wandb_init.pop("anonymous", None)  # Lightning passes it on, W&B warns of it
        self.placed = save_dir is not None

    def place(self, folder: Path) -> None:
        """Write into the run folder `folder`, unless another was asked for; later stages go on with its W&B run."""
        if self.placed:
            return
        self._save_dir = self._wandb_init["dir"] = str(folder)
        self._name = self._wandb_init["name"] = self._name or f"{folder.parent.name}/{folder.name}"
        earlier = sorted(folder.glob("wandb/*run-*/run-*.wandb"))  # run-<id>.wandb
        if earlier:
            self._id = self._wandb_init["id"] = earlier[0].stem.removeprefix("run-")
        self.placed = True

    @property
    def experiment(self) -> Any:
        """The W&B run, begun at the first call."""
        if self._experiment is None:
            self._wandb_init["mode"] = _mode()
        return super().experiment

    def finalize(self, status: str) -> None:
        """Close the W&B run: a command is one stage, and the next one in this process begins its own."""
        super().finalize(status)
        if self._experiment is not None:
            self._id = self._wandb_init["id"] = self._experiment.id
            self._experiment.finish(exit_code=0 if status == "success" else 1)
            self._experiment = None


def _mode() -> str:
    """W&B's mode: what the user set, but offline instead of a prompt for a login."""
    import wandb  # slow to import, and most tests and tools log elsewhere

    mode = os.environ.get("WANDB_MODE") or wandb.setup().settings.mode
    if mode in ("online", "shared") and not wandb.login(prompt=False, verify=False):
        return "offline"
    return mode


@rank_zero_only
def log_images(trainer: Trainer, key: str, picture: Picture, recipe: Mapping[str, Any] | None = None) -> Path | None:
    """Write a picture to `<run>/samples/<key>-<step>.png` and show it in W&B, if that is among the loggers.

    Args:
        trainer: the step is its `global_step`, seven digits.
        key: name of the picture, as a metric's: `val/recombination`; its slashes make folders.
        picture: uint8 (H, W, 3), RGB; the generated faces in it carry the mark of `idface.pictures`.
        recipe: what made it, kept in the file; the run and the step are added.

    Returns:
        The file; None on ranks other than zero and in a `fast_dev_run`, which leaves nothing behind.
    """
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    step = trainer.global_step
    folder = run_folder(trainer)
    path = folder / "samples" / f"{key}-{step:07d}.png"
    save_synthetic(picture, path, {**(recipe or {}), "run": str(folder), "step": step})
    for logger in trainer.loggers:
        if isinstance(logger, loggers.WandbLogger):
            logger.log_image(key, [picture], step=step)
    return path
