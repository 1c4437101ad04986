import cv2
import numpy as np
import numpy.typing as npt
import pytest

from idface.recognition import orl
from idface.recognition.alignment import (
    FACE_TEMPLATE,
    FaceDetector,
    fit_similarity,
    similarity_transform,
    warp_face,
)

RNG = np.random.default_rng(0)


def apply(matrix: npt.NDArray[np.float64], points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return points @ matrix[:, :2].T + matrix[:, 2]


def test_fit_recovers_a_similarity() -> None:
    angle, scale, shift = 0.7, 2.5, np.array([3.0, -40.0])
    rotation = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = RNG.normal(size=(5, 2))
    matrix = fit_similarity(points, points @ rotation.T + shift)
    np.testing.assert_allclose(matrix, np.column_stack([rotation, shift]), atol=1e-12)


def test_fit_is_the_least_squares_solution() -> None:
    source, target = RNG.normal(size=(2, 5, 2))
    x, y = source.T
    one, zero = np.ones(5), np.zeros(5)
    system = np.vstack([np.column_stack([x, -y, one, zero]), np.column_stack([y, x, zero, one])])
    a, b, dx, dy = np.linalg.lstsq(system, target.T.ravel(), rcond=None)[0]
    np.testing.assert_allclose(fit_similarity(source, target), [[a, -b, dx], [b, a, dy]], atol=1e-12)


def test_fit_never_mirrors() -> None:
    mirrored = FACE_TEMPLATE * (-1, 1)
    assert np.linalg.det(fit_similarity(mirrored, FACE_TEMPLATE)[:, :2]) > 0


def test_an_aligned_face_stays_where_it_is() -> None:
    matrix = similarity_transform(FACE_TEMPLATE * 64 - 0.5, 64)
    np.testing.assert_allclose(matrix, [[1, 0, 0], [0, 1, 0]], atol=1e-5)


def test_the_nose_does_not_move_the_fit() -> None:
    points = orl.landmarks()[0]
    moved = points.copy()
    moved[2] += 10
    np.testing.assert_array_equal(similarity_transform(points, 64), similarity_transform(moved, 64))


@pytest.mark.parametrize(
    "points", [np.zeros((5, 2)), np.full((5, 2), np.nan), np.zeros((4, 2)), np.zeros((5, 3)), np.zeros(10)]
)
def test_unusable_landmarks_are_refused(points: npt.NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match=r"landmarks|one place"):
        similarity_transform(points, 64)


def test_all_sizes_show_the_same_picture() -> None:
    photo, points = orl.photos()[0], orl.landmarks()[0]
    large = warp_face(photo, points, 256).astype(float)
    for size in (128, 64, 32):
        reduced = cv2.resize(large, (size, size), interpolation=cv2.INTER_AREA)
        assert np.abs(warp_face(photo, points, size) - reduced).mean() < 2


def test_fine_patterns_do_not_alias() -> None:
    photo = np.zeros((800, 800, 3), np.uint8)
    photo[::2, ::2] = photo[1::2, 1::2] = 255  # a chessboard of pixels, which no picture of 64 can show
    face = warp_face(photo, FACE_TEMPLATE * 771 + 7, 64)
    assert face[2:-2, 2:-2].std() < 4
    assert abs(face.mean() - 127.5) < 2


def test_the_border_is_repeated() -> None:
    face = warp_face(np.full((20, 20, 3), 77, np.uint8), FACE_TEMPLATE * 60 - 20, 64)
    assert (face == 77).all()


def test_landmarks_close_together_make_no_huge_picture() -> None:
    points = FACE_TEMPLATE * 0.01 + 5
    assert warp_face(RNG.integers(0, 256, (10, 10, 3), np.uint8), points, 64).shape == (64, 64, 3)
    assert warp_face(RNG.integers(0, 256, (10, 10, 3), np.uint8), FACE_TEMPLATE * 1e5, 64).shape == (64, 64, 3)


@pytest.mark.parametrize("image", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3), np.float32)])
def test_warp_and_detector_refuse_other_images(image: npt.NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="uint8"):
        warp_face(image, FACE_TEMPLATE * 9, 64)
    with pytest.raises(ValueError, match="image 0 is"):
        FaceDetector().detect([image])


