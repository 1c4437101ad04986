"""The bank of generated faces, its table, and `idface bank`."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from idface.cli import main
from idface.latent import bank as bank_module
from idface.latent.bank import MANIFEST, Bank, Statistics, build_bank, fresh_latents
from idface.latent.generators import Generator
from idface.latent.scoring import Scorer, distance_from_mean
from idface.networks.dcgan import DCGANGenerator
from idface.protocols import bank as protocol
from idface.recognition.base import Recognizer


class Projection(Recognizer):
    """A recogniser of one matrix: tells faces of 8x8 pixels apart, whoever is on them."""

    name = "projection"
    embedding_dim = 16
    stage_names = ("raw",)

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        noise = torch.Generator().manual_seed(seed)
        self.weight = torch.nn.Parameter(torch.randn(16, 3 * 8 * 8, generator=noise))
        self.freeze()

    def stages(self, image: Tensor) -> Iterator[tuple[str, Tensor]]:
        yield "raw", image.flatten(1) @ self.weight.T


def generator(seed: int = 0) -> Generator:
    torch.manual_seed(seed)
    network = DCGANGenerator(8, 8, 4)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(10 if parameter.ndim > 1 else 1)  # untrained, all of its faces are nearly the same
    return Generator(network, 8)


@pytest.fixture
def scorer() -> Scorer:
    return Scorer(generator(), Projection(), batch_size=16, precision="float32")


SHARD = 40  # no multiple of the batch


def build(folder: Path, scorer: Scorer, size: int = 150, **options: Any) -> Bank:
    return build_bank(folder, scorer, size, shard_size=SHARD, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def whole(bank: Bank, kind: str) -> Tensor:
    """All embeddings or latents, float32, read without the bank."""
    files = sorted(bank.folder.glob(f"*.{kind}.npy"))
    return torch.from_numpy(np.concatenate([np.load(file) for file in files]).astype(np.float32))


class Stop(Exception):
    pass


def stop_at(limit: int) -> Callable[[int], None]:
    def progress(done: int) -> None:
        if done >= limit:
            raise Stop

    return progress


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("k", [1, 5])
def test_the_nearest_are_those_of_brute_force(
    tmp_path: Path, scorer: Scorer, monkeypatch: pytest.MonkeyPatch, half: bool, k: int
) -> None:
    monkeypatch.setattr(bank_module, "_TARGETS_AT_ONCE", 7)
    bank = build(tmp_path, scorer, half=half)
    photos = F.normalize(torch.randn(20, 3, 16, generator=torch.Generator().manual_seed(1)), dim=-1)
    for targets in (photos[:, 0], photos.mean(1)):  # one photo a person, and the mean of three
        expected = distance_from_mean(whole(bank, "embeddings"), targets[:, None]).sort()
        distances, rows = bank.nearest(targets, k)
        torch.testing.assert_close(distances, expected.values[:, :k], atol=1e-5, rtol=0)
        assert torch.equal(rows, expected.indices[:, :k])
        assert torch.equal(bank.latents(rows), whole(bank, "latents")[rows])
    mean_distances = (whole(bank, "embeddings")[rows][:, :, None] - photos[:, None]).square().sum(-1).mean(-1)
    torch.testing.assert_close(distances, mean_distances, atol=2e-3, rtol=0)  # rounded embeddings are not quite units


def test_embeddings_are_of_the_latents_that_are_stored(tmp_path: Path, scorer: Scorer) -> None:
    for half, tolerance in ((False, 0.0), (True, 5e-4)):
        bank = build(tmp_path / str(half), scorer, half=half)
        assert len(bank) == 150
        latents = bank.latents(torch.arange(150))
        torch.testing.assert_close(scorer.exact(latents), whole(bank, "embeddings"), atol=tolerance + 1e-6, rtol=0)
        assert -1 <= latents.min() < -0.9
        assert latents.unique(dim=0).shape == (150, 8)
        distances, rows = bank.nearest(whole(bank, "embeddings"))
        assert rows.squeeze(1).tolist() == list(range(150))
        torch.testing.assert_close(distances, torch.zeros(150, 1), atol=2e-3, rtol=0)


def test_rows_that_do_not_count(tmp_path: Path, scorer: Scorer) -> None:
    bank = build(tmp_path, scorer)
    targets, own = whole(bank, "embeddings"), torch.arange(150)
    distances, rows = bank.nearest(targets, 2)
    next_best, next_rows = bank.nearest(targets, exclude=own)
    assert torch.equal(next_rows, rows[:, 1:])
    torch.testing.assert_close(next_best, distances[:, 1:])
    assert torch.equal(bank.nearest(targets, exclude=torch.full((150, 2), -1))[1], rows[:, :1])
    assert torch.equal(
        bank.nearest(targets, 3)[1][:, 2:], bank.nearest(targets, exclude=torch.stack([own, rows[:, 1]], 1))[1]
    )


def test_what_cannot_be_asked(tmp_path: Path, scorer: Scorer) -> None:
    bank = build(tmp_path, scorer)
    with pytest.raises(ValueError, match=r"targets are \(2, 15\), expected \(T, 16\)"):
        bank.nearest(torch.zeros(2, 15))
    with pytest.raises(ValueError, match="k is 151, expected between 1 and the bank's 150 faces"):
        bank.nearest(torch.zeros(2, 16), k=151)
    with pytest.raises(ValueError, match=r"exclude is \(3, 1\), expected \(2,\) or \(2, E\)"):
        bank.nearest(torch.zeros(2, 16), exclude=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(IndexError, match="rows are 0 to 150, expected 0 to 149"):
        bank.latents(torch.tensor([0, 150]))
    assert bank.nearest(torch.zeros(0, 16))[1].shape == (0, 1)
    assert bank.latents(torch.zeros(0, 3, dtype=torch.int64)).shape == (0, 3, 8)
    bank.check(generator(), Projection())
    with pytest.raises(ValueError, match=r"is of another generator .* give the checkpoint that it was built with"):
        bank.check(generator(seed=1), Projection())
    with pytest.raises(ValueError, match=r"embedded by another recogniser \(projection .*, this is projection"):
        bank.check(generator(), Projection(seed=1))


@pytest.mark.parametrize("limit", [0, 1, 40, 57, 100, 150])
def test_a_killed_build_goes_on_to_the_same_bytes(tmp_path: Path, scorer: Scorer, limit: int) -> None:
    build(tmp_path / "unbroken", scorer)
    with pytest.raises(Stop):
        build(tmp_path / "killed", scorer, progress=stop_at(limit))
    with pytest.raises(ValueError, match="is not finished: the command that began it goes on from there"):
        Bank(tmp_path / "killed")
    told: list[int] = []
    build(tmp_path / "killed", scorer, progress=told.append)
    assert told[0] == max(0, limit - 1) // SHARD * SHARD  # whole shards are not made again
    assert told[-1] == 150
    assert contents(tmp_path / "killed") == contents(tmp_path / "unbroken")


@pytest.mark.parametrize("after", range(1, 10))
def test_killed_between_two_files(tmp_path: Path, scorer: Scorer, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """In a build of 100 that grows to 150, after each file that it writes, and while the next one is written."""
    build(tmp_path / "unbroken", scorer)
    build(tmp_path / "killed", scorer, 70)
    before = Bank(tmp_path / "killed").nearest(torch.ones(1, 16), 70)
    replace, written = Path.replace, []

    def dying(self: Path, target: Path) -> Path:
        if len(written) == after:
            raise Stop
        written.append(target)
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying)
        if after < 7:  # the second, third and fourth shard's two files, and the manifest
            with pytest.raises(Stop):
                build(tmp_path / "killed", scorer)
            again = Bank(tmp_path / "killed").nearest(torch.ones(1, 16), 70)
            assert all(torch.equal(*pair) for pair in zip(before, again, strict=True))  # usable as it was
    build(tmp_path / "killed", scorer)
    assert contents(tmp_path / "killed") == contents(tmp_path / "unbroken")


def test_it_grows_and_then_rests(tmp_path: Path, scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path / "at once", scorer)
    for size in (3, 40, 41, 130, 150):
        assert len(build(tmp_path / "grown", scorer, size)) == size
    assert contents(tmp_path / "grown") == contents(tmp_path / "at once")
    monkeypatch.setattr(scorer, "embed", None)
    assert len(build(tmp_path / "grown", scorer)) == 150
    with pytest.raises(ValueError, match="holds 150 faces, and a bank only grows: 149 need a folder of theirs"):
        build(tmp_path / "grown", scorer, 149)


def test_a_bank_that_was_made_otherwise_is_refused(tmp_path: Path, scorer: Scorer) -> None:
    build(tmp_path, scorer)
    before = contents(tmp_path)
    for options, named in (
        ({"seed": 1}, "seed was 0, now 1"),
        ({"truncation": 0.5}, "truncation was 1.0, now 0.5"),
        ({"half": True}, "dtype was float32, now float16"),
    ):
        with pytest.raises(ValueError, match=rf"in another way \({named}\): give what it was begun with, or another"):
            build(tmp_path, scorer, 200, **options)
    for other, named in (
        (Scorer(generator(1), Projection(), precision="float32"), "generator was .*, now "),
        (Scorer(generator(), Projection(1), precision="float32"), "recognizer_weights was .*, now "),
        (Scorer(generator(), Projection(), precision="bfloat16"), "precision was float32, now bfloat16"),
    ):
        with pytest.raises(ValueError, match=rf"in another way \({named}"):
            build(tmp_path, other, 200)
    assert contents(tmp_path) == before


def test_seeds_and_truncation(tmp_path: Path, scorer: Scorer) -> None:
    banks = [build(tmp_path / str(i), scorer, **options) for i, options in enumerate([{}, {"seed": 1}])]
    small = build(tmp_path / "small", scorer, truncation=0.5)
    latents = [whole(bank, "latents") for bank in (*banks, small)]
    assert not torch.equal(latents[0], latents[1])
    assert torch.equal(latents[2], latents[0] / 2)
    fresh = fresh_latents(small, scorer.generator, 1000)
    assert 0.49 < fresh.abs().max() <= 0.5
    assert torch.cdist(fresh, latents[2]).min() > 1e-3  # none of the bank's


@pytest.mark.parametrize("options", [{"size": 0}, {"shard_size": 0}, {"truncation": 0.0}, {"truncation": 1.5}], ids=str)
def test_values_out_of_range(tmp_path: Path, scorer: Scorer, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} is .*, expected"):
        build_bank(tmp_path / "bank", scorer, **{"size": 10, **options})
    assert not (tmp_path / "bank").exists()


@pytest.mark.parametrize("kind", ["latents", "embeddings"])
def test_a_damaged_shard_is_named_and_made_again(tmp_path: Path, scorer: Scorer, kind: str) -> None:
    build(tmp_path, scorer)
    before = contents(tmp_path)
    file = tmp_path / f"00001.{kind}.npy"
    for damage in (before[file.name][:-1], b"", before[file.name].replace(b"<f4", b"<f8")):
        file.write_bytes(damage)
        for attempt in (lambda: Bank(tmp_path), lambda: build(tmp_path, scorer)):
            with pytest.raises(ValueError, match=rf"00001.{kind}.npy' is damaged .* delete it, and the command that"):
                attempt()
    file.unlink()
    with pytest.raises(ValueError, match=r"has 0 of the 40 faces that belong into '00001.embeddings.npy'"):
        Bank(tmp_path)
    build(tmp_path, scorer)
    assert contents(tmp_path) == before


def test_a_damaged_manifest_is_named(tmp_path: Path, scorer: Scorer) -> None:
    build(tmp_path, scorer)
    good = json.loads((tmp_path / MANIFEST).read_text())
    for bad in ("{", "[]", "{}", json.dumps({**good, "format": 2}), json.dumps({**good, "more": 1})):
        (tmp_path / MANIFEST).write_text(bad)
        with pytest.raises(ValueError, match=r"bank.json' cannot be read as a bank's manifest"):
            Bank(tmp_path)


def test_folders_that_are_none_of_a_bank(tmp_path: Path, scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="holds 1 other files, file among them"):
        build(tmp_path, scorer)
    with pytest.raises(NotADirectoryError, match="file' is a file"):
        build(tmp_path / "file", scorer)
    monkeypatch.setattr(bank_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match="needs 0 MiB more, and its disk has 0: make room"):
        build(tmp_path / "bank", scorer)


def test_a_generator_that_makes_nothing_is_refused(tmp_path: Path, scorer: Scorer) -> None:
    with torch.no_grad():
        next(scorer.generator.network.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match="40 of 40 faces have an embedding that is not finite"):
        build(tmp_path, scorer)


def test_statistics_are_numpys() -> None:
    values = torch.rand(10, generator=torch.Generator().manual_seed(0))
    numbers = values.double().numpy()
    expected = (10, numbers.mean(), np.median(numbers), np.sqrt(((numbers - numbers.mean()) ** 2).sum() / 9))
    assert Statistics.of(values) == pytest.approx(expected)


class TestCommandLine:
    @pytest.fixture(autouse=True)
    def tiny(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Checkpoints are seeds, and so are recognisers."""
        monkeypatch.setattr(protocol, "load_generator", lambda seed: generator(int(seed)))
        monkeypatch.setattr(protocol, "build_recognizer", lambda seed: Projection(0 if seed == "dlib" else int(seed)))

    def build(self, out: Path, *more: str) -> None:
        main(
            ["bank", "build", "--checkpoint", "0", "--size", "300", "--out", str(out), "--precision", "float32", *more]
        )

    def report(self, bank: Path, *more: str) -> None:
        main(["bank", "report", "--bank", str(bank), "--checkpoint", "0", "--data", "orl", "--targets", "30", *more])

    def refused(self, capsys: pytest.CaptureFixture[str], command: Callable[..., None], *arguments: Any) -> str:
        with pytest.raises(SystemExit) as exit:
            command(*arguments)
        assert exit.value.code == 2
        return capsys.readouterr().err

    def test_the_report_is_what_numpy_makes_of_the_files(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.build(tmp_path / "bank")
        assert "300 faces of 0, embedded by dlib" in capsys.readouterr().out
        self.report(tmp_path / "bank", "--out", str(tmp_path / "report"))
        printed = capsys.readouterr().out
        bank = Bank(tmp_path / "bank")
        targets = Scorer(generator(), Projection()).exact(fresh_latents(bank, generator(), 30)).double().numpy()
        distances = (2 - 2 * targets @ whole(bank, "embeddings").double().numpy().T).min(1)
        with (tmp_path / "report" / "bank_report.csv").open(newline="") as file:
            rows = {(row["kind"], row["measure"]): row for row in csv.DictReader(file)}
        assert len(rows) == 4
        for measure, values in (("squared distance", distances), ("distance", np.sqrt(distances))):
            found = rows["generated", measure]
            assert found["targets"] == "30"
            assert float(found["mean"]) == pytest.approx(values.mean(), abs=1e-5)
            assert float(found["median"]) == pytest.approx(np.median(values), abs=1e-5)
            assert float(found["std"]) == pytest.approx(values.std(ddof=1), abs=1e-5)
            assert f"{values.mean():.4f}" in printed
        written = json.loads((tmp_path / "report" / "bank_report.json").read_text())
        ratio = float(rows["orl", "distance"]["mean"]) / float(rows["generated", "distance"]["mean"])
        assert written["ratio"]["distance"] == pytest.approx(ratio)
        assert written["ratio"]["distance"] > 1.1  # photos are nothing like the noise of an untrained network
        assert written["published"]["distance"]["ratio"] == 1.45
        assert written["bank"]["size"] == 300
        assert f"{ratio:.3f} by distance" in printed

    def test_what_is_of_no_use_is_refused_in_a_sentence(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert "there is no file or folder" in self.refused(capsys, self.report, tmp_path / "bank")
        assert "there is no bank in" in self.refused(capsys, self.report, tmp_path)
        self.build(tmp_path / "bank")
        said = self.refused(capsys, self.build, tmp_path / "bank", "--recognizer", "1")
        assert "idface bank: error: " in said
        assert "recognizer_weights was" in said
        said = self.refused(capsys, self.report, tmp_path / "bank", "--recognizer", "1")
        assert "was embedded by another recogniser" in said
        said = self.refused(capsys, self.report, tmp_path / "bank", "--checkpoint", "1")
        assert "is of another generator" in said
        assert "needs a --root" in self.refused(capsys, self.report, tmp_path / "bank", "--data", "lfw")
        assert "--targets 1: expected 2 or more" in self.refused(
            capsys, self.report, tmp_path / "bank", "--targets", "1"
        )
        assert "Did you mean '--half'" in self.refused(capsys, self.build, tmp_path / "bank", "--halv")

    def test_ctrl_c(self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(self: Scorer, latents: Tensor) -> Tensor:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Scorer, "embed", interrupt)
            with pytest.raises(SystemExit) as exit:
                self.build(tmp_path / "bank")
        assert exit.value.code == 130
        assert "idface bank: interrupted: the same command goes on from there" in capsys.readouterr().err
        assert "is not finished" in self.refused(capsys, self.report, tmp_path / "bank")
        self.build(tmp_path / "bank")
        assert len(Bank(tmp_path / "bank")) == 300
