"""Vector arithmetic: faces with and without an attribute, by moving their latents (Li & Luo 2017, sections 2.2, 3.4).

`z + mean(z with) - mean(z without)`. The paper picks the faces to average by hand; here a network labels generated
faces (`idface.networks.attributes`), and tells how much an edit changed beside random ones of the same length.
"""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from kornia.color import rgb_to_grayscale
from rich.progress import track
from safetensors import SafetensorError, safe_open
from torch import Tensor

from idface.files import save_tensors
from idface.latent.generators import Generator
from idface.names import did_you_mean, nearest
from idface.networks.attributes import AttributeNetwork
from idface.recognition.base import Recognizer, distance
from idface.recognition.weights import fingerprint_of

log = logging.getLogger(__name__)

ALIASES = {"mouth_open": "mouth_slightly_open", "glasses": "eyeglasses"}
"""Short names for attributes of CelebA."""

BATCH = 64
SURE = 0.8
"""Probability from which a face counts as one with an attribute; one minus it, without."""

NOSE_DEPTH = 0.5
"""How far the tip of the nose lies before the line of the eyes, in eye distances: about 3 of 6 cm."""

FACE_BOX = (0.2, 0.8)
"""The part of the aligned frame, along each side, that shows skin whoever it is: from the brows to below the mouth."""


# ----------------------------------------------------------------------------------------------- what is seen in faces


def yaw_degrees(landmarks: Tensor) -> Tensor:
    """How far heads are turned aside, from where the nose is between the eyes.

    A simple model, not a measurement: eyes and nose are points of a rigid head seen from far away, with the nose half
    an eye distance before the line of the eyes (`NOSE_DEPTH`). Turned by yaw, the eyes are `cos(yaw)` and the nose is
    `NOSE_DEPTH sin(yaw)` apart from their middle, so `tan(yaw)` is the quotient of both by `NOSE_DEPTH`. Signs and
    order are right; degrees are off for longer and shorter noses.

    Args:
        landmarks: (..., 5, 2), x and y in any unit, in the order of `idface.recognition.alignment.LANDMARKS`.

    Returns:
        (...) degrees in (-90, 90), as `yaw` of a batch: negative where the person's left side shows and the nose points
        to the left of the picture. A head that is tilted in the picture's plane only has 0.
    """
    left, right, nose = landmarks[..., 0, :], landmarks[..., 1, :], landmarks[..., 2, :]
    eyes = right - left
    aside = ((nose - (left + right) / 2) * eyes).sum(-1) / eyes.square().sum(-1).clamp(min=1e-12)
    return (aside / NOSE_DEPTH).atan().rad2deg()


def face_box(side: int) -> tuple[int, int]:
    """First row, and column, of `FACE_BOX` in pictures of a side, and the one after the last."""
    low, high = (round(edge * side) for edge in FACE_BOX)
    return low, high


def brightness(images: Tensor) -> Tensor:
    """Mean luma (ITU-R BT.601) of faces (B, 3, S, S) in [-1, 1] inside `FACE_BOX`: (B,), 0 black to 1 white."""
    low, high = face_box(images.shape[-1])
    return (rgb_to_grayscale(images[..., low:high, low:high].float()).mean((1, 2, 3)) + 1) / 2


