"""`idface recombine` on photos as people have them."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_modules.orl import orl_root
from idface.checkpoints import CheckpointError, load_model
from idface.modules.ipgan import OpenSetIPGAN
from idface.pictures import is_marked_synthetic
from idface.protocols.recombine import in_words, recombine
from idface.recognition.alignment import FaceDetector, warp_face


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two people: `a/1.png`, `a/2.png` and `b/1.png`, ORL photos as they are, not aligned."""
    for name, person, photo in (("a/1", 3, 1), ("a/2", 3, 2), ("b/1", 7, 1)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.open(orl_root() / f"s{person}" / f"{photo}.pgm").save(tmp_path / f"{name}.png")
    return tmp_path


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_photos_are_aligned_and_every_pair_gets_a_marked_result(photos: Path) -> None:
    report = recombine("zoo:quickstart", photos / "a", photos / "b" / "1.png", photos / "out")
    assert Image.open(photos / "out" / "grid.png").size == (68 + 64, 68 + 2 * 64)
    table = rows(photos / "out" / "results.csv")
    assert [(row["identity"], row["attributes"]) for row in table] == [("1", "1"), ("2", "1")]
    for row in table:
        with Image.open(photos / "out" / row["file"]) as result:
            assert result.size == (64, 64)
            assert "trainedAlgorithmicMedia" in result.info["DigitalSourceType"]
            assert is_marked_synthetic(np.asarray(result))
        assert -1 < float(row["similarity_to_attributes"]) < 1
    assert not (photos / "out" / "rejected.csv").exists()
    assert (report["people"], report["faces"]) == (2, 2)
    mean = np.mean([float(row["similarity_to_identity"]) for row in table])
    assert report["similarity_to_identity"] == pytest.approx(mean, abs=1e-4)
    assert report == json.loads((photos / "out" / "report.json").read_text())
    assert f"{mean:.3f} to the identity photos" in in_words(report)[0]


def test_identity_and_attributes_both_matter(photos: Path) -> None:
    recombine("zoo:quickstart", photos, photos, photos / "out")
    table = rows(photos / "out" / "results.csv")
    assert len(table) == 9
    faces = {(r["identity"], r["attributes"]): np.asarray(Image.open(photos / "out" / r["file"]), float) for r in table}
    assert np.abs(faces["a-1", "a-1"] - faces["b-1", "a-1"]).mean() > 2
    assert np.abs(faces["a-1", "a-1"] - faces["a-1", "b-1"]).mean() > 2


def test_a_grid_may_do_without_the_photos(photos: Path) -> None:
    for name, shown in (("with", True), ("without", False)):
        recombine("zoo:quickstart", photos / "a", photos / "b", photos / name, originals=shown)
    whole, bare = (np.asarray(Image.open(photos / name / "grid.png")) for name in ("with", "without"))
    assert np.array_equal(whole[68:, 68:], bare[68:, 68:])
    for margin in (bare[:64, 68:132], bare[68:132, :64], bare[132:196, :64]):
        assert is_marked_synthetic(margin)
    assert not is_marked_synthetic(whole[68:132, :64])
    assert 2 < np.abs(whole[:64, 68:].astype(float) - bare[:64, 68:]).mean() < 80


def test_a_bad_photo_is_listed_and_does_not_end_the_run(photos: Path) -> None:
    (photos / "a" / "empty.jpg").touch()
    (photos / "a" / "notes.txt").write_text("not a photo")
    Image.new("RGB", (200, 200), "grey").save(photos / "a" / "wall.png")
    recombine("zoo:quickstart", photos / "a", photos / "b", photos / "out")
    reasons = {Path(row["file"]).name: row["reason"] for row in rows(photos / "out" / "rejected.csv")}
    assert set(reasons) == {"empty.jpg", "notes.txt", "wall.png"}
    assert "no face" in reasons["wall.png"]
    assert len(rows(photos / "out" / "results.csv")) == 2


def test_no_usable_photo_is_an_error_that_names_the_option(photos: Path) -> None:
    (photos / "empty").mkdir()
    with pytest.raises(ValueError, match=r"--attributes .*empty: no photo in it can be used"):
        recombine("zoo:quickstart", photos / "a", photos / "empty", photos / "out")


def test_without_alignment_the_middle_square_is_taken(photos: Path) -> None:
    Image.new("RGB", (80, 64), "white").save(photos / "plain.png")
    recombine("zoo:quickstart", photos / "a" / "1.png", photos / "plain.png", photos / "out", align=False)
    assert len(rows(photos / "out" / "results.csv")) == 1


def test_results_of_an_earlier_call_are_no_photos(photos: Path) -> None:
    for _ in range(2):
        recombine("zoo:quickstart", photos / "a", photos, photos / "out", align=False)
        assert len(rows(photos / "out" / "results.csv")) == 2 * 3


def test_results_of_an_earlier_call_are_told(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    recombine("zoo:quickstart", photos / "a", photos / "b", photos / "out")
    assert "earlier call" not in caplog.text
    recombine("zoo:quickstart", photos / "a/1.png", photos / "b", photos / "out")
    assert "1 results of an earlier call are there as well" in caplog.text


def test_no_result_takes_anothers_name(photos: Path) -> None:
    folder = photos / "alike"
    folder.mkdir()
    for name in ("x-2.jpg", "x.jpg", "x.png"):
        Image.new("RGB", (64, 64), "white").save(folder / name)
    recombine("zoo:quickstart", photos / "a" / "1.png", folder, photos / "out", align=False)
    assert len({row["file"] for row in rows(photos / "out" / "results.csv")}) == 3
    assert len(list((photos / "out/results").iterdir())) == 3


def test_a_grey_model_sees_grey_photos(photos: Path) -> None:
    model = load_model("zoo:quickstart")
    assert isinstance(model, OpenSetIPGAN)
    colour = torch.rand(2, 3, 64, 64) * 2 - 1
    grey = (colour * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True).expand_as(colour)
    torch.testing.assert_close(model.recombine(colour, colour), model.recombine(grey, grey), rtol=0, atol=1e-4)


def test_another_models_checkpoint_is_refused(photos: Path) -> None:
    torch.save({"state_dict": {}, "recipe": {"class_path": "torch.nn.Linear"}}, photos / "x.ckpt")
    with pytest.raises(CheckpointError, match=r"x\.ckpt"):
        recombine(str(photos / "x.ckpt"), photos / "a", photos / "b", photos / "out")


def test_of_several_faces_in_a_photo_the_main_one_is_taken_and_that_is_said(
    photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = (np.asarray(Image.open(photos / name)) for name in ("a/1.png", "b/1.png"))
    Image.fromarray(np.pad(np.concatenate([one, other], axis=1), 60, mode="edge")).save(photos / "a" / "2.png")
    recombine("zoo:quickstart", photos / "a", photos / "b", photos / "out")
    assert [record.getMessage() for record in caplog.records if "several faces" in record.message] == [
        f"--identity: {photos / 'a' / '2.png'} shows several faces: the large one near the middle is taken; cut out "
        "another to take it"
    ]


def test_a_model_without_a_judge_says_so() -> None:
    report = {"people": 1, "faces": 2, "judge": {"name": None, "independent": True}}
    assert in_words(report) == ["2 faces of 1 identity photos; the model has no judge to say who they are"]


def test_whole_photos_taken_for_aligned_ones_are_told(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    face = np.asarray(Image.open(photos / "a/1.png").convert("RGB"))
    aligned = warp_face(face, FaceDetector().detect([face])[0], 128)
    Image.fromarray(aligned).save(photos / "aligned.png")
    Image.fromarray(np.pad(aligned, ((40, 40), (40, 40), (0, 0)), mode="edge")).save(photos / "whole.png")
    recombine("zoo:quickstart", photos / "whole.png", photos / "aligned.png", photos / "out", align=False)
    assert [record.getMessage() for record in caplog.records if "--no-align" in record.message] == [
        f"--identity: {photos / 'whole.png'}, taken as it is, does not show its face where aligned photos do: leave "
        "--no-align out"
    ]
