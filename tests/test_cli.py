import csv
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import yaml

import idface.loggers
import idface.training
from data_modules.folder import FaceFolderDataModule
from idface.cli import lightning, main
from idface.training import _whole_class_paths
from tests.toys import ToyModel

BIN = Path(sys.executable).parent
TOYS = ToyModel.__module__

TOY = f"""
model:
  class_path: {TOYS}.ToyModel
  init_args:
    width: 8
    learning_rate: 0.5
    encoder:
      class_path: {TOYS}.DeepEncoder
      init_args: {{depth: 7}}
data:
  class_path: {TOYS}.ToyData
trainer:
  max_steps: 4
  log_every_n_steps: 1
  accelerator: cpu
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: ModelCheckpoint
      init_args: {{save_last: true, monitor: val/square}}
"""


@pytest.fixture(autouse=True)
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder with `toy.yaml` in it; what commands set in the environment is put back."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "toy.yaml"
    path.write_text(TOY)
    with mock.patch.dict(os.environ):
        yield path


def write(path: str, text: str) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)
    return path


def refused(argv: Sequence[str], capsys: pytest.CaptureFixture[str], command: Any = lightning) -> str:
    """What a command says that must exit with 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        command(argv)
    assert exit.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert "usage:" not in message
    return message


def metrics(path: str) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def spawn(*command: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


class TestStart:
    def test_help_loads_no_torch_and_is_quick(self) -> None:
        program = """
import sys, time
start = time.perf_counter()
from idface.cli import main
for argv in (["--help"], ["recombine", "--help"], ["completion"]):
    try:
        main(argv)
    except SystemExit:
        pass
