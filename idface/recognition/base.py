"""One interface for every face recogniser: an aligned picture in, a unit vector out."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idface.recognition.calibration import Calibration, Verification, stored_calibration
from idface.recognition.weights import fingerprint_of


class Recognizer(nn.Module, ABC):
    """A frozen network that tells whose face it is shown.

    It takes pictures in the common aligned frame (see `alignment`), in [-1, 1] and of any size, and does its own
    cropping, resizing and scaling. Gradients flow to the picture, not to the weights, unless somebody asks for that
    (`requires_grad_`); the network stays in evaluation mode whatever the module around it does. It computes in float32,
    also under autocast; a copy `in_bfloat16` computes in that.

    Two faces are compared by `distance`, the squared distance of their unit vectors; `thresholds` says which distances
    mean the same person.

    A subclass gives `name`, `embedding_dim` and `stage_names`, loads its weights, calls `freeze` and implements
    `stages`.
    """

    name: str
    """What the recogniser is called in reports."""
    embedding_dim: int
    """Length D of an embedding."""
    stage_names: tuple[str, ...]
    """The intermediate features that `stages` yields, from the picture upwards, ending in "raw"."""
    _calibration: Calibration | None = None
    _fingerprint: str | None = None

    @property
    def feature_layers(self) -> tuple[str, ...]:
        """All names that `features` knows, from the picture upwards."""
        return (*self.stage_names, "embedding")

    @abstractmethod
    def stages(self, image: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Run the network on (B, 3, H, W) in [-1, 1], yielding each feature of `stage_names` as it is ready.

        The picture is of the weights' type. The last is "raw": the embedding (B, D) before it is scaled to length 1.
        """

    def forward(self, image: Tensor) -> Tensor:
        """Embed aligned faces.

        Args:
            image: (B, 3, H, W) floating point in [-1, 1], H = W.

        Returns:
            (B, D) float32 of length 1, differentiable with respect to the image.

        Raises:
            ValueError: the image has another shape or an integer type.
        """
        return self.features(image, ["embedding"])["embedding"]

    @torch.no_grad()
    def embed(self, images: Tensor, batch_size: int = 64, layer: str = "embedding") -> Tensor:
        """Embed any number of aligned faces, batch by batch and without gradients.

        Args:
            images: (N, 3, H, W), N at least 1, uint8 in [0, 255] or floating point in [-1, 1], on any device.
            batch_size: how many go through at once.
            layer: "raw" gives embeddings before they are scaled to length 1.

        Returns:
            (N, D) float32, on the recogniser's device.
        """
        device = next(self.parameters()).device
        parts = (part.to(device) for part in images.split(batch_size))
        floats = (part if part.is_floating_point() else part / 127.5 - 1 for part in parts)
        return torch.cat([self.features(part, [layer])[layer] for part in floats])

    def features(self, image: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Intermediate features of aligned faces; the network runs only as far as the highest one asked for.

        Args:
            image: as for `forward`.
            layers: names among `feature_layers`.

        Returns:
            Each name's feature, float32: "embedding" (B, D) of length 1, "raw" (B, D) before scaling, the others
            (B, C, H', W') or (B, C).

        Raises:
            ValueError: unknown layer, or an image that `forward` refuses.
        """
        unknown = sorted(set(layers) - set(self.feature_layers))
        if unknown:
            raise ValueError(f"{self.name} has no feature layer {unknown}; it has {', '.join(self.feature_layers)}")
        if image.ndim != 4 or image.shape[1] != 3 or image.shape[2] != image.shape[3]:
            raise ValueError(
                f"{self.name} takes aligned square faces (B, 3, H, H); got {tuple(image.shape)}. "
                "Align photos with idface.recognition.alignment.warp_face first"
            )
        if not image.is_floating_point():
            raise ValueError(f"{self.name} takes floats in [-1, 1]; got {image.dtype}. For uint8: image / 127.5 - 1")

        wanted, found = set(layers), {}
        dtype = next(self.parameters()).dtype
        with torch.autocast(image.device.type, enabled=False):
            for name, feature in self.stages(image.to(dtype)):
                if name in wanted:
                    found[name] = feature.float()
                if name == "raw" and "embedding" in wanted:
                    found["embedding"] = F.normalize(feature.float(), dim=1)
                if len(found) == len(wanted):
                    break
        return {name: found[name] for name in layers}

    def fingerprint(self) -> str:
        """Twelve hexadecimal digits of the SHA-256 over the names, shapes and values of all weights.

        A copy in bfloat16 keeps that of the network it was made of.
        """
        if self._fingerprint is not None:
            return self._fingerprint
        return fingerprint_of(self.state_dict())

    @property
    def calibration(self) -> Calibration:
        """How well this network's distances tell people apart, measured on labelled pairs.

        Kept with the package for the weights it knows, by fingerprint; for others assign what `calibration.calibrate`
        returns.

        Raises:
            LookupError: no calibration is stored for these weights and none was assigned.
        """
        return self._calibration or stored_calibration(self.name, self.fingerprint())

    @calibration.setter
    def calibration(self, calibration: Calibration) -> None:
        self._calibration = calibration

    @property
    def thresholds(self) -> Verification:
        """Which values of `distance` mean the same person: the calibration's part about unit embeddings."""
        return self.calibration.unit

    @property
    def everyday(self) -> Calibration | None:
        """Distances of photos from anywhere: the calibration that was assigned, else LFW's if it is kept, else ORL's.

        None if there is none of these.
        """
        if self._calibration is not None:
            return self._calibration
        for set_name in ("LFW", "ORL"):
            with suppress(LookupError):
                return stored_calibration(self.name, self.fingerprint(), set_name)
        return None

    def freeze(self) -> Self:
        """Fix the weights, switch to evaluation for good and lay the convolutions out channels-last."""
        self.requires_grad_(False)
        self.to(memory_format=torch.channels_last)
        return self.train(False)

    def in_bfloat16(self) -> Self:
        """A copy that computes in bfloat16: the same person, a little less exactly, several times as fast.

        With dlib's weights an embedding is off by 0.7 % of its length, where that is supported by the processor (AMX on
        CPUs, any recent GPU).
        """
        fingerprint = self.fingerprint()
        reduced = copy.deepcopy(self)
        reduced._fingerprint = fingerprint
        return reduced.to(torch.bfloat16)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever `mode` the module around asks for."""
        del mode
        return super().train(False)


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Squared Euclidean distance of unit embeddings, 2 - 2 cos: 0 for equal, 2 for orthogonal, 4 for opposite ones.

    Args:
        a: (..., D) unit vectors.
        b: (..., D) unit vectors; leading axes broadcast.

    Returns:
        (...) distances.
    """
    return (a - b).square().sum(-1)


def resize(image: Tensor, size: int) -> Tensor:
    """Bring (B, 3, H, H) to (B, 3, size, size): bilinear, antialiased, unchanged if it has that size."""
    if image.shape[-1] == size:
        return image
    shrinks = size < image.shape[-1]  # enlarging, there is nothing to alias, and plain bilinear compiles well
    whole = image.float() if shrinks else image  # antialiasing knows no bfloat16 on a CPU
    return F.interpolate(whole, size=(size, size), mode="bilinear", antialias=shrinks).to(image.dtype)
