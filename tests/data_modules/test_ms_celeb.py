"""MS-Celeb-1M: tables and records, whole and spoilt."""

import base64
import io
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import data_modules.ms_celeb
from data_modules.ms_celeb import INSIGHTFACE_LANDMARKS, MSCelebDataModule
from data_modules.orl import orl_root
from data_modules.photos import Photo, Rejected
from idface.recognition.alignment import warp_face
from tests.data_modules.contract import DataModuleContract, Make, gather

MAGIC = (0xCED7230A).to_bytes(4, "little")
PEOPLE, PHOTOS = 6, 4


def picture(person: int, photo: int, side: int | None = None) -> bytes:
    """An ORL face as JPEG."""
    stream = io.BytesIO()
    with Image.open(orl_root() / f"s{person}" / f"{photo}.pgm") as image:
        (image if side is None else image.resize((side, side))).save(stream, "JPEG", quality=90)
    return stream.getvalue()


# As published: a photo a line.


def mid(person: int) -> str:
    return f"m.0{person}_f"


def line(person: int, photo: int, **fields: bytes) -> bytes:
    columns = {
        "mid": mid(person).encode(),
        "rank": b"%d" % photo,
        "url": "http://example.org/ä.jpg".encode(),
        "page": b"http://example.org/",
        "face": b"FaceId-0",
        "rectangle": base64.b64encode(struct.pack("<4f", 0.1, 0.2, 0.6, 0.9)),
        "data": base64.b64encode(picture(person, photo)),
    }
    return b"\t".join({**columns, **fields}.values()) + b"\n"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A set of two files; people are in both."""
    root = tmp_path / "msceleb"
    root.mkdir()
    lines = [line(person, photo) for photo in range(1, PHOTOS + 1) for person in range(1, PEOPLE + 1)]
    (root / "FaceImageCroppedWithAlignment-1.tsv").write_bytes(b"".join(lines[:10]))
    (root / "FaceImageCroppedWithAlignment-2.tsv").write_bytes(b"".join(lines[10:]).rstrip(b"\n"))
    (root / "Top1M_MidList.Name.tsv").write_text('m.01_f\t"Somebody"@en\n')
    return root


# As MXNet writes it (dmlc-core, RecordIOWriter::WriteRecord).


def record(content: bytes) -> bytes:
    cuts = [at for at in range(0, len(content) // 4 * 4, 4) if content[at : at + 4] == MAGIC]
    written, start = b"", 0
    for place in cuts:
        written += MAGIC + struct.pack("<I", (2 if start else 1) << 29 | place - start) + content[start:place]
        start = place + 4
    last = (3 if cuts else 0) << 29 | len(content) - start
    return written + MAGIC + struct.pack("<I", last) + content[start:] + bytes(-(len(content) - start) % 4)


def packed(image: bytes, number: int, *labels: float) -> bytes:
    if len(labels) == 1:
        return struct.pack("<IfQQ", 0, labels[0], number, 0) + image
    return struct.pack(f"<IfQQ{len(labels)}f", len(labels), 0, number, 0, *labels) + image


def write_records(root: Path, contents: list[bytes], ending: bytes = b"") -> Path:
    root.mkdir(exist_ok=True)
    written, keys = b"", ""
    for number, content in enumerate(contents):
        keys += f"{number}\t{len(written)}\n"
        written += content if content.startswith(b"raw") else record(content)
    (root / "train.rec").write_bytes(written + ending)
    (root / "train.idx").write_text(keys)
    return root / "train.rec"


def insightface(images: dict[tuple[int, int], bytes]) -> list[bytes]:
    """Record 0 tells where the identity rows are, the images follow, then a row an identity."""
    people = sorted({person for person, _ in images})
    end = len(images) + 1
    contents = [packed(b"", 0, float(end), float(end + len(people)))]
    rows = []
    for person in people:
        first = len(contents)
        for number, (_, image) in enumerate(entry for entry in sorted(images.items()) if entry[0][0] == person):
            labels = (float(person),) if number % 2 else (float(person), 0.5)
            contents.append(packed(image, len(contents), *labels))
        rows.append((float(first), float(len(contents))))
    return contents + [packed(b"", end + number, *row) for number, row in enumerate(rows)]


IMAGES = {
    (person, photo): picture(person, photo, 112) for person in range(1, PEOPLE + 1) for photo in range(1, PHOTOS + 1)
}


@pytest.fixture
def records(tmp_path: Path) -> Path:
    root = tmp_path / "faces_emore"
    path = write_records(root, insightface(IMAGES))
    (root / "property").write_text(f"{PEOPLE},112,112")
    (root / "train.lst").write_text("".join(f"1\t/x/{person}.jpg\t{person}\n" for person, _ in sorted(IMAGES)))
    return path


def maker(root: Path, cache: Path) -> Callable[..., MSCelebDataModule]:
    def make(root: Path = root, **options: Any) -> MSCelebDataModule:
        defaults = {"align": False, "val_identities": 2, "test_identities": 2, "image_size": 16, "batch_size": 2}
        return MSCelebDataModule(root, cache_dir=cache, **{**defaults, **options})

    return make


# Who is on a photo, by its content.
TABLE_TRUTH = {picture(person, photo): mid(person) for person, photo in IMAGES}
RECORDS_TRUTH = {image: str(person) for (person, _), image in IMAGES.items()}


def content_of(photo: Photo) -> bytes:
    """The image file of a photo, cut out by hand."""
    if photo.part is None:
        return photo.path.read_bytes()
    content = photo.path.read_bytes()[photo.part.offset : photo.part.offset + photo.part.length]
    return base64.b64decode(content) if photo.part.base64 else content


class ByRow(DataModuleContract):
    """The contract for a set whose photos share files: who is on a photo is told by its content, not by its path."""

    def person(self, data: MSCelebDataModule, row: int) -> str:
        """Who is on the photo of a row; each form of the set, below, tells it in its own way."""
        raise NotImplementedError

    def test_an_image_is_its_photo(self, make: Make) -> None:
        data = make(image_size=24, batch_size=4)
        read = data.reader(data.photos)
        for batch in data.train_dataloader():
            for role in ("", "partner_"):
                for image, index, identity in zip(
                    batch["partner" if role else "image"], batch[role + "index"], batch[role + "identity"], strict=True
                ):
                    assert np.array_equal(image.permute(1, 2, 0), read(data.photos[index]))
                    assert data.identity_names[identity] == self.person(data, index)

    def test_training_validation_and_test_share_nobody(self, make: Make) -> None:
        data = make(batch_size=2)

        def people(rows: list[int]) -> set[str]:
            return {self.person(data, row) for row in rows}

        train = people(gather(data.train_dataloader(), "index")) | people(data.split.train.tolist())
        known, val, gallery = (people(gather(loader, "index")) for loader in data.val_dataloader())
        known_test, test, _ = (people(gather(loader, "index")) for loader in data.test_dataloader())
        assert known | known_test <= train
        assert min(len(train), len(val), len(test)) >= 2
        assert len(train | val | test) == len(train) + len(val) + len(test)
        assert val | test <= gallery

    def test_training_partners_are_the_same_person(self, make: Make) -> None:
        data = make(batch_size=2)
        trained = [self.person(data, row) for row in data.split.train]
        for batch in data.train_dataloader():
            for row, partner in zip(batch["index"], batch["partner_index"], strict=True):
                person = self.person(data, row)
                assert self.person(data, partner) == person
                assert (row == partner) == (trained.count(person) == 1)

    def test_evaluation_partners_are_other_people(self, make: Make) -> None:
        data = make(batch_size=5, attributes_per_query=2)
        train = set(data.split.train.tolist())
        for loader in (*data.val_dataloader()[:2], *data.test_dataloader()[:2]):
            pairs = list(zip(gather(loader, "index"), gather(loader, "partner_index"), strict=True))
            assert len(set(pairs)) == len(pairs) > 0
            person = {row: self.person(data, row) for row, _ in pairs}
            for row in person:
                others = sum(name != person[row] for name in person.values())
                assert sum(query == row for query, _ in pairs) == min(2, others or 2)
            for row, partner in pairs:
                assert self.person(data, row) != self.person(data, partner)
                assert partner not in train


class TestTable(ByRow):
    @pytest.fixture
    def make(self, table: Path, tmp_path: Path) -> Make:
        return maker(table, tmp_path / "cache")

    def person(self, data: MSCelebDataModule, row: int) -> str:
        return TABLE_TRUTH[content_of(data.photos[row])]


class TestRecords(ByRow):
    @pytest.fixture
    def make(self, records: Path, tmp_path: Path) -> Make:
        make = maker(records.parent, tmp_path / "cache")
        return lambda **options: make(**{"align": True, **options})

    def person(self, data: MSCelebDataModule, row: int) -> str:
        return RECORDS_TRUTH[content_of(data.photos[row])]


@pytest.fixture
def make_table(table: Path, tmp_path: Path) -> Callable[..., MSCelebDataModule]:
    return maker(table, tmp_path / "cache")


@pytest.fixture
def make_records(records: Path, tmp_path: Path) -> Callable[..., MSCelebDataModule]:
    return maker(records, tmp_path / "cache")


def test_names_do_not_depend_on_files(make_table: Callable[..., MSCelebDataModule], table: Path) -> None:
    names = [photo.name for photo in make_table().photos]
    assert names[0] == "m.01_f/1-FaceId-0"
    assert len(names) == PEOPLE * PHOTOS
    one = table / "all.tsv"
    parts = sorted(table.glob("Face*.tsv"))
    one.write_bytes(parts[0].read_bytes() + parts[1].read_bytes().replace(b"\n", b"\r\n"))
    assert [photo.name for photo in make_table(one).photos] == names


BAD_LINES = {
    b"\n": "1 columns, expected the 7",
    b"m.09_f\t1\tone\ttwo\n": "4 columns",
    b"\t" * 100_000 + b"\n": "100,001 columns",
    line(1, 9, mid=b"../../etc/passwd"): "'../../etc/passwd' where a Freebase MID",
    line(1, 9, mid=b"m.0\x00\xff/../x"): "where a Freebase MID",
    line(1, 9, mid=b"m." + b"a" * 5000): "aaaaaa'... where a Freebase MID",
    line(1, 9, rank=b"first"): "'first' where the rank",
    line(1, 9, face=b"../FaceId"): "'../FaceId' where a face id",
    line(1, 9, data=b""): "no face data",
    line(1, 9, data=b"/9j/4AA*"): "face data of 8 bytes are no base64",
    line(1, 9, data=b"/9j/4AAQS"): "face data of 9 bytes are no base64",
    line(1, 9, data=b"ab==abcd"): "no base64",
    line(1, 9, data=b"A" * 300_000): "300,0",  # over the limit that the test sets
}


def test_people_are_called_by_the_list_of_names(
    make_table: Callable[..., MSCelebDataModule], table: Path, tmp_path: Path
) -> None:
    names = ['1_f\t"Åsa A"@sv', '1_f\t"Asa A"@en', '2_f\t"Bo \\"B\\" Bee"@en', '3_f\t"C"@zh-Hant', '9_f\t"Åsa A"@en']
    lines = [*(f"m.0{name}" for name in names), "m.04_f\tno quotes", ""]
    (table / "Top1M_MidList.Name.tsv").write_text("\n".join(lines), "utf-8")
    assert make_table().people() == ["Asa A", 'Bo \\"B\\" Bee', "C", mid(4), mid(5), mid(6)]
    (tmp_path / "exclude.txt").write_text("ÅSA_A\nbo b bee\nNobody\nm.04_f", "utf-8")
    data = make_table(exclude=tmp_path / "exclude.txt", val_identities=1, test_identities=0)
    assert {photo.person for photo in data.photos} == {mid(3), mid(5), mid(6)}
    assert {entry.reason.split(" is named")[0] for entry in data.rejected} == {
        f"{mid(1)} (Asa A)",
        f'{mid(2)} (Bo \\"B\\" Bee)',
        mid(4),
    }


def test_bad_lines_are_listed(
    make_table: Callable[..., MSCelebDataModule], table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_modules.ms_celeb, "MAX_BYTES", 200_000)
    expected = [photo.name for photo in make_table().photos]
    path = table / "FaceImageCroppedWithAlignment-2.tsv"
    good = path.read_bytes()
    path.write_bytes(b"".join(BAD_LINES) + good)
    data = make_table()
    assert [photo.name for photo in data.photos] == expected
    assert [entry.path for entry in data.rejected] == [path] * len(BAD_LINES)
    for number, (entry, reason) in enumerate(zip(data.rejected, BAD_LINES.values(), strict=True), 1):
        assert entry.reason.startswith(f"line {number}: ")
        assert reason in entry.reason
        assert len(entry.reason) < 200
    path.write_bytes(good[:-5])
    assert make_table().rejected[0].reason.startswith("line 14: face data of ")


@pytest.mark.parametrize("memory_limit", [2.0, 0.0])
def test_photos_that_cannot_be_decoded_are_named(
    make_table: Callable[..., MSCelebDataModule], table: Path, memory_limit: float
) -> None:
    cut = base64.b64encode(picture(1, 9)[:700])
    (table / "more.tsv").write_bytes(line(1, 9, data=cut) + line(2, 8, data=b"bm8gcGhvdG8=") + line(1, 1))
    data = make_table(memory_limit=memory_limit)
    assert len(data.photos) == PEOPLE * PHOTOS
    reasons = sorted(entry.reason for entry in data.rejected)
    assert reasons[0].startswith("m.01_f/1-FaceId-0 at byte ")
    assert "in the set already" in reasons[0]
    assert reasons[1].startswith("m.01_f/9-FaceId-0 at byte ")
    assert "cannot be decoded" in reasons[1]
    assert reasons[2].startswith("m.02_f/8-FaceId-0 at byte ")
    assert "not an image" in reasons[2]


def test_the_rejected_do_not_fill_the_memory(
    make_table: Callable[..., MSCelebDataModule], table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_modules.ms_celeb, "MAX_REJECTED", 3)
    (table / "more.tsv").write_bytes(b"nothing\n" * 50)
    assert [entry.reason for entry in make_table().rejected][-1] == "and 47 more lines"


def test_the_index_is_kept_until_the_file_changes(
    make_table: Callable[..., MSCelebDataModule], table: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = make_table().photos
    scans = []
    scan = data_modules.ms_celeb._scan_lines
    monkeypatch.setattr(data_modules.ms_celeb, "_scan_lines", lambda *args: scans.append(args[0]) or scan(*args))
    assert make_table().photos == expected
    assert scans == []
    path = table / "FaceImageCroppedWithAlignment-1.tsv"
    path.write_bytes(path.read_bytes() + line(7, 1))
    assert len(make_table().photos) == len(expected) + 1
    assert scans == [path]
    for index in (tmp_path / "cache").glob("*.npz"):
        index.write_bytes(index.read_bytes()[:300])
    assert len(make_table().photos) == len(expected) + 1
    assert len(scans) == 3


def test_a_cache_that_cannot_be_written_is_done_without(
    table: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    assert len(MSCelebDataModule(table, align=False, cache_dir=tmp_path / "file").photos) == PEOPLE * PHOTOS
    assert "set cache_dir" in caplog.text


def test_records_are_aligned_by_the_template(make_records: Callable[..., MSCelebDataModule]) -> None:
    data = make_records(align=True, image_size=48)
    assert {photo.person for photo in data.photos} == {str(person) for person in range(1, PEOPLE + 1)}
    photo = data.photos[5]
    with Image.open(io.BytesIO(content_of(photo))) as image:
        expected = warp_face(np.asarray(image.convert("RGB")), INSIGHTFACE_LANDMARKS, 48)
    assert np.array_equal(data.reader([photo])(photo), expected)


@pytest.mark.parametrize("memory_limit", [2.0, 0.0])
def test_another_size_is_not_taken_for_aligned(tmp_path: Path, memory_limit: float) -> None:
    images = {**IMAGES, (1, 5): picture(1, 5)}
    path = write_records(tmp_path / "set", insightface(images))
    data = maker(path, tmp_path / "cache")(align=True, memory_limit=memory_limit)
    assert len(data.photos) == PEOPLE * PHOTOS
    assert "92x112 pixels, expected 112x112" in data.rejected[0].reason
    assert "set trust_alignment to false" in data.rejected[0].reason


def test_faces_can_be_looked_for(make_records: Callable[..., MSCelebDataModule], table: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.tsv"
    few.write_bytes(b"".join(line(person, photo) for person in (1, 2) for photo in (1, 2)))
    for data in (
        maker(few, tmp_path / "cache")(align=True, val_identities=0, test_identities=0),
        make_records(align=True, trust_alignment=False),
    ):
        assert len(data.photos) >= 0.8 * (len(data.photos) + len(data.rejected))


def test_a_record_in_pieces(tmp_path: Path) -> None:
    """A JPEG may hold the magic number, here in comments; the writer cuts it there, if it stands at a multiple of 4."""
    images = dict(IMAGES)
    for photo, shift in ((1, 0), (2, 1), (3, 2), (4, 3)):
        whole = images[1, photo]
        filler = bytes(shift) + MAGIC * 3 + b"xyz" + MAGIC
        images[1, photo] = whole[:2] + b"\xff\xfe" + struct.pack(">H", len(filler) + 2) + filler + whole[2:]
    path = write_records(tmp_path / "set", insightface(images))
    data = maker(path, tmp_path / "cache")()
    assert sorted(map(content_of, data.photos)) == sorted(images.values())
    assert any(photo.part is None for photo in data.photos), "one of the shifts hits a multiple of 4"
    assert maker(path, tmp_path / "cache")(memory_limit=0).photos == data.photos
    (tmp_path / "file").touch()
    data = maker(path, tmp_path / "file")()
    assert all("is written in pieces" in entry.reason and "set cache_dir" in entry.reason for entry in data.rejected)
    assert 0 < len(data.rejected) < 5


def test_bad_records_are_listed_and_the_next_are_found(tmp_path: Path) -> None:
    good = record(packed(IMAGES[1, 1], 1, 1.0))
    bad = [
        (b"garbage." * 20, "begins with 0x62726167, expected the magic number 0xced7230a"),
        (MAGIC + struct.pack("<I", 2**29 - 1) + b"abcd", "bytes, expected"),
        (MAGIC + struct.pack("<I", 100_000) + b"abcd", "cut short"),
        (MAGIC + struct.pack("<I", 2 << 29 | 4) + b"abcd", "continuation flag 2 is out of place"),
        (record(b"short"), "5 bytes, expected the 24"),
        (record(packed(b"", 1, 1.0)), "holds no image"),
        (record(struct.pack("<IfQQ", 2**32 - 1, 0, 1, 0)), "announces 4,294,967,295 labels in 24 bytes"),
        (record(packed(b"image", 1, float("nan"))), "label nan"),
        (record(packed(b"image", 1, -1.0)), "label -1.0"),
        (record(packed(b"image", 1, 1e30)), "expected a person's number"),
        (record(packed(b"image", 1, 0.5, 3.0)), "label 0.5"),
    ]
    start = b"".join(record(content) for content in insightface(IMAGES))
    path = tmp_path / "train.rec"
    path.write_bytes(start + b"".join(wrong + good for wrong, _ in bad) + good[:-100])
    data = maker(path, tmp_path / "cache")()
    assert len(data.photos) == PEOPLE * PHOTOS + len(bad)
    reasons = [entry.reason for entry in data.rejected]
    assert len(reasons) == len(bad) + 1
    for reason, (_, expected) in zip(reasons, bad, strict=False):
        assert reason.startswith("record ")
        assert expected in reason
    assert "cut short" in reasons[-1]
    path.write_bytes(good[:6])
    with pytest.raises(ValueError, match=r"0 usable photos(.|\n)*record 1 at byte 0: cut short"):
        _ = maker(path, tmp_path / "cache")().photos
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"0 usable photos(.|\n)*empty file"):
        _ = maker(path, tmp_path / "cache")().photos


def test_verify(
    make_table: Callable[..., MSCelebDataModule],
    make_records: Callable[..., MSCelebDataModule],
    table: Path,
    records: Path,
) -> None:
    assert make_table().verify() == ["There are 24 photos of 6 people, published: 8,456,240 of 99,892."]
    (table / "bad.tsv").write_bytes(b"nothing\n" + line(1, 9, data=b"bm8gcGhvdG8="))
    found = make_table().verify()
    assert "1 lines, records or files are damaged; the first: bad.tsv, line 1: 1 columns" in found[1]
    assert "1 of 25 photos cannot be read; the first: m.01_f/9-FaceId-0" in found[2]

    assert make_records().verify() == []
    for name, content, expected in (
        ("property", "85742,112,112", "There are 6 people. The file property says: 85,742."),
        ("property", "85742,112,112", "There are 24 photos. The file property says: 5,822,653."),
        ("property", "what?", "There is no readable file 'property'"),
        ("train.lst", "1\tx\t1\n", "There are 24 photos. train.lst lists 1."),
        ("train.idx", "0\t0\n1\t7\n2\tx\n", "There are 31 records. train.idx lists 3."),
        ("train.idx", "0\t0\n1\t7\n2\t99999999999999999999\n", "2 of the 3 lines of train.idx point at no record."),
    ):
        path = records.with_name(name)
        before = path.read_bytes()
        path.write_text(content)
        assert any(sentence.startswith(expected) for sentence in make_records().verify()), (name, expected)
        path.write_bytes(before)
    content = records.read_bytes()
    records.write_bytes(content[: len(content) // 2])
    found = make_records().verify()
    assert "The first record of train.rec says: 24." in "".join(found)
    assert any("cut short" in sentence for sentence in found)


def test_wrong_roots(make_table: Callable[..., MSCelebDataModule], table: Path, records: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"no folder or file .*Did you mean '{table}'\?"):
        make_table(table.with_name("mscelb"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no \.tsv and no \.rec file in"):
        _ = make_table(tmp_path / "empty").photos
    with pytest.raises(ValueError, match=r"train\.rec' as well as .*\.tsv'.* Give one of the files as root"):
        _ = make_table(tmp_path).photos


def test_absurdly_many_photos(
    make_table: Callable[..., MSCelebDataModule],
    make_records: Callable[..., MSCelebDataModule],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(data_modules.ms_celeb, "MAX_PHOTOS", 5)
    for make in (make_table, make_records):
        listed = make().list_photos()
        sources = {entry.path for entry in listed}
        assert sum(isinstance(entry, Photo) for entry in listed) <= 5 * len(sources)
        assert any("one more than the 5 photos" in entry.reason for entry in listed if isinstance(entry, Rejected))


def test_absurd_names_are_not_read(make_table: Callable[..., MSCelebDataModule], table: Path) -> None:
    file = table / "Top1M_MidList.Name.tsv"
    file.write_bytes(b'm.01_f\t"%b"@en\nm.02_f\t"a\x1b[2J"@en\nm.03_f\t"C"@en\n' % (b"n" * 10**6))
    with file.open("r+b") as lines:
        lines.truncate(2**26)
    tracemalloc.start()
    assert set(make_table().people()) == {"C", *(mid(person) for person in (1, 2, 4, 5, 6))}
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()
