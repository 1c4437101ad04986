"""A small network that says what a face looks like: attributes, and where eyes, nose and mouth are."""

from collections.abc import Sequence

from torch import Tensor, nn

from idface.networks.vgg import BOTTOM, brought_to, stage_widths

LANDMARK_SCALE = 0.01
"""What the landmarks' head speaks in, in units of the side: aligned faces differ by that much. Adam moves every weight
by its learning rate, and thousands of them at once would throw the points out of the picture."""


class AttributeNetwork(nn.Module):
    """Attributes and landmarks of an aligned face: strided 3x3 convolutions, and a linear head each on their last map.

    The last map is not averaged over its 4x4 places: faces are aligned, so where something is says what it is.

    Args:
        attributes: their names, one a logit.
        mean_face: (5, 2), where the landmarks of the mean face are, in units of the side.
        input_size: side to which pictures are brought, in pixels, a power of two.
        width: channels of the first stage.
        dropout: share of the features that the attributes' head does not see in a training step.

    Raises:
        ValueError: no attributes, one of them twice, or a size or width that `stage_widths` refuses.
    """

    def __init__(
        self,
        attributes: Sequence[str],
        mean_face: Tensor,
        input_size: int = 64,
        width: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not attributes or len(set(attributes)) < len(attributes):
            raise ValueError(f"attributes are {list(attributes)}, expected one name or more, each once")
        self.mean_face: Tensor
        self.attributes = tuple(attributes)
        self.input_size = input_size
        layers: list[nn.Module] = []
        channels = 3
        for stage_width in stage_widths(input_size, width):
            convolution = nn.Conv2d(channels, stage_width, 3, stride=2, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(stage_width), nn.ReLU(inplace=True)]
            channels = stage_width
        self.backbone = nn.Sequential(*layers, nn.Flatten())
        self.dropout = nn.Dropout(dropout)
        self.attribute_head = nn.Linear(channels * BOTTOM**2, len(self.attributes))
        self.landmark_head = nn.Linear(channels * BOTTOM**2, mean_face.numel())
        self.register_buffer("mean_face", mean_face.clone())

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """What the network sees in faces.

        Args:
            image: (B, 3, S, S) floating point in [-1, 1], in the common aligned frame.

        Returns:
            Logits (B, A) of the attributes, and landmarks (B, 5, 2), x and y in units of the picture's side with
            (0, 0) its upper left corner; both float32.
        """
        features = self.backbone(brought_to(image, self.input_size))  # (B, 8w * 4 * 4)
        logits, moved = self.attribute_head(self.dropout(features)), self.landmark_head(features)
        return logits.float(), self.mean_face + LANDMARK_SCALE * moved.float().view(-1, *self.mean_face.shape)
