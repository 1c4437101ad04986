"""Sanche, *Generating Faces using GANs*: faces of a given age and sex."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from data_modules.batch import EVALUATION_SETS, FaceBatch, labels_of
from idface.losses.adversarial import discriminator_loss, generator_loss, matching_aware_loss
from idface.metrics.labels import LabelObedience
from idface.metrics.variety import JudgedFaces
from idface.modules.base import FaceModule
from idface.networks.label_dcgan import LabelCoding, LabelDiscriminator, LabelGenerator
from idface.pictures import Picture, mark_synthetic, to_picture
from idface.recognition.age_sex import AgeSexEstimator
from idface.recognition.base import Recognizer

SHOWN_AGES = (15, 25, 35, 45, 55, 65, 75)
"""Years, of the sample grids' columns: figure 10 goes from 15 to 75."""
SHOWN_FACES = 4
"""Noise vectors on the sample grids, each for both sexes."""
WRONG_BY = 10.0
"""Years by which an age must differ at least to be wrong for a face of the same sex."""


def falling_rate(
    optimizer: Optimizer, factor: float = 0.996, every: int = 100, floor: float = 0.1
) -> torch.optim.lr_scheduler.LRScheduler:
    """The paper's rule (section 3, figure 4): the rate times `factor` after every `every` batches, down to a floor.

    Args:
        optimizer: whose rate it is; the paper's begins at 5e-4.
        factor, every: of the rule.
        floor: share of the first rate below which it does not fall; the paper's 5e-5 is 0.1.

    Raises:
        ValueError: an argument is out of range.
    """
    if not 0 < factor <= 1 or every < 1 or not 0 <= floor <= 1:
        raise ValueError(
            f"factor is {factor}, every {every} and floor {floor}; expected a factor above 0 and at most 1, "
            "1 batch or more, and a floor from 0 to 1"
        )
    return LambdaLR(optimizer, lambda batch: max(factor ** (batch // every), floor))


class LabelConditionedDCGAN(FaceModule):
    """A generator and a discriminator that are given sex and age beside noise and image.

    D learns to tell photos from generated faces of the same labels, G to be taken for a photo; both from one forward
    pass. Neither may run away: D rests while its last cost is below half of G's, G while its own is below a third of
    D's (section 3). Noise is uniform in [-1, 1].

    Args:
        latent_dim: length of the noise.
        image_size: side of the images in pixels, a multiple of 8.
        width: channels of G's last stage before the image.
        discriminator_width: channels of D's first convolution.
        hidden: neurons of both networks' large FC layer.
        batch_norm: whether G has batch norm.
        youngest, oldest: years that are -1 and 1; photos of other ages are passed over.
        age_bins: ages as one of so many ranges instead of one number (section 7); None for the paper's.
        matching_aware: whether D also sees photos with wrong labels, as not real (Reed et al. 2016): without this
            nothing but the labels' shares in the batches makes it look at them.
        gate: whether a side rests when it has become too strong.
        estimator: of age and sex, to say whether faces look like their labels; one that passed no gradient to G. None
            leaves these figures out.
        judge: recogniser of the evaluation: how far generated faces are from real ones as a distribution, and how
            various.
        optimizer: makes both optimisers; the paper's is Adam as TensorFlow has it.
        scheduler: None for the paper's rule, `falling_rate`.
        gradient_clip, ema_decay, compile, channels_last: see `FaceModule`.

    Raises:
        ValueError: an argument is out of range.
    """

    changeable = ("judge", "estimator")
    spared = ("judge", "estimator")
    costs: Tensor

    def __init__(
        self,
        latent_dim: int = 100,
        image_size: int = 64,
        width: int = 16,
        discriminator_width: int = 16,
        hidden: int = 5000,
        batch_norm: bool = True,
        youngest: float = 10.0,
        oldest: float = 100.0,
        age_bins: int | None = None,
        matching_aware: bool = False,
        gate: bool = True,
        estimator: AgeSexEstimator | None = None,
        judge: Recognizer | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=5e-4),
        scheduler: LRSchedulerCallable | None = None,
        gradient_clip: float | None = None,
        ema_decay: float = 0.999,
        compile: bool = False,
        channels_last: bool = True,
    ) -> None:
        super().__init__(judge, optimizer, scheduler or falling_rate, gradient_clip, ema_decay, compile, channels_last)
        self.latent_dim = latent_dim
        self.image_size = image_size
        self.matching_aware = matching_aware
        self.gate = gate
        self.estimator = estimator
        self.coding = LabelCoding(youngest, oldest, age_bins)
        label_dim = self.coding.length
        self.generator = LabelGenerator(latent_dim, label_dim, image_size, width, hidden, batch_norm)  # G
        self.discriminator = LabelDiscriminator(label_dim, image_size, discriminator_width, hidden)  # D
        self.register_buffer("costs", torch.ones(2))  # D's and G's of the batch before: equal, so that both begin
        if judge is not None:
            self.judged = JudgedFaces(judge.embedding_dim)
        if estimator is not None:
            self.obedience = nn.ModuleDict({kind: LabelObedience() for kind in ("generated", "real")})

    @property
    def phases(self) -> Mapping[str, nn.Module]:
        """G and D."""
        return {"generator": self.generator, "discriminator": self.discriminator}

    @property
    def averaged(self) -> tuple[str, ...]:
        """G alone makes faces."""
        return ("generator",)

    # ------------------------------------------------------------------------------------------------------- training

    def step(self, batch: FaceBatch) -> None:
        """One batch, of photos whose sex and age are known; faces are generated of the same labels."""
        sex, age = labels_of(batch)
        known = self.coding.known(sex, age)
        image, sex, age = batch["image"][known], sex[known], age[known]
        if len(image) < 2:  # batch norm needs two
            raise ValueError(
                f"a batch has {len(image)} photos of known sex and of an age from {self.coding.youngest:g} to "
                f"{self.coding.oldest:g}, expected 2 or more: give the data a SexAgeBalanced sampler, or other ages"
            )
        label = self.coding(sex, age)
        g_learns, d_learns = self.who_learns()
        faces = self.generator(self._noise(len(image)), label)
        real, fake = self.discriminator(image, label), self.discriminator(faces, label)
        losses = {"generator": generator_loss(fake)}
        if self.matching_aware:
            wrong, chosen = self._wrong_labels(sex, age)
            losses["discriminator"] = matching_aware_loss(
                real, fake, self.discriminator(image[chosen], label[wrong[chosen]])
            )
        else:
            losses["discriminator"] = discriminator_loss(real, fake)
        if g_learns:  # first: a phase changes its network in place
            self.phase("generator", losses["generator"], retain_graph=d_learns)
        if d_learns:
            self.phase("discriminator", losses["discriminator"])
        self._remember(losses)
        self.record(losses)
        self.log_dict({"train/gate/generator": float(g_learns), "train/gate/discriminator": float(d_learns)})

    def who_learns(self) -> tuple[bool, bool]:
        """Whether G and whether D learns from this batch, by the costs of the one before."""
        if not self.gate:
            return True, True
        of_d, of_g = self.costs.tolist()  # of a batch that is over: waits for nothing that is still to be computed
        return of_g >= of_d / 3, of_d >= of_g / 2

    def _remember(self, losses: Mapping[str, Tensor]) -> None:
        """Keep this batch's costs, the mean over all ranks: these agree on who rests."""
        costs = torch.stack([losses["discriminator"].detach(), losses["generator"].detach()]).float()
        if self.trainer.world_size > 1:
            (costs,) = self._mean_over_ranks((costs,))
        self.costs.copy_(costs)

    def _noise(self, count: int) -> Tensor:
        return torch.rand(count, self.latent_dim, device=self.device) * 2 - 1

    @staticmethod
    def _wrong_labels(sex: Tensor, age: Tensor) -> tuple[Tensor, Tensor]:
        """For each photo another one, whose label is its wrong one, (B,); and which of these are wrong indeed."""
        shift = 1 + torch.randint(len(sex) - 1, (), device=sex.device)
        wrong = (torch.arange(len(sex), device=sex.device) + shift) % len(sex)
        return wrong, (sex != sex[wrong]) | ((age - age[wrong]).abs() >= WRONG_BY)

    # -------------------------------------------------------------------------------------------------- after training

    @torch.no_grad()
    def generate(self, latents: Tensor, sex: Tensor, age: Tensor) -> Tensor:
        """Faces by the averaged weights, in evaluation mode.

        Args:
            latents: (B, L) in [-1, 1].
            sex: float (B,), -1 female, 1 male.
            age: float (B,), years.

        Returns:
            Float (B, 3, S, S) in [-1, 1].
        """
        generator = self.trained("generator")
        was_training = generator.training
        try:
            faces: Tensor = generator.eval()(latents, self.coding(sex, age))
        finally:
            generator.train(was_training)
        return faces

    def forward(self, latents: Tensor, sex: Tensor, age: Tensor) -> Tensor:
        """See `generate`."""
        return self.generate(latents, sex, age)

    def fixed_latents(self, count: int, part: int = 0) -> Tensor:
        """The same latents (count, L) ~ U(-1, 1)^L every time; others for another `part`."""
        noise = torch.Generator().manual_seed(part)
        return (torch.rand(count, self.latent_dim, generator=noise) * 2 - 1).to(self.device)

    def random_faces(self, count: int, part: int) -> Tensor:
        """Faces (count, 3, S, S) in [-1, 1] of random noise, sexes and ages; the same every time, others for another
        part.
        """
        noise = torch.Generator().manual_seed(part)
        share, sex = torch.rand(2, count, generator=noise).to(self.device)
        age = self.coding.youngest + share * (self.coding.oldest - self.coding.youngest)
        return self.generate(self.fixed_latents(count, part), torch.where(sex < 0.5, -1.0, 1.0), age)

    # ------------------------------------------------------------------------------------------------------ evaluation

    def start_evaluation(self) -> None:
        """See `FaceModule`."""
        if self.judge is not None:
            self.judged.reset()
        for metric in self._obedience().values():
            metric.reset()

    def _obedience(self) -> dict[str, LabelObedience]:
        if self.estimator is None:
            return {}
        return {kind: cast(LabelObedience, metric) for kind, metric in self.obedience.items()}

    def validation_step(self, batch: FaceBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """For each photo of known labels a face of these, before the judge and the estimator."""
        if EVALUATION_SETS[dataloader_idx] == "gallery":
            return
        sex, age = labels_of(batch)
        known = self.coding.known(sex, age)
        image, sex, age = batch["image"][known], sex[known], age[known]
        if not len(image):
            return
        place = (dataloader_idx * 1_000_003 + batch_idx) * self.trainer.world_size + self.global_rank + 1
        faces = self.generate(self.fixed_latents(len(image), place), sex, age)
        for images, kind in ((image, "real"), (faces, "generated")):
            if self.judge is not None:
                self.judged.update(self.judge(images), real=kind == "real")
            if self.estimator is not None:
                self._obedience()[kind].update((sex, age), self.estimator(images))

    test_step = validation_step

    def predict_step(self, batch: FaceBatch, batch_idx: int, dataloader_idx: int = 0) -> Tensor | None:
        """A face of each photo's labels; None where one of them has none.

        Returns:
            Float (B, 3, S, S) in [-1, 1].
        """
        sex, age = labels_of(batch)
        if not bool(self.coding.known(sex, age).all()):
            return None
        return self.generate(self.fixed_latents(len(sex), batch_idx), sex, age)

    def log_evaluation(self, stage: str) -> None:
        """Log `<stage>/faces/...` (see `JudgedFaces`), `<stage>/labels/generated/...` and `real` (`LabelObedience`)."""
        figures: dict[str, Tensor] = {}
        if self.judge is not None:
            figures |= {f"faces/{name}": value for name, value in self.judged.compute().items()}
        for kind, metric in self._obedience().items():
            figures |= {f"labels/{kind}/{name}": value for name, value in metric.compute().items()}
        self.log_dict({f"{stage}/{name}": value.to(self.device) for name, value in figures.items()})

    def sample_grids(self) -> dict[str, Picture]:
        """`ages` (figures 9 and 10): a noise vector two rows, a woman's and a man's; from 15 to 75 years."""
        latents = self.fixed_latents(SHOWN_FACES)
        return {"ages": ages_grid(self, latents, SHOWN_AGES)}


def ages_grid(
    model: LabelConditionedDCGAN, latents: Tensor, ages: Sequence[float], sexes: Sequence[float] = (-1.0, 1.0)
) -> Picture:
    """Faces of the same noise for each sex (rows below one another) and age (columns), marked as synthetic.

    Args:
        model: makes them.
        latents: (N, L), on the model's device.
        ages: years, one a column.
        sexes: -1 female, 1 male.

    Returns:
        uint8 (N * len(sexes) * S, len(ages) * S, 3).
    """
    years = torch.tensor(list(ages), dtype=torch.float32, device=latents.device)
    rows = []
    for latent in latents:
        for sex in sexes:
            faces = model.generate(latent.expand(len(years), -1), torch.full_like(years, sex), years)
            rows.append(np.concatenate([mark_synthetic(face) for face in to_picture(faces)], axis=1))
    return np.concatenate(rows)
