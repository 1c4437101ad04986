"""Recognisers with and without synthetic faces: the whole loop on a few faces, its table, what it goes on from."""

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from scipy import stats

from data_modules.folder import FaceFolderDataModule
from data_modules.joined import JoinedDataModule
from data_modules.orl import orl_root
from data_modules.photos import Hint, Photo
from data_modules.prepared import PreparedDataModule
from idface.modules.recognition import LightCNNTraining
from idface.pictures import without_mark
from idface.protocols import augment as module
from idface.protocols.augment import Pairs, augment, classic_transforms, in_words, table
from idface.recognition.light_cnn import LightCNN
from tests.data_modules.test_prepared import landmarks_of, prepare
from tests.protocols.test_synthesize import saved


class Anybody(FaceFolderDataModule):
    """A folder of ORL's faces, with the landmarks of one of them for all."""

    def hints(self, photos: Sequence[Photo]) -> dict[str, Hint]:
        return {photo.name: Hint(landmarks_of("person_1/1.png").tolist()) for photo in photos}


NAMES = ["Ann_A", "Bob_B", "Cid_C", "Person_1"]  # the last is also trained on


@pytest.fixture(scope="module")
def lfw(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A prepared set of LFW's names, and its pairs."""
    root = tmp_path_factory.mktemp("lfw")
    for number, name in enumerate(NAMES):
        (root / "photos" / name).mkdir(parents=True)
        for photo in range(1, 5):
            source = orl_root() / f"s{20 + number}" / f"{photo}.pgm"
            shutil.copy(source, root / "photos" / name / f"{name}_{photo:04d}.jpg")
    prepare(Anybody, root / "photos", root / "prepared")
    lines = ["2\t3"]
    for first, second in ((1, 2), (3, 4)):
        lines += [f"{name}\t{first}\t{second}" for name in (*NAMES[:2], NAMES[3])]
        lines += [f"{a}\t{first}\t{b}\t{second}" for a, b in (NAMES[0:2], NAMES[1:3], (NAMES[0], NAMES[3]))]
    (root / "pairs.txt").write_text("\n".join(lines) + "\n")
    return root / "prepared", root / "pairs.txt"


@pytest.fixture
def arguments(lfw: tuple[Path, Path], sets: tuple[Path, Path]) -> dict[str, Any]:
    loose = {"recognizer": "dlib", "detect": False, "data": sets[0]}
    training = {"seeds": (0, 1, 2), "steps": 2, "batch_size": 4, "precision": "32-true"}
    made = {"per_identity": 3, "mix": 2, "new_identities": 3, "per_new_identity": 4}
    return {"evaluation": lfw[0], "pairs": lfw[1], **loose, **training, **made}


def test_pairs_of_people_who_were_trained_on_are_left_out(lfw: tuple[Path, Path]) -> None:
    pairs = Pairs(*lfw, ["person 1", "somebody"], 32)
    assert (len(pairs.same), pairs.shared) == (8, 4)
    assert pairs.same.tolist() == [True, True, False, False] * 2
    assert pairs.fold.tolist() == [0] * 4 + [1] * 4
    assert pairs.images.shape == (10, 3, 32, 32)
    assert len({(int(a), int(b)) for a, b in zip(pairs.first, pairs.second, strict=True)}) == 8
    assert Pairs(*lfw, [], 32).shared == 0


def test_whom_a_loss_of_the_zoo_was_trained_on_is_known() -> None:
    loss = LightCNN("zoo:lightcnn9").fingerprint()
    people = module._names_behind({loss, "another"})
    assert len(people) == 153
    assert {"Barack_Obama", "George_W_Bush"} <= people
    assert module._names_behind({"another"}) == set()


@pytest.fixture(autouse=True)
def seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training sets the environment's seed: it is not to outlast a test."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")


@pytest.fixture
def easy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faces of an untrained model are nobody's, and are let through all the same."""
    synthesize = module.synthesize

    def loose(*positional: Any, **named: Any) -> Any:
        return synthesize(*positional, **named, max_distance=4.0, duplicate_distance=0.0, leak_distance=0.0)

    monkeypatch.setattr(module, "synthesize", loose)


def test_the_whole_loop_and_going_on(
    arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, easy: None
) -> None:
    checkpoint, out = saved(tmp_path), tmp_path / "out"
    starts: dict[tuple[str, int], torch.Tensor] = {}
    datasets: dict[str, JoinedDataModule] = {}
    fit = Trainer.fit

    def watched(self: Trainer, model: LightCNNTraining, data: JoinedDataModule, ckpt_path: Path | None) -> None:
        assert ckpt_path is None
        arm, seed = Path(self.default_root_dir).name.split("-")
        if (arm, seed) == ("new", "1") and not (tmp_path / "once").exists():
            (tmp_path / "once").touch()
            raise KeyboardInterrupt
        starts[arm, int(seed)] = model.network.backbone.features[0].filter.weight.detach().clone()
        datasets[arm] = data
        fit(self, model, data, ckpt_path=ckpt_path)
        assert self.global_step == 2

    monkeypatch.setattr(Trainer, "fit", watched)
    with pytest.raises(KeyboardInterrupt):
        augment(checkpoint, out, **arguments)
    assert len(starts) == 6
    kept = {file: file.stat().st_mtime_ns for file in out.glob("*-*/result.json")}
    assert len(kept) == 6
    summary = augment(checkpoint, out, **arguments)
    assert len(starts) == 12
    assert all(file.stat().st_mtime_ns == when for file, when in kept.items())  # not trained again
    for arm in ("known", "new", "classic"):
        assert torch.equal(starts[arm, 0], starts["real", 0])
    assert not torch.equal(starts["real", 0], starts["real", 1])

    people = {arm: row["people"] for arm, row in summary["arms"].items()}
    photos = {arm: row["training_photos"] for arm, row in summary["arms"].items()}
    assert people == {"real": 4, "known": 4, "new": 7, "classic": 4}
    assert photos == {"real": 16, "known": 16 + 12, "new": 16 + 12, "classic": 16}
    assert [arm for arm, data in datasets.items() if data.batch_transforms is not None] == ["classic"]
    images = datasets["known"]._faces.images.gather(np.arange(28))[0]
    synthetic = [row for row, photo in enumerate(datasets["known"].photos) if photo.name.startswith("1/")]
    stored = PreparedDataModule(str(out / "known"), image_size=32)
    first = datasets["known"].photos[synthetic[0]]
    (photo,) = [each for each in stored.wanted_photos()[0] if f"1/{each.name}" == first.name]
    assert np.array_equal(images[synthetic[0]], without_mark(stored.reader([])(photo)))  # no mark to go by
    rows = list(csv.DictReader((out / "augmentation.csv").open(newline="")))
    assert [row["arm"] for row in rows] == list(people)
    assert (out / "augmentation.png").stat().st_size > 5_000
    assert any("known" in line and "points" in line for line in in_words(summary))

    monkeypatch.setattr(Trainer, "fit", lambda *_: pytest.fail("trained again"))
    assert augment(checkpoint, out, **arguments) == summary
    with pytest.raises(ValueError, match="real-0 was made with another steps"):
        augment(checkpoint, out, **{**arguments, "steps": 3})
    fewer = tmp_path / "pairs.txt"
    fewer.write_text(arguments["pairs"].read_text().replace("Bob_B\t1\t2", "Bob_B\t1\t3"))
    with pytest.raises(ValueError, match="real-0 was made with another pairs"):
        augment(checkpoint, out, **{**arguments, "pairs": fewer})


def test_the_gain_is_of_runs_of_one_seed_and_its_interval_students() -> None:
    accuracy = {"real": [90.0, 91.5, 89.0], "known": [91.0, 92.0, 91.0]}
    results = {
        arm: [{"accuracy": each, "training_photos": 5, "people": 2} for each in values]
        for arm, values in accuracy.items()
    }
    real, known = table(results)
    assert (real["gain"], real["gain_low"], real["gain_high"]) == (0, 0, 0)
    assert known["accuracy"] == pytest.approx(np.mean(accuracy["known"]))
    assert known["gain"] == pytest.approx(3.5 / 3)
    interval = stats.ttest_rel(accuracy["known"], accuracy["real"]).confidence_interval(0.95)
    assert (known["gain_low"], known["gain_high"]) == pytest.approx(interval)


def test_a_recogniser_that_knows_everybody_is_always_right(lfw: tuple[Path, Path]) -> None:
    class Knows:
        def embed(self, images: torch.Tensor) -> torch.Tensor:
            person = torch.arange(len(images)) * 3 // len(images)  # photos are sorted by name, four of each
            return torch.nn.functional.one_hot(person, 3).float()

    accuracy, std = Pairs(*lfw, [NAMES[2]], 32).accuracy(Knows())  # type: ignore[arg-type]
    assert (accuracy, std) == (100, 0)


def test_classic_augmentation_changes_photos_and_keeps_their_range() -> None:
    torch.manual_seed(0)
    images = torch.rand(4, 3, 32, 32)
    changed = torch.nn.Sequential(*classic_transforms())(images)
    assert changed.shape == images.shape
    assert not torch.equal(changed, images)
    assert 0 <= float(changed.min()) <= float(changed.max()) <= 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"arms": ("known", "new")}, "takes 'real' and another one"),
        ({"arms": ("real",)}, "takes 'real' and another one"),
        ({"arms": ("real", "known", "known")}, "each once"),
        ({"seeds": (0, 1)}, "three seeds or more"),
        ({"seeds": (0, 1, 1)}, "all different"),
        ({"mix": 5}, "--mix is 5; expected 2 or more of the 4 people"),
    ],
)
def test_comparisons_of_nothing_are_refused(
    changed: dict[str, Any], message: str, arguments: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        augment(saved(tmp_path), tmp_path / "out", **{**arguments, **changed})


def test_a_set_without_the_pairs_photos_is_refused(
    arguments: dict[str, Any],
    sets: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    with pytest.raises(ValueError, match=r"lacks 10 photos of the pairs, Ann_A/Ann_A_0001\.jpg among them"):
        augment(saved(tmp_path), tmp_path / "out", **{**arguments, "evaluation": sets[1]})


def test_a_training_that_was_interrupted_goes_on_from_where_it_was(
    arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, out = saved(tmp_path), tmp_path / "out"
    steps: list[int] = []
    step = LightCNNTraining.step

    def watched(self: LightCNNTraining, batch: Any) -> None:
        if self.iteration == 2 and len(steps) < 3:
            steps.append(-1)
            raise KeyboardInterrupt
        steps.append(self.iteration)
        step(self, batch)

    monkeypatch.setattr(LightCNNTraining, "step", watched)
    given = {**arguments, "arms": ("real", "classic"), "steps": 3}
    with pytest.raises(KeyboardInterrupt):
        augment(checkpoint, out, **given)
    assert (out / "real-0" / "last.ckpt").exists()
    augment(checkpoint, out, **given)
    assert steps[:4] == [0, 1, -1, 2]
    assert len(steps) == 1 + 6 * 3
    assert not list(out.glob("*/*.ckpt"))


def test_results_are_kept_with_their_settings(arguments: dict[str, Any], tmp_path: Path, easy: None) -> None:
    out = tmp_path / "out"
    augment(saved(tmp_path), out, **{**arguments, "arms": ("real", "classic")})
    result = json.loads((out / "classic-1" / "result.json").read_text())
    assert result["settings"]["steps"] == 2
    assert 0 <= result["accuracy"] <= 100
    assert not (out / "known").exists()
