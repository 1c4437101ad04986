"""From an embedding back to a picture without a generator: gradient descent on the pixels themselves.

Vendrow & Singhal 2019, sections 4.1 and 5.1, after Zhmoginov & Sandler 2016 (arXiv 1606.04189). A baseline: nothing in
it knows what faces look like but the recogniser, and the guiding picture if there is one.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from idface.latent.scoring import distance_from_mean
from idface.losses.inversion import embedding_loss, guide_loss, total_variation_loss
from idface.names import did_you_mean, nearest
from idface.recognition.base import Recognizer, resize

STAGES = 5
"""Pictures kept on the way."""

_NOISE = 0.1  # standard deviation of the start: against it the learning rate counts
_COARSEST = 4  # pixels a side


class Inverted(NamedTuple):
    """What `invert_pixels` found for T targets.

    Attributes:
        images: float32 (T, 3, S, S) in [-1, 1].
        stages: (K, T, 3, S, S), pictures on the way from the noise at equal intervals; the last are `images`.
        stage_steps: the steps that these were taken after.
        history: by quantity (steps + 1, T), before every step and after the last: "distance", the squared distance from
            the target; "variation" and, with a guide, "guide", the losses before they are weighted; and "loss", their
            weighted sum.
    """

    images: Tensor
    stages: Tensor
    stage_steps: list[int]
    history: dict[str, Tensor]


def invert_pixels(
    recognizer: Recognizer,
    targets: Tensor,
    size: int = 128,
    steps: int = 500,
    *,
    tv_weight: float = 15.0,
    guide: Tensor | None = None,
    guide_layer: str | None = None,
    guide_weight: float = 2.0,
    learning_rate: float = 0.01,
    final_learning_rate: float = 0.0001,
    literal_sums: bool = False,
    pyramid: bool = True,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Inverted:
    """Draw pictures whose embeddings are given ones.

    Pixels have any value and go through tanh into [-1, 1]. Other than in the paper they are the sum of pictures of S,
    S / 2, S / 4, ... pixels a side, enlarged, and the descent is on all of these: it reaches the same pictures, but
    light and dark parts as fast as fine detail, where on single pixels noise stays for hundreds of steps. And squared
    norms are means over elements, so the paper's weights say less here than they do there.

    The optimiser is Adam, the learning rate falls exponentially. Every target starts from the same noise and is a
    problem of its own: alone or in a batch, it ends as the same picture but for rounding.

    Args:
        recognizer: the network to go down through, on the device where all of this runs.
        targets: (T, D) unit embeddings, or the mean of those of several photos of a person.
        size: S, side of the pictures in pixels.
        steps: of the descent, 1 or more.
        tv_weight: of the total variation where the cosine has 1; the paper's is 15, of a sum.
        guide: float (1, 3, S', S') or (T, 3, S', S') in [-1, 1], a face to stay near in an intermediate layer.
        guide_layer: the layer, one of `recognizer.feature_layers`; by default `default_guide_layer`.
        guide_weight: its weight; the paper's is "around 2", of a sum.
        learning_rate: at the start.
        final_learning_rate: at the end.
        literal_sums: take squared norms as sums, as printed.
        pyramid: descend on pictures of several sizes; without, on single pixels, as in the paper.
        seed: of the noise at the start.
        progress: called with the number of steps made.

    Raises:
        ValueError: a layer that the recogniser does not have, or one without a guide; a size, number of steps, weight
            or learning rate that is out of range; targets of another length than the recogniser's embeddings.
    """
    _check(recognizer, targets, size, steps, tv_weight, guide_weight, learning_rate, final_learning_rate)
    if guide is None and guide_layer is not None:
        raise ValueError(f"a guide layer, {guide_layer}, is of no use without a guide")
    layer = None if guide is None else guide_layer or default_guide_layer(recognizer)
    if layer is not None and layer not in recognizer.feature_layers:
        known = recognizer.feature_layers
        meant = did_you_mean(nearest(layer, known))
        raise ValueError(f"{recognizer.name} has no feature layer '{layer}'.{meant} It has {', '.join(known)}")
    device = next(recognizer.parameters()).device
    targets = targets.to(device)
    aim = None
    if guide is not None and layer is not None:
        with torch.no_grad():
            aim = recognizer.features(resize(guide.to(device), size), [layer])[layer]

    def losses(pictures: Tensor) -> dict[str, Tensor]:
        """Each (T,)."""
        features = recognizer.features(pictures, ["embedding"] if layer is None else ["embedding", layer])
        found = {"distance": distance_from_mean(features["embedding"], targets)}
        found["variation"] = total_variation_loss(pictures, literal_sums)
        found["loss"] = embedding_loss(features["embedding"], targets) + tv_weight * found["variation"]
        if layer is not None and aim is not None:
            found["guide"] = guide_loss(features[layer], aim, literal_sums)
            found["loss"] = found["loss"] + guide_weight * found["guide"]
        return found

    layers = _noise(size, len(targets), seed, device)
    if not pyramid:
        del layers[1:]
    optimizer = torch.optim.Adam(layers, lr=learning_rate)
    factor = (final_learning_rate / learning_rate) ** (1 / steps)
    stage_steps = sorted({round(steps * i / (STAGES - 1)) for i in range(STAGES)})
    stages, history = [], []
    for step in range(steps + 1):
        pictures = _pictures(layers)
        found = losses(pictures)
        history.append({name: values.detach() for name, values in found.items()})
        if step in stage_steps:
            stages.append(pictures.detach())
        progress(step)
        if step < steps:
            optimizer.zero_grad()
            found["loss"].sum().backward()
            optimizer.step()
            optimizer.param_groups[0]["lr"] *= factor
    series = {name: torch.stack([each[name] for each in history]) for name in history[0]}
    return Inverted(stages[-1], torch.stack(stages), stage_steps, series)


def default_guide_layer(recognizer: Recognizer) -> str:
    """The layer for guides: late but with places left, as in the paper (5.1); of dlib's network "stage3", 8x8 places.

    Of the later two less of a face is to be seen, and the embedding comes no nearer to the target's.
    """
    return recognizer.stage_names[-5:][0]


def _noise(size: int, targets: int, seed: int, device: torch.device) -> list[Tensor]:
    """Pictures (T, 3, s, s) of size, size / 2, ... to learn; the largest is noise, the same for every target."""
    noise = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(seed)) * _NOISE
    layers = [noise.to(device).repeat(targets, 1, 1, 1)]
    while layers[-1].shape[-1] >= 2 * _COARSEST:
        side = layers[-1].shape[-1] // 2
        layers.append(torch.zeros(targets, 3, side, side, device=device))
    return [layer.requires_grad_() for layer in layers]


def _pictures(layers: list[Tensor]) -> Tensor:
    """Pictures (T, 3, S, S) in [-1, 1], from pixels of any value in several sizes."""
    size = layers[0].shape[2:]
    enlarged = [F.interpolate(each, size, mode="bilinear") for each in layers[1:]]
    return torch.tanh(torch.stack([layers[0], *enlarged]).sum(0))


def _check(
    recognizer: Recognizer,
    targets: Tensor,
    size: int,
    steps: int,
    tv_weight: float,
    guide_weight: float,
    learning_rate: float,
    final_learning_rate: float,
) -> None:
    if targets.ndim != 2 or targets.shape[1] != recognizer.embedding_dim:
        raise ValueError(
            f"targets are {tuple(targets.shape)}, expected embeddings of {recognizer.name}, (T, "
            f"{recognizer.embedding_dim})"
        )
    if size < 2 or steps < 1:
        raise ValueError(f"pictures of {size} pixels in {steps} steps: expected 2 pixels and 1 step or more")
    if not (tv_weight >= 0 and guide_weight >= 0):
        raise ValueError(f"weights are {tv_weight} and {guide_weight}, expected 0 or more")
    if not 0 < final_learning_rate <= learning_rate:
        raise ValueError(
            f"the learning rate falls from {learning_rate} to {final_learning_rate}: expected numbers above 0, the "
            "second no larger"
        )
