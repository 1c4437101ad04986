"""Prepared sets: on disk, behind addresses, damaged and unfinished."""

import http.server
import json
import pickle
import shutil
import socketserver
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from data_modules import prepared as module
from data_modules.base import FaceDataModule
from data_modules.celeba import CelebADataModule
from data_modules.folder import FaceFolderDataModule
from data_modules.orl import ORLDataModule
from data_modules.photos import Hint, Photo, PhotoError
from data_modules.prepare import run
from data_modules.prepare.align import AlignedReader
from data_modules.prepare.worker import FaceWorker, Settings, encode
from data_modules.prepared import Picture, PreparedDataModule
from data_modules.utkface import UTKFaceDataModule
from idface.cli import main
from idface.recognition.alignment import similarity_transform
from tests.data_modules.contract import DataModuleContract, Make, same
from tests.data_modules.prepare.helpers import centre_face, in_process
from tests.data_modules.test_celeba import COLUMNS, PART, published  # noqa: F401  # a fixture
from tests.data_modules.test_utkface import ODD_NAMES
from tests.data_modules.test_utkface import folder as utkface  # noqa: F401  # a fixture
from tests.data_modules.test_utkface import put as put_utkface


class KnownFaces(FaceFolderDataModule):
    """The folder `face_folder`, with ORL's landmarks: nothing is looked for."""

    def hints(self, photos: Sequence[Photo]) -> dict[str, Hint]:
        return {photo.name: Hint(landmarks_of(photo.name).tolist()) for photo in photos}


def landmarks_of(name: str) -> np.ndarray:
    orl = ORLDataModule()
    reader = orl.reader([])
    assert isinstance(reader, AlignedReader)
    return reader.landmarks[name.replace("person_", "s").replace(".png", ".pgm")]


def prepare(open_set: Callable[[Path], FaceDataModule], root: Path, out: Path, shard: int = 8, **settings: Any) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "CHUNK", shard)
        options = {"engine": in_process, "shard_size": shard, "device": "cpu"}
        run.prepare(open_set, root, "test", out, Settings(**{"size": 32, "encoding": "png", **settings}), **options)
    return out


