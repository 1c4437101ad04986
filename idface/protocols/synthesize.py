"""`idface synthesize`: checked synthetic faces of known and of new people (*Conditional face synthesis*, section 4.3).

OUT/synthesis.json          how the set was made, the thresholds, how many faces were drawn, kept and left out, and why
OUT/identities.csv          a row a person: whose mixture it is, faces drawn and kept, whom it is taken for, if anybody
OUT/faces.csv               a row a face that was drawn: kept or why not, its distances
OUT/sheet.png               some of the faces
and the set itself, either
OUT/manifest.json, index.parquet, shards/   what PreparedDataModule reads, or
OUT/faces/<person>/<number>.png             what FaceFolderDataModule reads
"""

import hashlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock, Timeout
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file
from torch import Tensor

from data_modules.batch import to_float
from data_modules.prepare.shards import FORMAT, INDEX, MANIFEST, SHARDS, ShardWriter, schema_of, write_index
from idface.checkpoints import best_device, load_model_of
from idface.files import save_tensors, write_csv, write_json
from idface.latent.scoring import is_fast_in_bfloat16
from idface.metrics.variety import MeanPairDistance
from idface.modules.cond_vaegan import CondVAEGAN
from idface.pictures import Picture, mark_synthetic, save_synthetic, synthetic_png, to_picture
from idface.protocols.face_checks import Drawn, References, Thresholds, gate, judge_faces, references
from idface.protocols.sources import (
    BATCH,
    KnownPeople,
    People,
    digest_of,
    evaluated_people,
    people_of,
    training_data,
    training_people,
)
from idface.recognition.alignment import FaceDetector
from idface.recognition.base import Recognizer
from idface.recognition.build import build_recognizer
from idface.recognition.weights import fingerprint_of

log = logging.getLogger(__name__)

FACES = 2048
"""Drawn together, more or less: what is lost when a synthesis is killed, and what a shard holds. Whole people only."""

ROUNDS = 4
"""How often faces that were left out are drawn anew."""

WHOLE = "its person is taken for somebody else"
"""Why a face is left out that would pass by itself."""

SHEET = 12
"""People and faces of each on the sheet."""

Format = Literal["shards", "folder"]


class SyntheticPerson(NamedTuple):
    """Somebody to make faces of.

    Attributes:
        name: how the set calls them.
        labels: of the people of the model that they are a mixture of; one for a known person.
        weights: of the mixture, in sum 1.
    """

    name: str
    labels: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass
class _Progress:
    """A person's faces so far."""

    person: SyntheticPerson
    seed: int
    drawn: list[Drawn] = field(default_factory=list)
    kept: list[tuple[int, Picture, np.ndarray]] = field(default_factory=list)
    mean: Tensor | None = None
    taken_for: str = ""


