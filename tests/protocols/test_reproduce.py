"""`idface reproduce`: variants are trained once, under equal budgets, and measured on the same faces."""

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from data_modules.orl import ORLDataModule, orl_root
from idface.checkpoints import load_model
from idface.cli import main
from idface.metrics.identification import found
from idface.protocols import reproduce as module
from idface.protocols.reproduce import choose_gallery, draw_queries, kinds_of, reproduce, train_variant
from idface.protocols.sources import data_of_recipe, held_out_people, unseen_people

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of two batches, with the ablations beside it."""
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "ablations").symlink_to(EXPERIMENTS / "ablations")
    small = {"width": 4, "discriminator_width": 4, "convolutions": 1, "attribute_dim": 4}
    data = {"image_size": 32, "batch_size": 4, "val_identities": 2, "test_identities": 4, "held_out_photos": 3}
    trainer = {"accelerator": "cpu", "max_steps": 2, "limit_val_batches": 0, "enable_model_summary": False}
    keep = {"class_path": "RunCheckpoint", "init_args": {"save_last": True, "every_n_train_steps": 1}}
    content = {
        "model": {"class_path": "OpenSetIPGAN", "init_args": small},
        "data": {"class_path": "ORLDataModule", "init_args": data},
        "trainer": trainer | {"logger": [{"class_path": "CSVLogger"}], "callbacks": [keep]},
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(content))
    return folder / "small.yaml"


@pytest.fixture(scope="module")
def trained(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two variants were trained and the second table was made."""
    out = tmp_path_factory.mktemp("reproduced")
    command = ["reproduce", "ipgan-table2", "--config", str(recipe), "--out", str(out), "--seeds", "7"]
    main([*command, "--variants", "full", "no_gc", "--judge", "dlib"])
    return out


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("trained again")


