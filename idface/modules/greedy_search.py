"""Li & Luo 2017, *Generate Identity-Preserving Faces by GANs*; Vendrow & Singhal 2019, *Inverting Facial Embeddings*."""

from collections.abc import Mapping

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from data_modules.batch import FaceBatch
from idface.latent.generators import Generator
from idface.losses.adversarial import discriminator_loss, generator_loss
from idface.losses.matching import identity_preserving_loss
from idface.modules.base import FaceModule
from idface.networks.dcgan import DCGANDiscriminator, DCGANGenerator
from idface.pictures import Picture
from idface.recognition.base import Recognizer


class GreedySearchModule(FaceModule):
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
        judge: Recognizer | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=2e-4, betas=(0.5, 0.999)),
        discriminator_optimizer: OptimizerCallable | None = None,
        scheduler: LRSchedulerCallable | None = None,
        gradient_clip: float | None = None,
        ema_decay: float = 0.999,
        compile: bool = False,
        channels_last: bool = True,
    ) -> None:
        super().__init__(judge, optimizer, scheduler, gradient_clip, ema_decay, compile, channels_last)
        self.latent_dim = latent_dim
        self.image_size = image_size
        self.discriminator_optimizer = discriminator_optimizer
        self.identity_weight = identity_weight
        self.identity_recognizer = identity_recognizer
        if identity_recognizer is not None:
            self.gradient_fingerprints = frozenset({identity_recognizer.fingerprint()})
            self.identity_layers = identity_layers or list(identity_recognizer.stage_names[-2:])
            if identity_bfloat16:
                self.identity_recognizer = identity_recognizer.in_bfloat16()
        self.generator = DCGANGenerator(latent_dim, image_size, width)
        self.discriminator = DCGANDiscriminator(image_size, discriminator_width)

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
        return self.discriminator_optimizer or self.optimizer if name == "discriminator" else self.optimizer

    def latent_generator(self) -> Generator:
        """What is searched: G by its averaged weights, in evaluation mode, with the prior U(-1, 1)."""
        return Generator(self.trained("generator"), self.latent_dim)

    def sample_latents(self, count: int) -> Tensor:
        """Latents (count, L) ~ U(-1, 1), on the module's device."""
        return torch.rand(count, self.latent_dim, device=self.device) * 2 - 1

    def step(self, batch: FaceBatch) -> None:
        image = batch["image"]
        result = self.generator(self.sample_latents(len(image)))
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
        self.phase("generator", objective, retain_graph=True)
        self.phase("discriminator", losses["discriminator"])
        self.record(losses)

    def validation_step(self, batch: FaceBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        pass

    def sample_grids(self) -> dict[str, Picture]:
        import numpy as np

        from idface.pictures import mark_synthetic, to_picture

        g = torch.Generator().manual_seed(0)
        z = torch.rand(64, self.latent_dim, generator=g).to(self.device) * 2 - 1
        with torch.no_grad():
            faces = to_picture(self.trained("generator")(z))
        return {
            "faces": np.concatenate(
                [np.concatenate([mark_synthetic(f) for f in row], 1) for row in faces.reshape(8, 8, *faces.shape[1:])],
                0,
            )
        }
