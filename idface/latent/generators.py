"""Any generator behind one interface: latents in, faces in the common aligned frame out."""

import copy
import itertools
import pickle
from pathlib import Path
from typing import Literal, Self, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from idface.recognition.alignment import FACE_TEMPLATE, FIT_POINTS, fit_similarity
from idface.recognition.frames import FrameWarp
from idface.recognition.weights import fingerprint_of

Prior = Literal["uniform", "normal"]
"""What latents are drawn from: U(-1, 1)^L, the cube of Li & Luo, or N(0, I)."""


class Generator(nn.Module):
    """A frozen network from latents to faces, and what a search must know of its latent space.

    Args:
        network: maps float32 (B, L) to (B, 3, S, S) or grey (B, 1, S, S) in [-1, 1]. It runs in evaluation mode: in
            training mode a face would depend on the others in its batch.
        latent_dim: L.
        prior: what latents were drawn from in training.
        landmarks: where its faces have the left and right eye, the nose and the corners of the mouth (x, y), in units
            of the picture's side, if that is not where the common frame has them (FACE_TEMPLATE): its faces are then
            brought there, as photos are. One place for all: it must have been trained on aligned faces.
        gradient_fingerprints: of the recognisers through which a loss flowed when it was trained: none of them may
            judge its faces.

    Raises:
        ValueError: the network makes no square pictures of latents of this length, or the landmarks are no five points.
    """

    def __init__(
        self,
        network: nn.Module,
        latent_dim: int,
        prior: Prior = "uniform",
        landmarks: list[tuple[float, float]] | None = None,
        gradient_fingerprints: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__()
        self.gradient_fingerprints = gradient_fingerprints
        if prior not in ("uniform", "normal"):
            raise ValueError(f"prior is {prior!r}, expected 'uniform', for U(-1, 1), or 'normal', for N(0, 1)")
        self.network = network.eval()
        for parameter in network.parameters():  # TorchScript knows no requires_grad_ of a whole module
            parameter.requires_grad_(False)
        self.latent_dim = latent_dim
        self.prior = prior
        self.std = 3**-0.5 if prior == "uniform" else 1.0
        """Standard deviation of a latent's elements under the prior."""
        device = _a_tensor_of(network).device
        try:
            with torch.no_grad():
                shape = network(torch.zeros(2, latent_dim, device=device)).shape
        except (RuntimeError, AttributeError, TypeError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise ValueError(f"the generator makes nothing of latents of length {latent_dim}: {reason}") from error
        if len(shape) != 4 or shape[1] not in (1, 3) or shape[2] != shape[3]:
            raise ValueError(
                f"the generator makes {tuple(shape)} of two latents, expected pictures (2, 3, S, S) or (2, 1, S, S)"
            )
        self.image_size: int = shape[-1]
        self.warp: nn.Module = nn.Identity()
        if landmarks is not None:
            points = np.asarray(landmarks, np.float64)
            if points.shape != (5, 2):
                raise ValueError(f"landmarks are {landmarks}, expected five points [x, y] in units of the side")
            fit = list(FIT_POINTS)
            self.warp = FrameWarp(fit_similarity(points[fit], FACE_TEMPLATE[fit]), self.image_size).to(device)

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return _a_tensor_of(self.network).device

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return _a_tensor_of(self.network).dtype

    def in_bfloat16(self) -> Self:
        """A copy whose network computes in bfloat16."""
        reduced = copy.deepcopy(self)
        reduced.network.to(torch.bfloat16)
        return reduced

    def forward(self, latents: Tensor) -> Tensor:
        """Latents (B, L) to faces, float32 (B, 3, S, S) in [-1, 1], in the common aligned frame; differentiable."""
        image: Tensor = self.warp(self.network(latents.to(self.dtype)).float())
        return image.clamp(-1, 1).expand(-1, 3, -1, -1)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever `mode` the module around asks for."""
        del mode
        return super().train(False)

    def sample(self, count: int, noise: torch.Generator, truncation: float = 1.0) -> Tensor:
        """Draw latents from the prior, the same ones on every device.

        Args:
            count: N.
            noise: where random numbers come from, on the CPU.
            truncation: factor below 1 that draws them towards the origin: fewer strange faces, less variety.

        Returns:
            (N, L) float32 on the CPU.
        """
        if self.prior == "uniform":
            return (torch.rand(count, self.latent_dim, generator=noise) * 2 - 1) * truncation
        return torch.randn(count, self.latent_dim, generator=noise) * truncation

    def contain(self, latents: Tensor) -> Tensor:
        """The nearest latents (..., L) that the prior could have given.

        Inside the cube; for N(0, I), whose latents all have a length near sqrt(L), no longer than that.
        """
        if self.prior == "uniform":
            return latents.clamp(-1, 1)
        length = latents.norm(dim=-1, keepdim=True)
        return latents * (self.latent_dim**0.5 / length).clamp(max=1)

    def fingerprint(self) -> str:
        """Twelve hexadecimal digits of the SHA-256 over the weights' names, shapes and values, and the frame."""
        frame = {"frame": self.warp.grid} if isinstance(self.warp, FrameWarp) else {}
        return fingerprint_of(self.network.state_dict() | frame, f"{self.latent_dim} {self.prior}")


def _a_tensor_of(network: nn.Module) -> Tensor:
    """Any floating-point parameter or buffer; one of the CPU's where there is none."""
    tensors = itertools.chain(network.parameters(), network.buffers())
    return next((tensor for tensor in tensors if tensor.is_floating_point()), torch.zeros(0))


class ExternalGenerator(Generator):
    """A generator that was trained elsewhere.

    On command lines it is described by a YAML file with these arguments, which stands wherever a checkpoint does:

        weights: faces.ts               # TorchScript; or weights.safetensors, then with a network
        latent_dim: 512
        prior: normal
        network: {class_path: my_package.MyGenerator, init_args: {width: 64}}
        landmarks: [[0.35, 0.48], [0.65, 0.48], [0.5, 0.61], [0.38, 0.74], [0.62, 0.74]]

    Args:
        weights: a TorchScript file, or a safetensors file with the state of `network`.
        latent_dim, prior, landmarks: see `Generator`.
        network: the network that the safetensors file is of; None for TorchScript.

    Raises:
        FileNotFoundError: there is no file `weights`.
        ValueError: it cannot be read, does not fit the network, or makes no pictures.
    """

    def __init__(
        self,
        weights: Path,
        latent_dim: int,
        prior: Prior = "uniform",
        network: nn.Module | None = None,
        landmarks: list[tuple[float, float]] | None = None,
    ) -> None:
        super().__init__(_read_network(Path(weights), network), latent_dim, prior, landmarks)


def _read_network(weights: Path, network: nn.Module | None) -> nn.Module:
    if not weights.is_file():
        raise FileNotFoundError(f"there is no file '{weights}' with the generator's weights")
    is_safetensors = weights.suffix == ".safetensors"
    if is_safetensors != (network is not None):
        raise ValueError(
            f"weights '{weights}': a safetensors file needs the `network` that it is of"
            if is_safetensors
            else f"weights '{weights}': with a `network`, expected its state as a .safetensors file"
        )
    try:
        if network is None:
            return cast(nn.Module, torch.jit.load(weights, map_location="cpu"))
        network.load_state_dict(load_file(weights))
    except (RuntimeError, OSError, SafetensorError, pickle.UnpicklingError, ValueError) as error:
        kind = "safetensors file of the network" if is_safetensors else "TorchScript file"
        raise ValueError(f"weights '{weights}' cannot be read as a {kind}: {str(error).splitlines()[0]}") from error
    return network
