"""The judgement of synthetic sets, on sets whose quality is known."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from idface.checkpoints import export_weights, load_model
from idface.cli import main
from idface.modules.base import digest_of_names
from idface.modules.recognition import LightCNNTraining
from idface.protocols import quality as module
from idface.protocols.quality import quality
from idface.protocols.sources import KnownPeople, held_out_people, people_of, training_data, training_people
from idface.recognition.dlib_resnet import DlibResNet
from idface.recognition.light_cnn import LightCNN
from tests.protocols.test_synthesize import saved


@pytest.fixture
def recipe(sets: tuple[Path, Path], tmp_path: Path) -> Path:
    """The data of four people, of whom two photos each are held out."""
    file = tmp_path / "config.yaml"
    options = f"root: '{sets[0]}', image_size: 16, val_identities: 0, test_identities: 0, held_out_photos: 2"
    file.write_text(f"data: {{class_path: PreparedDataModule, init_args: {{{options}}}}}\n")
    return file


@pytest.fixture
def classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A checkpoint whose model takes everybody for who they are, by the brightness of their photos in dlib's eyes."""
    from idface.files import save_tensors

    torch.manual_seed(0)
    model = LightCNNTraining(4)
    state = {f"network.{name}": value.contiguous() for name, value in model.network.state_dict().items()}
    told = {"class_path": "idface.modules.recognition.LightCNNTraining", "init_args": {"num_identities": 4}}
    save_tensors(state, tmp_path / "classifier.safetensors", {"recipe": json.dumps(told)})
    return str(tmp_path / "classifier.safetensors")