heavy = {"torch", "lightning", "jsonargparse", "numpy", "PIL", "matplotlib"} & set(sys.modules)
print("HEAVY", sorted(heavy), file=sys.stderr)
print("SECONDS", time.perf_counter() - start, file=sys.stderr)
"""
        result = spawn(sys.executable, "-c", program)
        assert "recombine" in result.stdout
        assert "HEAVY []" in result.stderr
        assert float(result.stderr.split("SECONDS")[1]) < 1

    def test_the_scripts_are_installed_and_python_m_is_the_same(self) -> None:
        by_script = spawn(str(BIN / "idface"), "--help")
        by_module = spawn(sys.executable, "-m", "idface", "--help")
        assert by_script.returncode == 0
        assert by_script.stdout == by_module.stdout
        for verb in ("fit", "validate", "test", "predict", "recombine", "report"):
            assert verb in by_script.stdout

    def test_completion_completes_verbs_and_options(self) -> None:
        script = 'eval "$(idface completion)"; COMP_WORDS=(idface {}); COMP_CWORD={}; _idface; echo "${{COMPREPLY[@]}}"'
        path = f"PATH={BIN}:$PATH; "
        assert spawn("bash", "-c", path + script.format("rec", 1)).stdout.split() == ["recombine"]
        assert spawn("bash", "-c", path + script.format("recombine --at", 2)).stdout.split() == ["--attributes"]


class TestConfiguration:
    def test_data_tell_the_model_and_the_second_config_overlays_the_first(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        overlay = write("overlay.yaml", "model: {init_args: {width: 3}}\ndata: {init_args: {image_size: 24}}")
        model = fit_and_get_model(monkeypatch, "toy.yaml", overlay)
        assert model.arguments == {"num_identities": 5, "image_size": 24, "width": 3}
        assert model.learning_rate == 0.5
        assert model.recipe == {
            "class_path": f"{TOYS}.ToyModel",
            "init_args": {
                "num_identities": 5,
                "image_size": 24,
                "width": 3,
                "learning_rate": 0.5,
                "encoder": {"class_path": f"{TOYS}.DeepEncoder", "init_args": {"depth": 7, "dropout": 0.0}},
                "widths": None,
            },
        }

    def test_an_overlay_may_repeat_the_class_and_keeps_the_other_arguments(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        overlay = write("overlay.yaml", f"model: {{class_path: {TOYS}.ToyModel, init_args: {{width: 3}}}}")
        model = fit_and_get_model(monkeypatch, "toy.yaml", overlay)
        assert (model.arguments["width"], model.learning_rate) == (3, 0.5)

    def test_only_what_a_model_takes_is_linked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        overlay = write("overlay.yaml", f"model: {{class_path: {TOYS}.UnconditionalModel}}")
        assert fit_and_get_model(monkeypatch, "toy.yaml", overlay).arguments["num_identities"] == 3
        overlay = write("overlay.yaml", f"data: {{class_path: {TOYS}.PlainData}}")
        model = fit_and_get_model(monkeypatch, "toy.yaml", overlay)
        assert model.arguments == {"num_identities": 5, "image_size": 8, "width": 8}

    def test_null_is_nothing_also_deep_in_a_configuration(self) -> None:
        overlay = f"model: {{init_args: {{encoder: {{class_path: {TOYS}.EncoderOfFile, init_args: {{file: a}}}}}}}}"
        given = ["--config", write("overlay.yaml", overlay), "--model.encoder.init_args.file", "null"]
        lightning(["fit", "--config", "toy.yaml", *given])
        saved = yaml.safe_load(Path("runs/toy/0/config.yaml").read_text())
        assert saved["model"]["init_args"]["encoder"]["init_args"] == {"depth": 7, "file": None}

    def test_short_class_names_on_the_command_line(self) -> None:
        lightning(["fit", "--config", "toy.yaml", "--trainer.logger=CSVLogger", "--trainer.logger.prefix=a"])
        saved = yaml.safe_load(Path("runs/toy/0/config.yaml").read_text())
        assert saved["trainer"]["logger"]["class_path"] == "idface.loggers.CSVLogger"
        assert "a-train/loss/square" in metrics("runs/toy/0/fit/metrics.csv")[0]

    def test_seed_is_fixed_unless_given(self) -> None:
        for name in ("a", "b"):
            lightning(["fit", "--config", "toy.yaml", f"--run.name={name}"])
        lightning(["fit", "--config", "toy.yaml", "--run.name=c", "--seed_everything=1"])
        a, b, c = (metrics(f"runs/{name}/0/fit/metrics.csv") for name in "abc")
        assert a == b != c


def fit_and_get_model(
    monkeypatch: pytest.MonkeyPatch, *configs: str, options: Sequence[str] = (), fast_dev_run: bool = True
) -> Any:
    made: list[Any] = []
    after = idface.training.TrainingCLI.after_instantiate_classes
    monkeypatch.setattr(
        idface.training.TrainingCLI,
        "after_instantiate_classes",
        lambda self: (after(self), made.append(self.model)),
    )
    arguments = [word for config in configs for word in ("--config", config)]
    lightning(["fit", *arguments, *options, f"--trainer.fast_dev_run={str(fast_dev_run).lower()}"])
    return made[0]


class TestData:
    """Arguments that the data modules pass on to their base class, in a file and on the command line."""

    DATA = """
model: {class_path: tests.data_modules.test_resume.Recorder}
data:
  class_path: ORLDataModule
  init_args:
    image_size: 16
    batch_size: 8
    exclude: people.txt
    sampler: {class_path: IdentityBalanced, init_args: {photos_per_person: 4}}
