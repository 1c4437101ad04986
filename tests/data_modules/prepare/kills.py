"""Kills preparations, and says what became of them: run as a script, with what to kill as its argument.

It imports once and forks a process an attempt: starting Python and PyTorch anew each time would take minutes.
"""

import json
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import facenet_pytorch  # noqa: F401
import pandas  # noqa: F401  # pyarrow imports it when it first makes an array
import torch

import data_modules.folder  # noqa: F401  # once, not in every child; so are the others that are not used here
import data_modules.prepare.engines as engines
import data_modules.prepare.journal as journal
import data_modules.prepare.run as run
import data_modules.prepare.shards as shards
import data_modules.prepare.sheets as sheets
import idface.recognition.alignment  # noqa: F401
from data_modules.prepare.worker import FaceWorker
from idface.cli import main
from tests.data_modules.prepare.helpers import centre_face, contents, in_process

CHUNK, SHARD = 4, 8
DEAD = 17
"""Exit status of a process that died where it was told to."""


def attempt(source: Path, out: Path, before: Callable[[], None]) -> int:
    """Start `idface prepare` in a process of its own, and session; gives its id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setsid()
        log = os.open(out.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        run.CHUNK = CHUNK
        prepare = run.prepare
        run.prepare = lambda *args, **options: prepare(*args, **options, shard_size=SHARD)  # type: ignore[assignment]
        before()
        main(["prepare", "--data", "folder", "--root", str(source), "--out", str(out), "--size", "48", "--workers=2"])
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def survivors(session: int) -> list[int]:
    """The processes of a session that are not dead."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, _, its_session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            except OSError:  # gone meanwhile
                continue
            if int(its_session) == session and state not in "ZX":
                found.append(int(entry.name))
    return found


def bury(session: int) -> float:
    """Wait until nothing of a session is left; gives the seconds."""
    start = time.monotonic()
    while left := survivors(session):
        if time.monotonic() - start > 30:
            for process in left:
                os.kill(process, signal.SIGKILL)
            return float("inf")
        time.sleep(0.01)
    return time.monotonic() - start


def phase(out: Path) -> str:
    """How far a preparation is that was killed."""
    if (out / "manifest.json").exists():
        return "cleaning up" if (out / ".work").exists() else "done"
    file = out / ".work" / "journal.sqlite"
    if not file.exists():
        return "beginning"
    if list(out.glob(".*.unfinished")) or (out / "index.parquet").exists():
        return "finishing"
    if list(out.glob("shards/.*.unfinished")):
        return "writing a shard"
    database = sqlite3.connect(f"file:{file}?immutable=0", uri=True)
    try:
        results, written = (
            database.execute(f"SELECT count(*) FROM {each}").fetchone()[0] for each in ("results", "shards")
        )
    except sqlite3.OperationalError:
        return "beginning"
    finally:
        database.close()
    return f"{written} shards, some chunks" if results else f"{written} shards"


def kill_at_random(source: Path, folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill the one process that a user would kill, at any moment, until enough have died; the others must follow."""
    fork = multiprocessing.get_context("fork")  # the children are to need no imports

    def before() -> None:
        engines.multiprocessing.get_context = lambda _: fork  # type: ignore[attr-defined]
        torch.set_num_threads(1)
        cv2.setNumThreads(0)

    def whole(out: Path) -> float:
        start = time.monotonic()
        child = attempt(source, out, before)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, out.with_suffix(".log").read_text()
        bury(child)
        return time.monotonic() - start

    reference = folder / "reference"
    duration = whole(reference)
    expected = contents(reference)
    draw = random.Random(seed)
    phases: list[str] = []
    waits: list[float] = []
    same: list[bool] = []
    while len(phases) < kills:
        out = folder / f"killed_{len(same)}"
        while True:
            child = attempt(source, out, before)
            deadline = time.monotonic() + draw.uniform(0.05, 0.9) * duration
            while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
                time.sleep(0.002)
            if ended[0]:
                assert os.waitstatus_to_exitcode(ended[1]) == 0, out.with_suffix(".log").read_text()
                bury(child)
                break
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            phases.append(phase(out))
            waits.append(bury(child))
        same.append(contents(out) == expected)
        shutil.rmtree(out)
    return {"duration": duration, "phases": phases, "longest_survivor": max(waits), "same": same}


POINTS: list[tuple[Any, str, dict[int, str]]] = [
    (journal.Journal, "note", {1: "before", 2: "before"}),
    (journal.Journal, "plan", {1: "after"}),
    (journal.Journal, "keep", {1: "after", 3: "before"}),
    (journal.Journal, "reject", {2: "after"}),
    (shards.ShardWriter, "add", {2: "after"}),
    (journal.Journal, "keep_shard", {1: "before after"}),
    (journal.Journal, "forget", {2: "after"}),
    (run._Preparation, "_make_shard", {1: "after", 3: "after"}),
    # Shards 1 to 3, index, rejected.csv, two sheets, README, manifest.
    (shards, "put_in_place", {call: "before after" if call in (1, 4, 9) else "before" for call in (1, *range(3, 10))}),
    (run.shutil, "rmtree", {1: "before after"}),
]
"""Where to die: the function, in which call of it, and whether before it or after."""


def die_at(owner: Any, name: str, call: int, when: str, quick: Callable[[], None]) -> None:
    """See that this process dies in a call of a function."""
    quick()
    function = getattr(owner, name)
    calls = 0

    def dying(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and when == "before":
            os._exit(DEAD)
        result = function(*args, **options)
        if calls == call:
            os._exit(DEAD)
        return result

    setattr(owner, name, dying)


def kill_at_points(source: Path, folder: Path) -> dict[str, Any]:
    """Die at each step, go on, and see whether the end is the same."""

    def quick() -> None:
        FaceWorker._detect = lambda self, images: [centre_face(image) for image in images]  # type: ignore[method-assign]
        engines.ENGINES["local"] = in_process
        sheets._TILE, sheets._FACE = 48, 32  # drawing them large is most of the time
        torch.set_num_threads(1)
        cv2.setNumThreads(0)

    def status(child: int) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    reference = folder / "reference"
    assert status(attempt(source, reference, quick)) == 0, reference.with_suffix(".log").read_text()
    expected = contents(reference)
    outcomes = {}
    points = [
        (owner, name, call, when) for owner, name, calls in POINTS for call in calls for when in calls[call].split()
    ]
    for owner, name, call, when in points:
        before = partial(die_at, owner, name, call, when, quick)
        out = folder / "out"
        first = status(attempt(source, out, before))
        second = status(attempt(source, out, quick))
        label = f"{when} {name}, call {call}"
        if (first, second) != (DEAD, 0):
            outcomes[label] = f"exit {first}, then {second}: {out.with_suffix('.log').read_text()[-2000:]}"
        else:
            outcomes[label] = "same" if contents(out) == expected else "differs"
        shutil.rmtree(out)
        out.with_suffix(".log").unlink()
    return outcomes


if __name__ == "__main__":
    kind, source, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    folder.mkdir()
    result = kill_at_points(source, folder) if kind == "points" else kill_at_random(source, folder, 20, seed=0)
    print(json.dumps(result))
