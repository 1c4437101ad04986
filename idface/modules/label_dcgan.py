"""Sanche, *Generating Faces using GANs*: faces of a given age and sex."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, cast

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
from idface.modules.base import FaceModule, evaluating
from idface.networks.label_dcgan import LabelCoding, LabelDiscriminator, LabelGenerator, LatentEncoder
from idface.pictures import Picture, mark_synthetic, to_picture
from idface.recognition.age_sex import AgeSexEstimator
from idface.recognition.base import Recognizer
from idface.recognition.weights import read_state_dict
from idface.zoo import PREFIX, zoo_file

SHOWN_AGES = (15.0, 75.0, 7)
"""Years of the first and the last of the sample grids' columns, as in figure 10, and how many there are."""
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

    Section 7 asks for an encoder, by which the age of an existing face can be changed. It is trained afterwards,
    against the G of `start`, which stays as it is: to give for a photo what G makes that photo of (L1 of pixels), and
    for a generated face the very noise that it was made of (squared error).

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
        learns: "gan" (G and D), or "encoder" (E alone).
        start: a checkpoint or export of this model, or `zoo:NAME`, whose G the encoder is trained against.
        encoder_width: channels of E's first stage.
        latent_weight: weight of the squared error of the noise beside the pixels' L1 in E's loss.
        estimator: of age and sex, to say whether faces look like their labels; one that passed no gradient to G. None
            leaves these figures out.
        judge: recogniser of the evaluation: how far generated faces are from real ones as a distribution, and how
            various.
        optimizer: makes both optimisers; the paper's is Adam as TensorFlow has it.
        scheduler: None for the paper's rule, `falling_rate`.
        gradient_clip, ema_decay, compile, channels_last: see `FaceModule`.

    Raises:
        FileNotFoundError: there is no file `start`.
        ValueError: an argument is out of range, or `start` holds no such G.
    """

    changeable = ("judge", "estimator")
    spared = ("judge", "estimator", "start")
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
        learns: Literal["gan", "encoder"] = "gan",
        start: Path | None = None,
        encoder_width: int = 32,
        latent_weight: float = 0.1,
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
        self.learns = learns
        self.latent_weight = latent_weight
        self.estimator = estimator
        if start is not None and learns == "gan":
            raise ValueError("start is the G that an encoder is trained against: give it with learns: encoder")
        if latent_weight < 0:
            raise ValueError(f"latent_weight is {latent_weight}; expected 0 or more")
        self.coding = LabelCoding(youngest, oldest, age_bins)
        label_dim = self.coding.length
        self.generator = LabelGenerator(latent_dim, label_dim, image_size, width, hidden, batch_norm)  # G
        self.generator.register_buffer("ages", torch.tensor([youngest, oldest]))  # what G was taught -1 and 1 to be
        self.discriminator: LabelDiscriminator | None = None
        self.encoder: LatentEncoder | None = None
        if learns == "gan":
            self.discriminator = LabelDiscriminator(label_dim, image_size, discriminator_width, hidden)  # D
        else:
            self.encoder = LatentEncoder(latent_dim, label_dim, image_size, encoder_width)  # E
            self.generator.requires_grad_(False)
            if start is not None:
                _load_generator(self.generator, start)
        self.start = start
        self.register_buffer("costs", torch.ones(2))  # D's and G's of the batch before: equal, so that both begin
        if judge is not None:
            self.judged = JudgedFaces(judge.embedding_dim)
        if estimator is not None:
            self.obedience = nn.ModuleDict({kind: LabelObedience() for kind in ("generated", "real")})

    @property
    def phases(self) -> Mapping[str, nn.Module]:
        """G and D; or E."""
        if self.discriminator is None:
            return {"encoder": cast(nn.Module, self.encoder)}
        return {"generator": self.generator, "discriminator": self.discriminator}

    @property
    def averaged(self) -> tuple[str, ...]:
        """G makes faces, E finds what it makes them of."""
        return ("generator",) if self.encoder is None else ("generator", "encoder")

    # ------------------------------------------------------------------------------------------------------- training

    def setup(self, stage: str) -> None:
        """As the base class; and see that an encoder has a generator to learn from.

        Raises:
            ValueError: neither `start` nor a checkpoint to go on from is given.
        """
        super().setup(stage)
        if stage == "fit" and self.learns == "encoder" and self.start is None and self.trainer.ckpt_path is None:
            raise ValueError(
                "an encoder learns what noise a trained generator makes faces of: give --model.start the checkpoint of "
                "a run of label_dcgan.yaml"
            )

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
        if self.discriminator is None:
            self._train_encoder(image, label)
            return
        g_learns, d_learns = self.who_learns()
        count = torch.tensor(len(image), device=image.device)
        faces = self.generator(self._noise(len(image)), label)
        real, fake = self.discriminator(image, label), self.discriminator(faces, label)
        losses = {"generator": generator_loss(fake)}
        if self.matching_aware:
            other, is_wrong = self._wrong_labels(sex, age, label)
            wrong = self.discriminator(image, label[other])
            losses["discriminator"] = matching_aware_loss(real, fake, wrong, is_wrong)
        else:
            losses["discriminator"] = discriminator_loss(real, fake)
        if g_learns:  # first: a phase changes its network in place
            self.phase("generator", self.as_joint_mean(losses["generator"], count), retain_graph=d_learns)
        if d_learns:
            self.phase("discriminator", self.as_joint_mean(losses["discriminator"], count))
        self._remember(losses, count)
        self.record(losses)
        self.log_dict({"train/gate/generator": float(g_learns), "train/gate/discriminator": float(d_learns)})

    def _train_encoder(self, image: Tensor, label: Tensor) -> None:
        """E learns from photos by what G makes of its noise, and from generated faces by theirs."""
        encoder = cast(LatentEncoder, self.encoder)
        self.generator.eval()  # as it is used: batch norm neither looks at the batch nor learns
        noise = self._noise(len(image))
        with torch.no_grad():
            faces = self.generator(noise, label)
        latents, found = encoder(torch.cat([image, faces]), label.repeat(2, 1)).chunk(2)
        losses = {
            "pixel": (self.generator(latents, label) - image).abs().mean(),
            "latent": (found - noise).square().mean(),
        }
        count = torch.tensor(len(image), device=image.device)
        self.phase("encoder", self.as_joint_mean(losses["pixel"] + self.latent_weight * losses["latent"], count))
        self.record(losses)

    def who_learns(self) -> tuple[bool, bool]:
        """Whether G and whether D learns from this batch, by the costs of the one before."""
        if not self.gate:
            return True, True
        of_d, of_g = self.costs.tolist()  # a GPU is waited for here, once a batch
        return of_g >= of_d / 3, of_d >= of_g / 2

    def _remember(self, losses: Mapping[str, Tensor], count: Tensor) -> None:
        """Keep this batch's costs, the mean over the photos of all ranks: these agree on who rests."""
        costs = torch.stack([losses["discriminator"].detach(), losses["generator"].detach()]).float()
        if self.trainer.world_size > 1:
            summed, photos = self._mean_over_ranks((costs * count, count.float()))
            costs = summed / photos
        self.costs.copy_(costs)

    def _noise(self, count: int) -> Tensor:
        return torch.rand(count, self.latent_dim, device=self.device) * 2 - 1

    @staticmethod
    def _wrong_labels(sex: Tensor, age: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """For each photo another one, whose label is its wrong one, (B,); and which of these are wrong indeed.

        They are where the sex differs, or the age by enough to be seen; and, with ages in bins, what D is told.
        """
        shift = 1 + torch.randint(len(sex) - 1, (), device=sex.device)
        wrong = (torch.arange(len(sex), device=sex.device) + shift) % len(sex)
        differs = (sex != sex[wrong]) | ((age - age[wrong]).abs() >= WRONG_BY)
        return wrong, differs & (label != label[wrong]).any(1)

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
        with evaluating(self.trained("generator")) as generator:
            faces: Tensor = generator(latents, self.coding(sex, age))
        return faces

    @torch.no_grad()
    def encode(self, image: Tensor, sex: Tensor, age: Tensor) -> Tensor:
        """What G makes a face of, by the averaged weights.

        Args:
            image: (B, 3, S, S) in [-1, 1].
            sex: float (B,), -1 female, 1 male.
            age: float (B,), years.

        Returns:
            Latents (B, L) in [-1, 1].

        Raises:
            ValueError: the model has no encoder.
        """
        if self.encoder is None:
            raise ValueError(
                "this model has no encoder: train one by experiments/label_encoder.yaml with --model.start CHECKPOINT"
            )
        with evaluating(self.trained("encoder")) as encoder:
            latents: Tensor = encoder(image, self.coding(sex, age))
        return latents

    def refine(
        self, latents: Tensor, image: Tensor, sex: Tensor, age: Tensor, steps: int, rate: float = 0.02
    ) -> Tensor:
        """Move latents so that their faces come nearer to photos: Adam on the L1 of pixels, within the prior's cube.

        Args:
            latents: (B, L) in [-1, 1], to begin with.
            image, sex, age: as for `encode`.
            steps: of the descent.
            rate: Adam's.

        Returns:
            Latents (B, L) in [-1, 1]; each the best that was met.
        """
        label = self.coding(sex, age)
        moved = latents.detach().clone().requires_grad_(True)
        optimizer = torch.optim.Adam([moved], lr=rate)
        best, least = latents.detach().clone(), torch.full((len(latents),), torch.inf, device=latents.device)
        with evaluating(self.trained("generator")) as generator:
            for step in range(steps + 1):
                errors = (generator(moved, label) - image).abs().mean((1, 2, 3))  # (B,)
                better = errors.detach() < least
                least = torch.where(better, errors.detach(), least)
                best[better] = moved.detach()[better]
                if step < steps:
                    moved.grad = torch.autograd.grad(errors.sum(), moved)[0]
                    optimizer.step()
                    with torch.no_grad():
                        moved.clamp_(-1, 1)
        return best

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
        latents, labels = torch.rand(count, self.latent_dim, generator=noise), torch.rand(2, count, generator=noise)
        age = self.coding.youngest + labels[0] * (self.coding.oldest - self.coding.youngest)
        sex = torch.where(labels[1] < 0.5, -1.0, 1.0)
        return self.generate(2 * latents.to(self.device) - 1, sex.to(self.device), age.to(self.device))

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
        """For each photo of known labels a face of these (its reconstruction by E), before judge and estimator."""
        if EVALUATION_SETS[dataloader_idx] == "gallery":
            return
        sex, age = labels_of(batch)
        known = self.coding.known(sex, age)
        image, sex, age = batch["image"][known], sex[known], age[known]
        if not len(image):  # of no use here, but ranks must hold states of one form
            for metric in self._obedience().values():
                metric.update((sex, age), (sex, age))
            return
        if self.encoder is None:
            latents = self.fixed_latents(len(image), self.number_of(batch_idx, dataloader_idx))
        else:
            latents = self.encode(image, sex, age)
        faces = self.generate(latents, sex, age)
        for images, kind in ((image, "real"), (faces, "generated")):
            if self.judge is not None:
                self.judged.update(self.judge(images), real=kind == "real")
            if self.estimator is not None:
                self._obedience()[kind].update((sex, age), self.estimator(images))

    test_step = validation_step

    def predict_step(self, batch: FaceBatch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """A face of each photo's labels.

        Returns:
            Float (B, 3, S, S) in [-1, 1]; NaN where the labels are none that the model was taught.
        """
        sex, age = labels_of(batch)
        known = self.coding.known(sex, age)
        faces = torch.full_like(batch["image"], torch.nan)
        latents = self.fixed_latents(len(sex), self.number_of(batch_idx, dataloader_idx))
        if bool(known.any()):
            faces[known] = self.generate(latents[known], sex[known], age[known]).to(faces.dtype)
        return faces

    def log_evaluation(self, stage: str) -> None:
        """Log `<stage>/faces/...` (see `JudgedFaces`), `<stage>/labels/generated/...` and `real` (`LabelObedience`)."""
        figures: dict[str, Tensor] = {}
        if self.judge is not None:
            figures |= {f"faces/{name}": value for name, value in self.judged.compute().items()}
        for kind, metric in self._obedience().items():
            figures |= {f"labels/{kind}/{name}": value for name, value in metric.compute().items()}
        self.log_dict({f"{stage}/{name}": value.to(self.device) for name, value in figures.items()})

    def sample_grids(self) -> dict[str, Picture]:
        """`ages` (figures 9 and 10): a noise vector two rows, a woman's and a man's; from 15 to 75 years, or as far as
        the model was taught.
        """
        first, last, columns = SHOWN_AGES
        first, last = max(first, self.coding.youngest), min(last, self.coding.oldest)
        if first >= last:
            first, last = self.coding.youngest, self.coding.oldest
        years = torch.linspace(first, last, columns).tolist()
        return {"ages": ages_grid(self, self.fixed_latents(SHOWN_FACES), years)}


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


def _load_generator(generator: nn.Module, path: Path) -> None:
    """Give G the weights of a checkpoint or export, or of `zoo:NAME`; averaged ones where there are any."""
    state = read_state_dict(zoo_file(str(path).removeprefix(PREFIX)) if str(path).startswith(PREFIX) else path)
    found: dict[str, Tensor] = {}
    for prefix in ("generator.", "ema.generator."):
        found |= {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    own = generator.state_dict()
    found = {key: value for key, value in own.items() if not value.is_floating_point()} | found
    unlike = [key for key in dict.fromkeys((*own, *found)) if key not in own or key not in found]
    unlike += [key for key in own if key in found and own[key].shape != found[key].shape]
    if unlike:
        raise ValueError(
            f"--model.start {path} holds no G of these sizes ({len(unlike)} of {len(own)} tensors differ, {unlike[0]} "
            "first): give --model.latent_dim, --model.width, --model.hidden and the others as they were in its training"
        )
    if not torch.equal(own["ages"], found["ages"]):
        was, now = ("{:g} to {:g}".format(*state["ages"].tolist()) for state in (found, own))
        raise ValueError(
            f"--model.start: the G of {path} was taught ages from {was}, not {now}: give its own as --model.youngest "
            "and --model.oldest"
        )
    generator.load_state_dict(found)
