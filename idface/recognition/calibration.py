"""How far apart two embeddings of one person lie: verification on labelled pairs, and the thresholds that follow.

    python -m idface.recognition.calibration dlib --store

measures a recogniser on all 79,800 pairs of the 400 ORL faces; `--store` keeps the result in `calibration.json` beside
this file.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from idface.recognition.base import Recognizer

STORE = Path(__file__).with_suffix(".json")
PERCENTILES = (0, 1, 2, 5, 10, 25, 50, 75, 90, 95, 98, 99, 100)

SETS = ("ORL", "LFW")
"""What calibrations are measured on: a studio's photos, and photos from anywhere."""

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Verification:
    """How well a distance tells pairs of one person from pairs of two: one person is who is nearer than a threshold."""

    pairs: int
    same_pairs: int
    auc: float
    """Area under the ROC curve: the chance that a same-person pair is nearer than a different-person pair."""
    accuracy: float
    """Mean of the shares of right answers among same and among different pairs, each fold by the others' threshold."""
    accuracy_std: float
    """Standard deviation of the accuracy over the folds."""
    best_threshold: float
    """The threshold of the highest accuracy over all pairs."""
    equal_error_threshold: float
    """The threshold at which as many same pairs are refused as different pairs are accepted."""
    equal_error_rate: float
    far_1e3_threshold: float
    """The highest threshold that accepts at most one in a thousand different pairs."""
    far_1e3_recall: float
    """The share of same pairs accepted at that threshold."""
    same_percentiles: dict[str, float]
    """Percentiles of the distance of same-person pairs, by their number."""
    different_percentiles: dict[str, float]
    """Percentiles of the distance of different-person pairs, by their number."""

    def standing(self, distance: float) -> tuple[float, float]:
        """Where a distance stands among those of same-person, and of different-person pairs.

        Returns:
            Per cent of same-person pairs that are nearer, and of different-person pairs that are; between kept
            percentiles along a straight line.
        """
        same, different = (
            float(np.interp(distance, list(kept.values()), [float(p) for p in kept]))
            for kept in (self.same_percentiles, self.different_percentiles)
        )
        return same, different


@dataclass(frozen=True)
class Calibration:
    """A recogniser's verification on a set of labelled pairs."""

    recognizer: str
    fingerprint: str
    data: str
    unit: Verification
    """Squared Euclidean distance of unit embeddings (`base.distance`)."""
    raw: Verification
    """Euclidean distance of raw embeddings, as dlib measures it."""

    def save(self) -> None:
        """Store this calibration with the package, in place of an earlier one of the same weights and set."""
        set_name = next((name for name in SETS if name in self.data), "")
        kept = [entry for entry in _read_store() if not _is_for(entry, self.recognizer, self.fingerprint, set_name)]
        entries = sorted([*kept, asdict(self)], key=lambda entry: [entry[key] for key in ("recognizer", "data")])
        STORE.write_text(json.dumps(entries, indent=2) + "\n")


def stored_calibration(recognizer: str, fingerprint: str, set_name: str = "ORL") -> Calibration:
    """The calibration that the package keeps for a recogniser with these weights.

    Args:
        recognizer: its name.
        fingerprint: its weights.
        set_name: what it was measured on, one of SETS.

    Raises:
        LookupError: there is none.
    """
    for entry in _read_store():
        if _is_for(entry, recognizer, fingerprint, set_name):
            return Calibration(**{**entry, "unit": Verification(**entry["unit"]), "raw": Verification(**entry["raw"])})
    raise LookupError(
        f"No thresholds are known for the recogniser {recognizer} with weights {fingerprint}. Measure them with "
        "idface.recognition.calibration.calibrate and assign the result to its attribute 'calibration'; "
        "or store them for good: python -m idface.recognition.calibration --help"
    )


def _read_store() -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(STORE.read_text())
    return entries


def _is_for(entry: dict[str, Any], recognizer: str, fingerprint: str, set_name: str) -> bool:
    return (entry["recognizer"], entry["fingerprint"]) == (recognizer, fingerprint) and set_name in entry["data"]


