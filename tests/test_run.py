from pathlib import Path

import pytest

from idface.names import class_index, class_path, nearest, nearest_option, nearest_path, whole_class_paths
from idface.run import RunNotFound, find_checkpoint, new_run, new_stage, newest_run, run_of, runs, stages


def run_with(root: Path, experiment: str, *checkpoints: str) -> Path:
    run = new_run(root, experiment)
    (run / "config.yaml").touch()
    (run / "checkpoints").mkdir()
    for name in checkpoints:
        (run / "checkpoints" / name).touch()
    return run


def test_runs_count_up_past_gaps_and_strangers(tmp_path: Path) -> None:
    assert new_run(tmp_path, "a") == tmp_path / "a/0"
    (tmp_path / "a/10").mkdir()
    (tmp_path / "a/notes").mkdir()
    assert new_run(tmp_path, "a") == tmp_path / "a/11"
    assert new_run(tmp_path, "b") == tmp_path / "b/0"


def test_stages_count_from_two_and_come_in_order(tmp_path: Path) -> None:
    made = [new_stage(tmp_path, "fit") for _ in range(11)]
    assert [folder.name for folder in made[:3]] == ["fit", "fit-2", "fit-3"]
    new_stage(tmp_path, "test")
    (tmp_path / "fit-extra").mkdir()
    assert stages(tmp_path, "fit") == made
    assert stages(tmp_path, "validate") == []


def test_a_run_is_found_from_what_is_inside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_with(tmp_path, "a", "last.ckpt")
    assert run_of(run / "checkpoints/last.ckpt") == run
    monkeypatch.chdir(run / "checkpoints")
    assert run_of(Path("last.ckpt")) == run
    assert run_of(tmp_path / "last.ckpt") is None


def test_the_newest_run_is_the_one_with_the_highest_number(tmp_path: Path) -> None:
    made = [run_with(tmp_path, "a") for _ in range(11)]
    new_run(tmp_path, "a")  # one that failed before it wrote its config
    assert runs(tmp_path / "a") == made
    assert newest_run(tmp_path / "a") == made[-1]
    assert newest_run(made[3]) == made[3]
    with pytest.raises(RunNotFound, match="is no run folder"):
        newest_run(tmp_path)


def test_last_is_of_the_newest_run_that_has_any(tmp_path: Path) -> None:
    run = run_with(tmp_path, "a", "step=4.ckpt", "last.ckpt", "step=8.ckpt")
    run_with(tmp_path, "a")
    assert find_checkpoint(tmp_path, "a", "last") == run / "checkpoints/last.ckpt"
    run = run_with(tmp_path, "a", "step=8.ckpt")
    assert find_checkpoint(tmp_path, "a", "last") == run / "checkpoints/step=8.ckpt"


def test_a_misspelt_experiment_has_no_checkpoint(tmp_path: Path) -> None:
    run_with(tmp_path, "quickstart", "last.ckpt")
    with pytest.raises(RunNotFound, match="Did you mean 'quickstart'"):
        find_checkpoint(tmp_path, "quikstart", "last")
    with pytest.raises(RunNotFound, match="Experiments there: none"):
        find_checkpoint(tmp_path / "nowhere", "quickstart", "last")


def test_short_class_names() -> None:
    assert class_path("OpenSetIPGAN") == "idface.modules.ipgan.OpenSetIPGAN"
    assert class_path("ORLDataModule") == "data_modules.orl.ORLDataModule"
    assert class_path("CSVLogger") == "idface.loggers.CSVLogger"
    assert class_path("Adam") == "Adam"  # Lightning and torch are looked up by the parser
    whole = whole_class_paths({"a": [{"class_path": "CSVLogger"}], "b": "CSVLogger", "class_path": "x.Y", "c": None})
    assert whole == {
        "a": [{"class_path": "idface.loggers.CSVLogger"}],
        "b": "CSVLogger",
        "class_path": "x.Y",
        "c": None,
    }


def test_classes_that_configurations_name_have_names_of_their_own() -> None:
    twice = {name: paths for name, paths in class_index().items() if len(paths) > 1}
    assert not twice


def test_nearest() -> None:
    assert nearest("opensetipgan", ["OpenSetIPGAN", "DCGAN"]) == "OpenSetIPGAN"
    assert nearest("xyz", ["OpenSetIPGAN"]) is None
    assert nearest_option("trainr.max_steps", ["trainer.max_steps", "model"]) == "trainer.max_steps"
    assert nearest_option("modle.init_args.width", ["trainer.max_steps", "model"]) == "model"


def test_nearest_path(tmp_path: Path) -> None:
    (tmp_path / "faces/anna").mkdir(parents=True)
    (tmp_path / "faces/anna/1.jpg").touch()
    assert nearest_path(tmp_path / "face/ana/1.jpg") == tmp_path / "faces/anna/1.jpg"
    assert nearest_path(tmp_path / "faces/anna/1.jpeg") == tmp_path / "faces/anna/1.jpg"
    assert nearest_path(tmp_path / "faces/anna/1.jpg/x") is None
    assert nearest_path(tmp_path / "cats/anna") is None
