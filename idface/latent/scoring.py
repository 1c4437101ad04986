"""How far generated faces are from a person: generator and recogniser run together, in batches."""

import logging
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from idface.latent.generators import Generator
from idface.recognition.base import Recognizer

log = logging.getLogger(__name__)

Precision = Literal["auto", "float32", "bfloat16"]

COMPILE_FROM = 20_000
"""Candidates, scored without gradients, from which compiling, half a minute, is made up for."""


class Scorer:
    """Scores candidates (latents) by the squared distance of their face's unit embedding from a person's.

    Over several photos of a person the distance is their mean (Li & Luo, section 4): `2 - 2 e.m` with m the mean of the
    photos' unit embeddings, so one matrix product scores a batch for any number of photos.

    Scores may come in bfloat16; `exact` gives those to report. A batch that is not full is filled up to a power of two,
    or wholly where the networks are compiled for one size; what else is scored changes a score by rounding at most. On
    a GPU, gradients differ by rounding from run to run: PyTorch's interpolation has no deterministic way back there.

    Args:
        generator: makes the faces, on the device where all of this runs.
        recognizer: tells whose they are; brought to that device.
        batch_size: candidates that go through at once; None for 1024 on a GPU, 64 on a CPU.
        precision: of the two networks when they score: "auto" takes bfloat16 where the processor multiplies it fast (a
            GPU, or a CPU with AMX) and float32 elsewhere.
        compile: whether the two networks are compiled into one program: about twice the speed on a CPU, after half a
            minute. Goes on without where no compiler is at hand. Gradients are not compiled.
    """

    precision: Literal["float32", "bfloat16"]

    def __init__(
        self,
        generator: Generator,
        recognizer: Recognizer,
        batch_size: int | None = None,
        precision: Precision = "auto",
        compile: bool = False,
    ) -> None:
        self.generator = generator
        self.recognizer = recognizer.to(generator.device)
        self.batch_size = batch_size or (1024 if generator.device.type == "cuda" else 64)
        self._exact = _Embedding(generator, recognizer)
        self._fast, self.precision = self._exact, "float32"
        if precision == "bfloat16" or (precision == "auto" and is_fast_in_bfloat16(generator.device)):
            try:
                self._fast = _Embedding(generator.in_bfloat16(), recognizer.in_bfloat16())
                with torch.no_grad():
                    self._fast(torch.zeros(2, generator.latent_dim, device=generator.device))
                self.precision = "bfloat16"
            except RuntimeError as error:  # a generator from elsewhere may make tensors of a type of its own
                reason = str(error).strip().splitlines()[0]
                if precision == "bfloat16":
                    raise ValueError(f"precision is bfloat16, in which the networks do not run: {reason}") from error
                log.warning("goes on in float32, for the networks do not run in bfloat16: %s", reason)
                self._fast = self._exact
        self._run: Callable[[Tensor], Tensor] = self._fast
        self._compiled = compile
        if compile:
            example = torch.zeros(self.batch_size, generator.latent_dim, device=generator.device)
            self._run = _compiled(self._fast, example)

    @property
    def device(self) -> torch.device:
        """Where candidates are scored."""
        return self.generator.device

    @torch.no_grad()
    def embed(self, latents: Tensor) -> Tensor:
        """Unit embeddings (N, D) float32 of the faces of latents (N, L), on the device."""
        return self._batched(self._run, latents, wholly=self._compiled)

    @torch.no_grad()
    def exact(self, latents: Tensor) -> Tensor:
        """As `embed`, in float32 and not compiled: what is reported."""
        return self._batched(self._exact, latents, wholly=False)

    def distances(self, latents: Tensor, person: Tensor) -> Tensor:
        """Mean squared distances (N,) of the faces of latents (N, L) from a person's photos.

        Args:
            latents: the candidates.
            person: the mean of the unit embeddings of their photos, (D,), or one a candidate, (N, D).
        """
        return distance_from_mean(self.embed(latents), person.to(self.device))

    def gradients(self, latents: Tensor, person: Tensor) -> tuple[Tensor, Tensor]:
        """As `distances`, with the gradient of each with respect to its latent.

        Returns:
            Distances (N,) and gradients (N, L), float32.
        """
        person = person.to(self.device).expand(len(latents), -1)
        distances: list[Tensor] = []
        gradients: list[Tensor] = []
        for part, near in zip(latents.split(self.batch_size), person.split(self.batch_size), strict=True):
            count = len(part)
            with torch.enable_grad():
                filled = self._filled(part, wholly=False).detach().clone().requires_grad_()
                found = distance_from_mean(self._fast(filled)[:count], near)
                (gradient,) = torch.autograd.grad(found.sum(), filled)
            distances.append(found.detach())
            gradients.append(gradient[:count])
        return torch.cat(distances), torch.cat(gradients)

    def _batched(self, run: Callable[[Tensor], Tensor], latents: Tensor, wholly: bool) -> Tensor:
        parts = latents.split(self.batch_size)
        return torch.cat([run(self._filled(part, wholly))[: len(part)].clone() for part in parts])

    def _filled(self, latents: Tensor, wholly: bool) -> Tensor:
        """A batch on the device: latents (N, L) and zeros, up to the batch size or the next power of two."""
        latents = latents.to(self.device)
        size = self.batch_size if wholly else min(self.batch_size, 1 << (len(latents) - 1).bit_length())
        missing = size - len(latents)
        return torch.cat([latents, latents.new_zeros(missing, latents.shape[1])]) if missing else latents


def distance_from_mean(embeddings: Tensor, mean: Tensor) -> Tensor:
    """Mean squared distance of unit embeddings (..., D) from several unit vectors, by those vectors' mean (..., D)."""
    return 2 - 2 * (embeddings * mean).sum(-1)


class _Embedding(nn.Module):
    """Latents (B, L) to unit embeddings (B, D), float32."""

    def __init__(self, generator: Generator, recognizer: Recognizer) -> None:
        super().__init__()
        self.generator = generator
        self.recognizer = recognizer

    def forward(self, latents: Tensor) -> Tensor:
        embedding: Tensor = self.recognizer(self.generator(latents))
        return embedding


def is_fast_in_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 fast: a GPU that has it, or a CPU with AMX."""
    return torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_amx_tile_supported()


def _compiled(networks: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
    options: Any = {"freezing": True} if example.device.type == "cpu" else {}  # weights laid out once, for this shape
    compiled = torch.compile(networks, dynamic=False, options=options)
    try:
        with torch.no_grad():
            compiled(example)
    except Exception as error:  # no C++ compiler, no Triton, an operation that is not known: whatever it is, do without
        log.warning("goes on without compiling, which failed: %s", str(error).strip().splitlines()[0])
        return networks
    return compiled
