"""People by name, across data sets that write names differently."""

import logging
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info

from data_modules.files import did_you_mean, nearest_file
from data_modules.photos import Photo, Rejected

log = logging.getLogger(__name__)

Names = Mapping[str, Sequence[str]]
"""What people are called, by the key that a data set knows them by."""


def plain_name(name: str) -> str:
    """The same for a name however it is written: "Aaron_Eckhart" and "aaron eckhart" are "aaroneckhart".

    Accents, case, and all but letters and digits are dropped.
    """
    letters = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", name).casefold())
    return "".join(letter for letter in letters if letter.isalnum())


def read_names(file: Path) -> dict[str, str]:
    """Read a list of people, UTF-8 text with a name a line; empty lines and those that begin with # are passed over.

    Returns:
        The names as they are written, by the same without what writings differ in.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no text, or a line holds more than a name.
    """
    lines = _read_lines(file, "exclude")
    names: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        name = line.strip()
        if "\t" in name:
            raise ValueError(
                f"exclude: '{file}', line {number}: {name!r} holds a tab, expected a name and nothing else"
            )
        if not name.startswith("#") and (plain := plain_name(name)):
            names.setdefault(plain, name)
    return names


def read_photo_names(file: Path) -> frozenset[str]:
    """Read a list of photos, UTF-8 text with a photo's name a line; empty lines and those with # first are passed over.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no text.
    """
    return frozenset(line for line in _read_lines(file, "leave_out") if line.strip() and not line.startswith("#"))


def part_left_out(photos: Sequence[Photo], named: frozenset[str], file: Path) -> tuple[list[Photo], list[Rejected]]:
    """Part photos from those that a list names, and log how many they are; these are rejected."""
    kept = [photo for photo in photos if photo.name not in named]
    rejected = [Rejected(photo.path, f"is named in {file}") for photo in photos if photo.name in named]
    if rejected:
        rank_zero_info(f"leave_out: {len(rejected):,} photos are left out, of the {len(named):,} named in '{file}'.")
    else:
        here = f", whose photos have names such as {photos[0].name!r}" if photos else ""
        log.warning("leave_out: no photo of this set%s is named in '%s': none is left out", here, file)
    return kept, rejected


def _read_lines(file: Path, option: str) -> list[str]:
    if not file.is_file():
        raise FileNotFoundError(f"{option}: there is no file '{file}'.{did_you_mean(nearest_file(file))}")
    try:
        return file.read_text("utf-8-sig").splitlines()  # a byte order mark is no part of the first name
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{option}: '{file}' is not UTF-8 text ({error.reason} at byte {error.start:,}), expected a name a line: "
            "save it as UTF-8"
        ) from None


def part_excluded(
    photos: Sequence[Photo], excluded: Mapping[str, str], called: Names, file: Path
) -> tuple[list[Photo], list[Rejected]]:
    """Part photos from those of people whom a list names, and log how many they are.

    Args:
        photos: the photos.
        excluded: what `read_names` has read.
        called: the names of people whose key is none, or not their only one.
        file: where `excluded` was read from.

    Returns:
        The photos to keep, and the others, rejected.
    """
    people = sorted({photo.person for photo in photos if photo.person is not None})
    reasons: dict[str | None, str] = {}
    for person in people:
        for name in (person, *called.get(person, ())):
            if plain_name(name) in excluded:
                reasons[person] = f"{person if name == person else f'{person} ({name})'} is named in {file}"
                break
    kept = [photo for photo in photos if photo.person not in reasons]
    rejected = [Rejected(photo.path, reasons[photo.person]) for photo in photos if photo.person in reasons]
    if reasons:
        rank_zero_info(
            f"exclude: {len(reasons):,} of the {len(people):,} people are among the {len(excluded):,} named in "
            f"'{file}': their {len(rejected):,} photos are left out."
        )
    else:
        named = f" ({len(excluded):,}, such as {next(iter(excluded.values()))!r})" if excluded else ""
        here = f"whose people have names such as {people[0]!r}" if people else "whose people are not known"
        log.warning("exclude: no name in '%s'%s is one of this set, %s: nobody is left out", file, named, here)
    return kept, rejected
