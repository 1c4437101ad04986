"""The two console scripts: `lightning` trains and evaluates, `idface` holds everything else.

Nothing here imports torch: `idface --help` and a shell's completion answer at once, and a verb imports what it needs
when it runs.
"""

import argparse
import io
import os
import pkgutil
import re
import sys
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn

from idface.errors import explain, missing_path
from idface.names import class_path, data_modules, did_you_mean, nearest
from idface.run import RunNotFound, newest_run

_NUMBER = re.compile(r"-[\d.]+")

TRAINING = {
    "fit": "train a model",
    "validate": "evaluate a checkpoint on the validation people",
    "test": "evaluate a checkpoint on the test people and write the report",
    "predict": "run a checkpoint over the data",
}


def lightning(argv: Sequence[str] | None = None) -> None:
    """`lightning fit|validate|test|predict --config FILE ...`.

    Args:
        argv: the arguments, by default those of the process.
    """
    from idface.training import TrainingCLI

    TrainingCLI(list(sys.argv[1:] if argv is None else argv))


def main(argv: Sequence[str] | None = None) -> None:
    """`idface <verb> ...`; `idface fit ...` and the like are `lightning fit ...`.

    Args:
        argv: the arguments, by default those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in TRAINING:
        lightning(argv)
        return
    parser = build_parser()
    options = parser.parse_args(arguments or ["--help"])
    try:
        options.run(options)
    except BrokenPipeError:  # whoever reads the output, such as `head`, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it ends
    except KeyboardInterrupt:
        goes_on = ": the same command goes on from there" if options.verb == "prepare" else ""
        parser.exit(130, f"\n{parser.prog} {options.verb}: interrupted{goes_on}\n")
    except (ValueError, OSError) as error:  # what the user gave is of no use; the message says why
        parser.exit(2, f"{parser.prog} {options.verb}: error: {error}\n")


class _Parser(argparse.ArgumentParser):
    """argparse with one-line errors that name the nearest valid option or verb."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse, but a misspelt option is said to be one before the right one is said to be missing."""
        if self._subparsers is None:
            for option in (argument.partition("=")[0] for argument in args if argument.startswith("-")):
                if not _NUMBER.fullmatch(option) and option not in self._option_string_actions:
                    self.error(f"unrecognized arguments: {option}")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and exit with 2."""
        options = {option.lstrip("-") for option in self._option_string_actions}
        self.exit(2, f"{self.prog}: error: {explain(message, options)}\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of `idface`: a verb each for what is not training."""
    parser = _Parser(prog="idface", description="Identity-preserving face synthesis.", allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    recombine = verbs.add_parser("recombine", help="give faces the identity of others", allow_abbrev=False)
    recombine.add_argument("--checkpoint", required=True, metavar="CKPT", help="a checkpoint's path, or zoo:NAME")
    recombine.add_argument(
        "--identity", type=_existing, required=True, metavar="PHOTO", help="who: a photo, or a folder for a grid's rows"
    )
    recombine.add_argument(
        "--attributes", type=_existing, required=True, metavar="PHOTO", help="how: a photo, or a folder for its columns"
    )
    recombine.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    recombine.add_argument(
        "--align", action=argparse.BooleanOptionalAction, default=True, help="find and align the faces in the photos"
    )
    recombine.set_defaults(run=_recombine)

    report = verbs.add_parser("report", help="write a run's HTML page and print its path", allow_abbrev=False)
    report.add_argument("folder", type=_run, metavar="RUN", help="a run folder, or an experiment's for its newest run")
    report.set_defaults(run=_report)

    export = verbs.add_parser(
        "export", help="keep what a checkpoint needs to generate, as safetensors", allow_abbrev=False
    )
    export.add_argument("--checkpoint", required=True, metavar="CKPT", help="a checkpoint's path, or zoo:NAME")
    export.add_argument("--out", type=Path, required=True, metavar="FILE", help="the .safetensors file to write")
    export.add_argument(
        "--half", action=argparse.BooleanOptionalAction, default=True, help="store float16: less than a grey level off"
    )
    export.set_defaults(run=_export)

    verify = verbs.add_parser("verify", help="say what is missing or damaged in a data set", allow_abbrev=False)
    verify.add_argument("--data", required=True, choices=data_modules(), help="how it is published")
    verify.add_argument("--root", type=_existing, required=True, metavar="DIR", help="the data set's folder")
    verify.set_defaults(run=_verify)

    people = verbs.add_parser(
        "people", help="print who is in a data set, a name a line, for another one's `exclude`", allow_abbrev=False
    )
    people.add_argument("--data", required=True, choices=data_modules(), help="how it is published")
    people.add_argument("--root", type=_existing, required=True, metavar="DIR", help="the data set's folder")
    people.set_defaults(run=_people)

    sources = sorted({*data_modules(), "orl"} - {"prepared"})
    prepare = verbs.add_parser(
        "prepare", help="find, align and label a data set's faces, and write them as Parquet shards", allow_abbrev=False
    )
    prepare.add_argument("--data", required=True, choices=sources, help="how the set is published")
    prepare.add_argument("--root", type=_existing, metavar="DIR", help="its folder, or an archive of it (not for orl)")
    prepare.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder; or one to go on with")
    prepare.add_argument("--size", type=int, default=128, metavar="S", help="side of the pictures (%(default)s pixels)")
    prepare.add_argument(
        "--margin", type=float, default=0.0, help="shown around the aligned frame, in units of its side (%(default)s)"
    )
    prepare.add_argument(
        "--face",
        choices=("main", "largest", "nearest"),
        default="main",
        help="which of several: the largest, the nearest to the set's box or the photo's centre, or a mix of both",
    )
    prepare.add_argument(
        "--min-side", type=int, default=32, metavar="S", help="refuse faces of fewer pixels a side (%(default)s)"
    )
    prepare.add_argument("--encoding", choices=("jpeg", "png"), default="jpeg", help="of the pictures (%(default)s)")
    prepare.add_argument("--quality", type=int, default=95, help="of JPEG, 1 to 100 (%(default)s)")
    prepare.add_argument("--exclude", type=_existing, metavar="FILE", help="a list of people to leave out, one a line")
    prepare.add_argument(
        "--set", action="append", default=[], metavar="OPTION=VALUE", help="an option of the data module; may repeat"
    )
    prepare.add_argument("--engine", choices=("local", "ray"), default="local", help="where it runs (%(default)s)")
    prepare.add_argument("--workers", type=int, metavar="N", help="processes (one a core)")
    prepare.add_argument("--device", metavar="DEVICE", help="of the detector: cpu or cuda (a GPU if there is one)")
    prepare.set_defaults(run=_prepare)

    completion = verbs.add_parser("completion", help='for bash and zsh: eval "$(idface completion)"')
    completion.set_defaults(run=lambda _: print(_completion_script(verbs.choices)))

    for verb, summary in TRAINING.items():
        verbs.add_parser(verb, help=f"{summary} (the same as: lightning {verb})", allow_abbrev=False)
    return parser


def _recombine(options: argparse.Namespace) -> None:
    from idface.protocols.recombine import recombine

    print(recombine(options.checkpoint, options.identity, options.attributes, options.out, align=options.align))


def _report(options: argparse.Namespace) -> None:
    from idface.report.page import write_report

    print(write_report(options.folder))


def _export(options: argparse.Namespace) -> None:
    from idface.checkpoints import export_weights

    print(export_weights(options.checkpoint, options.out, half=options.half))


def _verify(options: argparse.Namespace) -> None:
    found = pkgutil.resolve_name(data_modules()[options.data])(options.root).verify()
    print(*found, sep="\n") if found else print("Nothing is missing or damaged, as far as can be told.")
    if found:
        sys.exit(1)


def _people(options: argparse.Namespace) -> None:
    people = pkgutil.resolve_name(data_modules()[options.data])(options.root).people()
    if not people:
        sys.exit(f"It is not known who is on the photos in '{options.root}'.")
    if isinstance(sys.stdout, io.TextIOWrapper):  # whatever the terminal's encoding, `exclude` reads UTF-8
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    print(*people, sep="\n", flush=True)


def _prepare(options: argparse.Namespace) -> None:
    import inspect

    import yaml

    from data_modules.prepare.engines import ENGINES
    from data_modules.prepare.run import prepare
    from data_modules.prepare.worker import Settings

    module = pkgutil.resolve_name({**data_modules(), "orl": class_path("ORLDataModule")}[options.data])
    if (options.root is None) != (options.data == "orl"):
        raise ValueError(f"--data {options.data} {'takes no' if options.root else 'needs a'} --root")
    given = {"exclude": options.exclude} if options.exclude else {}
    for text in options.set:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set {text}: expected OPTION=VALUE")
        try:
            given[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError(f"--set {text}: '{value}' is no value as YAML writes it") from None

    own = [each for each in module.__mro__ if each.__module__.startswith("data_modules.")]
    known = {name for each in own for name in inspect.signature(each.__init__).parameters} - {"self", "root", "options"}
    if unknown := given.keys() - known:
        name = min(unknown)
        raise ValueError(
            f"--set {name}: {module.__name__} has no such option.{did_you_mean(nearest(name, known))} It has "
            f"{', '.join(sorted(known))}"
        )
    if options.exclude is not None and not options.exclude.is_file():
        raise ValueError(f"--exclude '{options.exclude}' is a folder, expected a text file with a name a line")

    said = {name: str(value) for name, value in given.items()}
    if exclude := given.get("exclude"):
        said["exclude"] = f"SHA-256 {sha256(Path(exclude).read_bytes()).hexdigest()}"  # wherever the list lies

    def open_set(root: Path) -> Any:
        try:
            return module(**given) if options.root is None else module(root, **given)
        except TypeError as error:  # an option of another type
            raise ValueError(f"--set: {error}") from error

    manifest = prepare(
        open_set,
        options.root,
        options.data,
        options.out,
        Settings(options.size, options.margin, options.face, options.min_side, options.encoding, options.quality),
        options=said,
        engine=ENGINES[options.engine],
        workers=options.workers,
        device=options.device,
    )
    counts = manifest["counts"]
    print(f"{counts['prepared']:,} of {counts['photos']:,} photos are prepared, {counts['people']:,} people.")
    for kind, count in counts["rejected"].items():
        print(f"  {count:,} rejected: {kind}")
    if counts["rejected"]:
        print(f"Each is in {options.out / 'rejected.csv'}, some in {options.out / 'detection_sheet.png'}.")
    print(options.out)


def _existing(text: str) -> Path:
    path = Path(text)
    if not path.exists():
        raise argparse.ArgumentTypeError(missing_path(path))
    return path


def _run(text: str) -> Path:
    try:
        return newest_run(_existing(text))
    except RunNotFound as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _completion_script(verbs: Mapping[str, argparse.ArgumentParser]) -> str:
    """A bash function that completes verbs, their options and paths."""
    options = {verb: " ".join(parser._option_string_actions) for verb, parser in verbs.items()}
    options |= dict.fromkeys(TRAINING, "--config --ckpt_path --print_config --help")
    cases = "\n".join(f'    {verb}) words="{words}" ;;' for verb, words in options.items())
    return f"""\
[ -n "$ZSH_VERSION" ] && autoload -U bashcompinit && bashcompinit
_idface() {{
  local words="{" ".join(options)}"
  [ "$COMP_CWORD" -gt 1 ] && case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _idface idface"""
