"""What a run tells about itself: sample grids, a summary of figures, and the page that shows both."""

import json
import platform
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from data_modules.batch import EVALUATION_SETS, FaceBatch
from idface.loggers import log_images
from idface.modules.base import FaceModule
from idface.pictures import mark_synthetic, save_synthetic, to_picture
from idface.report.page import SUMMARY, write_report
from idface.run import run_folder


class RunReport(Callback):
    """Logs the model's sample grids at each validation, writes `summary.json` and the HTML page after a test, and
    the faces that a prediction makes.
    """

    def __init__(self) -> None:
        self._start = 0.0
        self._first_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start, self._first_step = time.monotonic(), trainer.global_step

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the grids of this validation."""
        if not trainer.sanity_checking:
            self._log_grids(trainer, pl_module, "val")
        if trainer.state.fn == TrainerFn.VALIDATING:
            _print_figures(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note how long training took, validation included, and on what."""
        seconds = time.monotonic() - self._start
        steps = trainer.global_step - self._first_step
        fit = {
            "steps": trainer.global_step,
            "timed_steps": steps,  # those since the run was resumed, if it was
            "seconds": round(seconds, 1),
            "steps_per_second": round(steps / seconds, 3) if seconds else None,
            "device": _device_name(pl_module.device),
            "processes": trainer.world_size,
            "precision": str(trainer.precision),
            "torch": torch.__version__,
            "parameters": sum(p.numel() for p in pl_module.parameters() if p.requires_grad),
            "data": _data_summary(trainer),
        }
        _update_summary(trainer, {"fit": fit})

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the test's figures, grids and the page."""
        self._log_grids(trainer, pl_module, "test")
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        test: dict[str, Any] = {
            "step": trainer.global_step,
            "metrics": metrics,
            "checkpoint": str(trainer.ckpt_path),
            "data": _data_summary(trainer),
        }
        if isinstance(pl_module, FaceModule):
            test["judge"] = pl_module.judge_report()
        _update_summary(trainer, {"test": test})
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            _print_figures(trainer)
            rank_zero_info(f"Report: {write_report(run_folder(trainer)).absolute()}")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: FaceBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write generated faces as `samples/predict/<set>/<photo>-<partner>.png`, by their rows in the data set.

        A model that makes none of single batches gives None, and writes what it makes itself; where it made none of a
        photo, its place holds NaN.
        """
        if outputs is None:
            return
        folder = run_folder(trainer) / "samples" / "predict" / EVALUATION_SETS[dataloader_idx]
        recipe = {"model": getattr(pl_module, "recipe", None), "checkpoint": str(trainer.ckpt_path)}
        sources = zip(batch["index"].tolist(), batch["partner_index"].tolist(), strict=True)
        made = outputs.flatten(1).isfinite().all(1).tolist()
        for face, (index, partner), is_face in zip(to_picture(outputs), sources, made, strict=True):
            if not is_face:
                continue
            save_synthetic(mark_synthetic(face), folder / f"{index:06d}-{partner:06d}.png", recipe)

    @staticmethod
    @rank_zero_only
    def _log_grids(trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if isinstance(pl_module, FaceModule):
            for name, picture in pl_module.sample_grids().items():
                log_images(trainer, f"{stage}/{name}", picture, pl_module.recipe)


def _print_figures(trainer: Trainer) -> None:
    for name, value in sorted(trainer.callback_metrics.items()):
        rank_zero_info(f"{name:48} {float(value):9.4f}")


@rank_zero_only
def _update_summary(trainer: Trainer, part: dict[str, Any]) -> None:
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    path = run_folder(trainer) / SUMMARY
    summary = json.loads(path.read_text("utf-8")) if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(summary | part, indent=2) + "\n", "utf-8")


def _data_summary(trainer: Trainer) -> dict[str, Any]:
    data = getattr(trainer, "datamodule", None)
    return {"class": type(data).__name__, "training_people": getattr(data, "num_identities", None)}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    models = (
        [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        if cpuinfo.exists()
        else []
    )
    return f"{models[0] if models else platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
