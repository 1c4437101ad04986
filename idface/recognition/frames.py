"""From the common aligned frame to the framing that a recogniser was trained on."""

from collections.abc import Callable
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idface.recognition.base import resize


class FrameWarp(nn.Module):
    """A fixed affine map from one square frame to another, differentiable, antialiased, composed once.

    What the target frame shows beyond the source picture is black, as in the pictures that recognisers are trained on.
    On half of LFW's pairs MobileFaceNet is right in 98.2 % with black, 97.8 % with the reflected picture, 97.3 % with
    its repeated border.

    Args:
        matrix: (2, 3) affine map from unit coordinates of the source frame (see `alignment`) to those of the target
            frame.
        size: side of the target picture in pixels.
    """

    grid: Tensor

    def __init__(self, matrix: npt.NDArray[np.float64], size: int) -> None:
        super().__init__()
        inverse = np.linalg.inv(np.vstack([matrix, (0, 0, 1)]))[:2]
        linear, shift = inverse[:, :2], inverse[:, 2]
        # affine_grid counts from -1 to 1 where the unit frame counts from 0 to 1.
        theta = np.column_stack([linear, linear.sum(1) + 2 * shift - 1])
        grid = F.affine_grid(torch.from_numpy(theta)[None].float(), [1, 3, size, size], align_corners=False)
        self.register_buffer("grid", grid, persistent=False)
        # A finer picture than the target can show is brought down first, so that sampling it cannot alias.
        self.finest = round(size / np.sqrt(np.abs(np.linalg.det(linear))))

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, H) in the source frame -> (B, C, size, size) in the target frame, both in [-1, 1]."""
        whole = resize(image, min(self.finest, image.shape[-1])).float()
        grid = self.grid.expand(len(image), -1, -1, -1)
        warped = F.grid_sample(whole + 1, grid, mode="bilinear", padding_mode="zeros", align_corners=False) - 1
        return warped.to(image.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        grid = self.grid
        super()._apply(fn, recurse)
        self.grid = grid.to(self.grid.device)  # places stay float32, whatever the networks around compute in
        return self