def synthesize(
    checkpoint: str,
    out: Path,
    per_identity: int = 200,
    *,
    mix: int = 0,
    new_identities: int = 0,
    data: Path | None = None,
    evaluation: Sequence[Path] = (),
    recognizer: str = "dlib",
    detect: bool = True,
    unchecked: bool = False,
    max_distance: float | None = None,
    duplicate_distance: float | None = None,
    leak_distance: float | None = None,
    format: Format = "shards",
    seed: int = 0,
) -> dict[str, Any]:
    """Make a set of synthetic faces, or go on with one.

    It can be stopped at any moment: called again with the same arguments it goes on, and what comes out is the same.

    Args:
        checkpoint: of a CondVAEGAN, what `load_model` takes.
        out: the folder to write.
        per_identity: faces of each person; fewer where `ROUNDS` rounds bring no more that pass.
        mix: how many known people each new one is a mixture of; 0 makes faces of the known people themselves.
        new_identities: how many new people.
        data: what the model was trained on, see `training_data`.
        evaluation: prepared sets of people whom no face may be taken for, beside those of training, and beside those
            whom the same data hold out for validation and test.
        recognizer: what compares faces, a name that `build_recognizer` knows; not the one of a loss, if it can be.
        detect: whether a detector must see a face in each.
        unchecked: make faces without any check; the set says so.
        max_distance, duplicate_distance, leak_distance: instead of the measured `Thresholds`.
        format: "shards" or "folder".
        seed: of all that is drawn.

    Returns:
        What is in `synthesis.json`.

    Raises:
        ValueError, OSError: an argument, the checkpoint or the data are not as they should be, or `out` holds something
            else.
        BlockingIOError: another synthesis into the folder is running.
    """
    checks = {"max": max_distance, "duplicate": duplicate_distance, "leak": leak_distance}
    _check_options(mix, new_identities, seed, checks)
    of_checks = {
        **{f"--{name}-distance": value is not None for name, value in checks.items()},
        "--evaluation": bool(evaluation),
        "--recognizer": recognizer != "dlib",
        "--no-detect": not detect,
    }
    if unchecked and (given := next((option for option, said in of_checks.items() if said), None)):
        raise ValueError(f"{given} is of a check, but --unchecked says that there is none: leave one of them out")
    model = load_model_of(CondVAEGAN, checkpoint)
    if mix > model.num_identities:
        raise ValueError(f"--mix is {mix}, but the model knows {model.num_identities} people")
    _check_folder(out)
    known, held_out = _known_people(checkpoint, data, model, unchecked)
    others = [people_of(Path(folder), model.image_size, "--evaluation") for folder in evaluation]
    network = None if unchecked else build_recognizer(recognizer)
    asked: dict[str, Any] = {
        "checkpoint": fingerprint_of(model.synthesizer.state_dict()),
        "per_identity": per_identity,
        "mix": mix,
        "new_identities": new_identities,
        "checked": not unchecked,
        "recognizer": network and f"{network.name} {network.fingerprint()}",
        "detect": detect and not unchecked,
        **{f"{name}_distance": value for name, value in checks.items()},
        "training": digest_of(known) if isinstance(known, People) else None,
        "held_out": held_out and digest_of(held_out),
        "evaluation": [digest_of(people) for people in others],
        "format": format,
        "seed": seed,
    }
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".lock", timeout=0):
            if (out / "synthesis.json").is_file():
                finished: dict[str, Any] = json.loads((out / "synthesis.json").read_text("utf-8"))
                _check_same(out, finished["settings"], asked)
                log.warning("'%s' was made before, in the same way: nothing is done", out)
                return finished
            work = out / ".work"
            if (work / "settings.json").is_file():
                _check_same(out, json.loads((work / "settings.json").read_text("utf-8")), asked)
            work.mkdir(exist_ok=True)
            write_json(work / "settings.json", asked)
            everybody_else = [held_out, *others] if held_out else others
            synthesis = _Synthesis(model, out, asked, known, everybody_else, network, checkpoint)
            synthesis.run()
            result = synthesis.finish()
            shutil.rmtree(work)
            return result
    except Timeout:
        raise BlockingIOError(
            f"another synthesis into '{out}' is running: wait for it, or give another --out"
        ) from None


def _check_options(
    mix: int,
    new_identities: int,
    seed: int,
    distances: Mapping[str, float | None],
) -> None:
    """Refuse what cannot be, before anything is loaded."""
    if (mix == 0) != (new_identities == 0):
        there, lacking = ("--mix", "--new-identities") if mix else ("--new-identities", "--mix")
        raise ValueError(f"{there} is given, and {lacking} is not: new people take both, known people neither")
    if mix == 1 or mix < 0:
        raise ValueError(f"--mix is {mix}; a new person is a mixture of 2 or more known ones")
    if new_identities < 0 or new_identities == 1:
        raise ValueError(f"--new-identities is {new_identities}; expected 2 or more")
    if seed < 0:
        raise ValueError(f"--seed is {seed}; expected 0 or more")
    for name, value in distances.items():
        if value is not None and not 0 <= value <= 4:
            raise ValueError(f"--{name}-distance is {value}; squared distances of unit vectors are 0 to 4")


