"""What becomes of a face, by embeddings made up for the purpose."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from idface.protocols.face_checks import Drawn, References, Thresholds, gate, judge_faces, references
from idface.protocols.sources import People
from tests.latent.test_bank import Projection


def at(*degrees: float) -> Tensor:
    """Unit vectors in a plane."""
    return torch.tensor([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees])


def squared(degrees: float) -> float:
    return 2 - 2 * math.cos(math.radians(degrees))


KNOWN = References(
    ["Ann", "Bob", "Eve"],
    means=at(0, 90, 180),
    counts=torch.tensor([2, 2, 1]),
    photos=at(8, -8, 82, 98),
    thresholds=Thresholds(identity=squared(30), duplicate=squared(1), leak=squared(10), leak_single=squared(20)),
)


@pytest.mark.parametrize(
    ("degrees", "seen", "reason"),
    [
        (15, True, ""),
        (15, False, "no face found"),
        (8.5, True, "copy of a training photo"),
        (31, True, "too far from its person"),
        (-29, True, ""),
        (85, True, "taken for somebody else"),
        (175, True, "taken for somebody else"),  # of evaluation, who has no training photo
        (162, True, "taken for somebody else"),  # a single photo says less of where somebody is
        (78, True, "too far from its person"),
    ],
)
def test_a_known_persons_face(degrees: float, seen: bool, reason: str) -> None:
    (face,) = judge_faces(at(degrees), KNOWN.means[0], (0,), [seen], KNOWN)
    assert face.reason == reason
    assert face.own == pytest.approx(squared(degrees), abs=1e-5)
    assert face.person != "Ann"  # one may be oneself


def test_a_new_persons_face_may_be_nobodys() -> None:
    taken, free = judge_faces(at(3, 45), at(40)[0], (), [True, True], KNOWN)
    assert (taken.reason, taken.person) == ("taken for somebody else", "Ann")
    assert free.reason == ""
    assert free.photo == pytest.approx(squared(37), abs=1e-5)


def test_the_gate_closes_where_a_fifth_of_the_faces_are_one_real_persons() -> None:
    def drawn(*whose: tuple[str, bool]) -> list[Drawn]:
        return [Drawn(i, "", 0.0, 1.0, name, 0.1, taken) for i, (name, taken) in enumerate(whose)]

    rest = [("Ann", False)] * 7
    assert gate(drawn(("Bob", True), ("Eve", True), ("Bob", True), *rest)) == "Bob"
    assert gate(drawn(("Bob", True), ("Eve", True), ("Ann", True), *rest)) == ""
    assert gate(drawn(("Bob", False), ("Bob", False))) == ""
    assert gate([]) == ""


@pytest.mark.parametrize("known_photos", [1, 2, 4])
def test_the_gate_finds_photos_of_people_of_whom_others_are_known(known_photos: int) -> None:
    """Synthetic people who are real ones, photos of whom nobody has seen; and people who are nobody."""
    recognizer = Projection()
    images, person = faces(60, 12, 0.5, 5)
    training = People([f"t{number}" for number in range(30)], images[: 30 * 12], person[: 30 * 12])
    others = images.view(60, 12, 3, 8, 8)[30:]
    evaluation = People(
        [f"e{number}" for number in range(30)],
        others[:, :known_photos].flatten(0, 1),
        torch.arange(30).repeat_interleave(known_photos),
    )
    known = references(recognizer, training, [evaluation])
    caught = []
    for number, photos in enumerate(others):
        embedded = recognizer.embed(photos[known_photos:])
        drawn = judge_faces(embedded, F.normalize(embedded.mean(0), dim=0), (), [True] * len(embedded), known)
        caught.append(gate(drawn) == f"e{number}")
    assert sum(caught) >= 28  # of 30
    nobody, _ = faces(30, 8, 0.5, 6)
    free = [
        gate(judge_faces(recognizer.embed(photos), known.means[0], (), [True] * 8, known)) == ""
        for photos in nobody.view(30, 8, 3, 8, 8)
    ]
    assert sum(free) >= 28


def faces(people: int, photos: int, spread: float, seed: int) -> tuple[Tensor, Tensor]:
    noise = torch.Generator().manual_seed(seed)
    own = torch.randn(people, 1, 3, 8, 8, generator=noise)
    images = own + spread * torch.randn(people, photos, 3, 8, 8, generator=noise)
    return (images * 40 + 127).clamp(0, 255).to(torch.uint8).flatten(0, 1), torch.arange(people).repeat_interleave(
        photos
    )


def test_thresholds_are_measured_on_the_photos() -> None:
    recognizer = Projection()
    images, person = faces(5, 4, 0.3, 7)
    training = People([f"p{number}" for number in range(5)], images, person)
    other_images, other_person = faces(3, 2, 0.3, 8)
    others = People(["P_3", "new", "alone"], other_images[:5], other_person[:5])
    found = references(recognizer, training, [others])
    assert found.names == ["p0", "p1", "p2", "p3", "p4", "new", "alone"]  # P_3 is p3
    embedded = recognizer.embed(images)
    torch.testing.assert_close(found.means[1], F.normalize(embedded[person == 1].mean(0), dim=0))
    assert found.counts.tolist() == [4, 4, 4, 4, 4, 2, 1]
    to_mean, to_photo = [], []
    for number in range(5):
        own = embedded[person == number]
        for row in range(4):
            rest = F.normalize(torch.cat([own[:row], own[row + 1 :]]).mean(0), dim=0)
            to_mean.append(float((own[row] - rest).square().sum()))
            to_photo.append(float((own[row] - own[row - 1]).square().sum()))
    assert found.thresholds.leak == pytest.approx(float(torch.tensor(to_mean).quantile(0.75)), abs=1e-4)
    assert found.thresholds.leak_single == pytest.approx(float(torch.tensor(to_photo).quantile(0.75)), abs=1e-4)
    assert found.thresholds.identity == pytest.approx(float(torch.tensor(to_mean).quantile(0.95)), abs=1e-4)
    assert torch.equal(found.leak[5:], torch.tensor([found.thresholds.leak, found.thresholds.leak_single]))
    changed = [images.flip(-1), torch.cat([images[..., :1], images[..., :-1]], -1)]
    to_itself = [float((embedded - recognizer.embed(each)).square().sum(1).median()) for each in changed]
    assert found.thresholds.duplicate == pytest.approx(max(to_itself), abs=1e-4)
    given = references(recognizer, training, [], (0.5, None, 0.25)).thresholds
    assert given == (0.5, found.thresholds.duplicate, 0.25, 0.25)
    single = People(["a", "b"], images[:2], torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="nobody in the training data has two photos"):
        references(recognizer, single, [])