def verify(
    distances: Floats, same: npt.NDArray[np.bool_], fold: npt.NDArray[np.integer[Any]] | None = None
) -> Verification:
    """Measure how well a distance tells same-person from different-person pairs.

    Args:
        distances: (P,) one a pair.
        same: (P,) whether the pair shows one person.
        fold: (P,) which cross-validation fold the pair belongs to; by default ten of equal size, drawn from a fixed
            seed.

    Raises:
        ValueError: a distance is not finite, or one of the two kinds has no pair in some fold's complement or in a
            fold.
    """
    distances = np.asarray(distances, np.float64)
    same = np.asarray(same, bool)
    if not np.isfinite(distances).all():
        raise ValueError(f"{(~np.isfinite(distances)).sum()} of {len(distances)} distances are not finite")
    if fold is None:
        fold = np.empty(len(distances), np.int64)
        for kind in (same, ~same):  # each fold has its share of both kinds
            fold[kind] = np.random.default_rng(0).permutation(kind.sum()) % 10
    accuracies = []
    for number in np.unique(fold):
        held_out = fold == number
        if any(not (part & kind).any() for part in (held_out, ~held_out) for kind in (same, ~same)):
            raise ValueError(
                "Every fold, and what remains without it, needs pairs of one person and pairs of two; "
                f"got {same.sum()} and {(~same).sum()} pairs, which fail at fold {number}"
            )
        threshold = _best_threshold(distances[~held_out], same[~held_out])
        accuracies.append(_balanced_accuracy(distances[held_out], same[held_out], threshold))

    near, far = np.sort(distances[same]), np.sort(distances[~same])
    candidates = np.sort(distances)
    refused = 1 - np.searchsorted(near, candidates) / len(near)
    accepted = np.searchsorted(far, candidates) / len(far)
    equal = int(np.abs(refused - accepted).argmin())
    strict = float(far[int(len(far) * 1e-3)])  # as many are nearer as may be accepted
    return Verification(
        pairs=len(distances),
        same_pairs=len(near),
        # Mann and Whitney (1947): ties count half.
        auc=1 - (np.searchsorted(far, near, "left") + np.searchsorted(far, near, "right")).mean() / (2 * len(far)),
        accuracy=float(np.mean(accuracies)),
        accuracy_std=float(np.std(accuracies)),
        best_threshold=_best_threshold(distances, same),
        equal_error_threshold=float(candidates[equal]),
        equal_error_rate=float(refused[equal] + accepted[equal]) / 2,
        far_1e3_threshold=strict,
        far_1e3_recall=np.searchsorted(near, strict) / len(near),
        same_percentiles={str(p): float(np.percentile(near, p)) for p in PERCENTILES},
        different_percentiles={str(p): float(np.percentile(far, p)) for p in PERCENTILES},
    )


def _best_threshold(distances: Floats, same: npt.NDArray[np.bool_]) -> float:
    """The threshold of the highest balanced accuracy, halfway between the two distances that it parts."""
    order = np.argsort(distances, kind="stable")
    ordered, is_same = distances[order], same[order]
    right = np.cumsum(is_same) / is_same.sum() - np.cumsum(~is_same) / (~is_same).sum()  # after accepting i + 1 pairs
    right[:-1][ordered[:-1] == ordered[1:]] = -np.inf  # no threshold parts equal distances
    best = int(right[:-1].argmax())
    return float(ordered[best] + ordered[best + 1]) / 2


def _balanced_accuracy(distances: Floats, same: npt.NDArray[np.bool_], threshold: float) -> float:
    return float((distances[same] < threshold).mean() + (distances[~same] >= threshold).mean()) / 2


def embed(recognizer: "Recognizer", faces: npt.NDArray[np.uint8], batch_size: int = 32) -> torch.Tensor:
    """Raw embeddings (N, D), on the CPU, of aligned faces (N, S, S, 3) uint8; computed where the weights are."""
    return recognizer.embed(torch.from_numpy(faces).permute(0, 3, 1, 2), batch_size, "raw").cpu()


def calibrate(
    recognizer: "Recognizer", faces: npt.NDArray[np.uint8], identities: npt.NDArray[np.integer[Any]], data: str
) -> Calibration:
    """Measure a recogniser on all pairs of a set of labelled faces.

    Args:
        recognizer: the network to measure.
        faces: (N, S, S, 3) uint8, aligned.
        identities: (N,) who is on each.
        data: what to call the set.

    Raises:
        ValueError: fewer than ten pairs of one person, or of two.
    """
    raw = embed(recognizer, faces).double()
    first, second = np.triu_indices(len(faces), k=1)
    same = np.asarray(identities)[first] == np.asarray(identities)[second]
    return Calibration(
        recognizer=recognizer.name,
        fingerprint=recognizer.fingerprint(),
        data=f"all {len(same):,} pairs of {data}",
        unit=verify(torch.pdist(F.normalize(raw)).square().numpy(), same),
        raw=verify(torch.pdist(raw).numpy(), same),
    )


def main(arguments: list[str] | None = None) -> None:
    """Measure a recogniser on the ORL faces and print the result."""
    from idface.names import RECOGNIZERS
    from idface.recognition import orl
    from idface.recognition.build import build_recognizer

    parser = argparse.ArgumentParser("python -m idface.recognition.calibration", description=main.__doc__)
    parser.add_argument("recognizer", help=f"one of {RECOGNIZERS}")
    parser.add_argument("--store", action="store_true", help=f"keep the ORL result in {STORE.name}")
    options = parser.parse_args(arguments)

    recognizer = build_recognizer(options.recognizer)
    data = f"the {orl.PEOPLE * orl.PHOTOS} ORL faces of {orl.PEOPLE} people, aligned at 150x150"
    calibration = calibrate(recognizer, orl.aligned_photos(150), orl.identities(), data)
    print(f"{recognizer.name} ({calibration.fingerprint}) on {calibration.data}")
    print(f"  unit embeddings, squared distance: {summary(calibration.unit)}")
    print(f"  raw embeddings, distance:          {summary(calibration.raw)}")
    if options.store:
        calibration.save()
        print(f"  stored in {STORE.name}")


def summary(result: Verification) -> str:
    """A result in a line."""
    return (
        f"AUC {result.auc:.5f}, accuracy {result.accuracy:.4f} +- {result.accuracy_std:.4f}, "
        f"equal error {result.equal_error_rate:.4f} at {result.equal_error_threshold:.3f}, "
        f"best threshold {result.best_threshold:.3f}, recall at FAR 1e-3 {result.far_1e3_recall:.4f}"
    )


if __name__ == "__main__":
    main()
