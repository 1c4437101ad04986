"""Generators of this project, and those that were trained elsewhere."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from idface.checkpoints import CheckpointError, load_generator
from idface.latent.generators import ExternalGenerator, Generator
from idface.networks.dcgan import DCGANGenerator
from idface.recognition.alignment import FACE_TEMPLATE


def network(**arguments: Any) -> DCGANGenerator:
    torch.manual_seed(0)
    return DCGANGenerator(**({"latent_dim": 6, "image_size": 16, "width": 4} | arguments)).eval()


def latents(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 6, generator=torch.Generator().manual_seed(1)) * 2 - 1


def describe(folder: Path, **description: Any) -> str:
    path = folder / "generator.yaml"
    path.write_text(yaml.safe_dump(description))
    return str(path)


def test_dcgan_is_dcgan() -> None:
    generator = DCGANGenerator(200, 64, 64)
    kinds = [type(layer).__name__ for layer in generator.layers]
    assert kinds == ["BatchNorm2d", "ReLU", "ConvTranspose2d"] * 4 + ["Tanh"]
    transposed = [layer for layer in generator.layers if isinstance(layer, torch.nn.ConvTranspose2d)]
    assert [layer.in_channels for layer in transposed] == [512, 256, 128, 64]
    assert {(layer.kernel_size, layer.stride, layer.padding) for layer in transposed} == {((4, 4), (2, 2), (1, 1))}
    assert generator(torch.zeros(2, 200)).shape == (2, 3, 64, 64)
    assert DCGANGenerator(200, 128, 8)(torch.zeros(2, 200)).shape == (2, 3, 128, 128)
    assert abs(float(generator.project.weight.detach().std()) - 0.02) < 1e-3


def test_torchscript_from_a_yaml_file_is_the_same_generator(tmp_path: Path) -> None:
    torch.jit.script(network()).save(str(tmp_path / "faces.ts"))
    external = load_generator(describe(tmp_path, weights="faces.ts", latent_dim=6))
    own = Generator(network(), 6)
    assert torch.allclose(external(latents()), own(latents()), atol=1e-6)
    assert external.prior == "uniform"
    assert external.image_size == 16
    assert external.fingerprint() == own.fingerprint()


def test_safetensors_with_its_network(tmp_path: Path) -> None:
    save_file(network().state_dict(), tmp_path / "faces.safetensors")
    how = {"class_path": "idface.networks.dcgan.DCGANGenerator"}
    how["init_args"] = {"latent_dim": 6, "image_size": 16, "width": 4}  # type: ignore[assignment]
    path = describe(tmp_path, weights="faces.safetensors", latent_dim=6, prior="normal", network=how)
    external = load_generator(path)
    assert torch.allclose(external(latents()), Generator(network(), 6)(latents()), atol=1e-6)
    assert external.prior == "normal"


def test_faces_of_another_frame_are_brought_to_the_common_one(tmp_path: Path) -> None:
    class Dot(torch.nn.Module):
        """A bright spot where its faces have the left eye: at a quarter of the side."""

        def forward(self, latent: torch.Tensor) -> torch.Tensor:
            image = torch.full((len(latent), 1, 64, 64), -1.0)
            image[:, :, 14:18, 14:18] = 1
            return image

    other = [tuple(0.25 + 0.5 * (point - FACE_TEMPLATE[0]) / 0.35) for point in FACE_TEMPLATE]
    face = Generator(Dot(), 6, landmarks=[(float(x), float(y)) for x, y in other])(latents(1))[0, 0]
    rows, columns = np.nonzero(face.numpy() > face.max().item() - 0.2)
    assert (columns.mean() + 0.5) / 64 == pytest.approx(FACE_TEMPLATE[0, 0], abs=0.02)
    assert (rows.mean() + 0.5) / 64 == pytest.approx(FACE_TEMPLATE[0, 1], abs=0.02)


def test_priors_are_drawn_and_contained() -> None:
    noise = torch.Generator().manual_seed(0)
    cube, ball = Generator(network(), 6), Generator(network(), 6, prior="normal")
    drawn = cube.sample(20_000, noise)
    assert (drawn.abs() <= 1).all()
    assert float(drawn.std()) == pytest.approx(cube.std, rel=0.01)
    assert float(ball.sample(20_000, noise).std()) == pytest.approx(ball.std, rel=0.01)
    assert float(cube.sample(1000, noise, truncation=0.5).abs().max()) <= 0.5
    far = torch.tensor([[3.0, -3, 0.5, 0, 0, 0]])
    assert torch.equal(cube.contain(far), torch.tensor([[1.0, -1, 0.5, 0, 0, 0]]))
    assert float(ball.contain(far).norm()) == pytest.approx(6**0.5)
    assert torch.equal(ball.contain(far / 10), far / 10)


def test_evaluation_mode_is_for_good() -> None:
    generator = Generator(network(), 6)
    generator.train()
    assert not generator.network.training
    assert torch.allclose(generator(latents())[1:2], generator(latents()[1:2]), atol=1e-6)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"weights": "none.ts", "latent_dim": 6}, "there is no file .*none.ts"),
        ({"weights": "noise.ts", "latent_dim": 6}, "noise.ts' cannot be read as a TorchScript file"),
        ({"weights": "faces.ts", "latent_dim": 7}, "makes nothing of latents of length 7"),
        ({"weights": "faces.ts", "latent_dim": 6, "prior": "cube"}, "prior"),
        ({"weights": "faces.ts", "latent_dim": 6, "landmarks": [[0.1, 0.2]]}, "expected five points"),
        ({"weights": "faces.safetensors", "latent_dim": 6}, "needs the `network` that it is of"),
        ({"weights": "faces.ts", "latent": 6}, "latent"),
        ("faces.ts", "expected weights: FILE"),
    ],
)
def test_descriptions_that_cannot_be_used_say_why(tmp_path: Path, description: Any, message: str) -> None:
    torch.jit.script(network()).save(str(tmp_path / "faces.ts"))
    save_file(network().state_dict(), tmp_path / "faces.safetensors")
    (tmp_path / "noise.ts").write_bytes(b"no network")
    path = tmp_path / "generator.yaml"
    path.write_text(yaml.safe_dump(description))
    with pytest.raises(CheckpointError, match=message) as refused:
        load_generator(str(path))
    assert "generator.yaml" in str(refused.value)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file(network().state_dict(), tmp_path / "faces.safetensors")
    with pytest.raises(ValueError, match=r"cannot be read as a safetensors file of the network"):
        ExternalGenerator(tmp_path / "faces.safetensors", 6, network=network(width=8))


def test_a_model_that_makes_no_faces_from_latents_is_refused() -> None:
    with pytest.raises(CheckpointError, match="is of OpenSetIPGAN, which makes no faces from latents alone"):
        load_generator("zoo:quickstart")


def test_what_makes_no_pictures_is_refused() -> None:
    with pytest.raises(ValueError, match=r"makes \(2, 6\) of two latents, expected pictures"):
        Generator(torch.nn.Linear(6, 6), 6)
