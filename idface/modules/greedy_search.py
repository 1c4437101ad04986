"""Li & Luo 2017, *Generate Identity-Preserving Faces by GANs*.

And Vendrow & Singhal 2019, *Inverting Facial Embeddings with GANs*.
"""

import copy
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from data_modules.batch import EVALUATION_SETS, FaceBatch
from idface.latent.bank import Bank
from idface.latent.generators import Generator
from idface.latent.results import in_words, search_people, write_overview
from idface.latent.search import JOURNAL
from idface.latent.strategies import Hybrid, SearchStrategy
from idface.losses.adversarial import discriminator_loss, generator_loss
from idface.losses.matching import identity_preserving_loss
from idface.metrics.variety import JudgedFaces
from idface.modules.base import FaceModule, dcgan_adam, evaluating
from idface.names import from_here
from idface.networks.dcgan import DCGANDiscriminator, DCGANGenerator, dcgan_init
from idface.pictures import Picture, mark_synthetic, to_picture
from idface.recognition.base import Recognizer
from idface.run import run_folder


class GreedySearchModule(FaceModule):
    """A GAN generator, and the search of its latent space for the face nearest to a given person.

    Training is DCGAN's (Radford et al., 2015) with latents z ~ U(-1, 1)^200 (Li & Luo, section 3.3), and on demand
    with the identity-preserving loss of Vendrow & Singhal (section 2): both networks learn from one forward pass.

    Prediction (`lightning predict`) searches for the people of the photos that it is given: it embeds them, and after
    the last batch searches for everybody at once. `idface search` does the same for any photos. Neither trains
    anything, so the recogniser that guides the search need not be one that the generator has never seen; but it cannot
    judge what it has found: `judge` does.

    Args:
        latent_dim: L.
        image_size: side of the images in pixels, a power of two; Li & Luo's is 64.
        width: channels of G's last stage before the image (64 in DCGAN).
        discriminator_width: channels of D's first stage (64 in DCGAN).
        identity_recognizer: the network of the identity-preserving loss; None trains without.
        identity_weight: weight of that loss beside the adversarial one; the paper does not give it.
        identity_layers: its layers; None for the last two before the unit embedding, as in the paper.
        identity_bfloat16: whether it runs in bfloat16: several times as fast where the processor has it.
        recognizer: what guides the search in prediction; None takes `judge`.
        strategy: of the search in prediction.
        budget: evaluations for each person.
        people: most people to search for in prediction, those with the most photos.
        bank: what `idface bank build` has written of this generator, for strategies that start from one.
        seed: of the search in prediction.
        judge: recogniser of the evaluation: how far generated faces are from real ones as a distribution (Fréchet
            distance of embeddings), and how various they are.
        optimizer: makes the optimisers; DCGAN's Adam.
        discriminator_optimizer: makes D's; None takes `optimizer`.
        scheduler, gradient_clip, ema_decay, compile, channels_last: see `FaceModule`.
    """

    changeable = ("judge", "recognizer")
    spared = ("judge", "recognizer", "identity_recognizer", "identity_layers", "identity_bfloat16")

    def __init__(
        self,
        latent_dim: int = 200,
        image_size: int = 64,
        width: int = 64,
        discriminator_width: int = 64,
        identity_recognizer: Recognizer | None = None,
        identity_weight: float = 1.0,
        identity_layers: list[str] | None = None,
        identity_bfloat16: bool = False,
        recognizer: Recognizer | None = None,
        strategy: SearchStrategy | None = None,
        budget: int = 10_000,
        people: int = 16,
        bank: Path | None = None,
        seed: int = 0,
        judge: Recognizer | None = None,
        optimizer: OptimizerCallable = dcgan_adam,
        discriminator_optimizer: OptimizerCallable | None = None,
        scheduler: LRSchedulerCallable | None = None,
        gradient_clip: float | None = None,
        ema_decay: float = 0.999,
        compile: bool = False,
        channels_last: bool = True,
    ) -> None:
        super().__init__(judge, optimizer, scheduler, gradient_clip, ema_decay, compile, channels_last)
        for name, value in (("latent_dim", latent_dim), ("budget", budget), ("people", people)):
            if value < 1:
                raise ValueError(f"{name} is {value}; expected 1 or more")
        if identity_weight < 0:
            raise ValueError(f"identity_weight is {identity_weight}; expected 0 or more")
        self.latent_dim = latent_dim
        self.image_size = image_size
        self.discriminator_optimizer = discriminator_optimizer
        self.identity_weight = identity_weight
        self.identity_recognizer: Recognizer | None = None
        if identity_recognizer is not None:
            self.identity_layers = identity_layers or list(identity_recognizer.stage_names[-2:])
            if unknown := sorted(set(self.identity_layers) - set(identity_recognizer.feature_layers)):
                raise ValueError(
                    f"identity_layers has {unknown[0]}; {identity_recognizer.name} has "
                    f"{', '.join(identity_recognizer.feature_layers)}"
                )
            self.gradient_fingerprints = frozenset({identity_recognizer.fingerprint()})
            self.identity_recognizer = identity_recognizer.in_bfloat16() if identity_bfloat16 else identity_recognizer
        elif identity_layers or identity_bfloat16:
            raise ValueError("identity_layers and identity_bfloat16 are of an identity_recognizer, but there is none")
        self.recognizer = recognizer
        self.strategy = strategy or Hybrid()
        self.budget = budget
        self.people = people
        self.bank = bank
        self.seed = seed
        self.generator = DCGANGenerator(latent_dim, image_size, width)  # G
        self.discriminator = DCGANDiscriminator(image_size, discriminator_width).apply(dcgan_init)  # D
        if judge is not None:
            self.judged = JudgedFaces(judge.embedding_dim)

    @property
    def phases(self) -> Mapping[str, nn.Module]:
        """G and D."""
        return {"generator": self.generator, "discriminator": self.discriminator}

    @property
    def averaged(self) -> tuple[str, ...]:
        """G alone makes faces."""
        return ("generator",)

    def phase_optimizer(self, name: str) -> OptimizerCallable:
        """D may have an optimiser of its own."""
        if name == "discriminator" and self.discriminator_optimizer is not None:
            return self.discriminator_optimizer
        return self.optimizer

    # ------------------------------------------------------------------------------------------------------- training

    def step(self, batch: FaceBatch) -> None:
        """One batch of a GAN: L_D for D; for G the adversarial loss, and on demand the identity-preserving one.

        Li & Luo (section 2.1) print `log(1 - D(G(z)))` for G, whose gradient vanishes while D is sure; `-log D(G(z))`
        has the same fixed point and is what DCGAN, which they use, minimises.
        """
        image = batch["image"]
        latents = torch.rand(len(image), self.latent_dim, device=image.device) * 2 - 1
        result = self.generator(latents)
        _, real_logits = self.discriminator(image)
        _, fake_logits = self.discriminator(result)
        losses = {
            "discriminator": discriminator_loss(real_logits, fake_logits),
            "generator": generator_loss(fake_logits),
        }
        objective = losses["generator"]
        if self.identity_recognizer is not None:
            with torch.no_grad():
                real = self.identity_recognizer.features(image, self.identity_layers)
            made = self.identity_recognizer.features(result, self.identity_layers)
            losses["identity"] = identity_preserving_loss(list(made.values()), list(real.values()))
            objective = objective + self.identity_weight * losses["identity"]
        self.phase("generator", objective, retain_graph=True)  # first: a phase changes its network in place
        self.phase("discriminator", losses["discriminator"])
        self.record(losses)

    # -------------------------------------------------------------------------------------------------- after training

    def latent_generator(self) -> Generator:
        """What is searched: a copy of G with its averaged weights, in evaluation mode, with the prior U(-1, 1)."""
        network = copy.deepcopy(self.trained("generator"))
        return Generator(network, self.latent_dim, gradient_fingerprints=self.gradient_fingerprints)

    @torch.no_grad()
    def forward(self, latents: Tensor) -> Tensor:
        """Faces (B, 3, S, S) in [-1, 1] of latents (B, L), by the averaged weights in evaluation mode."""
        with evaluating(self.trained("generator")) as generator:
            faces: Tensor = generator(latents)
        return faces

    def fixed_latents(self, count: int, part: int = 0) -> Tensor:
        """The same latents (count, L) ~ U(-1, 1)^L every time; others for another `part`."""
        noise = torch.Generator().manual_seed(part)
        return (torch.rand(count, self.latent_dim, generator=noise) * 2 - 1).to(self.device)

    def sample_grids(self) -> dict[str, Picture]:
        """64 faces, of the same latents every time."""
        faces = to_picture(self(self.fixed_latents(64)))
        rows = [
            np.concatenate([mark_synthetic(face) for face in faces[start : start + 8]], 1) for start in range(0, 64, 8)
        ]
        return {"faces": np.concatenate(rows)}

    def start_evaluation(self) -> None:
        """Forget an evaluation before; processes that were spawned even share its figures' memory until then."""
        if self.judge is not None:
            self.judged.reset()

    def validation_step(self, batch: FaceBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As many generated faces as there are real ones, before the judge."""
        if self.judge is None or EVALUATION_SETS[dataloader_idx] == "gallery":
            return
        faces = self(self.fixed_latents(len(batch["image"]), self.number_of(batch_idx, dataloader_idx)))
        self.judged.update(self.judge(batch["image"]), real=True)
        self.judged.update(self.judge(faces), real=False)

    test_step = validation_step

    def log_evaluation(self, stage: str) -> None:
        """Log `<stage>/faces/...`: the judge's Fréchet distance, and how far apart two faces are on average."""
        if self.judge is None:
            return
        self.log_dict({f"{stage}/faces/{name}": value.to(self.device) for name, value in self.judged.compute().items()})

    # ------------------------------------------------------------------------------------------------------ prediction

    def on_predict_start(self) -> None:
        """Nobody is known yet."""
        if (self.recognizer or self.judge) is None:
            raise ValueError("prediction searches for people, by a recogniser: give model.recognizer or model.judge")
        self._photos: dict[int, dict[int, Tensor]] = defaultdict(dict)

    def predict_step(self, batch: FaceBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Take the photos of people who are known."""
        people, rows = batch["identity"].tolist(), batch["index"].tolist()
        for image, person, row in zip(batch["image"].cpu(), people, rows, strict=True):
            if person >= 0:
                self._photos[person][row] = image  # once, though it comes again with each of its partners

    def on_predict_epoch_end(self) -> None:
        """Search for everybody, and write what was found into `samples/predict/<person>` of the run's folder."""
        with torch.inference_mode(False):  # the search differentiates
            self._search_for(self._photos_of_all_ranks())

    def _search_for(self, everybody: dict[int, dict[int, Tensor]]) -> None:
        chosen = sorted(everybody, key=lambda person: (-len(everybody[person]), person))[: self.people]
        if not chosen:
            raise ValueError("the photos to predict on show nobody who is known: there is nobody to search for")
        guide = cast(Recognizer, self.recognizer or self.judge)
        generator = self.latent_generator()
        bank = None if self.bank is None else Bank(self.bank)
        if bank is not None:
            bank.check(generator, guide)
        names = getattr(getattr(self.trainer, "datamodule", None), "identity_names", None)
        photos = {
            str(names[person] if names else person).replace("/", "-"): torch.stack(
                [image for _, image in sorted(everybody[person].items())]
            )
            for person in chosen[self.global_rank :: self.trainer.world_size]  # each rank searches for some
        }
        folder = run_folder(self.trainer) / "samples" / "predict"
        if photos:
            results = search_people(
                photos,
                generator,
                guide,
                self.strategy,
                self.budget,
                self.seed,
                folder,
                {"checkpoint": str(self.trainer.ckpt_path)} if self.trainer.ckpt_path else {},
                bank,
                self.judge if self.recognizer is not None else None,
                journal=f"{JOURNAL}-{self.global_rank}",
                progress=self.trainer.is_global_zero and self.trainer.progress_bar_callback is not None,
            )
            for name, result in results.items():
                print(in_words(name, result))
        self.trainer.strategy.barrier()
        if self.trainer.is_global_zero:
            rank_zero_info(f"Found faces: {from_here(write_overview(folder))}")

    def _photos_of_all_ranks(self) -> dict[int, dict[int, Tensor]]:
        """Everybody's photos (3, S, S), on the CPU, by person and row of the data set, on every rank."""
        parts: list[Any] = [self._photos]
        if self.trainer.world_size > 1:
            parts = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(parts, dict(self._photos))
        photos: dict[int, dict[int, Tensor]] = defaultdict(dict)
        for part in parts:
            for person, images in part.items():
                photos[person] |= {row: image.clone() for row, image in images.items()}  # no tensor of inference
        return photos
