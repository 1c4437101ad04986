"""A bank of generated faces to start a search from (Vendrow & Singhal 2019, section 4.2).

Latents are drawn, their faces made and embedded beforehand: the nearest face to any target is then found in a moment,
where a search from nothing spends most of its budget.

A bank is a folder: `bank.json` says how it was made and how many faces it has; `00000.latents.npy` (N, L) and
`00000.embeddings.npy` (N, D) hold its first shard, and so on. They are read through memory maps.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from idface.files import whole_file
from idface.latent.generators import Generator
from idface.latent.scoring import Scorer
from idface.recognition.base import Recognizer

STARTS = 64
"""Faces of a bank that a search is given to start from."""

FORMAT = 1
MANIFEST = "bank.json"
SHARD = 4096
"""Faces a shard. What a build loses when it is killed is less than one."""

_TARGETS_AT_ONCE = 1024  # their products with a shard take 16 MB
_KINDS = ("latents", "embeddings")
_TARGET_NUMBER = -1  # where shards count from 0


@dataclass(frozen=True)
class BankSettings:
    """What decides a bank's content; a bank goes on, and grows, with the same.

    Attributes:
        generator: the generator's fingerprint.
        recognizer: the recogniser's name.
        recognizer_weights: its fingerprint.
        latent_dim: length L of a latent.
        embedding_dim: length D of an embedding.
        seed: of the latents.
        truncation: factor that draws latents towards the origin.
        dtype: what is stored, "float32" or "float16".
        precision: that the faces were made and embedded in, "float32" or "bfloat16".
        shard_size: faces a shard, but in the last.
    """

    generator: str
    recognizer: str
    recognizer_weights: str
    latent_dim: int
    embedding_dim: int
    seed: int
    truncation: float
    dtype: str
    precision: str
    shard_size: int

    @classmethod
    def of(cls, scorer: Scorer, seed: int, truncation: float, half: bool, shard_size: int) -> Self:
        """Those of a bank that `scorer` makes."""
        generator, recognizer = scorer.generator, scorer.recognizer
        return cls(
            generator.fingerprint(),
            recognizer.name,
            recognizer.fingerprint(),
            generator.latent_dim,
            recognizer.embedding_dim,
            seed,
            truncation,
            "float16" if half else "float32",
            scorer.precision,
            shard_size,
        )

    @property
    def bytes_a_face(self) -> int:
        """Bytes that a face takes on the disk."""
        return (self.latent_dim + self.embedding_dim) * np.dtype(self.dtype).itemsize


def build_bank(
    out: Path,
    scorer: Scorer,
    size: int,
    *,
    seed: int = 0,
    truncation: float = 1.0,
    half: bool = False,
    shard_size: int = SHARD,
    progress: Callable[[int], None] = lambda done: None,
) -> "Bank":
    """Make a bank, go on with one that was interrupted, or make one larger.

    It can be killed at any moment: called again with the same arguments it goes on, and what comes out is the same,
    byte for byte, as without the interruption, on one machine. While a bank grows, what it had can be used.

    Args:
        out: the folder to write.
        scorer: holds the generator, and the recogniser that embeds its faces.
        size: faces.
        seed: of the latents; each shard's follow from it and from the shard's number.
        truncation: factor in (0, 1] that draws latents towards the origin.
        half: store float16, half the space. Latents are rounded before their faces are made, so that the two fit.
        shard_size: faces a shard.
        progress: told how many faces there are, those of earlier calls included, whenever there are more.

    Returns:
        The bank; what was there already, if it had that size.

    Raises:
        ValueError: an argument is out of range; the folder holds other things, a bank that was made in another way or a
            larger one; a shard is damaged; or an embedding is not finite.
        NotADirectoryError: `out` is a file.
        OSError: the disk has too little space.
        BlockingIOError: another build of this bank is running.
    """
    for name, value in (("size", size), ("shard_size", shard_size)):
        if value < 1:
            raise ValueError(f"{name} is {value}, expected 1 or more")
    if not 0 < truncation <= 1:
        raise ValueError(f"truncation is {truncation}, expected more than 0, and 1 at most")
    settings = BankSettings.of(scorer, seed, truncation, half, shard_size)
    _check_folder(out)
    try:
        with FileLock(out / ".lock", timeout=0):
            if not (out / MANIFEST).exists():
                _write_manifest(out, 0, settings)
            before, had = _read_manifest(out)
            _check_same(out, before, settings)
            if size < had:
                raise ValueError(
                    f"'{out}' holds {had:,} faces, and a bank only grows: {size:,} need a folder of theirs"
                )
            _make_shards(_Shards(out, settings), scorer, size, progress)
            if size > had:
                _write_manifest(out, size, settings)
            for file in out.glob(".*.unfinished"):  # of a larger bank that was given up
                file.unlink()
    except Timeout:
        raise BlockingIOError(f"another build of '{out}' is running: wait for it, or give another folder") from None
    return Bank(out)


class Bank:
    """Generated faces by their embeddings, on disk.

    Args:
        folder: where `build_bank` has written it.

    Raises:
        FileNotFoundError: there is no bank.
        ValueError: it is not finished, of another format, or a shard is damaged or gone; names the file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.settings, self._size = _read_manifest(self.folder)
        if not self._size:
            raise ValueError(f"the bank '{folder}' is not finished: the command that began it goes on from there")
        self._shards = _Shards(self.folder, self.settings)
        for number, wanted in self._shards.sizes(self._size):
            if (found := self._shards.rows(number)) < wanted:
                raise ValueError(
                    f"the bank '{folder}' has {found:,} of the {wanted:,} faces that belong into "
                    f"'{self._shards.file(number, 'embeddings').name}' and its latents: the command that built it "
                    "makes them again"
                )

    def __len__(self) -> int:
        return self._size

    def check(self, generator: Generator, recognizer: Recognizer) -> None:
        """See that it is of this generator's faces, embedded by this recogniser.

        Raises:
            ValueError: it is not; says of what it is.
        """
        if generator.fingerprint() != self.settings.generator:
            raise ValueError(
                f"the bank '{self.folder}' is of another generator ({self.settings.generator}, this is "
                f"{generator.fingerprint()}): give the checkpoint that it was built with, or build one of this"
            )
        if recognizer.fingerprint() != self.settings.recognizer_weights:
            raise ValueError(
                f"the bank '{self.folder}' was embedded by another recogniser ({self.settings.recognizer} "
                f"{self.settings.recognizer_weights}, this is {recognizer.name} {recognizer.fingerprint()}): give that "
                "one, or build a bank with this"
            )

    def nearest(self, embeddings: Tensor, k: int = 1, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The faces nearest to each target, exactly: one matrix product a shard, and the best so far.

        Args:
            embeddings: (T, D) targets: unit embeddings, or means of several, whose distance is then the mean squared
                distance from those. The work is done on their device.
            k: faces a target, at most as many as there are.
            exclude: int64 (T,) or (T, E) rows that do not count for each target, such as the target's own; -1 for none.

        Returns:
            Squared distances `2 - 2 e.m`, float32 (T, k), ascending, and rows, int64 (T, k), both on that device.

        Raises:
            ValueError: wrong shapes, or fewer than k faces.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != self.settings.embedding_dim:
            raise ValueError(f"targets are {tuple(embeddings.shape)}, expected (T, {self.settings.embedding_dim})")
        count = len(embeddings)
        excluded = torch.empty(count, 0, dtype=torch.int64) if exclude is None else exclude
        excluded = excluded[:, None] if excluded.ndim == 1 else excluded
        if excluded.ndim != 2 or len(excluded) != count:
            raise ValueError(f"exclude is {tuple(excluded.shape)}, expected ({count},) or ({count}, E)")
        if not 1 <= k <= self._size - excluded.shape[1]:
            raise ValueError(f"k is {k}, expected between 1 and the bank's {self._size:,} faces less those excluded")
        targets = embeddings.float().split(_TARGETS_AT_ONCE)
        skipped = excluded.to(embeddings.device).split(_TARGETS_AT_ONCE)
        parts = [self._nearest(some, k, rows) for some, rows in zip(targets, skipped, strict=True)]
        return torch.cat([distances for distances, _ in parts]), torch.cat([rows for _, rows in parts])

    def starts(self, people: Tensor) -> Tensor:
        """Where a search for people may start: latents (T, K, L) of the nearest faces to each of (T, D), nearest first.

        K is STARTS, or the bank's size if that is less.
        """
        _, rows = self.nearest(people, k=min(STARTS, len(self)))
        return self.latents(rows)

    def latents(self, rows: Tensor) -> Tensor:
        """Latents of faces by their rows.

        Args:
            rows: int64 (...), each at least 0 and less than the bank's size.

        Returns:
            (..., L) float32 on the CPU.

        Raises:
            IndexError: there is no such row.
        """
        flat = rows.cpu().flatten()
        if len(flat) and not (flat.min() >= 0 and flat.max() < self._size):
            raise IndexError(f"rows are {flat.min()} to {flat.max()}, expected 0 to {self._size - 1}")
        found = torch.empty(len(flat), self.settings.latent_dim)
        shards = flat // self.settings.shard_size
        for number in shards.unique().tolist():
            here = shards == number
            found[here] = self._shards.open(number, "latents")[flat[here] % self.settings.shard_size].float()
        return found.view(*rows.shape, self.settings.latent_dim)

    def _nearest(self, targets: Tensor, k: int, excluded: Tensor) -> tuple[Tensor, Tensor]:
        cosines = targets.new_full((len(targets), 0), 0.0)
        rows = torch.empty_like(cosines, dtype=torch.int64)
        first = 0
        for number, size in self._shards.sizes(self._size):
            shard = self._shards.open(number, "embeddings")[:size].to(targets.device).float()
            found = targets @ shard.T  # (T, N)
            target, column = torch.nonzero((excluded >= first) & (excluded < first + size), as_tuple=True)
            found[target, excluded[target, column] - first] = -torch.inf
            best, place = found.topk(min(k, size))
            cosines, order = torch.cat([cosines, best], 1).sort(descending=True, stable=True)
            rows = torch.cat([rows, place + first], 1).gather(1, order)[:, :k]
            cosines = cosines[:, :k]
            first += size
        return 2 - 2 * cosines, rows


class Statistics(NamedTuple):
    """Of the best distances of some targets, a row of Vendrow & Singhal's table (section 5.2).

    Attributes:
        targets: how many.
        mean, median: what they say.
        std: standard deviation of the sample.
    """

    targets: int
    mean: float
    median: float
    std: float

    @classmethod
    def of(cls, distances: Tensor) -> Self:
        """Those of distances (N,), of which there must be two."""
        values = distances.double().cpu().numpy()
        return cls(len(values), float(values.mean()), float(np.median(values)), float(values.std(ddof=1)))


def fresh_latents(bank: Bank, generator: Generator, count: int) -> Tensor:
    """Latents (count, L) float32, drawn as the bank's were but none of them: targets to measure the bank with."""
    noise = _noise(bank.settings.seed, _TARGET_NUMBER)
    return generator.sample(count, noise, bank.settings.truncation)


class _Shards(NamedTuple):
    """The files of a bank."""

    folder: Path
    settings: BankSettings

    def sizes(self, size: int) -> Iterator[tuple[int, int]]:
        """Number and faces of each shard of a bank of `size` faces."""
        step = self.settings.shard_size
        return ((number, min(step, size - number * step)) for number in range(-(-size // step)))

    def file(self, number: int, kind: str) -> Path:
        """The file of a shard's "latents" or "embeddings"."""
        return self.folder / f"{number:05d}.{kind}.npy"

    def rows(self, number: int) -> int:
        """Faces that a shard has so far."""
        return min(len(self.open(number, kind)) if self.file(number, kind).exists() else 0 for kind in _KINDS)

    def open(self, number: int, kind: str) -> Tensor:
        """A shard's latents (N, L) or embeddings (N, D), memory-mapped, as they are stored."""
        file = self.file(number, kind)
        try:
            array = np.load(file, mmap_mode="c")  # "c": a tensor must be writable; what is written stays in memory
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(_damaged(file, str(error))) from error
        width = getattr(self.settings, f"{kind.removesuffix('s')}_dim")
        if array.ndim != 2 or array.shape[1] != width or array.dtype != self.settings.dtype:
            raise ValueError(_damaged(file, f"it holds {array.dtype} {array.shape}, expected (N, {width})"))
        return torch.from_numpy(array)

    def write(self, number: int, kind: str, values: Tensor) -> None:
        """Write a shard's latents or embeddings; the file is there whole or not at all."""
        with whole_file(self.file(number, kind)) as unfinished, unfinished.open("wb") as file:
            np.save(file, values.numpy())


def _make_shards(shards: _Shards, scorer: Scorer, size: int, progress: Callable[[int], None]) -> None:
    """Make what is missing of the shards of a bank of `size` faces."""
    rows = [shards.rows(number) for number, _ in shards.sizes(size)]
    missing = [max(0, wanted - there) for (_, wanted), there in zip(shards.sizes(size), rows, strict=True)]
    done = size - sum(missing)
    needed, free = sum(missing) * shards.settings.bytes_a_face, shutil.disk_usage(shards.folder).free
    if needed > free:
        raise OSError(
            f"'{shards.folder}' needs {needed / 2**20:,.0f} MiB more, and its disk has {free / 2**20:,.0f}: make room, "
            "give another folder, or store float16"
        )
    progress(done)
    for number, wanted in shards.sizes(size):
        if missing[number]:
            for made in _make_shard(shards, scorer, number, wanted, rows[number]):
                progress(done + made)
            done += missing[number]


def _make_shard(shards: _Shards, scorer: Scorer, number: int, wanted: int, there: int) -> Iterator[int]:
    """Make a shard of `wanted` faces, or the rest of one that has some; yields how many it has made so far."""
    settings = shards.settings
    dtype: torch.dtype = getattr(torch, settings.dtype)
    # All of a shard's latents are drawn, whatever is wanted of them: fewer need not be the first ones of more.
    latents = scorer.generator.sample(settings.shard_size, _noise(settings.seed, number), settings.truncation)
    latents = latents[:wanted].to(dtype)
    # Goes on where a batch of the scorer begins: a face's last digits may depend on its place in the batch.
    kept = there - there % scorer.batch_size
    embeddings = torch.empty(wanted, settings.embedding_dim, dtype=dtype)
    if kept:
        latents[:kept] = shards.open(number, "latents")[:kept]
        embeddings[:kept] = shards.open(number, "embeddings")[:kept]
    for start in range(kept, wanted, scorer.batch_size):
        end = min(start + scorer.batch_size, wanted)
        embeddings[start:end] = scorer.embed(latents[start:end].float()).cpu()
        yield max(0, end - there)
    if not embeddings.isfinite().all():
        raise ValueError(
            f"{(~embeddings.isfinite().all(1)).sum():,} of {wanted:,} faces have an embedding that is not finite: the "
            "generator is of no use, or not in this precision"
        )
    shards.write(number, "latents", latents)  # first: a shard has the faces whose embeddings are there
    shards.write(number, "embeddings", embeddings)


def _noise(seed: int, number: int) -> torch.Generator:
    """Random numbers for one shard of one seed.

    Of a seed PyTorch's generator for the CPU takes 32 bits. So no two shards of a bank share theirs.
    """
    start = int.from_bytes(sha256(str(seed).encode()).digest()[:4])
    return torch.Generator().manual_seed((start + number) % 2**32)


def _check_folder(out: Path) -> None:
    """Make the folder, if it is not a bank's or empty."""
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"'{out}' is a file: give a folder")
    if out.is_dir() and not (out / MANIFEST).exists():
        there = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
        if there:
            raise ValueError(f"'{out}' holds {len(there)} other files, {there[0]} among them: give a new folder")
    out.mkdir(parents=True, exist_ok=True)


def _check_same(out: Path, before: BankSettings, asked: BankSettings) -> None:
    now = asdict(asked)
    differing = [f"{key} was {value}, now {now[key]}" for key, value in asdict(before).items() if value != now[key]]
    if differing:
        raise ValueError(
            f"'{out}' holds a bank that was made in another way ({'; '.join(differing)}): give what it was begun with, "
            "or another folder"
        )


def _read_manifest(folder: Path) -> tuple[BankSettings, int]:
    """How a bank was made, and how many faces it has; none if it is not finished."""
    file = folder / MANIFEST
    if not file.is_file():
        raise FileNotFoundError(f"there is no bank in '{folder}' (no {MANIFEST}): `idface bank build` makes one")
    try:
        content: dict[str, Any] = json.loads(file.read_text("utf-8"))
        version, size = content.pop("format"), int(content.pop("size"))
        if version != FORMAT:
            raise ValueError(f"it is of format {version}, this program reads {FORMAT}")
        return BankSettings(**content), size
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"'{file}' cannot be read as a bank's manifest ({error}): build the bank anew") from error


def _write_manifest(folder: Path, size: int, settings: BankSettings) -> None:
    content = {"format": FORMAT, "size": size, **asdict(settings)}
    with whole_file(folder / MANIFEST) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def _damaged(file: Path, reason: str) -> str:
    return f"'{file}' is damaged ({reason}): delete it, and the command that built the bank makes it again"
