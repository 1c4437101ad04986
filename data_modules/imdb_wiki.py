"""IMDB-WIKI: photos of celebrities with sex and age."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.io import loadmat, whosmat
from torch import Tensor

from data_modules.base import FaceDataModule, FaceOptions
from data_modules.cache import Finding, find_unreadable, look_at_photos
from data_modules.files import (
    MAX_PART,
    MAX_PATH,
    did_you_mean,
    has_control_characters,
    nearest_folder,
    person_problem,
    portable,
)
from data_modules.matlab import check_mat
from data_modules.photos import (
    CentreReader,
    Hint,
    Photo,
    PhotoCheck,
    PhotoError,
    PhotoReader,
    Pixels,
    Rejected,
    map_photos,
    open_photo,
)
from data_modules.prepare.align import detecting_reader

Subset = Literal["imdb", "wiki"]

PUBLISHED_ENTRIES: dict[Subset, int] = {"imdb": 460_723, "wiki": 62_328}

DATENUM_AHEAD = 366
"""Days. MATLAB counts them from the year 0, which was a leap year, Python's `date.toordinal` from the year 1."""

DAYS_PER_YEAR = 365.2425

CROP_MARGIN = 0.4
"""What the published crops show around the face's box, on each side, in shares of its width and height."""

GREY_TOLERANCE = 8
"""Of 255: a photo in which no pixel's channels lie farther apart is grey, whatever the file's mode."""
_GREY_SIDE = 32  # pixels: that much of the shorter side is looked at

_FIELDS = ("dob", "photo_taken", "full_path", "gender", "name", "face_location", "face_score", "second_face_score")


class _Entry(NamedTuple):
    """A face in `imdb.mat` or `wiki.mat`.

    Attributes:
        name: of the Photo, "<subset>/<path in the subset's folder>".
        path: the file; None where the path in the .mat is none inside the subset's folder.
        person: the celebrity; None if unknown.
        sex: -1 female, 1 male, NaN unknown.
        age: years, NaN unknown.
        score: of the face detection; -inf where no face was found and the whole photo was kept.
        second_score: of the second strongest face; NaN where there is none.
        box: left, top, right, bottom of the face, in pixels of the full photo.
    """

    name: str
    path: Path | None
    person: str | None
    sex: float
    age: float
    score: float
    second_score: float
    box: tuple[float, float, float, float]


