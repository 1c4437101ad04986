"""The two console scripts: `lightning` trains and evaluates, `idface` holds everything else.

Nothing here imports torch: `idface --help` and a shell's completion answer at once, and a verb imports what it needs
when it runs.
"""

import argparse
import inspect
import io
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from idface.errors import explain, missing_path
from idface.names import RECOGNIZERS, class_path, data_modules, did_you_mean, nearest
from idface.run import RunNotFound, newest_run

Result = TypeVar("Result")

_NUMBER = re.compile(r"-[\d.]+")

GENERATOR = "a checkpoint's path, zoo:NAME, or a YAML file that describes a generator"
"""What `--checkpoint` takes where a generator is asked for."""

LABELLED = "LabelConditionedDCGAN"

YEARS_HELP = "an age, several as in 20,40,60, or first:last:step"

PRECISIONS = ("auto", "float32", "bfloat16")

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
        goes_on = ": the same command goes on from there" if getattr(options, "goes_on", False) else ""
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
    recombine.add_argument("--out", type=_folder, required=True, metavar="DIR", help="folder for the results")
    recombine.add_argument(
        "--align", action=argparse.BooleanOptionalAction, default=True, help="find and align the faces in the photos"
    )
    recombine.add_argument(
        "--originals",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="show the photos in the grid; otherwise their reconstructions",
    )
    recombine.set_defaults(run=_recombine)

    _add_ipgan_verbs(verbs)
    _add_reproduce(verbs)

    search = verbs.add_parser("search", help="find people's faces in a generator", allow_abbrev=False)
    search.add_argument("--checkpoint", required=True, metavar="CKPT", help=GENERATOR)
    search.add_argument(
        "--target",
        type=_existing,
        required=True,
        metavar="PHOTOS",
        help="who: a photo, a folder of one person's photos, or one with a folder for each of several people",
    )
    search.add_argument("--out", type=_folder, required=True, metavar="DIR", help="folder for the results")
    search.add_argument(
        "--strategy",
        choices=("li_luo", "annealed", "gradient", "cma_es", "hybrid"),
        default="hybrid",
        help="(%(default)s)",
    )
    search.add_argument("--budget", type=_count, default=10_000, metavar="N", help="evaluations a person (%(default)s)")
    search.add_argument("--bank", type=_existing, metavar="BANK", help="a bank of its faces, to start from")
    search.add_argument(
        "--recognizer", default="dlib", metavar="NAME", help=f"what measures distances (%(default)s): {RECOGNIZERS}"
    )
    search.add_argument("--judge", metavar="NAME", help="another one, which only looks at the results")
    search.add_argument("--seed", type=int, default=0, metavar="N", help="of all that is drawn (%(default)s)")
    search.add_argument(
        "--align", action=argparse.BooleanOptionalAction, default=True, help="find and align the faces in the photos"
    )
    search.add_argument("--precision", choices=PRECISIONS, default="auto", help="of scores (%(default)s)")
    search.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="compile the networks (where it is worth half a minute)",
    )
    search.set_defaults(run=_search, goes_on=True)

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
    prepare.add_argument("--out", type=_folder, required=True, metavar="DIR", help="a new folder; or one to go on with")
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
    prepare.set_defaults(run=_prepare, goes_on=True)

    bank = verbs.add_parser("bank", help="generate and embed faces, for searches to start from", allow_abbrev=False)
    _add_bank_verbs(bank.add_subparsers(dest="bank_verb", metavar="VERB", required=True))

    data = verbs.add_parser("data", help="look after data sets", allow_abbrev=False)
    _add_data_verbs(data.add_subparsers(dest="data_verb", metavar="VERB", required=True))

    _add_invert(verbs)
    _add_properties(verbs)
    _add_edit(verbs)
    _add_sample(verbs)
    _add_age(verbs)
    _add_synthesize(verbs)
    _add_augment(verbs)

    completion = verbs.add_parser("completion", help='for bash and zsh: eval "$(idface completion)"')
    completion.set_defaults(run=lambda _: print(_completion_script(verbs.choices)))

    for verb, summary in TRAINING.items():
        verbs.add_parser(verb, help=f"{summary} (the same as: lightning {verb})", allow_abbrev=False)
    return parser


