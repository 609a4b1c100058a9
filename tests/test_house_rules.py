"""The house rules no linter knows: who imports whom, file names, kernel hooks, and what no file may say."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
MODELING = sorted((ROOT / "modeling").rglob("*.py"))
FINETUNE = sorted((ROOT / "finetune").rglob("*.py"))
KERNELS = sorted((ROOT / "modeling" / "kernels").rglob("*.py"))
SHIPPED = [ROOT / "__init__.py", *MODELING, *FINETUNE]
# A file with such a name has no subject: nobody can say what belongs into it.
NAMELESS = {"utils.py", "common.py", "helpers.py", "misc.py", "base.py"}
# Written so that no pattern matches its own line.
PRIVATE = {
    "a path of somebody's machine": r"(?<![\w.:/])/(?:home|root|Users|work|scratch|mnt|opt)/\w",
    "a temporary path of a Unix machine": r"(?<![\w.:/])/(?:var/)?tmp/\w",
    "a path of a Windows machine": r"\b[A-Z]:\\Users\\",
    "a package index": r"pypi\.org|pythonhosted\.org|download\.pytorch\.org|registry\.npmjs",
    "a choice of package index": r"(?:extra[-_])?index[-_]url|find[-]links",
    "a local file as an address": r"\bfile:[/]{2}",
}


def show(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def list_repository_files() -> list[Path]:
    """Return every file that is committed or about to be; outside a git checkout, every file not hidden."""
    if not (ROOT / ".git").exists():
        relative = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
        return [ROOT / path for path in relative if not any(part.startswith(".") for part in path.parts)]
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def list_absolute_imports(path: Path) -> list[tuple[str, str]]:
    """Return (file:line, dotted name) of every absolute import, also those inside functions."""
    found = []
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            found += [(f"{show(path)}:{node.lineno}", alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append((f"{show(path)}:{node.lineno}", node.module or ""))
    return found


def list_relative_imports(path: Path) -> list[tuple[str, int]]:
    """Return (file:line, number of dots) of every relative import: one dot is the folder of the file."""
    nodes = [node for node in ast.walk(parse(path)) if isinstance(node, ast.ImportFrom)]
    return [(f"{show(path)}:{node.lineno}", node.level) for node in nodes if node.level]


def list_declared_modules(*extras: str) -> set[str]:
    """Return the import names of the core dependencies and of these extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [
        *project["dependencies"],
        *(x for extra in extras for x in project["optional-dependencies"][extra]),
    ]
    return set().union(*(_modules_of(Requirement(line).name) for line in lines))


def _modules_of(package: str) -> set[str]:
    try:
        files = metadata.distribution(package).files or []
    except metadata.PackageNotFoundError:
        return set()
    return {file.parts[0].removesuffix(".py") for file in files if file.suffix == ".py"}


def test_imports_are_relative_inside_a_subpackage_and_absolute_across() -> None:
    found = []
    for path in SHIPPED:
        subpackage, *below = path.relative_to(ROOT).parts
        found += [f"{at}: leaves {subpackage}" for at, level in list_relative_imports(path) if level > len(below)]
        own = re.compile(rf"seeklet\.{subpackage}(\.|$)")
        found += [f"{at}: make it relative: {name}" for at, name in list_absolute_imports(path) if own.match(name)]
    assert found == []


def test_kernels_are_a_leaf() -> None:
    """They are published as a package of their own, importing the standard library, torch and triton."""
    allowed = sys.stdlib_module_names | {"torch", "triton"}
    found = []
    for path in KERNELS:
        depth = len(path.relative_to(ROOT / "modeling" / "kernels").parts)
        found += [f"{at}: leaves modeling/kernels" for at, level in list_relative_imports(path) if level > depth]
        found += [f"{at}: {name}" for at, name in list_absolute_imports(path) if name.split(".")[0] not in allowed]
    assert found == []


