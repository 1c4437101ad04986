"""The core that all modules stand on, shown on OpenSetIPGAN."""

import itertools
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from data_modules.batch import FaceBatch
from idface.callbacks.checkpoint import RunCheckpoint
from idface.modules.base import FaceModule, TrainingDiverged
from idface.modules.ipgan import OpenSetIPGAN
from idface.recognition.dlib_resnet import DlibResNet
from tests.modules.helpers import Batches, adam, changed, loader, small_data, small_ipgan, snapshot, trainer


def test_one_step_is_one_batch_whatever_the_number_of_optimisers() -> None:
    model = small_ipgan(num_identities=32, optimizer=adam)
    assert len(model.phases) == 4
    run = trainer(7)
    run.fit(model, small_data())
    assert run.global_step == model.iteration == 7
    assert run.fit_loop.epoch_loop.total_batch_idx + 1 == 7
    assert all(state["step"] == 7 for state in run.optimizers[0].state.values())


def test_learning_rates_follow_the_schedule_once_a_batch() -> None:
    halve = lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)  # noqa: E731
    run = trainer(3)
    run.fit(small_ipgan(optimizer=adam, scheduler=halve), loader())
    assert [group["lr"] for optimizer in run.optimizers for group in optimizer.param_groups] == [1e-3 / 8] * 4


def test_the_discriminator_may_have_its_own_optimiser() -> None:
    slow = lambda parameters: torch.optim.Adam(parameters, lr=1e-5)  # noqa: E731
    run = trainer(1)
    run.fit(small_ipgan(optimizer=adam, discriminator_optimizer=slow), loader())
    assert [optimizer.param_groups[0]["lr"] for optimizer in run.optimizers] == [1e-3, 1e-3, 1e-5, 1e-3]


def test_clipping_bounds_the_gradient_norm_of_each_phase() -> None:
    model = small_ipgan(gradient_clip=1e-3)  # SGD with rate 1: the update is the clipped gradient
    before = snapshot(model)
    trainer(1).fit(model, loader())
    after = snapshot(model)
    for network in ("attribute_encoder", "generator", "discriminator", "classifier"):
        names = [name for name, _ in model.named_parameters() if name.startswith(network)]
        norm = torch.stack([(after[name] - before[name]).norm() for name in names]).norm()
        assert norm == pytest.approx(1e-3, rel=0.01), network


