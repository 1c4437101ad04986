"""`idface edit` on a generator and a classifier of a few numbers."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, safe_open, save_file

from idface.checkpoints import CheckpointError, load_generator
from idface.cli import main
from idface.modules.attributes import AttributeClassifier
from idface.modules.greedy_search import GreedySearchModule
from idface.pictures import is_marked_synthetic
from idface.protocols import edit as module
from idface.protocols.edit import edit, parse_attributes, summary

LATENT, SIZE = 6, 64


def keep(model: Any, networks: tuple[str, ...], arguments: dict[str, Any], path: Path) -> str:
    """A model's untrained networks, as `idface export` writes trained ones."""
    kind = type(model)
    recipe = {"class_path": f"{kind.__module__}.{kind.__name__}", "init_args": arguments}
    state = {
        k: v.contiguous() for k, v in model.state_dict().items() if k.startswith(networks) and v.is_floating_point()
    }
    save_file(state, path, metadata={"recipe": json.dumps(recipe)})
    return str(path)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Weights of a generator and of a classifier whose logits differ from face to face."""
    folder = tmp_path_factory.mktemp("kept")
    torch.manual_seed(0)
    arguments = {"latent_dim": LATENT, "image_size": SIZE, "width": 4, "discriminator_width": 4}
    gan = GreedySearchModule(**arguments)  # type: ignore[arg-type]
    for weight in gan.generator.parameters():  # untrained, it makes one grey of all latents
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.1)
    labels: dict[str, Any] = {
        "attributes": ["Eyeglasses", "Smiling", "Mouth_Slightly_Open"],
        "input_size": 16,
        "width": 4,
    }
    classifier = AttributeClassifier(**labels)
    torch.nn.init.normal_(classifier.network.attribute_head.weight, std=0.5)
    return {
        "checkpoint": keep(gan, ("generator.",), arguments, folder / "gan.safetensors"),
        "classifier": keep(classifier, ("network.",), labels, folder / "labels.safetensors"),
    }


@pytest.fixture(autouse=True)
def few_random_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RANDOM_MOVES", 2)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_edits_are_made_measured_and_marked(kept: dict[str, str], tmp_path: Path) -> None:
    out, file = tmp_path / "out", tmp_path / "directions.safetensors"
    options = {**kept, "count": 100, "directions": file}
    report = edit("random:2", ["smiling=+1", "mouth_open=-0.5"], out, steps=3, **options)  # type: ignore[arg-type]
    assert json.loads((out / "report.json").read_text()) == report
    labels = ["smiling+1", "mouth_open-0.5", "together"]
    assert [result["edit"] for result in report["results"]] == labels

    with Image.open(out / "grid.png") as grid:
        assert grid.size == (4 * SIZE, 2 * SIZE + 26)
        assert "trainedAlgorithmicMedia" in grid.info["DigitalSourceType"]
        assert is_marked_synthetic(np.asarray(grid))
    for label in labels:
        with Image.open(out / "strips" / f"{label}.png") as strip:
            assert strip.size == (3 * SIZE, 2 * SIZE + 26)

    latents = {label: load_file(out / "latents" / f"{label}.safetensors")["latent"] for label in labels}
    vectors = load_file(file)["vectors"]
    single = latents["smiling+1"] - vectors[1]
    torch.testing.assert_close(latents["mouth_open-0.5"], single - 0.5 * vectors[2])
    torch.testing.assert_close(latents["together"], single + vectors[1] - 0.5 * vectors[2])

    together = report["results"][2]["attributes"]
    assert [change["attribute"] for change in together if change["wanted"]] == ["smiling", "mouth_slightly_open"]
    table = [row for row in rows(out / "report.csv") if row["edit"] == "smiling+1"]
    assert [row["attribute"] for row in table][:2] == ["identity_distance", "smiling"]
    assert len(table) == 1 + 5  # all three, yaw and brightness
    assert float(table[1]["after"]) == pytest.approx(report["results"][0]["attributes"][0]["after"], rel=1e-4)
    lines = summary(report)
    assert any(line.startswith("together: identity moved by") for line in lines)
    assert any("smiling" in line and "standard deviations" in line for line in lines)


def test_a_kept_direction_is_used_again_and_a_latent_names_its_generator(
    kept: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, latent = tmp_path / "directions.safetensors", tmp_path / "latent.safetensors"
    generator = load_generator(kept["checkpoint"])
    metadata = {"generator": generator.fingerprint(), "checkpoint": kept["checkpoint"]}
    save_file({"latent": torch.zeros(LATENT)}, latent, metadata=metadata)
    given = ["--attribute", "brightness=+1", "--classifier", kept["classifier"], "--directions", str(file)]
    main(["edit", "--latent", str(latent), "--out", str(tmp_path / "a"), *given, "--count", "60"])
    assert "brightness+1: brightness" in capsys.readouterr().out
    before = file.read_bytes()
    main(["edit", "--latent", str(latent), "--out", str(tmp_path / "b"), *given])
    assert file.read_bytes() == before
    edited = tmp_path / "b" / "latents" / "brightness+1.safetensors"
    torch.testing.assert_close(load_file(edited)["latent"], load_file(file)["vectors"][-1:])
    with safe_open(edited, framework="pt") as opened:
        assert opened.metadata().items() >= metadata.items()  # it can be edited on

    with pytest.raises(ValueError, match=r"--count is 70, but --directions .* is of 60 faces"):
        edit(str(latent), ["yaw=1"], tmp_path / "c", classifier=kept["classifier"], directions=file, count=70)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"attributes": ["smilling=1"]}, "'smilling'. Did you mean 'smiling'"),
        ({"attributes": ["smiling"]}, "--attribute smiling: expected NAME=STRENGTH"),
        ({"attributes": ["glasses=1", "eyeglasses=1"]}, "name one attribute twice"),
        ({"latent": "random:0"}, "--latent random:0: expected random:N"),
        ({"latent": "nowhere.safetensors"}, "--latent nowhere.safetensors: there is no such file"),
        ({"steps": 1}, "--steps is 1"),
        ({"seed": -1}, "--seed is -1"),
        ({"count": 0}, "--count is 0"),
        ({"checkpoint": None}, "--checkpoint is missing"),
    ],
)
def test_bad_options_are_named(kept: dict[str, str], tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    options = {"latent": "random:1", "attributes": ["smiling=1"], "out": tmp_path, "count": 60, **kept}
    with pytest.raises(ValueError, match=message):
        edit(**(options | changed))


def test_a_checkpoint_of_another_kind_is_refused(kept: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a checkpoint of AttributeClassifier"):
        edit("random:1", ["smiling=1"], tmp_path, kept["checkpoint"], classifier=kept["checkpoint"])
    with pytest.raises(CheckpointError, match="makes no faces from latents"):
        edit("random:1", ["smiling=1"], tmp_path, kept["classifier"], classifier=kept["classifier"])


def test_a_latent_of_another_generator_is_refused(kept: dict[str, str], tmp_path: Path) -> None:
    latent = tmp_path / "latent.safetensors"
    save_file({"latent": torch.zeros(LATENT)}, latent, metadata={"generator": "0123456789ab"})
    with pytest.raises(ValueError, match="is of generator 0123456789ab"):
        edit(str(latent), ["smiling=1"], tmp_path, **kept)
    save_file({"latent": torch.zeros(LATENT + 1)}, latent)
    with pytest.raises(ValueError, match="length 7; --checkpoint"):
        edit(str(latent), ["smiling=1"], tmp_path, **kept)
    save_file({"other": torch.zeros(LATENT)}, latent)
    with pytest.raises(ValueError, match="holds no tensor 'latent'"):
        edit(str(latent), ["smiling=1"], tmp_path, **kept)


def test_strengths_are_read() -> None:
    assert parse_attributes(["Smiling=+1", "yaw=-.5"]) == {"smiling": 1.0, "yaw": -0.5}
    for bad in (["=1"], ["yaw=0"], ["yaw=nan"], ["yaw=1", "Yaw=2"], []):
        with pytest.raises(ValueError, match="--attribute"):
            parse_attributes(bad)
