"""Two processes over gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from idface.recognition.dlib_resnet import DlibResNet
from tests.modules.helpers import adam, loader, small_data, small_ipgan, trainer


def train(case: str, processes: int, folder: Path) -> list[dict[str, Tensor]]:
    folder.mkdir()
    command = [sys.executable, "-m", "tests.modules.ddp_script", case, str(processes), str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[2])
    assert run.returncode == 0, run.stderr[-3000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(processes)]


def test_ranks_end_identical(tmp_path: Path) -> None:
    first, second = train("real", 2, tmp_path / "two")
    assert any(name.startswith("ema.") for name in first)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name

    metrics = json.loads((tmp_path / "two/rank0.json").read_text())
    assert metrics["val/identity/known/results"] == 16  # every photo of both ranks, once
    assert metrics["val/identity/known/gallery"] == metrics["val/identity/unseen/gallery"] == 40
    evaluated = small_ipgan(num_identities=32, ema_decay=0.9, judge=DlibResNet())
    evaluated.setup("validate")
    evaluated.load_state_dict(first)
    for part in trainer(1, limit_val_batches=1.0).validate(evaluated, small_data(), verbose=False):
        for name, value in part.items():
            assert metrics[name] == pytest.approx(value, abs=2e-3), name


def test_two_processes_equal_one_on_the_joint_batch(tmp_path: Path) -> None:
    (alone,) = train("joint", 1, tmp_path / "one")
    together, _ = train("joint", 2, tmp_path / "two")
    from tests.modules.ddp_script import without_batch_norm_and_noise

    start = without_batch_norm_and_noise().state_dict()
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
    learnt = [name for name in alone if name.endswith("weight") and "posterior" not in name]
    assert all(not torch.equal(alone[name], start[name]) for name in learnt)


def test_searching_in_two_processes(tmp_path: Path) -> None:
    (alone,) = train("search", 1, tmp_path / "one")
    first, second = train("search", 2, tmp_path / "two")
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert set(alone) == set(first)
    one, two = (json.loads((tmp_path / each / "rank0.json").read_text()) for each in ("one", "two"))
    assert two["val/faces/variety_real"] == pytest.approx(one["val/faces/variety_real"], rel=1e-3)  # all photos, once
    assert two["val/faces/frechet_distance"] > 0

    found = {name: sorted((tmp_path / name / "samples/predict").glob("*/")) for name in ("one", "two")}
    assert len(found["one"]) == 3
    assert [folder.name for folder in found["two"]] == [folder.name for folder in found["one"]]
    for one_folder, two_folder in zip(found["one"], found["two"], strict=True):
        results = [json.loads((folder / "result.json").read_text()) for folder in (one_folder, two_folder)]
        assert results[0]["photos"] == results[1]["photos"] > 1  # those that the other process has read among them
        assert results[0]["distance"] == pytest.approx(results[1]["distance"], abs=1e-4)
        assert (one_folder / "history.csv").read_text() == (two_folder / "history.csv").read_text()


def test_faces_of_people_in_two_processes(tmp_path: Path) -> None:
    (_,) = train("vaegan", 1, tmp_path / "one")
    first, second = train("vaegan", 2, tmp_path / "two")
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    one, two = (json.loads((tmp_path / each / "rank0.json").read_text()) for each in ("one", "two"))
    for name in ("variety_real", "top1_real", "chance"):  # of real photos: all of them, once
        assert two[f"val/faces/{name}"] == pytest.approx(one[f"val/faces/{name}"], rel=1e-3), name
    assert two["val/faces/chance"] == pytest.approx(1 / 32)


def test_processes_agree_on_who_rests(tmp_path: Path) -> None:
    first, second = train("labels", 2, tmp_path / "two")
    for name, value in first.items():
        assert torch.equal(value, second[name]), name  # the gate's costs too: one rank alone would take another branch
    assert not torch.equal(first["costs"], torch.ones(2))


@pytest.mark.parametrize("strategy", ["ddp", "ddp_find_unused_parameters_true"])
def test_the_usual_strategies_accept_the_module(strategy: str) -> None:
    environment = dict(os.environ)
    try:
        run = trainer(2, strategy=strategy, devices=1)
        run.fit(small_ipgan(optimizer=adam), loader())
        assert run.global_step == 2
    finally:  # Lightning leaves the group and its port behind, and what runs next would take them for its own
        torch.distributed.destroy_process_group()
        os.environ.clear()
        os.environ.update(environment)