def _check_folder(out: Path) -> None:
    if not out.exists() or (out / "synthesis.json").exists() or (out / ".work").exists():
        return
    if any(path.name != ".lock" for path in out.iterdir()):
        raise ValueError(f"--out {out} holds other files: give a new folder")


def _known_people(
    checkpoint: str, data: Path | None, model: CondVAEGAN, unchecked: bool
) -> tuple[People | list[str], People | None]:
    """The model's people, and those whom its data hold out, if any, with their photos.

    Of an unchecked set the names of the model's people alone, or numbers where these cannot be had.
    """
    try:
        source = training_data(
            checkpoint, data, KnownPeople(model.num_identities, model.image_size, model.people_digest)
        )
    except FileNotFoundError:
        if not unchecked or data is not None:
            raise
        return [f"{number:05d}" for number in range(model.num_identities)], None
    if unchecked:
        return source.identity_names[: model.num_identities], None
    return training_people(source), evaluated_people(source)


def plan(names: Sequence[str], mix: int, new_identities: int, seed: int) -> list[SyntheticPerson]:
    """Whom to make faces of.

    Args:
        names: of the people whom the model knows.
        mix: 0 for these people; else how many of them each new one is a mixture of, with weights drawn evenly from all
            that are positive and 1 in sum (a Dirichlet distribution).
        new_identities: how many new ones.
        seed: of the mixtures.
    """
    if not mix:
        return [SyntheticPerson(name, (label,), (1.0,)) for label, name in enumerate(names)]
    people = []
    digits = len(str(new_identities - 1))
    for number in range(new_identities):
        draw = np.random.default_rng([seed, number])
        labels = draw.choice(len(names), mix, replace=False)
        weights = draw.dirichlet(np.ones(mix))
        people.append(SyntheticPerson(f"mix-{number:0{digits}d}", tuple(labels.tolist()), tuple(weights.tolist())))
    return people


def mixture(person: SyntheticPerson, num_identities: int) -> Tensor:
    """A person as `CondVAEGAN.generate` takes them: weights (N,), float32."""
    weights = torch.zeros(num_identities)
    weights[list(person.labels)] = torch.tensor(person.weights, dtype=torch.float32)
    return weights


def latent(seed: int, number: int, length: int) -> Tensor:
    """z ~ N(0, I) of a person's face, (L,) float32, by what the face's recipe says."""
    return torch.from_numpy(np.random.default_rng([seed, number]).standard_normal(length, np.float32))


