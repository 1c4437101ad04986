"""CMU Multi-PIE: people under known poses and illuminations."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Unpack

import torch
from torch import Tensor

from data_modules.base import FaceOptions
from data_modules.cache import count_unreadable
from data_modules.detected import DetectedFaceDataModule
from data_modules.files import did_you_mean, nearest_folder
from data_modules.photos import Photo, Rejected

CAMERA_YAW: dict[str, float | None] = {
    "11_0": -90.0,
    "12_0": -75.0,
    "09_0": -60.0,
    "08_0": -45.0,
    "13_0": -30.0,
    "14_0": -15.0,
    "05_1": 0.0,
    "05_0": 15.0,
    "04_1": 30.0,
    "19_0": 45.0,
    "20_0": 60.0,
    "01_0": 75.0,
    "24_0": 90.0,
    "08_1": None,
    "19_1": None,
}
"""Degrees: thirteen cameras at the height of the head, 15 degrees apart (Gross et al. 2010, section 2).

Negative where the subject's left side is seen and the nose points to the left of the picture, as in the set's usual
protocols (camera 08_0 is -45). The two cameras above the subject have no published yaw.
"""

ILLUMINATIONS = 20
"""Photos that a camera took in a row: number 0 and 19 without flash, 1 to 18 with one flash each."""

RECORDINGS = {1: 2, 2: 3, 3: 3, 4: 3}
"""Expressions by session."""

PUBLISHED_SUBJECTS = 337
PUBLISHED_SUBJECTS_BY_SESSION = {1: 249, 2: 203, 3: 230, 4: 239}

_NAME = re.compile(r"(\d{3})_(\d{2})_(\d{2})_(\d{2})(\d)_(\d{2})\.png", re.ASCII)


class _Shot(NamedTuple):
    """What a file's name says."""

    subject: str
    session: int
    recording: int
    camera: str
    illumination: int

    @property
    def path(self) -> str:
        """Where the file lies in the set."""
        folder = f"session{self.session:02}/multiview/{self.subject}/{self.recording:02}/{self.camera}"
        camera = self.camera.replace("_", "")
        return f"{folder}/{self.subject}_{self.session:02}_{self.recording:02}_{camera}_{self.illumination:02}.png"