def test_averages_follow_their_formula() -> None:
    model = small_ipgan(optimizer=adam, ema_decay=0.9)
    name = "layers.1.weight"
    values: list[Tensor] = []

    class Watch(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            values.append(model.generator.get_parameter(name).detach().clone())

        def on_train_batch_end(self, *_: Any) -> None:
            values.append(model.generator.get_parameter(name).detach().clone())

    trainer(4, callbacks=[Watch()]).fit(model, loader())
    expected = values[0]
    for count, value in enumerate(values[1:]):
        decay = min(0.9, (1 + count) / (10 + count))
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(model.ema["generator"].get_parameter(name), expected)
    assert model.trained("generator") is model.ema["generator"]


def test_evaluation_runs_on_the_averages() -> None:
    model = small_ipgan(optimizer=adam, ema_decay=0.9)
    trainer(3).fit(model, loader())
    model.eval()
    batch = Batches()[0]
    first = model.recombine(batch["image"], batch["partner"])
    for parameter in model.generator.parameters():
        parameter.data.zero_()
    assert torch.equal(first, model.recombine(batch["image"], batch["partner"]))


def poison(model: OpenSetIPGAN, at: int) -> Callback:
    class Poison(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == at:
                model.discriminator.head.bias.data.fill_(float("nan"))

    return Poison()


def test_a_loss_that_turns_nan_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    model = small_ipgan(num_identities=32, optimizer=adam)
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    run = trainer(9, tmp_path, callbacks=[poison(model, at=3), keep], enable_checkpointing=True)
    with pytest.raises(TrainingDiverged, match=r"phase 'discriminator' became NaN .*batch 4.*step=3.ckpt"):
        run.fit(model, small_data())
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["step=1.ckpt", "step=2.ckpt", "step=3.ckpt"]
    state = torch.load(tmp_path / "step=3.ckpt", weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in state.values())


def test_a_checkpoint_is_never_written_from_a_diverged_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU losses are looked at once in a while; the look before saving stands between a NaN and the disk."""
    model = small_ipgan(num_identities=32, optimizer=adam)
    looked: list[int] = []
    check = FaceModule.check_finite

    def only_before_saving(self: FaceModule) -> None:
        looked.append(self.iteration)
        if saving[0]:
            check(self)

    saving = [False]
    save = FaceModule.on_save_checkpoint

    def on_save(self: FaceModule, checkpoint: dict[str, Any]) -> None:
        saving[0] = True
        save(self, checkpoint)
        saving[0] = False

    monkeypatch.setattr(FaceModule, "check_finite", only_before_saving)
    monkeypatch.setattr(FaceModule, "on_save_checkpoint", on_save)
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    run = trainer(9, tmp_path, callbacks=[poison(model, at=2), keep], enable_checkpointing=True)
    with pytest.raises(TrainingDiverged, match="discriminator"):
        run.fit(model, small_data())
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["step=2.ckpt"]


def flat(state: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested dicts and lists by path."""
    if isinstance(state, dict):
        return {k: v for key, value in state.items() for k, v in flat(value, f"{prefix}/{key}").items()}
    if isinstance(state, list | tuple):
        return {k: v for i, value in enumerate(state) for k, v in flat(value, f"{prefix}/{i}").items()}
    return {prefix: state}


class Indices(Callback):
    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: FaceBatch, _: int) -> None:
        self.seen.append(batch["index"].tolist())


def resumable(folder: Path, steps: int, ckpt: Path | None = None) -> list[list[int]]:
    seed_everything(3, verbose=False)
    import kornia.augmentation as K

    cosine = lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)  # noqa: E731
    model = small_ipgan(num_identities=32, optimizer=adam, scheduler=cosine, ema_decay=0.9, same_person_share=0.5)
    keep = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    indices = Indices()
    data = small_data(batch_size=64, batch_transforms=[K.RandomHorizontalFlip()])  # 4 batches an epoch
    run = trainer(steps, folder, callbacks=[keep, indices], enable_checkpointing=True)
    run.fit(model, data, ckpt_path=ckpt, weights_only=True)
    return indices.seen


@pytest.mark.parametrize("stop", [1, 3, 4, 6], ids=lambda stop: f"after batch {stop}")
def test_resuming_equals_never_having_stopped_bit_for_bit(tmp_path: Path, stop: int, whole_run: Path) -> None:
    """Stopped in the middle of an epoch, at its end, and in the next: weights, optimisers, averages, count, order."""
    torch.manual_seed(99)  # whatever the new process's random state is
    resumed = resumable(tmp_path, 7, whole_run / f"step={stop}.ckpt")
    expected = torch.load(whole_run / "order.pt", weights_only=True)
    assert resumed == expected[stop:]
    a = torch.load(whole_run / "step=7.ckpt", weights_only=True)
    b = torch.load(tmp_path / "step=7.ckpt", weights_only=True)
    assert a["global_step"] == b["global_step"] == 7
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        one, other = flat(a[part]), flat(b[part])
        assert one.keys() == other.keys()
        assert any(isinstance(value, Tensor) for value in one.values()) or part == "lr_schedulers"
        for key, value in one.items():
            same = torch.equal(value, other[key]) if isinstance(value, Tensor) else value == other[key]
            assert same, f"{part}{key}"


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    torch.save(resumable(folder, 7), folder / "order.pt")
    return folder


def test_noise_differs_from_batch_to_batch() -> None:
    model = small_ipgan(optimizer=adam)
    draws: list[Tensor] = []

    class Watch(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            draws.append(torch.rand(4))

    trainer(3, callbacks=[Watch()]).fit(model, loader())
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(draws, 2))


