"""*Conditional face synthesis*: a conditional VAE-GAN whose faces train better recognisers."""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from data_modules.batch import EVALUATION_SETS, FaceBatch
from idface.losses.classification import UNKNOWN, identity_loss
from idface.losses.matching import mean_absolute_difference
from idface.losses.variational import kl_divergence
from idface.losses.wasserstein import critic_generator_loss, critic_loss, gradient_penalty
from idface.metrics.identification import RankOne
from idface.metrics.variety import JudgedFaces
from idface.modules.base import FaceModule, dcgan_adam
from idface.networks.cvae_gan import ConditionalGenerator, Encoder, MultiScaleDiscriminator, Synthesizer, Views, shrunk
from idface.pictures import Picture, mark_synthetic, to_picture
from idface.recognition.base import Recognizer

SHOWN = 8
"""People on the sample grids."""


class CondVAEGAN(FaceModule):
    """Faces of given people, as various as photos of them.

    E turns a photo into P(z|x), G a latent and an identity into a face. Discriminators at two scales tell real from
    generated faces, as Wasserstein critics with a gradient penalty, and say who is on them. A frozen recogniser
    compares a photo with the faces made of its person (eq. 7). Faces of latents drawn from P(z|x) and from N(0, I) go
    through all of this side by side. E and G learn from L_{E,G}, the discriminators from L_D (eq. 8).

    The paper's ablations are arguments: without `discriminators` and `identity_recognizer` it is a CVAE, without
    `encoder` a CGAN, which has neither pixel nor KL loss.

    Args:
        num_identities: people N of the training set; the command line takes it from the data.
        latent_dim: L.
        image_size: side of the images in pixels: 32, 64, 128 (the paper's) or 256.
        width: channels of G's last stage before the image.
        encoder_width: channels of E's first convolution.
        discriminator_width: channels of the discriminators' first convolutions.
        identity_dim: length of an identity's embedding.
        encoder: whether there is E.
        discriminators: how many there are, the first before whole images, each other before half the side.
        identity_recognizer: FR of eq. 7, any recogniser; None for none.
        identity_bfloat16: whether it runs in bfloat16: several times as fast where the processor has it.
        classification_weight, feature_weight, pixel_weight, kl_weight, identity_weight, penalty_weight: the lambdas of
            eq. 2 and 8.
        literal_weighting: the critics' generated terms with a full weight each, as printed, see `critic_loss`.
        judge: recogniser of the evaluation; one that no loss used.
        optimizer: makes both optimisers.
        scheduler: None for the paper's: the rate stays for half of the run and then falls to 0 along a line.
        gradient_clip, ema_decay, compile, channels_last: see `FaceModule`.

    Raises:
        ValueError: an argument is out of range, or nothing would be left for G to learn from.
    """

    spared = ("judge", "identity_recognizer", "identity_bfloat16")

    def __init__(
        self,
        num_identities: int,
        latent_dim: int = 256,
        image_size: int = 128,
        width: int = 32,
        encoder_width: int = 64,
        discriminator_width: int = 64,
        identity_dim: int = 256,
        encoder: bool = True,
        discriminators: int = 2,
        identity_recognizer: Recognizer | None = None,
        identity_bfloat16: bool = False,
        classification_weight: float = 1.0,
        feature_weight: float = 1.0,
        pixel_weight: float = 10.0,
        kl_weight: float = 0.01,
        identity_weight: float = 1.0,
        penalty_weight: float = 1.0,
        literal_weighting: bool = False,
        judge: Recognizer | None = None,
        optimizer: OptimizerCallable = dcgan_adam,
        scheduler: LRSchedulerCallable | None = None,
        gradient_clip: float | None = None,
        ema_decay: float = 0.999,
        compile: bool = False,
        channels_last: bool = True,
    ) -> None:
        super().__init__(judge, optimizer, scheduler, gradient_clip, ema_decay, compile, channels_last)
        if num_identities < 2:
            raise ValueError(f"num_identities is {num_identities}; telling people apart takes at least 2")
        for name, length in (("latent_dim", latent_dim), ("identity_dim", identity_dim)):
            if length < 1:
                raise ValueError(f"{name} is {length}; expected 1 or more")
        if not 0 <= discriminators <= 2:
            raise ValueError(f"discriminators is {discriminators}; expected 0 to 2, the paper's")
        weights = {
            "classification_weight": classification_weight,
            "feature_weight": feature_weight,
            "pixel_weight": pixel_weight,
            "kl_weight": kl_weight,
            "identity_weight": identity_weight,
            "penalty_weight": penalty_weight,
        }
        for name, value in weights.items():
            if value < 0:
                raise ValueError(f"{name} is {value}; expected 0 or more")
        if not encoder and not discriminators:
            raise ValueError("encoder is false and discriminators is 0: nothing says what a face looks like; give one")
        if identity_bfloat16 and identity_recognizer is None:
            raise ValueError("identity_bfloat16 is of an identity_recognizer, but there is none")
        self.num_identities = num_identities
        self.latent_dim = latent_dim
        self.image_size = image_size
        self.classification_weight = classification_weight
        self.feature_weight = feature_weight
        self.pixel_weight = pixel_weight
        self.kl_weight = kl_weight
        self.identity_weight = identity_weight
        self.penalty_weight = penalty_weight
        self.literal_weighting = literal_weighting
        self.identity_recognizer: Recognizer | None = None
        if identity_recognizer is not None:
            self.gradient_fingerprints = frozenset({identity_recognizer.fingerprint()})
            self.identity_recognizer = identity_recognizer.in_bfloat16() if identity_bfloat16 else identity_recognizer
        self.synthesizer = Synthesizer(
            ConditionalGenerator(num_identities, latent_dim, image_size, width, identity_dim),
            Encoder(latent_dim, image_size, encoder_width) if encoder else None,
        )
        self.discriminators = (
            MultiScaleDiscriminator(discriminators, num_identities, image_size, discriminator_width)
            if discriminators
            else None
        )
        if judge is not None:
            self.judged = JudgedFaces(judge.embedding_dim)
            self.found = nn.ModuleDict({kind: RankOne() for kind in ("generated", "real")})

    @property
    def phases(self) -> Mapping[str, nn.Module]:
        """E and G together; the discriminators, if there are any."""
        synthesizer = {"synthesizer": self.synthesizer}
        return synthesizer if self.discriminators is None else {**synthesizer, "discriminators": self.discriminators}

    @property
    def averaged(self) -> tuple[str, ...]:
        """What makes faces."""
        return ("synthesizer",)

    # ------------------------------------------------------------------------------------------------------- training

    def configure_optimizers(self) -> Any:
        """As the base class; without a scheduler of the user's own, with the paper's (section 4)."""
        if self.scheduler is not None:
            return super().configure_optimizers()
        total = self.trainer.estimated_stepping_batches
        optimizers = super().configure_optimizers()
        return optimizers, [LambdaLR(each, lambda step: min(1.0, 2 - 2 * step / total)) for each in optimizers]

    @property
    def kinds(self) -> int:
        """Faces that are made for each photo: x_encode, where there is E, and x_random, where anything looks at it."""
        looked_at = self.discriminators is not None or self._uses_recognizer
        return int(self.synthesizer.encoder is not None) + int(looked_at)

    @property
    def _uses_recognizer(self) -> bool:
        return self.identity_recognizer is not None and self.identity_weight > 0

    def on_train_start(self) -> None:
        """As the base class; and see that training photos show people who are known.

        Raises:
            ValueError: some show nobody who is.
        """
        super().on_train_start()
        split = getattr(getattr(self.trainer, "datamodule", None), "split", None)
        if split is not None and (strangers := int((split.identity[split.train] == UNKNOWN).sum())):
            raise ValueError(
                f"{strangers} of the training photos show nobody who is known, and this model makes faces of people: "
                "take these photos out of the data (a folder's are in `unlabelled`)"
            )

    def step(self, batch: FaceBatch) -> None:
        """One batch of Algorithm 1; both sides learn from one forward pass, E and G first."""
        image, identity = batch["image"], batch["identity"]
        noise = torch.randn(self.kinds, len(image), self.latent_dim, device=image.device)
        faces, posterior = self.synthesizer(image, identity, noise)
        losses: dict[str, Tensor] = {}
        terms: list[Tensor] = []
        if posterior is not None:
            losses["pixel"] = mean_absolute_difference([faces[0]], [image])  # eq. 4
            losses["kl"] = kl_divergence(*posterior)  # eq. 5
            terms += [self.pixel_weight * losses["pixel"], self.kl_weight * losses["kl"]]
        if self._uses_recognizer:
            losses["identity"] = self._identity_loss(image, faces)
            terms.append(self.identity_weight * losses["identity"])
        if self.discriminators is None:
            self.phase("synthesizer", torch.stack(terms).sum())
        else:
            real: list[Views] = self.discriminators(image)
            fake: list[Views] = self.discriminators(torch.cat(faces))
            of_g = self._losses_of_generator(real, fake, identity)
            of_d = self._losses_of_discriminators(real, fake, identity, image, faces)
            terms += [
                of_g["adversarial"],
                self.classification_weight * of_g["classification_fake"],
                self.feature_weight * of_g["features"],
            ]
            # The order matters: a phase changes its network in place, and the first one's gradient walks through both.
            self.phase("synthesizer", torch.stack(terms).sum(), retain_graph=True)
            objective = of_d["critic"] + self.classification_weight * of_d["classification_real"]
            self.phase("discriminators", objective + self.penalty_weight * of_d["penalty"])
            losses |= of_g | of_d
        self.record(losses)

    def _identity_loss(self, image: Tensor, faces: tuple[Tensor, ...]) -> Tensor:
        """L_id (eq. 7), in what the recogniser's penultimate layer gives."""
        recognizer = cast(Recognizer, self.identity_recognizer)
        with torch.no_grad():
            real = recognizer.features(image, ["raw"])["raw"]
        made = recognizer.features(torch.cat(faces), ["raw"])["raw"].chunk(len(faces))
        return mean_absolute_difference(made, [real] * len(faces))

    def _losses_of_generator(self, real: list[Views], fake: list[Views], identity: Tensor) -> dict[str, Tensor]:
        """The discriminators' part of L_{E,G} (eq. 8), summed over them."""
        kinds = self.kinds
        sums = {"adversarial": [], "classification_fake": [], "features": []}  # type: dict[str, list[Tensor]]
        for photo, face in zip(real, fake, strict=True):
            sums["adversarial"].append(critic_generator_loss(face.values.chunk(kinds), self.literal_weighting))
            sums["classification_fake"] += [identity_loss(logits, identity) for logits in face.logits.chunk(kinds)]
            layers = [feature.chunk(kinds) for feature in face.features]
            sums["features"] += [
                mean_absolute_difference([layer[kind] for layer in layers], photo.features) for kind in range(kinds)
            ]
        return {name: torch.stack(each).sum() for name, each in sums.items()}

    def _losses_of_discriminators(
        self, real: list[Views], fake: list[Views], identity: Tensor, image: Tensor, faces: tuple[Tensor, ...]
    ) -> dict[str, Tensor]:
        """The parts of L_D (eq. 8), summed over the discriminators."""
        assert self.discriminators is not None
        drawn = faces[-1].detach()
        if len(faces) == 2:  # a coin for each photo: the penalty is between it and either kind
            which = torch.randint(2, (len(image), 1, 1, 1), device=image.device)
            drawn = torch.where(which == 0, faces[0].detach(), drawn)
        sums = {"critic": [], "classification_real": [], "penalty": []}  # type: dict[str, list[Tensor]]
        for scale, (photo, face, critic) in enumerate(zip(real, fake, self.discriminators.critics(), strict=True)):
            values = face.values.chunk(self.kinds)
            sums["critic"].append(critic_loss(photo.values, values, self.literal_weighting))
            sums["classification_real"].append(identity_loss(photo.logits, identity))
            sums["penalty"].append(gradient_penalty(critic, shrunk(image, scale), shrunk(drawn, scale)))
        return {name: torch.stack(each).sum() for name, each in sums.items()}

    # -------------------------------------------------------------------------------------------------- after training

    @torch.no_grad()
    def generate(self, latents: Tensor, identity: Tensor) -> Tensor:
        """Faces of people, by the averaged weights.

        Args:
            latents: z, float (B, L); the prior is N(0, I).
            identity: int64 (B,), the people's labels in training; or float (B, N), mixtures of them, whose weights sum
                to 1.

        Returns:
            Float (B, 3, S, S) in [-1, 1].
        """
        faces: Tensor = cast(Synthesizer, self.trained("synthesizer")).generator(latents, identity)
        return faces

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        """The mean of P(z|x), (B, L), of photos (B, 3, S, S) in [-1, 1], by the averaged weights.

        Raises:
            ValueError: the model was trained without an encoder.
        """
        encoder = cast(Synthesizer, self.trained("synthesizer")).encoder
        if encoder is None:
            raise ValueError("this model was trained without an encoder: it finds no latent of a photo")
        mean: Tensor = encoder(image)[0]
        return mean

    def interpolate(self, first: Tensor, second: Tensor, identity: Tensor, steps: int = 7) -> Tensor:
        """Faces of one person on the way from one photo's latent to another's (section 4.1, figure 6).

        Args:
            first, second: photos (B, 3, S, S) in [-1, 1].
            identity: int64 (B,), whose.
            steps: faces, those of the photos' own latents among them; 2 or more.

        Returns:
            (B, steps, 3, S, S), from the first to the second.

        Raises:
            ValueError: `steps` is below 2.
        """
        if steps < 2:
            raise ValueError(f"steps is {steps}; a way has two ends")
        ends = self.encode(first), self.encode(second)
        ways = [torch.lerp(*ends, share) for share in torch.linspace(0, 1, steps).tolist()]
        return torch.stack([self.generate(latents, identity) for latents in ways], dim=1)

    def forward(self, latents: Tensor, identity: Tensor) -> Tensor:
        """See `generate`."""
        return self.generate(latents, identity)

    def fixed_latents(self, count: int, part: int = 0) -> Tensor:
        """The same latents (count, L) ~ N(0, I) every time; others for another `part`."""
        noise = torch.Generator().manual_seed(part)
        return torch.randn(count, self.latent_dim, generator=noise).to(self.device)

    # ------------------------------------------------------------------------------------------------------ evaluation

    def start_evaluation(self) -> None:
        """See `FaceModule`."""
        self._photos: dict[int, list[Tensor]] = {}  # held-out photos of known people, for the grids
        if self.judge is not None:
            self.judged.reset()
            for metric in self._found().values():
                metric.reset()

    def _found(self) -> dict[str, RankOne]:
        return {kind: cast(RankOne, metric) for kind, metric in self.found.items()}

    def validation_step(self, batch: FaceBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """For each held-out photo of a known person a face of that person, before the judge; nobody else is known."""
        split = EVALUATION_SETS[dataloader_idx]
        known = batch["identity"] < self.num_identities
        if split == "unseen" or not known.any():
            return
        image, identity = batch["image"][known], batch["identity"][known]
        for photo, person in zip(image, identity.tolist(), strict=True):
            if person in self._photos or len(self._photos) < SHOWN:
                kept = self._photos.setdefault(person, [])
                if len(kept) < 2:
                    kept.append(photo)
        if self.judge is None:
            return
        if split == "gallery":
            embedding = self.judge(image)
            for metric in self._found().values():
                metric.update_gallery(embedding, identity)
            return
        faces = self.generate(self.fixed_latents(len(image), self.number_of(batch_idx)), identity)
        for images, kind in ((image, "real"), (faces, "generated")):
            embedding = self.judge(images)
            self._found()[kind].update(embedding, identity)
            self.judged.update(embedding, real=kind == "real")

    test_step = validation_step

    def predict_step(self, batch: FaceBatch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Faces of the photos' people, with the latents of their partners (without E, of the prior).

        Returns:
            Float (B, 3, S, S) in [-1, 1]; NaN where the person is none of the training set's.
        """
        known = (batch["identity"] >= 0) & (batch["identity"] < self.num_identities)
        faces = torch.full_like(batch["image"], torch.nan)
        if not bool(known.any()):
            return faces
        if cast(Synthesizer, self.trained("synthesizer")).encoder is None:
            latents = self.fixed_latents(len(known), batch_idx)[known]
        else:
            latents = self.encode(batch["partner"][known])
        faces[known] = self.generate(latents, batch["identity"][known])
        return faces

    def log_evaluation(self, stage: str) -> None:
        """Log `<stage>/faces/...`: see `JudgedFaces`; and `top1`, `top1_real`, the share that the judge recognises."""
        if self.judge is None:
            return
        figures = self.judged.compute()
        found = {kind: metric.compute() for kind, metric in self._found().items()}
        if found["real"]:
            figures |= {
                "top1": found["generated"]["top1"],
                "top1_real": found["real"]["top1"],
                "chance": found["real"]["chance"],
            }
        self.log_dict({f"{stage}/faces/{name}": value.to(self.device) for name, value in figures.items()})

    def sample_grids(self) -> dict[str, Picture]:
        """`people`: a person a row, first a photo, then faces, of one latent a column; `interpolation`: figure 6."""
        shown = sorted(self._photos)
        if not shown:
            return {}
        latents = self.fixed_latents(8)
        rows = []
        for person in shown:
            faces = self.generate(latents, torch.full((len(latents),), person, device=self.device))
            rows.append(_strip(self._photos[person][:1], faces))
        grids = {"people": np.concatenate(rows)}
        pairs = {person: photos for person, photos in sorted(self._photos.items()) if len(photos) == 2}
        if pairs and cast(Synthesizer, self.trained("synthesizer")).encoder is not None:
            chosen = list(pairs)
            first, second = (torch.stack([pairs[person][end] for person in chosen]) for end in (0, 1))
            ways = self.interpolate(first, second, torch.tensor(chosen, device=self.device))
            strips = [_strip([a], faces, [b]) for a, faces, b in zip(first, ways, second, strict=True)]
            grids["interpolation"] = np.concatenate(strips)
        return grids


def _strip(before: list[Tensor], faces: Tensor, after: list[Tensor] | None = None) -> Picture:
    """Photos, generated faces (marked as such), photos, side by side."""
    marked = [mark_synthetic(face) for face in to_picture(faces)]
    return np.concatenate([*map(to_picture, before), *marked, *map(to_picture, after or [])], axis=1)
