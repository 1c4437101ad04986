"""Names as people type them: short class names made whole, and the nearest valid name for a misspelt one."""

import difflib
import importlib.util
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

RECOGNIZERS = (
    "dlib, facenet:vggface2, facenet:casia-webface, mobilefacenet:FILE, mobilefacenet+flip:FILE, lightcnn9:FILE, "
    "lightcnn29:FILE"
)
"""What `--recognizer` and `--judge` take."""

_PACKAGES = ("idface", "data_modules")
_CLASS = re.compile(r"^class ([A-Z]\w*)", re.MULTILINE)


@cache
def class_index() -> dict[str, list[str]]:
    """Import paths of every public class in the project by its short name.

    Read from the sources and not by importing them: a name on the command line must not load torch, and one broken
    module must not break every run.
    """
    index: dict[str, list[str]] = {}
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        for root in map(Path, (spec and spec.submodule_search_locations) or ()):
            for source in sorted(root.rglob("*.py")):
                module = ".".join((package, *source.relative_to(root).with_suffix("").parts)).removesuffix(".__init__")
                for name in _CLASS.findall(source.read_text("utf-8")):
                    index.setdefault(name, []).append(f"{module}.{name}")
    return index


def data_modules() -> dict[str, str]:
    """Import paths of the data modules that read a folder, by the names of their files: `celeba`, `lfw`, ..."""
    paths = (path for name, found in class_index().items() if name.endswith("DataModule") for path in found)
    stems = {path.split(".")[1]: path for path in paths if path.startswith("data_modules.")}
    return {stem: path for stem, path in sorted(stems.items()) if stem not in ("base", "detected", "joined", "orl")}


def class_path(name: str) -> str:
    """`OpenSetIPGAN` -> `idface.modules.ipgan.OpenSetIPGAN`; any other word, or an ambiguous one, as it is."""
    match class_index().get(name):
        case [path]:
            return path
        case _:
            return name


def whole_class_paths(config: Any) -> Any:
    """A loaded YAML value with the short name after every `class_path` made whole."""
    match config:
        case dict():
            return {
                key: class_path(value) if key == "class_path" and isinstance(value, str) else whole_class_paths(value)
                for key, value in config.items()
            }
        case list():
            return [whole_class_paths(value) for value in config]
        case _:
            return config


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name most like `name`, whatever its case, or None if none is alike."""
    by_lower = {word.lower(): word for word in valid}
    matches = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[matches[0]] if matches else None


def nearest_option(option: str, valid: Iterable[str]) -> str | None:
    """Like `nearest` for dotted options: `trainr.max_steps` -> `trainer.max_steps`, `modle.x.y` -> `model`."""
    options = set(valid)
    return nearest(option, options) or nearest(option.split(".")[0], {word.split(".")[0] for word in options})


def nearest_path(path: Path) -> Path | None:
    """The existing path most like `path`, which does not exist: its first missing part is what was misspelt."""
    missing = path
    while not missing.parent.exists():
        missing = missing.parent
    if not missing.parent.is_dir():
        return None
    name = nearest(missing.name, (entry.name for entry in missing.parent.iterdir()))
    if name is None:
        return None
    whole = missing.with_name(name) / path.relative_to(missing)
    return whole if whole.exists() else nearest_path(whole)


def from_here(path: Path) -> Path:
    """A path as short as it can be told: relative if it is inside the current folder."""
    here = Path.cwd()
    whole = here / path
    return whole.relative_to(here) if whole.is_relative_to(here) else whole


def did_you_mean(suggestion: object | None) -> str:
    """` Did you mean 'x'?`, or nothing when there is no suggestion."""
    return f" Did you mean '{suggestion}'?" if suggestion is not None else ""
