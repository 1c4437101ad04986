"""Does a recombined face look like its identity source? A recogniser judges, beside real photos of the same people."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from torchmetrics.utilities.prints import rank_zero_warn

from idface.metrics.identification import found


class RecombinationIdentity(Metric):
    """Identity of results that took the person of one photo and the attributes of another person's.

    All embeddings are unit vectors of one recogniser, the judge; similarities are cosines. For the figures to mean
    anything, no gradient of the judge may ever have reached the model.

    `compute` gives, as scalars:

    * `similarity_to_source`, `similarity_to_attributes`: mean cosine of a result to its two sources;
    * `similarity_to_gallery`: to the gallery photo of the person of its identity source, which it was not made from;
    * `nearer_to_source`: share of results that are nearer to the identity source (one half if identity is ignored);
    * `real_same`, `real_different`: between real photos, source to that person's gallery photo and source to attribute
      source: what `similarity_to_gallery` and `similarity_to_attributes` can be held against;
    * `top1`: share of results whose nearest gallery photo is of the right person (Bao et al., table 2);
    * `top1_real`: the same for the real identity sources; `chance`: one in the size of the gallery;
    * `results`, `gallery`: how many there were.
    """

    full_state_update = False
    result: list[Tensor]
    source: list[Tensor]
    attributes: list[Tensor]
    identity: list[Tensor]
    gallery: list[Tensor]
    gallery_identity: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("result", "source", "attributes", "identity", "gallery", "gallery_identity"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, result: Tensor, source: Tensor, attributes: Tensor, identity: Tensor) -> None:
        """Add results.

        Args:
            result: embeddings of the generated faces, (B, D).
            source: of the photos that gave the identity, (B, D).
            attributes: of the photos, of other people, that gave the attributes, (B, D).
            identity: int64 (B,), the person of `source`.
        """
        self.result.append(result)
        self.source.append(source)
        self.attributes.append(attributes)
        self.identity.append(identity)

    def update_gallery(self, embedding: Tensor, identity: Tensor) -> None:
        """Add real photos to be found, one a person: embeddings (B, D) and int64 (B,)."""
        self.gallery.append(embedding)
        self.gallery_identity.append(identity)

    def compute(self) -> dict[str, Tensor]:
        """The figures listed above, float32 scalars; not a number where nothing was there to judge.

        Results whose person has not exactly one gallery photo are left out, with a warning: an evaluation of part of
        the data (`limit_val_batches`) cuts the gallery short.
        """
        result, source = dim_zero_cat(self.result), dim_zero_cat(self.source)
        attributes, identity = dim_zero_cat(self.attributes), dim_zero_cat(self.identity)
        gallery, gallery_identity = dim_zero_cat(self.gallery), dim_zero_cat(self.gallery_identity)
        own = identity[:, None] == gallery_identity[None, :]  # (N, G)
        kept = own.sum(1) == 1
        if not bool(kept.all()):
            missing = identity[~kept].unique().tolist()
            rank_zero_warn(f"results of people {missing} are left out: each needs exactly one gallery photo")
            result, source, attributes, identity, own = (t[kept] for t in (result, source, attributes, identity, own))
        to_source = (result * source).sum(1)
        to_attributes = (result * attributes).sum(1)

        return {
            "similarity_to_source": to_source.mean(),
            "similarity_to_attributes": to_attributes.mean(),
            "similarity_to_gallery": (result @ gallery.T)[own].mean(),
            "nearer_to_source": (to_source > to_attributes).float().mean(),
            "real_same": (source @ gallery.T)[own].mean(),
            "real_different": (source * attributes).sum(1).mean(),
            "top1": found(result, identity, gallery, gallery_identity).float().mean(),
            "top1_real": found(source, identity, gallery, gallery_identity).float().mean(),
            "chance": torch.tensor(1.0 / len(gallery), device=result.device),
            "results": torch.tensor(float(len(result)), device=result.device),
            "gallery": torch.tensor(float(len(gallery)), device=result.device),
        }
