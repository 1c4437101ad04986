"""Speed of the embedded recogniser beside the package that it comes from."""

import time
from collections.abc import Callable

import dlib
import numpy as np
import pytest
import torch

from idface.recognition import orl
from idface.recognition.dlib_resnet import DlibResNet, packaged_weights

BATCH = 32


def rate(embed: Callable[[], object], seconds: float = 3) -> float:
    """Images per second of the fastest of several runs over one batch, the first of them not counted."""
    embed()
    runs, end = [], time.perf_counter() + seconds
    while not runs or time.perf_counter() < end:
        start = time.perf_counter()
        embed()
        runs.append(time.perf_counter() - start)
    return BATCH / min(runs)


def test_dlib_resnet_is_three_times_as_fast_as_dlib(capsys: pytest.CaptureFixture[str]) -> None:
    chips = orl.aligned_photos(150)[:BATCH]
    reference = dlib.face_recognition_model_v1(str(packaged_weights()))
    recognizer = DlibResNet()
    images = torch.from_numpy(chips).permute(0, 3, 1, 2).float() / 127.5 - 1
    differentiable = images.clone().requires_grad_()

    def embed_and_differentiate() -> None:
        recognizer(differentiable).sum().backward()

    theirs = rate(lambda: reference.compute_face_descriptor(list(chips)))
    with torch.inference_mode():
        ours = rate(lambda: recognizer(images))
    with_gradient = rate(embed_and_differentiate)
    with capsys.disabled():
        print(
            f"\ndlib {theirs:.1f} images/s, DlibResNet {ours:.1f} images/s ({ours / theirs:.1f} times as fast), "
            f"with the gradient to the image {with_gradient:.1f} images/s; "
            f"batch {BATCH}, {torch.get_num_threads()} threads"
        )
    with torch.inference_mode():
        found = recognizer.features(images, ["raw"])["raw"].numpy()
    np.testing.assert_allclose(found, np.array(reference.compute_face_descriptor(list(chips))), atol=1e-5)
    assert ours >= 3 * theirs
