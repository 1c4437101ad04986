"""Evaluations of a search: batched, reduced and compiled, against a loop that scores one candidate at a time."""

import os
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from idface.latent.generators import Generator
from idface.latent.scoring import Scorer, distance_from_mean
from idface.networks.dcgan import DCGANGenerator
from idface.recognition.dlib_resnet import DlibResNet

ROUNDS = 3
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def rate(score: Callable[[Tensor], Tensor], latents: Tensor) -> float:
    """Candidates a second."""
    started = time.perf_counter()
    score(latents).cpu()  # whatever the device still has to do is waited for
    return len(latents) / (time.perf_counter() - started)


@pytest.mark.parametrize("device", DEVICES)
def test_evaluations_against_one_at_a_time(device: str) -> None:
    torch.manual_seed(0)
    generator = Generator(DCGANGenerator(200, 64, 64), 200).to(device)
    recognizer = DlibResNet().to(device)
    person = recognizer(torch.rand(1, 3, 64, 64, device=device) * 2 - 1)[0]
    latents = generator.sample(4096 if device == "cuda" else 512, torch.Generator().manual_seed(0))

    @torch.no_grad()
    def one_at_a_time(candidates: Tensor) -> Tensor:
        distances = [
            distance_from_mean(recognizer(generator(latent[None].to(device)))[0], person) for latent in candidates
        ]
        return torch.stack(distances)

    scorers = {
        "batched": Scorer(generator, recognizer, precision="float32"),
        "batched, as search takes it": Scorer(generator, recognizer),
        "batched, compiled": Scorer(generator, recognizer, compile=True),
    }
    batch_size = scorers["batched"].batch_size
    ways: dict[str, Callable[[Tensor], Tensor]] = {"one at a time": one_at_a_time}
    ways |= {name: lambda z, scorer=scorer: scorer.distances(z, person) for name, scorer in scorers.items()}
    few = latents[: 256 if device == "cuda" else 64]
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS + 1):  # in turn: whatever else the machine does meets all of them
        for name, score in ways.items():
            rates[name].append(rate(score, few if name == "one at a time" else latents))
    loop = rates["one at a time"][1:]
    print(f"\n{device}, {torch.get_num_threads()} threads, {os.cpu_count()} cores; batch {batch_size}")
    for name, values in rates.items():
        ratios = sorted(value / one for value, one in zip(values[1:], loop, strict=True))
        precision = scorers[name].precision if name in scorers else "float32"
        print(
            f"  {name} ({precision}): {sorted(values[1:])[ROUNDS // 2]:,.0f} evaluations/s, "
            f"{ratios[ROUNDS // 2]:.1f} times the loop ({', '.join(f'{ratio:.1f}' for ratio in ratios)})"
        )
        if name == "batched, compiled":
            assert ratios[ROUNDS // 2] > (20 if device == "cuda" else 2.5)
