"""Where chunks of photos are worked on: in processes of this machine, or on a Ray cluster."""

import ctypes
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from itertools import islice
from multiprocessing.connection import wait as wait_for_any
from typing import Any

import cv2
import torch

from data_modules.photos import PhotoError
from data_modules.prepare.worker import Chunk, FaceWorker, join_results, rejected_result

Results = Generator[tuple[int, bytes], None, None]
"""The number of each chunk and what became of it, in any order."""

Engine = Callable[[FaceWorker, Iterable[Chunk], int | None], Results]
"""Runs a worker over chunks with so many processes; None for one a core."""

CRASHED = "reading it or looking for a face in it crashes the process"


def run_locally(worker: FaceWorker, chunks: Iterable[Chunk], workers: int | None = None) -> Results:
    """Work on chunks in processes of this machine, with one thread each.

    A process that dies takes no other photo with it: its chunk is tried again alone, then in parts.

    Raises:
        ChildProcessError: processes die without any photo.
    """
    workers = workers or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()) or 1
    chunks = iter(chunks)
    running: list[Chunk] = []
    while True:
        try:
            yield from _run_pool(worker, chunks, workers, running)
        except BrokenProcessPool:
            for chunk in running:
                yield chunk.number, _run_alone(worker, chunk)
            running.clear()
        else:
            return


def _run_pool(worker: FaceWorker, chunks: Iterator[Chunk], workers: int, running: list[Chunk]) -> Results:
    """Work on chunks in a pool; `running` holds those that are in it, for when it breaks."""
    with _pool(worker, workers) as pool:
        pending: dict[Future[bytes], Chunk] = {}
        try:
            while True:
                while len(pending) < 2 * workers and (chunk := next(chunks, None)) is not None:
                    running.append(chunk)
                    pending[pool.submit(_work, chunk)] = chunk
                if not pending:
                    return
                for done in wait(pending, return_when=FIRST_COMPLETED).done:
                    result = done.result()
                    chunk = pending.pop(done)
                    running.remove(chunk)
                    yield chunk.number, result
        finally:
            pool.shutdown(cancel_futures=True)  # and wait: a process that starts must not find its parent gone


def _run_alone(worker: FaceWorker, chunk: Chunk) -> bytes:
    """Work on a chunk after a process died, perhaps of it."""
    for _ in range(2):  # whoever kills for memory may have picked it by chance
        with suppress(BrokenProcessPool), _pool(worker, 1) as pool:
            return pool.submit(_work, chunk).result()
    try:
        with _pool(worker, 1) as pool:
            pool.submit(_work, Chunk(0, [], {})).result()
    except BrokenProcessPool:
        raise ChildProcessError(
            "processes die before they have seen a photo: is there too little memory? --workers asks for fewer of them"
        ) from None
    half = len(chunk.photos) // 2
    if half == 0:
        return rejected_result(PhotoError(CRASHED))
    parts = (chunk.photos[:half], chunk.photos[half:])
    return join_results(_run_alone(worker, chunk._replace(photos=part)) for part in parts)


def _pool(worker: FaceWorker, workers: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "facenet_pytorch"])  # imports once, not once a process
    return ProcessPoolExecutor(workers, context, _start, (worker,))


_worker: FaceWorker


def _start(worker: FaceWorker) -> None:
    """Make this process a worker: with one thread, for as many processes run as there are cores."""
    global _worker
    one_thread()
    _keep_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    _worker = worker
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        wait_for_any([parent.sentinel])
        os._exit(1)  # killed, the parent could not say so

    threading.Thread(target=follow, daemon=True).start()


def _work(chunk: Chunk) -> bytes:
    return _worker(chunk)


def _keep_memory() -> None:
    """Have freed memory kept for the next tensor, where the C library is glibc: a tenth of the time goes into pages."""
    if hasattr(library := ctypes.CDLL(None), "mallopt"):
        for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            library.mallopt(option, 2**30)


def one_thread() -> None:
    """Keep PyTorch and OpenCV from starting threads of their own."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def run_on_ray(worker: FaceWorker, chunks: Iterable[Chunk], workers: int | None = None) -> Results:
    """Work on chunks with Ray Data: on the cluster that RAY_ADDRESS names, or on a local one.

    Every node must see the photos under the same paths.

    Raises:
        ValueError: Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ValueError('--engine ray needs Ray: pip install "idface[ray]"') from error
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    workers = workers or int(ray.cluster_resources().get("CPU", 1))
    chunks = iter(chunks)
    while some := list(islice(chunks, 16 * max(workers, 16))):  # a plan of all chunks would be held in memory
        done = ray.data.from_items([{"chunk": chunk} for chunk in some], override_num_blocks=len(some)).map(
            _RayWorker,  # type: ignore[arg-type]  # a class is made once a process
            fn_constructor_args=(worker,),
            concurrency=(1, workers),
            num_cpus=1,
            num_gpus=1 / workers if worker.device.startswith("cuda") else 0,
        )
        for row in done.iter_rows():
            yield row["number"], row["result"]


class _RayWorker:
    """Works on chunks in a process beside Ray's own, for Ray would try a photo that kills it again and again."""

    def __init__(self, worker: FaceWorker) -> None:
        self.worker = worker
        self.pool = _pool(worker, 1)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            result = self.pool.submit(_work, row["chunk"]).result()
        except BrokenProcessPool:
            self.pool = _pool(self.worker, 1)
            result = _run_alone(self.worker, row["chunk"])
        return {"number": row["chunk"].number, "result": result}


ENGINES: dict[str, Engine] = {"local": run_locally, "ray": run_on_ray}
