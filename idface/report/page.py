"""A run's page: one HTML file with its pictures and curves inside, for a browser without a network, or a phone."""

import base64
import csv
import io
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from idface.metrics.identification import wilson_interval
from idface.run import CONFIG, stages

SUMMARY = "summary.json"
"""In a run folder: what training and test told about themselves."""

PAGE = "report.html"

_SETS = {
    "known": "People of the training set, in photos held out of it",
    "unseen": "People never seen in training",
}
_SMOOTHING = 0.03  # of a curve's points, at each side


def write_report(run: Path) -> Path:
    """Write `report.html` into a run folder from what training and test left there.

    Args:
        run: a run folder, with a `config.yaml`; what else is missing (no test yet, say) is left out of the page.

    Returns:
        The page's path.

    Raises:
        FileNotFoundError: `run` is no run folder.
    """
    config = run / CONFIG
    if not config.is_file():
        raise FileNotFoundError(f"'{run}' is no run folder: it has no {CONFIG}. Expected one like runs/quickstart/0")
    summary = json.loads((run / SUMMARY).read_text("utf-8")) if (run / SUMMARY).is_file() else {}
    environment = Environment(
        loader=PackageLoader("idface.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html.j2").render(
        title=f"{run.absolute().parent.name}/{run.name}",
        fit=summary.get("fit"),
        test=summary.get("test"),
        judge=summary.get("test", {}).get("judge"),
        sets=[_evaluation(run, name, summary) for name in _SETS],
        figures=_other_figures(summary),
        grids=_other_grids(run, summary),
        curves=_curves(run),
        config=config.read_text("utf-8"),
    )
    path = run / PAGE
    path.write_text(page, "utf-8")
    return path


def _other_figures(summary: dict[str, Any]) -> dict[str, float]:
    """The test's figures that are not about identity: of generated faces as a whole, or of a classifier."""
    metrics = summary.get("test", {}).get("metrics", {})
    tested = {name.removeprefix("test/"): value for name, value in metrics.items() if name.startswith("test/")}
    return {name: value for name, value in sorted(tested.items()) if not name.startswith(("identity/", "pixels/"))}


def _other_grids(run: Path, summary: dict[str, Any]) -> dict[str, str]:
    """The newest grid of each name but those of `_SETS`."""
    files = [*(run / "samples").glob("test/*-*.png"), *(run / "samples").glob("val/*-*.png")]
    names = sorted({path.stem.rpartition("-")[0] for path in files} - set(_SETS))
    newest = {name: _newest_grid(run, name, summary) for name in names}
    return {name: _embedded(path.read_bytes()) for name, path in newest.items() if path is not None}


def _newest_grid(run: Path, name: str, summary: dict[str, Any]) -> Path | None:
    """The grid of the model that was tested; of the last validation if there was no test yet."""
    step = summary.get("test", {}).get("step")
    wanted = f"test/{name}-*.png" if step is None else f"test/{name}-{step:07d}.png"
    grids = [path for pattern in (wanted, f"val/{name}-*.png") for path in sorted((run / "samples").glob(pattern))[-1:]]
    return grids[0] if grids else None


def _evaluation(run: Path, name: str, summary: dict[str, Any]) -> dict[str, Any]:
    """One set's figures and its newest grid, from the test, or from validation if there was no test yet."""
    prefix = f"test/identity/{name}/"
    metrics = summary.get("test", {}).get("metrics", {})
    figures = {key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)}
    grid = _newest_grid(run, name, summary)
    return {
        "name": name,
        "title": _SETS[name],
        "figures": figures,
        "top1_interval": wilson_interval(figures["top1"], figures["results"]) if figures.get("results") else None,
        "grid": _embedded(grid.read_bytes()) if grid else None,
    }


def _curves(run: Path) -> list[dict[str, str]]:
    """The run's curves as pictures: training losses, validation's identity figures."""
    series = _series(run)
    losses = {name.removeprefix("train/loss/"): points for name, points in series.items() if "train/loss/" in name}
    identity = {
        name.removeprefix("val/identity/"): points
        for name, points in series.items()
        if name.startswith("val/identity/") and name.endswith(("nearer_to_source", "top1"))
    }
    faces = {name.removeprefix("val/faces/"): points for name, points in series.items() if "val/faces/" in name}
    labels = {name.removeprefix("val/labels/"): points for name, points in series.items() if "val/labels/" in name}
    found = {name.removeprefix("train/detection/"): points for name, points in series.items() if "/detection/" in name}
    drawn = (
        ("Training losses, unweighted", losses, True),
        ("Validation: nearer to the identity source, and top-1", identity, False),
        ("Validation: generated faces as a whole", faces, True),
        ("Validation: labels asked for and seen, of generated faces and of real ones", labels, True),
        ("Share of faces of random noise in which a cascade finds a face (cascades_real: of photos)", found, False),
    )
    return [{"title": title, "image": _draw(lines, own_axes)} for title, lines, own_axes in drawn if lines]


def _series(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Every metric of every `fit*/metrics.csv` as (step, value); a resumed run's stages follow each other."""
    series: dict[str, dict[int, float]] = defaultdict(dict)
    for stage in stages(run, "fit"):
        path = stage / "metrics.csv"
        if path.is_file():
            with path.open(newline="") as file:
                for row in csv.DictReader(file):
                    for name, value in row.items():
                        if value and name not in ("step", "epoch"):
                            series[name][int(row["step"])] = float(value)
    return {name: sorted(points.items()) for name, points in sorted(series.items())}


def _draw(lines: dict[str, list[tuple[int, float]]], own_axes: bool) -> str:
    """Curves as an embedded SVG: an axis for each, or all in one."""
    from matplotlib.figure import Figure  # slow to import

    columns = min(len(lines), 3) if own_axes else 1
    rows = -(-len(lines) // columns) if own_axes else 1
    figure = Figure(figsize=(3.2 * columns if own_axes else 7, 2.2 * rows if own_axes else 3), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for index, (name, points) in enumerate(lines.items()):
        ax = axes[index] if own_axes else axes[0]
        steps, values = zip(*points, strict=True)
        width = int(len(values) * _SMOOTHING) if own_axes else 0
        smooth = [_mean(values[max(0, i - width) : i + width + 1]) for i in range(len(values))]
        if width:
            ax.plot(steps, values, color="0.85", linewidth=0.8)
        ax.plot(steps, smooth, linewidth=1.4, label=name, marker="" if len(steps) > 20 else "o", markersize=3)
        if own_axes:
            ax.set_title(name, fontsize=9)
        ax.tick_params(labelsize=7)
    if own_axes:
        for ax in list(axes)[len(lines) :]:
            ax.set_visible(False)
    else:
        axes[0].legend(fontsize=7)
        axes[0].set_ylim(0, 1)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    return _embedded(buffer.getvalue(), "image/svg+xml")


def _mean(values: tuple[float, ...]) -> float:
    return sum(values) / len(values)


def _embedded(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
