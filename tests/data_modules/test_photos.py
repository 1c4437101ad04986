"""Photos of any mode come out as 8-bit RGB, upright."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_modules.photos import CentreReader, Photo, PhotoError, open_photo

# A picture in which every corner differs: red, green, blue and white quarters.
CORNERS = np.zeros((60, 80, 3), np.uint8)
CORNERS[:30, :40, 0] = 200
CORNERS[:30, 40:, 1] = 200
CORNERS[30:, :40, 2] = 200
CORNERS[30:, 40:] = 200
GREY = np.asarray(Image.fromarray(CORNERS).convert("L"))


def corners(image: Image.Image) -> np.ndarray:
    """The pixel in the middle of each quarter, (4, 3), row by row."""
    pixels = np.asarray(image).astype(int)
    height, width = pixels.shape[:2]
    return np.stack([pixels[y, x] for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4)])


def write_16_bit_png(path: Path) -> None:
    Image.fromarray(GREY.astype(np.uint16) * 257).save(path)


def write_16_bit_pgm(path: Path) -> None:
    path.write_bytes(b"P5 80 60 65535\n" + (GREY.astype(">u2") * 257).tobytes())


def write_16_bit_tiff(path: Path) -> None:
    Image.fromarray(GREY.astype(np.uint16) * 257).save(path)


def write_transparent(path: Path) -> None:
    pixels = np.dstack([CORNERS, np.full((60, 80), 255, np.uint8)])
    pixels[30:, 40:] = 0  # black, but transparent
    Image.fromarray(pixels).save(path)


def write_animated(path: Path) -> None:
    frames = [Image.fromarray(CORNERS), Image.new("RGB", (80, 60), "yellow")]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)


COLOUR = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200], [200, 200, 200]])
GREYS = np.repeat(corners(Image.fromarray(GREY).convert("RGB"))[:, :1], 3, axis=1)
PHOTOS: dict[str, tuple[Callable[[Path], None], np.ndarray]] = {
    "colour.png": (lambda path: Image.fromarray(CORNERS).save(path), COLOUR),
    "colour.jpg": (lambda path: Image.fromarray(CORNERS).save(path, quality=95), COLOUR),
    "colour.webp": (lambda path: Image.fromarray(CORNERS).save(path, quality=95), COLOUR),
    "colour.bmp": (lambda path: Image.fromarray(CORNERS).save(path), COLOUR),
    "wrong_suffix.gif": (lambda path: Image.fromarray(CORNERS).save(path, format="PNG"), COLOUR),
    "no_suffix": (lambda path: Image.fromarray(CORNERS).save(path, format="JPEG", quality=95), COLOUR),
    "grey.png": (lambda path: Image.fromarray(GREY).save(path), GREYS),
    "grey.jpg": (lambda path: Image.fromarray(GREY).save(path), GREYS),
    "palette.png": (lambda path: Image.fromarray(CORNERS).quantize(16).save(path), COLOUR),
    "cmyk.jpg": (lambda path: Image.fromarray(CORNERS).convert("CMYK").save(path, quality=95), COLOUR),
    "cmyk.tiff": (lambda path: Image.fromarray(CORNERS).convert("CMYK").save(path), COLOUR),
    "16bit.png": (write_16_bit_png, GREYS),
    "16bit.pgm": (write_16_bit_pgm, GREYS),
    "16bit.tiff": (write_16_bit_tiff, GREYS),
    "transparent.png": (write_transparent, np.array([*COLOUR[:3], [255, 255, 255]])),
    "animated.gif": (write_animated, COLOUR),
    "animated.png": (write_animated, COLOUR),
    "animated.webp": (write_animated, COLOUR),
    "bilevel.png": (
        lambda path: Image.fromarray(GREY).convert("1", dither=Image.Dither.NONE).save(path),
        np.where(GREYS > 127, 255, 0),
    ),
}


@pytest.mark.parametrize("name", PHOTOS)
def test_modes_and_formats(tmp_path: Path, name: str) -> None:
    write, expected = PHOTOS[name]
    write(tmp_path / name)
    image = open_photo(tmp_path / name)
    assert image.mode == "RGB"
    assert image.size == (80, 60)
    assert np.abs(corners(image) - expected).max() <= 8  # JPEG and WebP lose a little


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    """Store the picture turned as the tag says a camera would have, and find it upright."""
    # EXIF 2.32, table 6: where row 0 and column 0 of the stored picture lie in the upright one.
    stored = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.transpose(1, 0, 2),
        6: lambda x: np.rot90(x, 1),
        7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
        8: lambda x: np.rot90(x, -1),
    }[orientation](CORNERS)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    upright = open_photo(tmp_path / "turned.jpg")
    assert upright.size == (80, 60)
    assert np.abs(corners(upright) - COLOUR).max() <= 8
    picture = CentreReader(20)(Photo("turned", None, tmp_path / "turned.jpg"))
    assert np.abs(corners(Image.fromarray(picture)) - COLOUR).max() <= 8


@pytest.mark.parametrize(("width", "height"), [(200, 60), (60, 200), (100, 100), (17, 23)])
def test_the_middle_is_cut_out(tmp_path: Path, width: int, height: int) -> None:
    """A disc in the middle, as wide as the shorter side, fills the picture whatever the photo's shape."""
    y, x = np.mgrid[:height, :width]
    inside = np.hypot(x - (width - 1) / 2, y - (height - 1) / 2) < min(width, height) / 2
    Image.fromarray(np.uint8(inside * 255)).save(tmp_path / "disc.png")
    picture = CentreReader(16)(Photo("disc", None, tmp_path / "disc.png"))
    assert picture.shape == (16, 16, 3)
    y, x = np.mgrid[:16, :16]
    radius = np.hypot(x - 7.5, y - 7.5)
    assert picture[radius < 6.5].min() > 200
    assert picture[radius > 9.5].max() < 50


def test_shrinking_does_not_alias(tmp_path: Path) -> None:
    """A checkerboard finer than the target is grey, not a moiré; a large JPEG, decoded at a fraction, too."""
    y, x = np.mgrid[:512, :512]
    Image.fromarray(np.uint8((x + y) % 2 * 255)).save(tmp_path / "board.png")
    Image.fromarray(np.uint8((x + y) // 2 % 2 * 255)).save(tmp_path / "board.jpg")
    for name in ("board.png", "board.jpg"):
        picture = CentreReader(48)(Photo(name, None, tmp_path / name))
        assert np.abs(picture.astype(int) - 127).max() < 12


def test_a_large_jpeg_looks_the_same_as_a_png(tmp_path: Path) -> None:
    smooth = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 9, 3), np.uint8)).resize((900, 700))
    smooth.save(tmp_path / "a.png")
    smooth.save(tmp_path / "a.jpg", quality=95)
    pictures = [CentreReader(64)(Photo(name, None, tmp_path / name)).astype(int) for name in ("a.png", "a.jpg")]
    assert np.abs(pictures[0] - pictures[1]).mean() < 1.5


def test_a_disguised_program_is_not_run(tmp_path: Path) -> None:
    """PostScript is a language; Pillow would pass it to an interpreter."""
    (tmp_path / "photo.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n"
    )
    with pytest.raises(PhotoError, match="not an image in a known format"):
        open_photo(tmp_path / "photo.jpg")
