"""dlib's 128-d face recogniser as a PyTorch network, without dlib."""

import hashlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idface.recognition.base import Recognizer, resize
from idface.recognition.dlib_file import Layer, read_layers

WEIGHTS_FILE = "models/dlib_face_recognition_resnet_model_v1.dat"
WEIGHTS_SHA256 = "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30"

MEAN_COLOUR = (122.782, 117.001, 104.298)  # RGB, 0 to 255, taken off before dividing by 256

# Channels of each of the fourteen residual blocks, and whether it halves the picture.
BLOCKS = (
    *((32, False),) * 3,
    *((64, True), *((64, False),) * 3),
    *((128, True), *((128, False),) * 2),
    *((256, True), *((256, False),) * 2),
    (256, True),
)
STAGES = {"stage1": 3, "stage2": 7, "stage3": 10, "stage4": 13, "stage5": 14}
"""After how many blocks each named feature is taken."""


class DlibResNet(Recognizer):
    """The ResNet of `dlib.face_recognition_model_v1`: 99.38 % on Labeled Faces in the Wild by its author's account.

    29 convolutions after He et al. (2016) with half the filters, trained by King (2017, blog.dlib.net, "High quality
    face recognition with deep metric learning") on some three million faces of 7,485 people. The raw vector is what
    dlib calls the face descriptor: it has a length of 1.2 to 1.5, and raw vectors nearer than about 0.6 are one person
    by dlib's own account.

    The weights are read from the installed package `face-recognition-models`. Each affine layer is folded into the
    convolution before it and the scaling of the pixels into the first one: the same function, several times dlib's
    speed.

    Args:
        weights: another copy of `dlib_face_recognition_resnet_model_v1.dat`; the package's own by default.

    Raises:
        FileNotFoundError: the package or the named file is missing.
        ValueError: the file is not the one that is meant, bit for bit.
    """

    name = "dlib"
    embedding_dim = 128
    stage_names = ("stem", *STAGES, "pooled", "raw")

    def __init__(self, weights: str | Path | None = None) -> None:
        super().__init__()
        with torch.device("meta"):  # the weights come from the file: none are drawn, and no random state moves
            self.stem = nn.Conv2d(3, 32, 7, stride=2)
            channels = (32, *(width for width, _ in BLOCKS))
            self.blocks = nn.ModuleList(
                _Block(before, width, halves) for before, (width, halves) in zip(channels, BLOCKS, strict=False)
            )
            self.head = nn.Linear(256, 128, bias=False)
        path = Path(weights) if weights is not None else packaged_weights()
        self.load_state_dict(_folded_weights(_verified_layers(path), str(path)), assign=True)
        self.freeze()

    def stages(self, image: Tensor) -> Iterator[tuple[str, Tensor]]:
        """See `Recognizer.stages`. At 150x150: stem 32x35x35, stages 32x35x35, 64x17x17, 128x8x8, 256x4x4, 256x2x2."""
        x = resize(image, 150).contiguous(memory_format=torch.channels_last)
        x = F.max_pool2d(F.relu(self.stem(x), inplace=True), 3, stride=2)  # (B, 32, 35, 35)
        yield "stem", x
        names = {count: name for name, count in STAGES.items()}
        for count, block in enumerate(self.blocks, start=1):
            x = block(x)
            if count in names:
                yield names[count], x
        x = x.mean((2, 3))  # (B, 256)
        yield "pooled", x
        yield "raw", self.head(x)


class _Block(nn.Module):
    """Residual block; a halving one strides in its first convolution and pools on the skip."""

    def __init__(self, channels_in: int, channels: int, halves: bool) -> None:
        super().__init__()
        # dlib pads a convolution only where it does not stride.
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=2 if halves else 1, padding=0 if halves else 1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.halves = halves

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        y = self.conv2(F.relu(self.conv1(x), inplace=True))
        if self.halves:
            x = F.avg_pool2d(x, 2)
            # dlib adds tensors of unequal size by filling BOTH up with zeros at the end of each axis: 3x3 + 4x4 is 4x4.
            size = [max(a, b) for a, b in zip(x.shape[1:], y.shape[1:], strict=True)]
            x, y = _fill_up(x, size), _fill_up(y, size)
        return F.relu(x + y, inplace=True)


