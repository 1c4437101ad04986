"""How fast synthetic faces are written to disk, and what of that is encoding and writing.

Unchecked, for a detector and a recogniser take far longer than all the rest: their own speeds are in other benchmarks.
"""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from idface.files import save_tensors
from idface.modules.cond_vaegan import CondVAEGAN
from idface.protocols import synthesize as module
from idface.protocols.synthesize import synthesize

PEOPLE = 64


def saved(folder: Path, image_size: int) -> str:
    """A generator of the recipe's size, untrained: its faces, noise, are harder to encode than real ones."""
    arguments: dict[str, Any] = {"num_identities": PEOPLE, "image_size": image_size, "discriminators": 0}
    model = CondVAEGAN(**arguments)
    recipe = {"class_path": "idface.modules.cond_vaegan.CondVAEGAN", "init_args": arguments}
    state = {f"synthesizer.{name}": value.contiguous() for name, value in model.synthesizer.state_dict().items()}
    save_tensors(state, folder / "model.safetensors", {"recipe": json.dumps(recipe)})
    return str(folder / "model.safetensors")


@pytest.mark.parametrize("format", ["shards", "folder"])
@pytest.mark.parametrize("image_size", [64, 128])
def test_writing_keeps_up_with_generating(
    image_size: int, format: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = saved(tmp_path, image_size)
    per = 6144 // PEOPLE  # three chunks
    synthesize(checkpoint, tmp_path / "warm", 4, unchecked=True)
    began = time.perf_counter()
    synthesize(checkpoint, tmp_path / "whole", per, unchecked=True, format=format)
    whole = time.perf_counter() - began

    write = module._Synthesis._write
    chunks: list[Any] = []
    times: dict[str, float] = {}

    def writes(self: module._Synthesis) -> dict[str, Any]:
        times["generated"] = time.perf_counter()
        with ThreadPoolExecutor() as self.pool:
            for chunk in chunks:
                write(self, *chunk)
        times["written"] = time.perf_counter()
        return {}

    monkeypatch.setattr(module._Synthesis, "_write", lambda self, *chunk: chunks.append(chunk))
    monkeypatch.setattr(module._Synthesis, "finish", writes)
    began = time.perf_counter()
    synthesize(checkpoint, tmp_path / "generated", per, unchecked=True, format=format)
    generating = times["generated"] - began
    writing = times["written"] - times["generated"]
    faces = PEOPLE * per
    with capsys.disabled():
        print(
            f"\n{image_size}x{image_size}, {format}, {torch.get_num_threads()} threads: "
            f"{faces / whole:.0f} faces/s on disk, {faces / generating:.0f} generated and marked, "
            f"{faces / writing:.0f} encoded and written; ratio of times to generating {whole / generating:.2f}"
        )
    assert writing < generating  # else the disk would get faces at the rate of the encoding
    assert whole < 2 * generating  # even where both share the cores
