"""Verification on Labeled Faces in the Wild, what recognisers are compared by.

python -m idface.protocols.verification dlib --lfw FOLDER
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from data_modules.lfw import FOLDERS, read_pairs
from idface.recognition.alignment import FaceDetector, warp_face
from idface.recognition.base import Recognizer, distance
from idface.recognition.build import KINDS, build_recognizer
from idface.recognition.calibration import Verification, embed, summary, verify

# Mean landmarks of the deep-funneled photos, 250x250: stands in where no face is detected.
FUNNELED = ((105.2, 113.3), (147.3, 112.3), (126.6, 137.6), (108.4, 159.1), (145.7, 158.3))


def verify_on_lfw(recognizer: Recognizer, folder: Path, size: int = 150) -> tuple[Verification, int]:
    """LFW's protocol (view 2, labelled outside data): each fold is judged by the threshold of the nine others.

    Args:
        recognizer: the network to measure.
        folder: LFW as it is published, see `LFWDataModule`, with `pairs.txt`.
        size: side of the aligned pictures in pixels.

    Returns:
        The result over squared distances of unit embeddings, and the number of photos without a detected face. Those
        are aligned by the place where deep funneling puts the average face.
    """
    pairs, fold = read_pairs(folder / "pairs.txt")
    root = next((folder / name for name in FOLDERS if (folder / name).is_dir()), folder)
    photos = sorted({photo for pair in pairs for photo in pair})
    detector, faces, missed = FaceDetector(), [], 0
    for start in range(0, len(photos), 64):
        batch = [
            np.asarray(Image.open(root / name / f"{name}_{number:04d}.jpg").convert("RGB"))
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


def main(arguments: list[str] | None = None) -> None:
    """Measure a recogniser on LFW's ten folds and print the result."""
    parser = argparse.ArgumentParser("python -m idface.protocols.verification", description=main.__doc__)
    parser.add_argument("recognizer", help=f"one of {KINDS}")
    parser.add_argument("--lfw", type=Path, metavar="FOLDER", required=True, help="pairs.txt and lfw-deepfunneled/")
    options = parser.parse_args(arguments)
    recognizer = build_recognizer(options.recognizer)
    result, missed = verify_on_lfw(recognizer, options.lfw)
    print(f"{recognizer.name} on {result.pairs:,} pairs of LFW, {missed} photos without a detected face")
    print(f"  unit embeddings, squared distance: {summary(result)}")


if __name__ == "__main__":
    main()
