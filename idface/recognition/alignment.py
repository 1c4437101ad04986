"""From a photo to the one aligned frame that every module of the framework shares.

The frame is the face chip of dlib's recogniser (King, `dlib.get_face_chip` with padding 0.25): a square in which the
eyes and the corners of the mouth of every face fall on the same places. It is written in unit coordinates, (0, 0) the
upper left corner of the picture and (1, 1) the lower right one, so that a face aligned at one size is the face aligned
at any other size, resized. Pixel coordinates count from the centre of the first pixel, as OpenCV does: u in the unit
frame lies at pixel u * size - 0.5.

MTCNN (Zhang et al. 2016, "Joint face detection and alignment using multi-task cascaded convolutional networks") finds
the landmarks; `facenet-pytorch` carries its weights.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch

LANDMARKS = ("left eye", "right eye", "nose", "left mouth corner", "right mouth corner")
"""What the five points are, in MTCNN's order. Left and right are the viewer's."""

FACE_TEMPLATE: npt.NDArray[np.float32] = np.array(
    # Eyes and mouth: (p + 0.25) / 1.5 of dlib's mean face. Nose: its mean over the aligned ORL faces (see orl.py).
    [(0.3187, 0.3160), (0.6680, 0.3160), (0.4912, 0.5125), (0.3360, 0.6867), (0.6507, 0.6867)],
    dtype=np.float32,
)
"""Where the five landmarks lie in the aligned frame: (5, 2) float32, x then y, in units of the frame's side."""

FIT_POINTS = (0, 1, 3, 4)
"""The landmarks that the transform is fitted to. The nose is left out: it moves against the others as a head turns."""