class IMDBWikiDataModule(FaceDataModule):
    """IMDB-WIKI (Rothe, Timofte and Van Gool 2018): 523,051 photos from IMDb and Wikipedia with sex and age.

    "Deep expectation of real and apparent age from a single image without facial landmarks", IJCV 126. Read as it is
    unpacked: `<root>/imdb_crop/imdb.mat` beside `<root>/imdb_crop/01/nm0000001_rm124825600_1899-5-10_1968.jpg`, and
    `wiki_crop` likewise; or `<root>/imdb/imdb.mat` beside full photos. The .mat file may lie in `root` as well.

    A face is used if it passes the filters below, whose defaults are those of Sanche, "Generating Faces using GANs"
    (section 4). Every other one is listed in `rejected` and in the run's `rejected.csv`, as are files that are missing
    or damaged. Labels: `sex` (-1 female, 1 male), `age` (years, from the birthday to the middle of the year in which
    the photo was taken, for only the year is known: right to half a year). About one label in fifty is wrong (Sanche).

    A person is a name: the same in both subsets is the same person. Who has no name is unknown, and only trains.

    Args:
        root: the folder that holds `imdb_crop` or `wiki_crop` (or `imdb`, `wiki`).
        subsets: "imdb", "wiki" or both; None for those that are there.
        crops: whether to read the published crops, or the full photos.
        align: whether to find the face in each photo and bring it into the common aligned frame, which photos given to
            the trained model are brought into as well. Without it the largest square in the middle of a crop is taken,
            or the face's box with the crops' margin from a full photo.
        min_age: years; younger ones are rejected, and those of unknown age. None for no bound.
        max_age: years; likewise for older ones. With neither bound unknown ages are kept.
        need_sex: whether to reject photos of people of unknown sex.
        single_face: whether to reject photos in which a second face was found: it is not known who is who.
        min_face_score: of the published face detection; photos below it, and those without a face, are rejected. None
            keeps all.
        min_side: pixels; photos with a shorter side are rejected. The smallest that the paper kept is 64x57.
        need_colour: whether to reject grey photos.
        cache_dir: where it is kept what was found out about the photos (landmarks, unreadable files), so that the next
            start is fast; None for `idface` in the user's cache folder.
        image_size: side of the square images, in pixels.
        options: what every FaceDataModule takes.

    Raises:
        FileNotFoundError: `root`, a subset that was asked for, or its .mat file does not exist.
        ValueError: a .mat file is damaged or lacks fields, or there are fewer than two people with usable photos.
    """

    licence = (
        "Academic research only; the photos, from the web, belong to their owners "
        "(data.vision.ee.ethz.ch/cvl/rrothe/imdb-wiki)"
    )

    def __init__(
        self,
        root: Path,
        subsets: list[Subset] | None = None,
        crops: bool = True,
        align: bool = True,
        min_age: float | None = 10,
        max_age: float | None = 100,
        need_sex: bool = True,
        single_face: bool = True,
        min_face_score: float | None = 0.0,
        min_side: int = 57,
        need_colour: bool = True,
        cache_dir: Path | None = None,
        image_size: int = 64,
        **options: Unpack[FaceOptions],
    ) -> None:
        super().__init__(image_size=image_size, **options)
        self.root = Path(root).expanduser()
        self.subsets = subsets
        self.crops = crops
        self.align = align
        self.min_age = min_age
        self.max_age = max_age
        self.need_sex = need_sex
        self.single_face = single_face
        self.min_face_score = min_face_score
        self.min_side = min_side
        self.need_colour = need_colour
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()
        if not self.root.is_dir():
            raise FileNotFoundError(f"root: there is no folder '{self.root}'.{did_you_mean(nearest_folder(self.root))}")
        for subset in subsets or []:
            if subset not in PUBLISHED_ENTRIES:
                raise ValueError(f"subsets: there is no subset '{subset}', expected 'imdb', 'wiki' or both")

    def list_photos(self) -> list[Photo | Rejected]:
        """The faces in the .mat files; those that the labels exclude are rejected, and missing files."""
        listed: list[Photo | Rejected] = []
        seen: set[str] = set()
        for subset, entries in self._entries.items():
            for entry in entries:
                if entry.path is None:
                    listed.append(Rejected(self._folder(subset), f"{entry.name[:80]!r}: no path inside this folder"))
                elif entry.person is not None and (problem := person_problem(entry.person)):
                    listed.append(Rejected(entry.path, problem))
                elif entry.name in seen:
                    listed.append(Rejected(entry.path, f"listed twice in {subset}.mat"))
                elif reason := self._excluded(entry):
                    listed.append(Rejected(entry.path, reason))
                elif not entry.path.is_file():
                    listed.append(Rejected(entry.path, "there is no such file"))
                else:
                    listed.append(Photo(entry.name, entry.person, entry.path))
                seen.add(entry.name)
        return listed

    def reader(self, photos: Sequence[Photo]) -> PhotoReader:
        """Reads and aligns photos, or takes the face's surroundings; refuses grey and small ones."""
        poor = self._find_poor(photos)
        rich = [photo for photo in photos if photo.name not in poor]
        if self.align:
            aligned = detecting_reader(rich, self.image_size, root=self.root, cache_dir=self.cache_dir)
            return _ChoosyReader(aligned, {**aligned.reasons, **poor})
        if self.crops:
            return _ChoosyReader(CentreReader(self.image_size), poor)
        boxes = {photo.name: self._by_name[photo.name].box for photo in rich}
        return _ChoosyReader(_BoxReader(boxes, self.image_size), poor)

    def find_unusable(self, photos: Sequence[Photo], read: PhotoReader) -> dict[str, str]:
        """Grey and small photos, those without a face, or that cannot be decoded; known from the cache."""
        return dict(read.reasons) if isinstance(read, _ChoosyReader) else {}

    def hints(self, photos: Sequence[Photo]) -> dict[str, Hint]:
        """The boxes of faces in full photos; the published crops show the face in their middle."""
        if self.crops:
            return {}
        return {photo.name: Hint(box=self._by_name[photo.name].box) for photo in photos}

    def check(self) -> PhotoCheck:
        """Refuses grey and small photos."""
        return partial(_check_rich, min_side=self.min_side, need_colour=self.need_colour)

    def labels(self, photos: Sequence[Photo]) -> dict[str, Tensor]:
        """`sex` and `age` of each photo, float32 (N,)."""
        entries = [self._by_name[photo.name] for photo in photos]
        columns = torch.tensor([(entry.sex, entry.age) for entry in entries], dtype=torch.float32).reshape(-1, 2)
        return {"sex": columns[:, 0].contiguous(), "age": columns[:, 1].contiguous()}

    def verify(self) -> list[str]:
        """What is missing or damaged, a sentence each: .mat files, entries, photos. Decodes what the labels allow."""
        found: list[str] = []
        for subset in self.subsets or PUBLISHED_ENTRIES:
            try:
                entries = self._read(subset)
            except (FileNotFoundError, ValueError) as error:
                found.append(str(error))
                continue
            if len(entries) != PUBLISHED_ENTRIES[subset]:
                found.append(f"{subset}.mat holds {len(entries):,} entries, published: {PUBLISHED_ENTRIES[subset]:,}.")
            outside = [entry.name for entry in entries if entry.path is None]
            missing = [entry.name for entry in entries if entry.path is not None and not entry.path.is_file()]
            photos = {
                entry.name: Photo(entry.name, entry.person, entry.path)
                for entry in entries
                if entry.path is not None and not self._excluded(entry) and entry.path.is_file()
            }
            broken = find_unreadable(list(photos.values()), root=self.root, cache_dir=self.cache_dir)
            for names, what in (
                (outside, "are given a path that leads out of the set"),
                (missing, "are missing"),
                ([f"{name} ({reason})" for name, reason in broken.items()], "cannot be read"),
            ):
                if names:
                    first = names[0][:200]
                    found.append(
                        f"{len(names):,} of the {len(entries):,} photos of {subset}.mat {what}; the first: {first}."
                    )
        return found

    def _find_poor(self, photos: Sequence[Photo]) -> dict[str, str]:
        """Why photos cannot be decoded, or are too small or grey, by name."""

        def check(photo: Photo) -> None:
            small = open_photo(photo, at_least=_GREY_SIDE)  # several times as fast
            with Image.open(photo.path) as image:
                _check_rich(small, self.min_side, self.need_colour, image.size)

        def look(chunk: Sequence[Photo]) -> Iterable[Finding]:
            for result in map_photos(check, chunk):
                yield Finding(str(result) if isinstance(result, PhotoError) else None)

        findings = look_at_photos(
            photos,
            look,
            kind=f"imdb-wiki-1-{self.min_side}-{'colour' if self.need_colour else 'any'}",
            root=self.root,
            cache_dir=self.cache_dir,
            task="Checking photos",
            at_once=256,
        )
        return {name: finding.reason for name, finding in findings.items() if finding.reason is not None}

    def _excluded(self, entry: _Entry) -> str | None:
        """Why a face's labels exclude it; the reason begins alike for alike ones, up to a colon."""
        low, high = self.min_age, self.max_age
        if self.min_face_score is not None and not entry.score >= self.min_face_score:
            return f"face score below {self.min_face_score:g}: {entry.score:g}" if entry.score > -np.inf else "no face"
        if self.single_face and not np.isnan(entry.second_score):
            return f"a second face: score {entry.second_score:g}"
        if self.need_sex and np.isnan(entry.sex):
            return "sex unknown"
        if low is None and high is None:
            return None
        if np.isnan(entry.age):
            return "age unknown"
        if (low is not None and entry.age < low) or (high is not None and entry.age > high):
            bounds = f"{'' if low is None else f'{low:g}'}..{'' if high is None else f'{high:g}'}"
            return f"age outside {bounds}: {entry.age:.1f}"
        return None

    @cached_property
    def _entries(self) -> dict[Subset, list[_Entry]]:
        subsets = self.subsets or [subset for subset in PUBLISHED_ENTRIES if self._mat_file(subset) is not None]
        if not subsets:
            raise FileNotFoundError(
                f"root: '{self.root}' holds neither imdb.mat nor wiki.mat, expected "
                f"'{self._folder('imdb') / 'imdb.mat'}' or '{self._folder('wiki') / 'wiki.mat'}': give the folder that "
                f"the archives were unpacked into{', or set crops' if self._has_other_form() else ''}"
            )
        return {subset: self._read(subset) for subset in subsets}

    @cached_property
    def _by_name(self) -> dict[str, _Entry]:
        return {entry.name: entry for entries in self._entries.values() for entry in entries}

    def _folder(self, subset: Subset, crops: bool | None = None) -> Path:
        return self.root / (f"{subset}_crop" if (self.crops if crops is None else crops) else subset)

    def _has_other_form(self) -> bool:
        return any(self._folder(subset, not self.crops).is_dir() for subset in PUBLISHED_ENTRIES)

    def _mat_file(self, subset: Subset) -> Path | None:
        places = (self._folder(subset) / f"{subset}.mat", self.root / f"{subset}.mat")
        return next((place for place in places if place.is_file()), None)

    def _read(self, subset: Subset) -> list[_Entry]:
        folder = self._folder(subset)
        file = self._mat_file(subset)
        if file is None:
            raise FileNotFoundError(
                f"There is no '{folder / f'{subset}.mat'}': unpack the archive that holds it there, or leave "
                f"'{subset}' out of subsets"
            )
        if not folder.is_dir():
            raise FileNotFoundError(f"'{file}' is there, but not the folder '{folder}' of its photos: unpack it there")
        return _read_mat(file, subset, folder)