def _add_ipgan_verbs(verbs: Any) -> None:
    morph = verbs.add_parser("morph", help="go from one photo's attributes to another's", allow_abbrev=False)
    morph.add_argument("first", type=_existing, metavar="A", help="a photo: where to begin")
    morph.add_argument("second", type=_existing, metavar="B", help="a photo: where to end")
    morph.add_argument("--identity", type=_existing, required=True, metavar="PHOTO", help="who all faces shall show")
    morph.add_argument("--steps", type=_count, default=9, metavar="N", help="faces (%(default)s)")
    morph.add_argument("--seconds", type=float, default=2.0, help="from A to B in the film (%(default)s)")

    frontalize = verbs.add_parser("frontalize", help="show people from the front", allow_abbrev=False)
    frontalize.add_argument("--photo", type=_existing, required=True, metavar="PHOTO", help="a photo, or a folder")
    frontalize.add_argument(
        "--frontal",
        type=_existing,
        required=True,
        metavar="DIR",
        help="photos of whomever, some from the front",
    )
    frontalize.add_argument(
        "--classifier", default="zoo:attributes", metavar="CKPT", help="finds landmarks (%(default)s)"
    )
    detect = verbs.add_parser(
        "detect-adversarial", help="tell faces that were changed to pass for another's", allow_abbrev=False
    )
    detect.add_argument("--checkpoint", required=True, metavar="CKPT", help="of an OpenSetIPGAN, or zoo:NAME")
    detect.add_argument(
        "--photos", type=_existing, metavar="SET", help="a prepared set of people (those whom the run's data hold out)"
    )
    detect.add_argument("--pairs", type=_count, default=300, metavar="N", help="of different people (%(default)s)")
    attacks = ("eq8", "pgd", "ddn", "aware")
    detect.add_argument("--attacks", nargs="+", choices=attacks, default=attacks, help="(all)")
    detect.add_argument(
        "--thresholds", nargs="+", type=float, metavar="D", help="(0.4, 0.6, 0.8 and 1 of the recogniser's own)"
    )
    detect.add_argument("--steps", type=_count, default=100, metavar="N", help="of each attack (%(default)s)")
    detect.add_argument(
        "--recognizer", metavar="NAME", help=f"what is attacked (what the model's f_I come from): {RECOGNIZERS}"
    )
    detect.add_argument("--seed", type=int, default=0, metavar="N", help="of pairs and folds (%(default)s)")
    detect.add_argument("--out", type=_folder, required=True, metavar="DIR", help="folder for the results")
    detect.set_defaults(run=_detect_adversarial)

    for verb, run in ((morph, _morph), (frontalize, _frontalize)):
        verb.add_argument("--checkpoint", required=True, metavar="CKPT", help="of an OpenSetIPGAN, or zoo:NAME")
        verb.add_argument(
            "--judge", metavar="NAME", help=f"who says whose face it is (the model's own judge): {RECOGNIZERS}"
        )
        verb.add_argument(
            "--align", action=argparse.BooleanOptionalAction, default=True, help="find and align the faces in photos"
        )
        verb.add_argument("--out", type=_folder, required=True, metavar="DIR", help="folder for the results")
        verb.set_defaults(run=run)


