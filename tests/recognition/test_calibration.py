from pathlib import Path

import numpy as np
import pytest
import torch

from idface.recognition import calibration, orl
from idface.recognition.base import distance
from idface.recognition.build import build_recognizer
from idface.recognition.calibration import Verification, calibrate, stored_calibration, verify
from idface.recognition.dlib_resnet import DlibResNet

RNG = np.random.default_rng(0)


def overlapping(same_pairs: int = 300, different_pairs: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    distances = np.concatenate([RNG.normal(1, 0.5, same_pairs), RNG.normal(2, 0.4, different_pairs)]).round(2)  # ties
    return distances, np.arange(len(distances)) < same_pairs


def test_auc_is_the_share_of_pairs_in_the_right_order() -> None:
    distances, same = overlapping()
    near, far = distances[same][:, None], distances[~same]
    assert verify(distances, same).auc == pytest.approx(((near < far) + 0.5 * (near == far)).mean(), abs=1e-12)


def test_thresholds_do_what_they_say() -> None:
    distances, same = overlapping(3000, 20000)
    near, far = distances[same], distances[~same]
    result = verify(distances, same)

    assert (far < result.far_1e3_threshold).mean() <= 1e-3
    assert (far <= result.far_1e3_threshold).mean() > 1e-3  # no higher one would do
    assert result.far_1e3_recall == (near < result.far_1e3_threshold).mean()

    accepted, refused = (far < result.equal_error_threshold).mean(), (near >= result.equal_error_threshold).mean()
    assert accepted == pytest.approx(refused, abs=0.01)
    assert result.equal_error_rate == pytest.approx((accepted + refused) / 2)

    def accuracy(threshold: float) -> float:
        return float((near < threshold).mean() + (far >= threshold).mean()) / 2

    assert accuracy(result.best_threshold) == pytest.approx(max(accuracy(t) for t in np.arange(-1, 4, 0.005)))
    assert result.accuracy == pytest.approx(accuracy(result.best_threshold), abs=0.01)
    assert result.same_percentiles["50"] == pytest.approx(np.median(near))
    assert result.different_percentiles["5"] == pytest.approx(np.percentile(far, 5))


def test_each_fold_is_judged_by_the_others() -> None:
    # Fold 1 lies a unit higher: the threshold of fold 0 calls all its pairs different, and the other way round.
    distances = np.array([0.0, 0.2, 1.0, 1.2])
    same, fold = np.array([True, False, True, False]), np.array([0, 0, 1, 1])
    assert verify(distances, same, fold).accuracy == 0.5


def test_parted_distances_are_told_apart_without_error() -> None:
    result = verify(np.array([0.1] * 10 + [0.9] * 10), np.arange(20) < 10)
    assert (result.auc, result.accuracy, result.equal_error_rate) == (1, 1, 0)
    assert result.best_threshold == pytest.approx(0.5)


def test_unusable_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="1 of 20 distances are not finite"):
        verify(np.array([np.nan] + [1.0] * 19), np.arange(20) < 10)
    with pytest.raises(ValueError, match="pairs of one person and pairs of two"):
        verify(np.arange(20.0), np.ones(20, bool))


def test_distance_is_two_minus_twice_the_cosine() -> None:
    a, b = torch.nn.functional.normalize(torch.randn(2, 4, 128), dim=-1)
    torch.testing.assert_close(distance(a, b), 2 - 2 * (a * b).sum(1))
    assert distance(a[:, None], b).shape == (4, 4)


def test_dlibs_thresholds_are_stored_and_hold_on_orl() -> None:
    recognizer = DlibResNet()
    thresholds = recognizer.thresholds
    assert (thresholds.pairs, thresholds.same_pairs) == (79_800, 1_800)
    assert recognizer.calibration.raw.auc > 0.9999

    photos, points = orl.photos()[:60], orl.landmarks()[:60]
    faces = np.stack([orl.warp_face(photo, point, 150) for photo, point in zip(photos, points, strict=True)])
    measured = calibrate(recognizer, faces, orl.identities()[:60], "six people")
    assert measured.data == "all 1,770 pairs of six people"
    assert measured.fingerprint == recognizer.calibration.fingerprint
    assert measured.unit.same_percentiles["50"] == pytest.approx(thresholds.same_percentiles["50"], rel=0.3)
    assert measured.unit.auc > 0.999
    assert measured.raw.equal_error_threshold < 0.6  # dlib's own threshold


def test_unknown_weights_have_no_thresholds_until_they_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recognizer = DlibResNet()
    known = recognizer.calibration
    other = DlibResNet()
    with torch.no_grad():
        other.head.weight *= 2
    with pytest.raises(LookupError, match=f"dlib with weights {other.fingerprint()}"):
        other.thresholds  # noqa: B018
    other.calibration = known
    assert other.thresholds == known.unit

    monkeypatch.setattr(calibration, "STORE", tmp_path / "calibration.json")
    (tmp_path / "calibration.json").write_text("[]")
    known.save()
    known.save()  # in place of the first
    assert stored_calibration("dlib", recognizer.fingerprint()) == known
    assert isinstance(known.unit, Verification)
    assert (tmp_path / "calibration.json").read_text().count('"recognizer"') == 1


def test_recognisers_are_built_by_name() -> None:
    assert isinstance(build_recognizer("dlib"), DlibResNet)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        build_recognizer("mobilefacenet:nowhere.pth")
    for name in ("dlib:other", "arcface", "mobilefacenet", "facenet:imagenet"):
        with pytest.raises(ValueError, match=f"no recogniser '{name}'.*mobilefacenet:FILE"):
            build_recognizer(name)


def test_a_distance_stands_between_the_percentiles_that_are_kept() -> None:
    distances, same = overlapping(3000, 20000)
    result = verify(distances, same)
    near, far = distances[same], distances[~same]
    for value in (0.6, 1.1, 1.7, 2.3):
        wanted = 100 * (near < value).mean(), 100 * (far < value).mean()
        assert result.standing(value) == pytest.approx(wanted, abs=6)
    assert result.standing(-9) == (0, 0)
    assert result.standing(9) == (100, 100)
    assert result.standing(result.same_percentiles["75"])[0] == 75


def test_photos_from_anywhere_are_compared_with_where_that_was_measured() -> None:
    recognizer = DlibResNet()
    assert recognizer.everyday is not None
    assert "LFW" in recognizer.everyday.data
    assert "ORL" in recognizer.calibration.data
    assert recognizer.everyday.unit.best_threshold > recognizer.calibration.unit.best_threshold
    other = DlibResNet()
    other.head.weight.data.mul_(2)
    assert other.everyday is None  # nothing is known of these weights
