"""LightCNN: a light recogniser of grey pictures, for weights that were published or trained here."""

from collections.abc import Iterator
from pathlib import Path

import torch
from kornia.color import rgb_to_grayscale
from torch import Tensor

from idface.networks.light_cnn import EMBEDDING, SIDE, Layers, light_cnn
from idface.recognition.base import Recognizer, resize
from idface.recognition.weights import assign_weights, read_state_dict
from idface.zoo import PREFIX, zoo_file

PREFIXES = ("module.", "network.backbone.")
"""Of the weights in the authors' files, and in those that `idface export` writes of `experiments/light_cnn.yaml`."""


def grey_picture(image: Tensor) -> Tensor:
    """Aligned faces (B, 3, S, S) in [-1, 1] as LightCNN sees them: (B, 1, 128, 128) in [0, 1].

    The authors' framing of 128x128 pixels, with the eyes' middle in row 40 and the mouth's in row 88, is the common
    aligned frame to within half a pixel; so nothing is cropped. Grey is the luma of ITU-R BT.601.
    """
    return rgb_to_grayscale(resize(image, SIDE) / 2 + 0.5)


class LightCNN(Recognizer):
    """LightCNN-9 or -29, 256-d (Wu et al. 2018, *A Light CNN for Deep Face Representation with Noisy Labels*).

    Args:
        weights: `zoo:NAME`, or a file of weights: `.pth.tar` as the authors published it (names such as
            `module.features.0.filter.weight`) or what `idface export` makes of a training here; the classifier's are
            ignored.
        layers: 9 or 29, of which the file must be.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not hold this network's weights.
    """

    embedding_dim = EMBEDDING

    def __init__(self, weights: str | Path, layers: Layers = 9) -> None:
        super().__init__()
        self.name = f"lightcnn{layers}"
        path = zoo_file(str(weights).removeprefix(PREFIX)) if str(weights).startswith(PREFIX) else Path(weights)
        state = {_own_name(name): value for name, value in read_state_dict(path).items()}
        with torch.device("meta"):  # the weights come from the file
            self.network = light_cnn(layers)
        own = {name: value for name, value in state.items() if name.split(".")[0] not in ("fc2", "network")}
        assign_weights(self.network, own, path)
        self.stage_names = self.network.stage_names
        self.freeze()

    def stages(self, image: Tensor) -> Iterator[tuple[str, Tensor]]:
        """See `Recognizer.stages`."""
        yield from self.network.stages(grey_picture(image))


def _own_name(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name
