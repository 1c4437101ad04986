"""Archives, well-meant and hostile."""

import bz2
import gzip
import io
import lzma
import os
import random
import shutil
import stat
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from data_modules.prepare import archives
from data_modules.prepare.archives import is_archive, unpack

Files = list[tuple[str, bytes]]
Write = Callable[[Path, Files], None]

LONG = "n" * 255


def write_zip(path: Path, files: Files) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files:
            info = zipfile.ZipInfo("x")
            info.filename = info.orig_filename = name  # the constructor would cut it at a NUL
            info.compress_type = zipfile.ZIP_DEFLATED
            packed.writestr(info, content)


def tar_writer(kind: str, form: int = tarfile.PAX_FORMAT) -> Write:
    def write(path: Path, files: Files) -> None:
        with tarfile.open(path, f"w:{kind}", format=form) as packed:
            for name, content in files:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                packed.addfile(info, io.BytesIO(content))

    return write


WRITERS: dict[str, Write] = {
    "zip": write_zip,
    "tar": tar_writer(""),
    "gnu tar": tar_writer("", tarfile.GNU_FORMAT),
    "tar.gz": tar_writer("gz"),
    "tar.bz2": tar_writer("bz2"),
    "tar.xz": tar_writer("xz"),
}


@pytest.fixture(params=WRITERS)
def write(request: pytest.FixtureRequest) -> Write:
    return WRITERS[request.param]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return tmp_path / "archives" / "set.bin"  # the name tells nothing


@pytest.fixture(autouse=True)
def nothing_outside(tmp_path: Path) -> Iterator[None]:
    """Whatever a test unpacks, nothing lies beside the folder that it unpacks to."""
    (tmp_path / "archives").mkdir()
    yield
    assert {path.name for path in tmp_path.iterdir()} <= {"archives", "out", "elsewhere"}


@contextmanager
def little_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 2**24  # most of it the window of a .tar.xz
    finally:
        tracemalloc.stop()


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def add(path: Path, *infos: tarfile.TarInfo) -> None:
    """A tar of members without content."""
    with tarfile.open(path, "w") as packed:
        for info in infos:
            packed.addfile(info)


