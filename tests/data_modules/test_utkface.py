"""UTKFace: labels in names, and nobody known by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_modules.orl import orl_root
from data_modules.utkface import UTKFaceDataModule
from tests.data_modules.contract import gather, same

Make = Callable[..., UTKFaceDataModule]

# Names as they are in the published set, and the age and sex that they tell.
ODD_NAMES = {
    "39_1_20170116174525125.jpg.chip.jpg": (39, -1),  # no race
    "55_0_0_20170116232725357jpg.chip.jpg": (55, 1),  # no point
    "24_0_1_20170116220224657 .jpg.chip.jpg": (24, 1),  # a blank
    "28_1_2_201701161846515488.jpg.chip.jpg": (28, -1),  # a digit too many
    "44_1_4_20170116235150272.pg.chip.jpg": (44, -1),
    "53__0_20170116184028385.jpg": (53, np.nan),  # no sex: among the full photos
    "1_0_0_20161219140623097.jpg": (1, 1),
    "116_1_2_20170112222336458.jpg.chip.jpg": (116, -1),
}

BAD_NAMES = {
    "portrait.jpg": "not named",
    "_1_0_20170116174525125.jpg.chip.jpg": "not named",
    "25.jpg": "not named",
    "170_1_0_20170116174525125.jpg.chip.jpg": "age 170",
    "25_3_0_20170116174525125.jpg.chip.jpg": "sex 3",
    f"25_{'9' * 200}_0_20170116174525125.jpg": "sex 999",
    f"{'9' * 200}_0_0_20170116174525125.jpg": "not named",
    "25_0_0_20170116174525125.jpg\n.jpg": "not named",
    ".DS_Store": "not named",
}


def put(person: int, photo: int, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(orl_root() / f"s{person}" / f"{photo}.pgm") as image:
        image.convert("RGB").resize((80, 80)).save(path, "JPEG")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty faces as published: 20 people, the first ten women."""
    root = tmp_path / "UTKFace"
    for person in range(1, 21):
        for photo in (1, 2):
            date = f"201701{person:02}21300{photo:04}"
            put(person, photo, root / f"{person + 20}_{int(person <= 10)}_{photo}_{date}.jpg.chip.jpg")
    return root


@pytest.fixture
def make(folder: Path, tmp_path: Path) -> Make:
    def make(root: Path = folder, **options: Any) -> UTKFaceDataModule:
        defaults = {"align": False, "image_size": 16, "batch_size": 4, "val_share": 0.2, "test_share": 0.2}
        return UTKFaceDataModule(root, cache_dir=tmp_path / "cache", **{**defaults, **options})

    return make


def test_batches_carry_the_labels(make: Make) -> None:
    data = make()
    seen = 0
    loaders = [data.train_dataloader(), data.training_photos(), data.val_dataloader()[1], data.test_dataloader()[1]]
    for batch in (batch for loader in loaders for batch in loader):
        names = [data.paths[row].name.split("_") for row in batch["index"]]
        assert batch["age"].tolist() == [float(age) for age, *_ in names]
        assert batch["sex"].tolist() == [-1.0 if sex == "1" else 1.0 for _, sex, *_ in names]
        assert batch["age"].dtype == batch["sex"].dtype == torch.float32
        assert batch["identity"].eq(-1).all()
        seen += len(names)
    assert seen > 40


def test_nobody_is_known(make: Make) -> None:
    data = make()
    assert data.num_identities == 0
    assert data.identity_names == []
    for loaders in (data.val_dataloader(), data.test_dataloader()):
        assert [len(loaders[0]), len(loaders[2])] == [0, 0]
    for batch in data.train_dataloader():
        assert torch.equal(batch["partner_index"], batch["index"])
        assert torch.equal(batch["partner"], batch["image"])


def test_photos_have_one_use(make: Make) -> None:
    data = make(batch_size=1)
    uses = [set(gather(data.train_dataloader(), "index"))]
    uses += [set(gather(loaders[1], "index")) for loaders in (data.val_dataloader(), data.test_dataloader())]
    assert all(len(use) >= 2 for use in uses)
    assert sum(map(len, uses)) == len(set.union(*uses)) == 40


