"""Whether faces look as old, and of the sex, that was asked for."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class LabelObedience(Metric):
    """Ages and sexes asked for, beside those that an estimator sees.

    `compute` gives, as scalars: `age_error`, mean absolute difference in years; `age_error_ignoring`, that of the
    median of all ages asked for of the same sex: no model that ignores the age comes to less; `age_correlation`;
    `sex_accuracy`.
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
        usual = torch.empty_like(ages[0])
        for sex in asked[:, 0].unique():
            usual[asked[:, 0] == sex] = ages[0, asked[:, 0] == sex].median()
        return {
            "age_error": (ages[0] - ages[1]).abs().mean(),
            "age_error_ignoring": (ages[0] - usual).abs().mean(),
            "age_correlation": torch.corrcoef(ages)[0, 1].nan_to_num(),
            "sex_accuracy": (asked[:, 0] == seen[:, 0]).float().mean(),
        }