class MultiPIEDataModule(DetectedFaceDataModule):
    """CMU Multi-PIE (Gross et al. 2010): 337 people, up to four sessions, 15 cameras, 20 illuminations.

    R. Gross, I. Matthews, J. Cohn, T. Kanade and S. Baker, "Multi-PIE", Image and Vision Computing 28(5). Read as it is
    published: `<root>/session01/multiview/001/01/05_1/001_01_01_051_06.png` is subject 001, session 01, recording 01,
    camera 05_1 (frontal), illumination 06. The photos in `highres` have no known pose and light, and are passed over.

    Labels: `yaw` (degrees, as in CAMERA_YAW; NaN for the two cameras above), `camera` (the number in the file's name,
    51 for 05_1) and `illumination` (0 to 19). A person is a subject.

    Args:
        root: the folder that holds `session01` to `session04`.
        sessions: numbers of those to use, 1 to 4; None for all that are there.
        cameras: those to use, such as "05_1" or "051"; None for all.
        illuminations: numbers of those to use, 0 to 19; None for all.
        align: whether to find the face in each photo and bring it into the common aligned frame, which photos given to
            the trained model are brought into as well. Profiles in which no face is found are rejected. Without it the
            largest square in the middle is taken.
        cache_dir: where it is kept what was found out about the photos (landmarks, unreadable files), so that the next
            start is fast; None for `idface` in the user's cache folder.
        image_size: side of the square images, in pixels.
        options: what every FaceDataModule takes.

    Raises:
        FileNotFoundError: `root`, or a session that was asked for, does not exist.
        ValueError: what is asked for is not in the set, or there are fewer than two people with usable photos.
    """

    licence = (
        "Not openly stated by its makers: that of the holder's agreement with Carnegie Mellon University, which hands "
        "the set out (ri.cmu.edu/project/pie-database)"
    )

    def __init__(
        self,
        root: Path,
        sessions: list[int] | None = None,
        cameras: list[str] | None = None,
        illuminations: list[int] | None = None,
        align: bool = True,
        cache_dir: Path | None = None,
        image_size: int = 64,
        **options: Unpack[FaceOptions],
    ) -> None:
        super().__init__(image_size=image_size, **options)
        self.root = Path(root).expanduser()
        self.sessions = sessions
        self.cameras = None if cameras is None else [_camera_name(camera) for camera in cameras]
        self.illuminations = illuminations
        self.align = align
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()
        if not self.root.is_dir():
            raise FileNotFoundError(f"root: there is no folder '{self.root}'.{did_you_mean(nearest_folder(self.root))}")
        _check("sessions", sessions, list(RECORDINGS))
        _check("cameras", self.cameras, list(CAMERA_YAW))
        _check("illuminations", illuminations, list(range(ILLUMINATIONS)))

    def list_photos(self) -> list[Photo | Rejected]:
        """The photos that were asked for; files with other names, or in other places than their names say, are not."""
        there = [session for session in RECORDINGS if self._session(session).is_dir()]
        if not there:
            hint = did_you_mean(self._elsewhere())
            raise FileNotFoundError(f"root: '{self.root}' holds no session, expected '{self._session(1)}'.{hint}")
        for session in self.sessions or []:
            if session not in there:
                raise FileNotFoundError(
                    f"sessions: there is no folder '{self._session(session)}': unpack session {session} there, or "
                    f"choose from {', '.join(map(str, there))}"
                )
        listed: list[Photo | Rejected] = []
        for path, shot in self._files(self.sessions or there, self.cameras):
            if isinstance(shot, str):
                listed.append(Rejected(path, shot))
            elif self.illuminations is None or shot.illumination in self.illuminations:
                listed.append(Photo(shot.path, shot.subject, path))
        return listed

    def labels(self, photos: Sequence[Photo]) -> dict[str, Tensor]:
        """`yaw`, `camera` and `illumination` of each photo, float32 (N,)."""
        shots = [shot for photo in photos if isinstance(shot := _parse(photo.path.name), _Shot)]
        yaws = [CAMERA_YAW[shot.camera] for shot in shots]
        return {
            "yaw": torch.tensor([float("nan") if yaw is None else yaw for yaw in yaws]),
            "camera": torch.tensor([float(shot.camera.replace("_", "")) for shot in shots]),
            "illumination": torch.tensor([float(shot.illumination) for shot in shots]),
        }

    def verify(self) -> list[str]:
        """What is missing or damaged in the whole set, whatever is selected of it, a sentence each. Decodes all."""
        found: list[str] = []
        photos: list[Photo] = []
        strays: list[str] = []
        shots: set[_Shot] = set()
        for session in RECORDINGS:
            if not self._session(session).is_dir():
                found.append(f"Session {session} is missing: there is no folder '{self._session(session)}'.")
        for path, shot in self._files(RECORDINGS, None):
            if isinstance(shot, str):
                strays.append(f"{path.relative_to(self.root).as_posix()} ({shot})")
            else:
                shots.add(shot)
                photos.append(Photo(shot.path, shot.subject, path))
        if (subjects := len({shot.subject for shot in shots})) != PUBLISHED_SUBJECTS:
            found.append(f"There are {subjects} subjects, published: {PUBLISHED_SUBJECTS}.")
        for session, published in PUBLISHED_SUBJECTS_BY_SESSION.items():
            if not self._session(session).is_dir():
                continue
            people = sorted({shot.subject for shot in shots if shot.session == session})
            if len(people) != published:
                found.append(f"Session {session} has {len(people)} subjects, published: {published}.")
            missing = [
                shot.path
                for subject in people
                for recording in range(1, RECORDINGS[session] + 1)
                for camera in CAMERA_YAW
                for illumination in range(ILLUMINATIONS)
                if (shot := _Shot(subject, session, recording, camera, illumination)) not in shots
            ]
            if missing:
                total = len(people) * RECORDINGS[session] * len(CAMERA_YAW) * ILLUMINATIONS
                found.append(
                    f"Session {session} lacks {len(missing):,} of {total:,} photos of its subjects; the first: "
                    f"{missing[0]}."
                )
        if strays:
            found.append(f"{len(strays):,} files do not belong to the set; the first: {strays[0]}.")
        found += count_unreadable(photos, root=self.root, cache_dir=self.cache_dir)
        return found

    def _session(self, session: int) -> Path:
        return self.root / f"session{session:02}"

    def _elsewhere(self) -> Path | None:
        """The folder that holds the sessions, if it is near `root`: in it, or the one that it is itself a part of."""
        inside = sorted(entry for entry in self.root.iterdir() if entry.is_dir())
        near = [*inside, *self.root.resolve().parents[:2]]
        return next((folder for folder in near if (folder / "session01").is_dir()), None)

    def _files(self, sessions: Iterable[int], cameras: list[str] | None) -> Iterator[tuple[Path, _Shot | str]]:
        """The files of sessions and cameras, and what each shows, or why it is not of the set."""
        for session in sessions:
            for current, folders, files in os.walk(self._session(session) / "multiview"):
                folders[:] = sorted(
                    name for name in folders if cameras is None or name not in CAMERA_YAW or name in cameras
                )
                for name in sorted(files):
                    path = Path(current, name)
                    shot = _parse(name)
                    if isinstance(shot, _Shot) and path.relative_to(self.root).as_posix() != shot.path:
                        yield path, f"not in the place that its name says, '{shot.path}'"
                    else:
                        yield path, shot


def _parse(name: str) -> _Shot | str:
    """What a file's name says, or why it is none of the set's."""
    match = _NAME.fullmatch(name)
    if match is None:
        return "not named <subject>_<session>_<recording>_<camera>_<illumination>.png, as 001_01_01_051_06.png is"
    subject, session, recording, head, tail, illumination = match.groups()
    camera = f"{head}_{tail}"
    if camera not in CAMERA_YAW:
        return f"camera {head}{tail}, expected one of the {len(CAMERA_YAW)} published"
    if int(illumination) >= ILLUMINATIONS:
        return f"illumination {illumination}, expected 00 to {ILLUMINATIONS - 1}"
    return _Shot(subject, int(session), int(recording), camera, int(illumination))


def _camera_name(camera: str) -> str:
    """05_1 for 051."""
    return f"{camera[:2]}_{camera[2]}" if re.fullmatch(r"\d{3}", camera) else camera


def _check(option: str, chosen: Sequence[object] | None, choices: Sequence[object]) -> None:
    """Refuse a choice of what is not in the set, or of nothing."""
    if chosen is None:
        return
    wrong = [choice for choice in chosen if choice not in choices]
    if wrong or not chosen:
        raise ValueError(
            f"{option}: found {wrong[0] if wrong else 'none'}, expected some of {', '.join(map(str, choices))}"
        )
