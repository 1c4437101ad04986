"""OpenSetIPGAN against Algorithm 1 and table 1 of its paper."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kornia.augmentation import RandomHorizontalFlip
from torch import Tensor, nn

from data_modules.batch import to_float
from idface.modules.base import FaceModule
from idface.modules.ipgan import VIEW_NOISE, OpenSetIPGAN, seen_otherwise
from idface.recognition.dlib_resnet import DlibResNet
from tests.modules.helpers import Batches, adam, changed, loader, small_data, small_ipgan, snapshot, trainer


def test_each_phase_changes_its_own_network_and_leaves_the_others_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_ipgan()
    phase: Callable[..., None] = FaceModule.phase
    seen: list[tuple[str, set[str]]] = []

    def watched(self: FaceModule, name: str, *arguments: Any, **options: Any) -> None:
        before = snapshot(self)
        phase(self, name, *arguments, **options)
        seen.append((name, {key.split(".")[0] for key in changed(before, snapshot(self))}))

    monkeypatch.setattr(FaceModule, "phase", watched)
    trainer(2).fit(model, loader())
    own = [
        ("attributes", {"attribute_encoder"}),
        ("generator", {"generator"}),
        ("discriminator", {"discriminator"}),
        ("identity", {"classifier"}),
    ]
    assert seen == own + own  # a reconstruction step, then a transformation step


@pytest.mark.parametrize(
    ("iteration", "literal_lambda"),
    [(0, False), (1, False), (1, True)],
    ids=["reconstruction", "transformation", "lambda in eq. 2 and in algorithm 1"],
)
def test_a_step_is_algorithm_1_written_out_naively(
    iteration: int, literal_lambda: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    weights = {"reconstruction_weight": 3.0, "kl_weight": 0.7, "feature_weight_d": 1.3, "feature_weight_c": 0.6}
    model = small_ipgan(transformation_weight=0.1, literal_lambda=literal_lambda, **weights)
    if iteration == 1:
        trainer(1).fit(model, loader())
    start = copy.deepcopy(model)
    run = trainer(iteration + 1)
    fit_from(model, run, iteration)

    batch = Batches()[iteration]
    x_a = batch["image"] if iteration == 0 else batch["image"].roll(1, 0)
    lam = 1.0 if iteration == 0 else 0.1
    for name, gradient in naive_gradients(
        start, batch["image"], x_a, batch["identity"], lam, weights, iteration
    ).items():
        update = start.get_parameter(name) - model.get_parameter(name)  # SGD with rate 1: the gradient
        torch.testing.assert_close(update, gradient, rtol=1e-3, atol=2e-5, msg=lambda m, name=name: f"{name}: {m}")


def fit_from(model: OpenSetIPGAN, run: Any, iteration: int) -> None:
    """Train one batch as if `iteration` batches had gone before."""
    progress = run.fit_loop.epoch_loop.manual_optimization.optim_step_progress
    progress.total.ready = progress.total.completed = iteration
    rows = Batches()
    run.fit(model, torch.utils.data.DataLoader([rows[iteration]], batch_size=None))
    assert run.global_step == iteration + 1


def naive_gradients(
    model: OpenSetIPGAN, x_s: Tensor, x_a: Tensor, c: Tensor, lam: float, w: dict[str, float], iteration: int
) -> dict[str, Tensor]:
    """Algorithm 1 with a forward pass of its own for every network, each from the same weights."""
    model.train()

    def losses(learns: str, **detached: bool) -> dict[str, Tensor]:
        m = copy.deepcopy(model)
        for name, network in (
            ("A", m.attribute_encoder),
            ("G", m.generator),
            ("D", m.discriminator),
            ("C", m.classifier),
        ):
            network.requires_grad_(name == learns)
        torch.manual_seed(hash((0, iteration, 0)) & 0x7FFF_FFFF_FFFF_FFFF)
        f_s, logits = m.classifier(x_s)
        mu, eps = m.attribute_encoder(x_a)
        z = mu + torch.randn_like(mu) * torch.exp(eps / 2)
        x = m.generator(f_s.detach(), z)
        real, real_logit = m.discriminator(x_a)
        fake, fake_logit = m.discriminator(x if learns != "D" else x.detach())
        f_x, _ = m.classifier(x)
        half_mse = lambda a, b: ((a - b) ** 2).mean() / 2  # noqa: E731
        terms = {
            "KL": 0.5 * ((mu**2).sum(1) + (eps.exp() - eps - 1).sum(1)).mean() * w["kl_weight"],
            "GR": half_mse(x, x_a) * w["reconstruction_weight"] * (lam if model.literal_lambda else 1),
            "GD": half_mse(fake, real.detach()) * w["feature_weight_d"],
            "GC": half_mse(f_x, f_s.detach()) * w["feature_weight_c"],
            "D": -(torch.log(torch.sigmoid(real_logit)).mean() + torch.log(1 - torch.sigmoid(fake_logit)).mean()),
            "C": F.nll_loss(F.log_softmax(logits, 1), c),
        }
        objective = {
            "A": lam * terms["KL"] + lam * terms["GR"],
            "G": lam * terms["GR"] + terms["GD"] + terms["GC"],
            "D": terms["D"],
            "C": terms["C"],
        }[learns]
        objective.backward()
        return {name: p.grad for name, p in m.named_parameters() if p.grad is not None}

    return {name: gradient for learns in "AGDC" for name, gradient in losses(learns).items()}


def test_the_attribute_encoder_receives_nothing_from_feature_matching() -> None:
    model = small_ipgan(reconstruction_weight=0.0, kl_weight=0.0)
    before = snapshot(model)
    trainer(2).fit(model, loader())
    moved = changed(before, snapshot(model))
    parameters = {name for name, _ in model.named_parameters()}
    assert not {name for name in moved & parameters if name.startswith("attribute_encoder")}
    assert {name for name in moved & parameters if name.startswith("generator")}


def test_the_identity_network_receives_nothing_from_the_generators_losses() -> None:
    model = small_ipgan(feature_weight_c=5.0)
    before = snapshot(model)
    trainer(2).fit(model, loader(labelled=False))  # nobody to learn by the softmax
    parameters = {name for name, _ in model.named_parameters()}
    moved = changed(before, snapshot(model)) & parameters
    assert not {name for name in moved if name.startswith("classifier")}
    assert {name for name in moved if name.startswith("generator")}


def test_generated_faces_leave_no_trace_in_the_identity_networks_statistics() -> None:
    statistics = []
    for weight in (0.0, 1.0):
        model = small_ipgan(feature_weight_c=weight)
        trainer(1).fit(model, loader())
        statistics.append({k: v for k, v in model.classifier.state_dict().items() if "running" in k})
    assert not changed(*statistics)


def test_an_unlabelled_image_skips_the_softmax_alone() -> None:
    batch = Batches()[0]
    model = small_ipgan()
    batch["identity"][2] = -1
    start = copy.deepcopy(model)
    trainer(1).fit(model, torch.utils.data.DataLoader([batch], batch_size=None))
    start.train()
    _, logits = start.classifier(batch["image"])
    labelled = [0, 1, 3, 4, 5]
    loss = F.cross_entropy(logits[labelled], batch["identity"][labelled])
    (expected,) = torch.autograd.grad(loss, [start.classifier.head.weight])
    torch.testing.assert_close(start.classifier.head.weight - model.classifier.head.weight, expected)
    assert not torch.equal(start.generator.layers[1].weight, model.generator.layers[1].weight)


def steps_of(model: OpenSetIPGAN, count: int, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor, float]]:
    """x^s, x^a and lambda of each of the first steps."""
    seen: list[tuple[Tensor, Tensor, float]] = []
    pair = OpenSetIPGAN.pair

    def watched(self: OpenSetIPGAN, batch: Any) -> Any:
        drawn = pair(self, batch)
        seen.append((drawn.source, drawn.attributes, drawn.weight))
        return drawn

    monkeypatch.setattr(OpenSetIPGAN, "pair", watched)
    trainer(count).fit(model, loader())
    return seen


def test_reconstruction_and_transformation_alternate(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = steps_of(small_ipgan(optimizer=adam), 4, monkeypatch)
    assert [torch.equal(source, attributes) for source, attributes, _ in steps] == [True, False, True, False]
    assert [weight for _, _, weight in steps] == [1.0, 0.1, 1.0, 0.1]
    rows = Batches()
    assert all(torch.equal(source, rows[step]["image"]) for step, (source, _, _) in enumerate(steps))


def test_transformation_steps_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = steps_of(small_ipgan(transformation_steps=False, optimizer=adam), 4, monkeypatch)
    assert all(torch.equal(source, attributes) and weight == 1 for source, attributes, weight in steps)


def test_reconstruction_may_take_another_photo_of_the_same_person(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = steps_of(small_ipgan(same_person_share=1.0, optimizer=adam), 3, monkeypatch)
    rows = Batches()
    for step in (0, 2):
        assert torch.equal(steps[step][0], rows[step]["partner"])
        assert torch.equal(steps[step][1], rows[step]["image"])
        assert steps[step][2] == 1.0


def test_identity_vectors_computed_beforehand_are_those_of_the_photos_before_augmentation() -> None:
    model = small_ipgan(num_identities=32, identity_encoder=DlibResNet(), precompute_identity=True)
    data = small_data(batch_transforms=[RandomHorizontalFlip(p=1.0)])
    trainer(1).fit(model, data)
    rows = data.split.train[[0, 7, 100]]
    images = torch.from_numpy(data._faces.images.gather(rows)[0]).movedim(-1, 1)
    expected = model.encode_identity(to_float(images))
    torch.testing.assert_close(model._identity_vectors[rows], expected, rtol=0, atol=1e-4)
    assert not model._identity_vectors[data.split.gallery].any()


def test_identity_vectors_computed_beforehand_train_the_same_model() -> None:
    states = []
    for precompute in (False, True):
        model = small_ipgan(
            num_identities=32,
            identity_encoder=DlibResNet(),
            precompute_identity=precompute,
            same_person_share=0.5,
            ema_decay=0.9,
        )
        trainer(3).fit(model, small_data())
        states.append(model.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(
            states[1][name], value, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_one_recogniser_as_i_and_c_looks_at_a_photo_once() -> None:
    states = []
    for once in (True, False):
        recognizers = {"identity_encoder": DlibResNet(), "classifier": DlibResNet()}
        model = small_ipgan(**recognizers, feature_weight_c=1e3)
        assert model.one_recognizer
        model.one_recognizer = once
        calls: list[int] = []
        model.classifier.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        trainer(2).fit(model, loader())
        assert len(calls) == (2 if once else 4)  # generated faces only; and the photos
        states.append(snapshot(model))
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-3, atol=1e-4)
    assert not small_ipgan(identity_encoder=DlibResNet()).one_recognizer


@pytest.mark.parametrize("encoder", [None, "dlib"])
def test_a_photo_is_reconstructed_as_it_is_recombined_with_itself(encoder: str | None) -> None:
    model = small_ipgan(identity_encoder=None if encoder is None else DlibResNet()).eval()
    image = Batches()[0]["image"].requires_grad_()
    result = model.reconstruct(image)
    torch.testing.assert_close(result, model.recombine(image.detach(), image.detach()))
    result.square().mean().backward()
    assert image.grad is not None
    assert bool(image.grad.flatten(1).any(1).all())


def test_a_frozen_classifier_may_run_in_bfloat16() -> None:
    model = small_ipgan(classifier=DlibResNet(), classifier_bfloat16=True, feature_weight_c=1e3)
    assert model.gradient_fingerprints == {DlibResNet().fingerprint()}
    assert {value.dtype for value in model.classifier.backbone.parameters()} == {torch.bfloat16}
    before = snapshot(model.generator)
    trainer(1).fit(model, loader())
    assert changed(before, snapshot(model.generator))


def test_the_vector_may_be_the_map_before_the_global_average() -> None:
    model = small_ipgan(global_pool=False)
    trainer(2).fit(model, loader())
    assert model.encode_identity(Batches()[0]["image"]).shape == (6, model.classifier.feature_dim)
    assert model.classifier.feature_dim == 16 * small_ipgan().classifier.feature_dim


def test_literal_sampling_changes_the_draw_and_nothing_before_it() -> None:
    results = []
    for literal in (False, True):
        model = small_ipgan(literal_sampling=literal)
        with torch.no_grad():  # a log variance that tells exp(eps / 2) from exp(eps)
            model.attribute_encoder.posterior.bias[3:] = 2.0
        torch.manual_seed(0)
        trainer(1).fit(model, loader())
        results.append(snapshot(model))
    moved = changed(*results)
    assert {name.split(".")[0] for name in moved} == {"attribute_encoder", "generator", "discriminator"}


def test_without_the_kl_loss_nothing_is_drawn_so_that_no_variance_can_grow() -> None:
    model = small_ipgan(kl_weight=0.0)
    with torch.no_grad():
        model.attribute_encoder.posterior.bias[3:] = 200.0  # its exponential is infinite
    before = snapshot(model.attribute_encoder)
    trainer(2).fit(model, loader())
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())
    assert "posterior.weight" in changed(before, snapshot(model.attribute_encoder))
    assert torch.equal(model.attribute_encoder.posterior.bias[3:], before["posterior.bias"][3:])


def test_evaluation_uses_the_mean_of_the_posterior_and_repeats() -> None:
    model = small_ipgan().eval()
    batch = Batches()[0]
    torch.manual_seed(1)
    first = model.recombine(batch["image"], batch["partner"])
    torch.manual_seed(2)
    assert torch.equal(first, model.recombine(batch["image"], batch["partner"]))
    mean, _ = model.attribute_encoder(batch["partner"])
    features, _ = model.classifier(batch["image"])
    assert torch.equal(first, model.generator(features, mean))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_identities": 1}, "num_identities is 1"),
        ({"same_person_share": 1.5}, "same_person_share is 1.5"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
        ({"gradient_clip": 0.0}, "gradient_clip is 0.0"),
        ({"image_size": 48}, "image_size is 48"),
        ({"precompute_identity": True}, "precompute_identity is true, but I learns"),
        ({"classifier_bfloat16": True}, "classifier_bfloat16 is of a classifier that stays"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_ipgan(**arguments)


def test_every_network_is_a_plain_module() -> None:
    model = small_ipgan()
    assert set(model.phases) == {"attributes", "generator", "discriminator", "identity"}
    assert all(isinstance(network, nn.Module) for network in model.phases.values())


def test_an_image_seen_otherwise_is_itself_moved_and_noisy() -> None:
    image = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    torch.manual_seed(0)
    places = set()
    for _ in range(60):
        view = seen_otherwise(image)
        assert view.shape == image.shape
        inside = slice(4, -4)
        apart = {
            (down, right): float((image.roll((down, right), (2, 3)) - view)[..., inside, inside].square().mean())
            for down in range(-3, 4)
            for right in range(-3, 4)
        }
        place, error = min(apart.items(), key=lambda each: each[1])
        assert error == pytest.approx(VIEW_NOISE**2, rel=0.1)
        places.add(place)
    assert {abs(step) for place in places for step in place} == {0, 1, 2}
    (gradient,) = torch.autograd.grad(view.sum(), image)
    assert gradient.sum() == pytest.approx(image.numel())  # what leaves on one side comes in on the other


def test_views_are_what_l_gc_sees_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    seen: list[Tensor] = []

    def watched(image: Tensor) -> Tensor:
        seen.append(image)
        return 0 * image

    def losses(**options: Any) -> dict[str, float]:
        model = small_ipgan(**options)
        run = trainer(1)
        run.fit(model, loader())
        return {name: float(value) for name, value in run.logged_metrics.items() if name.startswith("train/loss/")}

    monkeypatch.setattr("idface.modules.ipgan.seen_otherwise", watched)
    plain, viewed = losses(), losses(feature_views=True)
    assert len(seen) == 1
    assert seen[0].requires_grad  # x', not a photo
    assert {name for name, value in plain.items() if viewed[name] != value} == {"train/loss/feature_c"}
