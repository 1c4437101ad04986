"""What a recombined face has kept of its attribute source: pose, expression, light and background."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

MEASURES = ("yaw", "mouth", "brightness", "background")


class AttributePreservation(Metric):
    """Mean differences between faces that should be alike but for the person.

    Bao et al. show this in pictures only. Of each pair, a result and its attribute source: `yaw` in degrees; `mouth`,
    how far its corners are from where they should be, as seen from the eyes and in eye distances (mean of both);
    `brightness`, from 0 to 1; `background`, mean squared difference of pixels in [-1, 1] outside the face.

    Beside each, `<measure>_chance`: the same of results and the attribute sources of others, which is what a model that
    ignores its attribute photo comes to; and `<measure>_source`, of the photos that gave the identity and the attribute
    sources, which is what a model comes to that hands the identity photo through.

    `update` takes what `describe_faces` says of all three kinds of faces.
    """

    full_state_update = False
    result: list[Tensor]
    attributes: list[Tensor]
    source: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("result", "attributes", "source"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, result: Tensor, attributes: Tensor, source: Tensor) -> None:
        """Take descriptions (B, D) of B results, of their attribute sources and of their identity sources."""
        for name, described in (("result", result), ("attributes", attributes), ("source", source)):
            getattr(self, name).append(described)

    def compute(self) -> dict[str, Tensor]:
        """The figures listed above, float32 scalars; empty where there are not two results."""
        if not len(self.result):
            return {}
        result, attributes, source = (dim_zero_cat(each) for each in (self.result, self.attributes, self.source))
        if len(result) < 2:
            return {}
        figures: dict[str, Tensor] = {}
        order = torch.randperm(len(result), generator=torch.Generator().manual_seed(0))  # results may be sorted
        others = torch.empty_like(attributes)
        others[order] = attributes[order.roll(1)]
        kinds = {"": (result, attributes), "_chance": (result, others), "_source": (source, attributes)}
        for kind, pair in kinds.items():
            for name, value in zip(MEASURES, differences(*pair), strict=True):
                figures[f"{name}{kind}"] = value.mean()
        return figures


def describe_faces(images: Tensor, landmarks: Tensor, yaw: Tensor, brightness: Tensor, face: tuple[int, int]) -> Tensor:
    """What `AttributePreservation` compares of faces.

    Args:
        images: (B, 3, S, S) in [-1, 1].
        landmarks: (B, 5, 2) in units of the side; the mouth's corners are the last two.
        yaw: (B,) degrees.
        brightness: (B,) from 0 to 1.
        face: first and last row, and column, of the face in pixels; what lies outside is background.

    Returns:
        (B, D) float32.
    """
    eyes = (landmarks[:, 1] - landmarks[:, 0])[:, None]  # (B, 1, 2): the unit, and the direction of x
    below = landmarks[:, 3:] - landmarks[:, :2].mean(1, keepdim=True)
    size = eyes.square().sum(-1).clamp(min=1e-12)
    along, across = (below * eyes).sum(-1), below[..., 1] * eyes[..., 0] - below[..., 0] * eyes[..., 1]
    corners = torch.stack([along / size, across / size], -1)
    outside = torch.ones(images.shape[-2:], dtype=torch.bool, device=images.device)
    outside[face[0] : face[1], face[0] : face[1]] = False
    background = images[:, :, outside]  # (B, 3, P)
    return torch.cat([yaw[:, None], brightness[:, None], corners.flatten(1), background.flatten(1)], 1).float()


def differences(first: Tensor, second: Tensor) -> list[Tensor]:
    """Each of MEASURES, (B,), between faces that `describe_faces` has described, (B, D) each."""
    apart = first - second
    corners = apart[:, 2:6].view(-1, 2, 2).norm(dim=2).mean(1)
    return [apart[:, 0].abs(), corners, apart[:, 1].abs(), apart[:, 6:].square().mean(1)]
