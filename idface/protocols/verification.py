"""Verification on Labeled Faces in the Wild, what recognisers are compared by.

python -m idface.protocols.verification dlib --lfw FOLDER
python -m idface.protocols.verification dlib --lfw FOLDER --prepared FOLDER

The second looks at a set that `idface prepare --data lfw` has written, beside the photos as they were published; with
`--store` the distances of its pairs are kept with the package, as what photos from anywhere are compared with.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from data_modules.lfw import FOLDERS, Pair, read_pairs
from data_modules.people import plain_name, read_names
from data_modules.photos import Photo, open_photo
from data_modules.prepared import PreparedDataModule
from idface.names import RECOGNIZERS
from idface.recognition.alignment import FaceDetector, warp_face
from idface.recognition.base import Recognizer, distance
from idface.recognition.build import build_recognizer
from idface.recognition.calibration import Calibration, Verification, embed, summary, verify

# Mean landmarks of the deep-funneled photos, 250x250: stands in where no face is detected.
FUNNELED = ((105.2, 113.3), (147.3, 112.3), (126.6, 137.6), (108.4, 159.1), (145.7, 158.3))

Faces = npt.NDArray[np.uint8]
"""uint8 (N, S, S, 3)."""

Place = tuple[str, int]
"""A person's name and the number of the photo."""


def verify_on_lfw(
    recognizer: Recognizer, folder: Path, size: int = 150, exclude: Path | None = None
) -> tuple[Verification, int]:
    """LFW's protocol (view 2, labelled outside data): each fold is judged by the threshold of the nine others.

    Args:
        recognizer: the network to measure.
        folder: LFW as it is published, see `LFWDataModule`, with `pairs.txt`.
        size: side of the aligned pictures in pixels.
        exclude: a list of people, a name a line, whose pairs are left out: those whom the network was trained on.

    Returns:
        The result over squared distances of unit embeddings, and the number of photos without a detected face. Those
        are aligned by the place where deep funneling puts the average face.
    """
    photos, pairs, fold = _photos(folder, exclude)
    detector, faces, missed = FaceDetector(), [], 0
    for start in range(0, len(photos), 64):
        batch = [np.asarray(open_photo(_path(folder, photo))) for photo in photos[start : start + 64]]
        for image, points in zip(batch, detector.detect(batch), strict=True):
            missed += points is None
            faces.append(warp_face(image, FUNNELED if points is None else points, size))
    return compare_pairs(recognizer, photos, np.stack(faces), pairs, fold), missed


def compare_pairs(
    recognizer: Recognizer, photos: Sequence[Place], faces: Faces, pairs: Sequence[Pair], fold: np.ndarray
) -> Verification:
    """Verify pairs by the squared distance of their unit embeddings.

    Args:
        recognizer: the network to measure.
        photos: which photo each of the N faces is from.
        faces: the faces.
        pairs: the pairs.
        fold: (P,) int64 which fold each belongs to.
    """
    return calibrate_on_pairs(recognizer, photos, faces, pairs, fold).unit


def calibrate_on_pairs(
    recognizer: Recognizer, photos: Sequence[Place], faces: Faces, pairs: Sequence[Pair], fold: np.ndarray
) -> Calibration:
    """As `compare_pairs`, by the distance of raw embeddings as well, and as something to be stored."""
    place = {photo: i for i, photo in enumerate(photos)}
    raw = embed(recognizer, faces).double()
    first, second = (torch.tensor([place[pair[side]] for pair in pairs]) for side in (0, 1))
    same = np.array([a[0] == b[0] for a, b in pairs])
    unit = F.normalize(raw)
    return Calibration(
        recognizer=recognizer.name,
        fingerprint=recognizer.fingerprint(),
        data=f"{len(pairs):,} pairs of LFW, prepared at {faces.shape[1]}x{faces.shape[1]}",
        unit=verify(distance(unit[first], unit[second]).numpy(), same, fold),
        raw=verify((raw[first] - raw[second]).norm(dim=1).numpy(), same, fold),
    )


def published_faces(folder: Path, photos: Sequence[Place], size: int = 150) -> dict[str, Faces]:
    """LFW's photos without a look at where the face is in each.

    Returns:
        "whole photo": scaled to the size; "mean place": the place in it where the face is on average, cut out.
    """
    images = [np.asarray(open_photo(_path(folder, photo))) for photo in photos]
    whole = [cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA) for image in images]
    return {
        "whole photo": np.stack(whole).astype(np.uint8, copy=False),
        "mean place": np.stack([warp_face(image, FUNNELED, size) for image in images]),
    }


