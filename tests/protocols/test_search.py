"""`idface search` on photos as people have them."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open

from idface.checkpoints import load_generator
from idface.cli import main
from idface.latent import results
from idface.latent.search import search as search_latents
from idface.networks.dcgan import DCGANGenerator
from idface.pictures import is_marked_synthetic
from idface.protocols import search as protocol
from idface.protocols.search import search_photos
from idface.recognition.dlib_resnet import DlibResNet


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A generator that was trained elsewhere: not at all."""
    folder = tmp_path_factory.mktemp("generator")
    torch.manual_seed(0)
    network = DCGANGenerator(6, 16, 4).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(10 if parameter.ndim > 1 else 1)
    torch.jit.script(network).save(str(folder / "faces.ts"))
    (folder / "generator.yaml").write_text(yaml.safe_dump({"weights": "faces.ts", "latent_dim": 6}))
    return str(folder / "generator.yaml")


def run(checkpoint: str, target: Path, out: Path, **options: Any) -> Path:
    return search_photos(checkpoint, target, out, **({"budget": 60, "align": False} | options))


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_person_in_several_photos(checkpoint: str, face_folder: Path, tmp_path: Path) -> None:
    assert run(checkpoint, face_folder / "person_1", tmp_path / "out") == tmp_path / "out" / "overview.png"
    folder = tmp_path / "out" / "person_1"
    result = json.loads((folder / "result.json").read_text())
    assert (result["photos"], result["recognizer"]) == (4, "dlib")
    assert result["face_detected"] is False  # the generator has learnt nothing
    assert result["settings"]["budget"] == 60
    assert (folder / "latent.safetensors").stat().st_mode == (folder / "result.json").stat().st_mode
    assert 50 < result["evaluations"] <= 60
    assert result["seconds"] > 0
    assert 0 <= result["different_person_pairs_nearer_percent"] <= 100
    assert "LFW" in result["pairs"]
    with Image.open(folder / "face.png") as face:
        assert face.size == (16, 16)
        assert "trainedAlgorithmicMedia" in face.info["DigitalSourceType"]
    with safe_open(folder / "latent.safetensors", "pt") as file:
        generator = load_generator(checkpoint)
        assert file.metadata()["generator"] == generator.fingerprint()
        assert file.metadata()["checkpoint"] == checkpoint
        latent = file.get_tensor("latent")
    assert latent.shape == (6,)
    history = [float(row["distance"]) for row in table(folder / "history.csv")]
    assert history == sorted(history, reverse=True)
    assert result["distance"] <= history[0]
    assert not (tmp_path / "out" / ".journal").exists()
    with Image.open(folder / "strip.png") as strip:
        assert strip.height == 16 + 26


def test_the_distance_is_that_of_the_written_face(checkpoint: str, face_folder: Path, tmp_path: Path) -> None:
    run(checkpoint, face_folder / "person_2", tmp_path / "out")
    judge = DlibResNet()
    with safe_open(tmp_path / "out" / "person_2" / "latent.safetensors", "pt") as file:
        face = judge(load_generator(checkpoint)(file.get_tensor("latent")[None]))
    photos = protocol._read_people(face_folder / "person_2", 16, None, [], tmp_path / "out")[0].faces.tensor()
    distance = float((face - judge(photos)).square().sum(1).mean())
    assert json.loads((tmp_path / "out" / "person_2" / "result.json").read_text())["distance"] == pytest.approx(
        distance, abs=1e-4
    )