class _Synthesis:
    """A synthesis that is under way."""

    def __init__(
        self,
        model: CondVAEGAN,
        out: Path,
        asked: dict[str, Any],
        known: People | list[str],
        others: Sequence[People],
        recognizer: Recognizer | None,
        checkpoint: str,
    ) -> None:
        self.out, self.work, self.asked = out, out / ".work", asked
        self.device = best_device()
        self.model = model.to(self.device)
        self.checkpoint = checkpoint
        names = known.names if isinstance(known, People) else known
        self.people = plan(names, asked["mix"], asked["new_identities"], asked["seed"])
        self.place = {person.name: place for place, person in enumerate(self.people)}
        self.recognizer: Recognizer | None = None
        self.known: References | None = None
        self.detector = FaceDetector(self.device) if asked["detect"] else None
        if recognizer is not None and isinstance(known, People):
            if recognizer.fingerprint() in model.gradient_fingerprints:
                log.warning(
                    "%s was a loss of this model, which has learnt to please it: let another --recognizer check",
                    recognizer.name,
                )
            fast = is_fast_in_bfloat16(self.device)
            self.recognizer = (recognizer.in_bfloat16() if fast else recognizer).to(self.device)
            self.known = self._references(known, others)

    def _references(self, people: People, others: Sequence[People]) -> References:
        """What faces are compared with, embedded once."""
        assert self.recognizer is not None
        file, told = self.work / "references.safetensors", self.work / "references.json"
        if told.is_file():
            kept, said = load_file(file), json.loads(told.read_text("utf-8"))
            return References(
                said["names"], kept["means"], kept["counts"], kept["photos"], Thresholds(**said["thresholds"])
            )
        given = [self.asked[f"{name}_distance"] for name in ("max", "duplicate", "leak")]
        known = references(self.recognizer, people, others, given)
        known = References(known.names, known.means.cpu(), known.counts, known.photos.cpu(), known.thresholds)
        save_tensors({"means": known.means, "counts": known.counts, "photos": known.photos}, file)
        write_json(told, {"names": known.names, "thresholds": known.thresholds._asdict()})
        return known

    # ------------------------------------------------------------------------------------------------------ the faces

    def chunks(self) -> Iterator[tuple[int, list[SyntheticPerson]]]:
        """People whose faces are made together, numbered."""
        size = max(1, FACES // self.asked["per_identity"])
        for number, start in enumerate(range(0, len(self.people), size)):
            yield number, self.people[start : start + size]

    def run(self) -> None:
        """Make all faces that are not there yet."""
        for folder in (self.work / "chunks", self.work / "sheet", self._where()):
            folder.mkdir(exist_ok=True)
        columns = (
            TextColumn("Synthesising"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("faces{task.fields[speed]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        per = self.asked["per_identity"]
        with Progress(*columns) as progress, ThreadPoolExecutor() as pool:
            self.pool = pool
            task = progress.add_task("", total=len(self.people) * per, speed=", starting")
            writing: Future[None] | None = None
            for number, people in self.chunks():
                if self._is_done(number):
                    progress.advance(task, len(people) * per)
                    continue
                faces = self._draw(people, lambda count: progress.advance(task, count))
                if writing is not None:
                    writing.result()  # one chunk is encoded and written while the next one is drawn
                writing = pool.submit(self._write, number, faces)
                speed = progress.tasks[task].speed
                progress.update(task, speed="" if speed is None else f", {speed:.0f}/s")
            if writing is not None:
                writing.result()
            progress.update(task, completed=len(self.people) * per)

    def _is_done(self, number: int) -> bool:
        return (self.work / "chunks" / f"{number:06d}.json").is_file()

    def _draw(self, people: Sequence[SyntheticPerson], tell: Any) -> list[_Progress]:
        """Faces of some people, drawn until there are enough that pass, or for `ROUNDS` rounds."""
        per = self.asked["per_identity"]
        states = [_Progress(person, self._seed_of(person)) for person in people]
        for _ in range(ROUNDS if self.known else 1):
            wanted = [(state, per - len(state.kept)) for state in states if not state.taken_for]
            wanted = [(state, count) for state, count in wanted if count > 0]
            if not wanted:
                break
            kept = sum(len(state.kept) for state in states)
            latents = torch.cat([self._latents(state, count) for state, count in wanted])
            weights = torch.stack([mixture(state.person, self.model.num_identities) for state, _ in wanted])
            whose = torch.arange(len(wanted)).repeat_interleave(torch.tensor([count for _, count in wanted]))
            pictures, embeddings, points = self._faces(latents, weights, whose)
            start = 0
            for state, count in wanted:
                part = slice(start, start + count)
                start += count
                embedded = None if embeddings is None else embeddings[part]
                self._sort(state, pictures[part], embedded, None if points is None else points[part])
            tell(sum(len(state.kept) for state in states) - kept)
        return states

    def _seed_of(self, person: SyntheticPerson) -> int:
        """The same faces of a person, whoever else is in the set."""
        told = f"{self.asked['seed']}:{person.labels}:{person.weights}"
        return int.from_bytes(hashlib.sha256(told.encode()).digest()[:6])

    def _latents(self, state: _Progress, count: int) -> Tensor:
        """Of a person's next faces: a face depends on the person's seed and its number alone."""
        start = len(state.drawn)
        numbers = range(start, start + count)
        return torch.stack([latent(state.seed, number, self.model.latent_dim) for number in numbers])

    @torch.no_grad()
    def _faces(
        self, latents: Tensor, weights: Tensor, whose: Tensor
    ) -> tuple[Picture, Tensor | None, list[np.ndarray | None] | None]:
        """Marked pictures, as they are kept; what the recogniser and the detector make of them."""
        pictures, embeddings = [], []
        fast = is_fast_in_bfloat16(self.device)
        for part, rows in zip(latents.split(BATCH), whose.split(BATCH), strict=True):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=fast):
                made = self.model.generate(part.to(self.device), weights[rows].to(self.device))
            marked = np.stack([mark_synthetic(face) for face in to_picture(made)])
            pictures.append(marked)
            if self.recognizer is not None:
                kept = to_float(torch.from_numpy(marked).permute(0, 3, 1, 2).to(self.device))
                embeddings.append(self.recognizer(kept).cpu())
        everything = np.concatenate(pictures)
        points = None if self.detector is None else self.detector.detect(list(everything))
        return everything, torch.cat(embeddings) if embeddings else None, points

    def _sort(
        self,
        state: _Progress,
        pictures: Picture,
        embeddings: Tensor | None,
        points: list[np.ndarray | None] | None,
    ) -> None:
        """Keep the faces that pass."""
        first = len(state.drawn)
        landmarks = points or [np.full((5, 2), np.nan, np.float32)] * len(pictures)
        if self.known is None or embeddings is None:
            drawn = [Drawn(-1, "", float("nan"), float("nan"), "", float("nan"), False)] * len(pictures)
        else:
            own = () if self.asked["mix"] else state.person.labels
            seen = [each is not None for each in landmarks]
            if state.mean is None:
                state.mean = self.known.means[own[0]] if own else _mean_of_new(embeddings, seen, self.known)
            drawn = judge_faces(embeddings, state.mean, own, seen, self.known)
        state.drawn += [each._replace(number=first + row) for row, each in enumerate(drawn)]
        state.kept += [
            (each.number, picture, place)
            for each, picture, place in zip(state.drawn[first:], pictures, landmarks, strict=True)
            if not each.reason and place is not None
        ]
        state.taken_for = gate(state.drawn)
        if state.taken_for:
            state.kept = []
            state.drawn = [each._replace(reason=each.reason or WHOLE) for each in state.drawn]

    # --------------------------------------------------------------------------------------------------- what is kept

    def _where(self) -> Path:
        """Where faces are written; a folder of them gets its place when it is whole."""
        return self.out / SHARDS if self.asked["format"] == "shards" else self.work / "faces"

    def _write(self, number: int, states: Sequence[_Progress]) -> None:
        """Write a chunk's faces; that it is done is noted last."""
        done: dict[str, Any] = {"people": [_described(state) for state in states]}
        for state in states:
            if (place := self.place[state.person.name]) < SHEET and state.kept:
                strip = np.concatenate([picture for _, picture, _ in state.kept[:SHEET]], axis=1)
                np.save(self.work / "sheet" / f"{place:02d}.npy", strip)
        if self.asked["format"] == "shards":
            schema = schema_of({})
            writer = ShardWriter(self.out / SHARDS / f"{number:05d}.parquet", schema)
            for state in states:
                for (row, _, points), encoded in zip(state.kept, self._encoded(state), strict=True):
                    writer.add(
                        dict.fromkeys(schema.names)
                        | {
                            "image": {"bytes": encoded, "path": None},
                            "name": f"{state.person.name}/{row:05d}",
                            "person": state.person.name,
                            "landmarks": points.tolist(),
                        }
                    )
            described, places = writer.close()
            done |= {"shard": described, "places": places.hex()}
        else:
            for state in states:
                begun, whole = self.work / "person", self._where() / state.person.name
                shutil.rmtree(begun, ignore_errors=True)
                begun.mkdir()
                for (row, *_), encoded in zip(state.kept, self._encoded(state), strict=True):
                    (begun / f"{row:05d}.png").write_bytes(encoded)
                shutil.rmtree(whole, ignore_errors=True)
                if state.kept:
                    begun.rename(whole)
        write_json(self.work / "chunks" / f"{number:06d}.json", done)

    def _encoded(self, state: _Progress) -> Iterator[bytes]:
        """A person's faces as PNG, in order; on all cores, for Pillow encodes without Python's lock."""
        recipe = {
            "checkpoint": self.asked["checkpoint"],
            "labels": state.person.labels,
            "weights": state.person.weights,
            "seed": state.seed,
        }

        def encode(kept: tuple[int, Picture, np.ndarray]) -> bytes:
            number, picture, _ = kept
            return synthetic_png(picture, {**recipe, "number": number}, compression=1)

        return self.pool.map(encode, state.kept)

    def finish(self) -> dict[str, Any]:
        """Write all that is about the whole set."""
        chunks = [json.loads(file.read_text("utf-8")) for file in sorted((self.work / "chunks").glob("*.json"))]
        people = [person for chunk in chunks for person in chunk["people"]]
        self._write_tables(people)
        strips = [np.load(file) for file in sorted((self.work / "sheet").glob("*.npy"))]
        if strips:
            wide = max(strip.shape[1] for strip in strips)
            padded = [
                np.pad(strip, ((0, 0), (0, wide - strip.shape[1]), (0, 0)), constant_values=255) for strip in strips
            ]
            save_synthetic(np.concatenate(padded), self.out / "sheet.png", {"settings": self.asked})
        reasons = Counter(face[1] or "kept" for person in people for face in person["drawn"])
        result: dict[str, Any] = {
            "synthetic": True,
            "settings": self.asked,
            "checkpoint": self.checkpoint,
            "model": self.model.recipe,
            "gradient_fingerprints": sorted(self.model.gradient_fingerprints),
            "searched_against": self._searched_against(),
            "thresholds": self.known.thresholds._asdict() if self.known else None,
            "people": sum(bool(person["kept"]) for person in people),
            "faces": sum(len(person["kept"]) for person in people),
            "drawn": sum(reasons.values()),
            "left_out": {reason: count for reason, count in sorted(reasons.items()) if reason != "kept"},
            "excluded_people": {person["name"]: person["taken_for"] for person in people if person["taken_for"]},
        }
        if means := [person["mean"] for person in people if person["mean"]]:
            apart = MeanPairDistance(len(means[0]))
            apart.update(F.normalize(torch.tensor(means)))
            result["distance_between_people"] = float(apart.compute()) if len(means) > 1 else None
        if result["people"] < 2:
            raise ValueError(
                f"faces of {result['people']} people passed, of {result['drawn']:,} drawn faces, and a set takes two "
                f"({', '.join(f'{count:,}: {reason}' for reason, count in result['left_out'].items())}): see "
                f"'{self.out / 'faces.csv'}'. Train longer, or keep more by --no-detect, wider distances or --unchecked"
            )
        if self.asked["format"] == "shards":
            self._write_manifest(chunks, result)
        elif not (self.out / "faces").exists():  # else moved by a run that was ended before it wrote this down
            self._where().rename(self.out / "faces")
        write_json(self.out / "synthesis.json", result)
        return result

    def _searched_against(self) -> str:
        if not self.known:
            return "nobody"
        others = len(self.asked["evaluation"])
        searched = ["the people of training"]
        searched += ["those held out of it"] if self.asked["held_out"] else []
        searched += [f"those of {others} evaluation sets"] if others else []
        return ", ".join(searched)

    def _write_tables(self, people: Sequence[Mapping[str, Any]]) -> None:
        header = ("name", "person", "left_out", "to_person", "to_training_photo", "nearest_other", "to_other")
        faces = [
            (f"{person['name']}/{number:05d}", person["name"], *(_short(value) for value in rest))
            for person in people
            for number, *rest, _ in person["drawn"]
        ]
        write_csv(self.out / "faces.csv", header, faces)
        identities = [
            (
                person["name"],
                " ".join(map(str, person["labels"])),
                " ".join(f"{weight:.4f}" for weight in person["weights"]),
                len(person["drawn"]),
                len(person["kept"]),
                person["taken_for"],
            )
            for person in people
        ]
        write_csv(
            self.out / "identities.csv", ("person", "labels", "weights", "drawn", "kept", "taken_for"), identities
        )

    def _write_manifest(self, chunks: Sequence[Mapping[str, Any]], result: Mapping[str, Any]) -> None:
        """What PreparedDataModule reads."""
        shards = [(chunk["shard"], bytes.fromhex(chunk["places"])) for chunk in chunks]
        write_index(self.out / INDEX, self.out, schema_of({}), shards)
        manifest = {
            "format": FORMAT,
            "synthetic": True,
            "source": {
                "name": "synthetic",
                "licence": "Synthetic faces; whether and how they may be used depends on the photos that the model was "
                "trained on",
            },
            "settings": {"size": self.model.image_size, "margin": 0.0, "encoding": "png"},
            "counts": {
                "photos": result["drawn"],
                "prepared": result["faces"],
                "people": result["people"],
                "rejected": result["left_out"],
            },
            "labels": {},
            "attribute_names": [],
            "shards": [shard for shard, _ in shards],
            "files": {},
        }
        write_json(self.out / MANIFEST, manifest)


def _mean_of_new(embeddings: Tensor, seen: Sequence[bool], known: References) -> Tensor:
    """The mean, (D,) of length 1, of a new person's faces: of those that show a face and nobody real, if any do."""
    as_all = F.normalize(embeddings.mean(0), dim=0)
    first = judge_faces(embeddings, as_all, (), seen, known)
    good = torch.tensor([row for row, each in enumerate(first) if seen[row] and not each.taken], dtype=torch.int64)
    return F.normalize(embeddings[good].mean(0), dim=0) if len(good) else as_all


def _short(value: object) -> object:
    return round(value, 4) if isinstance(value, float) else value


def _described(state: _Progress) -> dict[str, Any]:
    return {
        "name": state.person.name,
        "labels": state.person.labels,
        "weights": state.person.weights,
        "taken_for": state.taken_for,
        "kept": [number for number, _, _ in state.kept],
        "drawn": [list(each) for each in state.drawn],
        "mean": None if state.mean is None or not state.kept else [round(value, 4) for value in state.mean.tolist()],
    }


def _check_same(out: Path, before: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    differing = [
        f"{key} was {before.get(key)}, now {value}" for key, value in asked.items() if before.get(key) != value
    ]
    if differing:
        raise ValueError(
            f"--out {out} holds a set that was begun in another way ({'; '.join(differing)}): give the same options, "
            "or another folder"
        )


def in_words(result: Mapping[str, Any]) -> list[str]:
    """A few lines about a finished set."""
    lines = [f"{result['faces']:,} faces of {result['people']:,} people, of {result['drawn']:,} drawn"]
    lines += [f"  {count:,} left out: {reason}" for reason, count in result["left_out"].items()]
    if excluded := result["excluded_people"]:
        some = ", ".join(f"{name} for {other}" for name, other in list(excluded.items())[:3])
        lines.append(f"  {len(excluded):,} people left out whole, taken for real ones: {some}")
    if not result["settings"]["checked"]:
        lines.append("  none of them was checked")
    else:
        lines.append(f"  searched against {result['searched_against']}")
    return lines
