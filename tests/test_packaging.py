"""What is distributed is what is in the tree, at the versions that were tested."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import seeklet

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
# Their versions are set by the build of torch: a CUDA build asks for exact ones, one of triton among them.
OF_TORCH = {"torch", "triton"}
# Every package in these is distributed; recipes/ is data, tests/ and benchmarks/ stay in the repository.
PACKAGE_ROOTS = ("modeling", "finetune")
DATA_ENDS = ("gotmpl", "jinja", "yaml", "json")


def read_constraints() -> dict[str, str]:
    """Return canonical name → version of constraints.txt, whose every line must be one exact pin."""
    pins = {}
    for number, line in enumerate((ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("#"):
            continue
        pin = re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][A-Za-z0-9.]*)", line)
        assert pin, f"constraints.txt:{number}: {line!r} is not name==version"
        name = canonicalize_name(pin[1])
        assert name not in pins, f"constraints.txt:{number}: {name} is there twice"
        pins[name] = pin[2]
    return pins


def list_requirements() -> list[Requirement]:
    """Return what pyproject.toml asks for: core dependencies, then every extra; those made of others add none."""
    extras = PROJECT["optional-dependencies"].values()
    required = [Requirement(line) for lines in (PROJECT["dependencies"], *extras) for line in lines]
    return [each for each in required if canonicalize_name(each.name) != PROJECT["name"]]


def list_package_files() -> list[str]:
    """Return the paths, relative to the root, of every Python file that a user must get."""
    inside = (path for root in PACKAGE_ROOTS for path in (ROOT / root).rglob("*.py"))
    return ["__init__.py", *sorted(path.relative_to(ROOT).as_posix() for path in inside)]


def test_package_list_is_the_tree() -> None:
    in_tree = {Path(file).parent for file in list_package_files()}
    names = {".".join(("seeklet", *folder.parts)) for folder in in_tree}
    # The command line a second time, under a name that can be imported without the models.
    names.add("seeklet_cli")
    assert sorted(names) == sorted(PYPROJECT["tool"]["setuptools"]["packages"])
    for folder in in_tree:
        assert (ROOT / folder / "__init__.py").is_file(), f"{folder} has Python files but no __init__.py"


def test_wheel_holds_every_package_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    # From a copy, because setuptools builds inside the source folder and reuses what it finds in build/.
    for name in ("pyproject.toml", "__init__.py", "py.typed", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, source)
    for name in PACKAGE_ROOTS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    built = subprocess.run(
        [*command, "--wheel-dir", str(tmp_path), str(source)], capture_output=True, text=True, timeout=120
    )
    assert built.returncode == 0, built.stdout + built.stderr
    [wheel] = tmp_path.glob("*.whl")
    assert wheel.name == f"seeklet-{seeklet.__version__}-py3-none-any.whl"

    data = [path for root in PACKAGE_ROOTS for end in DATA_ENDS for path in (ROOT / root).rglob(f"*.{end}")]
    wanted = {f"seeklet/{file}" for file in list_package_files()} | {"seeklet/py.typed"}
    wanted |= {f"seeklet/{path.relative_to(ROOT).as_posix()}" for path in data}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("seeklet/")}
    assert held == wanted


def test_version_is_stated_once_and_the_same_everywhere() -> None:
    assert PROJECT["version"] == seeklet.__version__
    assert f"## [{seeklet.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_root_init_is_safe_to_import_twice() -> None:
    """pytest imports it a second time, as a plain module, where a relative import fails."""
    docstring, *statements = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8")).body
    assert isinstance(docstring, ast.Expr) and isinstance(docstring.value, ast.Constant)
    for statement in statements:
        if isinstance(statement, ast.ImportFrom):
            assert statement.level == 0, f"__init__.py:{statement.lineno}: relative import"
        elif isinstance(statement, ast.Assign):
            assert [ast.unparse(target) for target in statement.targets] in (["__version__"], ["__all__"])
        else:
            assert isinstance(statement, ast.Import), f"__init__.py:{statement.lineno}: work at import"


def test_every_requirement_is_pinned_within_its_range() -> None:
    pins = read_constraints()
    for requirement in list_requirements():
        if requirement.name in OF_TORCH - {"torch"}:
            continue
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} of pyproject.toml is not pinned in constraints.txt"
        assert requirement.specifier.contains(Version(pin)), f"{requirement} does not allow the tested {pin}"


def test_checkers_are_pinned_exactly() -> None:
    for line in PROJECT["optional-dependencies"]["dev"]:
        [specifier] = Requirement(line).specifier
        assert specifier.operator == "==", f"{line}: another release is another set of rules"


def test_what_requirements_require_is_pinned_too() -> None:
    pins = read_constraints()
    todo = list_requirements()
    seen = set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        key = (name, frozenset(requirement.extras))
        if key in seen or name in OF_TORCH:
            continue
        seen.add(key)
        assert name in pins, f"{name} is installed with seeklet but not pinned in constraints.txt"
        for line in requires_if_installed(name):
            inner = Requirement(line)
            wanted = inner.marker is None or any(
                inner.marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras)
            )
            if wanted:
                todo.append(inner)
    assert len(seen) > len(PROJECT["dependencies"])


def requires_if_installed(name: str) -> list[str]:
    """Return what a package requires; nothing is known of those that only `make company` installs."""
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []


@pytest.mark.parametrize("name", ["torch", "transformers", "kernels"])
def test_the_stack_under_test_is_inside_the_ranges(name: str) -> None:
    [requirement] = [Requirement(line) for line in PROJECT["dependencies"] if Requirement(line).name == name]
    assert requirement.specifier.contains(metadata.version(name)), f"{name} {metadata.version(name)}"
