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
    photos=at(8, -8, 82, 98),
    thresholds=Thresholds(identity=squared(30), duplicate=squared(1), leak=squared(10)),
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


def test_the_gate_closes_where_half_of_the_faces_are_one_real_persons() -> None:
    def drawn(*whose: tuple[str, float]) -> list[Drawn]:
        return [Drawn(i, "", 0.0, 1.0, name, distance) for i, (name, distance) in enumerate(whose)]

    assert gate(drawn(("Bob", 0.1), ("Eve", 0.5), ("Bob", 0.1), ("Eve", 0.1)), 0.2) == "Bob"
    assert gate(drawn(("Bob", 0.1), ("Eve", 0.1), ("Ann", 0.1)), 0.2) == ""
    assert gate(drawn(("Bob", 0.3), ("Bob", 0.3)), 0.2) == ""
    assert gate([], 0.2) == ""


def faces(people: int, photos: int, spread: float, seed: int) -> tuple[Tensor, Tensor]:
    noise = torch.Generator().manual_seed(seed)
    own = torch.randn(people, 1, 3, 8, 8, generator=noise)
    images = own + spread * torch.randn(people, photos, 3, 8, 8, generator=noise)
    return (images * 40 + 127).clamp(0, 255).to(torch.uint8).flatten(0, 1), torch.arange(people).repeat_interleave(
        photos
    )


def test_thresholds_are_measured_on_the_photos() -> None:
    recognizer = Projection()
    images, person = faces(5, 4, 0.3, 0)
    training = People([f"p{number}" for number in range(5)], images, person)
    other_images, other_person = faces(3, 2, 0.3, 1)
    others = People(["P_3", "new", "alone"], other_images[:5], other_person[:5])
    found = references(recognizer, training, [others])
    assert found.names == ["p0", "p1", "p2", "p3", "p4", "new", "alone"]  # P_3 is p3
    embedded = recognizer.embed(images)
    torch.testing.assert_close(found.means[1], F.normalize(embedded[person == 1].mean(0), dim=0))
    apart = []
    everybody = [(recognizer.embed(p.images), p.person, range(p.person.max() + 1)) for p in (training, others)]
    for vectors, whose, numbers in everybody:
        for number in numbers:
            own = vectors[whose == number]
            if len(own) < 2 or (vectors is not everybody[0][0] and number == 0):
                continue
            for row in range(len(own)):
                rest = F.normalize(torch.cat([own[:row], own[row + 1 :]]).mean(0), dim=0)
                apart.append(float((own[row] - rest).square().sum()))
    assert found.thresholds.leak == pytest.approx(float(torch.tensor(apart).median()), abs=0.02)
    assert found.thresholds.identity == pytest.approx(float(torch.tensor(apart).quantile(0.95)), abs=1e-4)
    mirrored = recognizer.embed(images.flip(-1))
    assert found.thresholds.duplicate == pytest.approx(float((embedded - mirrored).square().sum(1).median()), abs=1e-4)
    given = references(recognizer, training, [], (0.5, None, 0.25)).thresholds
    assert given == (0.5, found.thresholds.duplicate, 0.25)
