"""What is installed: the wheel is whole, an editable install beats a folder of its name, metadata names what is imported."""

import ast
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import packages_distributions, requires
from pathlib import Path
from zipfile import ZipFile

import lazy_loader
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
BUILT = {"kitchen", "recipes_nb", "setup.py", "settings.ini", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"}
# imported, and not named in settings.ini: who brings it
BROUGHT = {"pyarrow": "datasets", "traitlets": "ipywidgets", "pytest": "whoever runs kitchen.testing's checks under pytest"}


def settings() -> dict[str, str]:
    """settings.ini, as setup.py reads it."""
    parser = ConfigParser(delimiters=["="], interpolation=None)
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(parser["DEFAULT"])


def built(hook: str, clone: Path, target: Path) -> Path:
    """What a hook of the build backend makes of a clone, without a network: a wheel or a source distribution."""
    code = f"import setuptools.build_meta as backend; print(backend.{hook}({str(target)!r}))"
    target.mkdir()
    done = subprocess.run([sys.executable, "-c", code], cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target / done.stdout.splitlines()[-1]


def imported(site: Path, cwd: Path) -> str:
    """Where `import kitchen` ends up in a fresh process whose only site-packages is `site`; the rest of the path as usual.

    It holds the one requirement that the package itself imports at once."""
    shutil.copytree(Path(lazy_loader.__file__).parent, site / "lazy_loader", dirs_exist_ok=True)
    code = f"import site; site.addsitedir({str(site)!r}); import kitchen; print(kitchen.__file__, kitchen.__version__)"
    return subprocess.run([sys.executable, "-ES", "-c", code], cwd=cwd, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """What a build needs, in a folder with the name of the package."""
    folder = tmp_path_factory.mktemp("above") / "kitchen"
    folder.mkdir()
    for name in BUILT:
        source = ROOT / name
        ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        shutil.copytree(source, folder / name, ignore=ignored) if source.is_dir() else shutil.copy(source, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(clone, tmp_path_factory):
    return built("build_wheel", clone, tmp_path_factory.mktemp("made") / "wheel")


def test_an_editable_install_wins_in_the_folder_above_a_clone(clone, tmp_path):
    site = tmp_path / "site"
    ZipFile(built("build_editable", clone, tmp_path / "wheels")).extractall(site)
    for cwd in (clone.parent, clone, tmp_path):
        assert imported(site, cwd).split() == [str(clone / "kitchen" / "__init__.py"), settings()["version"]], cwd


def test_the_wheel_is_whole(wheel, tmp_path):
    ZipFile(wheel).extractall(tmp_path)
    installed = {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "kitchen").rglob("*") if path.is_file()}
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "kitchen").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    recipes = {f"kitchen/recipes_nb/{path.name}" for path in (ROOT / "recipes_nb").glob("*.ipynb")}
    assert installed == wanted | recipes
    assert imported(tmp_path, tmp_path.parent).startswith(str(tmp_path / "kitchen"))


def test_a_wheel_can_be_built_from_the_source_distribution(clone, wheel, tmp_path):
    shutil.unpack_archive(built("build_sdist", clone, tmp_path / "sdist"), tmp_path / "unpacked", filter="data")
    again = built("build_wheel", next((tmp_path / "unpacked").iterdir()), tmp_path / "again")
    assert set(ZipFile(again).namelist()) == set(ZipFile(wheel).namelist())


def test_metadata(wheel):
    with ZipFile(wheel) as opened:
        (name,) = [name for name in opened.namelist() if name.endswith(".dist-info/METADATA")]
        fields = [line.split(": ", 1) for line in opened.read(name).decode().split("\n\n")[0].splitlines()]
    given = {key: [value for found, value in fields if found == key] for key, _ in fields}
    assert given["License-Expression"] == ["Apache-2.0"] and given["License-File"] == ["LICENSE"]
    assert {url.split(",")[0] for url in given["Project-URL"]} == {"Documentation", "Source", "Issues", "Changelog"}
    oldest = int(settings()["min_python"].split(".")[1])
    minors = [int(found) for value in given["Classifier"] for found in re.findall(r"Python :: 3\.(\d+)", value)]
    assert min(minors) == oldest and not [value for value in given["Classifier"] if value.startswith("License")]
    extras = {key.removesuffix("_requirements") for key in settings() if key.endswith("_requirements")}
    assert set(given["Provides-Extra"]) == extras | {"all"}


def third_party() -> dict[str, Path]:
    """Top-level packages that the library's code imports anywhere, each with a module that does."""
    found = {}
    for path in (ROOT / "kitchen").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0]: path for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                found[node.module.split(".")[0]] = path
    return {name: path for name, path in found.items() if name not in sys.stdlib_module_names | {"kitchen"}}


def test_everything_imported_is_required():
    named = {
        canonicalize_name(Requirement(text).name)
        for key, value in settings().items()
        if key == "requirements" or (key.endswith("_requirements") and key not in ("dev_requirements", "docs_requirements"))
        for text in value.split()
    }
    owners = packages_distributions()
    for name, path in third_party().items():
        assert name in owners, f"{path.name} imports {name}, which no installed distribution provides"
        if name in BROUGHT:
            bringer = BROUGHT[name]
            assert " " in bringer or name in {Requirement(text).name for text in requires(bringer) or []}
        else:
            assert named & {canonicalize_name(owner) for owner in owners[name]}, (
                f"{path.name} imports {name}, which settings.ini does not require"
            )


# SDKs that exclude each other or what is pinned, and a cluster; each goes into an environment of its own
EXCLUSIVE = {f"{name}_requirements" for name in ("tinker", "fireworks", "together", "modal", "ray")}


def test_what_is_pinned_satisfies_what_is_required():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines if "==" in line)}
    for key, value in settings().items():
        wanted = value.split() if key.endswith("requirements") and key not in EXCLUSIVE else []
        for requirement in map(Requirement, wanted):
            name = canonicalize_name(requirement.name)
            assert name in pins, f"{key} names {requirement}, and constraints.txt has no line for it"
            assert requirement.specifier.contains(pins[name]), f"{key}: {requirement}, but constraints.txt has {pins[name]}"