@dataclass(frozen=True)
class _ChoosyReader:
    """Reads photos by another reader, but not those that are known to be unusable.

    Attributes:
        read: reads the others.
        reasons: why a photo is unusable, by name.
    """

    read: PhotoReader
    reasons: Mapping[str, str]

    def __call__(self, photo: Photo) -> Pixels:
        """Read a photo as uint8 (size, size, 3)."""
        if photo.name in self.reasons:
            raise PhotoError(self.reasons[photo.name])
        return self.read(photo)


@dataclass(frozen=True)
class _BoxReader:
    """Reads the square around a face's box, with the margin of the published crops; black where the photo ends.

    Attributes:
        boxes: left, top, right, bottom, in pixels, by the photo's name.
        size: side of the picture, in pixels.
    """

    boxes: Mapping[str, tuple[float, float, float, float]]
    size: int

    def __call__(self, photo: Photo) -> Pixels:
        """Read a photo as uint8 (size, size, 3)."""
        left, top, right, bottom = self.boxes[photo.name]
        half = (1 + 2 * CROP_MARGIN) * max(right - left, bottom - top) / 2
        image = open_photo(photo)
        if not 1 <= half <= max(image.size):
            raise PhotoError(f"the face's box {left:g}, {top:g}, {right:g}, {bottom:g} does not fit the photo")
        x, y = (left + right) / 2, (top + bottom) / 2
        square = image.crop((round(x - half), round(y - half), round(x + half), round(y + half)))
        return np.asarray(square.resize((self.size, self.size), Image.Resampling.LANCZOS))


