"""`idface quality`: how recognisable, real and various synthetic faces are (*Conditional face synthesis*, table 1)."""

import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from data_modules.batch import to_float
from idface.checkpoints import best_device, load_model_of
from idface.files import write_csv, write_json
from idface.latent.scoring import is_fast_in_bfloat16
from idface.metrics.variety import AsTheyAre, JudgedFaces, perceptual_distance
from idface.modules.recognition import LightCNNTraining
from idface.protocols.sources import (
    BATCH,
    KnownPeople,
    People,
    held_out_people,
    people_of,
    rows_of,
    side_of,
    training_data,
    training_people,
)
from idface.recognition.base import Recognizer
from idface.recognition.build import build_recognizer
from idface.recognition.weights import fingerprint_of

log = logging.getLogger(__name__)

# the metrics' own words about what they were asked for
warnings.filterwarnings("ignore", "Metric .* will save all extracted features")
warnings.filterwarnings("ignore", r"std\(\): degrees of freedom is <= 0")

PAIRS = 2000
"""Pairs of one person's faces whose spread is measured, more or less; one of each person at least."""

DRAWS = 5
"""How often as many faces are drawn as in every other row."""

PUBLISHED = {
    "note": "FaceScrub, 128x128; top-1 by LightCNN-29, inception score by a classifier of CASIA-WebFace",
    "real": {"top1": 99.69},
    "whole": {"top1": 99.56},
    "no identity loss": {"top1": 79.50},
}
"""What the paper's text says of its table 1."""


