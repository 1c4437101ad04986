"""`idface reproduce`: the tables and figures of Bao et al. 2018 on faces at hand, trained for where they have to be.

OUT/models/VARIANT-SEED/0/      a run of `lightning fit` each; VARIANT-SEED.json beside it says how, once it is trained
OUT/ipgan-table2/, ...          what was measured
"""

import json
import logging
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

from data_modules.batch import to_float
from data_modules.people import plain_name
from idface.checkpoints import best_device, load_model_of
from idface.files import write_csv, write_json
from idface.latent.arithmetic import FaceMeter, face_box
from idface.metrics.identification import drawn_anew, middle, resampled_shares
from idface.metrics.identification import found as found_by
from idface.metrics.preservation import AttributePreservation, describe_faces
from idface.metrics.recombination import RecombinationIdentity
from idface.modules.attributes import AttributeClassifier
from idface.modules.ipgan import OpenSetIPGAN
from idface.pictures import recombination_grid, save_synthetic, to_picture
from idface.protocols.adversarial import detect_adversarial
from idface.protocols.leakage import leakage
from idface.protocols.sources import People, held_out_people, people_of, photos_of_model, rows_of, unseen_people
from idface.recognition.base import Recognizer
from idface.recognition.build import build_judge, build_recognizer
from idface.run import CHECKPOINTS, find_checkpoint

log = logging.getLogger(__name__)

VARIANTS = {
    "full": "all components",
    "no_gc": "without L_GC",
    "no_t": "without transformation steps",
    "no_gd": "without L_GD",
    "no_u": "without unlabelled photos",
    "no_kl": "without the KL loss",
}
"""Those of sections 4.1 and 4.2; all but the first are files beside the recipe, `ablations/ipgan_<variant>.yaml`."""

IDENTIFICATION = ("full", "no_gc", "no_t", "no_gd", "no_u")
PAPER: dict[str, dict[str, float]] = {
    "ipgan-table2": {"real": 87.39, "full": 81.11, "no_gc": 5.71, "no_t": 79.19, "no_gd": 80.52, "no_u": 80.24},
    "ipgan-table3": {},
    "ipgan-fig4": {},
    "ipgan-table4": {"0.4": 92.41, "a looser threshold": 87.18, "one looser still": 82.58},
}
"""Per cent, as far as the paper's text has them: its 5.71 may have lost a digit, table 3 and figure 4 are pictures, and
of table 4's four thresholds three have a figure, of which the text names the first."""

QUERIES = 5
"""Photos of a person that are looked for, at most (section 4.1)."""
BATCH = 64
FEWEST = 3
"""Photos from which what they show counts as a kind of attributes."""
TURNED = 12.0
"""Degrees of yaw from which a face is turned."""
DARK = 0.2
"""Share of the photos, the darkest, that count as dark."""
GRID = (6, 8)
EXPRESSION = ("smiling", "mouth_slightly_open")
"""Attributes of the classifier that tell an expression."""
IDENTITY = (
    "nearer_to_source",
    "similarity_to_source",
    "similarity_to_gallery",
    "similarity_to_attributes",
    "real_same",
    "real_different",
)
"""Figures of `RecombinationIdentity` that the tables have."""


Trained = Mapping[str, dict[int, Path]]
"""The checkpoint of each variant, by the seed that it was trained with."""


class Queries(NamedTuple):
    """Faces to make and to look for.

    Attributes:
        source, attributes: int64 (N,), rows of photos: x^s and x^a, of two people.
        kind: which kind of attributes x^a shows, (N,) numbers of a list of names.
    """

    source: Tensor
    attributes: Tensor
    kind: Tensor


