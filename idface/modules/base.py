"""What every paper's LightningModule stands on: phases, one step count, EMA, reproducible noise, divergence checks."""

import copy
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from data_modules.batch import FaceBatch
from idface.latent.generators import Generator
from idface.pictures import Picture
from idface.recognition.age_sex import AgeSexEstimator
from idface.recognition.base import Recognizer


def dcgan_adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Adam:
    """Adam as DCGAN has it: rate 2e-4, beta_1 0.5.

    A function, so that a run's configuration can name it: of a default with a tuple in it the parser makes no text.
    """
    return torch.optim.Adam(parameters, lr=2e-4, betas=(0.5, 0.999))


class TrainingDiverged(RuntimeError):
    """A loss became NaN or infinite; the message names its phase and the last good checkpoint."""


@runtime_checkable
class MakesFacesFromLatents(Protocol):
    """A module whose faces can be searched for, banked and edited."""

    def latent_generator(self) -> Generator:
        """What makes them, by the averaged weights."""


class FaceModule(LightningModule, ABC):
    """A model of several networks that learn in turns, each from its own part of the loss.

    A subclass says in `phases` which networks each phase trains, computes its losses in `step`, and gives each phase
    its objective through `phase`. Every gradient is taken with respect to that phase's parameters alone, so nothing
    else can change: no toggling of `requires_grad`, and one forward pass may serve several phases.

    * One count: `iteration` is `trainer.global_step`, the number of batches, whatever the number of optimisers.
    * Random numbers of a step depend on (seed, iteration, rank) alone, so a resumed run equals an unbroken one.
    * Gradients are averaged over ranks here, once a phase; plain `ddp` works as well as its variants.
    * The networks in `averaged` have an exponential moving average, which evaluation and inference use.

    Args:
        judge: recogniser for the `identity` metrics; None leaves them out. A network that a loss used cannot judge.
        optimizer: makes each phase's optimiser from its parameters.
        scheduler: makes each phase's learning-rate schedule, stepped once a batch; None keeps the rate.
        gradient_clip: largest gradient norm of a phase; None for no clipping.
        ema_decay: decay of the moving average a batch, in [0, 1); 0 turns it off. It warms up as
            `(1 + n) / (10 + n)`, so that short runs are not held to their start.
        compile: whether `torch.compile` is applied to the networks that learn.
        channels_last: whether convolutions run in channels-last memory format, the faster one on CPUs and GPUs.
    """

    gradient_fingerprints: frozenset[str] = frozenset()
    """Fingerprints of the recognisers through which a loss flows, as they were at the start: none of them may judge."""

    input_fingerprints: frozenset[str] = frozenset()
    """Fingerprints of the recognisers whose embedding the generator is given."""

    changeable: tuple[str, ...] = ("judge",)
    """Recognisers that a checkpoint may be used with others of: no training went through them."""

    spared: tuple[str, ...] = ("judge",)
    """Arguments that generating does without, where what they name is not to be had."""

    people_digest: str | None = None
    """What tells the people that the model was trained on from others, see `digest_of_names`; kept in checkpoints."""

    photos_digest: str | None = None
    """What tells the photos that the model was trained on from others: `digest_of_names` of theirs; likewise kept."""

    recipe: dict[str, Any] | None = None
    """Class path and arguments that make this module anew; set by the command line and kept in checkpoints."""

    def __init__(
        self,
        judge: Recognizer | None,
        optimizer: OptimizerCallable,
        scheduler: LRSchedulerCallable | None,
        gradient_clip: float | None,
        ema_decay: float,
        compile: bool,
        channels_last: bool,
    ) -> None:
        super().__init__()
        if not 0 <= ema_decay < 1:
            raise ValueError(f"ema_decay is {ema_decay}; expected at least 0 and below 1; 0.999 is usual")
        if gradient_clip is not None and gradient_clip <= 0:
            raise ValueError(f"gradient_clip is {gradient_clip}; expected a positive norm, or null for no clipping")
        self.automatic_optimization = False
        self.judge = judge
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.gradient_clip = gradient_clip
        self.ema_decay = ema_decay
        self.compile_networks = compile
        self.channels_last = channels_last
        self.ema = nn.ModuleDict()
        self._finite: dict[str, Tensor] = {}

    # ------------------------------------------------------------------------------------- what a subclass provides

    @property
    @abstractmethod
    def phases(self) -> Mapping[str, nn.Module]:
        """Name of each phase and the network that learns in it, in the order in which `step` runs them."""

    @property
    @abstractmethod
    def averaged(self) -> tuple[str, ...]:
        """Attributes that hold the networks needed after training: they are averaged, and kept as weights."""

    def phase_optimizer(self, name: str) -> OptimizerCallable:
        """What makes the optimiser of phase `name`; a subclass may give a phase one of its own."""
        return self.optimizer

    @abstractmethod
    def step(self, batch: FaceBatch) -> None:
        """One batch: compute the losses, `record` them, and call `phase` for every network that learns."""

    def sample_grids(self) -> dict[str, Picture]:
        """Pictures of the evaluation just run, by name; the same photos every time, so that runs can be compared."""
        return {}

    def start_evaluation(self) -> None:
        """Forget the last evaluation; called before each."""

    def log_evaluation(self, stage: str) -> None:
        """Log the figures of the evaluation just run; `stage` is "val" or "test"."""

    def judge_report(self) -> dict[str, Any]:
        """Who judged.

        Returns:
            `name`; `fingerprint`; `independent`: no loss flows through the same weights; `is_input`: the generator is
            given its embedding.
        """
        if self.judge is None:
            return {"name": None, "fingerprint": None, "independent": True, "is_input": False}
        fingerprint = self.judge.fingerprint()
        independent = fingerprint not in self.gradient_fingerprints
        is_input = fingerprint in self.input_fingerprints
        return {
            "name": self.judge.name,
            "fingerprint": fingerprint,
            "independent": independent,
            "is_input": is_input,
        }

    # ------------------------------------------------------------------------------------------------------- training

    @property
    def iteration(self) -> int:
        """Batches trained on so far."""
        return self.trainer.global_step

    def setup(self, stage: str) -> None:
        """Prepare memory format, compilation and the moving averages; called by the trainer, also before loading."""
        if self.channels_last:
            self.to(memory_format=torch.channels_last)
        if self.ema_decay > 0 and not self.ema:
            for name in self.averaged:
                self.ema[name] = copy.deepcopy(getattr(self, name)).requires_grad_(False).eval()
        if stage == "fit" and self.compile_networks:
            from torch._functorch import config as functorch  # neither is loaded by torch itself
            from torch._inductor import config as inductor

            # A graph that two phases walk must keep its buffers. The second is undocumented: without it, what the first
            # walk saved is overwritten in a DCGAN discriminator at 64x64 on a CPU (torch 2.15), and D learns nothing.
            functorch.donated_buffer = False
            inductor.inplace_buffers = False
            for network in self.phases.values():
                network.compile()

    def on_validation_epoch_start(self) -> None:
        """See `start_evaluation`."""
        self.start_evaluation()

    def on_validation_epoch_end(self) -> None:
        """See `log_evaluation`."""
        self.log_evaluation("val")

    def on_test_epoch_start(self) -> None:
        """See `start_evaluation`."""
        self.start_evaluation()

    def on_test_epoch_end(self) -> None:
        """See `log_evaluation`."""
        self.log_evaluation("test")

    def configure_optimizers(self) -> Any:
        """One optimiser a phase, in the order of `phases`, and its schedule if there is one."""
        optimizers = [self.phase_optimizer(name)(network.parameters()) for name, network in self.phases.items()]
        if self.scheduler is None:
            return optimizers
        return optimizers, [self.scheduler(optimizer) for optimizer in optimizers]

    def on_train_start(self) -> None:
        """Look the optimisers up once: asking Lightning for them every phase costs more than it should."""
        self._log_interval: int = max(1, self.trainer.log_every_n_steps)  # type: ignore[attr-defined]
        self._phase_index = {name: index for index, name in enumerate(self.phases)}
        self._parameters_of = {name: list(network.parameters()) for name, network in self.phases.items()}
        self._averages = [
            (list(average.state_dict().values()), list(getattr(self, name).state_dict().values()))
            for name, average in self.ema.items()
        ]
        self._statistics = tuple(
            buffer for network in self.phases.values() for buffer in network.buffers() if buffer.is_floating_point()
        )
        self._finite = {}
        data = getattr(self.trainer, "datamodule", None)
        if hasattr(data, "split") and hasattr(data, "photos"):
            self.photos_digest = digest_of_training_photos(data)

    def training_step(self, batch: FaceBatch, batch_idx: int) -> None:
        """One batch, whatever its phases: reproducible noise, `step`, averages, schedules, the count."""
        torch.manual_seed(self._noise_seed())
        self.step(batch)
        self._share_statistics()
        self._update_averages()
        self._log_learning_rates()
        for scheduler in self._schedulers():
            scheduler.step()
        # Lightning counts calls of its own optimiser wrappers, once an optimiser. `phase` goes past those, and the
        # batch is counted here: max_steps, checkpoints and loggers then all speak of batches.
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        progress.increment_ready()
        progress.increment_completed()
        if self.device.type == "cpu" or self.iteration % self._log_interval == 0:
            self.check_finite()

    def phase(self, name: str, objective: Tensor, retain_graph: bool = False) -> None:
        """Let the network of phase `name` learn from `objective`; no other network or buffer changes.

        Args:
            name: a key of `phases`.
            objective: scalar loss.
            retain_graph: keep the graph for a later phase that walks it too.
        """
        parameters = self._parameters_of[name]
        trainer = self.trainer
        self._finite[name] = self._finite.get(name, True) & torch.isfinite(objective.detach())
        scaled = trainer.precision_plugin.pre_backward(objective, self)  # 16-bit floats: times the loss scale
        gradients = torch.autograd.grad(scaled, parameters, retain_graph=retain_graph)
        if trainer.world_size > 1:
            gradients = self._mean_over_ranks(gradients)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer = trainer.optimizers[self._phase_index[name]]
        trainer.strategy.optimizer_step(optimizer, lambda: None, model=self)
        optimizer.zero_grad()

    def as_joint_mean(self, loss: Tensor, count: Tensor) -> Tensor:
        """A mean over `count` samples of this rank, weighted so that the ranks' mean is that over all their samples.

        Args:
            loss: scalar mean, zero where `count` is zero.
            count: scalar, integer: how many samples of this rank's batch the loss is of.
        """
        if self.trainer.world_size == 1:
            return loss
        (mean_count,) = self._mean_over_ranks((count.float(),))
        return loss * count / mean_count.clamp(min=1 / self.trainer.world_size)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the phase's gradients; they are unscaled by now under 16-bit floats."""
        if self.gradient_clip is not None:
            parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
            nn.utils.clip_grad_norm_(parameters, self.gradient_clip)

    def record(self, losses: Mapping[str, Tensor]) -> None:
        """Log losses as `train/loss/<name>`, unweighted; the tensors stay on the device until a logger wants them."""
        self.log_dict({f"train/loss/{name}": loss.detach() for name, loss in losses.items()})

    def check_finite(self) -> None:
        """Raise TrainingDiverged if a phase's objective was NaN or infinite since the last check.

        Looking costs a device synchronisation, so on a GPU it happens once in `log_every_n_steps` batches and before
        every checkpoint: one with NaNs is never written over a good one.
        """
        bad = [name for name, finite in self._finite.items() if not finite]
        self._finite = {}
        if bad:
            raise TrainingDiverged(self._divergence(f"the loss of phase {', '.join(map(repr, bad))}"))

    def _divergence(self, what: str) -> str:
        callback = self.trainer.checkpoint_callback
        last = getattr(callback, "last_model_path", "") or getattr(callback, "best_model_path", "")
        return (
            f"{what} became NaN or infinite by batch {self.iteration}. "
            f"Last good checkpoint: {last or 'none was written yet'}. "
            "Lower the learning rate or set --model.gradient_clip, then resume with --ckpt_path."
        )

    def _noise_seed(self) -> int:
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        return hash((seed, self.iteration, self.global_rank)) & 0x7FFF_FFFF_FFFF_FFFF

    def _mean_over_ranks(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The mean of each tensor over all ranks, in one exchange."""
        flat = self.trainer.strategy.reduce(torch.cat([tensor.reshape(-1) for tensor in tensors]), reduce_op="mean")
        parts = flat.split([tensor.numel() for tensor in tensors])
        return tuple(part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True))

    def _share_statistics(self) -> None:
        """Let batch norm's running statistics be those of all ranks' photos, so that ranks evaluate one model."""
        if self.trainer.world_size > 1 and self._statistics:
            for buffer, mean in zip(self._statistics, self._mean_over_ranks(self._statistics), strict=True):
                buffer.copy_(mean)

    @torch.no_grad()
    def _update_averages(self) -> None:
        count = self.iteration
        weight = 1 - min(self.ema_decay, (1 + count) / (10 + count))
        for averages, values in self._averages:
            floats = [pair for pair in zip(averages, values, strict=True) if pair[0].is_floating_point()]
            torch._foreach_lerp_([average for average, _ in floats], [value for _, value in floats], weight)

    def _schedulers(self) -> list[Any]:
        return [config.scheduler for config in self.trainer.strategy.lr_scheduler_configs]

    def _log_learning_rates(self) -> None:
        if (self.iteration + 1) % self._log_interval == 0:
            rates = {
                f"train/lr/{name}": optimizer.param_groups[0]["lr"]
                for name, optimizer in zip(self.phases, self.trainer.optimizers, strict=True)
            }
            self.log_dict(rates)

    # ------------------------------------------------------------------------------------ after training, checkpoints

    def number_of(self, batch_idx: int, dataloader_idx: int = 0) -> int:
        """A number for each batch of an evaluation, from 1, that none of another rank or loader has."""
        return (dataloader_idx * 1_000_003 + batch_idx) * self.trainer.world_size + self.global_rank + 1

    def trained(self, name: str) -> nn.Module:
        """The network `name` to generate with: its moving average, or itself where none is kept."""
        network: nn.Module = self.ema[name] if name in self.ema else getattr(self, name)
        return network

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to save a diverged model; add the recipe; leave out frozen recognisers, which have their own files."""
        self.check_finite()
        frozen = self._frozen_recognizers()
        state = {k: v for k, v in checkpoint["state_dict"].items() if not k.startswith(tuple(frozen))}
        # a gradient can be NaN where the loss was not: the weights then are, before any loss shows it
        bad = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
        if bad:
            raise TrainingDiverged(self._divergence(f"{len(bad)} tensors of the model, {bad[0]} among them,"))
        checkpoint["state_dict"] = state
        checkpoint["recipe"] = self.recipe
        names = getattr(getattr(self.trainer, "datamodule", None), "identity_names", None)
        if names is not None:
            self.people_digest = digest_of_names(names[: self.trainer.datamodule.num_identities])  # type: ignore[attr-defined]
        checkpoint["people_digest"] = self.people_digest
        checkpoint["photos_digest"] = self.photos_digest
        checkpoint["gradient_fingerprints"] = sorted(self.gradient_fingerprints)
        checkpoint["frozen_fingerprints"] = {prefix: network.fingerprint() for prefix, network in frozen.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the frozen recognisers' weights, which checkpoints leave out, beside the loaded ones.

        Raises:
            ValueError: a recogniser that the model was trained with is another one now. The judge may change; one that
                was a loss at any time stays reported as such. Or the networks are of other sizes than the checkpoint's.
        """
        self.gradient_fingerprints |= frozenset(checkpoint.get("gradient_fingerprints", ()))
        frozen = self._frozen_recognizers()
        for prefix, fingerprint in checkpoint.get("frozen_fingerprints", {}).items():
            name = prefix.rstrip(".")
            is_same = prefix in frozen and frozen[prefix].fingerprint() == fingerprint
            if name not in self.changeable and not is_same:
                raise ValueError(
                    f"the checkpoint was trained with other weights ({fingerprint}) as {name}: "
                    "give the recogniser that it was trained with"
                )
        own = (
            {key: value for key, value in self.state_dict().items() if key.startswith(tuple(frozen))} if frozen else {}
        )
        checkpoint["state_dict"] |= own
        self._check_sizes(checkpoint["state_dict"])

    def _check_sizes(self, loaded: Mapping[str, Tensor]) -> None:
        own = self.state_dict()
        unlike = [
            f"{key} is {_size(loaded, key)} in the checkpoint and {_size(own, key)} in the model"
            for key in dict.fromkeys((*own, *loaded))
            if _size(own, key) != _size(loaded, key)
        ]
        if unlike:
            raise ValueError(
                f"the checkpoint is of a model of other networks ({unlike[0]}; {len(unlike)} tensors differ): "
                "give the configuration that it was trained with, the config.yaml of its run folder"
            )

    def _frozen_recognizers(self) -> dict[str, Recognizer | AgeSexEstimator]:
        """The recognisers that do not learn, by the prefix of their keys in the state dict."""
        return {
            f"{name}.": module
            for name, module in self.named_modules()
            if isinstance(module, Recognizer | AgeSexEstimator)
            and not name.startswith("ema.")
            and not any(parameter.requires_grad for parameter in module.parameters())
        }


def digest_of_names(names: Sequence[str]) -> str:
    """Twelve hexadecimal digits that tell people, in the order of their labels, from others."""
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()[:12]


def digest_of_training_photos(data: Any) -> str:
    """`digest_of_names` of the photos that a FaceDataModule trains on."""
    return digest_of_names(sorted(data.photos[row].name for row in data.split.train.tolist()))


def _size(state: Mapping[str, Tensor], key: str) -> str:
    return "x".join(map(str, state[key].shape)) or "scalar" if key in state else "missing"


@contextmanager
def evaluating(network: nn.Module) -> Iterator[nn.Module]:
    """The network in evaluation mode, and afterwards in the one that it was in."""
    was_training = network.training
    try:
        yield network.eval()
    finally:
        network.train(was_training)


@contextmanager
def frozen_statistics(*networks: nn.Module) -> Iterator[None]:
    """Keep batch norm's running statistics as they are, while it still normalises by the batch.

    For a forward pass through a network that is not to learn from it, such as C on generated faces: its running
    statistics are those of real faces, and it serves as the identity encoder.
    """
    norms: Iterable[_BatchNorm] = [m for network in networks for m in network.modules() if isinstance(m, _BatchNorm)]
    tracking = [norm for norm in norms if norm.track_running_stats]
    for norm in tracking:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in tracking:
            norm.track_running_stats = True
