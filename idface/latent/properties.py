"""Three properties of a generator's latent space, measured (Li & Luo 2017, section 3.3 and figure 6).

The paper shows by a few faces that their identity outlasts noise of less than half the latent's amplitude, taking the
latent's signs, and changing its amplitude; its search rests on these. Here each is the distance of the changed face
from the unchanged one, over many faces, beside what two faces of that generator are apart anyway: where all faces look
alike, any change seems to keep who it is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from idface.latent.generators import Generator
from idface.latent.scoring import Scorer
from idface.recognition.base import distance

Property = Literal["noise", "sign", "amplitude"]

NOISE_AMPLITUDES = (0.05, *(round(0.1 * i, 1) for i in range(1, 11)))
"""Of the noise, where that of the latent is 1."""
FACTORS = (0.1, 0.25, 0.5, 0.75, 1.25, 1.5, 1.75, 2.0)
"""That latents are multiplied by."""
QUANTILES = (5, 25, 50, 75, 95)


def variant(generator: Generator, latents: Tensor, name: Property, setting: float, seed: int) -> Tensor:
    """Latents changed in one of the three ways.

    Args:
        generator: knows what latents are drawn from.
        latents: (N, L).
        name: "noise" adds `setting` times a latent of its own, U(-1, 1) in the cube and N(0, 1) under a normal prior:
            1 is noise as large as the latent. The noise of a seed is the same for every amplitude, so that these can be
            compared. "sign" takes each element's sign: a corner of the cube; under a normal prior, where nearly all
            latents have a length near sqrt(L), one that has it exactly. "amplitude" multiplies by `setting`.
        setting: see there; "sign" has none.
        seed: of the noise.

    Returns:
        (N, L). What leaves the cube stays outside, as in the paper.
    """
    match name:
        case "noise":
            noise = generator.sample(len(latents), torch.Generator().manual_seed(seed))
            return latents + setting * noise.to(latents.device)
        case "sign":
            return latents.sign()
        case "amplitude":
            return latents * setting


class Spread(NamedTuple):
    """Of some squared distances of unit embeddings.

    Attributes:
        mean: their mean.
        std: standard deviation of the sample.
        quantiles: one for each of `QUANTILES`.
        same: share below the recogniser's threshold of one person; None where none is known.
    """

    mean: float
    std: float
    quantiles: tuple[float, ...]
    same: float | None

    @classmethod
    def of(cls, distances: Tensor, threshold: float | None) -> "Spread":
        """That of distances (N,), of which there must be two."""
        values = distances.double().cpu().numpy()
        same = None if threshold is None else float((values < threshold).mean())
        quantiles = tuple(float(value) for value in np.percentile(values, QUANTILES))
        return cls(float(values.mean()), float(values.std(ddof=1)), quantiles, same)


class Measured(NamedTuple):
    """What one change does to the identity."""

    property: Property
    setting: float  # 1 for "sign", which has none
    spread: Spread


@dataclass(frozen=True)
class Properties:
    """What `measure_properties` found.

    Attributes:
        latents: (N, L) float32 of the faces that were changed.
        measured: a line for each change; settings rise within a property.
        strangers: all pairs of those faces.
        threshold: of one person; None where none is known.
    """

    latents: Tensor
    measured: list[Measured]
    strangers: Spread
    threshold: float | None

    def of(self, name: Property) -> list[Measured]:
        """The lines of one property."""
        return [line for line in self.measured if line.property == name]

    def noise_limit(self) -> float | None:
        """The largest amplitude of noise up to which most faces stay the same person; 0 if none is small enough.

        None without a threshold. Li & Luo: 0.5.
        """
        limit = 0.0
        for line in self.of("noise"):
            if line.spread.same is None:
                return None
            if line.spread.same <= 0.5:
                break
            limit = line.setting
        return limit


def measure_properties(
    scorer: Scorer,
    faces: int = 200,
    seed: int = 0,
    threshold: float | None = None,
    amplitudes: Sequence[float] = NOISE_AMPLITUDES,
    factors: Sequence[float] = FACTORS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Properties:
    """Measure how far random faces get from themselves when their latents are changed.

    Args:
        scorer: the generator and the recogniser; distances are exact, in float32.
        faces: how many, 3 or more.
        seed: of the latents and the noise.
        threshold: distances below it mean the same person.
        amplitudes: of the noise, rising.
        factors: of the amplitude, rising.
        progress: called with the number of changes measured, and of all.

    Raises:
        ValueError: fewer than three faces.
    """
    if faces < 3:  # two have but one distance from each other, which has no spread
        raise ValueError(f"{faces} faces: expected 3 or more, to compare with each other")
    latents = scorer.generator.sample(faces, torch.Generator().manual_seed(seed))
    originals = scorer.exact(latents)
    changes: list[tuple[Property, float]] = [("noise", each) for each in amplitudes]
    changes += [("sign", 1.0), *(("amplitude", each) for each in factors)]
    measured = []
    for done, (name, setting) in enumerate(changes):
        progress(done, len(changes))
        changed = scorer.exact(variant(scorer.generator, latents, name, setting, seed + 1))
        measured.append(Measured(name, setting, Spread.of(distance(originals, changed), threshold)))
    progress(len(changes), len(changes))
    strangers = Spread.of(torch.pdist(originals.double()).square(), threshold)
    return Properties(latents, measured, strangers, threshold)
