"""`idface detect-adversarial`: faces that were changed to pass for another person's (Bao et al. 2018, section 4.5).

An adversarial face has the features of somebody else, so what the model reconstructs of it looks like that person:
input and reconstruction differ as those of an honest photo do not.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor, nn

from data_modules.batch import to_float, to_uint8
from idface.checkpoints import best_device, load_model_of
from idface.files import write_csv, write_json
from idface.latent.results import captioned
from idface.metrics.identification import drawn_anew, middle, resampled_shares
from idface.modules.ipgan import IdentityVector, OpenSetIPGAN
from idface.networks.vgg import FaceClassifier
from idface.pictures import Picture, mark_synthetic, save_synthetic, to_picture
from idface.protocols.sources import People, strangers
from idface.recognition.base import Recognizer, distance, resize
from idface.recognition.build import build_recognizer
from idface.recognition.calibration import Calibration, calibrate

SHARES = (0.4, 0.6, 0.8, 1.0)
"""The paper's thresholds; of its recogniser, whose distances are not ours: here they are shares of the one at which the
recogniser tells people apart best."""
ATTACKS = ("eq8", "pgd", "ddn", "aware")
FOLDS = 5
BATCH = 32
CELLS = 8
"""Rows and columns of cells in which LBP are counted."""
PATTERNS = 59
"""Uniform LBP of eight neighbours, the others as one."""
SHOWN = 6
COLUMNS = (
    "attack",
    "threshold",
    "confused",
    "success",
    "rms_change",
    "rms_drift",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "auc",
    "accuracy_trained_on_eq8",
    "accuracy_of_input",
    "accuracy_of_reconstruction",
    "accuracy_of_judge",
    "faces",
)
PGD_LIMIT = 16 / 255
"""Largest change of a pixel by PGD, in units of the range from black to white."""
MARGIN = 0.99
"""Of a threshold: attacks aim a little below it."""
AWARE = 10.0
"""What a pixel of the reconstruction weighs beside one of the photo, to an attack that knows the detector."""
MOST_CALIBRATED = 2000
"""Photos, between all of which a recogniser's distances are measured."""
RATE, LAST_RATE, MOST_RATE = 0.01, 0.0002, 0.1
"""Of the descent under eq. 8, in units of pixels from -1 to 1: at its start, at its end, and at most. Larger ones leave
noise of their own size on every pixel, many times the change that is needed."""
PRICE = 0.005
"""What the distance weighs beside the mean squared change when the descent begins."""
ADJUSTED = 50
"""How often the price is, at most."""


class AttackPairs(NamedTuple):
    """Photos of two people each, who are in one fold.

    Attributes:
        first, second: uint8 (N, 3, S, S); the first is to pass for the second.
        people: who they show, int64 (N, 2).
        fold: int64 (N,).
    """

    first: Tensor
    second: Tensor
    people: Tensor
    fold: Tensor