def test_evaluation_pairs_are_of_held_out_photos(make: Make) -> None:
    data = make(attributes_per_query=2, batch_size=3)
    for stage, loader in (("val", data.val_dataloader()[1]), ("test", data.test_dataloader()[1])):
        rows = set(data.split.unseen[stage].tolist())
        pairs = list(zip(gather(loader, "index"), gather(loader, "partner_index"), strict=True))
        assert len(pairs) == len(set(pairs)) == 2 * len(rows)
        assert all(left != right and {left, right} <= rows for left, right in pairs)


def test_two_instances_agree_and_another_seed_does_not(make: Make) -> None:
    left, right, other = make(), make(), make(seed=1)
    assert all(map(same, left.train_dataloader(), right.train_dataloader()))
    assert all(map(same, left.val_dataloader()[1], right.val_dataloader()[1]))
    assert left.split.train.tolist() != other.split.train.tolist()


def test_workers_and_disk_change_nothing(make: Make) -> None:
    expected = list(make().train_dataloader())
    data = make(num_workers=2, memory_limit=0)
    assert all(map(same, data.train_dataloader(), expected))
    data.teardown("fit")


def test_a_photo_that_joins_moves_no_other(make: Make, folder: Path) -> None:
    def uses(data: UTKFaceDataModule) -> dict[str, str]:
        rows = {"train": data.split.train, **data.split.unseen}
        return {data.paths[row].name: use for use, all_rows in rows.items() for row in all_rows}

    before = uses(make())
    put(30, 1, folder / "80_0_0_20170130213001988.jpg.chip.jpg")
    assert before.items() < uses(make()).items()

    for path in sorted(folder.glob("*_1_2_*")):  # the same photos once more, in another folder
        put(1, 1, folder / "copies" / path.name)
    assert before.items() < uses(make()).items()
    assert sum(map(len, (make().split.train, *make().split.unseen.values()))) == 51


def test_odd_names_are_read_and_hopeless_ones_rejected(make: Make, folder: Path) -> None:
    for name in (*ODD_NAMES, *BAD_NAMES):
        put(31, 1, folder / "more" / name)
    data = make(val_share=0.0, test_share=0.0)
    labels = data.labels(data.photos)
    pairs = torch.stack([labels["age"], labels["sex"]], 1).tolist()
    found = {path.name: pair for path, pair in zip(data.paths, pairs, strict=True)}
    for name, expected in ODD_NAMES.items():
        assert np.array_equal(found[name], expected, equal_nan=True), name
    assert len(data.paths) == 40 + len(ODD_NAMES)
    reasons = {entry.path.name: entry.reason for entry in data.rejected}
    assert reasons.keys() == BAD_NAMES.keys()
    assert all(BAD_NAMES[name] in reasons[name] for name in BAD_NAMES)


@pytest.mark.parametrize("memory_limit", [2.0, 0.0])
def test_a_broken_photo_is_listed(make: Make, folder: Path, memory_limit: float) -> None:
    victim = min(folder.iterdir())
    victim.write_bytes(victim.read_bytes()[:500])
    data = make(memory_limit=memory_limit)
    assert [(entry.path, "cannot be decoded" in entry.reason) for entry in data.rejected] == [(victim, True)]
    assert len(data.paths) == 39
    found = make().verify()
    assert any("1 of 40 photos cannot be read" in sentence and victim.name in sentence for sentence in found)


def test_faces_are_aligned(make: Make, folder: Path) -> None:
    for path in sorted(folder.iterdir())[6:]:
        path.unlink()
    data = make(align=True, val_share=0.0, test_share=0.0)
    assert len(data.paths) + len(data.rejected) == 6
    assert len(data.paths) >= 4


def test_verify_counts(make: Make, folder: Path) -> None:
    assert make().verify() == ["There are 40 photos, published: 23,708."]
    (folder / "notes.txt").touch()
    assert make().verify()[1].startswith("1 files are none of the set's; the first: notes.txt (not named")


def test_wrong_options(make: Make, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"no folder .*UTKFaces'. Did you mean '{folder}'\?"):
        make(folder.with_name("UTKFaces"))
    with pytest.raises(ValueError, match=r"together below 1, found 0.5 and 0.5"):
        make(val_share=0.5, test_share=0.5)
    with pytest.raises(TypeError, match="val_identities"):
        make(val_identities=2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds 0 usable photos, expected two or more, named as"):
        _ = make(tmp_path / "empty").photos


def test_its_licence_is_stated() -> None:
    assert "Non-commercial research only" in UTKFaceDataModule.licence