@pytest.fixture
def knows(sets: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the classifier know everybody, by dlib."""
    recognizer = DlibResNet()
    people = people_of(sets[0], 32, "--set")
    means = torch.stack([recognizer.embed(people.images[people.person == n]).mean(0) for n in range(4)])

    def forward(self: LightCNNTraining, image: Tensor) -> tuple[Tensor, Tensor]:
        return image, 50 * recognizer(image) @ means.T

    monkeypatch.setattr(LightCNNTraining, "forward", forward)


def test_training_and_held_out_photos_are_apart(recipe: Path) -> None:
    data = training_data("x", recipe, KnownPeople(4, 32, None))
    assert data.image_size == 32  # that of the model, whatever the recipe says
    training, held_out = training_people(data), held_out_people(data)
    assert (len(training.images), len(held_out.images)) == (8, 8)
    assert training.person.tolist() == sorted(training.person.tolist())
    both = torch.cat([training.images, held_out.images]).flatten(1)
    assert len(both.unique(dim=0)) == 16
    names = data.identity_names[:4]
    assert training_data("x", recipe, KnownPeople(4, 32, digest_of_names(names))).num_identities == 4
    with pytest.raises(ValueError, match="these data train other people"):
        training_data("x", recipe, KnownPeople(4, 32, digest_of_names(names[::-1])))


def test_real_photos_as_a_set_are_as_good_as_real_ones(
    recipe: Path,
    sets: tuple[Path, Path],
    classifier: str,
    knows: None,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    noise = tmp_path / "noise"
    main_arguments = ["synthesize", "--checkpoint", saved(tmp_path), "--out", str(noise), "--per-identity", "4"]
    main([*main_arguments, "--unchecked"])
    real, copies, made = quality([f"copies={sets[0]}", str(noise)], classifier, recipe, out)
    assert [row["set"] for row in (real, copies, made)] == ["real", "copies", "noise"]
    assert (real["faces"], copies["faces"], made["faces"]) == (8, 16, 16)
    assert real["top1"] == copies["top1"] == 100
    assert made["top1"] < 60  # noise is somebody at best
    assert real["chance"] == 25
    assert [row["compared"] for row in (real, copies, made)] == [8, 8, 8]
    assert copies["inception_score"] > 2.5 > 1.5 > made["inception_score"] >= 1
    assert copies["frechet_distance"] < made["frechet_distance"]
    assert copies["kernel_distance"] < made["kernel_distance"]
    assert copies["spread"] == pytest.approx(real["spread"], rel=0.5)
    assert made["spread"] < real["spread"]
    assert [row["judge_independent"] for row in (real, copies, made)] == [True, None, True]  # of copies nothing is told
    assert [row["set"] for row in csv.DictReader((out / "quality.csv").open(newline=""))] == ["real", "copies", "noise"]
    assert json.loads((out / "quality.json").read_text())["judge"].startswith("dlib")


def test_spreads_are_of_pairs_of_one_person(
    recipe: Path,
    sets: tuple[Path, Path],
    classifier: str,
    knows: None,
) -> None:
    people = people_of(sets[0], 32, "--set")
    model = load_model(classifier)
    assert isinstance(model, LightCNNTraining)
    judge = DlibResNet()
    judged = module._Judge(model, judge, people, torch.device("cpu"), 0, 8)
    one_each = people._replace(images=people.images[people.person * 4], person=people.person)  # all of one alike
    spread, perceptual = judged._spreads(one_each, judge.embed(one_each.images))
    assert spread == pytest.approx(0, abs=1e-6)
    assert perceptual == pytest.approx(0, abs=1e-6)
    alone = people._replace(images=people.images[:1], person=people.person[:1])
    assert judged._spreads(alone, judge.embed(alone.images)) == (None, None)


@pytest.mark.parametrize(
    ("told", "independent"),
    [
        ({"settings": {"recognizer": "other 123456789abc"}, "gradient_fingerprints": []}, (True, True)),
        ({"settings": {"recognizer": None}, "gradient_fingerprints": []}, (True, True)),
        ({"settings": {"recognizer": "dlib {judge}"}, "gradient_fingerprints": []}, (False, True)),
        ({"settings": {"recognizer": None}, "gradient_fingerprints": ["{judge}"]}, (False, True)),
        ({"settings": {"recognizer": None}, "gradient_fingerprints": ["{classifier}", "x"]}, (True, False)),
        ({"settings": {"recognizer": "lightcnn9 {classifier}"}}, (True, False)),
    ],
)
@pytest.mark.parametrize("half", [False, True])
def test_who_was_a_loss_or_chose_the_faces_is_flagged(
    told: dict[str, Any], independent: tuple[bool, bool], half: bool, classifier: str, tmp_path: Path
) -> None:
    judge = DlibResNet()
    file = export_weights(classifier, tmp_path / "exported.safetensors", half=half)
    model = load_model(classifier)
    assert isinstance(model, LightCNNTraining)
    written = json.dumps(told).replace("{judge}", judge.fingerprint())
    (tmp_path / "synthesis.json").write_text(written.replace("{classifier}", LightCNN(file).fingerprint()))
    assert module._independent(tmp_path, judge, model) == independent


def test_what_is_no_set_or_classifier_is_refused(
    recipe: Path,
    sets: tuple[Path, Path],
    classifier: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = {"--set": str(sets[0]), "--classifier": classifier, "--data": str(recipe), "--out": str(tmp_path / "o")}
    (tmp_path / "empty").mkdir()
    shutil.copy(recipe, tmp_path / "other.yaml")
    (tmp_path / "other.yaml").write_text("model: 1\n")
    (tmp_path / "all.yaml").write_text(recipe.read_text().replace("held_out_photos: 2", "held_out_photos: 0"))
    for option, value, message in (
        ("--set", str(tmp_path / "empty"), "expected a folder that `idface synthesize`"),
        ("--classifier", "zoo:quickstart", "is of OpenSetIPGAN, expected a checkpoint of LightCNNTraining"),
        ("--data", str(tmp_path / "other.yaml"), "it has no `data`"),
        ("--data", str(sets[0]), "a folder does not say which of its photos were held out"),
        ("--data", str(tmp_path / "all.yaml"), "no photos were held out"),
    ):
        with pytest.raises(SystemExit):
            main(["quality", *(word for pair in (good | {option: value}).items() for word in pair)])
        assert message in capsys.readouterr().err