def _add_reproduce(verbs: Any) -> None:
    reproduce = verbs.add_parser(
        "reproduce", help="train what a table or figure of the IPGAN paper compares, and measure it", allow_abbrev=False
    )
    reproduce.add_argument(
        "what", choices=("ipgan-table2", "ipgan-table3", "ipgan-fig4", "ipgan-table4"), help="of Bao et al. 2018"
    )
    reproduce.add_argument(
        "--config", type=_existing, action="append", required=True, metavar="FILE", help="the recipe; may repeat"
    )
    reproduce.add_argument("--variants", nargs="+", metavar="NAME", help="(those of the table or figure)")
    reproduce.add_argument(
        "--seeds", nargs="+", type=int, metavar="N", help="of training (tables 2 and 3: 0 1 2; else 0)"
    )
    reproduce.add_argument("--judge", metavar="NAME", help=f"tables 2 and 3: who it is (the recipe's): {RECOGNIZERS}")
    reproduce.add_argument(
        "--classifier", metavar="CKPT", help="tables 2 and 3: says what photos show (zoo:attributes)"
    )
    reproduce.add_argument(
        "--photos",
        type=_existing,
        metavar="SET",
        help="fig4 and table4: a prepared set of people unseen in training (those whom the recipe's data hold out)",
    )
    reproduce.add_argument("--pairs", type=_count, metavar="N", help="table4: of photos (300)")
    reproduce.add_argument("--steps", type=_count, metavar="N", help="table4: of each attack (100)")
    reproduce.add_argument("--out", type=_folder, required=True, metavar="DIR", help="models and results")
    reproduce.set_defaults(run=_reproduce, goes_on=True)


def _add_data_verbs(verbs: Any) -> None:
    clean = verbs.add_parser("clean", help="flag photos whose sex or age looks wrongly labelled", allow_abbrev=False)
    clean.add_argument(
        "--data", type=_existing, required=True, metavar="FILE", help="a recipe with its data, or a prepared set"
    )
    clean.add_argument("--folds", type=_count, default=5, metavar="K", help="of the cross-validation (%(default)s)")
    clean.add_argument("--steps", type=_count, metavar="N", help="of each training (eight times all photos)")
    clean.add_argument("--share", type=float, default=0.05, help="of the photos, to flag (%(default)s)")
    clean.add_argument(
        "--plant", type=float, default=0.0, metavar="SHARE", help="plant wrong labels, and count the found"
    )
    clean.add_argument("--seed", type=int, default=0, metavar="N", help="of folds and training (%(default)s)")
    clean.add_argument("--out", type=_folder, required=True, metavar="DIR", help="folder for list, table and page")
    clean.set_defaults(run=_clean)

    doubles = verbs.add_parser(
        "doubles", help="list training photos that look like people held out, for `leave_out`", allow_abbrev=False
    )
    doubles.add_argument("--data", type=_existing, required=True, metavar="FILE", help="a recipe with its data")
    doubles.add_argument(
        "--share", type=float, default=1e-3, help="of pairs of different people, taken for one (%(default)s)"
    )
    doubles.add_argument("--recognizer", default="dlib", metavar="NAME", help=f"who looks (%(default)s): {RECOGNIZERS}")
    doubles.add_argument("--out", type=_folder, required=True, metavar="DIR", help="folder for list, table and picture")
    doubles.set_defaults(run=_doubles)