def test_checkpoints_leave_frozen_recognisers_out_and_load_without_them(tmp_path: Path) -> None:
    model = small_ipgan(num_identities=32, optimizer=adam, identity_encoder=DlibResNet(), judge=DlibResNet())
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2)
    trainer(2, tmp_path, callbacks=[keep], enable_checkpointing=True).fit(model, small_data())
    path = tmp_path / "step=2.ckpt"
    state = torch.load(path, weights_only=True)["state_dict"]
    assert not [key for key in state if "recognizer" in key or key.startswith("judge")]
    other = small_ipgan(num_identities=32, optimizer=adam, identity_encoder=DlibResNet(), judge=DlibResNet())
    trainer(3).fit(other, small_data(), ckpt_path=path, weights_only=True)
    assert other.identity_encoder is not None
    assert other.identity_encoder.recognizer.fingerprint() == DlibResNet().fingerprint()


def test_bfloat16_keeps_the_kl_term_and_the_logits_in_float32() -> None:
    model = small_ipgan(optimizer=adam)
    kinds: dict[str, torch.dtype] = {}
    record = FaceModule.record

    def watched(self: FaceModule, losses: dict[str, Tensor]) -> None:
        kinds.update({name: loss.dtype for name, loss in losses.items()})
        record(self, losses)

    model.record = watched.__get__(model)  # type: ignore[method-assign]
    before = snapshot(model)
    trainer(2, precision="bf16-mixed").fit(model, loader())
    assert set(kinds.values()) == {torch.float32}
    assert changed(before, snapshot(model))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_judge_that_was_a_loss_is_reported() -> None:
    assert small_ipgan(judge=DlibResNet()).judge_report()["independent"]
    given = small_ipgan(judge=DlibResNet(), identity_encoder=DlibResNet()).judge_report()
    assert given["independent"]
    assert given["is_input"]
    assert not small_ipgan(judge=DlibResNet()).judge_report()["is_input"]
    for fine_tune in (False, True):
        model = small_ipgan(judge=DlibResNet(), classifier=DlibResNet(), fine_tune=fine_tune, optimizer=adam)
        trainer(1).fit(model, loader())
        assert not model.judge_report()["independent"]


def test_a_recogniser_as_classifier_is_left_alone_or_tuned() -> None:
    for fine_tune in (False, True):
        model = small_ipgan(classifier=DlibResNet(), fine_tune=fine_tune, optimizer=adam, ema_decay=0.9)
        model.setup("fit")
        before = snapshot(model)
        trainer(1).fit(model, loader())
        moved = {name for name in changed(before, snapshot(model)) if name.startswith("classifier.backbone")}
        assert bool(moved) == fine_tune
        assert ("identity" in model.phases) == fine_tune
        assert ("classifier" in model.averaged) == fine_tune


def test_the_last_checkpoint_is_of_the_last_batch_even_between_two_intervals(tmp_path: Path) -> None:
    keep = RunCheckpoint(tmp_path, every_n_train_steps=2, save_last=True)
    model = small_ipgan(num_identities=32, optimizer=adam)
    trainer(3, tmp_path, callbacks=[keep], enable_checkpointing=True).fit(model, small_data())
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert content["global_step"] == 3
    assert not changed(content["state_dict"], snapshot(model))


def test_weights_that_a_nan_gradient_spoilt_never_replace_the_last_good_checkpoint(tmp_path: Path) -> None:
    """The loss of that batch is still finite: only the weights tell."""
    model = small_ipgan(num_identities=32, optimizer=adam)

    class Spoil(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, *_: Any) -> None:
            gradient = model.generator.layers[1].weight.grad
            if trainer.global_step == 2 and gradient is not None:
                gradient.fill_(float("nan"))

    keep = RunCheckpoint(tmp_path, every_n_train_steps=1, save_last=True)
    run = trainer(5, tmp_path, callbacks=[Spoil(), keep], enable_checkpointing=True)
    with pytest.raises(TrainingDiverged, match=r"generator\.layers\.1\.weight"):
        run.fit(model, small_data())
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert content["global_step"] == 2
    assert all(value.isfinite().all() for value in content["state_dict"].values())


