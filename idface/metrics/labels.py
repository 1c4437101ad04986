"""Whether faces look as old, and of the sex, that was asked for."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class LabelObedience(Metric):
    """Ages and sexes asked for, beside those that an estimator sees.

    `compute` gives, as scalars: `age_error`, mean absolute difference in years; `age_error_by_chance`, the same of
    what was asked for one face and seen in any, which is what a model that ignores the age comes to;
    `age_correlation`; `sex_accuracy`.
    """

    full_state_update = False
    asked: list[Tensor]
    seen: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("asked", "seen"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, asked: tuple[Tensor, Tensor], seen: tuple[Tensor, Tensor]) -> None:
        """Take sexes (B,), -1 or 1, and ages (B,) in years, of B faces: those asked for and those seen.

        Faces of which something was not asked for (NaN) are left out.
        """
        known = ~(asked[0].isnan() | asked[1].isnan())
        self.asked.append(torch.stack(asked, 1)[known].float())
        self.seen.append(torch.stack(seen, 1)[known].float())

    def compute(self) -> dict[str, Tensor]:
        """The figures listed above, float32; empty where there are not two faces."""
        if not len(self.asked):
            return {}
        asked, seen = dim_zero_cat(self.asked), dim_zero_cat(self.seen)
        if len(asked) < 2:
            return {}
        ages = torch.stack([asked[:, 1], seen[:, 1]])
        return {
            "age_error": (ages[0] - ages[1]).abs().mean(),
            "age_error_by_chance": _mean_difference(ages[0], ages[1]),
            "age_correlation": torch.corrcoef(ages)[0, 1].nan_to_num(),
            "sex_accuracy": (asked[:, 0] == seen[:, 0]).float().mean(),
        }


def _mean_difference(first: Tensor, second: Tensor) -> Tensor:
    """Mean of |a - b| over all pairs of two sets of numbers, (N,) and (M,)."""
    second = second.double().sort().values
    sums = torch.cat([second.new_zeros(1), second.cumsum(0)])
    below = torch.searchsorted(second, first.double(), right=True)
    total = first.double() * (2 * below - len(second)) + sums[-1] - 2 * sums[below]
    return (total / len(second)).mean().float()