def reproduce(
    what: str,
    out: Path,
    config: Sequence[Path],
    variants: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    judge: str | None = None,
    photos: Path | None = None,
    classifier: str | None = None,
    pairs: int | None = None,
    steps: int | None = None,
) -> dict[str, Any]:
    """Train what is not trained yet, under equal budgets, and measure it.

    Args:
        what: one of `PAPER`.
        out: the folder to write, or to go on with: models are trained once for all of the paper's tables.
        config: recipes of an OpenSetIPGAN, one over the other, as `lightning fit` takes them; the first has its
            `ablations` beside it.
        variants: some of `VARIANTS`; None for those of the table or figure. `ipgan-table4` is of "full" alone.
        seeds: of training, one for `ipgan-fig4` and `ipgan-table4`; None for 0, 1, 2, or for 0.
        judge: of the tables 2 and 3, who says whose face it is, see `build_recognizer`; None for the recipe's.
        photos: of `ipgan-fig4` and `ipgan-table4`, a prepared set of people whom no model was trained on; None for
            those whom the recipe's data hold out for validation and test.
        classifier: of the tables 2 and 3, checkpoint of the AttributeClassifier that says what photos show; None for
            `zoo:attributes`.
        pairs: of `ipgan-table4`; None for 300.
        steps: of `ipgan-table4`'s attacks; None for 100.

    Returns:
        What the `report.json` of the table or figure holds.

    Raises:
        ValueError, OSError: an option, a recipe or the data are not as they should be, or a training failed.
    """
    if what not in PAPER:
        raise ValueError(f"there is no '{what}'; expected one of {', '.join(PAPER)}")
    usual = {"ipgan-fig4": ("full", "no_kl"), "ipgan-table4": ("full",)}.get(what, IDENTIFICATION)
    chosen = tuple(variants or usual)
    if unknown := sorted(set(chosen) - VARIANTS.keys()):
        raise ValueError(f"--variants: there is no {unknown[0]}; expected some of {', '.join(VARIANTS)}")
    if "full" not in chosen:
        raise ValueError("--variants: 'full' is what the others are compared with, expected it among them")
    if not config:
        raise ValueError("--config: expected the recipe of an OpenSetIPGAN, such as experiments/ipgan_64.yaml")
    identifies = what in ("ipgan-table2", "ipgan-table3")
    without_effect = {
        "--photos": photos is not None and identifies,
        "--pairs": pairs is not None and what != "ipgan-table4",
        "--steps": steps is not None and what != "ipgan-table4",
        "--judge": judge is not None and not identifies,
        "--classifier": classifier is not None and not identifies,
    }
    if given := next((option for option, has_none in without_effect.items() if has_none), None):
        raise ValueError(f"{given} has no effect on {what}: leave it out")
    seeds = seeds or ((0, 1, 2) if identifies else (0,))
    if not identifies and len(seeds) > 1:
        raise ValueError(f"--seeds {' '.join(map(str, seeds))}: {what} is of one training, expected one seed")
    if what == "ipgan-table4" and chosen != ("full",):
        raise ValueError(f"--variants {' '.join(chosen)}: ipgan-table4 is of 'full' alone")
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(f"--seeds {' '.join(map(str, seeds))}: expected numbers from 0, each once")
    _refuse_early(config, chosen, judge, classifier, photos)
    trained: Trained = {variant: {} for variant in chosen}
    for seed in seeds:
        for variant in chosen:
            trained[variant][seed] = train_variant(variant, seed, config, out / "models")
    folder = out / what
    folder.mkdir(parents=True, exist_ok=True)
    about: dict[str, Any] = {
        "what": what,
        "config": [str(file) for file in config],
        "seeds": list(seeds),
        "paper": PAPER[what],
    }
    if not identifies:
        about["trained_on"] = _known_among(photos, trained["full"][seeds[0]])
    if what == "ipgan-fig4":
        of = {variant: str(checkpoints[seeds[0]]) for variant, checkpoints in trained.items()}
        report = about | leakage(of, photos, folder, seed=seeds[0])
    elif what == "ipgan-table4":
        checkpoint = str(trained["full"][seeds[0]])
        report = about | detect_adversarial(checkpoint, photos, folder, pairs or 300, steps=steps or 100, seed=seeds[0])
    else:
        classifier = classifier or "zoo:attributes"
        report = about | _identification(what == "ipgan-table2", trained, folder, judge, classifier)
    write_json(folder / "report.json", report)
    return report


