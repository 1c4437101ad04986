"""MobileFaceNet: a small recogniser for weights that the user brings."""

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from idface.recognition.alignment import FACE_TEMPLATE, fit_similarity
from idface.recognition.base import Recognizer
from idface.recognition.frames import FrameWarp
from idface.recognition.weights import assign_weights, read_state_dict

# ArcFace's five points (Deng et al. 2019), in pixels of its 112x112 picture.
ARCFACE_TEMPLATE = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)], np.float64
)


class MobileFaceNet(Recognizer):
    """MobileFaceNet, 128-d.

    Chen et al. 2018, "MobileFaceNets: efficient CNNs for accurate real-time face verification on mobile devices".

    Its training pictures show more of the forehead than the aligned frame; what is missing is black, which costs little
    (`frames.FrameWarp`).

    Args:
        weights: file of weights, names as in the project arcface-pytorch (`arcface.conv1.conv.weight`, ...; the prefix
            may be missing, a classification head is ignored).
        flip: average the embeddings of the picture and its mirror image: somewhat better, at twice the cost.
            Intermediate features are those of the picture alone.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not hold this network's weights.
    """

    embedding_dim = 128
    stage_names = ("conv1", "conv2_dw", "conv_23", "conv_3", "conv_34", "conv_4", "conv_45", "conv_5", "raw")

    def __init__(self, weights: str | Path, flip: bool = False) -> None:
        super().__init__()
        self.name = "mobilefacenet+flip" if flip else "mobilefacenet"
        self.flip = flip
        path = Path(weights)
        state = {name.removeprefix("arcface."): value for name, value in read_state_dict(path).items()}
        with torch.device("meta"):  # the weights come from the file: none are drawn, and no random state moves
            self.network = _Network()
        assign_weights(self.network, {k: v for k, v in state.items() if not k.startswith("head.")}, path)
        self.warp = FrameWarp(fit_similarity(FACE_TEMPLATE, (ARCFACE_TEMPLATE + 0.5) / 112), 112)
        self.freeze()

    def stages(self, image: Tensor) -> Iterator[tuple[str, Tensor]]:
        """See `Recognizer.stages`."""
        x = self.warp(image)
        for name, feature in self.network.stages(x):
            if name == "raw" and self.flip:
                *_, (_, mirrored) = self.network.stages(x.flip(-1))
                yield name, (feature + mirrored) / 2
            else:
                yield name, feature


class _Network(nn.Module):
    """The bare network; attribute names are those of the weights files."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _convolution(3, 64, 3, stride=2)
        self.conv2_dw = _convolution(64, 64, 3, groups=64)
        self.conv_23 = _Bottleneck(64, 128, 64, stride=2)
        self.conv_3 = _Residuals(64, 128, 4)
        self.conv_34 = _Bottleneck(64, 256, 128, stride=2)
        self.conv_4 = _Residuals(128, 256, 6)
        self.conv_45 = _Bottleneck(128, 512, 128, stride=2)
        self.conv_5 = _Residuals(128, 256, 2)
        self.sep = nn.Conv2d(128, 512, 1, bias=False)
        self.sep_bn = nn.BatchNorm2d(512)
        self.prelu = nn.PReLU(512)
        self.GDC_dw = nn.Conv2d(512, 512, 7, groups=512, bias=False)
        self.GDC_bn = nn.BatchNorm2d(512)
        self.features = nn.Conv2d(512, 128, 1, bias=False)
        self.last_bn = nn.BatchNorm2d(128)

    def stages(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """(B, 3, 112, 112) in [-1, 1] -> each block's output, then "raw" (B, 128)."""
        x = x.contiguous(memory_format=torch.channels_last)
        for name in MobileFaceNet.stage_names[:-1]:
            x = getattr(self, name)(x)
            yield name, x
        x = self.prelu(self.sep_bn(self.sep(x)))  # (B, 512, 7, 7)
        x = self.GDC_bn(self.GDC_dw(x))  # (B, 512, 1, 1): a weighted mean over the picture, weights learnt by channel
        yield "raw", self.last_bn(self.features(x)).flatten(1)


def _convolution(
    channels_in: int, channels: int, kernel: int, stride: int = 1, groups: int = 1, activation: bool = True
) -> nn.Sequential:
    layers = OrderedDict[str, nn.Module](
        conv=nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        bn=nn.BatchNorm2d(channels),
    )
    if activation:
        layers["prelu"] = nn.PReLU(channels)
    return nn.Sequential(layers)


class _Bottleneck(nn.Sequential):
    """Inverted bottleneck (Sandler et al. 2018): widen, filter each channel by itself, narrow without activation."""

    def __init__(self, channels_in: int, width: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv = _convolution(channels_in, width, 1)
        self.conv_dw = _convolution(width, width, 3, stride, groups=width)
        self.project = _convolution(width, channels, 1, activation=False)


class _Residuals(nn.Module):
    """A row of bottlenecks, each added to what it was given."""

    def __init__(self, channels: int, width: int, count: int) -> None:
        super().__init__()
        self.model = nn.ModuleList(_Bottleneck(channels, width, channels, stride=1) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        for block in self.model:
            x = x + block(x)
        return x
