"""`idface properties`: its files, and what it says."""

import csv
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from idface.cli import main
from idface.latent.generators import Generator
from idface.networks.dcgan import DCGANGenerator
from idface.protocols import properties as protocol
from idface.recognition.build import build_recognizer
from tests.latent.test_properties import Projection


def load_tiny_generator(checkpoint: str) -> Generator:
    torch.manual_seed(0)
    return Generator(DCGANGenerator(8, 16, 4), 8)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "load_generator", load_tiny_generator)


@pytest.mark.usefixtures("tiny")
def test_every_change_has_a_line_and_every_property_a_picture(tmp_path: Path) -> None:
    text = protocol.properties("a.ckpt", tmp_path, faces=5, recognizer=Projection())
    with (tmp_path / "properties.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["property"] for row in rows] == ["noise"] * 11 + ["sign"] + ["amplitude"] * 8 + ["different faces"]
    content = json.loads((tmp_path / "properties.json").read_text())
    assert [each["setting"] for each in content["amplitude"]] == [float(row["setting"]) for row in rows[12:-1]]
    assert content["noise"][0]["mean"] == float(rows[0]["mean"])
    assert content["threshold"] is content["noise_limit"] is None
    assert "different faces" in text
    with Image.open(tmp_path / "properties.png") as plot:
        assert plot.width > 900
    for name, columns in (("noise", 12), ("sign", 2), ("amplitude", 9)):
        with Image.open(tmp_path / f"{name}.png") as strip:
            assert "trainedAlgorithmicMedia" in strip.info["DigitalSourceType"]
            assert strip.size == (columns * 16, 4 * 16)
            assert len(json.loads(strip.info["Recipe"])["columns"]) == columns


@pytest.mark.usefixtures("tiny")
def test_a_known_recogniser_draws_its_threshold(tmp_path: Path) -> None:
    text = protocol.properties("a.ckpt", tmp_path, faces=3)
    assert f"measured on {build_recognizer('dlib').everyday.data}" in text
    assert "the generator makes one person" in text  # untrained
    assert json.loads((tmp_path / "properties.json").read_text())["noise_limit"] == 1


@pytest.mark.usefixtures("tiny")
def test_too_few_faces_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["properties", "--checkpoint", "a.ckpt", "--out", str(tmp_path), "--faces", "2"])
    assert stopped.value.code == 2
    assert "2 faces: expected 3 or more" in capsys.readouterr().err
