"""Descriptors that the real dlib gives for a few ORL faces, and how they were made.

    python -m tests.recognition.golden

rewrites `dlib_golden.npz`: `chips` (4, 150, 150) uint8, grey, and `descriptors` (4, 128) float32, dlib 20.0.1's answer
to `tinted(chips)`.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

FILE = Path(__file__).with_name("dlib_golden.npz")


def tinted(chips: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Grey chips (N, H, W) as colour pictures (N, H, W, 3) whose channels differ, so that their order matters."""
    return (chips[..., None] * np.array([1.0, 0.8, 0.6])).astype(np.uint8)


def dlib_descriptors(chips: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """What the dlib package says about (N, 150, 150, 3) uint8 chips: (N, 128)."""
    import dlib

    from idface.recognition.dlib_resnet import packaged_weights

    model = dlib.face_recognition_model_v1(str(packaged_weights()))
    return np.array([np.array(model.compute_face_descriptor(chip)) for chip in chips], np.float32)


if __name__ == "__main__":
    from idface.recognition import orl

    chips = orl.aligned_photos(150)[[0, 123, 256, 399], :, :, 0]
    np.savez_compressed(FILE, chips=chips, descriptors=dlib_descriptors(tinted(chips)))