class FaceMeter:
    """Scores faces: a logit for each attribute of a network, the yaw in degrees, the brightness from 0 to 1.

    Args:
        network: says what faces look like, in evaluation mode.
        device: where it runs.
    """

    def __init__(self, network: AttributeNetwork, device: torch.device | str = "cpu") -> None:
        self.network = network.to(device).eval().requires_grad_(False)
        self.names = (*(name.lower() for name in network.attributes), "yaw", "brightness")

    @torch.no_grad()
    def scores(self, images: Tensor) -> Tensor:
        """Scores (B, K) float32 of faces (B, 3, S, S) in [-1, 1], in the order of `names`."""
        return self.measure(images)[0]

    @torch.no_grad()
    def measure(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """As `scores`, and the landmarks (B, 5, 2) in units of the side."""
        logits, landmarks = self.network(images)
        return torch.cat([logits, yaw_degrees(landmarks)[:, None], brightness(images)[:, None]], 1), landmarks

    def shown(self, scores: Tensor) -> Tensor:
        """Scores (..., K) as people read them: probabilities for logits, the others as they are."""
        return torch.cat([scores[..., :-2].sigmoid(), scores[..., -2:]], -1)

    def is_logit(self, column: int) -> bool:
        """Whether a column's score is the logit of a probability."""
        return column < len(self.names) - 2

    def index(self, name: str) -> int:
        """The column of an attribute, by its name in lower case or an alias of it.

        Raises:
            ValueError: there is none of that name; names the nearest.
        """
        whole = ALIASES.get(name.lower(), name.lower())
        if whole not in self.names:
            guess = nearest(name, {*self.names, *(alias for alias, of in ALIASES.items() if of in self.names)})
            raise ValueError(
                f"there is no attribute '{name}'.{did_you_mean(guess)} There are {', '.join(sorted(self.names))}"
            )
        return self.names.index(whole)

    def fingerprint(self) -> str:
        """Twelve hexadecimal digits of the SHA-256 over the network's names and weights."""
        return fingerprint_of(self.network.state_dict(), " ".join(self.names))


# ---------------------------------------------------------------------------------------------------------- directions


@dataclass(frozen=True)
class Side:
    """The faces that one of the two means is of."""

    count: int
    chosen: str
    """"sure": all that the network is sure of; "extreme": too few are, or it cannot be sure of this one, so those with
    the highest (lowest) scores."""
    score: float
    """Their mean score, as shown: a probability, degrees or brightness."""


@dataclass(frozen=True)
class Direction:
    """Where an attribute lies in the latent space, and what its means are of."""

    attribute: str
    present: Side
    absent: Side
    mean: float
    """Mean score over all generated faces: a logit, degrees or brightness."""
    std: float
    """Standard deviation of the score over all generated faces; 0 where they cannot be told apart."""
    length: float
    """Norm of the difference of means."""
    chance_length: float
    """What the norm would be, about, had the faces been picked at random."""


@dataclass(frozen=True)
class Directions:
    """Attribute directions of one generator.

    Attributes:
        vectors: (K, L) float32, mean(z with) - mean(z without); zeros where nothing can be told apart.
        about: what each is, in the order of the meter's names.
        generator: fingerprint of the generator.
        classifier: fingerprint of the meter.
        count: generated faces that were labelled.
        seed: of their latents.
    """

    vectors: Tensor
    about: tuple[Direction, ...]
    generator: str
    classifier: str
    count: int
    seed: int

    def vector(self, index: int) -> Tensor:
        """The direction (L,) in column `index`.

        Raises:
            ValueError: the generated faces cannot be told apart by this attribute.
        """
        found = self.about[index]
        if found.std == 0:
            raise ValueError(
                f"attribute {found.attribute}: all {self.count:,} generated faces score {found.mean:g}, so none can be "
                "told from another: train the generator further, or give another attribute"
            )
        if found.length < 1.5 * found.chance_length:
            log.warning(
                "%s: faces with and without it lie %.2f apart, faces picked at random %.2f: below 1.5 times as "
                "much, the direction holds a good deal of noise. A larger --count helps",
                *(found.attribute, found.length, found.chance_length),
            )
        return self.vectors[index]

    @property
    def std(self) -> Tensor:
        """Standard deviation (K,) of each score over generated faces."""
        return torch.tensor([each.std for each in self.about])

    def save(self, path: Path) -> None:
        """Keep them as safetensors, the rest as metadata."""
        about = {"about": [asdict(each) for each in self.about], "count": self.count, "seed": self.seed}
        metadata = {"generator": self.generator, "classifier": self.classifier, "directions": json.dumps(about)}
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors({"vectors": self.vectors.contiguous()}, path, metadata)


def load_directions(path: Path, generator: Generator, meter: FaceMeter) -> Directions:
    """Directions that were saved.

    Raises:
        ValueError: the file cannot be read as such, or its directions are another generator's or classifier's.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            rest: dict[str, Any] = json.loads(metadata["directions"])
            about = tuple(
                Direction(**{**each, "present": Side(**each["present"]), "absent": Side(**each["absent"])})
                for each in rest.pop("about")
            )
            found = Directions(file.get_tensor("vectors"), about, metadata["generator"], metadata["classifier"], **rest)
    except (SafetensorError, OSError, LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"--directions {path} cannot be read as directions ({error}): remove it to find them anew"
        ) from error
    for what, own, there in (
        ("generator", generator.fingerprint(), found.generator),
        ("classifier", meter.fingerprint(), found.classifier),
    ):
        if own != there:
            raise ValueError(
                f"--directions {path} is of {what} {there}, expected {own}: give another file, or a new one"
            )
    return found


@torch.no_grad()
def find_directions(
    generator: Generator, meter: FaceMeter, count: int = 20_000, seed: int = 0, fraction: float = 0.02
) -> Directions:
    """Label generated faces and take the difference of means of their latents, for everything that the meter sees.

    Faces with an attribute are those of which the network is sure (`SURE`), and so are those without. Where that is
    fewer than `fraction` of all (generators trained on little make hardly any glasses), it is that fraction with the
    highest or lowest scores instead; yaw and brightness, of which there is no being sure, are always taken so.

    Args:
        generator: makes the faces; on the device where this runs.
        meter: says what they look like.
        count: N, faces to make and label.
        seed: of their latents.
        fraction: in (0, 0.5].

    Raises:
        ValueError: `count` times `fraction` is below 1, or `fraction` is out of range.
    """
    if not 0 < fraction <= 0.5:
        raise ValueError(f"fraction is {fraction}, expected more than 0 and at most 0.5")
    least = int(count * fraction)
    if least < 1:
        raise ValueError(f"--count is {count:,}, expected at least {round(1 / fraction + 0.5):,} faces to label")
    latents = generator.sample(count, torch.Generator().manual_seed(seed))
    scores = torch.cat(
        [
            meter.scores(generator(part.to(generator.device))).cpu()
            for part in track(latents.split(BATCH), "Labelling generated faces", transient=True)
        ]
    )
    vectors, about = [], []
    for column, (name, score) in enumerate(zip(meter.names, scores.unbind(1), strict=True)):
        shown = meter.shown(scores)[:, column]
        std = float(score.std())
        if std < 1e-6 * max(1.0, float(score.abs().max())):
            std = 0.0  # all alike but for rounding
        with_it, without = _pick(score, least, meter.is_logit(column)), _pick(-score, least, meter.is_logit(column))
        sides = [Side(len(rows), chosen, float(shown[rows].mean())) for rows, chosen in (with_it, without)]
        vector = latents[with_it[0]].mean(0) - latents[without[0]].mean(0) if std else torch.zeros_like(latents[0])
        chance = generator.std * (generator.latent_dim * sum(1 / side.count for side in sides)) ** 0.5
        about.append(Direction(name, sides[0], sides[1], float(score.mean()), std, float(vector.norm()), chance))
        vectors.append(vector)
    return Directions(torch.stack(vectors), tuple(about), generator.fingerprint(), meter.fingerprint(), count, seed)


def _pick(score: Tensor, least: int, is_logit: bool) -> tuple[Tensor, str]:
    """Rows with an attribute by its scores (N,): all that are sure, or the `least` highest. And which of the two."""
    sure = (score.sigmoid() >= SURE).nonzero().flatten()
    if is_logit and len(sure) >= least:
        return sure, "sure"
    return score.topk(least).indices, "extreme"


# --------------------------------------------------------------------------------------------------------- measurement


@dataclass(frozen=True)
class EditMeasure:
    """What an edit of N faces changed, beside R random edits of the same length.

    Scores are those of a `FaceMeter` with K names; distances are a recogniser's, of the edited to the unedited face.

    Attributes:
        before, after: scores (N, K).
        random_after: scores (R, N, K).
        distance: (N,) squared distances of unit embeddings.
        random_distance: (R, N).
    """

    before: Tensor
    after: Tensor
    random_after: Tensor
    distance: Tensor
    random_distance: Tensor


def random_moves(move: Tensor, count: int, seed: int) -> Tensor:
    """Directions (count, L) drawn evenly from all there are, as long as `move` (L,)."""
    noise = torch.randn(count, len(move), generator=torch.Generator().manual_seed(seed))
    return noise / noise.norm(dim=1, keepdim=True) * move.norm()


@torch.no_grad()
def measure_edit(
    generator: Generator,
    meter: FaceMeter,
    recognizer: Recognizer,
    latents: Tensor,
    move: Tensor,
    random_count: int = 16,
    seed: int = 0,
) -> EditMeasure:
    """Edit faces, and see what became of them and of their identity.

    A shift of any length in any direction changes every attribute and the identity a little: only what goes beyond the
    random edits is the direction's doing. Latents are not brought back into the prior (the paper does not either; its
    property 3 has it that amplitude does not change identity).

    Args:
        generator: makes the faces; on the device where this runs.
        meter: says what they look like.
        recognizer: says whose they are; on the same device.
        latents: (N, L), the faces.
        move: (L,), what is added to each.
        random_count: R.
        seed: of the random directions.

    Raises:
        ValueError: latents or move are of another length than the generator's, or `random_count` is below 2.
    """
    if latents.ndim != 2 or latents.shape[1:] != (generator.latent_dim,) or move.shape != (generator.latent_dim,):
        found = f"{tuple(latents.shape)} and {tuple(move.shape)}"
        raise ValueError(f"latents and move are {found}, expected (N, {generator.latent_dim}) and its second axis")
    if random_count < 2:
        raise ValueError(f"random_count is {random_count}, expected 2 or more: a spread is told of them")
    moves = torch.cat([torch.zeros(1, len(move)), move[None], random_moves(move, random_count, seed)])
    scores, embeddings = [], []
    for part in (latents + moves[:, None]).flatten(0, 1).split(BATCH):
        faces = generator(part.to(generator.device))
        scores.append(meter.scores(faces).cpu())
        embeddings.append(recognizer(faces).cpu())
    score = torch.cat(scores).unflatten(0, (len(moves), len(latents)))  # (2 + R, N, K)
    embedding = torch.cat(embeddings).unflatten(0, (len(moves), len(latents)))
    apart = distance(embedding[1:], embedding[0])  # (1 + R, N)
    return EditMeasure(score[0], score[1], score[2:], apart[0], apart[1:])
