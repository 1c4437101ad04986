from pathlib import Path

import pytest
from PIL import Image

from idface.recognition import orl
from idface.recognition.dlib_resnet import DlibResNet
from idface.recognition.lfw import read_pairs, verify_on_lfw

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


def test_pairs_are_read_with_their_folds(lfw: Path) -> None:
    pairs, fold = read_pairs(lfw / "pairs.txt")
    assert pairs[0] == (("Ann_A", 1), ("Ann_A", 2))
    assert pairs[3] == (("Cid_C", 2), ("Bob_B", 1))
    assert fold.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_a_cut_or_broken_list_is_refused(lfw: Path) -> None:
    file = lfw / "pairs.txt"
    file.write_text(PAIRS.replace("Cid_C\t1\t2\n", ""))
    with pytest.raises(ValueError, match="2 folds of twice 2 pairs but holds 7"):
        read_pairs(file)
    file.write_text(PAIRS.replace("Cid_C\t1\t2\n", "Cid_C\t1\n"))
    with pytest.raises(ValueError, match=r"pairs\.txt: expected .*found \['Cid_C', '1'\]"):
        read_pairs(file)


def test_photos_are_detected_aligned_and_compared(lfw: Path) -> None:
    result, missed = verify_on_lfw(DlibResNet(), lfw)
    assert missed == 0
    assert (result.pairs, result.same_pairs) == (8, 4)
    assert (result.auc, result.accuracy) == (1, 1)
