"""FaceScrub: lists, and photos as the usual programs leave them."""

import shutil
from collections.abc import Callable
from hashlib import sha1, sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import data_modules.facescrub
from data_modules.facescrub import FaceScrubDataModule
from data_modules.orl import orl_root
from data_modules.photos import CentreReader, Photo
from tests.data_modules.contract import DataModuleContract, Make

NAMES = ("Aaron Eckhart", "Freddy Prinze Jr.", "Zoë Example", "America Ferrera", "Gillian Anderson", "Wendie Malick")
ACTRESSES = NAMES[3:]
BOX = (120, 60, 212, 172)  # where an ORL face lies in the full photo, 92x112
HEADER = "name\timage_id\tface_id\turl\tbbox\tsha256\n"


def full_photo(person: int, photo: int) -> Image.Image:
    """A face beside another person's, which is larger."""
    canvas = Image.new("L", (420, 240), 128)
    with Image.open(orl_root() / f"s{person}" / f"{photo}.pgm") as face:
        canvas.paste(face, BOX[:2])
    with Image.open(orl_root() / "s30" / "1.pgm") as other:
        canvas.paste(other.resize((184, 224)), (230, 10))
    return canvas


def ids(person: int, photo: int) -> tuple[int, int]:
    """Image and face id: on no two photos the same, and no image's that of a face."""
    number = 10 * person + photo
    return number, 1000 + number


def url(person: int, photo: int) -> str:
    return f"http://example.org/{person}/{photo}.jpg"


Place = Callable[[str, int, int], str]  # name with underscores, person, photo -> path without suffix
LAYOUTS: dict[str, tuple[Place, bool]] = {  # and whether the faces are cut out
    "both ids": (lambda name, *key: f"{name}/{name}_{ids(*key)[0]}_{ids(*key)[1]}", False),
    "images": (lambda name, *key: f"actors/images/{name}/{name}_{ids(*key)[0]}", False),
    "url": (lambda name, *key: f"{name}/{sha1(url(*key).encode()).hexdigest()}", False),
    "faces": (lambda name, *key: f"actors/faces/{name}/{name}_{ids(*key)[0]}_{ids(*key)[1]}", True),
    "face of url": (lambda name, *key: f"{name}/face/{sha1(url(*key).encode()).hexdigest()}", True),
    "face id": (lambda name, *key: f"{name.replace('_', ' ')}/{name.replace('_', ' ')}_{ids(*key)[1]}", True),
}


def write(root: Path, layout: str = "both ids", people: int = 6, photos: int = 4) -> Path:
    place, cut_out = LAYOUTS[layout]
    rows = {False: HEADER, True: HEADER}
    for person, name in enumerate(NAMES[:people], 1):
        for photo in range(1, photos + 1):
            path = root / f"{place(name.replace(' ', '_'), person, photo)}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = full_photo(person, photo)
            image.save(path)
            digest = sha256(path.read_bytes()).hexdigest()
            if cut_out:
                image.crop(BOX).save(path)
            image_id, face_id = ids(person, photo)
            box = ",".join(map(str, BOX))
            rows[name in ACTRESSES] += f"{name}\t{image_id}\t{face_id}\t{url(person, photo)}\t{box}\t{digest}\n"
    (root / "facescrub_actors.txt").write_text(rows[False], "utf-8")
    (root / "facescrub_actresses.txt").write_text(rows[True], "utf-8")
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "facescrub")


@pytest.fixture
def make(folder: Path, tmp_path: Path) -> Callable[..., FaceScrubDataModule]:
    def make(root: Path = folder, **options: Any) -> FaceScrubDataModule:
        defaults = {"align": False, "val_identities": 1, "test_identities": 1, "image_size": 16, "batch_size": 2}
        return FaceScrubDataModule(root, cache_dir=tmp_path / "cache", **{**defaults, **options})

    return make


class TestFaceScrub(DataModuleContract):
    @pytest.fixture
    def make(self, folder: Path, tmp_path: Path) -> Make:
        def make(**options: Any) -> FaceScrubDataModule:
            people = {"align": False, "val_identities": 2, "test_identities": 2}
            return FaceScrubDataModule(folder, cache_dir=tmp_path / "cache", **{**people, **options})

        return make

    def person_of(self, path: Path) -> str:
        return path.parent.name.replace("_", " ")