def detect_adversarial(
    checkpoint: str,
    photos: Path | None,
    out: Path,
    pairs: int = 300,
    attacks: Sequence[str] = ATTACKS,
    thresholds: Sequence[float] | None = None,
    steps: int = 100,
    recognizer: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Attack a recogniser with photos of pairs of people, and tell these from honest ones by their reconstructions.

    Each pair is attacked both ways, and both its photos stand for honest ones. LBP histograms of input and
    reconstruction, one after the other, go to a linear SVM; it is trained on four folds and asked on the fifth, and
    nobody is in two. Attacks: `eq8`, the smallest change in L2 under eq. 8, by descent; `pgd` (Madry et al. 2018, the
    same faces whatever the threshold) and `ddn` (Rony et al. 2019), of foolbox; `aware`, eq. 8 by somebody who knows
    the reconstruction, and keeps it as it was (the SVM itself is not attacked). Faces that the recogniser takes for one
    person anyway are not attacked, and an attack that does not succeed leaves no adversarial face.

    Writes into `out`, after each row: `table.csv`, for each attack and threshold: `confused`, pairs that need no
    attack; `success`; `rms_change` of the photo, `rms_drift` of its reconstruction; `accuracy` (the mean of both
    kinds', with a 95 % interval by drawing the people shown anew) and `auc` of an SVM that was trained on this attack,
    and `accuracy_trained_on_eq8`; `accuracy_of_input` and `accuracy_of_reconstruction`, of SVMs that see one of both;
    `accuracy_of_judge`, of one that sees how far apart the model's judge, if it has one and is not attacked itself,
    takes input and reconstruction to be (not in the paper).
    And `report.json`; `roc.png`; `faces-<attack>.png`, photos, attacked photos, and reconstructions of both. Attacked
    photos are rounded to 256 levels before anything looks at them.

    Args:
        checkpoint: of an OpenSetIPGAN, or `zoo:NAME`.
        photos: a prepared set of people; None for those whom the model's own data hold out.
        out: folder for the results; made if missing.
        pairs: of different people.
        attacks: some of the above.
        thresholds: squared distances below which two faces are one person's; None for `SHARES` of the one at which the
            recogniser tells people apart best, on LFW or, where that is not known, on these photos.
        steps: of each attack.
        recognizer: what is attacked, see `build_recognizer`; None for what the model has its identity vectors from, as
            in the paper.
        seed: of people, pairs and folds.

    Returns:
        What `report.json` holds.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        ValueError: an option is of no use, or there are too few people.
    """
    if unknown := sorted(set(attacks) - set(ATTACKS)):
        raise ValueError(f"--attacks has {unknown[0]}; expected some of {', '.join(ATTACKS)}")
    if bad := [each for each in thresholds or () if not 0 < each < 4]:
        raise ValueError(f"--thresholds has {bad[0]:g}; squared distances of unit vectors are between 0 and 4")
    device = best_device()
    model = load_model_of(OpenSetIPGAN, checkpoint).to(device)
    target = (identity_network(model) if recognizer is None else build_recognizer(recognizer)).to(device)
    people = strangers(photos, checkpoint, model.image_size, model.photos_digest)
    drawn = draw_pairs(people, pairs, seed)
    if thresholds is None:
        known = target.everyday or _calibrated(target, people)
        thresholds = [share * known.unit.best_threshold for share in SHARES]
    honest = to_float(torch.cat([drawn.first, drawn.second])).to(device)
    victims = torch.cat([drawn.second, drawn.first])
    person, fold = drawn.people.T.flatten(), drawn.fold.repeat(2)
    embedded = target.embed(victims)

    out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"checkpoint": checkpoint, "photos": photos and str(photos)}
    report |= {"pairs": len(drawn.first), "seed": seed, "recognizer": target.name, "steps": steps}
    report |= {"is_models_identity": recognizer is None or target.fingerprint() in model.input_fingerprints}
    rows: list[dict[str, Any]] = []
    curves: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
    of_eq8: dict[float, tuple[NDArray[np.float32], Tensor]] = {}
    apart, before = distance(target.embed(honest), embedded), _reconstructed(model, honest)
    plain = features_of(honest, before)
    judge = model.judge if model.judge is None or model.judge.fingerprint() != target.fingerprint() else None
    plain_unlike = None if judge is None else _unlike(judge, honest, before)
    for attack in sorted(attacks, key=ATTACKS.index):  # eq8 first: the others are also judged by its SVM
        changed: Tensor | None = None
        for number, threshold in enumerate(thresholds):
            if changed is None or attack != "pgd":
                changed = attacked(attack, target, model, honest, embedded, threshold, steps)
                changed = to_float(to_uint8(changed))
            if number == 0:
                _save_faces(out / f"faces-{attack}.png", model, honest, changed, victims, checkpoint)
            is_pair = apart >= threshold
            succeeded = is_pair & (distance(target.embed(changed), embedded) < threshold)
            kept = succeeded.nonzero()[:, 0]
            found: dict[str, Any] = {"attack": attack, "threshold": threshold, "confused": int((~is_pair).sum())}
            found["success"] = len(kept) / max(1, int(is_pair.sum()))
            if len(kept):
                after = _reconstructed(model, changed[kept])
                found["rms_change"] = _rms(changed[kept] - honest[kept])
                found["rms_drift"] = _rms(after - before[kept])
                features, made_of = features_of(changed[kept], after), kept.cpu()
                if attack == "eq8":
                    of_eq8[threshold] = features, fold[made_of]
                own, curve = detected(plain, features, made_of, person, fold, of_eq8.get(threshold))
                found |= own
                if curve is not None:
                    curves[f"{attack}, {threshold:.3f}"] = curve
                    if judge is not None and plain_unlike is not None:
                        unlike = _unlike(judge, changed[kept], after)
                        found["accuracy_of_judge"] = accuracy(*judged(plain_unlike, unlike, fold, fold[made_of]))
            rows.append(found)
            write_csv(out / "table.csv", COLUMNS, [[row.get(key, "") for key in COLUMNS] for row in rows])
            write_json(out / "report.json", report | {"results": rows})
    _plot(curves, out / "roc.png")
    return report | {"results": rows}


def detected(
    plain: NDArray[np.float32],
    changed: NDArray[np.float32],
    made_of: Tensor,
    person: Tensor,
    fold: Tensor,
    of_eq8: tuple[NDArray[np.float32], Tensor] | None,
) -> tuple[dict[str, float], tuple[NDArray[np.float64], NDArray[np.float64]] | None]:
    """How well adversarial faces are told from honest ones; nothing where they are of fewer than two folds.

    Args:
        plain, changed: features (N, F) and (M, F), see `features_of`.
        made_of: which of the former each of the latter was made of, int64 (M,).
        person, fold: whom the former show, and the folds of these people, int64 (N,) each.
        of_eq8: features and folds of the faces of that attack.

    Returns:
        `accuracy`, `auc` and the others of the table; and the ROC curve.
    """
    if len(fold[made_of].unique()) < 2:
        return {}, None
    scores, labels = judged(plain, changed, fold, fold[made_of])
    figures, curve = figures_of(scores, labels, torch.cat([fold, fold[made_of]]))
    right = torch.from_numpy((scores > 0) == labels)
    times = drawn_anew(1 + int(person.max()), 0)[:, person]
    honest = resampled_shares(right[: len(plain)], times)
    found = resampled_shares(right[len(plain) :], times[:, made_of])
    figures["accuracy_low"], figures["accuracy_high"] = middle((honest + found) / 2)
    half = plain.shape[1] // 2
    for name, part in (("input", slice(0, half)), ("reconstruction", slice(half, None))):
        figures[f"accuracy_of_{name}"] = accuracy(*judged(plain[:, part], changed[:, part], fold, fold[made_of]))
    if of_eq8 is not None and len(of_eq8[1].unique()) > 1:
        figures["accuracy_trained_on_eq8"] = accuracy(*judged(plain, changed, fold, fold[made_of], of_eq8))
    return figures, curve


def _rms(change: Tensor) -> float:
    """Mean over faces of the root mean squared change of pixels, where black to white is 1."""
    return float((change / 2).square().mean((1, 2, 3)).sqrt().mean())


def _unlike(judge: Recognizer, images: Tensor, results: Tensor) -> NDArray[np.float32]:
    """The judge's distance of each image to its reconstruction, (N, 1)."""
    found: NDArray[np.float32] = distance(judge.embed(images), judge.embed(results))[:, None].cpu().numpy()
    return found


@torch.no_grad()
def _reconstructed(model: OpenSetIPGAN, images: Tensor) -> Tensor:
    return torch.cat([model.reconstruct(part) for part in images.split(BATCH)])


def in_words(report: Mapping[str, Any]) -> list[str]:
    """A line for each attack and threshold."""
    lines = [
        f"{2 * report['pairs']} photos attacked at each threshold (squared distance below which {report['recognizer']} "
        "takes two faces for one person's), as many honest ones; changes are root mean squares of pixels, where black "
        "to white is 1; told right: the mean of attacked and of honest ones"
    ]
    for row in report["results"]:
        line = f"{row['attack']}, threshold {row['threshold']:.3f}: {row['success']:.0%} succeed"
        if "accuracy" in row:
            line += f" (change {row['rms_change']:.4f}); {row['accuracy']:.1%} told right "
            line += f"({row['accuracy_low']:.1%} to {row['accuracy_high']:.1%}), AUC {row['auc']:.3f}; "
            line += f"by the input alone {row['accuracy_of_input']:.1%}"
            if "accuracy_of_judge" in row:
                line += f"; by a second recogniser's eyes {row['accuracy_of_judge']:.1%}"
            if row["attack"] != "eq8" and "accuracy_trained_on_eq8" in row:
                line += f"; by an SVM that knows eq8 alone {row['accuracy_trained_on_eq8']:.1%}"
        lines.append(line)
    if not report["is_models_identity"]:
        lines.append(
            f"{report['recognizer']} is not where this model has its identity vectors from: what deceives it need not "
            "change a reconstruction"
        )
    return lines


# ---------------------------------------------------------------------------------------------------- what is attacked


class OwnIdentity(Recognizer):
    """A network that a model has learnt as its I, as a recogniser.

    Args:
        backbone: from images (B, 3, S, S) in [-1, 1] to f_I (B, D).
        embedding_dim: D.
        image_size: S; other sizes are resized.
        seen: photos as the model sees them, see `OpenSetIPGAN.seen`.
    """

    name = "the model's I"
    stage_names = ("raw",)

    def __init__(
        self, backbone: nn.Module, embedding_dim: int, image_size: int, seen: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.embedding_dim = embedding_dim
        self.image_size = image_size
        self.seen = seen
        self.freeze()

    def stages(self, image: Tensor) -> Iterator[tuple[str, Tensor]]:
        """See `Recognizer.stages`."""
        yield "raw", self.backbone(resize(self.seen(image), self.image_size))


def identity_network(model: OpenSetIPGAN) -> Recognizer:
    """What gives a model f_I: the recogniser that it was built with, or the I that it has learnt."""
    if model.identity_encoder is not None:
        given: Recognizer = model.identity_encoder.recognizer
        return given
    network = cast(FaceClassifier, model.trained("classifier") if model.classifier_learns else model.classifier)
    if not model.classifier_learns:
        fixed: Recognizer = cast(IdentityVector, network.backbone).recognizer
        return fixed
    return OwnIdentity(network.backbone, network.feature_dim, model.image_size, model.seen)


def _calibrated(recognizer: Recognizer, people: People) -> Calibration:
    rows = torch.randperm(len(people.images), generator=torch.Generator().manual_seed(0))[:MOST_CALIBRATED]
    faces = people.images[rows].movedim(1, -1).numpy()
    try:
        return calibrate(recognizer, faces, people.person[rows].numpy(), "the photos")
    except ValueError as error:
        raise ValueError(
            f"--thresholds is missing: at which distance {recognizer.name} tells people apart is not known, and these "
            f"photos do not show it: {error}"
        ) from error


# --------------------------------------------------------------------------------------------------------------- pairs


def draw_pairs(people: People, count: int, seed: int) -> AttackPairs:
    """AttackPairs of photos of different people, each once, as many in each fold, or one less.

    Raises:
        ValueError: there are not two people for each fold, or not so many pairs of photos.
    """
    if len(people.names) < 2 * FOLDS:
        raise ValueError(f"--photos: {len(people.names)} people, expected {2 * FOLDS} or more: nobody is in two folds")
    noise = torch.Generator().manual_seed(seed)
    fold_of = torch.randperm(len(people.names), generator=noise) % FOLDS
    rows = [(fold_of == fold).nonzero()[:, 0] for fold in range(FOLDS)]
    chosen: dict[frozenset[int], tuple[int, int, int]] = {}
    for _ in range(20 * count):
        fold = len(chosen) % FOLDS
        who = rows[fold][torch.randperm(len(rows[fold]), generator=noise)[:2]]
        photos = [(people.person == person).nonzero()[:, 0] for person in who]
        first, second = (int(own[torch.randint(len(own), (), generator=noise)]) for own in photos)
        chosen.setdefault(frozenset((first, second)), (first, second, fold))
        if len(chosen) == count:
            break
    else:
        raise ValueError(
            f"--pairs is {count}, but hardly more than {len(chosen)} can be had of {len(people.names)} people"
        )
    first, second, fold = torch.tensor(list(chosen.values())).T
    who = torch.stack([people.person[first], people.person[second]], 1)
    return AttackPairs(people.images[first], people.images[second], who, fold)


# -------------------------------------------------------------------------------------------------------------- attacks


def attacked(
    attack: str,
    recognizer: Recognizer,
    model: OpenSetIPGAN,
    images: Tensor,
    targets: Tensor,
    threshold: float,
    steps: int,
) -> Tensor:
    """Photos changed so that the recogniser takes them for others.

    Args:
        attack: one of ATTACKS.
        recognizer: what is deceived.
        model: of the detector; only `aware` uses it.
        images: (N, 3, S, S) in [-1, 1].
        targets: embeddings (N, D) of the photos that they shall pass for.
        threshold: squared distance below which they do.
        steps: of the attack.

    Returns:
        (N, 3, S, S) in [-1, 1]; an attack that fails changes a photo too.
    """
    parts = zip(images.split(BATCH), targets.split(BATCH), strict=True)
    results = []
    for image, aim in track(list(parts), f"Attacking ({attack}, {threshold:.3f})", transient=True):
        if attack in ("eq8", "aware"):
            keep = model.reconstruct if attack == "aware" else None
            results.append(smallest_change(recognizer, image, aim, threshold, steps, keep))
        else:
            results.append(_by_foolbox(attack, recognizer, image, aim, threshold, steps))
    return torch.cat(results)


def smallest_change(
    recognizer: Recognizer,
    images: Tensor,
    targets: Tensor,
    threshold: float,
    steps: int,
    keep: Callable[[Tensor], Tensor] | None = None,
    weight: float = AWARE,
) -> Tensor:
    """Equation 8: the least squared norm of a change by which the distance to a target falls below a threshold.

    Descent on the mean of squares and `c` times what the distance exceeds the threshold by. Until a photo's attack has
    succeeded, its c and its steps grow; from then on c shrinks where it succeeds and grows where not, less and less,
    and steps become smaller. The smallest change that ever succeeded is kept. After 100 steps it is some per cent
    larger than `ddn` finds.

    Args:
        recognizer: gives the distance.
        images: (B, 3, S, S) in [-1, 1].
        targets: unit embeddings (B, D).
        threshold: squared distance.
        steps: of Adam.
        keep: a function of pictures whose result is to stay what it is of `images`; its mean squared change is added
            to that of the pictures, times `weight`.

    Returns:
        (B, 3, S, S) in [-1, 1]; where nothing succeeded, the last change.
    """
    changes = [torch.zeros_like(image, requires_grad=True) for image in images]
    optimizer = torch.optim.Adam([{"params": [change], "lr": RATE} for change in changes])  # each with its own rate
    price = torch.full((len(images),), PRICE, device=images.device)
    best, least = images.clone(), torch.full((len(images),), torch.inf, device=images.device)
    before = images if keep is None else keep(images).detach()
    period = max(1, steps // ADJUSTED)
    for step in range(steps + 1):
        moved = (images + torch.stack(changes)).clamp(-1, 1)
        excess = distance(recognizer(rounded(moved)), targets) - MARGIN * threshold
        size = (moved - images).square().flatten(1).mean(1)
        if keep is not None:
            size = size + weight * (keep(moved) - before).square().flatten(1).mean(1)
        objective = size + price * excess.clamp(min=-0.05 * threshold)
        cost, inside = size.detach(), excess.detach() < 0
        better = inside & (cost < least)
        least = torch.where(better, cost, least)
        best[better] = moved.detach()[better]
        never = least.isinf()
        if step == steps:
            best[never] = moved.detach()[never]
            break
        if step and step % period == 0:
            factor = torch.where(never, 1.5, 1.3 ** (1 - step / steps))
            price = torch.where(inside, price / factor, price * factor)
        for group, grows in zip(optimizer.param_groups, never.tolist(), strict=True):
            rate = group["lr"]
            group["lr"] = min(MOST_RATE, 1.05 * rate) if grows else rate * (LAST_RATE / rate) ** (1 / (steps - step))
        for change, gradient in zip(changes, torch.autograd.grad(objective.sum(), changes), strict=True):
            change.grad = gradient
        optimizer.step()
    return best


def rounded(images: Tensor) -> Tensor:
    """Images in [-1, 1] with 256 levels, as attacks are kept; gradients pass as if they were not rounded."""
    kept = images.detach()
    return images + (to_float(to_uint8(kept)) - kept)


class _SamePerson(nn.Module):
    """Verification as a classifier of two classes, which is what libraries attack: 0 another person, 1 the target."""

    def __init__(self, recognizer: Recognizer, targets: Tensor, threshold: float) -> None:
        super().__init__()
        self.recognizer = recognizer
        self.targets = targets
        self.threshold = threshold

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, 2) of pictures (B, 3, S, S), one for each target."""
        excess = distance(self.recognizer(rounded(image)), self.targets) - self.threshold
        return torch.stack([excess, -excess], 1)


def _by_foolbox(
    attack: str, recognizer: Recognizer, images: Tensor, targets: Tensor, threshold: float, steps: int
) -> Tensor:
    from foolbox import PyTorchModel, TargetedMisclassification  # slow to import
    from foolbox.attacks import DDNAttack, LinfPGD

    network = _SamePerson(recognizer, targets, MARGIN * threshold).eval()
    model = PyTorchModel(network, bounds=(-1, 1), device=images.device)
    aim = TargetedMisclassification(torch.ones(len(images), dtype=torch.long, device=images.device))
    if attack == "pgd":
        method: Any = LinfPGD(steps=steps, random_start=False)
        _, changed, _ = method(model, images, aim, epsilons=2 * PGD_LIMIT)
    else:
        method = DDNAttack(steps=steps)
        _, changed, _ = method(model, images, aim, epsilons=None)
    result: Tensor = changed.detach()
    return result


# ------------------------------------------------------------------------------------------------------------- detector


def features_of(images: Tensor, results: Tensor) -> NDArray[np.float32]:
    """What the SVM sees of pictures (N, 3, S, S) in [-1, 1]: LBP of each and of its reconstruction, (N, 2 * F)."""
    both = zip(to_picture(images), to_picture(results), strict=True)
    return np.stack([np.concatenate([patterns(own), patterns(made)]) for own, made in both])


def patterns(picture: Picture) -> NDArray[np.float32]:
    """Histograms of uniform local binary patterns of a picture (S, S, 3) in 8 x 8 cells, each of sum 1: (64 * 59,)."""
    from skimage.feature import local_binary_pattern  # slow to import

    grey = np.rint(picture @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
    codes = local_binary_pattern(grey, P=8, R=1, method="nri_uniform").astype(np.int64)
    rows = np.array_split(np.arange(len(codes)), CELLS)
    cells = [codes[np.ix_(down, across)].ravel() for down in rows for across in rows]
    return np.concatenate([np.bincount(cell, minlength=PATTERNS) / len(cell) for cell in cells]).astype(np.float32)


def judged(
    plain: NDArray[np.float32],
    changed: NDArray[np.float32],
    plain_fold: Tensor,
    changed_fold: Tensor,
    trained_on: tuple[NDArray[np.float32], Tensor] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores of honest and of adversarial faces by an SVM that was trained on other people, and what they are.

    Args:
        plain: features (N, F) of honest faces.
        changed: of adversarial ones, (M, F).
        plain_fold, changed_fold: the folds of their people.
        trained_on: features and folds of adversarial faces to train on instead of those asked for.

    Returns:
        Scores (N + M,), above 0 adversarial, and bool (N + M,).
    """
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    features = np.concatenate([plain, changed])
    labels = np.arange(len(features)) >= len(plain)
    fold = torch.cat([plain_fold, changed_fold]).numpy()
    others, others_fold = (changed, changed_fold) if trained_on is None else trained_on
    known, known_fold = np.concatenate([plain, others]), torch.cat([plain_fold, others_fold]).numpy()
    answers = np.arange(len(known)) >= len(plain)
    scores = np.zeros(len(features))
    for number in np.unique(fold):
        asked, taught = fold == number, known_fold != number
        svm = make_pipeline(StandardScaler(), LinearSVC(C=1e-3, class_weight="balanced", dual="auto"))
        svm.fit(known[taught], answers[taught])
        scores[asked] = svm.decision_function(features[asked])
    return scores, labels


def accuracy(scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> float:
    """Mean of the shares of adversarial and of honest faces that are told right."""
    return float((scores[labels] > 0).mean() + (scores[~labels] <= 0).mean()) / 2


def figures_of(
    scores: NDArray[np.float64], labels: NDArray[np.bool_], fold: Tensor
) -> tuple[dict[str, float], tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Accuracy, area under the ROC curve, and that curve: false and true positive rates.

    Area and curve are means over the folds with both kinds of faces, for each fold has an SVM and a scale of its own.
    """
    from sklearn.metrics import roc_auc_score, roc_curve

    false = np.linspace(0, 1, 101)
    areas, curves = [], []
    for number in fold.unique():
        own = (fold == number).numpy()
        if len(set(labels[own])) == 2:
            areas.append(float(roc_auc_score(labels[own], scores[own])))
            curves.append(np.interp(false, *roc_curve(labels[own], scores[own])[:2]))
    figures = {"accuracy": accuracy(scores, labels), "auc": float(np.mean(areas)), "faces": int(labels.sum())}
    return figures, (false, np.mean(curves, axis=0))


def _save_faces(
    path: Path, model: OpenSetIPGAN, honest: Tensor, changed: Tensor, victims: Tensor, checkpoint: str
) -> None:
    chosen = slice(0, SHOWN)
    photos, attacks = to_picture(honest[chosen]), to_picture(changed[chosen])
    results = [to_picture(model.reconstruct(each[chosen])) for each in (honest, changed)]
    made = [[mark_synthetic(face) for face in faces] for faces in results]
    others = list(victims[chosen].movedim(1, -1).numpy())
    rows = {"photo": list(photos), "attacked": list(attacks), "passes for": others}
    rows |= {"photo's\nresult": made[0], "attacked\none's": made[1]}
    sheet = np.concatenate([captioned(faces, [name] * len(faces)) for name, faces in rows.items()])
    save_synthetic(sheet, path, {"checkpoint": checkpoint})


def _plot(curves: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]], path: Path) -> None:
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    for name, (false, true) in curves.items():
        axes.plot(false, true, label=name)
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1)
    axes.set(xlabel="honest faces taken for adversarial", ylabel="adversarial faces found")
    if curves:
        axes.legend(fontsize="x-small", title="attack, threshold")
    figure.savefig(path, dpi=120)
