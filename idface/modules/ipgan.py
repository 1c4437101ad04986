"""Bao et al. 2018, *Towards Open-Set Identity Preserving Face Synthesis*."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from kornia.color import rgb_to_grayscale
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from data_modules.batch import EVALUATION_SETS, FaceBatch, FaceSource, to_float
from idface.losses.adversarial import discriminator_loss
from idface.losses.classification import UNKNOWN, identity_loss
from idface.losses.matching import feature_matching_loss, reconstruction_loss
from idface.losses.variational import kl_divergence, sample_posterior
from idface.metrics.recombination import RecombinationIdentity
from idface.modules.base import FaceModule, dcgan_adam, frozen_statistics
from idface.networks.dcgan import DCGANDiscriminator
from idface.networks.vgg import AttributeEncoder, FaceClassifier, InverseVGG, VGGEncoder
from idface.pictures import Picture, recombination_grid, to_picture
from idface.recognition.base import Recognizer

VIEW_NOISE = 0.05
"""Standard deviation, of pixels in [-1, 1], of what hides patterns from C."""


class IdentityVector(nn.Module):
    """A recogniser's embedding as f_I or f_C: unit vectors stretched to elements of about unit size.

    Linear layers expect that size, and it makes L_GC as large as with the features of a VGG.

    Args:
        recognizer: network from images in [-1, 1] to unit embeddings (B, D).
    """

    def __init__(self, recognizer: Recognizer) -> None:
        super().__init__()
        self.recognizer = recognizer

    def forward(self, image: Tensor) -> Tensor:
        """Images (B, 3, S, S) in [-1, 1] to vectors (B, D) of norm sqrt(D)."""
        embedding: Tensor = self.recognizer(image)
        return embedding * self.recognizer.embedding_dim**0.5


class SourcePair(NamedTuple):
    """What one iteration of Algorithm 1 recombines."""

    source: Tensor
    """x^s, float (B, 3, S, S) in [-1, 1]."""
    attributes: Tensor
    """x^a, likewise."""
    identity: Tensor
    """int64 (B,), the people of x^s."""
    row: Tensor
    """int64 (B,), the photos of x^s, by their `index` in the batch."""
    weight: float
    """lambda."""


class OpenSetIPGAN(FaceModule):
    """Identity of one photo, attributes of another, for people never seen in training (Bao et al., 2018).

    Networks, in the paper's letters: I (identity vector f_I) and C (features f_C for L_GC), which share weights; A
    (attribute vector f_A); G; D. Reconstruction steps (x^s = x^a) and transformation steps (x^s is another photo)
    alternate (Algorithm 1). In each, all losses come from one forward pass and every network follows its own:

    * A: `lambda * (w_kl L_KL + w_r L_GR)`, never L_GC or L_GD;
    * G: `lambda * w_r L_GR + w_d L_GD + w_c L_GC`, and no adversarial term: D reaches it by feature matching;
    * D: `L_D`, its real image being x^a;
    * I = C: softmax over the labelled x^s, once. f_I and every matching target are detached.

    Unlabelled images (identity -1) serve as x^s or x^a like others; as x^s they skip the softmax (section 3.3).

    Args:
        num_identities: people in the training set; the command line takes it from the data.
        image_size: side of the images in pixels, a power of two; the paper's is 128.
        width: channels of the first VGG stage (64 in VGG) for I, C, A and, at its end, G. Multiples of 16 run faster.
        discriminator_width: channels of D's first stage (64 in DCGAN).
        convolutions: 3x3 convolutions a VGG stage.
        attribute_dim: J, length of f_A; the paper does not give it.
        global_pool: whether the last pooling layer of I and C, whose output is f_I and f_C, is a global average; the
            paper does not say. Without it, the vector is the 4x4 map of the last stage.
        grey: whether the model sees and makes grey pictures: photos in colour are turned grey (the luma of ITU-R
            BT.601), and G makes one channel and repeats it.
        identity_encoder: a recogniser whose embedding is f_I, in place of the shared I. It stays as it is, and no
            gradient flows through it, so it may also judge.
        precompute_identity: whether `identity_encoder` sees each training photo once, before training and before any
            augmentation of it, instead of in every step: where it is large beside the other networks, most of the time.
            Where `classifier` is the same network, f_C of these photos is computed beforehand with it.
        classifier: a recogniser in place of the VGG as C, and as I unless `identity_encoder` is given. L_GC flows
            through it: it cannot judge.
        classifier_bfloat16: whether it runs in bfloat16: several times as fast where the processor has it.
        fine_tune: whether `classifier` is only where I and C start from, and learns on; otherwise it stays as it is.
        transformation_weight: lambda in transformation steps (0.1 in the paper); it is 1 in reconstruction steps.
        literal_lambda: multiply L_GR by lambda twice, as eq. 2 and Algorithm 1 do together, instead of once.
        reconstruction_weight: w_r of L_GR (eq. 2).
        kl_weight: w_kl of L_KL (eq. 3), a sum over J. With 0, f_A is the mean and nothing is drawn: no loss would keep
            the variance of what G makes no use of from growing without end.
        feature_weight_d: w_d of L_GD (eq. 5).
        feature_weight_c: w_c of L_GC (eq. 7); 0 switches the term off.
        feature_views: whether C is shown x' moved by a few pixels and noisy in L_GC: else a fixed C may be pleased by
            patterns that nobody else sees.
        same_person_share: share of x^s in reconstruction steps that are another photo of the same person instead of
            x^a itself. The paper has 0. Above 0, f_I cannot carry what f_A should, which a small training set needs.
        transformation_steps: whether they are run at all (the paper's "w/o T" has false).
        literal_sampling: draw `mu + r * exp(eps)` as printed, see `sample_posterior`.
        optimizer: makes the optimisers; the paper does not name one, so DCGAN's Adam.
        discriminator_optimizer: makes D's; None takes `optimizer`.
        judge, scheduler, gradient_clip, ema_decay, compile, channels_last: see `FaceModule`.
    """

    def __init__(
        self,
        num_identities: int,
        image_size: int = 128,
        width: int = 64,
        discriminator_width: int = 64,
        convolutions: int = 2,
        attribute_dim: int = 128,
        global_pool: bool = True,
        grey: bool = False,
        identity_encoder: Recognizer | None = None,
        precompute_identity: bool = False,
        classifier: Recognizer | None = None,
        classifier_bfloat16: bool = False,
        fine_tune: bool = False,
        judge: Recognizer | None = None,
        transformation_weight: float = 0.1,
        literal_lambda: bool = False,
        reconstruction_weight: float = 1.0,
        kl_weight: float = 1.0,
        feature_weight_d: float = 1.0,
        feature_weight_c: float = 1.0,
        feature_views: bool = False,
        same_person_share: float = 0.0,
        transformation_steps: bool = True,
        literal_sampling: bool = False,
        optimizer: OptimizerCallable = dcgan_adam,
        discriminator_optimizer: OptimizerCallable | None = None,
        scheduler: LRSchedulerCallable | None = None,
        gradient_clip: float | None = None,
        ema_decay: float = 0.999,
        compile: bool = False,
        channels_last: bool = True,
    ) -> None:
        super().__init__(judge, optimizer, scheduler, gradient_clip, ema_decay, compile, channels_last)
        if num_identities < 2:
            raise ValueError(f"num_identities is {num_identities}; telling people apart takes at least 2")
        if not 0 <= same_person_share <= 1:
            raise ValueError(f"same_person_share is {same_person_share}; expected a share between 0 and 1")
        if fine_tune and classifier is None:
            raise ValueError("fine_tune is true, but there is no classifier to tune: give one, or leave fine_tune out")
        if classifier_bfloat16 and (classifier is None or fine_tune):
            raise ValueError("classifier_bfloat16 is of a classifier that stays as it is: give one, without fine_tune")
        if precompute_identity and identity_encoder is None:
            raise ValueError("precompute_identity is true, but I learns: it takes a fixed identity_encoder")
        self.image_size = image_size
        self.discriminator_optimizer = discriminator_optimizer
        self.transformation_weight = transformation_weight
        self.literal_lambda = literal_lambda
        self.grey = grey
        self.precompute_identity = precompute_identity
        self.reconstruction_weight = reconstruction_weight
        self.kl_weight = kl_weight
        self.feature_weight_d = feature_weight_d
        self.feature_weight_c = feature_weight_c
        self.feature_views = feature_views
        self.same_person_share = same_person_share
        self.one_recognizer = (  # f_C of a photo is its f_I, then
            identity_encoder is not None
            and classifier is not None
            and not fine_tune
            and (identity_encoder.name, identity_encoder.fingerprint()) == (classifier.name, classifier.fingerprint())
        )
        self.transformation_steps = transformation_steps
        self.literal_sampling = literal_sampling

        if classifier is None:
            vgg = VGGEncoder(image_size, width, convolutions, pool=global_pool)
            self.classifier = FaceClassifier(vgg, vgg.out_channels, num_identities)  # C, and I unless one is given
        else:
            self.gradient_fingerprints = frozenset({classifier.fingerprint()})
            network = classifier.in_bfloat16() if classifier_bfloat16 else classifier
            self.classifier = FaceClassifier(IdentityVector(network), classifier.embedding_dim, num_identities)
            self.classifier.requires_grad_(fine_tune)  # its new head as well
        self.classifier_learns = classifier is None or fine_tune
        self.identity_encoder = None if identity_encoder is None else IdentityVector(identity_encoder)
        if (giver := identity_encoder or classifier) is not None:
            self.input_fingerprints = frozenset({giver.fingerprint()})
        self.attribute_encoder = AttributeEncoder(image_size, width, convolutions, attribute_dim)  # A
        identity_dim = identity_encoder.embedding_dim if identity_encoder else self.classifier.feature_dim
        self.generator = InverseVGG(identity_dim + attribute_dim, image_size, width, convolutions, grey)  # G
        self.discriminator = DCGANDiscriminator(image_size, discriminator_width)  # D
        self.metrics = nn.ModuleDict({name: RecombinationIdentity() for name in EVALUATION_SETS[:2]})

    @property
    def phases(self) -> Mapping[str, nn.Module]:
        """A, G, D and, unless it is a frozen recogniser, C."""
        phases = {
            "attributes": self.attribute_encoder,
            "generator": self.generator,
            "discriminator": self.discriminator,
        }
        return {**phases, "identity": self.classifier} if self.classifier_learns else phases

    @property
    def averaged(self) -> tuple[str, ...]:
        """What recombination runs through and training changes."""
        learns_identity = self.identity_encoder is None and self.classifier_learns
        return ("attribute_encoder", "generator", *(("classifier",) if learns_identity else ()))

    def phase_optimizer(self, name: str) -> OptimizerCallable:
        """D may have an optimiser of its own."""
        return self.discriminator_optimizer or self.optimizer if name == "discriminator" else self.optimizer

    # ------------------------------------------------------------------------------------------------------- training

    def on_train_start(self) -> None:
        """Look at the training photos' people once, where that is enough."""
        super().on_train_start()
        if self.precompute_identity:
            self._identity_vectors = self._training_identity_vectors()

    @torch.no_grad()
    def _training_identity_vectors(self) -> Tensor:
        """f_I (N, I) of the training photos, by row of the data set; the other rows are zero."""
        data: FaceSource | None = getattr(self.trainer, "datamodule", None)
        if data is None:
            raise ValueError("precompute_identity is true, but training was started without a data module")
        encoder = cast(IdentityVector, self.identity_encoder)
        vectors = torch.zeros(len(data.photos), encoder.recognizer.embedding_dim, device=self.device)
        for batch in data.training_photos():
            image = to_float(batch["image"].to(self.device)).contiguous(memory_format=torch.channels_last)
            vectors[batch["index"].to(self.device)] = encoder(self.seen(image))
        return vectors

    def seen(self, image: Tensor) -> Tensor:
        """Photos (B, 3, S, S) as the model sees them: themselves, or grey ones with three equal channels."""
        return rgb_to_grayscale(image).expand_as(image) if self.grey else image

    def pair(self, batch: FaceBatch) -> SourcePair:
        """The batch's identity and attribute sources (Algorithm 1): odd iterations reconstruct, even transform."""
        image, identity, index = self.seen(batch["image"]), batch["identity"], batch["index"]
        if self.transformation_steps and self.iteration % 2 == 1:  # x^a is somebody, for the batch is mixed
            return SourcePair(image, image.roll(1, dims=0), identity, index, self.transformation_weight)
        if self.same_person_share == 0:
            return SourcePair(image, image, identity, index, 1.0)
        if "partner" not in batch:
            raise ValueError(
                "same_person_share is above 0, but batches carry no partner: set partner: true in the data"
            )
        swap = torch.rand(len(image), device=image.device) < self.same_person_share
        source = torch.where(swap[:, None, None, None], self.seen(batch["partner"]), image)
        return SourcePair(source, image, identity, torch.where(swap, batch["partner_index"], index), 1.0)

    def step(self, batch: FaceBatch) -> None:
        """One iteration of Algorithm 1. All losses come from one forward pass, at the same weights."""
        source, attribute_image, identity, row, step_weight = self.pair(batch)

        mean, log_variance = self.attribute_encoder(attribute_image)
        attributes = self.draw_attributes(mean, log_variance)
        logits: Tensor | None = None
        if self.precompute_identity:
            identity_vector = self._identity_vectors[row]
        elif self.identity_encoder is not None:
            identity_vector = self.identity_encoder(source)
        if self.one_recognizer:
            source_features = identity_vector
        else:
            with nullcontext() if self.classifier_learns else torch.no_grad():
                source_features, logits = self.classifier(source)
            if self.identity_encoder is None:
                identity_vector = source_features.detach()
        result = self.generator(identity_vector, attributes)

        real_features, real_logits = self.discriminator(attribute_image)
        fake_features, fake_logits = self.discriminator(result)

        losses = {
            "kl": kl_divergence(mean, log_variance),
            "reconstruction": reconstruction_loss(result, attribute_image),
            "feature_d": feature_matching_loss(fake_features, real_features),
            "discriminator": discriminator_loss(real_logits, fake_logits),
        }
        reconstruction_weight = step_weight**2 if self.literal_lambda else step_weight
        reconstruction = reconstruction_weight * self.reconstruction_weight * losses["reconstruction"]
        matching = self.feature_weight_d * losses["feature_d"]
        if self.feature_weight_c > 0:
            with frozen_statistics(self.classifier):
                result_features, _ = self.classifier(seen_otherwise(result) if self.feature_views else result)
            losses["feature_c"] = feature_matching_loss(result_features, source_features)
            matching = matching + self.feature_weight_c * losses["feature_c"]

        # The order matters: a phase changes its network in place, so those whose gradient passes through it come first.
        regular = step_weight * self.kl_weight * losses["kl"] if self.kl_weight else 0.0
        self.phase("attributes", regular + reconstruction, retain_graph=True)
        self.phase("generator", reconstruction + matching, retain_graph=True)
        self.phase("discriminator", losses["discriminator"], retain_graph=True)
        if self.classifier_learns:
            losses["identity"] = identity_loss(cast(Tensor, logits), identity)
            labelled = (identity != UNKNOWN).sum()
            self.phase("identity", self.as_joint_mean(losses["identity"], labelled))
        self.record(losses)

    def draw_attributes(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """f_A (B, J) as G sees it in training, from what A gives; see `sample_posterior` and `kl_weight`."""
        return sample_posterior(mean, log_variance, self.literal_sampling) if self.kl_weight else mean

    # -------------------------------------------------------------------------------------------------- after training

    @torch.no_grad()
    def encode_identity(self, image: Tensor) -> Tensor:
        """f_I (B, I) of photos, float (B, 3, S, S) in [-1, 1]."""
        image = self.seen(image)
        if self.identity_encoder is not None:
            vector: Tensor = self.identity_encoder(image)
            return vector
        classifier = self.trained("classifier") if self.classifier_learns else self.classifier
        features: Tensor = classifier(image)[0]
        return features

    @torch.no_grad()
    def encode_attributes(self, image: Tensor) -> Tensor:
        """The mean of f_A, (B, J), of photos, float (B, 3, S, S) in [-1, 1]."""
        mean: Tensor = self.trained("attribute_encoder")(self.seen(image))[0]
        return mean

    @torch.no_grad()
    def recombine(self, source: Tensor, attributes: Tensor) -> Tensor:
        """Faces with the identity of `source` and the attributes of `attributes`.

        Args:
            source: x^s, float (B, 3, S, S) in [-1, 1], aligned.
            attributes: x^a, likewise.

        Returns:
            x', likewise, from the averaged weights and the mean of f_A.
        """
        return self.generate(self.encode_identity(source), self.encode_attributes(attributes))

    def reconstruct(self, image: Tensor) -> Tensor:
        """Photos (B, 3, S, S) in [-1, 1] by their own f_I and f_A, likewise; differentiable with respect to them."""
        seen = self.seen(image)
        if self.identity_encoder is not None:
            identity = self.identity_encoder(seen)
        else:
            identity = (self.trained("classifier") if self.classifier_learns else self.classifier)(seen)[0]
        result: Tensor = self.trained("generator")(identity, self.trained("attribute_encoder")(seen)[0])
        return result

    @torch.no_grad()
    def generate(self, identity: Tensor, attributes: Tensor) -> Tensor:
        """Faces (B, 3, S, S) in [-1, 1] from f_I (B, I) and f_A (B, J), by the averaged weights."""
        result: Tensor = self.trained("generator")(identity, attributes)
        return result

    def forward(self, source: Tensor, attributes: Tensor) -> Tensor:
        """See `recombine`."""
        return self.recombine(source, attributes)

    def validation_step(self, batch: FaceBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Recombine known and unseen people's photos and let the judge look."""
        self._evaluate("val", batch, EVALUATION_SETS[dataloader_idx])

    def test_step(self, batch: FaceBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As validation, with the test people as the unseen."""
        self._evaluate("test", batch, EVALUATION_SETS[dataloader_idx])

    def predict_step(self, batch: FaceBatch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Recombined faces, float (B, 3, S, S) in [-1, 1]."""
        return self.recombine(batch["image"], batch["partner"])

    def _evaluate(self, stage: str, batch: FaceBatch, split: str) -> None:
        image, identity = batch["image"], batch["identity"]
        if split == "gallery":
            if self.judge is not None:
                embedding = self._judged(image, batch["index"])
                for metric in self._identity_metrics().values():
                    metric.update_gallery(embedding, identity)
            return
        partner = batch["partner"]
        attributes = self.encode_attributes(partner)
        result = self.generate(self._encoded(image, batch["index"]), attributes)
        self._grids[split].add(image, identity, partner, batch["partner_identity"])
        reconstructed = self.generate(self._encoded(partner, batch["partner_index"]), attributes)
        seen = self.seen(partner)
        background = (result - seen).square().mean()  # how much of the attribute photo is still there, roughly
        reconstruction = 2 * reconstruction_loss(reconstructed, seen)
        names = {"attribute_error": background, "reconstruction_error": reconstruction}
        self.log_dict(
            {f"{stage}/pixels/{split}/{name}": value for name, value in names.items()},
            add_dataloader_idx=False,
            batch_size=len(image),
            sync_dist=True,
        )
        if self.judge is not None:
            sources = self._judged(image, batch["index"]), self._judged(partner, batch["partner_index"])
            self._identity_metrics()[split].update(self.judge(result), *sources, identity)

    def start_evaluation(self) -> None:
        """See `FaceModule`."""
        self._grids = {split: _GridPhotos() for split in EVALUATION_SETS[:2]}
        self._encoded = _OncePerPhoto(self.encode_identity)
        if self.judge is not None:
            self._judged = _OncePerPhoto(self.judge)
        for metric in self._identity_metrics().values():
            metric.reset()

    def _identity_metrics(self) -> dict[str, RecombinationIdentity]:
        return {split: cast(RecombinationIdentity, metric) for split, metric in self.metrics.items()}

    def log_evaluation(self, stage: str) -> None:
        """Log `<stage>/identity/<split>/<figure>`."""
        for split, metric in self._identity_metrics().items():
            if metric.update_called:
                figures = {f"{stage}/identity/{split}/{name}": value for name, value in metric.compute().items()}
                self.log_dict(figures, rank_zero_only=True)

    def sample_grids(self) -> dict[str, Picture]:
        """A recombination grid for each evaluation set of the epoch just run: `known` and `unseen`."""
        return {split: photos.render(self) for split, photos in self._grids.items() if photos.rows}


def seen_otherwise(image: Tensor) -> Tensor:
    """Images (B, C, S, S) moved alike by up to a thirty-second of their side either way, each with noise of its own."""
    most = max(1, image.shape[-1] // 32)
    down, right = torch.randint(2 * most + 1, (2,)).tolist()
    edged = F.pad(image, (most, most, most, most), mode="replicate")
    moved = edged[..., down : down + image.shape[-2], right : right + image.shape[-1]]
    return moved + VIEW_NOISE * torch.randn_like(moved)


class _OncePerPhoto:
    """Vectors of photos that come up in many pairs, each computed once an evaluation.

    Args:
        function: images (B, 3, S, S) to vectors (B, D).
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function
        self.vectors: dict[int, Tensor] = {}

    def __call__(self, image: Tensor, index: Tensor) -> Tensor:
        """The vectors (B, D) of photos (B, 3, S, S) by their rows in the data set, int64 (B,)."""
        photos = index.tolist()
        new = {photo: row for row, photo in enumerate(photos) if photo not in self.vectors}
        if new:
            self.vectors.update(zip(new, self.function(image[list(new.values())]), strict=True))
        return torch.stack([self.vectors[photo] for photo in photos])


class _GridPhotos:
    """The first few people of an evaluation set as rows, and the first few attribute sources as columns, of a grid."""

    ROWS, COLUMNS = 8, 6

    def __init__(self) -> None:
        self.rows: dict[int, Tensor] = {}
        self.columns: dict[int, Tensor] = {}

    def add(self, image: Tensor, identity: Tensor, partner: Tensor, partner_identity: Tensor) -> None:
        """Take what is still missing from a batch: photos (B, 3, S, S) and their people, int64 (B,)."""
        self._keep(self.rows, self.ROWS, image, identity)
        self._keep(self.columns, self.COLUMNS, partner, partner_identity)

    @staticmethod
    def _keep(kept: dict[int, Tensor], wanted: int, photos: Tensor, people: Tensor) -> None:
        if len(kept) == wanted:
            return
        for photo, person in zip(photos, people.tolist(), strict=True):
            if person not in kept and len(kept) < wanted:
                kept[person] = photo

    def render(self, model: OpenSetIPGAN) -> Picture:
        """The grid, with one result for each row and column."""
        rows, columns = torch.stack(list(self.rows.values())), torch.stack(list(self.columns.values()))
        results = torch.stack([model.recombine(row.expand_as(columns), columns) for row in rows])
        return recombination_grid(to_picture(rows), to_picture(columns), to_picture(results))