def test_every_import_is_a_declared_dependency() -> None:
    core = sys.stdlib_module_names | list_declared_modules() | {"seeklet"}
    # triton comes with the CUDA builds of torch, and only kernel files import it.
    allowed = {path: core | {"triton"} for path in KERNELS}
    allowed |= {path: core for path in MODELING if path not in allowed}
    # What is in 4 or 8 bits, imported where that is asked for.
    allowed[ROOT / "modeling" / "blockwise.py"] = core | list_declared_modules("quantization")
    extras = list_declared_modules("train", "demo", "reasoning", "gguf", "quantization")
    allowed |= dict.fromkeys(FINETUNE, core | extras)
    found = [
        f"{at}: {name}"
        for path, names in allowed.items()
        for at, name in list_absolute_imports(path)
        if name.split(".")[0] not in names
    ]
    assert found == []


def test_no_file_without_a_subject() -> None:
    assert [show(path) for path in list_repository_files() if path.name in NAMELESS] == []


def list_code_below(folder: Path, files: Iterable[Path]) -> list[Path]:
    """Return those of the files that lie anywhere below `folder` and hold Python."""
    return [path for path in files if folder in path.parents and path.suffix in {".py", ".pyi", ".ipynb"}]


def test_recipes_hold_no_python(tmp_path: Path) -> None:
    assert list_code_below(ROOT / "recipes", list_repository_files()) == []
    # The list above is empty while there are no recipes, too; what it is to find, it finds.
    code = tmp_path / "recipes" / "deep" / "build.py"
    tree = [code, tmp_path / "recipes" / "sft_nano_sums_cpu.yaml", tmp_path / "modeling" / "model.py"]
    assert list_code_below(tmp_path / "recipes", tree) == [code]


@pytest.mark.parametrize("what", PRIVATE)
def test_no_file_names_a_machine_or_a_package_index(what: str) -> None:
    found = []
    for path in list_repository_files():
        for number, line in enumerate(path.read_bytes().decode("utf-8", errors="ignore").splitlines(), 1):
            if re.search(PRIVATE[what], line):
                found.append(f"{show(path)}:{number}: {line.strip()}")
    assert found == []


def list_values_given(node: ast.AST) -> list[tuple[str | None, ast.expr | None]]:
    """Return (name, value) of what a call's keyword, a function's defaults or an assignment gives."""
    if isinstance(node, ast.keyword):
        return [(node.arg, node.value)]
    if isinstance(node, ast.arguments):
        positional = [*node.posonlyargs, *node.args]
        with_default = positional[len(positional) - len(node.defaults) :]
        pairs = [
            *zip(with_default, node.defaults, strict=True),
            *zip(node.kwonlyargs, node.kw_defaults, strict=True),
        ]
        return [(argument.arg, value) for argument, value in pairs]
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return [(ast.unparse(target), node.value) for target in targets]
    return []


def test_remote_code_is_never_trusted_by_default() -> None:
    found = [
        show(path)
        for path in SHIPPED
        for node in ast.walk(parse(path))
        for name, value in list_values_given(node)
        if name == "trust_remote_code" and isinstance(value, ast.Constant) and value.value is True
    ]
    assert found == []


def test_kernel_hooks_come_from_kernels() -> None:
    """transformers' own copies of the hooks do nothing where it refuses the installed kernels library."""
    hook = "use_kernel_forward_from_hub"
    hooked = []
    for path in MODELING:
        tree = parse(path)
        sources = {
            node.module
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and any(alias.name == hook for alias in node.names)
        }
        assert sources <= {"kernels"}, f"{show(path)}: {hook} from {sources}"
        for node in ast.walk(tree):
            for decorator in node.decorator_list if isinstance(node, ast.ClassDef) else []:
                if hook not in ast.unparse(decorator):
                    continue
                assert isinstance(decorator, ast.Call), f"{show(path)}:{decorator.lineno}: {hook} without a name"
                assert ast.unparse(decorator.func) == hook and sources == {"kernels"}
                [name] = [ast.literal_eval(argument) for argument in decorator.args]
                assert name.startswith("Seeklet"), f"{show(path)}:{decorator.lineno}: {name}"
                hooked.append(name)
    assert hooked, "no layer carries a kernel hook"
    assert len(hooked) == len(set(hooked)), f"one hook name, two layers: {sorted(hooked)}"


def test_experts_implementation_is_found_by_transformers() -> None:
    """transformers looks for this very text in the source; without it the slow experts run, silently."""
    assert "@use_experts_implementation" in (ROOT / "modeling" / "moe.py").read_text(encoding="utf-8")