def test_several_people_and_another_judge(
    checkpoint: str, face_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = DlibResNet()
    other.head.weight.data.add_(0.1)
    build = protocol.build_recognizer
    monkeypatch.setattr(protocol, "build_recognizer", lambda name: other if name == "other" else build(name))
    run(checkpoint, face_folder, tmp_path / "out", budget=20, judge="other")
    rows = table(tmp_path / "out" / "results.csv")
    assert [row["person"] for row in rows] == [f"person_{n}" for n in range(1, 7)]
    assert all(float(row["judge_distance"]) != float(row["distance"]) for row in rows)
    assert {row["judge_is_independent"] for row in rows} == {"True"}
    assert np.asarray(Image.open(tmp_path / "out" / "overview.png")).shape[0] == 16 + 26


def test_a_single_photo_is_found_and_aligned(checkpoint: str, face_folder: Path, tmp_path: Path) -> None:
    photo = face_folder / "person_3" / "1.png"
    search_photos(checkpoint, photo, tmp_path / "out", budget=10)
    assert json.loads((tmp_path / "out" / "1" / "result.json").read_text())["photos"] == 1


def test_bad_photos_are_listed_and_others_go_on(
    checkpoint: str, face_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    people = tmp_path / "people"
    shutil.copytree(face_folder / "person_1", people / "ann")
    (people / "ann" / "broken.jpg").write_bytes(b"no picture")
    (people / "bob").mkdir()
    (people / "bob" / "notes.txt").write_text("nothing")
    run(checkpoint, people, tmp_path / "out", budget=10)
    assert [row["person"] for row in table(tmp_path / "out" / "results.csv")] == ["ann"]
    assert {Path(row["file"]).name for row in table(tmp_path / "out" / "rejected.csv")} == {"broken.jpg", "notes.txt"}
    (told,) = [record.getMessage() for record in caplog.records if "is left out" in record.getMessage()]
    assert "notes.txt" in told
    assert "broken.jpg" not in told  # that is somebody else's


def test_a_stopped_search_goes_on(
    checkpoint: str, face_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = face_folder / "person_1"
    run(checkpoint, target, tmp_path / "whole", budget=200, strategy="annealed")

    def stopped(*arguments: Any) -> Any:
        count = 0
        *others, tell = arguments

        def stop(evaluations: int, distance: float) -> None:
            nonlocal count
            tell(evaluations, distance)
            count += 1
            if count == 3:
                raise KeyboardInterrupt

        return search_latents(*others, stop)

    monkeypatch.setattr(results, "search", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint, target, tmp_path / "out", budget=200, strategy="annealed")
    assert list((tmp_path / "out" / ".journal").glob("scores-*"))
    monkeypatch.setattr(results, "search", search_latents)
    run(checkpoint, target, tmp_path / "out", budget=200, strategy="annealed")
    for name in ("history.csv", "face.png"):
        whole, resumed = ((tmp_path / each / "person_1" / name) for each in ("whole", "out"))
        if name == "history.csv":
            assert resumed.read_bytes() == whole.read_bytes()
        else:
            assert np.array_equal(np.asarray(Image.open(resumed)), np.asarray(Image.open(whole)))


def test_what_was_found_stays(
    checkpoint: str, face_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run(checkpoint, face_folder / "person_1", out)
    before = {file: file.read_bytes() for file in (out / "person_1").iterdir()}
    with pytest.raises(ValueError, match=r"person_1. holds .* another search .*: its budget is 60, here it is 61"):
        run(checkpoint, face_folder / "person_1", out, budget=61)
    run(checkpoint, face_folder / "person_2", out, budget=61)  # somebody else may come beside
    assert [(row["person"], row["settings_budget"]) for row in table(out / "results.csv")] == [
        ("person_1", "60"),
        ("person_2", "61"),
    ]
    assert np.asarray(Image.open(out / "overview.png")).shape == (16 + 26, 2 * (2 * 16 + 2), 3)

    def never(*_: Any) -> Any:
        raise AssertionError("searched again")

    monkeypatch.setattr(results, "search", never)
    run(checkpoint, face_folder / "person_1", out)
    assert before == {file: file.read_bytes() for file in (out / "person_1").iterdir()}


def test_what_is_said_of_a_result() -> None:
    result = {"distance": 0.05, "recognizer": "dlib", "evaluations": 1000, "seconds": 2.0, "face_detected": True}
    calibrated = {
        "threshold": 0.1838,
        "same_person_pairs_nearer_percent": 92,
        "different_person_pairs_nearer_percent": 0,
    }
    assert results.in_words("ann", result) == "ann: distance 0.0500 by dlib; 1,000 evaluations, 2.0 s"
    judge = calibrated | {"distance": 1.4, "recognizer": "other", "threshold": 1.03}
    said = results.in_words("ann", result | calibrated | {"face_detected": False, "judge": judge}).splitlines()
    assert "0.0500 by dlib, the same person by its threshold of 0.184" in said[0]
    assert "nothing that a detector takes for a face" in said[1]
    assert "another recogniser: distance 1.4000 by other, somebody else by its threshold of 1.030" in said[2]


def test_a_bank_gives_the_start(checkpoint: str, face_folder: Path, tmp_path: Path) -> None:
    main(["bank", "build", "--checkpoint", checkpoint, "--size", "300", "--out", str(tmp_path / "bank")])
    target = str(face_folder / "person_1")
    plain = ["search", "--checkpoint", checkpoint, "--target", target, "--no-align", "--budget", "1"]
    main([*plain, "--out", str(tmp_path / "without"), "--strategy", "annealed"])
    main([*plain, "--out", str(tmp_path / "with"), "--strategy", "annealed", "--bank", str(tmp_path / "bank")])
    without, started = (
        json.loads((tmp_path / name / "person_1" / "result.json").read_text())["distance"]
        for name in ("without", "with")
    )
    assert started < without  # the best of 300 before the search has begun


def test_a_bank_of_another_generator_is_refused(
    checkpoint: str, face_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["bank", "build", "--checkpoint", checkpoint, "--size", "20", "--out", str(tmp_path / "bank")])
    torch.jit.script(DCGANGenerator(6, 16, 4).eval()).save(str(tmp_path / "other.ts"))
    (tmp_path / "other.yaml").write_text("weights: other.ts\nlatent_dim: 6\n")
    arguments = [
        "--checkpoint",
        str(tmp_path / "other.yaml"),
        "--target",
        str(face_folder),
        "--out",
        str(tmp_path / "o"),
    ]
    with pytest.raises(SystemExit) as stopped:
        main(["search", *arguments, "--bank", str(tmp_path / "bank")])
    assert stopped.value.code == 2
    assert "generator" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"judge": "dlib"}, "--judge dlib: it guides the search"),
        ({"recognizer": "dlip"}, "There is no recogniser 'dlip'"),
        ({"budget": 0}, "budget is 0"),
    ],
)
def test_options_that_cannot_be_used(
    checkpoint: str, face_folder: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(checkpoint, face_folder / "person_1", tmp_path / "out", **options)


def test_targets_that_cannot_be_used(checkpoint: str, face_folder: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(face_folder / "person_1", mixed / "ann")
    shutil.copy(face_folder / "person_2" / "1.png", mixed)
    with pytest.raises(ValueError, match=r"holds both folders and files, '1\.png' among them"):
        run(checkpoint, mixed, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"--target .*empty: no photo in it can be used"):
        run(checkpoint, tmp_path / "empty", tmp_path / "out")


def test_found_faces_are_marked(checkpoint: str, face_folder: Path, tmp_path: Path) -> None:
    torch.jit.script(DCGANGenerator(6, 64, 2).eval()).save(str(tmp_path / "large.ts"))
    (tmp_path / "large.yaml").write_text("weights: large.ts\nlatent_dim: 6\n")
    run(str(tmp_path / "large.yaml"), face_folder / "person_1", tmp_path / "out", budget=5)
    assert is_marked_synthetic(np.asarray(Image.open(tmp_path / "out" / "person_1" / "face.png")))
