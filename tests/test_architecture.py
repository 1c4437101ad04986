"""Holds the arrows between the packages, as the README draws them, by reading every import in the sources."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What each package may import of the project, beside itself: cli -> modules, protocols, app, report -> latent, metrics,
# recognition -> networks, losses. A name stands for everything below it.
FOUNDATION = {
    "idface.files",
    "idface.names",
    "idface.pictures",
    "idface.run",
    "idface.zoo",
}  # helpers that know nothing of models
DATA = {"data_modules.batch"}
BUILDING_BLOCKS = {"idface.networks", "idface.losses"}
TOOLS = {"idface.latent", "idface.metrics", "idface.recognition"}
OBSERVERS = {"idface.loggers", "idface.callbacks", "idface.report"}
MODELS = {"idface.modules", "idface.checkpoints"}
ALLOWED: dict[str, set[str]] = {
    "data_modules": set(),
    "data_modules.prepare": {"idface.recognition", "data_modules"},
    "idface.files": set(),
    "idface.names": set(),
    "idface.pictures": DATA,
    "idface.run": FOUNDATION,
    "idface.zoo": {"idface.names"},
    "idface.errors": FOUNDATION,
    "idface.loggers": FOUNDATION,
    "idface.losses": DATA,
    "idface.networks": DATA,
    "idface.recognition": FOUNDATION | DATA | BUILDING_BLOCKS,
    "idface.metrics": FOUNDATION | DATA | BUILDING_BLOCKS | {"idface.recognition"},
    "idface.latent": FOUNDATION | DATA | BUILDING_BLOCKS | {"idface.recognition", "idface.metrics"},
    "idface.modules": FOUNDATION | DATA | BUILDING_BLOCKS | TOOLS,
    "idface.checkpoints": FOUNDATION | {"idface.modules", "idface.latent"},
    "idface.report": FOUNDATION | DATA | TOOLS,
    "idface.callbacks": FOUNDATION | DATA | TOOLS | OBSERVERS | MODELS,
    "idface.protocols": FOUNDATION
    | BUILDING_BLOCKS
    | TOOLS
    | MODELS
    | {"data_modules", "idface.callbacks.checkpoint", "idface.errors"},
    "idface.app": FOUNDATION | BUILDING_BLOCKS | TOOLS | MODELS | {"data_modules", "idface.protocols"},
    "idface.training": FOUNDATION | OBSERVERS | {"idface.errors"},
    "idface.cli": FOUNDATION
    | {"idface.errors", "idface.training", "idface.protocols", "idface.report", "idface.app", "idface.checkpoints"}
    | {"data_modules.prepare"},
    "idface.__main__": {"idface.cli"},
}


def sources() -> dict[str, Path]:
    """Every module of the project by its import path."""
    found = {}
    for package in ("idface", "data_modules"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


SOURCES = sources()


def imports(path: Path, inside_functions: bool = True) -> Iterator[str]:
    """Import paths that a module names; `from a import b` is `a.b` where that is a module, else `a`."""
    tree = ast.parse(path.read_text("utf-8"))
    nodes = ast.walk(tree) if inside_functions else iter(tree.body)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in SOURCES else str(node.module)


def below(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def package_of(module: str) -> str | None:
    """The longest key of ALLOWED that holds the module."""
    return max((package for package in ALLOWED if below(module, package)), key=len, default=None)


@pytest.mark.parametrize("module", SOURCES)
def test_arrows_point_one_way(module: str) -> None:
    if module in ("idface", "data_modules"):
        assert list(imports(SOURCES[module])) == []
        return
    package = package_of(module)
    assert package, f"{module} has no place in the architecture: add it to ALLOWED and draw it in the README"
    for imported in imports(SOURCES[module]):
        if imported.split(".")[0] in ("idface", "data_modules") and not below(imported, package):
            allowed = any(below(imported, other) for other in ALLOWED[package])
            assert allowed, f"{module} imports {imported}; {package} may import {sorted(ALLOWED[package])}"


def test_no_papers_module_imports_anothers() -> None:
    shared = {"idface.modules", "idface.modules.base"}
    for module, path in SOURCES.items():
        if below(module, "idface.modules") and module not in shared:
            paper = ".".join(module.split(".")[:3])
            for imported in imports(path):
                if below(imported, "idface.modules") and imported not in shared:
                    assert below(imported, paper), f"{module} imports {imported}, another paper's module"


@pytest.mark.parametrize("module", [name for name, path in SOURCES.items() if path.name == "__init__.py"])
def test_packages_import_nothing_heavy(module: str) -> None:
    heavy = {"torch", "torchvision", "lightning", "kornia", "albumentations", "cv2", "wandb", "facenet_pytorch"}
    named = set(imports(SOURCES[module], inside_functions=False))
    assert not {name.split(".")[0] for name in named - {"idface.names"}} & (heavy | {"idface", "data_modules"})


def test_what_the_help_imports_is_light() -> None:
    modules = [name for name in ALLOWED if name in ("idface.cli", "idface.errors", "idface.names", "idface.run")]
    program = f"import sys, {', '.join(modules)}; print('torch' in sys.modules or 'lightning' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_every_package_that_is_imported_is_declared() -> None:
    """What is installed here by chance is not in a fresh clone."""
    pyproject = (ROOT / "pyproject.toml").read_text("utf-8")
    declared = {_normal(name) for name in re.findall(r'^    "([A-Za-z0-9_.-]+)', pyproject, re.MULTILINE)}
    distributions = importlib.metadata.packages_distributions()
    for module, path in SOURCES.items():
        for imported in imports(path):
            top = imported.split(".")[0]
            if top in sys.stdlib_module_names or top in ("idface", "data_modules"):
                continue
            providers = {_normal(name) for name in distributions.get(top, [top])}
            assert providers & declared, f"{module} imports {top}, which pyproject.toml does not name"


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_these_tests_see_a_forbidden_import(tmp_path: Path) -> None:
    """The reader of imports, shown one of each kind."""
    path = tmp_path / "module.py"
    path.write_text("import torch.nn\nfrom idface.modules import ipgan\ndef f():\n    from idface.run import CONFIG\n")
    assert list(imports(path)) == ["torch.nn", "idface.modules.ipgan", "idface.run"]
    assert list(imports(path, inside_functions=False)) == ["torch.nn", "idface.modules.ipgan"]
    assert package_of("data_modules.prepare.align") == "data_modules.prepare"
    assert package_of("idface.unheard_of") is None