def prepared_faces(data: PreparedDataModule, photos: Sequence[Place]) -> Faces:
    """The same photos from a set that was prepared.

    Raises:
        ValueError: one of them is not in it.
    """
    there = {photo.name: photo for photo in data.list_photos() if isinstance(photo, Photo)}
    names = [f"{name}/{name}_{number:04d}.jpg" for name, number in photos]
    if missing := [name for name in names if name not in there]:
        raise ValueError(f"'{data.root}' lacks {len(missing)} photos of the pairs, {missing[0]} among them")
    read = data.reader([])
    return np.stack([read(there[name]) for name in names])


def eye_spread(eyes: npt.ArrayLike) -> float:
    """How far eyes lie from their mean place, as the root mean square in units of the mean distance of two eyes.

    Args:
        eyes: (N, 2, 2) both eyes of N faces, in pixels.
    """
    points = np.asarray(eyes, np.float64)
    apart = np.linalg.norm(points[:, 0] - points[:, 1], axis=-1).mean()
    return float(np.sqrt(np.square(points - points.mean(0)).sum(-1).mean()) / apart)


def _photos(folder: Path, exclude: Path | None) -> tuple[list[Place], list[Pair], np.ndarray]:
    everything, folds = read_pairs(folder / "pairs.txt")
    known = read_names(exclude) if exclude is not None else {}
    rows = [row for row, (a, b) in enumerate(everything) if not {plain_name(a[0]), plain_name(b[0])} & known.keys()]
    pairs = [everything[row] for row in rows]
    return sorted({photo for pair in pairs for photo in pair}), pairs, folds[rows]


def _path(folder: Path, photo: Place) -> Path:
    root = next((folder / name for name in FOLDERS if (folder / name).is_dir()), folder)
    name, number = photo
    return root / name / f"{name}_{number:04d}.jpg"


def main(arguments: list[str] | None = None) -> None:
    """Measure a recogniser on LFW's ten folds and print the result."""
    parser = argparse.ArgumentParser("python -m idface.protocols.verification", description=main.__doc__)
    parser.add_argument("recognizer", help=f"one of {RECOGNIZERS}")
    parser.add_argument("--lfw", type=Path, metavar="FOLDER", required=True, help="pairs.txt and lfw-deepfunneled/")
    parser.add_argument("--prepared", metavar="FOLDER", help="what `idface prepare --data lfw` has written")
    parser.add_argument("--store", action="store_true", help="keep the distances of the prepared pairs")
    parser.add_argument("--exclude", type=Path, metavar="FILE", help="people whose pairs are left out, a name a line")
    options = parser.parse_args(arguments)
    if options.store and options.prepared is None:
        parser.error("--store: what is kept are the distances of prepared faces, so it needs --prepared FOLDER")
    recognizer = build_recognizer(options.recognizer)
    if options.prepared is not None:
        _compare_with_prepared(recognizer, options.lfw, options.prepared, options.store, options.exclude)
        return
    result, missed = verify_on_lfw(recognizer, options.lfw, exclude=options.exclude)
    print(f"{recognizer.name} on {result.pairs:,} pairs of LFW, {missed} photos without a detected face")
    print(f"  unit embeddings, squared distance: {summary(result)}")


def _compare_with_prepared(
    recognizer: Recognizer, folder: Path, prepared: str, store: bool, exclude: Path | None
) -> None:
    data = PreparedDataModule(prepared)
    data = PreparedDataModule(prepared, image_size=int(data.picture.frame))
    counts = data.manifest["counts"]
    print(f"{counts['prepared']:,} of {counts['photos']:,} photos have a face, {counts['people']:,} people")

    photos, pairs, fold = _photos(folder, exclude)
    if store:
        calibrate_on_pairs(recognizer, photos, prepared_faces(data, photos), pairs, fold).save()
    faces = published_faces(folder, photos) | {"prepared": prepared_faces(data, photos)}
    detector = FaceDetector()
    for kind, pictures in faces.items():
        some = pictures[::5]  # found again in the pictures: the points that they were aligned by would flatter them
        found = [points[:2] for points in detector.detect(list(some)) if points is not None]
        print(f"{kind}, {pictures.shape[1]} pixels: {recognizer.name} on {len(pairs):,} pairs")
        print(f"  {summary(compare_pairs(recognizer, photos, pictures, pairs, fold))}")
        print(f"  eyes: {eye_spread(found):.3f} of their distance, seen in {len(found):,} of {len(some):,} pictures")
    eyes = data.labels([photo for photo in data.list_photos() if isinstance(photo, Photo)])["landmarks"][:, :2]
    print(f"  by the points that they were aligned by: {eye_spread(eyes.numpy()):.3f}, in all {len(eyes):,}")


if __name__ == "__main__":
    main()