class TestAlignedFaceScrub(TestFaceScrub):
    @pytest.fixture(scope="class")
    def shared(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return write(tmp_path_factory.mktemp("data") / "facescrub")

    @pytest.fixture
    def make(self, shared: Path) -> Make:
        def make(**options: Any) -> FaceScrubDataModule:
            people = {"val_identities": 2, "test_identities": 2}
            return FaceScrubDataModule(shared, cache_dir=shared.parent / "cache", **{**people, **options})

        return make


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(make: Callable[..., FaceScrubDataModule], tmp_path: Path, layout: str) -> None:
    """Whatever the layout, the same names and, around the box without a margin, the same pixels."""
    root = write(tmp_path / "other", layout)
    data = make(root, margin=0)
    assert data.rejected == []
    assert {photo.name for photo in data.photos} == {
        f"{name}/{ids(person, photo)[0]}_{ids(person, photo)[1]}"
        for person, name in enumerate(NAMES, 1)
        for photo in range(1, 5)
    }
    assert {photo.person for photo in data.photos} == set(NAMES)
    photo = next(photo for photo in data.photos if photo.name == "America Ferrera/42_1042")
    picture = data.reader([photo])(photo).astype(float)
    # The square in the middle of a cut-out face is 92 wide, that around the box 112: compare what both show.
    with Image.open(orl_root() / "s4" / "2.pgm") as face:
        square = face.crop((0, 10, 92, 102)) if LAYOUTS[layout][1] else full_photo(4, 2).crop((110, 60, 222, 172))
        expected = np.asarray(square.convert("RGB").resize((16, 16), Image.Resampling.LANCZOS), float)
    assert np.abs(picture - expected).mean() < 1


def test_the_full_photo_is_preferred(make: Callable[..., FaceScrubDataModule], folder: Path, tmp_path: Path) -> None:
    write(folder, "face of url")
    assert {path.suffix for path in make().paths} == {".png"}
    assert all(path.parent.name != "face" for path in make().paths)
    assert make().rejected == []


def test_several_faces_of_a_photo(make: Callable[..., FaceScrubDataModule], tmp_path: Path) -> None:
    root = write(tmp_path / "images", "images")
    actors = root / "facescrub_actors.txt"
    row = actors.read_text("utf-8").splitlines()[1].split("\t")
    row[2], row[4] = "9999", "230,10,414,234"
    actors.write_text(actors.read_text("utf-8") + "\t".join(row) + "\n", "utf-8")
    data = make(root, margin=0)
    faces = [photo for photo in data.photos if photo.name.startswith("Aaron Eckhart/11_")]
    assert [photo.name for photo in faces] == ["Aaron Eckhart/11_1011", "Aaron Eckhart/11_9999"]
    assert faces[0].path == faces[1].path
    read = data.reader(faces)
    assert np.abs(read(faces[0]).astype(int) - read(faces[1])).mean() > 10


def test_the_square_moves_inwards_at_the_border(make: Callable[..., FaceScrubDataModule], folder: Path) -> None:
    data = make(margin=5.0)
    photo = data.photos[0]
    middle = np.asarray(full_photo(1, 1).crop((46, 0, 286, 240)).convert("RGB").resize((16, 16)), float)
    assert np.abs(data.reader([photo])(photo) - middle).mean() < 5


def test_the_face_in_the_box_is_aligned_not_the_largest(
    make: Callable[..., FaceScrubDataModule], folder: Path, tmp_path: Path
) -> None:
    crops = write(tmp_path / "crops", "face id", people=2, photos=2)
    aligned = make(align=True, image_size=48)
    expected = make(crops, align=True, image_size=48, val_identities=0, test_identities=0)
    names = {photo.name for photo in expected.photos} & {photo.name for photo in aligned.photos}
    assert len(names) >= 3
    for name in names:
        pictures = []
        for data in (aligned, expected):
            photo = next(photo for photo in data.photos if photo.name == name)
            pictures.append(data.reader([photo])(photo).astype(float)[8:40, 8:40])
        assert np.abs(pictures[0] - pictures[1]).mean() < 12


def test_sex(make: Callable[..., FaceScrubDataModule], folder: Path) -> None:
    data = make()
    for batch in (*data.train_dataloader(), *data.val_dataloader()[1], *data.training_photos()):
        names = [data.photos[row].person for row in batch["index"]]
        assert batch["sex"].tolist() == [-1.0 if name in ACTRESSES else 1.0 for name in names]
        assert batch["sex"].dtype == torch.float32


@pytest.mark.parametrize("memory_limit", [2.0, 0.0])
def test_bad_photos_are_listed(
    make: Callable[..., FaceScrubDataModule], folder: Path, tmp_path: Path, memory_limit: float
) -> None:
    paths = sorted((folder / "Aaron_Eckhart").iterdir())
    Image.new("RGB", (420, 240)).save(paths[0])
    (folder / "Aaron_Eckhart" / "portrait.png").write_bytes(paths[1].read_bytes())
    (folder / "Aaron_Eckhart" / "_bboxes.txt").write_text("11.jpg 1,2,3,4\n")
    (folder / "Nobody").mkdir()
    shutil.copy(paths[1], folder / "Nobody" / "Nobody_1_2.png")
    shutil.copy(paths[1], folder / "Nobody" / ".Aaron_Eckhart_12_1012.png")
    data = make(memory_limit=memory_limit)
    reasons = {entry.path.name: entry.reason for entry in data.rejected}
    assert reasons.keys() == {paths[0].name, "portrait.png", "Nobody_1_2.png", ".Aaron_Eckhart_12_1012.png"}
    assert "SHA-256 is not the published one" in reasons[paths[0].name]
    assert reasons["portrait.png"] == reasons["Nobody_1_2.png"] == "the lists name no such photo"
    assert len(data.photos) == 23
    assert len(make(memory_limit=memory_limit, checksums=False).photos) == 24

    paths[0].write_bytes(paths[1].read_bytes()[:1000])
    Image.new("RGB", (200, 240)).save(paths[2])
    paths[3].write_bytes(b"")
    reasons = {entry.path.name: entry.reason for entry in make(memory_limit=memory_limit, checksums=False).rejected}
    assert "cannot be decoded" in reasons[paths[0].name]
    assert "box 120,60,212,172 lies outside its 200x240 pixels" in reasons[paths[2].name]
    assert reasons[paths[3].name] == "empty file"


HOSTILE = {
    "../../etc/passwd\t1\t2\thttp://x\t1,2,30,40\t" + "a" * 64: "'../../etc/passwd' where a name",
    "\x00\t1\t2\thttp://x\t1,2,30,40\t" + "a" * 64: "where a name",
    "\t1\t2\thttp://x\t1,2,30,40\t" + "a" * 64: "'' where a name",
    "N" * 5000 + "\t1\t2\thttp://x\t1,2,30,40\t" + "a" * 64: "NNNN'... where a name",
    "Name\t../1\t2\thttp://x\t1,2,30,40\t" + "a" * 64: "'../1' where the number",
    "Name\t1\t-2\thttp://x\t1,2,30,40\t" + "a" * 64: "'-2' where the number",
    "Name\t1\t2\thttp://x\t1,2,30\t" + "a" * 64: "'1,2,30' where a box",
    "Name\t1\t2\thttp://x\t1,2,nan,40\t" + "a" * 64: "'1,2,nan,40' where a box",
    "Name\t1\t2\thttp://x\t30,2,30,40\t" + "a" * 64: "the box 30,2,30,40 is empty",
    "Name\t1\t2\thttp://x\t1,2,30,99999999999\t" + "a" * 64: "where a box",
    "Name\t1\t2\thttp://x\t1,2,30,40\tabc": "'abc' where a SHA-256",
    "Name\t1\t2": "3 columns, expected 6",
    "": "1 columns",
    "N" * 200_000: "more than 65,536 bytes",
    "\t" * 1000: "1,001 columns",
}


def test_bad_lines_are_listed(make: Callable[..., FaceScrubDataModule], folder: Path) -> None:
    actors = folder / "facescrub_actors.txt"
    rows = actors.read_bytes().splitlines(keepends=True)
    bad = [row.encode() + b"\r\n" for row in HOSTILE]
    actors.write_bytes(b"".join([rows[0], *bad, *rows[1:], rows[1], b"\xff\xfe\t1\t1\tx\t1,2,3,4\t" + b"a" * 64]))
    data = make()
    assert len(data.photos) == 24
    reasons = [entry.reason for entry in data.rejected]
    assert len(reasons) == len(HOSTILE) + 2
    for number, (reason, expected) in enumerate(zip(reasons, HOSTILE.values(), strict=False), 2):
        assert reason.startswith(f"line {number}: ")
        assert expected in reason
        assert len(reason) < 200
    assert "a second time" in reasons[-2]
    assert "where a name was expected" in reasons[-1]


def test_verify(make: Callable[..., FaceScrubDataModule], folder: Path) -> None:
    expected = [
        "The list of the actors names 12 faces of 3 people, published: 55,306 of 265.",
        "The list of the actresses names 12 faces of 3 people, published: 51,557 of 265.",
    ]
    assert make().verify() == expected
    paths = sorted((folder / "Aaron_Eckhart").iterdir())
    paths[0].unlink()
    paths[1].write_bytes(paths[2].read_bytes())
    paths[3].write_bytes(paths[3].read_bytes()[:1000])
    (folder / "notes.txt").touch()
    with (folder / "facescrub_actors.txt").open("a") as file:
        file.write("nothing\n")
    found = make().verify()
    assert found[:2] == expected
    assert found[2:] == [
        "1 lines of the lists are damaged; the first: facescrub_actors.txt, line 14: 1 columns, expected 6.",
        "1 of 24 faces have no photo below facescrub.",
        "1 files are none of the set's; the first: notes.txt (the lists name no such photo).",
        "2 of 23 full photos differ from the published ones, by their SHA-256; the first: Aaron Eckhart/12_1012.",
        found[-1],
    ]
    assert found[-1].startswith("1 of 23 photos cannot be read; the first: Aaron Eckhart/14_1014 (cannot be decoded")
    (folder / "facescrub_actresses.txt").unlink()
    assert "There is no list of the actresses, facescrub_actresses.txt." in make().verify()


def test_megafaces_full_photos(make: Callable[..., FaceScrubDataModule], folder: Path) -> None:
    for path in folder.glob("*/*.png"):
        name, _, face = path.stem.rsplit("_", 2)
        path.rename(path.with_name(f"{name}_{face}.png"))
    with_boxes = make(crops=False, margin=0)
    photo = with_boxes.photos[0]
    assert photo.name == "Aaron Eckhart/11_1011"
    picture = with_boxes.reader([photo])(photo)
    assert np.abs(picture.astype(int) - CentreReader(16)(Photo("", None, photo.path))).mean() > 10
    data = make()
    assert np.array_equal(data.reader([photo])(photo), CentreReader(16)(Photo("", None, photo.path)))


def test_lists_elsewhere(make: Callable[..., FaceScrubDataModule], folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "some" / "lists"
    elsewhere.mkdir(parents=True)
    for name in ("facescrub_actors.txt", "facescrub_actresses.txt"):
        (folder / name).rename(elsewhere / name)
    assert len(make(lists=elsewhere).photos) == 24
    with pytest.raises(FileNotFoundError, match=r"lists: there is no list in .*facescrub' or .*set lists"):
        _ = make().photos
    shutil.move(elsewhere / "facescrub_actors.txt", folder.parent / "facescrub_actors.txt")
    assert {photo.person for photo in make().photos} == set(NAMES[:3])


def test_wrong_options(make: Callable[..., FaceScrubDataModule], folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"no folder .*Did you mean '{folder}'\?"):
        make(folder.with_name("facescrap"))
    with pytest.raises(ValueError, match="margin is -1"):
        make(margin=-1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"of the 24 faces in the lists none was found below"):
        _ = make(tmp_path / "empty", lists=folder).photos


def test_a_list_of_absurdly_many_faces(
    make: Callable[..., FaceScrubDataModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_modules.facescrub, "MAX_ROWS", 3)
    with pytest.raises(ValueError, match=r"actors\.txt' names more than 3 faces at line 5, expected 106,863 in both"):
        make().list_photos()