def fit_similarity(source: npt.ArrayLike, target: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Find the similarity (rotation, one scale, shift) that lays points on others, in the sense of least squares.

    The solution of Umeyama (1991, "Least-squares estimation of transformation parameters between two point patterns").
    Written with complex numbers, where a similarity is w = a z + b, it is a plain linear regression, and it cannot come
    out mirrored.

    Args:
        source: (N, 2) points.
        target: (N, 2) where they should go.

    Returns:
        (2, 3) float64 matrix.

    Raises:
        ValueError: all source points fall in one place.
    """
    z, w = (np.asarray(points, np.float64) @ (1, 1j) for points in (source, target))
    centred = z - z.mean()
    spread = np.vdot(centred, centred).real
    if spread < 1e-12:
        raise ValueError(f"All points fall in one place, so they fix no scale: {np.asarray(source).tolist()}")
    a = np.vdot(centred, w - w.mean()) / spread
    b = w.mean() - a * z.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def similarity_transform(points: npt.ArrayLike, size: int, margin: float = 0.0) -> npt.NDArray[np.float64]:
    """Find the similarity that brings a face into the aligned frame: its `FIT_POINTS` onto those of `FACE_TEMPLATE`.

    Args:
        points: (5, 2) landmarks in pixels of the photo, in the order of `LANDMARKS`.
        size: side of the aligned picture in pixels, margin included.
        margin: how much the picture shows around the frame on each side, in units of the frame's side.

    Returns:
        (2, 3) float64 matrix that takes pixels of the photo to pixels of the aligned picture.

    Raises:
        ValueError: the points are not (5, 2), not finite, or all in one place.
    """
    landmarks = np.asarray(points, dtype=np.float64)
    if landmarks.shape != (5, 2) or not np.isfinite(landmarks).all():
        raise ValueError(
            f"Alignment needs 5 finite landmarks (x, y), in the order {', '.join(LANDMARKS)}; "
            f"got shape {landmarks.shape}: {landmarks.tolist()}"
        )
    fit = list(FIT_POINTS)
    target = (FACE_TEMPLATE[fit].astype(np.float64) + margin) / (1 + 2 * margin)
    return fit_similarity(landmarks[fit], target * size - 0.5)


def warp_face(
    image: npt.NDArray[np.uint8], landmarks: npt.ArrayLike, size: int, margin: float = 0.0
) -> npt.NDArray[np.uint8]:
    """Cut a face out of a photo, turned, shifted and scaled into the aligned frame.

    A face that shrinks is first warped to the smallest multiple of `size` at which it does not, then averaged down
    over whole pixel blocks, so that nothing aliases. What lies outside the photo repeats its border.

    Args:
        image: (H, W, 3) uint8 photo.
        landmarks: (5, 2) landmarks in pixels of the photo, in the order of `LANDMARKS`.
        size: side of the aligned picture in pixels, margin included.
        margin: how much the picture shows around the frame on each side, in units of the frame's side.

    Returns:
        (size, size, 3) uint8.

    Raises:
        ValueError: the image is no (H, W, 3) uint8 array, the size is below 1, or the landmarks are unusable.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"warp_face takes an image of (H, W, 3) uint8; got {image.shape} {image.dtype}")
    if size < 1:
        raise ValueError(f"The aligned picture must have at least one pixel; got size={size}")
    matrix = similarity_transform(landmarks, size, margin)
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    # No finer than the photo itself could be: landmarks a pixel apart must not ask for a picture of gigabytes.
    oversampling = int(np.clip(np.ceil(1 / scale), 1, np.ceil(max(image.shape[:2]) / size)))
    if oversampling > 1:
        matrix = similarity_transform(landmarks, size * oversampling, margin)
    side = size * oversampling
    warped = cv2.warpAffine(image, matrix, (side, side), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    if oversampling > 1:
        warped = cv2.resize(warped, (size, size), interpolation=cv2.INTER_AREA)
    return warped.astype(np.uint8, copy=False)


class Face(NamedTuple):
    """A face that a detector found in a photo.

    Attributes:
        landmarks: (5, 2) float32, in pixels of the photo, in the order of `LANDMARKS`.
        box: (4,) float32, left, top, right, bottom in pixels; may reach beyond the photo.
        probability: how sure the detector is, 0 to 1.
    """

    landmarks: npt.NDArray[np.float32]
    box: npt.NDArray[np.float32]
    probability: float


FaceRule = Literal["main", "largest", "nearest"]
"""Which face of several: "main" weighs its size against its distance from a point, the others go by one of them."""

SURE = 0.9
"""A detection as probable as this counts as a face without doubt."""


def choose_face(faces: Sequence[Face], near: tuple[float, float], rule: FaceRule = "main") -> Face | None:
    """Choose among the faces found in a photo; those without doubt go before the others.

    Args:
        faces: what was found.
        near: x and y where the face is expected, such as the photo's centre, in pixels.
        rule: how to choose. If no face is without doubt, the surest is taken.

    Returns:
        The face; None if there is none.
    """
    sure = [face for face in faces if face.probability >= SURE]
    if not sure:
        return max(faces, key=lambda face: face.probability, default=None)

    def weight(face: Face) -> float:
        left, top, right, bottom = face.box.tolist()
        area = (right - left) * (bottom - top)
        off = ((left + right) / 2 - near[0]) ** 2 + ((top + bottom) / 2 - near[1]) ** 2
        return {"main": area - 2 * off, "largest": area, "nearest": -off}[rule]

    return max(sure, key=weight)


def main_face(image: npt.NDArray[np.uint8], faces: Sequence[Face]) -> Face | None:
    """The face that a photo (H, W, 3) is of, among those found in it: large and near its middle; see `choose_face`."""
    return choose_face(faces, ((image.shape[1] - 1) / 2, (image.shape[0] - 1) / 2))


class FaceDetector:
    """MTCNN, prepared for the pictures that face sets are made of.

    Small pictures are enlarged twofold and their border is repeated by a quarter of the side, for a cascade misses or
    misplaces faces that fill the picture; very large ones are shrunk. Where nothing is found in a picture of another
    size, it is looked at again with such a border.

    Args:
        device: where the networks run.
        batch_size: how many photos of equal size go through at once.
    """

    BORDER = 0.25  # of the photo's sides, added on each
    SMALL, LARGE = 160, 1024  # pixels: enlarged if the shorter side is below, shrunk if the longer is above
    MIN_FACE = 20  # pixels after scaling

    def __init__(self, device: torch.device | str = "cpu", batch_size: int = 16) -> None:
        from facenet_pytorch import MTCNN  # imports torchvision: seconds that only detection needs

        self.batch_size = batch_size
        self._mtcnn = MTCNN(min_face_size=self.MIN_FACE, device=torch.device(device))
        for name in ("pnet", "rnet", "onet"):  # about twice as fast on a CPU: pooling runs along the channels
            network = getattr(self._mtcnn, name).to(memory_format=torch.channels_last)
            network.register_forward_pre_hook(_channels_last)

    def detect(self, images: Sequence[npt.NDArray[np.uint8]]) -> list[npt.NDArray[np.float32] | None]:
        """Find the landmarks of the main face of each photo, as `find` and `choose_face` do.

        Returns:
            For each photo the (5, 2) float32 landmarks of its main face in pixels of the photo, in the
            order of `LANDMARKS`, or None where no face was found.
        """
        chosen = [main_face(image, faces) for image, faces in zip(images, self.find(images), strict=True)]
        return [None if face is None else face.landmarks for face in chosen]

    def find(self, images: Sequence[npt.NDArray[np.uint8]]) -> list[list[Face]]:
        """Find the faces of each photo.

        Args:
            images: RGB photos, each (H, W, 3) uint8; sizes may differ, equal ones are batched.

        Returns:
            The faces found in each photo, in MTCNN's order; none where nothing was found.

        Raises:
            ValueError: an image is no (H, W, 3) uint8 array.
        """
        for position, image in enumerate(images):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
                raise ValueError(f"FaceDetector takes (H, W, 3) uint8; image {position} is {image.shape} {image.dtype}")
        small = [min(image.shape[:2]) < self.SMALL for image in images]
        found = self._find(images, [self.BORDER if each else 0.0 for each in small])
        again = [
            i for i, faces in enumerate(found) if not small[i] and not any(face.probability >= SURE for face in faces)
        ]
        for i, faces in zip(again, self._find([images[i] for i in again], [self.BORDER] * len(again)), strict=True):
            found[i] = faces or found[i]
        return found

    def _find(self, images: Sequence[npt.NDArray[np.uint8]], borders: Sequence[float]) -> list[list[Face]]:
        found: list[list[Face]] = [[] for _ in images]
        prepared = [self._prepare(image, border) for image, border in zip(images, borders, strict=True)]
        for batch in self._equal_sizes([picture for picture, _, _ in prepared]):
            for i, faces in zip(batch, self._look(np.stack([prepared[i][0] for i in batch])), strict=True):
                _, scale, border = prepared[i]
                found[i] = [
                    Face(
                        ((face.landmarks + 0.5) / scale - 0.5 - border).astype(np.float32),
                        ((face.box.reshape(2, 2) + 0.5) / scale - 0.5 - border).astype(np.float32).reshape(4),
                        face.probability,
                    )
                    for face in faces
                ]
        return found

    def _equal_sizes(self, images: Sequence[npt.NDArray[np.uint8]]) -> Iterator[list[int]]:
        """Indices of pictures that can go through together: of one size, at most `batch_size`."""
        by_size: dict[tuple[int, ...], list[int]] = {}
        for i, image in enumerate(images):
            by_size.setdefault(image.shape, []).append(i)
        for indices in by_size.values():
            for start in range(0, len(indices), self.batch_size):
                yield indices[start : start + self.batch_size]

    def _prepare(
        self, image: npt.NDArray[np.uint8], border: float
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """The picture that MTCNN sees, its scale, and the border added before scaling in pixels; both (x, y)."""
        height, width = image.shape[:2]
        scale = 2.0 if min(height, width) < self.SMALL else min(1.0, self.LARGE / max(height, width))
        right, down = round(width * border), round(height * border)
        picture = cv2.copyMakeBorder(image, down, down, right, right, cv2.BORDER_REPLICATE)
        before = np.array(picture.shape[1::-1])
        if scale != 1:
            interpolation = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
            picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=interpolation)
        # The scale that came out, not the one asked for: sizes are whole pixels.
        return picture.astype(np.uint8, copy=False), np.array(picture.shape[1::-1]) / before, np.array([right, down])

    def _look(self, pictures: npt.NDArray[np.uint8]) -> list[list[Face]]:
        """MTCNN over (B, H, W, 3) uint8: each picture's faces, in its pixels."""
        try:
            boxes, probabilities, landmarks = self._mtcnn.detect(pictures, landmarks=True)
        except (RuntimeError, IndexError, ValueError) as error:
            # facenet-pytorch stumbles over a picture smaller than the least face, and when a candidate box lies
            # outside its picture. Find the picture; it has no face. Whatever else goes wrong is no picture's fault.
            if not any(words in str(error) for words in _STUMBLES):
                raise
            if len(pictures) == 1:
                return [[]]
            return [self._look(picture[None])[0] for picture in pictures]
        return [
            []
            if points is None
            else [
                Face(np.asarray(each, np.float32), np.asarray(box, np.float32), float(sure))
                for each, box, sure in zip(points, box_rows, sures, strict=True)
            ]
            for points, box_rows, sures in zip(landmarks, boxes, probabilities, strict=True)
        ]


_STUMBLES = ("non-empty list", "shape of the mask", "sizes should be greater than 0")


def _channels_last(network: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    return (inputs[0].contiguous(memory_format=torch.channels_last),)