def member(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


PHOTOS: Files = [
    ("set/Ann/1.jpg", random.Random(1).randbytes(700_000)),
    ("set/Ann/2.jpg", b"two"),
    ("./set/Bob/1.jpg", b""),
    ("set//Zo\u00eb \u674e/1.jpg", b"four"),
    ("list.txt", b"1.jpg 1\n" * 1000),
    ("inner.zip", b"PK\x05\x06" + bytes(18)),
]


def test_files_come_out_as_they_went_in(write: Write, archive: Path, tmp_path: Path) -> None:
    write(archive, PHOTOS)
    assert is_archive(archive)
    out = tmp_path / "out" / "deep"
    assert unpack(archive, out) == []
    expected = {name.removeprefix("./").replace("//", "/"): content for name, content in PHOTOS}
    assert files(out) == expected
    assert unpack(archive, out) == []  # once more changes nothing
    assert files(out) == expected


def test_what_is_no_archive(archive: Path, tmp_path: Path) -> None:
    for content in (b"", b"P", bytes(5000), b"\xff\xd8\xff\xe0 photo" * 99, b"name\tname\n" * 99):
        archive.write_bytes(content)
        assert not is_archive(archive)
        with pytest.raises(ValueError, match=r"set\.bin' is damaged or cut short .*expected a whole zip or tar"):
            unpack(archive, tmp_path / "out")
    with lzma.open(archive, "w") as file:
        file.write(b"no tar" * 999)
    assert not is_archive(archive)
    assert not is_archive(tmp_path)
    assert not is_archive(tmp_path / "none")


HOSTILE = {
    "/etc/evil": "leads out",
    "../evil": "leads out",
    "a/../../evil": "leads out",
    "..": "leads out",
    "C:/evil": "a drive letter",
    "a/c:evil": "a drive letter",
    "..\\evil": "a backslash",
    "Zo\u00eb\0.jpg": "control characters",
    "a\nb.jpg": "control characters",
    "a\x1b[2J.jpg": "control characters",
    LONG + "n": "too long",
    "\u674e" * 86: "too long",
    "/".join([LONG] * 4) + "/1": "characters, expected 1,024 or fewer",
    "n" * 300_000: "a name of 300,000 characters, expected 1,024 or fewer",
    "d/" * 32 + "1": "33 names to its path",
    ".unpacking": "an earlier member has its name",
    ".Unpacking/1": "a file where its folder should be",
}


@pytest.mark.parametrize("kind", ["zip", "tar", "gnu tar", "tar.xz"])
def test_hostile_names(kind: str, archive: Path, tmp_path: Path) -> None:
    cut_at_nul = kind == "gnu tar"  # so is the format
    names = {
        name: reason
        for name, reason in HOSTILE.items()
        if not (cut_at_nul and "\0" in name) and not (kind == "zip" and len(name) > 2**16)
    }
    WRITERS[kind](archive, [("good", b"1"), *((name, b"evil") for name in names), ("also good", b"2")])
    rejected = unpack(archive, tmp_path / "out")
    assert files(tmp_path / "out") == {"good": b"1", "also good": b"2"}
    assert len(rejected) == len(names)
    for entry, (name, reason) in zip(rejected, names.items(), strict=True):
        assert entry.path == archive
        assert entry.reason.startswith(repr(name[:200])[:200] + ": ")
        assert reason in entry.reason
        assert entry.reason.isprintable()
        assert len(entry.reason) < 300


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_first_of_a_name_wins(write: Write, archive: Path, tmp_path: Path) -> None:
    names = ["Ann/1.jpg", "Ann/1.jpg", "ann/1.JPG", "./Ann//1.jpg", "Ann", "ANN", "Ann/1.jpg/2.jpg", "ann/2.jpg"]
    write(archive, [(name, b"%d" % number) for number, name in enumerate([*names, "Jose\u0301", "Jos\u00e9"])])
    for _ in range(2):
        rejected = unpack(archive, tmp_path / "out")
        assert files(tmp_path / "out") == {"Ann/1.jpg": b"0", "ann/2.jpg": b"7", "Jose\u0301": b"8"}
        reasons = [entry.reason.split(": ")[1] for entry in rejected]
        same = "an earlier member has its name, be it in other capitals"
        folder = "an earlier member has made a folder of its name"
        below = "an earlier member is a file where its folder should be"
        assert reasons == [same, same, same, folder, folder, below, same]


def test_links_and_devices_are_left_out(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    add(
        archive,
        member("good", tarfile.REGTYPE),
        member("out", tarfile.SYMTYPE, str(tmp_path / "elsewhere")),
        member("out/evil", tarfile.REGTYPE),
        member("hard", tarfile.LNKTYPE, "../archives/set.bin"),
        member("device", tarfile.CHRTYPE),
        member("pipe", tarfile.FIFOTYPE),
        member("odd", b"Q"),
        member("folder", tarfile.DIRTYPE),
        member("../folder", tarfile.DIRTYPE),
    )
    assert [entry.reason for entry in unpack(archive, tmp_path / "out")] == [
        "'out': is a link, not a file",
        "'hard': is a link, not a file",
        *(f"'{name}': is a device or of an unknown kind, not a file" for name in ("device", "pipe", "odd")),
    ]
    assert files(tmp_path / "out") == {"good": b"", "out/evil": b""}
    assert not list((tmp_path / "elsewhere").iterdir())


def test_what_stands_in_the_way_is_not_followed(archive: Path, tmp_path: Path) -> None:
    """Links that were in the folder before."""
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    for name in ("a", "b", ".unpacking"):
        (out / name).symlink_to(elsewhere)
    (out / "c").mkdir()
    write_zip(archive, [("a/1", b"evil"), ("b", b"good"), ("c", b"a folder")])
    first, second = unpack(archive, out)
    assert first.reason == f"'a/1': '{out / 'a'}' is in its way"
    assert second.reason == "'c': cannot be written (Is a directory)"
    assert not list(elsewhere.iterdir())
    assert (out / "b").read_bytes() == b"good"
    assert not (out / "b").is_symlink()
    assert {path.name for path in out.iterdir()} == {"a", "b", "c"}


def test_special_zip_members_are_left_out(archive: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(archive, "w") as packed:
        for name, mode in (("link", stat.S_IFLNK), ("setuid.jpg", stat.S_IFREG | 0o4777), ("folder/", stat.S_IFDIR)):
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            packed.writestr(info, b"/etc/passwd")
        packed.writestr("bzip2", b"x" * 100, zipfile.ZIP_BZIP2)
        packed.writestr("lzma", b"x" * 100, zipfile.ZIP_LZMA)
        packed.writestr("secret", b"x")
    content = bytearray(archive.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8] |= 1  # encrypted, says the list of contents
    archive.write_bytes(content)
    assert [entry.reason for entry in unpack(archive, tmp_path / "out")] == [
        "'link': is a link or a device, not a file",
        "'bzip2': packed by method 12, expected stored (0) or deflated (8)",
        "'lzma': packed by method 14, expected stored (0) or deflated (8)",
        "'secret': is encrypted",
    ]
    assert files(tmp_path / "out") == {"setuid.jpg": b"/etc/passwd"}
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "out/setuid.jpg").stat().st_mode) == 0o666 & ~mask


def test_sparse_members_are_left_out(archive: Path, tmp_path: Path) -> None:
    """A header of 512 bytes may claim a file of any size."""
    info = tarfile.TarInfo("sparse")
    info.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(2**60)}
    add(archive, info, tarfile.TarInfo("good"))
    assert [entry.reason for entry in unpack(archive, tmp_path / "out")] == [
        "'sparse': is a sparse file: pack it without --sparse"
    ]
    assert set(files(tmp_path / "out")) == {"good"}


