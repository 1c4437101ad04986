"""IMDB-WIKI: labels in MATLAB files, and filters on them."""

from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from data_modules.imdb_wiki import IMDBWikiDataModule
from data_modules.orl import orl_root
from tests.data_modules.contract import DataModuleContract
from tests.data_modules.contract import Make as AnyMake

Make = Callable[..., IMDBWikiDataModule]
Entry = dict[str, Any]


def cells(values: Sequence[Any]) -> np.ndarray:
    """A MATLAB cell array, 1xN."""
    array = np.empty((1, len(values)), object)
    array[0, :] = values
    return array


def write_mat(file: Path, entries: list[Entry], **others: Any) -> None:
    """The published struct: 1xN doubles, 1xN uint16 years, 1xN cells of strings and of 1x4 boxes."""
    fields: dict[str, Any] = {key: np.array([[float(entry[key]) for entry in entries]]) for key in ("dob", "gender")}
    fields["photo_taken"] = np.array([[entry["photo_taken"] for entry in entries]], np.uint16)
    for key in ("full_path", "name"):
        fields[key] = cells([entry[key] for entry in entries])
    box = np.array([[10.0, 10.0, 80.0, 90.0]])
    fields["face_location"] = cells([entry.get("face_location", box) for entry in entries])
    for key in ("face_score", "second_face_score"):
        fields[key] = np.array([[float(entry[key]) for entry in entries]])
    file.parent.mkdir(parents=True, exist_ok=True)
    savemat(file, {file.stem: fields | others}, do_compression=True)


