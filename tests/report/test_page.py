"""The page of a run, whatever of it is there."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from idface.metrics.identification import wilson_interval
from idface.pictures import save_synthetic
from idface.report.page import SUMMARY, write_report

FIGURES = {
    "similarity_to_source": 0.912,
    "similarity_to_attributes": 0.861,
    "similarity_to_gallery": 0.884,
    "real_same": 0.973,
    "real_different": 0.853,
    "nearer_to_source": 0.93,
    "top1": 0.41,
    "top1_real": 0.995,
    "chance": 0.025,
    "results": 160.0,
    "gallery": 40.0,
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "quickstart" / "0"
    (folder / "fit").mkdir(parents=True)
    (folder / "config.yaml").write_text("model: {note: <script>alert(1)</script>}\n")
    metrics = ["epoch,step,train/loss/kl,val/identity/known/top1"]
    metrics += [f"0,{step},{step / 10},{0.01 * step if step % 4 == 0 else ''}" for step in range(20)]
    (folder / "fit" / "metrics.csv").write_text("\n".join(metrics) + "\n")
    return folder


def finish(run: Path, independent: bool) -> None:
    metrics = {f"test/identity/{name}/{key}": value for name in ("known", "unseen") for key, value in FIGURES.items()}
    judge = {"name": "dlib", "fingerprint": "0123456789ab", "independent": independent, "is_input": True}
    fit: dict[str, Any] = dict.fromkeys(
        ("steps", "timed_steps", "seconds", "steps_per_second", "device", "precision", "torch"), 7
    )
    fit["data"] = {"class": "ORLDataModule", "training_people": 32}
    (run / SUMMARY).write_text(json.dumps({"fit": fit, "test": {"metrics": metrics, "judge": judge}}))
    for name in ("known", "unseen"):
        save_synthetic(np.zeros((8, 8, 3), np.uint8), run / "samples" / "test" / f"{name}-0000007.png", {})


def test_a_finished_run_shows_figures_judge_grids_and_curves(run: Path) -> None:
    finish(run, independent=True)
    page = write_report(run).read_text("utf-8")
    for text in ("0.912", "0.861", "0.884", "93.0 %", "41.0 %", "2.5 %", "99.5 %", "160, 40", "dlib", "0123456789ab"):
        assert text in page, text
    assert page.count("data:image/png;base64,") == 2
    assert page.count("data:image/svg+xml;base64,") == 2
    assert "knows 32 people" in page
    assert "not independent" not in page
    assert "the generator was given its embedding" in " ".join(page.split())


def test_the_page_needs_no_network_and_fits_a_phone(run: Path) -> None:
    finish(run, independent=True)
    page = write_report(run).read_text("utf-8")
    assert 'src="http' not in page
    assert "<link" not in page
    assert "<script" not in page  # what the configuration says is escaped
    assert 'name="viewport"' in page


def test_a_judge_that_was_a_loss_is_flagged_in_plain_sight(run: Path) -> None:
    finish(run, independent=False)
    assert "The judge is not independent" in write_report(run).read_text("utf-8")


def test_a_run_without_a_test_has_a_page(run: Path) -> None:
    page = write_report(run).read_text("utf-8")
    assert "Whose face is it" not in page
    assert page.count("data:image/svg+xml;base64,") == 2


def test_curves_of_a_resumed_run_follow_each_other(run: Path) -> None:
    from idface.report.page import _series

    (run / "fit-2").mkdir()
    (run / "fit-2" / "metrics.csv").write_text("step,train/loss/kl\n19,5.0\n20,6.0\n")
    points = dict(_series(run)["train/loss/kl"])
    assert sorted(points) == list(range(21))
    assert points[19] == 5.0  # what was trained again counts as it ended
    assert points[3] == 0.3


def test_the_interval_of_a_share_is_wilsons() -> None:
    low, high = wilson_interval(0.5, 100)
    assert (round(low, 4), round(high, 4)) == (0.4038, 0.5962)
    assert wilson_interval(0.0, 10)[0] == 0
    assert round(wilson_interval(0.0, 10)[1], 4) == 0.2775


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no run folder"):
        write_report(tmp_path)


def test_a_test_that_judged_nothing_has_a_page(run: Path) -> None:
    finish(run, independent=True)
    summary = json.loads((run / SUMMARY).read_text())
    summary["test"]["metrics"] |= {f"test/identity/{name}/results": 0.0 for name in ("known", "unseen")}
    (run / SUMMARY).write_text(json.dumps(summary))
    assert "0, 40" in write_report(run).read_text("utf-8")


def test_the_grid_is_of_the_model_that_was_tested(run: Path) -> None:
    finish(run, independent=True)
    summary = json.loads((run / SUMMARY).read_text())
    summary["test"]["step"] = 7
    (run / SUMMARY).write_text(json.dumps(summary))
    pictures = lambda: re.findall(r"data:image/png;base64,[^\"]+", write_report(run).read_text("utf-8"))  # noqa: E731
    tested = pictures()
    for name in ("known", "unseen"):  # an earlier test, of a model that was trained on for longer
        save_synthetic(np.full((8, 8, 3), 255, np.uint8), run / "samples" / "test" / f"{name}-0000009.png", {})
    assert pictures() == tested


def test_a_generator_of_faces_from_latents_has_its_figures_and_grid(run: Path) -> None:
    finish(run, independent=True)
    summary = json.loads((run / SUMMARY).read_text())
    summary["test"]["metrics"] = {"test/faces/frechet_distance": 0.1234, "test/faces/variety_real": 0.5678}
    (run / SUMMARY).write_text(json.dumps(summary))
    for picture in (run / "samples" / "test").iterdir():
        picture.unlink()
    save_synthetic(np.zeros((8, 8, 3), np.uint8), run / "samples" / "val" / "faces-0000007.png", {})
    page = write_report(run).read_text("utf-8")
    for text in ("faces/frechet_distance", "0.1234", "0.5678", "<h2>Faces</h2>", "Judge: dlib"):
        assert text in page, text
    assert "Whose face is it?" not in page
    assert page.count("data:image/png;base64,") == 1
