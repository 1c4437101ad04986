"""Run folders: everything that one training wrote, `runs/<experiment>/<N>`.

    runs/quickstart/0/
        config.yaml             the whole resolved configuration of the training
        checkpoints/            last.ckpt and the others
        fit/metrics.csv         training and validation; after resuming also fit-2/, fit-3/, ...
        test/metrics.csv        likewise test-2/, ..., validate/, predict/
        samples/<key>-<step>.png
        wandb/                  Weights & Biases' files

Later stages find the folder from a checkpoint's path. What a stage wrote is not overwritten by the next, but
for what tells of the whole run: `last.ckpt`, `summary.json`, `report.html`, `rejected.csv`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from idface.names import did_you_mean, nearest

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"


class RunNotFound(FileNotFoundError):
    """No run, or no checkpoint in it, where one was looked for."""


def new_run(root: Path, experiment: str) -> Path:
    """Create and return `root/experiment/N` with the first free N; safe against other processes that do the same."""
    return _make_first(root / experiment / str(number) for number in count(_next_number(root / experiment)))


def new_stage(run: Path, stage: str) -> Path:
    """Create and return the folder of another stage of a run: `fit`, then `fit-2`, `fit-3`."""
    return _make_first(run / (stage if number == 1 else f"{stage}-{number}") for number in count(1))


def stages(run: Path, stage: str) -> list[Path]:
    """The folders `fit`, `fit-2`, ... of a run that exist, in the order in which they were made."""
    folders = [folder for folder in run.iterdir() if re.fullmatch(rf"{stage}(-\d+)?", folder.name)]
    return sorted(folders, key=lambda folder: int(folder.name[len(stage) + 1 :] or 1))


def run_of(path: Path) -> Path | None:
    """The run folder that holds `path`: the nearest folder upwards with a config.yaml in it."""
    return next((folder for folder in path.absolute().parents if (folder / CONFIG).is_file()), None)


def runs(experiment: Path) -> list[Path]:
    """The runs in `root/experiment`, oldest first."""
    folders = (experiment / str(number) for number in _numbers(experiment))
    return [folder for folder in folders if (folder / CONFIG).is_file()]


def newest_run(path: Path) -> Path:
    """`path` itself if it is a run folder, or the newest run if it is an experiment's folder.

    Raises:
        RunNotFound: it is neither.
    """
    if (path / CONFIG).is_file():
        return path
    if found := runs(path):
        return found[-1]
    raise RunNotFound(f"'{path}' is no run folder (it has no {CONFIG}), nor does it hold any")


def find_checkpoint(root: Path, experiment: str, which: str) -> Path:
    """The `last` or `best` checkpoint of the newest run of an experiment that has any.

    `best` is the best one by what its ModelCheckpoint monitors.

    Raises:
        RunNotFound: the experiment has no checkpoint; the message says what to do.
    """
    for run in reversed(runs(root / experiment)):
        if checkpoints := sorted((run / CHECKPOINTS).glob("*.ckpt"), key=lambda path: path.stat().st_mtime):
            last = [path for path in checkpoints if path.stem.startswith("last")] or checkpoints
            return last[-1] if which == "last" else _best(last[-1])
    folders = list(root.iterdir()) if root.is_dir() else []
    others = sorted(folder.name for folder in folders if folder.name != experiment and runs(folder))
    raise RunNotFound(
        f"no run of '{experiment}' in '{root}' has a checkpoint.{did_you_mean(nearest(experiment, others))} "
        f"Train first, or give a checkpoint's path. Experiments there: {', '.join(others) or 'none'}."
    )


def run_folder(trainer: Trainer) -> Path:
    """The folder of the run that a trainer belongs to."""
    return Path(trainer.default_root_dir)


def _best(checkpoint: Path) -> Path:
    """What the ModelCheckpoint in `checkpoint` holds for the best one; the folder may have been moved since."""
    import torch

    callbacks = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True).get("callbacks", {})
    monitored = [state for state in callbacks.values() if isinstance(state, dict) and state.get("monitor")]
    if not monitored:
        raise RunNotFound(
            f"'{checkpoint}' has no best one: its ModelCheckpoint monitors no metric. Use --ckpt_path last, "
            "or set `monitor` and train again."
        )
    best = checkpoint.with_name(Path(monitored[0]["best_model_path"]).name)
    if not best.is_file():
        raise RunNotFound(f"the best checkpoint by {monitored[0]['monitor']}, '{best}', is not there any more")
    return best


def _numbers(experiment: Path) -> list[int]:
    return sorted(int(name) for name in os.listdir(experiment) if name.isdecimal()) if experiment.is_dir() else []


def _next_number(experiment: Path) -> int:
    return max(_numbers(experiment), default=-1) + 1


def _make_first(folders: Iterator[Path]) -> Path:
    """Create the first of endless `folders` that nobody has made yet."""
    for folder in folders:
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise AssertionError
