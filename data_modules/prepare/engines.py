"""Where chunks of photos are worked on: in processes of this machine, or on a Ray cluster."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for_any
from typing import Any

import cv2
import torch

from data_modules.photos import PhotoError
from data_modules.prepare.worker import Chunk, FaceWorker, join_results, rejected_result

Engine = Callable[[FaceWorker, Iterable[Chunk], int], Iterator[tuple[int, bytes]]]
"""Runs a worker over chunks with so many processes; yields the number of each chunk and its result, in any order."""

CRASHED = "reading it or looking for a face in it crashes the process"


def run_locally(worker: FaceWorker, chunks: Iterable[Chunk], workers: int) -> Iterator[tuple[int, bytes]]:
    """Work on chunks in processes of this machine, with one thread each.

    A process that dies takes no other photo with it: its chunk is tried again alone, then photo by photo.
    """
    doubtful: list[Chunk] = []
    chunks = iter(chunks)
    while True:
        try:
            yield from _run_pool(worker, chunks, workers, doubtful)
        except BrokenProcessPool:
            for chunk in doubtful:
                yield chunk.number, _run_alone(worker, chunk)
            doubtful.clear()
        else:
            return


def _run_pool(
    worker: FaceWorker, chunks: Iterator[Chunk], workers: int, running: list[Chunk]
) -> Iterator[tuple[int, bytes]]:
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
            pool.shutdown(wait=False, cancel_futures=True)


def _run_alone(worker: FaceWorker, chunk: Chunk) -> bytes:
    """Work on a chunk after a process died, perhaps of it."""
    try:
        with _pool(worker, 1) as pool:
            return pool.submit(_work, chunk).result()
    except BrokenProcessPool:
        if len(chunk.photos) == 1:
            return rejected_result(PhotoError(CRASHED))
        return join_results(_run_alone(worker, chunk._replace(photos=[photo])) for photo in chunk.photos)


def _pool(worker: FaceWorker, workers: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # imports once, not once a process
    return ProcessPoolExecutor(workers, context, _start, (worker,))


_worker: FaceWorker


def _start(worker: FaceWorker) -> None:
    """Make this process a worker: with one thread, for as many processes run as there are cores."""
    global _worker
    one_thread()
    _worker = worker
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        wait_for_any([parent.sentinel])
        os._exit(1)  # killed, the parent could not say so

    threading.Thread(target=follow, daemon=True).start()


def _work(chunk: Chunk) -> bytes:
    return _worker(chunk)


def one_thread() -> None:
    """Keep PyTorch and OpenCV from starting threads of their own."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def run_on_ray(worker: FaceWorker, chunks: Iterable[Chunk], workers: int) -> Iterator[tuple[int, bytes]]:
    """Work on chunks with Ray Data: on the cluster that RAY_ADDRESS names, or on a local one.

    Every node must see the photos under the same paths.

    Raises:
        ImportError: Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError('--engine ray needs Ray: pip install "idface[ray]"') from error
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    chunks = list(chunks)
    if not chunks:
        return
    done = ray.data.from_items([{"chunk": chunk} for chunk in chunks], override_num_blocks=len(chunks)).map(
        _RayWorker,  # type: ignore[arg-type]  # a class is made once a process
        fn_constructor_args=(worker,),
        concurrency=(1, workers),
        num_cpus=1,
        num_gpus=1 / workers if worker.device == "cuda" else 0,
    )
    for row in done.iter_rows():
        yield row["number"], row["result"]


class _RayWorker:
    def __init__(self, worker: FaceWorker) -> None:
        one_thread()
        self.worker = worker

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"number": row["chunk"].number, "result": self.worker(row["chunk"])}


ENGINES: dict[str, Engine] = {"local": run_locally, "ray": run_on_ray}