def test_the_list_of_what_is_left_out_is_bounded(archive: Path, tmp_path: Path) -> None:
    write_zip(archive, [(f"../{number}", b"") for number in range(1_200)])
    rejected = unpack(archive, tmp_path / "out")
    assert len(rejected) == 1_001
    assert rejected[-1] == (archive, "and 200 more members")


def test_a_decompression_bomb(write: Write, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "SLACK", 2**20)
    monkeypatch.setattr(archives, "MAX_RATIO", 0)
    write(archive, [("good", b"1"), ("zeros.tsv", bytes(2**25))])
    message = r"set\.bin' has [\d,]+ bytes and unpacks to more than 1,048,576, .*bomb"
    with little_memory(), pytest.raises(ValueError, match=message):
        unpack(archive, tmp_path / "out")
    assert files(tmp_path / "out") == {"good": b"1"}


def test_a_bomb_of_members_that_are_left_out(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They cost no disk, but time."""
    monkeypatch.setattr(archives, "SLACK", 2**20)
    tar_writer("xz")(archive, [(f"../{number}", bytes(2**22)) for number in range(2)])
    with pytest.raises(ValueError, match="decompression bomb"):
        unpack(archive, tmp_path / "out")


def test_memory_is_flat(write: Write, archive: Path, tmp_path: Path) -> None:
    write(archive, [(f"{number}.tsv", bytes(2**24)) for number in range(3)])
    with little_memory():
        assert unpack(archive, tmp_path / "out") == []
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) == 3 * 2**24


def test_a_photo_of_absurd_size(write: Write, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_BYTES", 2**20)
    write(archive, [("1.JPG", bytes(2**20 + 1)), ("2.jpg", bytes(2**20)), ("list.tsv", bytes(2**20 + 1))])
    assert [entry.reason for entry in unpack(archive, tmp_path / "out")] == [
        "'1.JPG': more than 1,048,576 bytes, which no photo has"
    ]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"2.jpg", "list.tsv"}


def test_a_full_disk(write: Write, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(archive, PHOTOS)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**30))
    with pytest.raises(ValueError, match=r"does not fit on the disk of '.*out': 1,073,741,824 bytes are free"):
        unpack(archive, tmp_path / "out")
    assert files(tmp_path / "out") == {}


def test_too_many_members(write: Write, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBERS", 7)
    write(archive, [(f"{number}", b"") for number in range(7)])
    assert unpack(archive, tmp_path / "out") == []
    for names in (map(str, range(8)), ("a/b/c/d/1", "a/e/f/g/1", "2")):
        write(archive, [(name, b"") for name in names])
        with pytest.raises(ValueError, match="more than 7 files and folders"):
            unpack(archive, tmp_path / "out")


def test_a_long_list_of_contents(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_DIRECTORY", 2**17)
    write_zip(archive, [(str(number), b"") for number in range(3_000)])
    with pytest.raises(ValueError, match=r"set\.bin' has a list of contents of more than 131,072 bytes"):
        unpack(archive, tmp_path / "out")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("size", [-512, 2**20 + 1, 2**50])
def test_headers_of_absurd_size(kind: bytes, size: int, archive: Path, tmp_path: Path) -> None:
    info = member("long", kind)
    info.size = size
    with archive.open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(2**32)
    with little_memory(), pytest.raises(ValueError, match=r"damaged or cut short"):
        unpack(archive, tmp_path / "out")


def test_headers_without_end(archive: Path, tmp_path: Path) -> None:
    info = member("long", tarfile.XHDTYPE)
    archive.write_bytes(info.tobuf(tarfile.GNU_FORMAT) * 5_000)
    with pytest.raises(ValueError, match=r"damaged or cut short"):
        unpack(archive, tmp_path / "out")


def test_a_member_of_negative_size(archive: Path, tmp_path: Path) -> None:
    """tarfile would read the same header for ever."""
    for kind in (tarfile.REGTYPE, b"Q"):
        info = member("1.jpg", kind)
        info.size = -512
        archive.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
        with pytest.raises(ValueError, match=r"damaged or cut short"):
            unpack(archive, tmp_path / "out")


def test_an_xz_that_asks_for_much_memory(archive: Path, tmp_path: Path) -> None:
    with io.BytesIO() as plain:
        with tarfile.open(fileobj=plain, mode="w") as packed:
            packed.addfile(tarfile.TarInfo("1.jpg"))
        compressor = lzma.LZMACompressor(filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 2**20}])
        content = bytearray(compressor.compress(plain.getvalue()) + compressor.flush())
    head = content[12 : 12 + (content[12] + 1) * 4]  # the block's header: its size, flags, filter, size, dictionary
    place = head.index(b"\x21\x01") + 2
    head[place] = 2 * (28 - 12)  # 2**28 bytes of what went before

    head[-4:] = zlib.crc32(head[:-4]).to_bytes(4, "little")
    content[12 : 12 + len(head)] = head
    archive.write_bytes(content)
    assert archives.MAX_WINDOW < 2**28
    with pytest.raises(ValueError, match=r"damaged or cut short \(Memory usage limit"):
        unpack(archive, tmp_path / "out")


def test_compressed_in_several_streams(archive: Path, tmp_path: Path) -> None:
    """As pigz, pbzip2 and pixz write."""

    with io.BytesIO() as plain:
        with tarfile.open(fileobj=plain, mode="w") as packed:
            for name, content in PHOTOS[:2]:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                packed.addfile(info, io.BytesIO(content))
        whole = plain.getvalue()
    pieces = [whole[place : place + 100_000] for place in range(0, len(whole), 100_000)]
    for compress in (gzip.compress, bz2.compress, lzma.compress):
        archive.write_bytes(b"".join(map(compress, pieces)))
        with archive.open("ab") as file:
            file.write(bytes(512))
        assert unpack(archive, tmp_path / "out") == []
        assert files(tmp_path / "out") == dict(PHOTOS[:2])
        shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.999])
def test_cut_short(write: Write, share: float, archive: Path, tmp_path: Path) -> None:
    write(archive, PHOTOS[:2])
    content = archive.read_bytes().rstrip(b"\0") if archive.read_bytes()[:1] == b"s" else archive.read_bytes()
    archive.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"set\.bin' is damaged or cut short \(.+\), expected .* download it again"):
        unpack(archive, tmp_path / "out")
    assert set(files(tmp_path / "out").items()) <= set(PHOTOS[:2])


def test_cut_between_members(archive: Path, tmp_path: Path) -> None:
    tar_writer("")(archive, PHOTOS[1:])
    os.truncate(archive, 1024)
    with pytest.raises(ValueError, match="does not end as a tar does"):
        unpack(archive, tmp_path / "out")


@pytest.mark.parametrize("seed", range(30))
def test_damaged_bytes_are_told_in_words(write: Write, seed: int, archive: Path, tmp_path: Path) -> None:
    """Whatever is wrong, it is a ValueError or another content, and nothing lies outside."""
    draw = random.Random(seed)
    write(archive, PHOTOS[1:])
    content = bytearray(archive.read_bytes())
    for _ in range(draw.choice((1, 4, 40))):
        content[draw.randrange(len(content))] = draw.randrange(256)
    archive.write_bytes(content)
    is_archive(archive)
    with suppress(ValueError):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out" / ".unpacking").exists()


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_after_a_kill_the_result_is_the_same(kind: str, archive: Path, tmp_path: Path) -> None:
    """Killed within a file, and between two."""
    WRITERS[kind](archive, PHOTOS)
    script = (
        "import os, signal, sys, pathlib, data_modules.prepare.archives as archives\n"
        "left = int(sys.argv[3])\n"
        "def check(self, size):\n"
        "    global left\n"
        "    left -= 1\n"
        "    left or os.kill(os.getpid(), signal.SIGKILL)\n"
        "archives._Target._check_disk = check\n"
        "archives.unpack(*map(pathlib.Path, sys.argv[1:3]))\n"
    )
    out = tmp_path / "out"
    for chunks in (2, 5):
        ended = subprocess.run([sys.executable, "-c", script, str(archive), str(out), str(chunks)], check=False)
        assert ended.returncode == -9
        assert (out / ".unpacking").exists()
        assert all(content in dict(PHOTOS).values() for name, content in files(out).items() if name != ".unpacking")
    assert unpack(archive, out) == []
    assert sorted(files(out).values()) == sorted(content for _, content in PHOTOS)
    assert not (out / ".unpacking").exists()
