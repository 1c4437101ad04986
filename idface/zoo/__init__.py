"""Weights that come with the project: NAME.safetensors, and beside it NAME.md, a card that says how they came to be."""

from pathlib import Path

from idface.names import did_you_mean, nearest

PREFIX = "zoo:"
"""What the name of kept weights begins with where a checkpoint is asked for."""

PEOPLE = ".people.txt"
"""What the list of those whom kept weights were trained on is called, after their name; a name a line, where known."""

_FOLDER = Path(__file__).parent


def zoo_names() -> list[str]:
    """Names of the weights that come with the project, each to be used as `zoo:NAME`."""
    return sorted(path.stem for path in _FOLDER.glob("*.safetensors"))


def zoo_people(name: str) -> Path | None:
    """The list of the people whom the weights called `name` were trained on, if it is kept."""
    path = _FOLDER / f"{name}{PEOPLE}"
    return path if path.is_file() else None


def zoo_file(name: str) -> Path:
    """The file of the weights called `name`, without the prefix.

    Raises:
        FileNotFoundError: there are none; the message names the nearest that there are.
    """
    names = zoo_names()
    if name not in names:
        guess = nearest(name, names)
        raise FileNotFoundError(
            f"the zoo has no '{name}'.{did_you_mean(guess and PREFIX + guess)} It has: {', '.join(names) or 'nothing'}"
        )
    return _FOLDER / f"{name}.safetensors"
