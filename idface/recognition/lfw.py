"""Labeled Faces in the Wild, the set that recognisers are compared on (Huang et al. 2007, UMass Amherst TR 07-49)."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from idface.recognition.alignment import FaceDetector, warp_face
from idface.recognition.base import Recognizer, distance
from idface.recognition.calibration import Verification, embed, verify

Photo = tuple[str, int]  # the person and the number of the photo

# Mean landmarks of the deep-funneled photos, 250x250: stands in where no face is detected.
FUNNELED = ((105.2, 113.3), (147.3, 112.3), (126.6, 137.6), (108.4, 159.1), (145.7, 158.3))


def read_pairs(file: Path) -> tuple[list[tuple[Photo, Photo]], np.ndarray]:
    """Read LFW's `pairs.txt`: folds of as many same-person as different-person pairs.

    Returns:
        The pairs, and (P,) int64 which fold each belongs to.

    Raises:
        ValueError: a line is neither a same-person nor a different-person pair, or their number is not the announced
            one.
    """
    (folds, each), *lines = (line.split() for line in file.read_text().splitlines() if line.strip())
    pairs: list[tuple[Photo, Photo]] = []
    for line in lines:
        match line:
            case (person, a, b):
                pairs.append(((person, int(a)), (person, int(b))))
            case (person, a, other, b):
                pairs.append(((person, int(a)), (other, int(b))))
            case _:
                raise ValueError(f"{file}: expected 'name number number' or 'name number name number', found {line}")
    if len(pairs) != 2 * int(folds) * int(each):
        raise ValueError(f"{file} announces {folds} folds of twice {each} pairs but holds {len(pairs)} pairs")
    return pairs, np.repeat(np.arange(int(folds)), 2 * int(each))


def verify_on_lfw(recognizer: Recognizer, folder: Path, size: int = 150) -> tuple[Verification, int]:
    """LFW's protocol (view 2, labelled outside data): each fold is judged by the threshold of the nine others.

    Args:
        recognizer: the network to measure.
        folder: holds `pairs.txt` and `lfw-deepfunneled/<Name>/<Name>_0001.jpg`.
        size: side of the aligned pictures in pixels.

    Returns:
        The result over squared distances of unit embeddings, and the number of photos without a detected face. Those
        are aligned by the place where deep funneling puts the average face.
    """
    pairs, fold = read_pairs(folder / "pairs.txt")
    photos = sorted({photo for pair in pairs for photo in pair})
    detector, faces, missed = FaceDetector(), [], 0
    for start in range(0, len(photos), 64):
        batch = [
            np.asarray(Image.open(folder / "lfw-deepfunneled" / name / f"{name}_{number:04d}.jpg").convert("RGB"))
            for name, number in photos[start : start + 64]
        ]
        for image, points in zip(batch, detector.detect(batch), strict=True):
            missed += points is None
            faces.append(warp_face(image, FUNNELED if points is None else points, size))
    place = {photo: i for i, photo in enumerate(photos)}
    embeddings = F.normalize(embed(recognizer, np.stack(faces)).double())
    first, second = (torch.tensor([place[pair[side]] for pair in pairs]) for side in (0, 1))
    same = np.array([a[0] == b[0] for a, b in pairs])
    return verify(distance(embeddings[first], embeddings[second]).numpy(), same, fold), missed