def test_variants_are_trained_and_looked_for(trained: Path) -> None:
    report = json.loads((trained / "ipgan-table2/report.json").read_text())
    assert report["people"] == 34  # of 40, two validate and four test
    assert report["queries"] == 34 * 2  # three photos are held out of each, one for the gallery
    real, full, without = report["rows"]
    assert [row["variant"] for row in report["rows"]] == ["real", "full", "no_gc"]
    assert real["top1"] > 80  # dlib, from 32 pixels
    assert real["low"] <= real["top1"] <= real["high"]
    assert full["paper"] == 81.11
    assert full["top1"] < 50  # two batches
    assert 0 <= without["identity"]["nearer_to_source"] <= 1
    assert full["preservation"]["yaw"] > 0
    assert report["judge"]["independent"]
    with (trained / "ipgan-table2/table.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [row["variant"] for row in rows] == ["real", "full", "no_gc"]
    assert float(rows[1]["background"]) == pytest.approx(full["preservation"]["background"], abs=1e-4)
    assert (trained / "ipgan-table2/grid-no_gc.png").is_file()
    one, other = (load_model(str(trained / f"models/{name}-7/0/checkpoints/last.ckpt")) for name in ("full", "no_gc"))
    assert (one.feature_weight_c, other.feature_weight_c) == (1.0, 0.0)


def test_what_is_trained_is_not_trained_again(
    recipe: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module.subprocess, "run", never)
    report = reproduce("ipgan-table3", trained, [recipe], ["full", "no_gc"], [7], "dlib")
    assert report["people"] == 4
    real, full, without = report["rows"]
    assert {"dark"} <= full["kinds"].keys() == real["kinds"].keys()
    assert report["queries"] == 4 * 5 * len(full["kinds"])
    assert full["top1"] == pytest.approx(sum(full["kinds"].values()) / len(full["kinds"]))  # as many faces of each
    assert without["behind_full"][0] <= full["top1"] - without["top1"] <= without["behind_full"][1]
    other = tmp_path / "small.yaml"
    other.write_text(recipe.read_text().replace("attribute_dim: 4", "attribute_dim: 5"))
    (tmp_path / "ablations").symlink_to(EXPERIMENTS / "ablations")
    with pytest.raises(ValueError, match=r"full-7 was trained by other recipes.*another --out"):
        reproduce("ipgan-table2", trained, [other], ["full", "no_gc"], [7])
    with pytest.raises(AssertionError, match="trained again"):
        reproduce("ipgan-table2", trained, [recipe], ["full", "no_t"], [7])


def test_several_trainings_of_a_variant_have_a_mean_and_an_interval(recipe: Path, trained: Path) -> None:
    _, full = reproduce("ipgan-table3", trained, [recipe], ["full"], [7, 8], "dlib")["rows"]
    assert [run["seed"] for run in full["seeds"]] == [7, 8]
    one, other = (run["top1"] for run in full["seeds"])
    assert full["top1"] == pytest.approx((one + other) / 2)
    assert full["low"] <= min(one, other)  # trainings are drawn anew, so now and then one of them alone
    assert full["high"] >= max(one, other)


def test_the_figure_and_the_last_table_take_photos_of_others(
    recipe: Path, trained: Path, sets: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checkpoint = trained / "models/full-7/0/checkpoints/last.ckpt"
    asked: list[str] = []

    def stands_in(variant: str, *_: Any) -> Path:
        asked.append(variant)
        return checkpoint

    monkeypatch.setattr(module, "train_variant", stands_in)
    report = reproduce("ipgan-fig4", tmp_path, [recipe], photos=sets[0])
    assert asked == ["full", "no_kl"]
    assert report["models"].keys() == {"full", "no_kl"}
    assert "chance 25.0%" in module.in_words(report)[0]
    assert report["trained_on"] == []
    of_its_own = reproduce("ipgan-fig4", tmp_path, [recipe])
    assert "chance 16.7%" in module.in_words(of_its_own)[0]  # two people validate, four test

    seen: list[Any] = []
    monkeypatch.setattr(module, "detect_adversarial", lambda *given, **named: seen.append((given, named)) or {})
    table = reproduce("ipgan-table4", tmp_path, [recipe], pairs=7, steps=9)
    assert asked[-1] == "full"
    assert seen == [((str(checkpoint), None, tmp_path / "ipgan-table4", 7), {"steps": 9, "seed": 0})]
    assert table["paper"] == module.PAPER["ipgan-table4"]


def test_people_who_were_trained_on_are_told(
    recipe: Path, trained: Path, sets: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checkpoint = trained / "models/full-7/0/checkpoints/last.ckpt"
    assert module._known_among(sets[0], checkpoint) == []
    people = SimpleNamespace(identity_names=["s1", "PERSON 2", "person 3"], num_identities=2)
    monkeypatch.setattr(module, "photos_of_model", lambda *_: people)
    assert module._known_among(sets[0], checkpoint) == ["person_2"]


@pytest.mark.parametrize(
    ("what", "options", "message"),
    [
        ("ipgan-table2", {"photos": Path()}, "--photos has no effect on ipgan-table2"),
        ("ipgan-table3", {"pairs": 3}, "--pairs has no effect on ipgan-table3"),
        ("ipgan-fig4", {"steps": 3}, "--steps has no effect on ipgan-fig4"),
        ("ipgan-fig4", {"judge": "dlib"}, "--judge has no effect on ipgan-fig4"),
        ("ipgan-table4", {"classifier": "zoo:attributes"}, "--classifier has no effect on ipgan-table4"),
        ("ipgan-fig4", {"seeds": [1, 2]}, "--seeds 1 2: ipgan-fig4 is of one training"),
        ("ipgan-table4", {"variants": ["full", "no_t"]}, "--variants full no_t: ipgan-table4 is of 'full' alone"),
    ],
)
def test_options_without_effect_are_refused(
    what: str, options: dict[str, Any], message: str, recipe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "train_variant", never)
    with pytest.raises(ValueError, match=message):
        reproduce(what, tmp_path, [recipe], **options)


def test_a_training_that_fails_is_told_and_gone_on_with(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commands: list[list[str]] = []

    class Failed:
        returncode = 3

    def fails(command: list[str]) -> Failed:
        commands.append(command)
        (tmp_path / "full-0/0/checkpoints").mkdir(parents=True, exist_ok=True)
        (tmp_path / "full-0/0/checkpoints/last.ckpt").touch()
        return Failed()

    monkeypatch.setattr(module.subprocess, "run", fails)
    for _ in range(2):
        with pytest.raises(ValueError, match="training full, seed 0, ended with status 3"):
            train_variant("full", 0, [recipe], tmp_path)
    with pytest.raises(ValueError, match="trained by other recipes"):
        train_variant("full", 0, [recipe, recipe], tmp_path)
    assert "--ckpt_path" not in commands[0]
    assert commands[1][-2:] == ["--ckpt_path", "last"]


def test_a_training_that_never_began_may_be_told_otherwise(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module.subprocess, "run", lambda _: SimpleNamespace(returncode=2))  # refused its recipe
    for config in ([recipe], [recipe, recipe]):
        with pytest.raises(ValueError, match="ended with status 2"):
            train_variant("full", 0, config, tmp_path)


def test_a_training_that_was_stopped_goes_on(recipe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = module.subprocess.run

    def is_stopped(command: list[str]) -> Any:
        run([*command, "--trainer.max_steps", "1"], check=True)
        return SimpleNamespace(returncode=143)

    with monkeypatch.context() as patch:
        patch.setattr(module.subprocess, "run", is_stopped)
        with pytest.raises(ValueError, match="ended with status 143"):
            train_variant("full", 3, [recipe], tmp_path)
    assert (tmp_path / "full-3.begun.json").is_file()
    checkpoint = train_variant("full", 3, [recipe], tmp_path)
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 2
    assert not (tmp_path / "full-3.begun.json").exists()
    assert sorted(path.name for path in (tmp_path / "full-3").iterdir()) == ["0"]  # one run, in two parts
    assert (tmp_path / "full-3/0/fit-2").is_dir()


def test_unlabelled_photos_of_a_folder_have_their_share_but_in_the_variant_without(
    recipe: Path, tmp_path: Path
) -> None:
    for person in range(1, 13):
        name = "unlabelled" if person > 8 else f"s{person}"
        for photo in range(1, 5):
            (tmp_path / "faces" / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(orl_root() / f"s{person}/{photo}.pgm", tmp_path / f"faces/{name}/{person}-{photo}.pgm")
    content = yaml.safe_load(recipe.read_text())
    split = {"val_identities": 1, "test_identities": 1, "held_out_photos": 0}
    share = {"class_path": "UnlabelledShare", "init_args": {"share": 0.25}}
    folder = {"root": str(tmp_path / "faces"), "align": False, "image_size": 32, "batch_size": 4, "sampler": share}
    content["data"] = {"class_path": "FaceFolderDataModule", "init_args": folder | split}
    (tmp_path / "folder.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "ablations").symlink_to(EXPERIMENTS / "ablations")
    for variant, expected in (("full", 1), ("no_u", 0)):
        checkpoint = train_variant(variant, 0, [tmp_path / "folder.yaml"], tmp_path / "models")
        data = data_of_recipe(checkpoint.parents[1] / "config.yaml", None)
        batches = [int((batch["identity"] < 0).sum()) for batch in data.train_dataloader()]
        assert len(batches) > 3
        assert set(batches) == {expected}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variants": ["full", "no_gg"]}, "there is no no_gg"),
        ({"variants": ["no_gc"]}, "'full' is what the others"),
        ({"seeds": [1, 1]}, "--seeds 1 1"),
        ({"what": "ipgan-table5"}, "there is no 'ipgan-table5'"),
        ({"config": [EXPERIMENTS.parent / "LICENSE"]}, "--config .*LICENSE: expected a recipe|no YAML can be read"),
        ({"judge": "foo", "variants": ["full"]}, "no recogniser 'foo'"),
        ({}, "no_u leaves out the unlabelled photos, but --config .*quickstart.yaml has no share of them"),
        ({"what": "ipgan-fig4", "photos": Path("nobody")}, "--photos nobody"),
        (
            {"config": [EXPERIMENTS / "label_dcgan.yaml"]},
            "its model is LabelConditionedDCGAN, expected an OpenSetIPGAN",
        ),
    ],
)
def test_refusals(options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "train_variant", never)  # refused before hours of training
    arguments = {"what": "ipgan-table2", "out": tmp_path, "config": [EXPERIMENTS / "quickstart.yaml"]} | options
    with pytest.raises((ValueError, OSError), match=message):
        reproduce(**arguments)


def test_a_recipe_without_ablations_is_told(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").touch()
    with pytest.raises(FileNotFoundError, match="says what no_t leaves out"):
        train_variant("no_t", 0, [tmp_path / "mine.yaml"], tmp_path / "models")


def test_faces_are_looked_for_among_others_photos() -> None:
    person = torch.arange(60) % 12
    gallery = choose_gallery(person, torch.arange(60).float())  # the first of each is the most frontal
    assert gallery.tolist() == list(range(12))
    shown = [torch.rand(60, generator=torch.Generator().manual_seed(kind)) < 0.5 for kind in range(2)]
    queries = draw_queries(person, gallery, shown, seed=0)
    assert len(queries.source) == 12 * 4 * 2
    assert not bool((person[queries.source] == person[queries.attributes]).any())
    assert not bool(torch.isin(torch.cat(queries[:2]), gallery).any())
    for kind in range(2):
        assert bool(shown[kind][queries.attributes[queries.kind == kind]].all())
    assert not torch.equal(queries.attributes, draw_queries(person, gallery, shown, seed=1).attributes)
    with pytest.raises(ValueError, match="1 people have two photos"):
        choose_gallery(torch.tensor([0, 0, 1]), torch.zeros(3))


def test_kinds_are_what_photos_show() -> None:
    class Meter:
        names = ("smiling", "yaw", "brightness")

        def index(self, name: str) -> int:
            return self.names.index(name)

    scores = torch.zeros(20, 3)
    scores[:5, 0] = 1  # smile
    scores[4:9, 1] = -30
    scores[9, 1] = 30
    scores[:, 2] = torch.arange(20) / 20
    kinds = kinds_of(scores, Meter(), torch.tensor([0]))  # type: ignore[arg-type]
    assert {name: shown.nonzero()[:, 0].tolist() for name, shown in kinds.items()} == {
        "left": [4, 5, 6, 7, 8],
        "dark": [1, 2, 3],
        "smiling": [1, 2, 3, 4],
    }


def test_faces_of_people_without_a_photo_in_the_gallery_are_left_out() -> None:
    right = found(torch.eye(3), torch.tensor([4, 9, 5]), torch.eye(3)[[0, 2]] * 3, torch.tensor([4, 6]))
    assert right.tolist() == [True]


def test_people_seen_and_unseen_share_no_photo() -> None:
    data = ORLDataModule(image_size=32, val_identities=2, test_identities=4, held_out_photos=3)
    seen, unseen = held_out_people(data), unseen_people(data)
    assert len(seen.images) == 34 * 3
    assert len(unseen.images) == 4 * 10
    assert len(unseen.names) == 4
    assert not set(unseen.names) & set(seen.names)
    assert unseen.person.unique().tolist() == [0, 1, 2, 3]
