"""Losses of the descent on pixels (Vendrow & Singhal 2019, section 4.1, after Zhmoginov & Sandler 2016).

One value a picture, not a batch mean: each picture is a problem of its own, whatever else is in the batch.
"""

import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-8
"""Inside the root of the total variation: without it the gradient of a flat picture is not a number."""


def embedding_loss(embeddings: Tensor, targets: Tensor) -> Tensor:
    """How far pictures are from showing a person: `1 - cos(e_1, e_2)` (Vendrow & Singhal, section 4.1).

    The paper's `-e_1 . e_2` of raw embeddings falls without end as the embedding grows longer; its direction, which is
    what tells people apart, is what is left here.

    Args:
        embeddings: e_1, (B, D), of any length.
        targets: e_2, (B, D), of any length but 0, such as the mean of several photos' embeddings; detached.

    Returns:
        (B,) between 0 and 2; of unit embeddings half their squared distance.
    """
    return 1 - F.cosine_similarity(embeddings, targets.detach(), dim=1)


def total_variation_loss(pictures: Tensor, literal: bool = False) -> Tensor:
    """How much neighbouring pixels differ: `(|p - S_x p|^2 + |p - S_y p|^2)^(1/2)` (Vendrow & Singhal, section 4.1).

    S_x and S_y shift the picture by one pixel. The squared norms are means over elements, as everywhere in this
    project, so that a weight does not depend on the picture's size; and a small number is added inside the root.

    Args:
        pictures: p, (B, C, H, W), H and W at least 2.
        literal: take the sums as printed: at 128x128 some 220 times as much.

    Returns:
        (B,) above 0: the root mean square difference of neighbours.
    """
    right = (pictures[..., :, 1:] - pictures[..., :, :-1]).square().flatten(1)
    down = (pictures[..., 1:, :] - pictures[..., :-1, :]).square().flatten(1)
    squares = right.sum(1) + down.sum(1) if literal else right.mean(1) + down.mean(1)
    return (squares + EPSILON).sqrt()


def guide_loss(features: Tensor, guide: Tensor, literal: bool = False) -> Tensor:
    """How far pictures are from a guiding one in an intermediate layer: `|a(p) - a(g)|^2` (Vendrow & Singhal, 4.1).

    The squared norm is a mean over elements: layers differ in their number by a factor of hundreds.

    Args:
        features: a(p), (B, ...).
        guide: a(g), (B, ...) or (1, ...), detached.
        literal: take the sum as printed.

    Returns:
        (B,) at least 0.
    """
    squares = (features - guide.detach()).square().flatten(1)
    return squares.sum(1) if literal else squares.mean(1)