def _fill_up(x: Tensor, size: list[int]) -> Tensor:
    missing = [want - have for want, have in zip(size, x.shape[1:], strict=True)]
    if not any(missing):
        return x
    channels, height, width = missing
    return F.pad(x, (0, width, 0, height, 0, channels))


def packaged_weights() -> Path:
    """Where the installed package `face-recognition-models` keeps dlib's file.

    Raises:
        FileNotFoundError: the package is not installed.
    """
    # Found, not imported: the package's own __init__ needs pkg_resources, which setuptools no longer brings.
    spec = find_spec("face_recognition_models")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            "DlibResNet reads its weights from the package face-recognition-models, which is not installed: "
            "pip install face-recognition-models"
        )
    return Path(spec.submodule_search_locations[0]) / WEIGHTS_FILE


def _verified_layers(path: Path) -> list[Layer]:
    if not path.is_file():
        raise FileNotFoundError(f"No file {path}; DlibResNet needs {Path(WEIGHTS_FILE).name} there")
    data = path.read_bytes()
    layers = read_layers(data, str(path))
    found = hashlib.sha256(data).hexdigest()
    if found != WEIGHTS_SHA256:
        raise ValueError(
            f"{path} is damaged or another model: its SHA-256 is {found}, expected {WEIGHTS_SHA256}. "
            "Reinstall the package face-recognition-models, or name an intact copy of the file"
        )
    return layers


def _folded_weights(layers: list[Layer], source: str) -> dict[str, Tensor]:
    """The state dict of `DlibResNet`, affine layers folded in; in float64, so that every machine rounds alike."""
    architecture = ["con", "affine", "relu", "max_pool"]
    for _, halves in BLOCKS:
        architecture += [
            "con",
            "affine",
            "relu",
            "con",
            "affine",
            *(["avg_pool"] if halves else []),
            "add_prev",
            "relu",
        ]
    architecture += ["avg_pool", "fc"]
    if [layer.kind for layer in layers] != architecture:
        raise ValueError(f"{source} holds a network of another architecture than dlib's face recogniser")

    names = ["stem", *(f"blocks.{i}.conv{k}" for i in range(len(BLOCKS)) for k in (1, 2))]
    convolutions = [layer for layer in layers if layer.kind == "con"]
    affines = [layer for layer in layers if layer.kind == "affine"]
    state: dict[str, npt.NDArray[np.floating[Any]]] = {}
    for name, convolution, affine in zip(names, convolutions, affines, strict=True):
        filters, height, width = convolution.options[:3]
        weight = convolution.parameters[:-filters].astype(np.float64).reshape(filters, -1, height, width)
        bias = convolution.parameters[-filters:].astype(np.float64)
        gamma, beta = affine.parameters.astype(np.float64).reshape(2, filters)
        weight, bias = weight * gamma[:, None, None, None], bias * gamma + beta
        if name == "stem":
            # The network wants (pixel - mean) / 256, where pixel = 127.5 (x + 1) for x in [-1, 1].
            offset = (127.5 - np.array(MEAN_COLOUR)) / 256
            bias = bias + (weight * offset[:, None, None]).sum((1, 2, 3))
            weight = weight * (127.5 / 256)
        state[f"{name}.weight"] = weight
        state[f"{name}.bias"] = bias
    dimensions, inputs = layers[-1].options
    state["head.weight"] = layers[-1].parameters.reshape(inputs, dimensions).T
    return {name: torch.from_numpy(np.ascontiguousarray(value, np.float32)) for name, value in state.items()}
