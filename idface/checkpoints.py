"""From a checkpoint, a file of kept weights or a zoo name to what generates; and from a run to kept weights."""

import json
import logging
import pickle
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor

from idface import zoo
from idface.files import save_tensors
from idface.latent.generators import ExternalGenerator, Generator
from idface.modules.base import FaceModule, MakesFacesFromLatents
from idface.names import did_you_mean, nearest_path

log = logging.getLogger(__name__)


Model = TypeVar("Model", bound=FaceModule)


class CheckpointError(ValueError):
    """A checkpoint that cannot be found, read, or made a model of; the message says what to do."""


def find_checkpoint(checkpoint: str) -> Path:
    """The file that `zoo:NAME` or a path stands for.

    Raises:
        CheckpointError: there is none; names the nearest that there is.
    """
    if checkpoint.startswith(zoo.PREFIX):
        try:
            return zoo.zoo_file(checkpoint.removeprefix(zoo.PREFIX))
        except FileNotFoundError as error:
            raise CheckpointError(str(error)) from None
    path = Path(checkpoint)
    if not path.is_file():
        raise CheckpointError(
            f"there is no checkpoint '{checkpoint}'.{did_you_mean(nearest_path(path))} "
            "Give the path of a .ckpt or .safetensors file, or zoo:NAME"
        )
    return path


def load_model(checkpoint: str) -> FaceModule:
    """The model of a checkpoint, ready to generate: averaged weights, in eval mode, without gradients, on the CPU.

    Args:
        checkpoint: path of a `.ckpt` of a run or of a `.safetensors` file, or `zoo:NAME`.

    Raises:
        CheckpointError: it does not exist, is damaged, or holds no model of this project.
    """
    path = find_checkpoint(checkpoint)
    recipe, weights, facts = _read(path)
    model = _build_even_without_judge(recipe, path)
    model.gradient_fingerprints |= frozenset(facts.get("gradient_fingerprints") or ())  # also of those left out here
    model.people_digest, model.photos_digest = facts.get("people_digest"), facts.get("photos_digest")
    for name in model.averaged:
        own = {
            key.removeprefix(f"{name}."): value.float() for key, value in weights.items() if key.startswith(f"{name}.")
        }
        network = getattr(model, name)
        own |= {key: value for key, value in network.state_dict().items() if not value.is_floating_point()}
        try:
            network.load_state_dict(own)
        except RuntimeError as error:
            raise CheckpointError(f"{path}: the weights of {name} do not fit its recipe: {error}") from error
    return model.eval().requires_grad_(False)


def load_model_of(kind: type[Model], checkpoint: str, option: str = "--checkpoint") -> Model:
    """As `load_model`, for what only one kind of model does.

    Args:
        kind: the model's class.
        checkpoint: see `load_model`.
        option: who gave it, for the message.

    Raises:
        CheckpointError: it cannot be read, or is of another model.
    """
    model = load_model(checkpoint)
    if not isinstance(model, kind):
        raise CheckpointError(
            f"{option} {checkpoint} is of {type(model).__name__}, expected a checkpoint of {kind.__name__}"
        )
    return model


def best_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_generator(checkpoint: str) -> Generator:
    """The generator of a checkpoint, or of one that was trained elsewhere, for all that is done in a latent space.

    Args:
        checkpoint: as for `load_model`; or the path of a YAML file with the arguments of `ExternalGenerator`.

    Raises:
        CheckpointError: it cannot be read, or its model makes no faces from latents alone.
    """
    if Path(checkpoint).suffix in (".yaml", ".yml"):
        return _external_generator(find_checkpoint(checkpoint))
    model = load_model(checkpoint)
    if not isinstance(model, MakesFacesFromLatents):
        raise CheckpointError(
            f"{checkpoint} is of {type(model).__name__}, which makes no faces from latents alone: give a checkpoint of "
            "GreedySearchModule, or a YAML file that describes a generator"
        )
    return model.latent_generator()


def _external_generator(path: Path) -> Generator:
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ExternalGenerator)
    try:
        given = yaml.safe_load(path.read_text("utf-8"))
        if not isinstance(given, dict):
            raise ValueError("expected weights: FILE, latent_dim: L, and more, each on a line")
        if isinstance(given.get("weights"), str):
            given["weights"] = str(path.parent / Path(given["weights"]).expanduser())  # wherever we are
        config = parser.instantiate_classes(parser.parse_object(given))
        return ExternalGenerator(**config)
    except (ArgumentError, ValueError, OSError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path} describes no generator that can be had: {error}") from error