@pytest.fixture(scope="module")
def faces(face_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 faces of six people in three shards. Do not write to it."""
    return prepare(KnownFaces, face_folder, tmp_path_factory.mktemp("prepared") / "faces")


@pytest.fixture
def make(faces: Path) -> Callable[..., PreparedDataModule]:
    def make(root: Path | str = faces, **options: Any) -> PreparedDataModule:
        own = {"image_size": 32, "batch_size": 4, "val_identities": 2, "test_identities": 2}
        return PreparedDataModule(str(root), **{**own, **options})

    return make


class TestPrepared(DataModuleContract):
    @pytest.fixture(scope="class")
    def one_a_shard(self, face_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A shard a face: the contract tells photos by their files."""
        return prepare(KnownFaces, face_folder, tmp_path_factory.mktemp("one") / "faces", shard=1)

    @pytest.fixture
    def make(self, one_a_shard: Path) -> Make:
        rows = pq.read_table(one_a_shard / "index.parquet").to_pylist()
        self.people = {f"{row['shard']:05d}.parquet": row["name"].partition("/")[0] for row in rows}

        def make(**options: Any) -> PreparedDataModule:
            own = {"image_size": 32, "val_identities": 2, "test_identities": 2}
            return PreparedDataModule(str(one_a_shard), **{**own, **options})

        return make

    def person_of(self, path: Path) -> str:
        return self.people[path.name]


@pytest.mark.parametrize(
    ("size", "margin", "image_size"), [(64, 0.0, 64), (96, 0.0, 32), (90, 0.25, 60), (100, 0.2, 40), (93, 0.31, 32)]
)
def test_pictures_and_landmarks_are_those_of_the_frame(
    face_folder: Path, tmp_path: Path, size: int, margin: float, image_size: int
) -> None:
    out = prepare(KnownFaces, face_folder, tmp_path / "out", size=size, margin=margin)
    data = PreparedDataModule(str(out), image_size=image_size)
    read = data.reader(data.photos)
    listed = FaceFolderDataModule(face_folder).list_photos()
    originals = {photo.name: photo for photo in listed if isinstance(photo, Photo)}
    points = {name: landmarks_of(name) for name in originals}
    expected = AlignedReader(points, image_size)
    for photo in data.photos[::3]:
        difference = np.abs(read(photo).astype(float) - expected(originals[photo.name]))
        assert difference.mean() < (0.01 if (size, margin) == (image_size, 0) else 4)
    found = data.labels(data.photos)["landmarks"]
    assert found.dtype == torch.float32
    for photo, mine in zip(data.photos, found.numpy(), strict=True):
        matrix = similarity_transform(points[photo.name], image_size)
        assert np.abs(mine - (points[photo.name] @ matrix[:, :2].T + matrix[:, 2])).max() < 0.01


def test_any_margin_can_be_cut_off() -> None:
    rng = np.random.default_rng(0)
    for stored in (16, 63, 64, 129):
        content = encode(rng.integers(0, 255, (stored, stored, 3), np.uint8), Settings(encoding="png"))
        for margin in np.linspace(0, 2, 41):
            frame = Picture(stored, float(margin), 1).frame
            for size in {1, int(frame), int(frame + 0.5)} - {0}:
                assert Picture(stored, float(margin), size).decode(content).shape == (size, size, 3)


@pytest.mark.parametrize(("margin", "largest"), [(0.0, 32), (0.25, 21)])
def test_a_larger_image_than_was_prepared_is_refused(
    face_folder: Path, tmp_path: Path, margin: float, largest: int
) -> None:
    out = prepare(KnownFaces, face_folder, tmp_path / "out", margin=margin)
    data = PreparedDataModule(str(out), image_size=largest, batch_size=2)
    assert next(iter(data.train_dataloader()))["image"].shape[-1] == largest
    with pytest.raises(ValueError, match=rf"is {largest + 1}, but .* at 32 pixels.*: give {largest} or less"):
        _ = PreparedDataModule(str(out), image_size=largest + 1).photos


def test_workers_change_nothing(make: Make) -> None:
    expected = list(make().train_dataloader())
    assert "landmarks" in expected[0]
    for options in ({"memory_limit": 0}, {"memory_limit": 0, "num_workers": 2}):
        data = pickle.loads(pickle.dumps(make(**options)))
        batches = list(data.train_dataloader())
        assert len(batches) == len(expected)
        assert all(map(same, batches, expected))
        data.teardown("fit")


# What sets say of their photos.


def test_celebas_labels_and_split(published: Path, tmp_path: Path) -> None:  # noqa: F811
    own = CelebADataModule(published, cache_dir=tmp_path, image_size=32)
    data = PreparedDataModule(str(prepare(CelebADataModule, published, tmp_path / "out")), image_size=32)
    assert data.attribute_names == COLUMNS
    assert {photo.name for photo in data.photos} == {photo.name for photo in own.photos}
    photos = sorted(own.photos)
    labels, mine = own.labels(photos), data.labels(sorted(data.photos))
    assert mine.keys() == labels.keys() | {"landmarks"}
    for key, column in labels.items():
        assert mine[key].dtype == torch.float32
        assert torch.equal(mine[key], column)
    rows = pq.read_table(tmp_path / "out" / "index.parquet").to_pylist()
    assert [row["partition"] for row in rows] == [("train", "val", "test")[PART[row["name"][0]]] for row in rows]
    assert data.partition(data.photos) == own.partition(own.photos)
    assert data.identity_names == own.identity_names
    assert data.licence == CelebADataModule.licence
    free = PreparedDataModule(str(tmp_path / "out"), image_size=32, official_split=False, val_identities=3)
    assert free.partition(free.photos) == {}


def test_unknown_labels_are_null(utkface: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    for number, name in enumerate(ODD_NAMES):
        put_utkface(31, number + 1, utkface / name)
    monkeypatch.setattr(FaceWorker, "_detect", lambda self, images: [centre_face(image) for image in images])
    out = prepare(UTKFaceDataModule, utkface, tmp_path / "out")
    rows = {row["name"]: row for row in pq.read_table(out / "index.parquet").to_pylist()}
    for name, (age, sex) in ODD_NAMES.items():
        assert rows[name]["age"] == age
        assert rows[name]["sex"] == (None if np.isnan(sex) else sex)
    assert {row["person"] for row in rows.values()} == {None}
    data = PreparedDataModule(str(out), image_size=32, batch_size=4, val_identities=0.2, test_identities=0.3)
    found = data.labels(data.photos)
    assert torch.isnan(found["sex"]).sum() == 1
    assert data.num_identities == 0
    uses = [data.split.train, data.split.unseen["val"], data.split.unseen["test"]]
    assert min(map(len, uses)) >= 3
    assert sorted(np.concatenate(uses).tolist()) == list(range(48))
    with pytest.raises(ValueError, match="shares of the photos, below 1 together"):
        _ = PreparedDataModule(str(out), image_size=32, val_identities=2, test_identities=0.1).split


def test_unknown_values_of_a_vector_are_null() -> None:
    assert run._label(np.array([1.0, np.nan])) == [1.0, None]
    assert run._label(np.array(np.nan)) is None
    assert run._label(np.array(2.0)) == 2.0


# Behind an address.


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """Serves a folder, with ranges; keeps what was asked for."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.sent: list[tuple[str, int]] = []
        self.failures = 0
        self.ranges = True
        self.address = f"http://127.0.0.1:{self.server_port}/faces"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.server.folder / self.path.removeprefix("/faces/")
        wanted = self.headers.get("Range") if self.server.ranges else None
        if body and wanted and self.server.failures > 0:
            self.server.failures -= 1
            self.send_error(503)
            return
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        whole = len(content)
        self.send_response(206 if wanted else 200)
        if wanted:
            start, end = (int(place) for place in wanted.removeprefix("bytes=").split("-"))
            content = content[start : end + 1]
            self.send_header("Content-Range", f"bytes {start}-{start + len(content) - 1}/{whole}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.server.sent.append((path.name, len(content)))
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(faces: Path, tmp_path: Path) -> Iterator[Server]:
    with Server(Path(shutil.copytree(faces, tmp_path / "served"))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(module.time, "sleep", found.append)
    return found


def test_behind_a_server_only_a_batch_is_fetched(make: Make, server: Server, waits: list[float]) -> None:
    expected = list(make().train_dataloader())
    data = make(server.address, memory_limit=0)
    loader = data.train_dataloader()
    lengths = {photo.name: photo.part.length for photo in data.photos if photo.part}
    server.sent.clear()
    for batch, other in zip(loader, expected, strict=True):
        assert same(batch, other)
        rows = batch["index"].tolist() + batch["partner_index"].tolist()
        sizes = sum(lengths[data.photos[row].name] for row in rows)
        assert sum(size for _, size in server.sent) <= sizes + 64 * len(rows), "pictures, and nothing around them"
        assert len(server.sent) <= len(rows)
        server.sent.clear()
    assert not any(waits)


def test_behind_a_server_a_small_set_is_read_once(make: Make, server: Server) -> None:
    expected = list(make().train_dataloader())
    data = make(server.address)
    batches = list(data.train_dataloader())
    assert all(map(same, batches, expected))
    server.sent.clear()
    assert len(list(data.train_dataloader())) == len(expected)
    assert server.sent == []


def test_behind_a_server_with_workers(make: Make, server: Server) -> None:
    data = make(server.address, memory_limit=0, num_workers=2)
    _ = next(iter(make(server.address, memory_limit=0).train_dataloader()))  # threads in this process, as there may be
    assert all(map(same, data.train_dataloader(), make().train_dataloader()))
    data.teardown("fit")


def test_any_file_system_will_do(make: Make, faces: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(faces), "/faces", recursive=True)
    try:
        for options in ({}, {"memory_limit": 0}):
            data = make("memory://faces", **options)
            assert all(map(same, data.train_dataloader(), make().train_dataloader()))
    finally:
        memory.rm("/faces", recursive=True)


def test_a_server_that_fails_is_asked_again(make: Make, server: Server, waits: list[float]) -> None:
    data = make(server.address, memory_limit=0)
    photos = data.photos
    read = data.reader(photos)
    waits.clear()
    server.failures = len(photos) + 2  # all at first, then two
    assert isinstance(read, module.RemoteReader)
    local = make()
    for mine, photo in zip(read.read_many(photos), local.photos, strict=True):
        assert not isinstance(mine, PhotoError)
        assert np.array_equal(mine, local.reader(local.photos)(photo))
    assert waits == [0, 1, 4]


def test_a_shard_that_is_gone_is_an_error(make: Make, server: Server, waits: list[float]) -> None:
    (server.folder / "shards" / "00001.parquet").unlink()
    data = make(server.address)
    with pytest.raises(OSError, match=r"00001\.parquet.* cannot be fetched"):
        data.train_dataloader()
    assert waits[-1] == 9


def test_a_server_without_ranges_is_refused_at_once(make: Make, server: Server, waits: list[float]) -> None:
    server.ranges = False
    with pytest.raises(OSError, match=r"root: the server of 'http://.*' sent .* does not grant ranges"):
        make(server.address).train_dataloader()
    assert waits in ([], [0])


def test_a_server_without_the_set(server: Server) -> None:
    with pytest.raises(FileNotFoundError, match=r"root: '.*elsewhere/manifest\.json' cannot be opened"):
        PreparedDataModule(server.address.replace("faces", "elsewhere"))
    with pytest.raises(ValueError, match=r"root: 'nonsense://faces' cannot be opened: .*nonsense"):
        PreparedDataModule("nonsense://faces")
    with pytest.raises(ValueError, match="only a set on disk can be verified"):
        PreparedDataModule(server.address, image_size=32).verify()


# Damaged and unfinished.


@pytest.fixture
def copy(faces: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(faces, tmp_path / "copy"))


def verify(root: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        main(["verify", "--data", "prepared", "--root", str(root)])
    assert exit.value.code == 1
    return capsys.readouterr().out


def test_verify_finds_damage(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["verify", "--data", "prepared", "--root", str(copy)])
    assert "Nothing is missing" in capsys.readouterr().out
    shard = copy / "shards" / "00001.parquet"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    size = f"{len(content):,}"
    expected = f"shards/00001.parquet differs: {size} bytes, expected {size} and their SHA-256.\n"
    assert verify(copy, capsys) == expected
    (copy / "shards" / "00000.parquet").unlink()
    (copy / "rejected.csv").write_text("")
    assert verify(copy, capsys).splitlines() == [
        "shards/00000.parquet is not there.",
        expected.strip(),
        "rejected.csv differs: 0 bytes, expected 20 and their SHA-256.",
    ]


def test_a_missing_shard_is_an_error(copy: Path) -> None:
    (copy / "shards" / "00001.parquet").unlink()
    for memory_limit in (2.0, 0.0):
        data = PreparedDataModule(str(copy), image_size=32, batch_size=2, memory_limit=memory_limit)
        with pytest.raises(OSError, match=r"00001\.parquet.* cannot be read"):
            list(data.train_dataloader())


def test_an_unfinished_set_is_not_opened(faces: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"root: there is no folder '{faces}s'. Did you mean '{faces}'\?"):
        PreparedDataModule(f"{faces}s")
    with pytest.raises(FileNotFoundError, match=r"has no manifest\.json: nothing was prepared"):
        PreparedDataModule(str(tmp_path))
    (tmp_path / "faces").mkdir()
    with pytest.raises(FileNotFoundError, match=r"--data FaceFolderDataModule --data\.root \S*/faces"):
        PreparedDataModule(str(tmp_path))
    (tmp_path / ".work").mkdir()
    with pytest.raises(FileNotFoundError, match="its preparation was not finished: give the same command again"):
        PreparedDataModule(str(tmp_path))


def edit(manifest: dict[str, Any], *keys: str | int, value: Any) -> str:
    inner: Any = manifest
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    return json.dumps(manifest)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda manifest: json.dumps(manifest)[:-20], "is damaged"),
        (lambda manifest: "\udcff", "is damaged"),
        (lambda manifest: "[]", "is of format None, expected 1"),
        (lambda manifest: edit(manifest, "format", value=2), "is of format 2, expected 1"),
        (lambda manifest: edit(manifest, "settings", value={}), "is damaged"),
        (lambda manifest: edit(manifest, "shards", 0, "file", value="../../secret"), "is damaged"),
        (lambda manifest: edit(manifest, "settings", "size", value=10**9), "is damaged"),
    ],
)
def test_a_damaged_manifest(copy: Path, spoil: Callable[[dict[str, Any]], str], message: str) -> None:
    file = copy / "manifest.json"
    file.write_text(spoil(json.loads(file.read_text())), errors="surrogateescape")
    with pytest.raises(ValueError, match=rf"root: '{file}' {message}.*: prepare the set again"):
        PreparedDataModule(str(copy), image_size=32)


def test_a_damaged_index(copy: Path) -> None:
    file = copy / "index.parquet"
    content = file.read_bytes()
    for spoiled in (b"", content[:-10], content[:100] + bytes(4000) + content[4100:], b"PAR1" + bytes(100) + b"PAR1"):
        file.write_bytes(spoiled)
        with pytest.raises(ValueError, match=rf"(?s)root: '{file}' is missing or damaged .*: prepare the set again"):
            _ = PreparedDataModule(str(copy), image_size=32).photos
    file.unlink()
    with pytest.raises(ValueError, match="is missing or damaged"):
        _ = PreparedDataModule(str(copy), image_size=32).photos
    file.write_bytes(content)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(edit(manifest, "shards", value=manifest["shards"][:2]))
    with pytest.raises(ValueError, match=r"names a shard that manifest\.json does not"):
        _ = PreparedDataModule(str(copy), image_size=32).photos


def test_a_prepared_set_is_no_source(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["prepare", "--data", "prepared", "--root", str(faces), "--out", str(tmp_path / "again")])
    assert exit.value.code == 2
    assert "'prepared' is none of celeba" in capsys.readouterr().err