def _add_bank_verbs(verbs: Any) -> None:
    build = verbs.add_parser("build", help="make a bank, go on with one, or make one larger", allow_abbrev=False)
    build.add_argument("--checkpoint", required=True, metavar="CKPT", help=GENERATOR)
    build.add_argument("--size", type=_count, default=250_000, metavar="N", help="faces (%(default)s)")
    build.add_argument(
        "--out", type=_folder, required=True, metavar="BANK", help="a new folder; or a bank to go on with"
    )
    build.add_argument("--recognizer", default="dlib", metavar="NAME", help="what embeds the faces (%(default)s)")
    build.add_argument("--seed", type=int, default=0, help="of the latents (%(default)s)")
    build.add_argument(
        "--truncation", type=float, default=1.0, help="below 1 draws latents towards the origin (%(default)s)"
    )
    build.add_argument("--half", action="store_true", help="store float16: half the space")
    build.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="faces are made and embedded in: bfloat16 where that is fast (%(default)s)",
    )
    build.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="compile the networks first (if the bank is large)"
    )
    build.set_defaults(run=_build_bank, goes_on=True)

    report = verbs.add_parser(
        "report", help="how near its best face comes to generated and to real ones", allow_abbrev=False
    )
    report.add_argument("--bank", type=_existing, required=True, metavar="BANK", help="what `bank build` has written")
    report.add_argument("--checkpoint", required=True, metavar="CKPT", help="the generator that it was built with")
    report.add_argument("--recognizer", default="dlib", metavar="NAME", help="... and the recogniser (%(default)s)")
    report.add_argument("--data", required=True, choices=sorted({*data_modules(), "orl"}), help="of the real faces")
    report.add_argument("--root", type=_existing, metavar="DIR", help="the data set's folder (not for orl)")
    report.add_argument("--targets", type=_count, default=500, metavar="N", help="faces of each kind (%(default)s)")
    report.add_argument("--out", type=_folder, metavar="DIR", help="for the CSV and JSON files (the bank's folder)")
    report.set_defaults(run=_report_bank)


def _add_invert(verbs: Any) -> None:
    invert = verbs.add_parser("invert", help="draw a picture with a person's embedding", allow_abbrev=False)
    invert.add_argument("--method", choices=("pixels",), default="pixels", help="gradient descent on pixels")
    invert.add_argument(
        "--target", type=_existing, required=True, metavar="PHOTO", help="who: a photo, or a folder of photos of one"
    )
    invert.add_argument("--out", type=_folder, required=True, metavar="DIR", help="folder for the results")
    invert.add_argument("--each", action="store_true", help="a picture for each photo, whoever it shows")
    invert.add_argument("--guide", type=_existing, metavar="PHOTO", help="a face, of whomever, to stay near")
    invert.add_argument("--guide-layer", metavar="LAYER", help="... in this layer of the recogniser (a late one)")
    invert.add_argument("--guide-weight", type=float, default=2.0, help="... with this weight (%(default)s)")
    invert.add_argument("--tv-weight", type=float, default=15.0, help="of total variation: smoothness (%(default)s)")
    invert.add_argument("--steps", type=_count, default=500, metavar="N", help="of the descent (%(default)s)")
    invert.add_argument(
        "--size", type=_count, default=128, metavar="S", help="side of the picture (%(default)s pixels)"
    )
    invert.add_argument("--recognizer", default="dlib", metavar="NAME", help="whose embedding (%(default)s)")
    invert.add_argument("--judge", metavar="NAME", help="another recogniser, to say whether it sees the person too")
    invert.add_argument("--seed", type=int, default=0, help="of the noise at the start (%(default)s)")
    invert.add_argument(
        "--align", action=argparse.BooleanOptionalAction, default=True, help="find and align the faces in the photos"
    )
    invert.set_defaults(run=_invert)


def _add_properties(verbs: Any) -> None:
    properties = verbs.add_parser(
        "properties", help="what noise, signs and amplitude do to a generator's faces", allow_abbrev=False
    )
    properties.add_argument("--checkpoint", required=True, metavar="CKPT", help=GENERATOR)
    properties.add_argument("--out", type=_folder, required=True, metavar="DIR", help="folder for the results")
    properties.add_argument("--faces", type=_count, default=200, metavar="N", help="how many (%(default)s)")
    properties.add_argument("--recognizer", default="dlib", metavar="NAME", help="what tells who it is (%(default)s)")
    properties.add_argument("--seed", type=int, default=0, help="of the faces and the noise (%(default)s)")
    properties.set_defaults(run=_properties)