def put(path: Path, person: int, photo: int, colour: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(orl_root() / f"s{person}" / f"{photo}.pgm") as image:
        grey = image.convert("L")
    tint = Image.merge("RGB", [grey, grey.point(lambda v: v * 4 // 5), grey.point(lambda v: v * 3 // 5)])
    (tint if colour else grey).save(path, quality=90)


def entry(path: str, name: str, **others: Any) -> Entry:
    """A woman, born on the 1st of July 1970, taken in 2000."""
    born = date(1970, 7, 1).toordinal() + 366
    usual = {"dob": born, "photo_taken": 2000, "gender": 0, "face_score": 3.5, "second_face_score": np.nan}
    return {"full_path": path, "name": name, **usual, **others}


def celebrities() -> list[Entry]:
    """Six people, four photos each: odd ones women; person n is n years younger in photo p, taken in 2000 + p."""
    return [
        entry(
            f"{person:02}/nm{person:07}_rm{photo}_1970-7-1_{2000 + photo}.jpg",
            f"Celebrity {person}",
            dob=date(1970 + person, 7, 1).toordinal() + 366,
            photo_taken=2000 + photo,
            gender=(person + 1) % 2,
        )
        for person in range(1, 7)
        for photo in range(1, 5)
    ]


def write_imdb(root: Path, entries: list[Entry]) -> None:
    names = sorted({each["name"] for each in entries} - {""})
    numbers = [float(names.index(each["name"]) + 1) if each["name"] else 1.0 for each in entries]
    write_mat(root / "imdb_crop" / "imdb.mat", entries, celeb_names=cells(names), celeb_id=np.array([numbers]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "imdb-wiki"
    entries = celebrities()
    write_imdb(root, entries)
    for number, each in enumerate(entries):
        put(root / "imdb_crop" / each["full_path"], number // 4 + 1, number % 4 + 1)
    return root


@pytest.fixture
def make(folder: Path, tmp_path: Path) -> Make:
    def make(root: Path = folder, **options: Any) -> IMDBWikiDataModule:
        defaults = {"align": False, "image_size": 16, "batch_size": 2, "val_identities": 1, "test_identities": 1}
        return IMDBWikiDataModule(root, cache_dir=tmp_path / "cache", **{**defaults, **options})

    return make


class TestIMDBWiki(DataModuleContract):
    @pytest.fixture
    def make(self, folder: Path, tmp_path: Path) -> AnyMake:
        wiki = [entry(f"00/{person}_1970-07-01_2000.jpg", "") for person in (11, 12, 13)]
        wiki.append(entry("00/1_1970-07-01_2000.jpg", "Celebrity 1"))  # the same as in imdb.mat
        write_mat(folder / "wiki_crop" / "wiki.mat", wiki)
        for each in wiki:
            person = int(each["full_path"][3:].split("_")[0])
            put(folder / "wiki_crop" / each["full_path"], person, 5)

        def make(**options: Any) -> IMDBWikiDataModule:
            people = {"val_identities": 2, "test_identities": 2}
            return IMDBWikiDataModule(folder, cache_dir=tmp_path / "cache", **{"align": False, **people, **options})

        return make

    def person_of(self, path: Path) -> str:
        number = path.name.split("_")[0].removeprefix("nm").lstrip("0")
        return f"Celebrity {number}" if int(number) < 10 else "unknown"


def test_batches_carry_the_labels(make: Make) -> None:
    data = make()
    for loader in (data.train_dataloader(), data.training_photos(), *data.val_dataloader(), *data.test_dataloader()):
        for batch in loader:
            for row, sex, age in zip(batch["index"], batch["sex"], batch["age"], strict=True):
                path = data.paths[row]
                person, taken = int(path.parent.name), int(path.stem[-4:])
                assert sex == (-1 if person % 2 else 1)
                assert abs(age - (taken - 1970 - person)) < 0.003
            assert batch["sex"].dtype == batch["age"].dtype == torch.float32


# What the labels say, and the reason for which the paper's filters drop it; None where they keep it.
CASES: dict[str, tuple[Entry, str | None]] = {
    "good": ({}, None),
    "no face": ({"face_score": -np.inf}, "no face"),
    "score NaN": ({"face_score": np.nan}, "no face"),
    "weak": ({"face_score": -0.5}, "face score below 0: -0.5"),
    "two": ({"second_face_score": 1.25}, "a second face: score 1.25"),
    "sexless": ({"gender": np.nan}, "sex unknown"),
    "young": ({"photo_taken": 1979}, "age outside 10..100: 9.0"),
    "ten": ({"photo_taken": 1981}, None),
    "old": ({"photo_taken": 2071}, "age outside 10..100: 101.0"),
    "unborn": ({"photo_taken": 1960}, "age outside 10..100: -10.0"),
    "no birthday": ({"dob": np.nan}, "age unknown"),
    "birthday 0": ({"dob": 0}, "age unknown"),
    "no year": ({"photo_taken": 0}, "age unknown"),
    "year 60000": ({"photo_taken": 60000}, "age unknown"),
}


def test_filters_as_in_the_paper(make: Make, folder: Path) -> None:
    extra = [entry(f"07/{case}.jpg", "Celebrity 7", **labels) for case, (labels, _) in CASES.items()]
    for each in extra:
        put(folder / "imdb_crop" / each["full_path"], 7, 1)
    write_imdb(folder, celebrities() + extra)
    data = make()
    reasons = {rejected.path.stem: rejected.reason for rejected in data.rejected}
    assert reasons == {case: reason for case, (_, reason) in CASES.items() if reason}
    assert len(data.paths) == 24 + sum(reason is None for _, reason in CASES.values())

    every = {"min_age": None, "max_age": None, "need_sex": False, "single_face": False, "min_face_score": None}
    data = make(**every)
    assert data.rejected == []
    ages = {path.stem: age for path, age in zip(data.paths, data.labels(data.photos)["age"].tolist(), strict=True)}
    assert np.isnan([ages[case] for case in ("no birthday", "birthday 0", "no year", "year 60000")]).all()
    assert abs(ages["unborn"] + 10) < 0.003
    sexes = {path.stem: sex for path, sex in zip(data.paths, data.labels(data.photos)["sex"].tolist(), strict=True)}
    assert np.isnan(sexes["sexless"])


@pytest.mark.parametrize("memory_limit", [2.0, 0.0])
def test_poor_photos_are_listed(make: Make, folder: Path, memory_limit: float) -> None:
    crops = folder / "imdb_crop"
    grey, grey_as_rgb, small, broken, missing, empty = (crops / each["full_path"] for each in celebrities()[::4])
    put(grey, 1, 1, colour=False)
    with Image.open(grey) as image:
        image.convert("RGB").save(grey_as_rgb)
    Image.effect_noise((56, 90), 90).convert("RGB").save(small)
    broken.write_bytes(broken.read_bytes()[:700])
    missing.unlink()
    empty.write_bytes(b"")
    data = make(memory_limit=memory_limit)
    reasons = {rejected.path: rejected.reason for rejected in data.rejected}
    assert "cannot be decoded" in reasons.pop(broken)
    assert reasons == {
        grey: "grey",
        grey_as_rgb: "grey",
        small: "shorter side below 57 pixels: 56x90",
        missing: "there is no such file",
        empty: "empty file",
    }
    assert len(data.paths) == 18
    assert len(make(min_side=16, need_colour=False, memory_limit=memory_limit).paths) == 21


def test_hostile_and_repeated_paths(make: Make, folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (90, 90), "red").save(tmp_path / "secret.jpg")
    again = celebrities()[0]
    absurd = ["p" * 10**6, "p/" * 10**5 + "1.jpg", "p" * 256 + ".jpg", "01/a\nb.jpg"]
    paths = ["../../secret.jpg", str(tmp_path / "secret.jpg"), "", "..\\secret.jpg", *absurd]
    write_imdb(folder, celebrities() + [again] + [entry(path, "Celebrity 7") for path in paths])
    data = make()
    assert len(data.paths) == 24
    assert [rejected.reason.split(": ")[-1] for rejected in data.rejected] == [
        "listed twice in imdb.mat",
        *["no path inside this folder"] * 8,
    ]
    assert max(len(rejected.reason) for rejected in data.rejected) < 200
    assert "8 of the 33 photos of imdb.mat are given a path that leads out of the set" in "\n".join(make().verify())


def test_people(make: Make, folder: Path) -> None:
    """By name in both files; in imdb.mat by number where the name is empty; unknown without either."""
    entries = celebrities()
    entries[4]["name"] = ""  # its celeb_id is 1
    write_imdb(folder, entries)
    wiki = [entry("00/1.jpg", "Celebrity 2"), entry("00/2.jpg", ""), entry("00/3.jpg", "Jose\u0301")]
    write_mat(folder / "wiki_crop" / "wiki.mat", wiki)
    for number, each in enumerate(wiki):
        put(folder / "wiki_crop" / each["full_path"], 20 + number, 1)
    people = {photo.name: photo.person for photo in make().photos}
    assert people["imdb/" + entries[4]["full_path"]] == "Celebrity 1"
    assert people["imdb/" + entries[5]["full_path"]] == people["wiki/00/1.jpg"] == "Celebrity 2"
    assert people["wiki/00/2.jpg"] is None
    assert people["wiki/00/3.jpg"] == "Jos\u00e9"
    assert {name.split("/")[0] for name in (photo.name for photo in make(subsets=["imdb"]).photos)} == {"imdb"}


def test_absurd_names_are_left_out(make: Make, folder: Path) -> None:
    entries = celebrities()
    for each, name in zip(entries, ("n" * 10**6, "Ann\nBob", "../Ann", "Ann\x1b[2J"), strict=False):
        each["name"] = name
    write_imdb(folder, entries)
    reasons = [rejected.reason for rejected in make().rejected]
    assert reasons[0] == "a name of 1,000,000 characters, expected 1 to 100"
    assert reasons[1:] == [
        f"{name!r} where a person's name was expected" for name in ("Ann\nBob", "../Ann", "Ann\x1b[2J")
    ]


def test_absurd_numbers(make: Make, folder: Path) -> None:
    entries = celebrities()
    absurd = (np.inf, -np.inf, np.nan, 1e300, -1e300)
    for each, number in zip(entries, absurd, strict=False):
        each |= {"dob": number, "gender": number, "face_location": np.full((1, 4), number)}
    write_imdb(folder, entries)
    data = make(need_sex=False)
    assert len(data.paths) + len(data.rejected) == 24
    assert len(data.paths) >= 19


def test_full_photos_are_cropped_to_the_face(make: Make, folder: Path) -> None:
    """Without alignment: the box and its margin, whatever lies around."""
    full = folder / "imdb"
    entries = celebrities()
    for number, each in enumerate(entries):
        canvas = Image.new("RGB", (400, 300), (0, 0, 255))
        canvas.paste((255, 0, 0), (101, 51, 281, 231))  # the box of 100 and its margin of 40 a side
        path = full / each["full_path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        canvas.save(path, quality=95)
        each["face_location"] = np.array([[142.0, 92.0, 241.0, 191.0]])
        if number == 0:
            each["face_location"] = np.zeros((0, 0))
    write_mat(full / "imdb.mat", entries)
    data = make(crops=False)
    assert [rejected.path for rejected in data.rejected] == [full / entries[0]["full_path"]]
    assert "does not fit the photo" in data.rejected[0].reason
    image = next(iter(data.training_photos()))["image"][0].float()
    assert image[0].mean() > 240
    assert image[2].mean() < 15


def test_faces_are_aligned(make: Make) -> None:
    data = make(align=True, image_size=64)
    assert len(data.paths) + len(data.rejected) == 24
    assert len(data.paths) >= 20
    assert all(rejected.reason == "no face found in it" for rejected in data.rejected)


def test_a_mat_file_that_is_missing(make: Make, folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no '.*wiki_crop/wiki.mat': unpack .* or leave 'wiki' out"):
        _ = make(subsets=["imdb", "wiki"]).photos
    with pytest.raises(FileNotFoundError, match=r"holds neither imdb.mat nor wiki.mat, .*, or set crops"):
        _ = make(crops=False).photos
    mat = folder / "imdb_crop" / "imdb.mat"
    mat.rename(folder / "imdb.mat")  # may lie there too
    assert len(make().paths) == 24
    (folder / "imdb_crop").rename(folder / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"but not the folder '.*imdb_crop' of its photos"):
        _ = make().photos
    with pytest.raises(FileNotFoundError, match=rf"no folder .*wikis'. Did you mean '{folder}'\?"):
        make(folder.with_name("imdb-wikis"))
    with pytest.raises(ValueError, match=r"no subset 'imbd'"):
        make(subsets=["imbd"])


def _lacks_fields(file: Path) -> None:
    savemat(file, {"imdb": {"dob": np.zeros((1, 2)), "full_path": cells(["a", "b"])}})


def _several_lengths(file: Path) -> None:
    entries = celebrities()
    write_mat(file, entries, dob=np.zeros((1, 3)))


def _wrong_kinds(file: Path) -> None:
    write_mat(file, celebrities(), gender=cells(["female"] * 24))


def _absurd_size(file: Path) -> None:
    savemat(file, {"imdb": {"full_path": cells(["a", "b"])}})
    size, absurd = (np.array([1, number], "<i4").tobytes() for number in (2, 2**31 - 1))
    assert file.read_bytes().count(size) == 1
    file.write_bytes(file.read_bytes().replace(size, absurd))


BAD_MATS = {
    "absurd size": (_absurd_size, r"cannot be read \(an array says that it holds 2,147,483,647 arrays"),
    "garbage": (lambda file: file.write_bytes(b"not MATLAB's" * 99), r"cannot be read \("),
    "truncated": (lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]), r"cannot be read \("),
    "other variable": (lambda file: savemat(file, {"wiki": {"dob": 1.0}}), r"holds wiki, expected the struct 'imdb'"),
    "no struct": (lambda file: savemat(file, {"imdb": np.zeros((1, 3))}), r"lacks the fields dob, .*; it has none"),
    "fields": (_lacks_fields, r"lacks the fields photo_taken, gender, .*; it has dob, full_path: take"),
    "lengths": (_several_lengths, r"several lengths \(dob 3, photo_taken 24, "),
    "kinds": (_wrong_kinds, r"fields of unexpected kinds"),
}


@pytest.mark.parametrize("case", BAD_MATS)
def test_a_bad_mat_file(make: Make, folder: Path, case: str) -> None:
    write, message = BAD_MATS[case]
    file = folder / "imdb_crop" / "imdb.mat"
    write(file)
    with pytest.raises(ValueError, match=message) as raised:
        _ = make().photos
    assert str(file) in str(raised.value)
    assert str(raised.value) in make().verify()


def test_verify(make: Make, folder: Path) -> None:
    entries = celebrities()
    (folder / "imdb_crop" / entries[3]["full_path"]).unlink()
    (folder / "imdb_crop" / entries[5]["full_path"]).write_bytes(b"")
    assert make().verify() == [
        "imdb.mat holds 24 entries, published: 460,723.",
        f"1 of the 24 photos of imdb.mat are missing; the first: imdb/{entries[3]['full_path']}.",
        f"1 of the 24 photos of imdb.mat cannot be read; the first: imdb/{entries[5]['full_path']} (empty file).",
        f"There is no '{folder / 'wiki_crop' / 'wiki.mat'}': unpack the archive that holds it there, or leave 'wiki' "
        "out of subsets",
    ]