def quality(
    sets: Sequence[str],
    classifier: str,
    data: Path,
    out: Path,
    *,
    judge: str = "dlib",
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Judge sets that `idface synthesize` has written, beside held-out photos of the same people.

    Args:
        sets: folders, each with a name before it or not: `cvae=sets/cvae`.
        classifier: checkpoint of a LightCNNTraining that was trained on the real photos.
        data: a recipe of those photos, see `training_data`: what it was trained on, and what the generators were; some
            held out.
        out: the folder for `quality.csv` and `quality.json`.
        judge: the recogniser of the distances, which should have been no loss and no check of the sets.
        seed: of the pairs that are drawn.

    Returns:
        A row for the held-out photos, "real", and for each set:

        * `faces`, `people`;
        * `top1`: per cent of faces that the classifier takes for their person (known people only), and `chance`;
        * `inception_score`: of the classifier, which knows the very people, where the paper's knows those of another
          set: it says whether faces are surely and evenly somebody of the training set;
        * `spread`: mean squared distance of two embeddings of one person by the judge, and `perceptual_spread`, see
          `perceptual_distance`;
        * `frechet_distance`, `kernel_distance` (times 1,000): of the judge's embeddings from those of training photos;
        * `compared`: how many faces those two and the score are of: as many in every row, for all three depend on it;
          means over `DRAWS` draws;
        * `judge_independent`: the judge was no loss of the model and did not choose the faces;
          `classifier_independent`: the classifier was neither. None of a set that `idface synthesize` has not written,
          of which this is not known.

    Raises:
        ValueError, OSError: a set, the classifier or the data are not as they should be.
    """
    if data.is_dir():
        raise ValueError(
            f"--data {data}: a folder does not say which of its photos were held out, a row of the table: give "
            "the recipe that the classifier was trained by, such as the config.yaml of its run"
        )
    device = best_device()
    model = load_model_of(LightCNNTraining, classifier, "--classifier")
    network = build_recognizer(judge).to(device)
    named = [(name or Path(path).name, Path(path)) for name, _, path in (_named(each) for each in sets)]
    size = side_of(named[0][1], "--set")
    source = training_data(classifier, data, KnownPeople(model.num_identities, size, model.people_digest))
    training = training_people(source)
    every = [("real", held_out_people(source)), *((name, people_of(folder, size, "--set")) for name, folder in named)]
    count = min(len(training.images), *(len(people.images) for _, people in every))
    judged = _Judge(model.to(device), network, training, device, seed, count)
    rows = []
    for (name, people), folder in zip(every, [None, *(folder for _, folder in named)], strict=True):
        independent: tuple[bool | None, bool | None] = (True, True)
        if folder is not None:
            independent = _independent(folder, network, model)
        flags = dict(zip(("judge_independent", "classifier_independent"), independent, strict=True))
        rows.append({"set": name, **judged.figures(people), **flags})
        for what, is_independent in zip((judge, "the classifier"), independent, strict=True):
            if is_independent is False:
                log.warning("%s was a loss of the model of '%s' or chose its faces: it flatters them", what, folder)
    out.mkdir(parents=True, exist_ok=True)
    shown = [[f"{value:.6g}" if isinstance(value, float) else value for value in row.values()] for row in rows]
    write_csv(out / "quality.csv", tuple(rows[0]), shown)
    told: dict[str, Any] = {"judge": f"{network.name} {network.fingerprint()}", "classifier": classifier}
    told |= {"precision": "bfloat16" if judged.fast else "float32", "rows": rows}
    write_json(out / "quality.json", told | {"published": PUBLISHED})
    return rows


class _Judge:
    """A classifier, a recogniser, and the real photos that faces are compared with."""

    # In bfloat16 where that is fast, 2 to 3 times as much so here; all rows alike.

    def __init__(
        self,
        classifier: LightCNNTraining,
        judge: Recognizer,
        training: People,
        device: torch.device,
        seed: int,
        count: int,
    ) -> None:
        self.fast = is_fast_in_bfloat16(device)
        self.classifier, self.judge = classifier, judge.in_bfloat16() if self.fast else judge
        self.device, self.seed, self.count = device, seed, count
        self.label = {name: label for label, name in enumerate(training.names)}
        self.training = self.judge.embed(training.images)

    @torch.no_grad()
    def figures(self, people: People) -> dict[str, float | int | None]:
        """See `quality`."""
        logits = torch.cat([self._logits(part) for part in people.images.split(BATCH)])
        embeddings = self.judge.embed(people.images)
        labels = torch.tensor([self.label.get(name, -1) for name in people.names])[people.person].to(logits.device)
        known = labels >= 0
        top1 = float((logits.argmax(1) == labels)[known].float().mean()) * 100 if bool(known.any()) else None
        spread, perceptual = self._spreads(people, embeddings)
        score, frechet, kernel = self._as_many(logits.cpu(), embeddings.cpu())
        return {
            "faces": len(people.images),
            "people": int(people.person.unique().numel()),
            "top1": top1,
            "chance": 100 / len(self.label) if top1 is not None else None,
            "spread": spread,
            "perceptual_spread": perceptual,
            "inception_score": score,
            "frechet_distance": frechet,
            "kernel_distance": kernel,
            "compared": self.count,
        }

    def _logits(self, images: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.fast):
            logits: Tensor = self.classifier(to_float(images.to(self.device)))[1]
        return logits.float()

    def _spreads(self, people: People, embeddings: Tensor) -> tuple[float | None, float | None]:
        """Of pairs of one person, each person with a like share of them."""
        noise = torch.Generator().manual_seed(self.seed)
        groups = [rows for _, rows in rows_of(people.person) if len(rows) > 1]
        if not groups:
            return None, None
        each = max(1, PAIRS // len(groups))
        pairs = torch.cat(
            [
                torch.stack([rows[torch.randperm(len(rows), generator=noise)[:2]] for _ in range(min(each, len(rows)))])
                for rows in groups
            ]
        )
        first, second = (embeddings[side] for side in pairs.T)
        maps = [name for name in self.judge.stage_names if name != "raw"]
        perceptual = []
        for part in pairs.split(BATCH // 4):
            a, b = (self.judge.features(to_float(people.images[side].to(self.device)), maps) for side in part.T)
            deep = [name for name in maps if a[name].ndim == 4]
            perceptual.append(perceptual_distance([a[name] for name in deep], [b[name] for name in deep]))
        return float((first - second).square().sum(1).mean()), float(torch.cat(perceptual).mean())

    def _as_many(self, logits: Tensor, embeddings: Tensor) -> tuple[float, float, float]:
        """Score and distances of as many faces as in every other row, means over some draws of them."""
        noise = torch.Generator().manual_seed(self.seed)
        found = []
        for _ in range(DRAWS):
            own, real = (
                torch.randperm(len(every), generator=noise)[: self.count] for every in (embeddings, self.training)
            )
            score = InceptionScore(AsTheyAre(logits.shape[1]), splits=1)
            score.update(logits[own])
            together = JudgedFaces(embeddings.shape[1])
            size = min(self.count, 500)
            kernel = KernelInceptionDistance(AsTheyAre(embeddings.shape[1]), subset_size=size, subsets=5)
            for faces, is_real in ((embeddings[own], False), (self.training[real].cpu(), True)):
                together.update(faces, real=is_real)
                kernel.update(faces, real=is_real)
            frechet = together.compute().get("frechet_distance", torch.tensor(float("nan")))
            found.append([float(score.compute()[0]), float(frechet), 1000 * float(kernel.compute()[0])])
        return tuple(torch.tensor(found).mean(0).tolist())


def _named(text: str) -> tuple[str, str, str]:
    name, equals, path = text.partition("=")
    return (name, equals, path) if equals and not Path(text).exists() else ("", "", text)


def _independent(folder: Path, judge: Recognizer, classifier: LightCNNTraining) -> tuple[bool | None, bool | None]:
    """Whether the judge, and whether the classifier, was no loss of a set's model and did not choose its faces."""
    file = folder / "synthesis.json"
    if not file.is_file():
        log.warning(
            "--set %s was not written by `idface synthesize`: these may be real photos, or training ones", folder
        )
        return None, None
    told = json.loads(file.read_text("utf-8"))
    chosen_by = str(told.get("settings", {}).get("recognizer") or "").rpartition(" ")[2]
    used = {*told.get("gradient_fingerprints", ()), chosen_by}
    state = {f"network.{name}": value for name, value in classifier.network.backbone.state_dict().items()}
    halved = {name: value.half().float() for name, value in state.items()}  # as `idface export` keeps it
    own = {fingerprint_of(state), fingerprint_of(halved)}
    return judge.fingerprint() not in used, not own & used


def in_words(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The table as lines."""
    names = [name for name in rows[0] if name != "set"]
    lines = [f"{'':16}" + "".join(f"{name.replace('_', ' '):>19}" for name in names)]
    for row in rows:
        cells = (row[name] for name in names)
        shown = ("" if c is None else str(c) if isinstance(c, bool | int) else f"{c:.4g}" for c in cells)
        lines.append(f"{row['set']:16}" + "".join(f"{cell:>19}" for cell in shown))
    return lines
