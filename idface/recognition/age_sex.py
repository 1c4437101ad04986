"""How old people look and of which sex, by a network trained on labelled photos: judges faces made of such labels."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from idface.networks.age_sex import AgeSexNetwork, expected_age
from idface.networks.vgg import BOTTOM
from idface.recognition.weights import assign_weights, fingerprint_of, read_state_dict
from idface.zoo import PREFIX, zoo_file

PREFIX_OF_EXPORTS = "network."


def _photos_digest(path: Path) -> str | None:
    """What an export says of the photos; None of other files."""
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("facts", "null")) or {}
    except (SafetensorError, ValueError):  # what is wrong with the file, reading its weights says
        return None
    return facts.get("photos_digest")


class AgeSexEstimator(nn.Module):
    """A frozen network that estimates age and sex. No loss of a generator may flow through the one that judges it.

    `photos_digest` tells the photos that it was trained on from others, if it is known (see `FaceModule`).

    Args:
        weights: `zoo:NAME`, or a file that `idface export` wrote of `experiments/age_sex.yaml`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not hold this network's weights.
    """

    def __init__(self, weights: str | Path = "zoo:age-sex") -> None:
        super().__init__()
        path = zoo_file(str(weights).removeprefix(PREFIX)) if str(weights).startswith(PREFIX) else Path(weights)
        self.photos_digest = _photos_digest(path)
        state = {name.removeprefix(PREFIX_OF_EXPORTS): value for name, value in read_state_dict(path).items()}
        convolutions = [value for name, value in state.items() if name.startswith("layers.") and value.ndim == 4]
        if not convolutions:
            raise ValueError(f"{path} holds no estimator of age and sex: give what `idface export` made of such a one")
        input_size = BOTTOM * 2 ** (len(convolutions) // 2)
        with torch.device("meta"):  # the weights come from the file
            self.network = AgeSexNetwork(input_size, len(convolutions[0]))
        counts = {name: torch.tensor(0) for name, value in self.network.state_dict().items() if value.ndim == 0}
        assign_weights(self.network, counts | state, path)  # exports leave out how many batches a norm has seen
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "AgeSexEstimator":
        """It stays in evaluation mode, whatever the module around it does."""
        return super().train(False)

    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that tell its weights from others."""
        return fingerprint_of(self.state_dict())

    @torch.no_grad()
    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Estimate sex and age.

        Args:
            image: (B, 3, S, S) floating point in [-1, 1], in the common aligned frame, of any size.

        Returns:
            Sex (B,), -1 female or 1 male, and age (B,) in years; both float32.
        """
        with torch.autocast(image.device.type, enabled=False):
            male, years = self.network(image.float())
        return torch.where(male > 0, 1.0, -1.0), expected_age(years)
