"""Figures of attribute labels, against independent computations."""

import numpy as np
import pytest
import torch

from idface.metrics.attributes import AttributeAccuracy

NAN = float("nan")


def test_figures_are_those_of_the_known_labels() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.4, 3.0, 1.0], [-1.0, -2.0, 2.0], [0.9, 0.1, -3.0]])
    labels = torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, 1.0], [1.0, NAN, NAN], [-1.0, -1.0, 1.0]])
    metric = AttributeAccuracy(("a", "b", "c"), ("b",))
    for rows in (slice(0, 3), slice(3, 4)):
        metric.update(logits[rows], labels[rows])
    figures = {name: value.item() for name, value in metric.compute().items()}
    assert figures["faces"] == 4
    assert figures["accuracy"] == pytest.approx(np.mean([1 / 4, 2 / 3, 2 / 3]))
    # all that are known have c, so there is nothing to balance; a: 1 of 2 present, 0 of 2 absent; b: 1 of 1, 1 of 2
    assert figures["balanced_accuracy"] == pytest.approx(np.mean([1 / 4, 3 / 4]))
    assert figures["auc"] == pytest.approx(np.mean([2 / 4, 1.0]))  # pairs in the right order
    assert figures["b/auc"] == 1
    assert figures["b/balanced_accuracy"] == pytest.approx(3 / 4)
    assert not any(name.startswith(("a/", "c/", "landmark")) for name in figures)


def test_landmark_error_is_in_eye_distances() -> None:
    metric = AttributeAccuracy(("a",), ())
    landmarks = torch.tensor([[[0.3, 0.3], [0.7, 0.3], [0.5, 0.5], [0.4, 0.7], [0.6, 0.7]]])
    metric.update(torch.zeros(1, 1), torch.ones(1, 1), landmarks + torch.tensor([0.04, 0.0]), landmarks)
    assert metric.compute()["landmark_error"].item() == pytest.approx(0.1)


def test_without_labels_only_the_faces_are_counted() -> None:
    metric = AttributeAccuracy(("a",), ("a",))
    metric.update(torch.zeros(3, 1), torch.full((3, 1), NAN))
    assert {name: value.item() for name, value in metric.compute().items()} == {"faces": 3}