trainer: {max_steps: 3, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}
"""

    def test_a_sampler_and_an_exclusion(self, monkeypatch: pytest.MonkeyPatch) -> None:
        write("people.txt", "s1\nS 2\n")
        model = fit_and_get_model(monkeypatch, write("data.yaml", self.DATA), fast_dev_run=False)
        data = model.trainer.datamodule
        assert len(data.photos) == 380
        assert len(model.seen) == 3
        for rows, *_ in model.seen:
            assert np.unique(data.split.identity[rows], return_counts=True)[1].tolist() == [4, 4]
        saved = yaml.safe_load(Path("runs/data/0/config.yaml").read_text())["data"]["init_args"]
        assert saved["sampler"]["class_path"] == "data_modules.samplers.IdentityBalanced"
        assert saved["exclude"] == "people.txt"

    def test_a_sampler_by_its_short_name_on_the_command_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        write("people.txt", "s1")
        sampler = ["--data.sampler=IdentityBalanced", "--data.sampler.photos_per_person=2"]
        model = fit_and_get_model(monkeypatch, write("data.yaml", self.DATA), options=sampler)
        assert np.unique(model.trainer.datamodule.split.identity[model.seen[0][0]]).size == 4

    @pytest.mark.parametrize(
        ("right", "wrong", "message"),
        [
            ("IdentityBalanced", "IdentityBalancd", "no class 'IdentityBalancd'. Did you mean 'IdentityBalanced'?"),
            ("photos_per_person", "photos_per_persn", "'photos_per_persn'. Did you mean 'photos_per_person'?"),
            ("person: 4", "person: 0", "photos_per_person is 0, expected 1 or more"),
            ("people.txt", "peple.txt", "exclude: there is no file 'peple.txt'. Did you mean 'people.txt'?"),
        ],
    )
    def test_refusals(self, right: str, wrong: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
        write("people.txt", "s1")
        said = refused(["fit", "--config", write("data.yaml", self.DATA.replace(right, wrong))], capsys)
        assert message in said


class TestRefusals:
    """What is misspelt is refused in one message with the nearest valid name."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--trainer.max_step", "3"], "no option '--trainer.max_step'. Did you mean '--trainer.max_steps'?"),
            (["--trainer.max_step=3"], "no option '--trainer.max_step'. Did you mean '--trainer.max_steps'?"),
            (["--trainr.max_steps=3"], "Did you mean '--trainer.max_steps'?"),
            (["--model.init_args.widht=3"], f"{TOYS}.ToyModel has no option 'widht'. Did you mean 'width'?"),
            (["--model.widht=3"], "Did you mean 'width'?"),
            (["--model.encoder.dropuot=1"], f"{TOYS}.DeepEncoder has no option 'dropuot'. Did you mean 'dropout'?"),
            (["--model", "OpenSetIPGan"], "no class 'OpenSetIPGan'. Did you mean 'OpenSetIPGAN'?"),
            (["--data", "ORLDatamodule"], "no class 'ORLDatamodule'. Did you mean 'ORLDataModule'?"),
            (["--trainer.callbacks+=ModlCheckpoint"], "no class 'ModlCheckpoint'. Did you mean 'ModelCheckpoint'?"),
            (["--model", f"{TOYS}.ToyModle"], f"no class '{TOYS}.ToyModle'. Did you mean '{TOYS}.ToyModel'?"),
            (
                ["--model", "idface.modules.ipgn.OpenSetIPGAN"],
                "OpenSetIPGAN'. Did you mean 'OpenSetIPGAN'?",
            ),
            (["--config", "tyo.yaml"], "no file or folder 'tyo.yaml'. Did you mean 'toy.yaml'?"),
            (["--trainer.max_steps=many"], "trainer.max_steps: Expected a <class 'int'>. Got value: many"),
            (["--model.width=-1"], "width is -1; expected at least 1"),
            (["--trainer.default_root_dir=x"], "--run.root"),
        ],
    )
    def test_on_the_command_line(self, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
        said = refused(["fit", "--config", "toy.yaml", *arguments], capsys)
        assert said.startswith("lightning fit: error: ")
        assert message in said
        assert len(said.splitlines()) <= 2
        assert not Path("runs").exists()

    @pytest.mark.parametrize(
        ("right", "wrong", "message"),
        [
            ("max_steps", "max_step", "no option 'trainer.max_step'. Did you mean 'trainer.max_steps'?"),
            ("trainer:", "trainr:", "Did you mean 'trainer."),
            ("data:", "dta:", "Did you mean 'data'?"),
            ("width", "widht", f"{TOYS}.ToyModel has no option 'widht'. Did you mean 'width'?"),
            ("depth", "deepth", f"model.encoder: {TOYS}.DeepEncoder has no option 'deepth'. Did you mean 'depth'?"),
            ("save_last", "savelast", "Did you mean 'save_last'?"),
            (f"{TOYS}.ToyModel", "OpenSetIPGan", "Did you mean 'OpenSetIPGAN'?"),
            ("ModelCheckpoint", "ModelChekpoint", "Did you mean 'ModelCheckpoint'?"),
            (f"{TOYS}.DeepEncoder", "FaceDataModule", "model.encoder: Import path data_modules.base.FaceDataModule"),
            ("width: 8", "width: [8", "toy.yaml: "),
        ],
    )
    def test_in_a_file(
        self, right: str, wrong: str, message: str, toy: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert right in TOY
        toy.write_text(TOY.replace(right, wrong))
        said = refused(["fit", "--config", "toy.yaml"], capsys)
        assert message in said

    def test_what_shows_when_batches_are_asked_for(self, capsys: pytest.CaptureFixture[str]) -> None:
        data = ["--data=ORLDataModule", "--data.batch_size=100000", "--trainer.limit_val_batches=0"]
        said = refused(["fit", "--config", "toy.yaml", *data], capsys)
        assert "do not fill one batch of batch_size=100000" in said
        assert not list(Path(".").glob("runs/*/*"))  # nothing was trained: no empty run stays

    def test_a_file_and_the_option_that_gave_it(self, capsys: pytest.CaptureFixture[str]) -> None:
        data = ["--data=FaceFolderDataModule", "--data.root=photos"]
        said = refused(["fit", "--config", "toy.yaml", *data], capsys)
        assert "data.init_args.root: there is no folder 'photos'" in said
        sets = [{"class_path": name, "init_args": {}} for name in ("ORLDataModule", "LFWDataModule")]
        sets[1]["init_args"] = {"root": "some/folder"}
        joined = yaml.safe_dump({"data": {"class_path": "JoinedDataModule", "init_args": {"sets": sets}}})
        said = refused(["fit", "--config", "toy.yaml", "--config", write("joined.yaml", joined)], capsys)
        assert "data.init_args.sets[1].init_args.root: there is no folder 'some/folder'" in said

    def test_a_file_in_a_misspelt_folder(self, capsys: pytest.CaptureFixture[str]) -> None:
        write("experiments/ipgan.yaml", TOY)
        assert "Did you mean 'experiments/ipgan.yaml'?" in refused(["fit", "--config", "experiments/ipgn.yaml"], capsys)
        assert "Did you mean 'experiments/ipgan.yaml'?" in refused(["fit", "--config", "experimnts/ipgn.yaml"], capsys)

    def test_a_strategy(self, capsys: pytest.CaptureFixture[str]) -> None:
        from idface.latent.strategies import STRATEGIES  # the command line must not load torch for their names

        said = refused(
            ["search", "--checkpoint", "c", "--target", ".", "--out", "o", "--strategy", "greedy"], capsys, main
        )
        assert all(f"'{name}'" in said or name in said for name in STRATEGIES)

    def test_a_verb(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "Did you mean 'recombine'?" in refused(["recombin"], capsys, main)
        assert "Did you mean 'validate'?" in refused(["validat", "--config", "toy.yaml"], capsys)

    def test_an_untrained_model_is_not_evaluated(self, capsys: pytest.CaptureFixture[str]) -> None:
        for verb in ("validate", "test", "predict"):
            said = refused([verb, "--config", "toy.yaml"], capsys)
            assert "not trained" in said
            assert "--ckpt_path" in said

    def test_a_checkpoint_that_is_not_there(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "no run of 'toy' in 'runs'" in refused(["test", "--config", "toy.yaml", "--ckpt_path", "last"], capsys)
        write("weights/last.ckpt", "")
        said = refused(["test", "--config", "toy.yaml", "--ckpt_path", "weigths/last.ckpt"], capsys)
        assert "Did you mean 'weights/last.ckpt'?" in said

    def test_a_checkpoint_that_is_none(self, capsys: pytest.CaptureFixture[str]) -> None:
        write("empty.ckpt", "")
        write("text.ckpt", "no weights")
        torch.save({"weights": torch.zeros(1)}, "other.ckpt")
        for verb in ("fit", "test"):
            for name, reason in (("empty", "cannot be read"), ("text", "cannot be read"), ("other", "no state_dict")):
                said = refused([verb, "--config", "toy.yaml", "--ckpt_path", f"{name}.ckpt"], capsys)
                assert f"'{name}.ckpt'" in said
                assert reason in said
        assert not Path("runs").exists()


class TestRunFolders:
    def test_from_fit_to_test_to_resuming(self, capsys: pytest.CaptureFixture[str]) -> None:
        fit = ["fit", "--config", "toy.yaml"]
        lightning(fit)
        run = Path("runs/toy/0")
        trained = metrics("runs/toy/0/fit/metrics.csv")
        assert [row["step"] for row in trained if row["train/loss/square"]] == ["0", "1", "2", "3"]
        saved = yaml.safe_load((run / "config.yaml").read_text())
        assert saved["model"]["init_args"]["width"] == 8
        assert saved["trainer"]["use_distributed_sampler"] is False
        assert (run / "checkpoints/last.ckpt").is_file()
        assert (run / "samples/val/grid-0000004.png").is_file()

        for which in ("last", "best", "runs/toy/0/checkpoints/last.ckpt"):
            lightning(["test", "--config", "toy.yaml", "--ckpt_path", which])
        lightning(["validate", "--config", "toy.yaml", "--ckpt_path", "last"])
        lightning(["predict", "--config", "toy.yaml", "--ckpt_path", "last"])
        assert metrics("runs/toy/0/fit/metrics.csv") == trained
        tests = [metrics(f"runs/toy/0/{stage}/metrics.csv") for stage in ("test", "test-2", "test-3")]
        assert tests[0] == tests[1] == tests[2]
        assert tests[0][0]["step"] == "4"  # of the model, though the test counts no steps
        assert metrics("runs/toy/0/validate/metrics.csv")[0]["val/square"] == trained[-1]["val/square"]
        assert sorted(os.listdir("runs/toy")) == ["0"]

        lightning([*fit, "--ckpt_path", "last", "--trainer.max_steps=6"])
        resumed = metrics("runs/toy/0/fit-2/metrics.csv")
        assert [row["step"] for row in resumed if row["train/loss/square"]] == ["4", "5"]
        assert metrics("runs/toy/0/fit/metrics.csv") == trained
        assert yaml.safe_load((run / "config.yaml").read_text()) == saved
        assert yaml.safe_load((run / "fit-2/config.yaml").read_text())["trainer"]["max_steps"] == 6

        lightning(fit)
        assert sorted(os.listdir("runs/toy")) == ["0", "1"]
        assert metrics("runs/toy/1/fit/metrics.csv") == trained

    def test_the_saved_config_trains_the_same_again_and_tests(self) -> None:
        lightning(["fit", "--config", "toy.yaml", "--model.width=2"])
        lightning(["fit", "--config", "runs/toy/0/config.yaml"])
        assert metrics("runs/toy/1/fit/metrics.csv") == metrics("runs/toy/0/fit/metrics.csv")
        first, second = (Path(f"runs/toy/{number}/config.yaml").read_text() for number in (0, 1))
        assert first == second
        lightning(["test", "--config", "runs/toy/0/config.yaml", "--ckpt_path", "last"])
        assert Path("runs/toy/1/test/metrics.csv").is_file()

    def test_what_is_given_goes_before_what_the_checkpoint_was_trained_with(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lightning(["fit", "--config", "toy.yaml"])
        lightning(["fit", "--config", "toy.yaml", "--ckpt_path=last", "--trainer.max_steps=5", "--model.width=3"])
        assert yaml.safe_load(Path("runs/toy/0/fit-2/config.yaml").read_text())["model"]["init_args"]["width"] == 3

    def test_another_experiment_goes_on_in_a_run_of_its_own(self) -> None:
        lightning(["fit", "--config", "toy.yaml"])
        checkpoint = "--ckpt_path=runs/toy/0/checkpoints/last.ckpt"
        lightning(["fit", "--config", "toy.yaml", "--run.name=longer", checkpoint, "--trainer.max_steps=5"])
        assert [row["step"] for row in metrics("runs/longer/0/fit/metrics.csv") if row["train/loss/square"]] == ["4"]
        assert not Path("runs/toy/0/fit-2").exists()

    def test_root_and_name_are_options(self) -> None:
        lightning(["fit", "--config", "toy.yaml", "--run.root=elsewhere", "--run.name=mine"])
        assert Path("elsewhere/mine/0/config.yaml").is_file()
        assert not Path("runs").exists()
        lightning(["test", "--config", "toy.yaml", "--run.root=elsewhere", "--run.name=mine", "--ckpt_path=last"])
        assert Path("elsewhere/mine/0/test/metrics.csv").is_file()

    def test_best_is_the_one_that_was_monitored(self) -> None:
        # the error falls: where it is to be maximised, the first checkpoint is the best one
        overlay = """
trainer:
  max_steps: 8
  callbacks:
    - {class_path: ModelCheckpoint, init_args: {filename: "{step}", monitor: val/square, mode: max}}
    - {class_path: ModelCheckpoint, init_args: {filename: last, enable_version_counter: false}}
"""
        configs = ["--config", "toy.yaml", "--config", write("overlay.yaml", overlay)]
        lightning(["fit", *configs])
        lightning(["test", *configs, "--ckpt_path=best"])
        lightning(["test", *configs, "--ckpt_path=last"])
        best, last = (metrics(f"runs/toy/0/{stage}/metrics.csv")[0] for stage in ("test", "test-2"))
        assert (best["step"], last["step"]) == ("4", "8")
        assert float(best["test/square"]) > float(last["test/square"])

    def test_best_needs_a_monitored_metric(self, capsys: pytest.CaptureFixture[str]) -> None:
        lightning(["fit", "--config", "toy.yaml", "--trainer.callbacks=null"])
        assert "monitors no metric" in refused(["test", "--config", "toy.yaml", "--ckpt_path=best"], capsys)

    def test_without_a_logger(self) -> None:
        lightning(["fit", "--config", "toy.yaml", "--trainer.logger=false"])
        assert Path("runs/toy/0/config.yaml").is_file()
        assert Path("runs/toy/0/checkpoints/last.ckpt").is_file()
        lightning(["test", "--config", "toy.yaml", "--trainer.logger=false", "--ckpt_path=last"])

    def test_a_start_that_fails_leaves_nothing(self, capsys: pytest.CaptureFixture[str]) -> None:
        refused(["fit", "--config", "toy.yaml", "--trainer.accelerator=gpu", "--trainer.devices=99"], capsys)
        assert not list(Path(".").glob("runs/*/*"))

    def test_two_processes_share_one_run_folder(self) -> None:
        result = spawn(
            *(str(BIN / "lightning"), "fit", "--config", "toy.yaml", "--trainer.devices=2", "--trainer.strategy=ddp"),
        )
        assert result.returncode == 0, result.stderr
        assert os.listdir("runs/toy") == ["0"]
        assert sorted(os.listdir("runs/toy/0")) == ["checkpoints", "config.yaml", "fit", "samples"]
        state = torch.load("runs/toy/0/checkpoints/last.ckpt", weights_only=True)
        assert state["global_step"] == 4


class TestVerbs:
    @pytest.fixture
    def calls(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
        """The verbs' implementations, replaced by ones that note what they are called with."""
        calls: list[tuple[Any, ...]] = []
        recombine, page = types.ModuleType("recombine"), types.ModuleType("page")
        recombine.recombine = lambda checkpoint, identity, attributes, out, align, originals: (  # type: ignore[attr-defined]
            calls.append((checkpoint, identity, attributes, out, align, originals))
        )
        recombine.in_words = lambda report: ["some faces"]  # type: ignore[attr-defined]
        page.write_report = lambda run: calls.append((run,)) or run / "report.html"  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "idface.protocols.recombine", recombine)
        monkeypatch.setitem(sys.modules, "idface.report.page", page)
        return calls

    def test_recombine(self, calls: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]) -> None:
        photo = write("photos/a.jpg", "")
        base = ["recombine", "--checkpoint", "zoo:x", "--identity", photo, "--attributes", "photos", "--out", "out"]
        main(base)
        main([*base, "--no-align"])
        main([*base, "--no-originals"])
        given = ("zoo:x", Path(photo), Path("photos"), Path("out"))
        assert calls == [(*given, True, True), (*given, False, True), (*given, True, False)]
        assert capsys.readouterr().out == "some faces\nout/grid.png\n" * 3

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            (["--budget", "-5"], "--budget: '-5' is no count; expected a whole number, 1 or more"),
            (["--budget", "many"], "--budget: 'many' is no count"),
            (
                ["--out", "photos/anna.jpg/found"],
                "photos/anna.jpg' is a file; expected a folder, or a name that is free",
            ),
        ],
    )
    def test_search_refuses_before_it_begins(
        self, given: list[str], said: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write("photos/anna.jpg", "")
        whole = ["search", "--checkpoint", "zoo:x", "--target", "photos", "--out", "found", *given]
        assert said in refused(whole, capsys, main)

    def test_recombine_refuses(self, calls: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]) -> None:
        write("photos/anna.jpg", "")
        rest = ["--attributes", "photos", "--out", "out"]
        said = refused(["recombine", "--checkpoint", "x", "--identity", "photos/ana.jpg", *rest], capsys, main)
        assert "Did you mean 'photos/anna.jpg'?" in said
        said = refused(["recombine", "--checkpont", "x", "--identity", "photos", *rest], capsys, main)
        assert "no option '--checkpont'. Did you mean '--checkpoint'?" in said
        assert calls == []

    def test_report_of_a_run_and_of_an_experiments_newest(
        self, calls: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        for number in (0, 9, 10):
            write(f"runs/toy/{number}/config.yaml", "")
        main(["report", "runs/toy/9"])
        main(["report", "runs/toy"])
        assert calls == [(Path("runs/toy/9"),), (Path("runs/toy/10"),)]
        assert "runs/toy/10/report.html" in capsys.readouterr().out
        assert "is no run folder" in refused(["report", "runs"], capsys, main)
        assert "Did you mean 'runs/toy'?" in refused(["report", "runs/tyo"], capsys, main)

    def test_a_folder_that_cannot_be_written_is_named(self, capsys: pytest.CaptureFixture[str]) -> None:
        file = write("weights.txt", "")
        said = refused(["export", "--checkpoint", "zoo:quickstart", "--out", f"{file}/x.safetensors"], capsys, main)
        assert "weights.txt" in said

    def test_verify_says_what_is_damaged(self, face_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        main(["verify", "--data", "folder", "--root", str(face_folder)])
        assert "Nothing is missing or damaged" in capsys.readouterr().out
        shutil.copytree(face_folder, "faces")
        write("faces/person_1/broken.png", "no picture")
        with pytest.raises(SystemExit) as stop:
            main(["verify", "--data", "folder", "--root", "faces"])
        assert stop.value.code == 1
        assert "faces/person_1/broken.png: not an image in a known format." in capsys.readouterr().out
        assert "Did you mean 'celeba'?" in refused(["verify", "--data", "celebA", "--root", "faces"], capsys, main)
        assert "has no 'img_align_celeba'" in refused(["verify", "--data", "celeba", "--root", "faces"], capsys, main)

    def test_people_are_printed_for_exclude(self, face_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        main(["people", "--data", "folder", "--root", str(face_folder)])
        printed = capsys.readouterr().out
        assert printed == "".join(f"person_{number}\n" for number in range(1, 7))
        write("people.txt", printed.replace("person_1\n", ""))
        data = FaceFolderDataModule(face_folder, align=False, exclude=Path("people.txt"))
        with pytest.raises(ValueError, match=r"found 4 usable photos of 1 known people(.|\n)*person_2 is named in"):
            _ = data.photos
        write("nobody/25_0_2_20170116174525125.jpg.chip.jpg", "")
        with pytest.raises(SystemExit) as stop:
            main(["people", "--data", "utkface", "--root", "nobody"])
        assert stop.value.code == "It is not known who is on the photos in 'nobody'."  # on stderr, and 1 to the shell
        assert capsys.readouterr().out == ""
        assert "Did you mean 'lfw'?" in refused(["people", "--data", "lfv", "--root", "nobody"], capsys, main)

    def test_a_reader_that_goes_away_is_no_error(self, face_folder: Path) -> None:
        command = f"{BIN / 'idface'} people --data folder --root {face_folder} | true; echo ${{PIPESTATUS[0]}}"
        result = spawn("bash", "-c", command)
        assert (result.stdout, result.stderr) == ("0\n", "")

    def test_idface_fit_is_lightning_fit(self) -> None:
        main(["fit", "--config", "toy.yaml", "--trainer.max_steps=1"])
        assert Path("runs/toy/0/config.yaml").is_file()


def test_a_class_name_stays_a_name_where_no_class_is_meant() -> None:
    arguments = ["fit", "--model", "OpenSetIPGAN", "--data=ORLDataModule", "--data.root", "Images", "--run.name=Draw"]
    assert _whole_class_paths(arguments) == [
        "fit",
        "--model",
        "idface.modules.ipgan.OpenSetIPGAN",
        "--data=data_modules.orl.ORLDataModule",
        "--data.root",
        "Images",
        "--run.name=Draw",
    ]
