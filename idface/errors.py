"""The parser's error messages in one readable sentence each, with the nearest valid name."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from idface.names import class_index, did_you_mean, from_here, nearest, nearest_option, nearest_path

# jsonargparse nests its messages, a key or a class a level, every member of a union with its own reason:
#
#   Parser key "model":
#     Does not validate against any of the Union subtypes
#     Subtypes: [<class 'LightningModule'>, <class 'NoneType'>]
#     Errors:
#       - Problem with given class_path 'idface.modules.ipgan.OpenSetIPGAN':
#           Option 'widht' is not accepted
#       - Expected a <class 'NoneType'>
#     Given value type: <class 'dict'>
#     Given value: {...}
_KEY = re.compile(r'Parser key "(?P<key>[^"]+)":\s*(?P<rest>.*)')
_CLASS = re.compile(r"Problem with given class_path '(?P<path>[^']+)':")
_NOISE = re.compile(
    r"Does not validate against|Subtypes:|Errors:|Given value|Expected a <class 'NoneType'>|$"
    r"|Not a valid subclass|Subclass types expect|a class path \(str\)|a dict with"
)

_UNKNOWN_ARGUMENT = re.compile(r"unrecognized arguments: --(?P<option>[^\s=]+)")
_UNKNOWN_OPTION = re.compile(r"Option '(?P<option>[^']+)' is not accepted|does not accept option '(?P<key>[^']+)'")
_UNKNOWN_CLASS = re.compile(r"Expected a dot import path string: (?P<name>\w+)$")
_UNKNOWN_PATH = re.compile(r"module '[^']+' has no attribute '[^']+'|No module named '[^']+'")
_UNKNOWN_CHOICE = re.compile(r"invalid choice: '(?P<word>[^']*)' \(choose from (?P<choices>.*)\)")
_MISSING_FILE = re.compile(r"File does not exist: '(?P<path>[^']+)'")


class _Cause(NamedTuple):
    where: str  # dotted key, empty at the top
    within: str | None  # import path of the class whose arguments were parsed
    text: str


def explain(message: str, options: Iterable[str]) -> str:
    """Rewrite a message of the parser so that it names the cause and the nearest valid name.

    Args:
        message: what jsonargparse or argparse says.
        options: dotted names of every option that the parser takes.

    Returns:
        One line a cause; the message as it came if it holds no cause that is known here.
    """
    options = set(options)
    explained: list[str] = []
    guessed: list[str] = []
    others: list[str] = []
    for cause in _causes(message):
        place = f"{cause.where}: " if cause.where else ""
        sentence = _explain_cause(cause, options)
        if sentence is None:
            others.append(place + cause.text)
        elif "Did you mean" in sentence:
            guessed.append(place + sentence)
        else:
            explained.append(place + sentence)
    lines = guessed or explained or others or [message]
    return "\n".join(dict.fromkeys(lines))


def _causes(message: str) -> list[_Cause]:
    """The leaves of the message's tree, each with the keys and the class that it stands under."""
    causes: list[_Cause] = []
    branch: list[tuple[int, str | None, str | None]] = []  # indentation, key, class
    for line in message.splitlines():
        text = line.lstrip(" -") if line.lstrip().startswith("- ") else line.lstrip()
        indent = len(line) - len(text)
        while branch and branch[-1][0] >= indent:
            branch.pop()
        if key := _KEY.match(text):
            branch.append((indent, key["key"], None))
            text = key["rest"]
        elif path := _CLASS.match(text):
            branch.append((indent, None, path["path"]))
            continue
        if not _NOISE.match(text):
            where = ".".join(key for _, key, _ in branch if key)
            within = next((path for _, _, path in reversed(branch) if path), None)
            causes.append(_Cause(where, within, text))
    return causes


def _explain_cause(cause: _Cause, options: set[str]) -> str | None:
    """One sentence for a cause that is known here, else None."""
    text = cause.text
    if found := _UNKNOWN_ARGUMENT.search(text):
        option = found["option"]
        return f"there is no option '--{option}'.{_guess_option(option, options, '--')}"
    if found := _UNKNOWN_OPTION.search(text):
        option = found["option"] or found["key"]
        if cause.within is None:
            return f"there is no option '{option}'.{_guess_option(option, options)}"
        own = _arguments(cause.within)
        known = f" Its options: {', '.join(own)}." if own else ""
        return f"{cause.within} has no option '{option}'.{_guess_option(option, own)}{known}"
    if found := _UNKNOWN_CLASS.search(text):
        return _explain_class(found["name"])
    if cause.within and _UNKNOWN_PATH.search(text):
        return _explain_class_path(cause.within)
    if found := _UNKNOWN_CHOICE.search(text):
        choices = re.findall(r"[\w-]+", found["choices"])
        guess = nearest(found["word"], choices)
        return f"'{found['word']}' is none of {', '.join(choices)}.{did_you_mean(guess)}"
    if found := _MISSING_FILE.search(text):
        return missing_path(Path(found["path"]))
    return None


def missing_path(path: Path) -> str:
    """What to say about a path that does not exist."""
    guess = nearest_path(path.absolute())
    return f"there is no file or folder '{from_here(path)}'.{did_you_mean(guess and from_here(guess))}"


def _explain_class(name: str) -> str:
    paths = class_index().get(name, [])
    if len(paths) > 1:
        return f"several classes are called '{name}': give one of {', '.join(paths)}."
    known = _class_names()
    if name in known:
        return f"class '{name}' is of another kind than is needed here."
    return f"there is no class '{name}'.{did_you_mean(nearest(name, known))}"


def _explain_class_path(path: str) -> str:
    module, _, name = path.rpartition(".")
    try:
        members = vars(importlib.import_module(module))
    except ModuleNotFoundError:
        guess = nearest(name, _class_names())
    else:
        guess = nearest(name, (member for member, value in members.items() if inspect.isclass(value)))
        guess = guess and f"{module}.{guess}"
    return f"there is no class '{path}'.{did_you_mean(guess)}"


def _class_names() -> set[str]:
    """Short names that may stand in a YAML: the project's own classes and the usual ones of Lightning and torch."""
    import torch
    from lightning.pytorch import callbacks, loggers, profilers, strategies

    others = {name for module in (callbacks, loggers, profilers, strategies) for name in module.__all__}
    optimizers = {name for module in (torch.optim, torch.optim.lr_scheduler) for name in dir(module)}
    return {name for name in others | optimizers if name[0].isupper()} | set(class_index())


def _arguments(class_path: str) -> list[str]:
    """Names of the constructor's arguments of a class, its bases' included where it passes them on."""
    names: dict[str, None] = {}
    for base in pkgutil.resolve_name(class_path).__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
        names |= dict.fromkeys(p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    return list(names)


def _guess_option(option: str, options: Iterable[str], prefix: str = "") -> str:
    guess = nearest_option(option, options)
    return did_you_mean(guess and prefix + guess)