def test_orl_landmarks_are_those_of_faces() -> None:
    points = orl.landmarks()
    assert points.shape == (400, 5, 2)
    left_eye, right_eye, nose, left_mouth, right_mouth = points.transpose(1, 0, 2)
    assert (points >= 0).all()
    assert (points <= (91, 111)).all()
    assert (left_eye[:, 0] < right_eye[:, 0]).all()
    assert (left_mouth[:, 0] < right_mouth[:, 0]).all()
    assert (np.maximum(left_eye, right_eye)[:, 1] < nose[:, 1]).all()
    assert (nose[:, 1] < np.minimum(left_mouth, right_mouth)[:, 1]).all()


def test_the_templates_nose_is_the_mean_nose() -> None:
    noses = [apply(similarity_transform(points, 64), points[2]) for points in orl.landmarks()]
    np.testing.assert_allclose((np.mean(noses, axis=0) + 0.5) / 64, FACE_TEMPLATE[2], atol=2e-4)


def test_detector_finds_faces_of_any_size_and_says_where_there_is_none() -> None:
    photos, points = orl.photos(), orl.landmarks()
    canvas = np.full((1500, 1200, 3), 128, np.uint8)  # shrunk by the detector
    canvas[300:1196, 200:936] = cv2.resize(photos[20], None, fx=8, fy=8, interpolation=cv2.INTER_CUBIC)
    images = [photos[0], canvas, np.full((112, 92, 3), 200, np.uint8), photos[399], np.zeros((3, 5, 3), np.uint8)]

    first, large, blank, last, tiny = FaceDetector().detect(images)
    assert blank is None
    assert tiny is None
    assert first is not None
    assert large is not None
    assert last is not None
    assert first.shape == (5, 2)
    assert first.dtype == np.float32
    np.testing.assert_allclose(first, points[0], atol=0.1)
    np.testing.assert_allclose(last, points[399], atol=0.1)
    # Enlarged eightfold, a pixel of the photo is eight of the canvas.
    np.testing.assert_allclose((large + 0.5 - (200, 300)) / 8 - 0.5, points[20], atol=1.5)


def test_detector_takes_the_large_face_in_the_middle() -> None:
    photos = orl.photos()
    aside, middle = photos[0], cv2.resize(photos[30], None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    canvas = np.full((240, 400, 3), 128, np.uint8)
    canvas[20:132, 10:102] = aside
    canvas[8:232, 110:294] = middle
    (points,) = FaceDetector().detect([canvas])
    assert points is not None
    assert (points[:, 0] > 110).all()

    # Somewhat larger, but at the edge: somebody who passes by.
    canvas = np.full((300, 500, 3), 128, np.uint8)
    canvas[60:228, 181:319] = cv2.resize(photos[30], (138, 168), interpolation=cv2.INTER_CUBIC)
    canvas[60:254, 0:159] = cv2.resize(photos[0], (159, 194), interpolation=cv2.INTER_CUBIC)
    (points,) = FaceDetector().detect([canvas])
    assert points is not None
    assert (points[:, 0] > 181).all()


def test_one_picture_that_mtcnn_stumbles_over_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = FaceDetector()
    detect = detector._mtcnn.detect

    def stumbling(pictures: npt.NDArray[np.uint8], landmarks: bool) -> object:
        if any((picture == 255).all() for picture in pictures):
            raise IndexError("The shape of the mask [3] at index 0 does not match that of the indexed tensor [4, 5]")
        return detect(pictures, landmarks=landmarks)

    monkeypatch.setattr(detector._mtcnn, "detect", stumbling)
    photos = orl.photos()
    found = detector.detect([photos[0], np.full((112, 92, 3), 255, np.uint8), photos[1]])
    assert [points is None for points in found] == [False, True, False]


def test_a_broken_device_is_not_a_photo_without_a_face(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = FaceDetector()

    def broken(pictures: npt.NDArray[np.uint8], landmarks: bool) -> object:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(detector._mtcnn, "detect", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        detector.detect(orl.photos()[:2])