def _add_edit(verbs: Any) -> None:
    edit = verbs.add_parser("edit", help="change attributes of generated faces: vector arithmetic", allow_abbrev=False)
    edit.add_argument("--checkpoint", metavar="CKPT", help=f"{GENERATOR} (the one that the latent is of)")
    edit.add_argument(
        "--latent",
        required=True,
        metavar="FILE",
        help="whose: a .safetensors file of `search`, or random:N for N faces",
    )
    edit.add_argument(
        "--attribute",
        action="append",
        required=True,
        metavar="NAME=STRENGTH",
        help="eyeglasses, mouth_open, smiling, yaw, brightness, male ...; +1 is one difference of means; may repeat",
    )
    edit.add_argument("--out", type=_folder, required=True, metavar="DIR", help="folder for the results")
    edit.add_argument(
        "--classifier", default="zoo:attributes", metavar="CKPT", help="what labels generated faces (%(default)s)"
    )
    edit.add_argument("--recognizer", default="dlib", metavar="NAME", help="what tells who it is (%(default)s)")
    edit.add_argument("--count", type=_count, metavar="N", help="generated faces to label (20000)")
    edit.add_argument("--seed", type=int, default=0, help="of the faces and the random directions (%(default)s)")
    edit.add_argument("--directions", type=Path, metavar="FILE", help="take directions from there, or keep them there")
    edit.add_argument("--steps", type=_count, default=5, metavar="K", help="pictures in a strip (%(default)s)")
    edit.set_defaults(run=_edit)


def _add_sample(verbs: Any) -> None:
    sample = verbs.add_parser("sample", help="make faces of given sexes and ages", allow_abbrev=False)
    sample.add_argument("--checkpoint", required=True, metavar="CKPT", help=f"of a {LABELLED}, or zoo:NAME")
    sample.add_argument(
        "--sex",
        dest="sexes",
        nargs="+",
        choices=("female", "male"),
        default=("female", "male"),
        help="(both: each face of either)",
    )
    sample.add_argument("--age", dest="ages", default="15:75:10", metavar="YEARS", help=f"{YEARS_HELP} (%(default)s)")
    sample.add_argument("--count", type=_count, default=8, metavar="N", help="noise vectors (%(default)s)")
    sample.add_argument("--seed", type=int, default=0, metavar="N", help="of the noise (%(default)s)")
    sample.add_argument(
        "--format",
        choices=("grid", "images", "folder"),
        default="grid",
        help="one picture, a PNG each, or these with a table of their labels (%(default)s)",
    )
    sample.add_argument("--out", type=_folder, required=True, metavar="DIR", help="folder for the results")
    sample.set_defaults(run=_sample)


def _add_age(verbs: Any) -> None:
    age = verbs.add_parser("age", help="show a face at other ages", allow_abbrev=False)
    age.add_argument(
        "--checkpoint", required=True, metavar="CKPT", help=f"of a {LABELLED} with an encoder, or zoo:NAME"
    )
    age.add_argument("--photo", type=_existing, required=True, metavar="PHOTO", help="a photo, or a folder of photos")
    age.add_argument("--ages", required=True, metavar="YEARS", help=YEARS_HELP)
    age.add_argument("--sex", choices=("female", "male"), help="of the person (estimated)")
    age.add_argument("--own-age", type=float, metavar="YEARS", help="of the person on the photo (estimated)")
    age.add_argument("--steps", type=int, default=200, metavar="N", help="to refine the latent (%(default)s)")
    age.add_argument("--estimator", default="zoo:age-sex", metavar="FILE", help="of age and sex (%(default)s)")
    age.add_argument("--recognizer", default="dlib", metavar="NAME", help=f"who it is (%(default)s): {RECOGNIZERS}")
    age.add_argument(
        "--align", action=argparse.BooleanOptionalAction, default=True, help="find and align the faces in the photos"
    )
    age.add_argument("--out", type=_folder, required=True, metavar="DIR", help="folder for the results")
    age.set_defaults(run=_age)

    evaluate = verbs.add_parser(
        "evaluate", help="judge faces of given sexes and ages: found, obedient, various, new", allow_abbrev=False
    )
    evaluate.add_argument("--checkpoint", required=True, metavar="CKPT", help=f"of a {LABELLED}, or zoo:NAME")
    _add_training_data(evaluate)
    evaluate.add_argument("--count", type=_count, default=2000, metavar="N", help="most faces (%(default)s)")
    evaluate.add_argument("--seed", type=int, default=0, metavar="N", help="of noise and photos (%(default)s)")
    evaluate.add_argument("--estimator", default="zoo:age-sex", metavar="FILE", help="of age and sex (%(default)s)")
    evaluate.add_argument("--judge", default="dlib", metavar="NAME", help=f"measures distances: {RECOGNIZERS}")
    evaluate.add_argument("--out", type=_folder, required=True, metavar="DIR", help="folder for the results")
    evaluate.set_defaults(run=_evaluate)


