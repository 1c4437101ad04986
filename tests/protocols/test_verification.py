from pathlib import Path

import pytest
from PIL import Image

from idface.protocols.verification import main, verify_on_lfw
from idface.recognition import orl
from idface.recognition.dlib_resnet import DlibResNet

PAIRS = """2\t2
Ann_A\t1\t2
Bob_B\t1\t2
Ann_A\t1\tBob_B\t2
Cid_C\t2\tBob_B\t1
Cid_C\t1\t2
Ann_A\t2\t1
Cid_C\t1\tAnn_A\t2
Bob_B\t2\tAnn_A\t1
"""


@pytest.fixture
def lfw(tmp_path: Path) -> Path:
    """Three people with two photos each in LFW's layout, and pairs in its format."""
    photos = orl.photos()
    for person, name in enumerate(("Ann_A", "Bob_B", "Cid_C")):
        folder = tmp_path / "lfw-deepfunneled" / name
        folder.mkdir(parents=True)
        for number in (1, 2):
            Image.fromarray(photos[10 * person + number]).save(folder / f"{name}_{number:04d}.jpg", quality=95)
    (tmp_path / "pairs.txt").write_text(PAIRS)
    return tmp_path


def test_photos_are_detected_aligned_and_compared(lfw: Path) -> None:
    result, missed = verify_on_lfw(DlibResNet(), lfw)
    assert missed == 0
    assert (result.pairs, result.same_pairs) == (8, 4)
    assert (result.auc, result.accuracy) == (1, 1)


def test_pairs_of_people_who_are_excluded_are_left_out(lfw: Path) -> None:
    (lfw / "known.txt").write_text("# trained on\ncid c\n")
    result, _ = verify_on_lfw(DlibResNet(), lfw, exclude=lfw / "known.txt")
    assert (result.pairs, result.same_pairs) == (5, 3)


def test_the_command(lfw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["dlib", "--lfw", str(lfw)])
    said = capsys.readouterr().out
    assert "on 8 pairs of LFW, 0 photos without a detected face" in said
    assert "AUC 1.00000" in said
