"""FaceNet: the Inception-ResNet of `facenet-pytorch`."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from idface.recognition.alignment import FACE_TEMPLATE
from idface.recognition.base import Recognizer
from idface.recognition.frames import FrameWarp
from idface.recognition.weights import assign_weights, read_state_dict

RELEASE = "https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9/"
FILES = {"vggface2": "20180402-114759-vggface2.pt", "casia-webface": "20180408-102900-casia-webface.pt"}

# Where the landmarks lie on average in the pictures that facenet-pytorch makes for this network: MTCNN's box with a
# margin of 14 of 160 pixels, stretched to a square. Measured on 999 LFW photos.
FACENET_TEMPLATE = np.array(
    [(0.3096, 0.3990), (0.7204, 0.3922), (0.5184, 0.5774), (0.3410, 0.7356), (0.7048, 0.7300)], np.float64
)


class FaceNet(Recognizer):
    """Inception-ResNet v1 (Szegedy et al. 2017) trained to classify faces, after FaceNet (Schroff et al. 2015). 512-d.

    By the account of facenet-pytorch 99.65 % (vggface2) and 99.05 % (casia-webface) on Labeled Faces in the Wild.

    Args:
        pretrained: the set that it was trained on.
        weights: file of weights; by default facenet-pytorch's own in its cache, `$TORCH_HOME/checkpoints`.
        download: fetch the file into that cache if it is not there.

    Raises:
        FileNotFoundError: the weights are not there and were not asked to be fetched.
        ValueError: the file does not hold this network's weights, or `pretrained` is unknown.
    """

    name = "facenet"
    embedding_dim = 512
    stage_names = ("stem", "repeat_1", "mixed_6a", "repeat_2", "mixed_7a", "repeat_3", "block8", "pooled", "raw")

    def __init__(
        self,
        pretrained: Literal["vggface2", "casia-webface"] = "vggface2",
        weights: str | Path | None = None,
        download: bool = False,
    ) -> None:
        super().__init__()
        if pretrained not in FILES:
            raise ValueError(f"FaceNet is trained on one of {', '.join(FILES)}; got pretrained={pretrained!r}")
        from facenet_pytorch import InceptionResnetV1  # imports torchvision: seconds that only FaceNet needs

        path = Path(weights) if weights is not None else _cached_weights(pretrained, download)
        state = read_state_dict(path)
        with torch.device("meta"):  # the weights come from the file: none are drawn, and no random state moves
            self.network = InceptionResnetV1(pretrained=None, classify=False)
        # The files also hold the classifier over the training people.
        assign_weights(self.network, {k: v for k, v in state.items() if not k.startswith("logits.")}, path)
        self.warp = FrameWarp(_stretch(FACE_TEMPLATE, FACENET_TEMPLATE), 160)
        self.freeze()

    def stages(self, image: Tensor) -> Iterator[tuple[str, Tensor]]:
        """See `Recognizer.stages`."""
        network = self.network
        x = self.warp(image) * (127.5 / 128)  # facenet-pytorch scales by (pixel - 127.5) / 128
        for layer in ("conv2d_1a", "conv2d_2a", "conv2d_2b", "maxpool_3a", "conv2d_3b", "conv2d_4a", "conv2d_4b"):
            x = getattr(network, layer)(x)
        yield "stem", x  # (B, 256, 17, 17)
        for layer in self.stage_names[1:-2]:
            x = getattr(network, layer)(x)
            yield layer, x
        x = x.mean((2, 3))  # (B, 1792)
        yield "pooled", x
        yield "raw", network.last_bn(network.last_linear(x))


def _stretch(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(2, 3) matrix of the scale and shift along each axis that lay points on others, by least squares."""
    (sx, dx), (sy, dy) = (np.polyfit(source[:, axis], target[:, axis], 1) for axis in (0, 1))
    return np.array([[sx, 0, dx], [0, sy, dy]])


def _cached_weights(pretrained: str, download: bool) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    path = Path(os.environ.get("TORCH_HOME", f"{cache}/torch")).expanduser() / "checkpoints" / FILES[pretrained]
    url = RELEASE + FILES[pretrained]
    if not path.is_file():
        if not download:
            raise FileNotFoundError(
                f"FaceNet has no weights: there is no file {path}. Put {url} there, name a copy with 'weights', "
                "or have it fetched with 'download=True'"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        # No checksum is published; what comes is loaded as weights only, so that it cannot run code.
        torch.hub.download_url_to_file(url, str(path))
    return path
