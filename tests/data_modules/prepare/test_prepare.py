"""`idface prepare` as a whole: what comes out, and what happens to it when it is killed, repeated or misused."""

import csv
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_modules.prepare import engines, run
from data_modules.prepare.worker import FaceWorker
from idface.cli import main
from idface.recognition.alignment import FACE_TEMPLATE, FaceDetector
from tests.data_modules.prepare.helpers import KEPT, LEFT_OUT, REJECTED, centre_face, contents, in_process, write_raw
from tests.data_modules.prepare.kills import survivors

Options = list[str]


@pytest.fixture(scope="module", autouse=True)
def kills(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], dict[str, Any]]]:
    """Preparations that are killed meanwhile, in processes of their own: what became of those of a kind."""
    folder = tmp_path_factory.mktemp("kills")
    source = write_raw(folder / "raw", photos=2)
    script = [sys.executable, "-m", "tests.data_modules.prepare.kills"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = {
        kind: subprocess.Popen(
            [*script, kind, source, folder / kind], env=environment, text=True, stdout=subprocess.PIPE
        )
        for kind in ("points", "random")
    }

    def outcome(kind: str) -> dict[str, Any]:
        text, _ = running[kind].communicate(timeout=400)
        assert running[kind].returncode == 0
        found: dict[str, Any] = json.loads(text)
        return found

    yield outcome
    for process in running.values():
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four people's folders, with everything that people put into folders. Do not write to it."""
    return write_raw(tmp_path_factory.mktemp("raw") / "faces")


@pytest.fixture
def few_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of four photos, shards of twelve."""
    prepare = run.prepare
    monkeypatch.setattr(run, "CHUNK", 4)
    monkeypatch.setattr(run, "prepare", lambda *args, **options: prepare(*args, **options, shard_size=12))


@pytest.fixture
def quick(few_a_shard: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Likewise, in this process, and without a detector."""
    monkeypatch.setitem(engines.ENGINES, "local", in_process)
    monkeypatch.setattr(FaceWorker, "_detect", lambda self, images: [centre_face(image) for image in images])


def idface_prepare(root: Path, out: Path, *options: str, data: str = "folder") -> Path:
    main(["prepare", "--data", data, "--root", str(root), "--out", str(out), *options])
    return out


@pytest.fixture(scope="module")
def prepared(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`raw`, prepared by the real engine and detector in several shards. Do not write to it."""
    prepare = run.prepare
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "CHUNK", 4)
        patch.setattr(run, "prepare", lambda *args, **options: prepare(*args, **options, shard_size=12))
        return idface_prepare(raw, tmp_path_factory.mktemp("prepared") / "faces", "--size", "96", "--workers", "2")


def manifest_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text("utf-8"))
    return found


def rejected_of(folder: Path) -> dict[str, tuple[str, str]]:
    with (folder / "rejected.csv").open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    assert head == ["name", "person", "reason"]
    assert len({name for name, *_ in rows}) == len(rows)
    return {name: (person, reason) for name, person, reason in rows}


def refused(capsys: pytest.CaptureFixture[str], root: Path, out: Path, *options: str, data: str = "folder") -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        idface_prepare(root, out, *options, data=data)
    assert exit.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("idface prepare: error: ")
    assert "Traceback" not in message
    return message


def test_what_lies_in_the_folder(prepared: Path) -> None:
    shards = [f"shards/{number:05d}.parquet" for number in range(3)]
    sheets = ["contact_sheet.png", "detection_sheet.png"]
    assert set(contents(prepared)) == {"README.md", "manifest.json", "index.parquet", "rejected.csv", *sheets, *shards}
    for name in sheets:
        with Image.open(prepared / name) as sheet:
            assert np.asarray(sheet).std() > 20
    assert "faces of `folder`" in (prepared / "README.md").read_text("utf-8")


def test_the_manifest_is_right(prepared: Path) -> None:
    manifest = manifest_of(prepared)
    described = {each["file"]: each for each in manifest["shards"]} | manifest["files"]
    assert len(described) == 5
    for name, expected in described.items():
        content = (prepared / name).read_bytes()
        assert expected["bytes"] == len(content)
        assert expected["sha256"] == hashlib.sha256(content).hexdigest()
    rows = [pq.read_metadata(prepared / each["file"]).num_rows for each in manifest["shards"]]
    assert [each["rows"] for each in manifest["shards"]] == rows
    counts = manifest["counts"]
    assert counts["photos"] == 20 + len(KEPT) + len(REJECTED)
    assert counts["prepared"] == sum(rows) == pq.read_metadata(prepared / "index.parquet").num_rows
    assert counts["people"] == 4
    left_out = counts["rejected"].pop("files that are no photos of the set, or that its own rules leave out")
    assert left_out == len(LEFT_OUT)
    assert counts["prepared"] + sum(counts["rejected"].values()) == counts["photos"]
    assert counts["rejected"]["duplicate"] == 2
    assert counts["rejected"]["empty file"] == 2
    source = manifest["source"]
    assert (source["name"], source["module"]) == ("folder", "FaceFolderDataModule")
    assert source["licence"] == "That of the folder's owner"
    assert source["archives"] == []
    assert len(source["names_sha256"]) == 64
    assert manifest["made_with"]["device"] in ("cpu", "cuda")
    assert manifest["settings"]["size"] == 96


def test_every_rejected_file_is_listed_with_its_reason(prepared: Path, raw: Path) -> None:
    found = rejected_of(prepared)
    # The detector may miss a face on one or another of the good photos; here it does not.
    assert found.keys() == REJECTED.keys() | LEFT_OUT.keys()
    for name, reason in REJECTED.items():
        assert found[name][1].startswith(reason), name
        assert found[name][0] == name.partition("/")[0]
    assert {name: found[name] for name in LEFT_OUT} == {name: ("", reason) for name, reason in LEFT_OUT.items()}
    names = set(pq.read_table(prepared / "index.parquet")["name"].to_pylist())
    assert names >= KEPT
    assert len(names) == 20 + len(KEPT)
    assert not names & found.keys()
    for content in contents(prepared).values():
        assert str(raw).encode() not in content, "what is published tells nothing of the machine"


def test_the_index_points_at_the_pictures(prepared: Path) -> None:
    index = pq.read_table(prepared / "index.parquet").to_pylist()
    shards = [pq.read_table(prepared / f"shards/{number:05d}.parquet").to_pylist() for number in range(3)]
    assert [row["name"] for row in index] == [row["name"] for shard in shards for row in shard]
    assert [row["name"] for row in index] == sorted(row["name"] for row in index)
    for row, stored in zip(index, (row for shard in shards for row in shard), strict=True):
        with (prepared / f"shards/{row['shard']:05d}.parquet").open("rb") as shard:
            shard.seek(row["offset"])
            assert shard.read(row["length"]) == stored["image"]["bytes"]
        assert {key: value for key, value in stored.items() if key != "image"} == {
            key: value for key, value in row.items() if key not in ("shard", "offset", "length")
        }
        with Image.open(io.BytesIO(stored["image"]["bytes"])) as image:
            assert (image.format, image.size, image.mode) == ("JPEG", (96, 96), "RGB")


def test_eyes_and_mouth_are_where_they_should_be(prepared: Path, raw: Path) -> None:
    index = pq.read_table(prepared / "index.parquet").to_pylist()
    landmarks = np.array([row["landmarks"] for row in index])
    # MTCNN's points are those of one face, not the mean one: the similarity leaves a few pixels of 96.
    off = np.abs(landmarks - (FACE_TEMPLATE * 96 - 0.5))[:, [0, 1, 3, 4]]
    assert off.max() < 8
    assert off.mean() < 2
    # Found in the picture, not just computed: the detector sees them there again.
    pictures = datasets.load_dataset(str(prepared), split="train", cache_dir=str(raw.parent / "cache"))["image"]
    found = FaceDetector().detect([np.asarray(picture) for picture in list(pictures)[::4]])
    again = [np.abs(points - landmarks[4 * i]).max() for i, points in enumerate(found) if points is not None]
    assert len(again) == len(found)
    assert np.median(again) < 3
    for row in index:
        assert hashlib.sha256((raw / _bytes_of(row["name"])).read_bytes()).hexdigest() == row["photo_sha256"]
        assert (row["photo_width"], row["photo_height"]) == (92, 112)
        assert row["probability"] > 0.5
        assert row["faces"] >= 1


def _bytes_of(name: str) -> str:
    return name.replace("\\udce9", "\udce9")


def test_other_libraries_open_it(prepared: Path, tmp_path: Path) -> None:
    pictures = {}
    for row in pq.read_table(prepared / "index.parquet").to_pylist():
        content = (prepared / f"shards/{row['shard']:05d}.parquet").read_bytes()
        with Image.open(io.BytesIO(content[row["offset"] : row["offset"] + row["length"]])) as image:
            pictures[row["name"]] = np.asarray(image)

    train = datasets.load_dataset(str(prepared), cache_dir=str(tmp_path))["train"]
    assert isinstance(train.features["image"], datasets.Image)
    assert train["name"][:] == sorted(pictures)
    for row in train:
        assert np.array_equal(row["image"], pictures[row["name"]])
        assert np.shape(row["landmarks"]) == (5, 2)

    frame = pd.read_parquet(prepared / "shards")
    assert frame["name"].tolist() == sorted(pictures)
    for name, image in zip(frame["name"], frame["image"], strict=True):
        with Image.open(io.BytesIO(image["bytes"])) as decoded:
            assert np.array_equal(decoded, pictures[name])
    assert len(pd.read_parquet(prepared / "index.parquet")) == len(frame)

    found = duckdb.sql(f"SELECT person, count(*) FROM '{prepared}/shards/*.parquet' GROUP BY person ORDER BY person")
    assert found.fetchall() == [("ann", 5), ("ben", 7), ("cy", 5), ("dot", 5)]
    chosen = duckdb.sql(f"SELECT image.bytes FROM '{prepared}/shards/*.parquet' WHERE name = 'dot/3.pgm'")
    ((content,),) = chosen.fetchall()
    with Image.open(io.BytesIO(content)) as decoded:
        assert np.array_equal(decoded, pictures["dot/3.pgm"])


def test_a_finished_set_is_left_as_it_is(
    prepared: Path, raw: Path, few_a_shard: None, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    before = {path: path.stat().st_mtime_ns for path in prepared.rglob("*")}
    capsys.readouterr()
    with caplog.at_level("INFO"):
        idface_prepare(raw, prepared, "--size", "96")
    assert "was prepared before" in caplog.text
    assert "22 of 33 photos are prepared, 4 people" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in prepared.rglob("*")} == before


def test_a_finished_set_of_other_photos_is_refused(
    prepared: Path, few_a_shard: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_raw(tmp_path / "other", photos=1)
    assert "was prepared from other photos (33 then, " in refused(capsys, other, prepared, "--size", "96")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--size", "64"], "size was 96, now 64"),
        (["--size", "96", "--face", "largest"], "face was main, now largest"),
        (["--size", "96", "--set", "unlabelled=cy"], "options was {}, now {'unlabelled': 'cy'}"),
    ],
)
def test_a_finished_set_with_other_options_is_refused(
    prepared: Path, raw: Path, few_a_shard: None, capsys: pytest.CaptureFixture[str], options: Options, words: str
) -> None:
    before = contents(prepared)
    message = refused(capsys, raw, prepared, *options)
    assert words in message
    assert "another folder as --out" in message
    assert contents(prepared) == before


def test_a_second_run_is_refused(raw: Path, quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    hold = "lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print('held', flush=True); input()"
    code = f"import sys, filelock; {hold}"
    with subprocess.Popen(
        [sys.executable, "-c", code, out / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        assert f"another preparation into '{out}' is running: wait for it, or give" in refused(capsys, raw, out)
        assert [path.name for path in out.iterdir()] == [".lock"]
        first.kill()
    idface_prepare(raw, out)  # the lock dies with its process


def test_a_folder_with_other_files_is_refused(
    raw: Path, quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("all of it")
    assert "holds 1 other files, thesis.tex among them: give a new folder as --out" in refused(
        capsys, raw, tmp_path / "out"
    )
    assert contents(tmp_path / "out") == {"thesis.tex": b"all of it"}


class Stop(Exception):
    pass


def interrupted(monkeypatch: pytest.MonkeyPatch, raw: Path, out: Path) -> None:
    """Leave a preparation that has a shard."""

    def engine(worker: FaceWorker, chunks: Any, workers: int) -> Iterator[tuple[int, bytes]]:
        for number, result in in_process(worker, chunks, workers):
            if number == 4:
                raise Stop
            yield number, result

    with monkeypatch.context() as patch:
        patch.setitem(engines.ENGINES, "local", engine)
        with pytest.raises(Stop):
            idface_prepare(raw, out)


def test_an_interrupted_one_goes_on_with_the_same_options_alone(
    raw: Path, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(monkeypatch, raw, tmp_path / "out")
    before = contents(tmp_path / "out" / "shards")
    assert list(before) == ["00000.parquet"]
    assert "a preparation that was begun in another way (margin was 0.0, now 0.2)" in refused(
        capsys, raw, tmp_path / "out", "--margin", "0.2"
    )
    other = write_raw(tmp_path / "other", photos=2)
    assert f"root was {raw}, now {other}" in refused(capsys, other, tmp_path / "out")
    (tmp_path / "list.txt").write_text("cy\n")
    assert "options was {}, now {'exclude': " in refused(
        capsys, raw, tmp_path / "out", "--exclude", str(tmp_path / "list.txt")
    )
    assert contents(tmp_path / "out" / "shards") == before
    idface_prepare(raw, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(idface_prepare(raw, tmp_path / "whole"))


def test_what_is_prepared_is_what_was_there_at_first(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = write_raw(tmp_path / "raw")
    interrupted(monkeypatch, raw, tmp_path / "out")
    (raw / "ann" / "0.pgm").write_bytes((raw / "cy" / "1.pgm").read_bytes())  # before all others by name
    (raw / "dot" / "5.pgm").unlink()
    idface_prepare(raw, tmp_path / "out")
    assert manifest_of(tmp_path / "out")["counts"]["photos"] == 33
    assert rejected_of(tmp_path / "out")["dot/5.pgm"][1].startswith("cannot be read: ")


def test_a_wrong_root_can_be_corrected(quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = write_raw(tmp_path / "raw", photos=2)
    assert "expected two or more" in refused(capsys, tmp_path, tmp_path.parent / f"{tmp_path.name}-out")
    idface_prepare(raw, tmp_path.parent / f"{tmp_path.name}-out")


def test_people_can_be_left_out(quick: None, raw: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("Ann\nCY\n")
    out = idface_prepare(raw, tmp_path / "out", "--exclude", str(tmp_path / "list.txt"))
    assert set(pq.read_table(out / "index.parquet")["person"].to_pylist()) == {"ben", "dot"}
    found = rejected_of(out)
    assert found["cy/1.pgm"][1] == "cy is named in the list of people to leave out"
    assert "ben/copy.pgm" not in found, "the photo that it is a copy of is left out"
    rejected = manifest_of(out)["counts"]["rejected"]
    assert rejected["files that are no photos of the set, or that its own rules leave out"] == len(LEFT_OUT)
    assert rejected["people to leave out"] == 10 + sum(name.startswith("ann/") for name in REJECTED)


def test_nothing_to_prepare_says_why(quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("ann", "ben"):
        (tmp_path / "raw" / name).mkdir(parents=True)
        (tmp_path / "raw" / name / "photo.jpg").write_text(f"the face of {name}")
    for _ in range(2):  # the second time it is finished already
        message = refused(capsys, tmp_path / "raw", tmp_path / "out")
        assert "not one photo was prepared: 2 not an image in a known format; see '" in message
    assert rejected_of(tmp_path / "out").keys() == {"ann/photo.jpg", "ben/photo.jpg"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--size", "8"], "size is 8, expected 16 to 2048"),
        (["--margin=-1"], "margin is -1.0, expected 0 to 2"),
        (["--quality", "0"], "quality is 0, expected 1 to 100"),
        (["--workers=-1"], "workers is -1, expected 1 or more"),
        (["--set", "unlabelled"], "--set unlabelled: expected OPTION=VALUE"),
        (["--set", "unlabeled=x"], "no such option. Did you mean 'unlabelled'?"),
    ],
)
def test_wrong_options(
    raw: Path, quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: Options, words: str
) -> None:
    assert words in refused(capsys, raw, tmp_path / "out", *options)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_no_worker_survives_the_kill_of_a_real_run(
    raw: Path, prepared: Path, few_a_shard: None, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code = (
        "import sys; from data_modules.prepare import run; from idface.cli import main; run.CHUNK = 4; "
        "prepare = run.prepare; run.prepare = lambda *a, **k: prepare(*a, **k, shard_size=12); main(sys.argv[1:])"
    )
    arguments = ["prepare", "--data", "folder", "--root", raw, "--out", out, "--size", "96", "--workers", "2"]
    with subprocess.Popen([sys.executable, "-c", code, *arguments], start_new_session=True) as process:
        deadline = time.monotonic() + 120
        while not (shards := list(out.glob("shards/0*"))) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert shards
        assert process.poll() is None
        assert len(survivors(process.pid)) >= 3, "workers, and the process that starts them"
        os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30  # seconds; a process that just imports must be done with that
    while (left := survivors(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []
    assert not (out / "manifest.json").exists()
    assert contents(idface_prepare(raw, out, "--size", "96", "--workers", "2")) == contents(prepared)


def test_dying_at_any_step_changes_nothing(kills: Callable[[str], dict[str, Any]]) -> None:
    outcomes = kills("points")
    assert len(outcomes) >= 25
    assert {label: outcome for label, outcome in outcomes.items() if outcome != "same"} == {}


def test_being_killed_at_any_moment_changes_nothing(kills: Callable[[str], dict[str, Any]]) -> None:
    found = kills("random")
    assert len(found["phases"]) >= 20
    assert len(set(found["phases"])) >= 4, "they are spread over the preparation"
    assert all(found["same"])
    assert found["longest_survivor"] < 30
