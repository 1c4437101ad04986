"""Attribute preservation, against plain formulas."""

import pytest
import torch

from idface.metrics.preservation import AttributePreservation, describe_faces, differences


def described(count: int, seed: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    noise = torch.Generator().manual_seed(seed)
    faces = {
        "images": torch.rand(count, 3, 8, 8, generator=noise) * 2 - 1,
        "landmarks": torch.tensor([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]])
        + 0.02 * torch.randn(count, 5, 2, generator=noise),
        "yaw": 20 * torch.randn(count, generator=noise),
        "brightness": torch.rand(count, generator=noise),
    }
    return describe_faces(**faces, face=(2, 6)), faces


def test_against_plain_formulas() -> None:
    (result, a), (attributes, b), (source, c) = (described(6, seed) for seed in range(3))
    metric = AttributePreservation()
    metric.update(result[:2], attributes[:2], source[:2])
    metric.update(result[2:], attributes[2:], source[2:])
    figures = {name: float(value) for name, value in metric.compute().items()}
    assert figures["yaw"] == pytest.approx(float((a["yaw"] - b["yaw"]).abs().mean()))
    assert figures["brightness"] == pytest.approx(float((a["brightness"] - b["brightness"]).abs().mean()))
    assert figures["yaw_source"] == pytest.approx(float((c["yaw"] - b["yaw"]).abs().mean()))
    apart = (a["yaw"][:, None] - b["yaw"]).abs()
    assert apart.min() < figures["yaw_chance"] < apart.max()
    difference = (a["images"] - b["images"]).square()
    inside = difference[:, :, 2:6, 2:6].sum()
    assert figures["background"] == pytest.approx(float((difference.sum() - inside) / (6 * 3 * 48)), rel=1e-5)


def test_chance_is_that_of_any_other_result_however_they_are_sorted() -> None:
    (_, faces), count = described(400, 0), 400
    faces["yaw"] = torch.linspace(-40, 40, count)
    attributes = describe_faces(**faces, face=(2, 6))
    metric = AttributePreservation()
    metric.update(attributes, attributes, attributes)
    figures = metric.compute()
    assert figures["yaw"] == 0
    anybody = (faces["yaw"][:, None] - faces["yaw"]).abs().sum() / (count * (count - 1))
    assert figures["yaw_chance"] == pytest.approx(
        float(anybody), rel=0.1
    )  # those half the list away: 1.5 times as much


def test_the_mouth_is_seen_from_the_eyes() -> None:
    points = torch.tensor([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]])
    angle = torch.tensor(0.3)
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    wider = points.clone()
    wider[3, 0] -= 0.04  # a tenth of the eyes' distance
    wider[4, 0] += 0.04
    faces = [points, points + 0.05, 0.9 * points, points @ turn.T, wider]
    blank = torch.zeros(1, 3, 8, 8)
    described = [describe_faces(blank, each[None], torch.zeros(1), torch.zeros(1), (2, 6)) for each in faces]
    mouths = [float(differences(described[0], other)[1]) for other in described]
    assert mouths == pytest.approx([0, 0, 0, 0, 0.1], abs=1e-5)


def test_the_same_faces_differ_by_nothing() -> None:
    faces, _ = described(4, 0)
    metric = AttributePreservation()
    metric.update(faces, faces, faces)
    figures = metric.compute()
    assert all(float(figures[name]) == 0 for name in ("yaw", "mouth", "brightness", "background", "yaw_source"))
    assert float(figures["yaw_chance"]) > 0
    empty = AttributePreservation()
    empty.update(faces[:1], faces[:1], faces[:1])
    assert empty.compute() == {}