def _check_rich(image: Image.Image, min_side: int, need_colour: bool, size: tuple[int, int] | None = None) -> None:
    """Refuse a photo that is small, or grey; `size` is the photo's if the image is a smaller copy."""
    width, height = size or image.size
    if min(width, height) < min_side:
        raise PhotoError(f"shorter side below {min_side} pixels: {width}x{height}")
    # An eighth of the size is enough to tell grey from colour, and leaves out the noise of single pixels.
    shrunk = image.reduce(max(1, min(8, min(image.size) // _GREY_SIDE)))
    if need_colour and int(np.ptp(np.asarray(shrunk), axis=2).max()) <= GREY_TOLERANCE:
        raise PhotoError("grey")


def _read_mat(file: Path, subset: Subset, folder: Path) -> list[_Entry]:
    try:
        check_mat(file, subset)
        variables = loadmat(file, variable_names=[subset])
        struct = variables[subset][0, 0]
        found = set(struct.dtype.names or ())
    except KeyError:
        names = ", ".join(sorted(name[:40] for name, _, _ in whosmat(file)[:10])) or "nothing"
        raise ValueError(f"'{file}' holds {names}, expected the struct '{subset}': take the published file") from None
    except Exception as error:  # a damaged file makes scipy raise whatever comes: zlib.error, TypeError, ...
        raise ValueError(f"'{file}' cannot be read ({error}): take the published file again") from error
    if missing := [field for field in _FIELDS if field not in found]:
        raise ValueError(
            f"'{file}' lacks the fields {', '.join(missing)}; it has {', '.join(sorted(found)[:20]) or 'none'}: "
            "take the published file"
        )
    fields = {field: struct[field].ravel() for field in found}
    sizes = {field: len(fields[field]) for field in _FIELDS}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{field} {size}" for field, size in sizes.items())
        raise ValueError(f"'{file}' has fields of several lengths ({told}), expected one: take the published file")
    try:
        numbers = {
            key: fields[key].astype(np.float64)
            for key in ("dob", "photo_taken", "gender", "face_score", "second_face_score")
        }
        ages = _ages(numbers["dob"], numbers["photo_taken"])
        return [
            _Entry(
                name=f"{subset}/{portable(path)}",
                path=_inside(folder, path),
                person=person,
                sex={0.0: -1.0, 1.0: 1.0}.get(gender, np.nan),
                age=age,
                score=-np.inf if np.isnan(score) else score,
                second_score=second,
                box=_box(box),
            )
            for path, person, gender, age, score, second, box in zip(
                map(_text, fields["full_path"]),
                _people(fields),
                numbers["gender"].tolist(),
                ages.tolist(),
                numbers["face_score"].tolist(),
                numbers["second_face_score"].tolist(),
                fields["face_location"],
                strict=True,
            )
        ]
    except (TypeError, ValueError) as error:
        raise ValueError(f"'{file}' has fields of unexpected kinds ({error}): take the published file") from error


def _ages(born: NDArray[np.float64], taken: NDArray[np.float64]) -> NDArray[np.float64]:
    """Years from MATLAB's day numbers of birth, (N,), to the middle of the years (N,); NaN where either is no date."""
    known = np.isfinite(taken) & (taken >= 1) & (taken <= 9999)
    middles = np.full(taken.shape, np.nan)
    for year in np.unique(taken[known]):
        middles[taken == year] = date(int(year), 7, 1).toordinal()
    births = np.where(np.isfinite(born) & (born > DATENUM_AHEAD), born - DATENUM_AHEAD, np.nan)
    return (middles - births) / DAYS_PER_YEAR


def _people(fields: Mapping[str, NDArray[Any]]) -> Iterable[str | None]:
    """Who is on each photo: by name, or in imdb.mat by number where there is none."""
    names = [portable(_text(name)).strip() for name in fields["name"]]
    celebrities = [portable(_text(name)).strip() for name in fields.get("celeb_names", ())]
    numbers = fields.get("celeb_id", np.zeros(0))
    for row, name in enumerate(names):
        if not name and row < len(numbers) and 1 <= numbers[row] <= len(celebrities):  # MATLAB counts from 1
            name = celebrities[int(numbers[row]) - 1]
        yield name or None


def _text(cell: Any) -> str:
    """The text in a cell of MATLAB's; empty ones come as arrays of nothing, or of numbers."""
    return "".join(part for part in np.ravel(cell).tolist() if isinstance(part, str))


def _inside(folder: Path, path: str) -> Path | None:
    """The file of a path that was read from a .mat; None where it is empty or would lead out of the folder."""
    inside = PurePosixPath(path[: MAX_PATH + 1])
    if not inside.parts or inside.is_absolute() or ".." in inside.parts or re.search(r"[\\:]", path):
        return None
    lengths = [len(part.encode("utf-8", "replace")) for part in inside.parts]
    if len(path) > MAX_PATH or sum(lengths) > MAX_PATH or max(lengths) > MAX_PART or has_control_characters(path):
        return None
    return folder / inside


def _box(cell: Any) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a face, from MATLAB's pixels, which count from 1; zeros where there is none."""
    numbers = np.ravel(cell)
    if numbers.dtype.kind not in "iuf" or len(numbers) != 4 or not np.isfinite(numbers).all():
        return (0.0, 0.0, 0.0, 0.0)
    left, top, right, bottom = numbers.astype(np.float64).tolist()
    return (left - 1, top - 1, right, bottom)
