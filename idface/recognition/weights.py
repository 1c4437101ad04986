"""Loading of weights files that users bring, and what tells weights apart."""

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn


def fingerprint_of(state: Mapping[str, Tensor], about: str = "") -> str:
    """Twelve hexadecimal digits of the SHA-256 over `about` and over the names, shapes and values of tensors."""
    digest = hashlib.sha256(about.encode())
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        whole = tensor.float() if tensor.dtype == torch.bfloat16 else tensor  # NumPy has no bfloat16
        digest.update(whole.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict from `.safetensors` or torch's own format, onto the CPU, every floating type as float32.

    torch's format is read with `weights_only`: a file that would run code is refused.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no state dict or is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"No weights file {path}")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):  # beside an epoch and the like
            state = state["state_dict"]
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is damaged or no file of weights alone: {error}") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds {type(state).__name__}, expected a state dict: names and tensors")
    return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}


def assign_weights(module: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """Give a module that was built on the meta device its weights; names and shapes must all fit.

    Raises:
        ValueError: weights are missing, unknown or of another shape.
    """
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    if found != expected:
        differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        name = differing[0]
        raise ValueError(
            f"{source} does not fit {type(module).__name__}: {len(differing)} of {len(expected)} weights differ, "
            f"the first being {name!r}: expected {expected.get(name, 'none')}, found {found.get(name, 'none')}"
        )
    module.load_state_dict(state, assign=True)