def test_a_judge_that_was_a_loss_stays_reported_after_resuming_without_it(tmp_path: Path) -> None:
    keep = RunCheckpoint(tmp_path, every_n_train_steps=1, save_last=True)
    model = small_ipgan(num_identities=32, optimizer=adam, classifier=DlibResNet(), fine_tune=True)
    trainer(1, tmp_path, callbacks=[keep], enable_checkpointing=True).fit(model, small_data())
    again = small_ipgan(num_identities=32, optimizer=adam, classifier=DlibResNet(), fine_tune=True, judge=DlibResNet())
    again.gradient_fingerprints = frozenset()
    trainer(2).fit(again, small_data(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert not again.judge_report()["independent"]


def test_a_checkpoint_is_not_loaded_beside_another_recogniser_than_it_was_trained_with(tmp_path: Path) -> None:
    keep = RunCheckpoint(tmp_path, every_n_train_steps=1, save_last=True)
    model = small_ipgan(num_identities=32, optimizer=adam, identity_encoder=DlibResNet(), judge=DlibResNet())
    trainer(1, tmp_path, callbacks=[keep], enable_checkpointing=True).fit(model, small_data())
    other = DlibResNet()
    other.head.weight.data.mul_(2)
    for arguments, refused in (({"identity_encoder": other}, True), ({"judge": other}, False)):
        networks = {"identity_encoder": DlibResNet(), "judge": DlibResNet()} | arguments
        changed_model = small_ipgan(num_identities=32, optimizer=adam, **networks)
        run = trainer(2)
        if refused:
            with pytest.raises(ValueError, match=r"other weights .* as identity_encoder"):
                run.fit(changed_model, small_data(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
        else:
            run.fit(changed_model, small_data(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)


def test_compiled_networks_train_as_the_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the whole of Dynamo and the autograd graph, but without the C++ compiler at the end."""
    compiled: list[nn.Module] = []
    compile_network = nn.Module.compile

    def watched(self: nn.Module) -> None:
        compiled.append(self)
        compile_network(self, backend="aot_eager")

    monkeypatch.setattr(nn.Module, "compile", watched)
    states = []
    for switch in (False, True):
        model = small_ipgan(compile=switch, optimizer=adam, ema_decay=0.9)
        trainer(3).fit(model, loader())
        states.append(snapshot(model))
    assert len(compiled) == len(model.phases)
    assert states[0].keys() == states[1].keys()  # checkpoints fit both
    for name, value in states[0].items():
        torch.testing.assert_close(
            states[1][name], value, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_a_checkpoint_of_another_size_is_refused_in_words(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, filename="last", every_n_train_steps=1)
    trainer(1, tmp_path, callbacks=[keep], enable_checkpointing=True).fit(small_ipgan(), loader())
    with pytest.raises(ValueError, match=r"is .* in the checkpoint and .* in the model.*config\.yaml"):
        trainer(2).fit(small_ipgan(attribute_dim=5), loader(), ckpt_path=str(tmp_path / "last.ckpt"))


@pytest.mark.parametrize("signal_sent", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("handler", [None, lambda *_: sys.exit(1)], ids=["lightning", "exits"])
def test_a_training_that_is_stopped_keeps_what_it_learnt(
    handler: Any, signal_sent: signal.Signals, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    previous = signal.getsignal(signal.SIGTERM)  # Ray leaves one that exits
    request.addfinalizer(lambda: signal.signal(signal.SIGTERM, previous))
    signal.signal(signal.SIGTERM, handler or signal.SIG_DFL)
    interrupted = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, interrupted))

    class Interrupt(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 3:
                os.kill(os.getpid(), signal_sent)

    keep = RunCheckpoint(tmp_path, save_last=True, every_n_train_steps=100)
    with pytest.raises(SystemExit):
        trainer(8, tmp_path, callbacks=[keep, Interrupt()], enable_checkpointing=True).fit(
            small_ipgan(), loader(count=8)
        )
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] in (3, 4)  # between two batches
