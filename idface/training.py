"""`lightning fit|validate|test|predict`: LightningCLI with run folders, short class names and readable errors."""

import importlib
import inspect
import logging
import os
import pickle
import re
import shutil
import traceback
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NoReturn, cast

import torch
import yaml
from jsonargparse import Namespace, get_loader, set_loader
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from idface.callbacks.progress import TrainingProgress
from idface.callbacks.save_config import SaveRunConfig
from idface.callbacks.step_count import StepCount
from idface.errors import explain, missing_path
from idface.loggers import CSVLogger, WandbLogger
from idface.names import class_path, from_here, whole_class_paths
from idface.run import CHECKPOINTS, CONFIG, RunNotFound, find_checkpoint, new_run, new_stage, run_folder, run_of

_RUN_FOLDER = "IDFACE_RUN_FOLDER"  # how rank zero tells the processes that Lightning launches for other ranks
_PARSER_MODE = "idface"

# advertisements, a deprecation inside Lightning, and what is meant to be: frozen recognisers, runs that go on
logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "Tip:" not in record.getMessage())
warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated")
warnings.filterwarnings("ignore", "Found .* in eval mode")  # recognisers and moving averages are
warnings.filterwarnings("ignore", r"Found .* module\(s\) in eval mode at the start of training")
warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")

# YAML, in which `class_path: OpenSetIPGAN` is enough
set_loader(_PARSER_MODE, lambda text: whole_class_paths(get_loader("yaml")(text)), exceptions=(yaml.YAMLError,))