def _add_synthesize(verbs: Any) -> None:
    synthesize = verbs.add_parser(
        "synthesize", help="make a set of synthetic faces of known or new people", allow_abbrev=False
    )
    synthesize.add_argument("--checkpoint", required=True, metavar="CKPT", help="of a CondVAEGAN, or zoo:NAME")
    synthesize.add_argument(
        "--out", type=_folder, required=True, metavar="SET", help="a new folder; or one to go on with"
    )
    synthesize.add_argument(
        "--per-identity", type=_count, default=200, metavar="N", help="faces of each person (%(default)s)"
    )
    synthesize.add_argument("--mix", type=int, default=0, metavar="K", help="make new people, each a mixture of K")
    synthesize.add_argument("--new-identities", type=int, default=0, metavar="M", help="... and so many of them")
    _add_training_data(synthesize)
    synthesize.add_argument(
        "--evaluation",
        type=_existing,
        action="append",
        default=[],
        metavar="SET",
        help="a prepared set of people whom no face may be taken for; may repeat",
    )
    synthesize.add_argument("--recognizer", default="dlib", metavar="NAME", help=f"checks faces: {RECOGNIZERS}")
    synthesize.add_argument(
        "--detect", action=argparse.BooleanOptionalAction, default=True, help="leave out what shows no face"
    )
    synthesize.add_argument("--unchecked", action="store_true", help="check nothing; the set says so")
    measured = "(measured on the photos)"
    synthesize.add_argument("--max-distance", type=float, metavar="D", help=f"to the mean of its person {measured}")
    synthesize.add_argument(
        "--duplicate-distance", type=float, metavar="D", help=f"least to training photos {measured}"
    )
    synthesize.add_argument("--leak-distance", type=float, metavar="D", help=f"least to other real people {measured}")
    synthesize.add_argument(
        "--format", choices=("shards", "folder"), default="shards", help="Parquet, or a PNG each (%(default)s)"
    )
    synthesize.add_argument("--seed", type=int, default=0, help="of all that is drawn (%(default)s)")
    synthesize.set_defaults(run=_synthesize, goes_on=True)


