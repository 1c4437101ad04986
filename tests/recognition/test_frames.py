import numpy as np
import torch
from torch import Tensor

from idface.recognition.alignment import FACE_TEMPLATE, fit_similarity
from idface.recognition.frames import FrameWarp

TURNED = np.array([(0.30, 0.40), (0.68, 0.30), (0.53, 0.53), (0.42, 0.76), (0.72, 0.70)])


def blobs(size: int) -> Tensor:
    """A picture for each landmark of the template, (5, 1, size, size): white where it lies."""
    centres = torch.arange(size).add(0.5) / size
    x, y = torch.from_numpy(FACE_TEMPLATE).T[..., None]
    spots = (torch.exp(-200 * (centres - x).square())[:, None] * torch.exp(-200 * (centres - y).square())[..., None])[
        :, None
    ]
    return 2 * spots - 1


def centroids(pictures: Tensor) -> np.ndarray:
    size = pictures.shape[-1]
    centres = torch.arange(size).add(0.5) / size
    pictures = pictures + 1
    mass = pictures.sum((1, 2, 3))
    x, y = (pictures.sum((1, 2)) @ centres) / mass, (pictures.sum((1, 3)) @ centres) / mass
    return torch.stack([x, y], 1).numpy()


def test_landmarks_go_where_the_matrix_sends_them() -> None:
    matrix = fit_similarity(FACE_TEMPLATE, TURNED)
    expected = FACE_TEMPLATE @ matrix[:, :2].T + matrix[:, 2]
    for size in (64, 150, 256):  # enlarged, and shrunk
        np.testing.assert_allclose(centroids(FrameWarp(matrix, 112)(blobs(size))), expected, atol=2e-3)


def test_the_identity_changes_nothing() -> None:
    image = torch.rand(2, 3, 64, 64)
    warp = FrameWarp(np.array([[1.0, 0, 0], [0, 1, 0]]), 64)
    torch.testing.assert_close(warp(image), image, atol=1e-5, rtol=0)


def test_outside_is_black() -> None:
    warp = FrameWarp(np.array([[0.5, 0, 0.25], [0, 0.5, 0.25]]), 100)
    warped = warp(torch.ones(1, 3, 50, 50))
    assert (warped[..., 30:70, 30:70] == 1).all()
    assert (warped[..., :20, :] == -1).all()
    assert (warped[..., 80:] == -1).all()


def test_a_stretch_differs_by_axis() -> None:
    warp = FrameWarp(np.array([[1.2, 0, -0.1], [0, 0.9, 0.05]]), 160)
    np.testing.assert_allclose(centroids(warp(blobs(128))), FACE_TEMPLATE * (1.2, 0.9) + (-0.1, 0.05), atol=2e-3)


def test_fine_patterns_do_not_alias() -> None:
    board = torch.zeros(1, 1, 512, 512)
    board[..., ::2, ::2] = board[..., 1::2, 1::2] = 1
    warped = FrameWarp(fit_similarity(FACE_TEMPLATE, TURNED), 112)(board)[..., 30:-30, 30:-30]
    assert warped.std() < 0.02


def test_gradients_flow_to_the_image_and_the_grid_is_no_weight() -> None:
    warp = FrameWarp(fit_similarity(FACE_TEMPLATE, TURNED), 112)
    image = torch.rand(1, 3, 200, 200, requires_grad=True)
    warp(image).sum().backward()
    assert image.grad is not None
    assert (image.grad.abs().sum((0, 1))[60:140, 60:140] > 0).all()
    assert not warp.state_dict()