class RunParser(LightningArgumentParser):
    """Parser of one subcommand, whose errors are short, name the file and the nearest valid name, and exit with 2."""

    def __init__(self, parser_mode: str = _PARSER_MODE, **kwargs: Any) -> None:
        # an abbreviated option is a misspelt one
        super().__init__(parser_mode=parser_mode, allow_abbrev=False, **kwargs)
        self.config_file: str | None = None

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Namespace:
        """As the base class, with the file known to `error`."""
        self.config_file = str(path)
        parsed = super().parse_path(path, *args, **kwargs)
        self.config_file = None
        return parsed

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Refuse what was parsed; JSONARGPARSE_DEBUG=1 gives the traceback instead."""
        if not self.exit_on_error or "JSONARGPARSE_DEBUG" in os.environ:
            super().error(message, ex)
        parser: RunParser = getattr(ex, "subcommand_parser", self)
        options = {option.lstrip("-") for action in parser._actions for option in (*action.option_strings, action.dest)}
        place = f"{self.config_file}: " if self.config_file else ""
        parser.refuse(place + explain(message, options))

    def refuse(self, message: str) -> NoReturn:
        """Say what is wrong and exit with 2."""
        self.exit(2, f"{self.prog.replace(' [options]', '')}: error: {message}\n")


class TrainingCLI(LightningCLI):
    """One command of training or evaluation, from the command line to the end."""

    subcommand: str

    def __init__(self, args: list[str]) -> None:
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            parser_class=RunParser,
            parser_kwargs={"prog": "lightning"},
            seed_everything_default=0,
            trainer_defaults={
                "callbacks": [StepCount()],
                "use_distributed_sampler": False,  # the data modules' own samplers know rank and world size
                "logger": [{"class_path": "idface.loggers.CSVLogger"}],
            },
            save_config_callback=SaveRunConfig,
            auto_configure_optimizers=False,  # optimisers are arguments of the models
            args=args,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Where runs go, and what the data tell the model (where it has such an argument)."""
        parser.add_argument("--run.root", type=str, default="runs", help="Folder of all experiments.")
        parser.add_argument(
            "--run.name", type=str | None, default=None, help="Experiment; by default the first --config's name."
        )
        parser.link_arguments("data.num_identities", "model.init_args.num_identities", apply_on="instantiate")
        parser.link_arguments("data.init_args.image_size", "model.init_args.image_size")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "predict":
            parser.set_defaults({"return_predictions": False})  # RunReport writes them: no need to keep them all
        if subcommand in ("validate", "test"):
            parser.set_defaults({"verbose": False})  # Lightning's table repeats every figure for each loader
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, with short class names also on the command line."""
        self.config = parser.parse_args(_whole_class_paths(cast(list[str], args)))
        _restore_nulls(self.config)

    @property
    def options(self) -> Namespace:
        """What the subcommand was given."""
        return self.config[self.subcommand]

    def _parse_ckpt_path(self) -> None:
        # Lightning would overrule the configuration that was given by the one in the checkpoint: with
        # `--model.init_args.x=1 --ckpt_path ...` a run would silently go on with another x.
        pass

    def before_instantiate_classes(self) -> None:
        """Settle which experiment, checkpoint and run this is about."""
        options = self.options
        if options.trainer.default_root_dir is not None:
            self._refuse("trainer.default_root_dir is the run folder. Say where runs go with --run.root.")
        experiment = options.run.name or self._experiment_name()
        checkpoint = options.ckpt_path = self._checkpoint(options.ckpt_path, Path(options.run.root), experiment)
        self.loops = self._read_loops(checkpoint) if checkpoint else {}
        run = run_of(Path(checkpoint)) if checkpoint else None
        if run and self.subcommand == "fit" and options.run.name not in (None, run.parent.name):
            run = None  # another experiment goes on from this checkpoint, in a run of its own
        self.earlier_run = run
        options.run.name = run.parent.name if run else experiment

    def _experiment_name(self) -> str:
        """The name of the first --config, or that of the model's class if there is no file."""
        for path in self.options.get("config") or self.config.get("config") or ():
            return Path(str(path)).stem
        return str(self.options.model.class_path).rsplit(".", 1)[-1]

    def _checkpoint(self, path: str | None, root: Path, experiment: str) -> str | None:
        if path in ("last", "best"):
            try:
                return str(find_checkpoint(root, experiment, path))
            except RunNotFound as error:
                self._refuse(f"--ckpt_path {path}: {error}")
        if path is None and self.subcommand != "fit":
            self._refuse(
                f"this model is not trained. Give --ckpt_path a path, or 'last' or 'best' for those of the newest run "
                f"in '{root / experiment}'."
            )
        if path is not None and not Path(path).is_file():
            self._refuse(f"--ckpt_path: {missing_path(Path(path))}")
        return path

    def _read_loops(self, path: str) -> dict[str, Any]:
        """The states of Lightning's loops in a checkpoint; what is no checkpoint is refused."""
        try:
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            reason = str(error).partition("\n")[0]
            self._refuse(
                f"--ckpt_path: '{path}' cannot be read as a checkpoint, expected one of a run's .ckpt files: {reason}"
            )
        if not isinstance(content, dict) or "state_dict" not in content:
            self._refuse(f"--ckpt_path: '{path}' is no checkpoint of `lightning fit`: it has no state_dict.")
        return dict(content.get("loops", {}))

    def _refuse(self, message: str) -> NoReturn:
        parser = cast(RunParser, self._parser(self.subcommand))
        parser.refuse(message)

    def instantiate_classes(self) -> None:
        """Make data, model and trainer; what a constructor refuses is an error of the configuration."""
        try:
            super().instantiate_classes()
        except (ValueError, OSError, MisconfigurationException) as error:
            if "JSONARGPARSE_DEBUG" in os.environ:
                raise
            cause: BaseException = error
            while cause.__cause__ is not None:  # the constructor's own words, without what the parser put around them
                cause = cause.__cause__
            self._refuse(f"{self._with_option(str(cause))}\n(the traceback: JSONARGPARSE_DEBUG=1)")

    def _with_option(self, message: str) -> str:
        """A message about a file or folder, after the option that gave it."""
        for option, value in _leaves(self.options):
            named = re.search(rf"(?<![\w./-]){re.escape(value)}(?![\w-])", message) if os.sep in value else None
            if named or f"'{value}'" in message:
                return f"{option}: {message.removeprefix(option.rpartition('.')[2] + ': ')}"
        return message

    def _run_subcommand(self, subcommand: str) -> None:
        """Run; what data or model refuse only when there are batches is an error of the configuration too."""
        try:
            super()._run_subcommand(subcommand)
        except (ValueError, OSError) as error:
            *_, last = traceback.walk_tb(error.__traceback__)
            if "JSONARGPARSE_DEBUG" in os.environ or not last[0].f_globals["__name__"].startswith(
                ("data_modules.", "idface.modules.")
            ):
                raise
            self._forget_run()
            self._refuse(f"{self._with_option(str(error))}\n(the traceback: JSONARGPARSE_DEBUG=1)")

    def _forget_run(self) -> None:
        """Remove the run that was begun, if there is nothing in it but its configuration."""
        run = run_folder(self.trainer)
        if self.earlier_run or self.options.trainer.fast_dev_run or rank_zero_only.rank != 0:  # type: ignore[attr-defined]
            return
        if all(path.is_dir() or path == run / CONFIG for path in run.rglob("*")):
            shutil.rmtree(run)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the trainer, with all that it writes inside the run folder."""
        configured = self._get(self.config_init, "trainer.callbacks", default=None) or []
        if self.options.trainer.enable_progress_bar is not False and not any(
            isinstance(callback, ProgressBar) for callback in configured
        ):
            self.trainer_defaults["callbacks"].append(TrainingProgress())
        if self.options.trainer.fast_dev_run:  # leaves nothing behind
            return super().instantiate_trainer(default_root_dir=mkdtemp(prefix="idface-"), **kwargs)
        run, stage = self._folders()
        self.save_config_kwargs = {"folder": stage if self.earlier_run else run}
        try:
            trainer = super().instantiate_trainer(default_root_dir=str(run), **kwargs)
        except BaseException:
            for folder in (stage, run):
                with suppress(OSError):  # not empty: an earlier run
                    folder.rmdir()
            raise
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                logger.place(stage)
            elif isinstance(logger, WandbLogger):
                logger.place(run)
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str((run / CHECKPOINTS).absolute())
        rank_zero_info(f"Run folder: {from_here(run)}")
        return trainer

    def _folders(self) -> tuple[Path, Path]:
        """The run's folder and this stage's in it, made by rank zero; the others write nothing."""
        options = self.options
        if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
            run = Path(os.environ.get(_RUN_FOLDER, Path(options.run.root) / options.run.name))
            return run, run / self.subcommand
        run = self.earlier_run or new_run(Path(options.run.root), options.run.name)
        os.environ[_RUN_FOLDER] = str(run)
        return run, new_stage(run, self.subcommand)

    def before_validate(self) -> None:
        """Take the count of batches over from the checkpoint, so that a test's figures stand at the model's step."""
        if "fit_loop" in self.loops:
            self.trainer.fit_loop.load_state_dict(self.loops["fit_loop"])

    before_test = before_predict = before_validate

    def after_instantiate_classes(self) -> None:
        """Give the model its recipe, from which `recombine` and others make it anew."""
        if not hasattr(self.model, "recipe"):
            return
        self._dump_config()
        recipe = self.config_dump["model"]
        for key in recipe["init_args"].keys() & {"num_identities"}:
            recipe["init_args"][key] = self.datamodule.num_identities
        self.model.recipe = recipe


def _whole_class_paths(arguments: Iterable[str]) -> list[str]:
    """The command line with short class names made whole, where a class is meant and not a folder or a name."""
    result: list[str] = []
    option = ""
    for argument in arguments:
        if argument.startswith("--"):
            option, equals, value = argument.partition("=")
            result.append(f"{option}={_whole_class_path(option, value)}" if equals else argument)
        else:
            result.append(_whole_class_path(option, argument))
    return result


def _restore_nulls(options: Namespace) -> None:
    """None for the text "None" where None is the default: jsonargparse makes it of `--model.x.init_args.file null`."""
    path, given = options.get("class_path"), options.get("init_args")
    if isinstance(path, str) and isinstance(given, Namespace):
        module, _, name = path.rpartition(".")
        parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
        for key, value in vars(given).items():
            if value is not None and str(value) == "None" and key in parameters and parameters[key].default is None:
                given[key] = None
    for value in vars(options).values():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, Namespace):
                _restore_nulls(each)


def _leaves(options: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """The dotted names and the values, where they are texts or paths, of options and of those within them."""
    if isinstance(options, Namespace):
        for key, value in vars(options).items():
            yield from _leaves(value, f"{name}.{key}" if name else key)
    elif isinstance(options, list):
        for number, value in enumerate(options):
            yield from _leaves(value, f"{name}[{number}]")
    elif isinstance(options, str | os.PathLike):
        yield name, os.fspath(options)


def _whole_class_path(option: str, value: str) -> str:
    path = class_path(value)
    if path == value:
        return value
    if option in ("--model", "--data") or option.startswith("--trainer.") or option.endswith("class_path"):
        return path
    if option.startswith(("--model.", "--data.")):
        # Whether this takes a class or text depends on the model: the parser knows, and finds a class that is loaded.
        importlib.import_module(path.rpartition(".")[0])
    return value