def _add_augment(verbs: Any) -> None:
    augment = verbs.add_parser(
        "augment", help="train recognisers with and without synthetic faces, and verify them", allow_abbrev=False
    )
    augment.add_argument("--checkpoint", required=True, metavar="CKPT", help="of a CondVAEGAN, or zoo:NAME")
    augment.add_argument("--evaluation", type=_existing, required=True, metavar="SET", help="LFW, prepared")
    augment.add_argument("--pairs", type=_existing, required=True, metavar="FILE", help="LFW's pairs.txt")
    augment.add_argument("--out", type=_folder, required=True, metavar="DIR", help="a new folder; or one to go on with")
    _add_training_data(augment)
    arms = ("real", "known", "new", "classic")
    augment.add_argument("--arms", nargs="+", choices=arms, default=arms, help="what is compared (all)")
    augment.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2), metavar="N", help="of the training (0 1 2)")
    augment.add_argument("--steps", type=_count, default=2000, metavar="N", help="batches of each (%(default)s)")
    augment.add_argument("--batch-size", type=_count, default=64, metavar="B", help="(%(default)s)")
    augment.add_argument("--layers", type=int, choices=(9, 29), default=9, help="of LightCNN (%(default)s)")
    augment.add_argument("--loss", choices=("softmax", "cosface"), default="softmax", help="(%(default)s)")
    augment.add_argument("--learning-rate", type=float, default=5e-4, help="(%(default)s)")
    augment.add_argument("--exclude", type=_existing, metavar="FILE", help="more people whose pairs are left out")
    augment.add_argument("--per-identity", type=_count, default=200, metavar="N", help="faces (%(default)s)")
    augment.add_argument("--mix", type=int, default=3, metavar="K", help="people in a new one (%(default)s)")
    augment.add_argument("--new-identities", type=_count, default=5000, metavar="M", help="(%(default)s)")
    augment.add_argument("--per-new-identity", type=_count, default=100, metavar="N", help="faces (%(default)s)")
    augment.add_argument("--recognizer", default="dlib", metavar="NAME", help=f"checks faces: {RECOGNIZERS}")
    augment.add_argument(
        "--detect", action=argparse.BooleanOptionalAction, default=True, help="leave out what shows no face"
    )
    augment.add_argument("--unchecked", action="store_true", help="check no synthetic face")
    augment.add_argument("--synthesis-seed", type=int, default=0, metavar="N", help="of the sets (%(default)s)")
    augment.set_defaults(run=_augment, goes_on=True)

    quality = verbs.add_parser("quality", help="judge synthetic sets: recognisable, real, various", allow_abbrev=False)
    quality.add_argument(
        "--set", dest="sets", action="append", required=True, metavar="[NAME=]SET", help="synthesised; may repeat"
    )
    quality.add_argument("--classifier", required=True, metavar="CKPT", help="of a LightCNNTraining on the real photos")
    quality.add_argument(
        "--data", type=_existing, required=True, metavar="FILE", help="those: a recipe whose data holds photos out"
    )
    quality.add_argument("--judge", default="dlib", metavar="NAME", help=f"measures distances: {RECOGNIZERS}")
    quality.add_argument("--seed", type=int, default=0, help="of the pairs that are drawn (%(default)s)")
    quality.add_argument("--out", type=_folder, required=True, metavar="DIR", help="folder for the results")
    quality.set_defaults(run=_quality)


def _add_training_data(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--data",
        type=_existing,
        metavar="FILE",
        help="what the model was trained on: a recipe with its data, or a prepared set (the run's own config.yaml)",
    )


def _called(function: Callable[..., Result], options: argparse.Namespace, **renamed: Any) -> Result:
    """Call a function with the options that are named as its parameters."""
    names = inspect.signature(function).parameters
    return function(**{name: value for name, value in vars(options).items() if name in names}, **renamed)


def _recombine(options: argparse.Namespace) -> None:
    from idface.protocols.recombine import in_words, recombine

    print(*in_words(_called(recombine, options)), options.out / "grid.png", sep="\n")


def _invert(options: argparse.Namespace) -> None:
    from idface.protocols.invert import invert

    print(_called(invert, options))


def _properties(options: argparse.Namespace) -> None:
    from idface.protocols.properties import properties

    print(_called(properties, options))


def _edit(options: argparse.Namespace) -> None:
    from idface.protocols.edit import edit, summary

    print(*summary(_called(edit, options, attributes=options.attribute)), options.out, sep="\n")


def _sample(options: argparse.Namespace) -> None:
    from idface.protocols.sample import sample

    files = _called(sample, options)
    print(files[0] if len(files) == 1 else f"{len(files)} faces", options.out, sep="\n")


