"""From a checkpoint to a model that generates the same faces, and clear words where that cannot be."""

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import save_file

from idface.checkpoints import CheckpointError, export_weights, find_checkpoint, load_generator, load_model
from idface.modules.greedy_search import GreedySearchModule
from idface.modules.ipgan import OpenSetIPGAN
from idface.zoo import zoo_names
from tests.modules.helpers import Batches, adam, small_data, small_ipgan, trainer

RECIPE = {
    "class_path": "idface.modules.ipgan.OpenSetIPGAN",
    "init_args": {
        "num_identities": 32,
        "image_size": 16,
        "width": 4,
        "discriminator_width": 4,
        "convolutions": 1,
        "attribute_dim": 3,
        "judge": {"class_path": "idface.recognition.dlib_resnet.DlibResNet"},
    },
}


@pytest.fixture(scope="module", params=[0.9, 0.0], ids=["averaged", "not averaged"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[OpenSetIPGAN, Path]:
    folder = tmp_path_factory.mktemp("run")
    model = small_ipgan(num_identities=32, optimizer=adam, ema_decay=request.param)
    model.recipe = RECIPE
    keep = ModelCheckpoint(folder, filename="last", every_n_train_steps=3)
    trainer(3, folder, callbacks=[keep], enable_checkpointing=True).fit(model, small_data())
    return model.eval(), folder / "last.ckpt"


def test_a_loaded_model_generates_what_the_trained_one_does(trained: tuple[OpenSetIPGAN, Path]) -> None:
    model, path = trained
    loaded = load_model(str(path))
    assert isinstance(loaded, OpenSetIPGAN)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    batch = Batches()[0]
    expected = model.recombine(batch["image"], batch["partner"])
    torch.testing.assert_close(loaded.recombine(batch["image"], batch["partner"]), expected, rtol=0, atol=1e-5)


def test_kept_weights_generate_the_same_faces_to_less_than_a_grey_level(
    trained: tuple[OpenSetIPGAN, Path], tmp_path: Path
) -> None:
    model, path = trained
    kept = export_weights(str(path), tmp_path / "zoo" / "small.safetensors")
    assert kept.stat().st_size < path.stat().st_size / 4
    batch = Batches()[0]
    expected = model.recombine(batch["image"], batch["partner"])
    result = load_model(str(kept)).recombine(batch["image"], batch["partner"])  # type: ignore[attr-defined,operator]
    assert (result - expected).abs().max() < 1 / 127.5


def test_everything_in_the_zoo_loads_and_has_a_card() -> None:
    assert "quickstart" in zoo_names()
    for name in zoo_names():
        path = find_checkpoint(f"zoo:{name}")
        assert path.stat().st_size < 16e6
        assert path.with_suffix(".md").read_text("utf-8").startswith("# ")
        recipe = load_model(f"zoo:{name}").recipe
        assert recipe is not None
        assert "start" not in recipe["init_args"]  # a file that nobody else has


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as a checkpoint"),
        (b"no checkpoint at all", "cannot be read as a checkpoint"),
    ],
)
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes, message: str, suffix: str) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"broken{suffix} .*{message}"):
        load_model(str(path))


def test_a_truncated_checkpoint_is_named(trained: tuple[OpenSetIPGAN, Path], tmp_path: Path) -> None:
    path = tmp_path / "half.ckpt"
    path.write_bytes(trained[1].read_bytes()[:20000])
    with pytest.raises(CheckpointError, match=r"half\.ckpt cannot be read"):
        load_model(str(path))


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "was_here",))  # type: ignore[return-value]

    torch.save({"state_dict": {}, "recipe": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match=r"evil\.ckpt cannot be read"):
        load_model(str(tmp_path / "evil.ckpt"))
    assert not (tmp_path / "was_here").exists()


def test_a_checkpoint_without_a_recipe_says_so(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "bare.ckpt")
    with pytest.raises(CheckpointError, match=r"bare\.ckpt has no recipe"):
        load_model(str(tmp_path / "bare.ckpt"))


def test_a_recipe_of_another_class_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "recipe": {"class_path": "subprocess.Popen"}}, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match=r"other\.ckpt: its recipe makes no model here"):
        load_model(str(tmp_path / "other.ckpt"))


def test_misspelt_names_get_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(CheckpointError, match=r"Did you mean '.*last\.ckpt'"):
        find_checkpoint(str(tmp_path / "lst.ckpt"))
    with pytest.raises(CheckpointError, match="Did you mean 'zoo:quickstart'"):
        find_checkpoint("zoo:quickstrat")


def test_a_model_whose_judge_is_not_to_be_had_still_generates(
    trained: tuple[OpenSetIPGAN, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, path = trained
    content = torch.load(path, weights_only=True)
    judge = {
        "class_path": "idface.recognition.mobilefacenet.MobileFaceNet",
        "init_args": {"weights": str(tmp_path / "gone.pth")},
    }
    content["recipe"] = {**RECIPE, "init_args": RECIPE["init_args"] | {"judge": judge}}  # type: ignore[dict-item,operator]
    torch.save(content, tmp_path / "moved.ckpt")
    loaded = load_model(str(tmp_path / "moved.ckpt"))
    assert loaded.judge is None
    assert "without the model's judge" in caplog.text
    assert "gone.pth" in caplog.text
    assert export_weights(str(tmp_path / "moved.ckpt"), tmp_path / "kept.safetensors").is_file()


def test_generating_needs_none_of_the_recognisers_of_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    absent = {"class_path": "idface.recognition.mobilefacenet.MobileFaceNet", "init_args": {"weights": "absent.pth"}}
    size = {"latent_dim": 6, "image_size": 16, "width": 4, "discriminator_width": 4}
    trained = GreedySearchModule(**size)
    weights = {f"generator.{key}": value.contiguous() for key, value in trained.generator.state_dict().items()}
    extra = {"identity_recognizer": absent, "identity_bfloat16": True, "recognizer": absent, "judge": absent}
    recipe = {"class_path": "idface.modules.greedy_search.GreedySearchModule", "init_args": size | extra}
    floats = {key: value for key, value in weights.items() if value.is_floating_point()}
    save_file(floats, tmp_path / "kept.safetensors", {"recipe": json.dumps(recipe)})
    generator = load_generator(str(tmp_path / "kept.safetensors"))
    latents = torch.rand(2, 6)
    assert torch.allclose(generator(latents), trained.latent_generator()(latents), atol=1e-6)
    assert "goes on without the model's judge, recognizer, identity_recognizer" in caplog.text
