"""A set's rule that takes the process with it. On its own, for each process imports it."""

import os

from PIL import Image

from data_modules.photos import PhotoError

CRASHES, REFUSED = (77, 78), (50, 50)


def crash(image: Image.Image) -> None:
    """Refuse photos of one size, and do not survive those of another."""
    if image.size == CRASHES:
        os._exit(1)
    if image.size == REFUSED:
        raise PhotoError("not to our taste")