def _age(options: argparse.Namespace) -> None:
    from idface.protocols.age import age_photos, in_words

    print(*in_words(_called(age_photos, options)), options.out, sep="\n")


def _evaluate(options: argparse.Namespace) -> None:
    from idface.protocols.evaluate import evaluate, in_words

    print(*in_words(_called(evaluate, options)), options.out, sep="\n")


def _morph(options: argparse.Namespace) -> None:
    from idface.protocols.morph import in_words, morph

    print(*in_words(_called(morph, options)), options.out, sep="\n")


def _frontalize(options: argparse.Namespace) -> None:
    from idface.protocols.frontalize import frontalize, in_words

    print(*in_words(_called(frontalize, options)), options.out, sep="\n")


def _detect_adversarial(options: argparse.Namespace) -> None:
    from idface.protocols.adversarial import detect_adversarial, in_words

    print(*in_words(_called(detect_adversarial, options)), options.out, sep="\n")


def _reproduce(options: argparse.Namespace) -> None:
    from idface.protocols.reproduce import in_words, reproduce

    print(*in_words(_called(reproduce, options)), options.out / options.what, sep="\n")


def _clean(options: argparse.Namespace) -> None:
    from idface.protocols.clean import PAGE, TABLE, clean, in_words

    print(*in_words(_called(clean, options)), options.out / (TABLE if options.plant else PAGE), sep="\n")


def _doubles(options: argparse.Namespace) -> None:
    from idface.protocols.doubles import doubles, in_words

    print(*in_words(_called(doubles, options)), options.out / "leave_out.txt", sep="\n")


def _synthesize(options: argparse.Namespace) -> None:
    from idface.protocols.synthesize import in_words, synthesize

    print(*in_words(_called(synthesize, options)), options.out, sep="\n")


def _augment(options: argparse.Namespace) -> None:
    from idface.protocols.augment import augment, in_words

    print(*in_words(_called(augment, options)), options.out, sep="\n")


def _quality(options: argparse.Namespace) -> None:
    from idface.protocols.quality import in_words, quality

    print(*in_words(_called(quality, options)), options.out, sep="\n")


def _search(options: argparse.Namespace) -> None:
    from idface.protocols.search import search_photos

    print(_called(search_photos, options))


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


def _build_bank(options: argparse.Namespace) -> None:
    from idface.protocols.bank import build

    bank = _called(build, options)
    print(f"{len(bank):,} faces of {options.checkpoint}, embedded by {options.recognizer}:\n{options.out}")


def _report_bank(options: argparse.Namespace) -> None:
    from idface.protocols.bank import report

    print(_called(report, options, folder=options.bank))


def _count(text: str) -> int:
    number = int(text) if re.fullmatch(r"[+-]?\d+", text) else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no count; expected a whole number, 1 or more")
    return number


def _folder(text: str) -> Path:
    """A folder to write into, which may not exist yet."""
    path = Path(text)
    nearest_there = next(each for each in (path, *path.absolute().parents) if each.exists())
    if not nearest_there.is_dir():
        raise argparse.ArgumentTypeError(f"'{nearest_there}' is a file; expected a folder, or a name that is free")
    if not os.access(nearest_there, os.W_OK):
        raise argparse.ArgumentTypeError(f"'{nearest_there}' cannot be written to; give a folder that can")
    return path


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


def _words(parser: argparse.ArgumentParser) -> list[str]:
    """What may follow a verb: its options, or its own verbs and theirs."""
    own = {} if parser._subparsers is None else parser._subparsers._group_actions[0].choices
    parts = [word for verb, below in dict(own or {}).items() for word in (verb, *_words(below))]
    return list(dict.fromkeys([*parts, *parser._option_string_actions]))


def _completion_script(verbs: Mapping[str, argparse.ArgumentParser]) -> str:
    """A bash function that completes verbs, their options and paths."""
    options = {verb: " ".join(_words(parser)) for verb, parser in verbs.items()}
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