def _build_even_without_judge(recipe: dict[str, Any] | None, path: Path) -> FaceModule:
    """The model of a recipe; without the recognisers that cannot be had here, where generating needs none of them."""
    try:
        return build(recipe, path)
    except CheckpointError as error:
        arguments = (recipe or {}).get("init_args", {})
        spared = [name for name in _spared_in(recipe) if arguments.get(name) is not None]
        if not spared:
            raise
        kept = {name: value for name, value in arguments.items() if name not in spared}
        model = build({**(recipe or {}), "init_args": kept}, path)
        reason = str(error).partition("\nGiven value")[0]
        log.warning("%s: goes on without the model's %s, which is not to be had: %s", path, ", ".join(spared), reason)
        return model


def _spared_in(recipe: dict[str, Any] | None) -> tuple[str, ...]:
    """Arguments of a recipe's class that generating does without."""
    try:
        module = pkgutil.resolve_name((recipe or {})["class_path"])
    except (LookupError, ValueError, ImportError, AttributeError):  # what is wrong, `build` has said
        return ()
    return getattr(module, "spared", ())


def build(recipe: Mapping[str, Any] | None, path: Path) -> FaceModule:
    """The untrained model that a recipe, `{class_path, init_args}`, describes; `path` is for the error message."""
    from jsonargparse import ArgumentError, ArgumentParser

    if not recipe:
        raise CheckpointError(
            f"{path} has no recipe, so what model it is cannot be known. Checkpoints of runs started by "
            "`lightning fit` have one; for others set `model.recipe` before training"
        )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(FaceModule, "model")
    try:
        config = parser.parse_object({"model": dict(recipe)})
        model: FaceModule = parser.instantiate_classes(config).model
    except (ArgumentError, ValueError, FileNotFoundError) as error:
        raise CheckpointError(f"{path}: its recipe makes no model here: {error}") from error
    model.recipe = dict(recipe)
    return model


def export_weights(checkpoint: str, out: Path, half: bool = True) -> Path:
    """Keep what a checkpoint's model needs to generate as one safetensors file, with its recipe.

    Args:
        checkpoint: path of a `.ckpt` or `.safetensors` file, or `zoo:NAME`.
        out: the file to write; folders are made.
        half: store float16 instead of float32. The weights lie well inside its range, and the faces differ by less
            than a grey level.

    Returns:
        `out`.

    Raises:
        CheckpointError: there is no such checkpoint, it is damaged or has no recipe, or `out` has another suffix than
            `.safetensors`.
    """
    if out.suffix != ".safetensors":
        raise CheckpointError(f"--out {out}: weights are kept as safetensors; call the file {out.stem}.safetensors")
    path = find_checkpoint(checkpoint)
    recipe, weights, facts = _read(path)
    networks = _build_even_without_judge(recipe, path).averaged
    if recipe is not None:  # what training started from is in the weights now
        recipe["init_args"] = {name: value for name, value in recipe["init_args"].items() if name != "start"}
    kept = {
        key: (value.half() if half else value.float()).contiguous()
        for key, value in weights.items()
        if key.split(".")[0] in networks and value.is_floating_point()
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        save_tensors(kept, out, {"recipe": json.dumps(recipe), "facts": json.dumps(facts)})
    except SafetensorError as error:
        raise CheckpointError(f"--out {out} cannot be written: {error}") from error
    return out


def _read(path: Path) -> tuple[dict[str, Any] | None, dict[str, Tensor], dict[str, Any]]:
    """A file's recipe; the weights needed after training by `network.parameter`, averages where there are any; and what
    is known of the training: `gradient_fingerprints`, `people_digest`, `photos_digest`.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                recipe, facts = (json.loads((file.metadata() or {}).get(key, "null")) for key in ("recipe", "facts"))
                return recipe, {key: file.get_tensor(key) for key in file.keys()}, facts or {}  # noqa: SIM118
        content = torch.load(path, map_location="cpu", weights_only=True)
        state = content["state_dict"]
    except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError, EOFError, LookupError, TypeError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}: {error}): expected a .ckpt of a run, or a "
            ".safetensors file of `idface export`"
        ) from error
    averages = {key.removeprefix("ema."): value for key, value in state.items() if key.startswith("ema.")}
    networks = {key.split(".")[0] for key in averages}
    rest = {k: v for k, v in state.items() if not networks or k.split(".")[0] in networks}
    weights = {k: v for k, v in rest.items() if not k.startswith("ema.")} | averages
    facts = ("gradient_fingerprints", "people_digest", "photos_digest")
    return content.get("recipe"), weights, {key: content.get(key) for key in facts}