def _refuse_early(
    config: Sequence[Path], variants: Sequence[str], judge: str | None, classifier: str | None, photos: Path | None
) -> None:
    """Find what cannot be used before hours of training, not after them."""
    recipes = []
    for file in config:
        try:
            recipe = yaml.safe_load(file.read_text("utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"--config {file}: no YAML can be read from it: {error}") from error
        if not isinstance(recipe, dict) or not all(
            isinstance(recipe.get(key) or {}, dict) for key in ("model", "data")
        ):
            raise ValueError(f"--config {file}: expected a recipe such as experiments/ipgan_64.yaml")
        recipes.append(recipe)
    named = [str(name) for recipe in recipes if (name := (recipe.get("model") or {}).get("class_path"))]
    if not named or named[-1].rpartition(".")[2] != OpenSetIPGAN.__name__:
        found = named[-1] if named else "no model"
        raise ValueError(f"--config {config[0]}: its model is {found}, expected an OpenSetIPGAN")
    samplers = [((recipe.get("data") or {}).get("init_args") or {}).get("sampler") for recipe in recipes]
    if "no_u" in variants and not any(samplers):
        raise ValueError(
            f"--variants: no_u leaves out the unlabelled photos, but --config {config[0]} has no share of them: give "
            "its data a sampler UnlabelledShare, or leave no_u out"
        )
    if judge is not None:
        build_recognizer(judge)
    if classifier is not None:
        load_model_of(AttributeClassifier, classifier, "--classifier")
    if photos is not None:
        people_of(photos, 32, "--photos")


def _known_among(photos: Path | None, checkpoint: Path) -> list[str]:
    """Whom of a prepared set the model was trained on, by their names; warns if there are any."""
    if photos is None:
        return []
    model = load_model_of(OpenSetIPGAN, str(checkpoint))
    data = photos_of_model(str(checkpoint), None, model.image_size, model.photos_digest)
    trained = {plain_name(name) for name in data.identity_names[: data.num_identities]}
    shared = [name for name in people_of(photos, model.image_size, "--photos").names if plain_name(name) in trained]
    if shared:
        log.warning(
            "--photos %s: the model was trained on %d of these people, %s among them; leave --photos out for those "
            "whom its data hold out",
            photos,
            len(shared),
            shared[0],
        )
    return shared


def train_variant(variant: str, seed: int, config: Sequence[Path], models: Path) -> Path:
    """The last checkpoint of a variant, trained or trained on where that was not done.

    Raises:
        FileNotFoundError: the first recipe has no such ablation beside it.
        ValueError: what is there was trained by another recipe, or training failed.
    """
    name = f"{variant}-{seed}"
    files = list(config)
    if variant != "full":
        overlay = config[0].parent / "ablations" / f"ipgan_{variant}.yaml"
        if not overlay.is_file():
            raise FileNotFoundError(
                f"--config {config[0]}: there is no {overlay}, which says what {variant} leaves out"
            )
        files.append(overlay)
    told = {"recipes": [file.read_text("utf-8") for file in files], "seed": seed}
    done, begun = models / f"{name}.json", models / f"{name}.begun.json"
    has_trained = any(models.glob(f"{name}/*/{CHECKPOINTS}/*.ckpt"))  # else what was begun was refused: nothing is lost
    for record in (done, begun) if has_trained else (done,):
        if record.is_file() and json.loads(record.read_text("utf-8")) != told:
            raise ValueError(f"{models / name} was trained by other recipes than --config gives: give another --out")
    models.mkdir(parents=True, exist_ok=True)
    if not done.is_file():
        command = [sys.executable, "-m", "idface", "fit"]
        command += [part for file in files for part in ("--config", str(file))]
        command += ["--seed_everything", str(seed), "--run.root", str(models), "--run.name", name]
        if begun.is_file() and has_trained:
            command += ["--ckpt_path", "last"]
        write_json(begun, told)
        log.warning("training %s, seed %d", variant, seed)
        if status := subprocess.run(command).returncode:
            raise ValueError(f"training {variant}, seed {seed}, ended with status {status}; what it said is above")
        write_json(done, told)
        begun.unlink()
    return find_checkpoint(models, name, "last")


def in_words(report: Mapping[str, Any]) -> list[str]:
    """What a report says, as lines."""
    if report["what"] == "ipgan-fig4":
        return [
            f"{name}: of {report['people']} people (chance {report['chance']:.1%}) the perceptron tells "
            + ", ".join(
                f"{found[vector]['val']:.1%} ({found[vector]['low']:.1%} to {found[vector]['high']:.1%}) by {vector}"
                for vector in ("f_A", "f_A drawn", "f_I")
            )
            for name, found in report["models"].items()
        ] + [f"by what is around the face {report['surroundings']['val']:.1%}, whoever it shows"]
    if report["what"] == "ipgan-table4":
        from idface.protocols.adversarial import in_words as of_detection

        return [*of_detection(report), f"the paper, at its thresholds: {report['paper']}"]
    judge = report["judge"]
    lines = [
        f"{report['people']} people, {report['queries']} faces each model, chance {report['chance']:.2%}; judge "
        f"{judge['name']}" + ("" if judge["independent"] else ", WHICH WAS A LOSS OF THESE MODELS")
    ]
    for row in report["rows"]:
        low, high = row["low"], row["high"]
        paper = "" if row["paper"] is None else f"; the paper {row['paper']:.2f}"
        kinds = "".join(f", {kind} {value:.1f}" for kind, value in row["kinds"].items() if value is not None)
        if "behind_full" in row:
            least, most = row["behind_full"]
            paper += f"; behind full by {least:.2f} to {most:.2f}"
        lines.append(f"{row['variant']:6} top-1 {row['top1']:.2f} % ({low:.2f} to {high:.2f}{paper}){kinds}")
    return lines


# ------------------------------------------------------------------------------------------------------ identification


def _identification(seen: bool, trained: Trained, folder: Path, judge: str | None, classifier: str) -> dict[str, Any]:
    """Tables 2 and 3: generated faces look for their people in a gallery of real photos."""
    device = best_device()
    seed, checkpoint = min(trained["full"].items())
    first = load_model_of(OpenSetIPGAN, str(checkpoint))
    recognizer = build_judge(judge, first.judge).to(device)
    data = photos_of_model(str(checkpoint), None, first.image_size, first.photos_digest)
    people = held_out_people(data) if seen else unseen_people(data)
    meter = FaceMeter(load_model_of(AttributeClassifier, classifier, "--classifier").network, device)
    scores, described = describe(people.images, meter)
    gallery = choose_gallery(people.person, scores[:, meter.index("yaw")])
    kinds = {"any": torch.ones(len(scores), dtype=torch.bool)} if seen else kinds_of(scores, meter, gallery)
    queries = draw_queries(people.person, gallery, list(kinds.values()), seed)
    embedded = recognizer.embed(people.images).cpu()
    photos = _Described(people, embedded, described, scores)

    names = [] if seen else list(kinds)
    rows: list[dict[str, Any]] = []
    independent = True
    asked = queries.source.unique()
    own = found_by(embedded[asked], people.person[asked], embedded[gallery], people.person[gallery])
    shows = {name: kinds[name][asked] for name in names}
    real = {name: 100 * float(own[mine].float().mean()) if mine.any() else None for name, mine in shows.items()}
    person = drawn_anew(len(people.names), seed)
    low, high = middle(100 * resampled_shares(own, person[:, people.person[asked]]))
    times = person[:, people.person[queries.source]]
    paper = PAPER["ipgan-table2" if seen else "ipgan-table3"]
    rows.append(
        {"variant": "real", "seeds": [], "top1": 100 * float(own.float().mean()), "low": low, "high": high}
        | {"paper": paper.get("real"), "kinds": real}
    )
    shares: dict[str, NDArray[np.float64]] = {}
    for variant, checkpoints in trained.items():
        runs, right = [], []
        for number, checkpoint in checkpoints.items():
            model = load_model_of(OpenSetIPGAN, str(checkpoint)).to(device)
            independent &= recognizer.fingerprint() not in model.gradient_fingerprints
            found, figures = _judge(model, photos, gallery, queries, names, recognizer, meter)
            right.append(found)
            runs.append({"seed": number, **figures})
            if number == seed:
                _save_grid(model, people, gallery, queries, folder / f"grid-{variant}.png", str(checkpoint))
        shares[variant] = 100 * resampled_shares(torch.stack(right), times, seed=len(shares))
        low, high = middle(shares[variant])
        means = {
            name: {key: float(np.mean([run[name][key] for run in runs])) for key in runs[0][name]}
            for name in ("kinds", "identity", "preservation")
        }
        rows.append(
            {"variant": variant, "seeds": runs, "top1": float(np.mean([run["top1"] for run in runs]))}
            | {"low": low, "high": high, "paper": paper.get(variant)}
            | means
        )
    for row in rows[1:]:
        if row["variant"] != "full":
            row["behind_full"] = middle(shares["full"] - shares[row["variant"]])
    _write_table(rows, names, folder / "table.csv")
    return {
        "people": len(people.person[gallery]),
        "queries": len(queries.source),
        "chance": 1 / len(gallery),
        "judge": {"name": recognizer.name, "fingerprint": recognizer.fingerprint(), "independent": independent},
        "interval": "95 %: people, and of several trainings these, drawn anew",
        "photos_of_kinds": {name: int(kind.sum()) for name, kind in kinds.items()},
        "rows": rows,
    }


class _Described(NamedTuple):
    """Photos with the judge's embeddings (N, D), `describe_faces` of each (N, K), and the meter's scores (N, M)."""

    people: People
    embedded: Tensor
    described: Tensor
    scores: Tensor


def choose_gallery(person: Tensor, yaw: Tensor) -> Tensor:
    """Rows of one photo of each person who has two or more: the one most from the front.

    Args:
        person: int64 (N,).
        yaw: (N,) degrees.

    Raises:
        ValueError: there are not two such people.
    """
    rows = [mine[yaw[mine].abs().argmin()] for _, mine in rows_of(person) if len(mine) > 1]
    if len(rows) < 2:
        raise ValueError(
            f"{len(rows)} people have two photos that training did not see, one for the gallery, expected two people "
            "or more: hold more people or photos out in the recipe's data"
        )
    return torch.stack(rows)


def kinds_of(scores: Tensor, meter: FaceMeter, gallery: Tensor) -> dict[str, Tensor]:
    """Which photos, bool (N,), show which kinds of attributes; kinds of too few photos are left out.

    The paper takes six cameras and lights of Multi-PIE; here a network says what a photo shows.

    Args:
        scores: (N, K), the meter's.
        meter: says what they are.
        gallery: rows of photos that show none of them, whatever they show.

    Raises:
        ValueError: no kind is left.
    """
    yaw, light = (scores[:, meter.index(name)] for name in ("yaw", "brightness"))
    kinds = {"left": yaw < -TURNED, "right": yaw > TURNED, "dark": light < light.quantile(DARK)}
    for name in (*EXPRESSION, "eyeglasses"):
        if name in meter.names:
            kinds[name.replace("_slightly", "")] = scores[:, meter.index(name)] > 0
    free = torch.ones(len(scores), dtype=torch.bool)
    free[gallery] = False
    kinds = {name: shown & free for name, shown in kinds.items()}
    for name, shown in kinds.items():
        if int(shown.sum()) < FEWEST:
            log.warning("%d photos show '%s': it is left out", int(shown.sum()), name)
    kinds = {name: shown for name, shown in kinds.items() if int(shown.sum()) >= FEWEST}
    if not kinds:
        raise ValueError(
            "no kind of attributes is shown by three photos or more, expected more photos of unseen people"
        )
    return kinds


def draw_queries(person: Tensor, gallery: Tensor, kinds: Sequence[Tensor], seed: int) -> Queries:
    """Up to five photos of each person of the gallery, each with a photo of another person of each kind.

    Args:
        person: int64 (N,).
        gallery: rows of photos that are not looked for.
        kinds: bool (N,) each.
        seed: of what is drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    in_gallery = torch.zeros(len(person), dtype=torch.bool)
    in_gallery[gallery] = True
    known = set(person[gallery].tolist())
    source = torch.cat(
        [
            mine[torch.randperm(len(mine), generator=generator)[:QUERIES]]
            for number, rows in rows_of(person)
            if number in known and len(mine := rows[~in_gallery[rows]])
        ]
    )
    drawn: list[tuple[int, int, int]] = []
    for kind, shown in enumerate(kinds):
        rows = (shown & ~in_gallery).nonzero()[:, 0]
        for row in source.tolist():
            others = rows[person[rows] != person[row]]
            if len(others):
                drawn.append((row, int(others[torch.randint(len(others), (1,), generator=generator)]), kind))
    columns = torch.tensor(drawn, dtype=torch.int64).reshape(-1, 3).unbind(1)
    return Queries(*columns)


def describe(images: Tensor, meter: FaceMeter) -> tuple[Tensor, Tensor]:
    """The meter's scores (N, K) of faces, uint8 (N, 3, S, S), and what `AttributePreservation` compares, (N, D)."""
    low, high = face_box(images.shape[-1])
    device = next(meter.network.parameters()).device
    found = []
    for part in images.split(BATCH):
        faces = to_float(part).to(device)
        scores, landmarks = meter.measure(faces)
        yaw, light = (scores[:, meter.index(name)] for name in ("yaw", "brightness"))
        found.append((scores.cpu(), describe_faces(faces, landmarks, yaw, light, (low, high)).cpu()))
    scores, described = (torch.cat(parts) for parts in zip(*found, strict=True))
    return scores, described


def _judge(
    model: OpenSetIPGAN,
    photos: _Described,
    gallery: Tensor,
    queries: Queries,
    names: Sequence[str],
    recognizer: Recognizer,
    meter: FaceMeter,
) -> tuple[Tensor, dict[str, Any]]:
    """Which of one model's faces are found, bool (N,), and what they come to."""
    people, embedded, described, scores = photos
    kept, judged = AttributePreservation(), RecombinationIdentity()
    judged.update_gallery(embedded[gallery], people.person[gallery])
    results, shown = [], []
    for rows in torch.arange(len(queries.source)).split(BATCH):
        source, attributes = queries.source[rows], queries.attributes[rows]
        x_s, x_a = (to_float(people.images[which]).to(model.device) for which in (source, attributes))
        made = torch.from_numpy(to_picture(model.recombine(x_s, x_a))).permute(0, 3, 1, 2)  # as they would be kept
        result = recognizer.embed(made).cpu()
        judged.update(result, embedded[source], embedded[attributes], people.person[source])
        shows, looks = describe(made, meter)
        kept.update(looks, described[attributes], described[source])
        results.append(result)
        shown.append(shows)
    person = people.person[queries.source]
    found = found_by(torch.cat(results), person, embedded[gallery], people.person[gallery])
    identity = judged.compute()
    return found, {
        "top1": 100 * float(found.float().mean()),
        "kinds": {name: 100 * float(found[queries.kind == kind].float().mean()) for kind, name in enumerate(names)},
        "identity": {name: float(identity[name]) for name in IDENTITY},
        "preservation": {name: float(value) for name, value in kept.compute().items()}
        | agreement(torch.cat(shown), scores[queries.attributes], meter),
    }


def agreement(shown: Tensor, wanted: Tensor, meter: FaceMeter) -> dict[str, float]:
    """Share of results that show what their attribute photos do: `<name>_agrees`, beside `<name>_agrees_chance`.

    Args:
        shown, wanted: the meter's scores (N, M) of results and of their attribute photos.
        meter: says what they are; those of `EXPRESSION` that it knows are compared.
    """
    figures: dict[str, float] = {}
    for name in EXPRESSION:
        if name in meter.names:
            has, should = (scores[:, meter.index(name)] > 0 for scores in (shown, wanted))
            share, wish = float(has.float().mean()), float(should.float().mean())
            figures[f"{name}_agrees"] = float((has == should).float().mean())
            figures[f"{name}_agrees_chance"] = share * wish + (1 - share) * (1 - wish)
    return figures


def _save_grid(
    model: OpenSetIPGAN, people: People, gallery: Tensor, queries: Queries, file: Path, checkpoint: str
) -> None:
    """The same people and attribute photos for every variant (figure 3), photos of all kinds in turns."""
    rows, columns = GRID
    sources = gallery[torch.linspace(0, len(gallery) - 1, min(rows, len(gallery))).round().long()]
    known = people.person[sources]
    kinds = [
        queries.attributes[(queries.kind == kind) & ~torch.isin(people.person[queries.attributes], known)].unique()
        for kind in queries.kind.unique()
    ]
    turns = dict.fromkeys(int(kind[turn]) for turn in range(max(map(len, kinds))) for kind in kinds if turn < len(kind))
    others = torch.tensor(list(turns)[:columns]) if turns else sources  # a photo may be of several kinds
    x_a = to_float(people.images[others]).to(model.device)
    faces = np.stack(
        [
            to_picture(model.recombine(to_float(people.images[row : row + 1]).to(model.device).expand_as(x_a), x_a))
            for row in sources.tolist()
        ]
    )
    x_s, pictures = (to_picture(to_float(people.images[which])) for which in (sources, others))
    recipe = {"checkpoint": checkpoint, "sources": [people.names[int(people.person[row])] for row in sources]}
    save_synthetic(recombination_grid(x_s, pictures, faces), file, recipe)


def _write_table(rows: Sequence[Mapping[str, Any]], kinds: Sequence[str], file: Path) -> None:
    """A line a variant."""
    identity, preservation = (list(rows[1][name]) for name in ("identity", "preservation"))
    header = [
        "variant",
        "seeds",
        "top1",
        "low",
        "high",
        "behind_full_low",
        "behind_full_high",
        "paper",
        *(f"top1_{name}" for name in kinds),
    ]
    lines = [
        [
            *(row["variant"], len(row["seeds"]), row["top1"], row["low"], row["high"]),
            *row.get("behind_full", (None, None)),
            row["paper"],
            *(row["kinds"].get(name) for name in kinds),
            *(row.get("identity", {}).get(name) for name in identity),
            *(row.get("preservation", {}).get(name) for name in preservation),
        ]
        for row in rows
    ]
    write_csv(
        file,
        [*header, *identity, *preservation],
        [
            ["" if value is None else value if isinstance(value, str) else round(value, 4) for value in line]
            for line in lines
        ],
    )
