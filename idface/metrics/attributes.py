"""How well attributes and landmarks of faces are recognised."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_auroc, binary_recall, binary_specificity
from torchmetrics.utilities import dim_zero_cat

UNKNOWN = -1


class AttributeAccuracy(Metric):
    """Attributes and landmarks beside the labels; what is not known (NaN) is skipped.

    `compute` gives, as scalars, the means over attributes of `accuracy` (share of right answers), `balanced_accuracy`
    (mean of that share among faces with and among faces without it, so that "nobody wears glasses" scores one half) and
    `auc` (area under the ROC curve, whatever the threshold); `<name>/balanced_accuracy` and `<name>/auc` of the
    attributes in `reported`; `landmark_error`, the mean distance of a landmark from where it is, in units of the
    distance between the eyes; and `faces`, how many there were. Attributes that all faces have, or none, are left out
    of the means of `balanced_accuracy` and `auc`. Figures without any face to tell them are not given.

    Args:
        attributes: names of the attributes, one a column.
        reported: those to report one by one.
    """

    full_state_update = False
    logits: list[Tensor]
    labels: list[Tensor]
    errors: list[Tensor]

    def __init__(self, attributes: Sequence[str], reported: Sequence[str]) -> None:
        super().__init__()
        self.attributes = tuple(attributes)
        self.reported = tuple(reported)
        for name in ("logits", "labels", "errors"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(
        self, logits: Tensor, attributes: Tensor, result: Tensor | None = None, landmarks: Tensor | None = None
    ) -> None:
        """Add faces.

        Args:
            logits: (B, A).
            attributes: (B, A), 1 present, -1 absent, NaN unknown.
            result: landmarks that were found, (B, 5, 2), eyes first; None with `landmarks`.
            landmarks: where they are, in the same unit; None where that is not labelled.
        """
        self.logits.append(logits)
        self.labels.append(torch.where(attributes.isnan(), UNKNOWN, (attributes > 0).long()))
        if result is not None and landmarks is not None:
            eyes = (landmarks[:, 1] - landmarks[:, 0]).norm(dim=-1)
            error = (result - landmarks).norm(dim=-1).mean(1) / eyes
            self.errors.append(error[~error.isnan()])

    def compute(self) -> dict[str, Tensor]:
        """The figures listed above, float32 scalars."""
        logits, labels = dim_zero_cat(self.logits), dim_zero_cat(self.labels)
        both = ((labels == 1).any(0) & (labels == 0).any(0)).nonzero().flatten()
        figures = {"faces": torch.tensor(float(len(logits)), device=logits.device)}
        if (labels != UNKNOWN).any():
            known = labels != UNKNOWN
            right = ((logits > 0) == (labels == 1)) & known
            seen = known.any(0)
            figures["accuracy"] = (right.sum(0)[seen] / known.sum(0)[seen]).mean()
        each = {self.attributes[column]: _figures_of(logits[:, column], labels[:, column]) for column in both.tolist()}
        for figure in ("balanced_accuracy", "auc") if each else ():
            figures[figure] = torch.stack([of[figure] for of in each.values()]).mean()
            figures |= {f"{name}/{figure}": each[name][figure] for name in self.reported if name in each}
        if self.errors and len(errors := dim_zero_cat(self.errors)):
            figures["landmark_error"] = errors.mean()
        return figures


def _figures_of(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Figures of one attribute (N,) that some faces have and some have not."""
    known = labels != UNKNOWN
    probabilities, present = logits[known].float().sigmoid(), labels[known]
    balanced = (binary_recall(probabilities, present) + binary_specificity(probabilities, present)) / 2
    return {"balanced_accuracy": balanced, "auc": binary_auroc(probabilities, present)}
