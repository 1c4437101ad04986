"""What a batch of faces holds, between the loaders that fill it and the modules that train on it."""

from collections.abc import Iterable, Sized
from typing import NotRequired, Protocol, Required, TypedDict

import torch
from torch import Tensor

EVALUATION_SETS = ("known", "unseen", "gallery")
"""The loaders of `val_dataloader()` and `test_dataloader()`, in the order of Lightning's `dataloader_idx`.

known: held-out photos of people in training, some of them for validation, others for the test; unseen: photos of people
who are not in training; gallery: one photo a person, of all.
"""


class FaceBatch(TypedDict, total=False):
    """A batch of B aligned faces.

    Images are uint8 (B, 3, H, W) in [0, 255] as a loader yields them, and float32 in [-1, 1], channels-last in memory,
    once the data module has put them on the device.

    What `partner` shows depends on the loader. In training: another photo of the same person, or the photo itself where
    there is no other or the person is unknown. In evaluation: a photo of another person, the source of attributes.
    """

    image: Required[Tensor]  # (B, 3, H, W)
    identity: Required[Tensor]
    """int64 (B,). -1 unknown; training people are 0 .. num_identities - 1, validation, then test people follow."""
    index: Required[Tensor]
    """int64 (B,). The photo's row in the data set: `FaceDataModule.paths[index]` is its file."""
    partner: NotRequired[Tensor]  # (B, 3, H, W), same form as `image`
    partner_identity: NotRequired[Tensor]  # int64 (B,)
    partner_index: NotRequired[Tensor]  # int64 (B,)
    sex: NotRequired[Tensor]  # float32 (B,), -1 female, 1 male
    age: NotRequired[Tensor]  # float32 (B,), years
    attributes: NotRequired[Tensor]  # float32 (B, number of attributes), -1 absent, 1 present
    yaw: NotRequired[Tensor]  # float32 (B,), degrees, negative where the person's left side shows
    camera: NotRequired[Tensor]  # float32 (B,), Multi-PIE's number: 51 for 05_1
    illumination: NotRequired[Tensor]  # float32 (B,), Multi-PIE's, 0 to 19
    landmarks: NotRequired[Tensor]  # float32 (B, 5, 2), pixels (x, y), in the order of FACE_TEMPLATE
    path: NotRequired[list[str]]


class FaceSource(Protocol):
    """What a module may ask of the data module that it is trained on, beside its batches."""

    @property
    def photos(self) -> Sized:
        """The photos in use; `index` in a batch counts in them."""

    def training_photos(self) -> Iterable[FaceBatch]:
        """Every training photo once, uint8, on every rank alike, without partners and augmentation."""


def labels_of(batch: FaceBatch) -> tuple[Tensor, Tensor]:
    """A batch's sexes (B,), -1, 1 or NaN, and ages (B,) in years or NaN.

    Raises:
        ValueError: the batch lacks them.
    """
    if missing := [key for key in ("sex", "age") if key not in batch]:
        raise ValueError(
            f"batches carry no {' and no '.join(missing)}: give a set with both, such as IMDB-WIKI "
            "(IMDBWikiDataModule), UTKFace (UTKFaceDataModule) or one of these prepared (PreparedDataModule)"
        )
    return batch["sex"], batch["age"]


def to_float(image: Tensor) -> Tensor:
    """Map uint8 [0, 255] to float32 [-1, 1]; any shape, memory format kept."""
    return image.to(torch.float32).div_(127.5).sub_(1.0)


def to_uint8(image: Tensor) -> Tensor:
    """Map float [-1, 1] to uint8 [0, 255], rounding to the nearest and clipping what lies outside; any shape."""
    return image.float().add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
