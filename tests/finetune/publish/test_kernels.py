"""The kernel repository: loaded by the kernels library alone, in a process that knows nothing of seeklet."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernels import LocalLayerRepository, Mode, get_local_kernel, kernelize, use_kernel_mapping

from seeklet import hub_upload
from seeklet.finetune.publish.kernels import KernelRepositoryError, assemble_kernel_repository
from seeklet.modeling import kernels as in_tree
from seeklet.modeling.kernels.rms_norm.reference import rms_norm
from seeklet.modeling.norm import SeekletRMSNorm

ROOT = Path(__file__).resolve().parents[3]
ALONE = """
import sys
import torch
from pathlib import Path
from kernels import get_local_kernel

kernel = get_local_kernel(Path(sys.argv[1]))
x, weight = torch.randn(3, 8, requires_grad=True), torch.ones(8)
y = kernel.functional.rms_norm(x, weight, 1e-6)
torch.testing.assert_close(y, x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6))
y.square().sum().backward()
assert x.grad.isfinite().all()
assert not any(name.split(".")[0] in ("seeklet", "transformers") for name in sys.modules), "not alone"
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hub") / "seeklet-kernels"
    assemble_kernel_repository(out)
    return out


def test_loads_alone(repository: Path) -> None:
    command = [sys.executable, "-c", ALONE, str(repository)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=repository, timeout=120)
    assert ran.returncode == 0, ran.stderr


def test_loads_beside_seeklet_itself(repository: Path) -> None:
    """Its operators have names of their own."""
    kernel = get_local_kernel(repository)
    assert kernel.__file__.startswith(str(repository))
    x, weight = torch.randn(3, 8), torch.rand(8)
    torch.testing.assert_close(kernel.functional.rms_norm(x, weight, 1e-6), rms_norm(x, weight, 1e-6))
    assert kernel.functional.__all__ == in_tree.functional.__all__


def test_layers_replace_those_of_a_model(repository: Path) -> None:
    norm, x = SeekletRMSNorm(8), torch.randn(3, 8)
    expected = norm(x)
    mapping = {"SeekletRMSNorm": {"cpu": LocalLayerRepository(repository, layer_name="SeekletRMSNorm")}}
    with use_kernel_mapping(mapping, inherit_mapping=False):
        kernelize(norm, mode=Mode.TRAINING | Mode.TORCH_COMPILE, device="cpu", use_fallback=False)
    replaced = vars(norm)["forward"].__func__
    assert replaced.__code__.co_filename == str(repository / "build" / "torch-cpu" / "layers.py")
    torch.testing.assert_close(norm(x), expected)


def test_every_layer_loads(repository: Path) -> None:
    for name in [name for name in vars(in_tree.layers) if name.startswith("Seeklet")]:
        layer = LocalLayerRepository(repository, layer_name=name).load()
        assert layer.__name__ == name


@pytest.mark.parametrize("backend", ["cuda", "cpu"])
def test_a_build_holds_the_package_as_it_is_under_names_of_its_own(repository: Path, backend: str) -> None:
    build = repository / "build" / f"torch-{backend}"
    source = Path(in_tree.__file__).parent
    files = {path.relative_to(source) for path in source.rglob("*.py")}
    assert {path.relative_to(build) for path in build.rglob("*.py")} == files
    changed = [str(file) for file in files if (build / file).read_bytes() != (source / file).read_bytes()]
    assert changed == ["_ops.py"]
    metadata = json.loads((build / "metadata.json").read_text())
    assert metadata["backend"]["type"] == backend
    assert f'OP_NAMESPACE = "{metadata["id"]}"' in (build / "_ops.py").read_text()


def test_the_card_names_every_function_and_layer(repository: Path) -> None:
    card = (repository / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: kernels\nlicense: mit\n")
    for name in (*in_tree.functional.__all__, *(name for name in vars(in_tree.layers) if name.startswith("Seeklet"))):
        assert f"- `{name}`: " in card
    assert "Not yet run on a GPU" in card


def test_writing_again_gives_the_same_and_replaces(repository: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    assemble_kernel_repository(again)
    (again / "build" / "stale.py").touch()
    assemble_kernel_repository(again)
    files, before = (
        {path.relative_to(root) for path in root.rglob("*.*") if path.suffix in {".py", ".json", ".md"}}
        for root in (again, repository)
    )
    assert files == before
    assert all((again / file).read_bytes() == (repository / file).read_bytes() for file in files)
    assert [entry.name for entry in tmp_path.iterdir()] == ["again"]


def test_what_is_somebody_elses_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(KernelRepositoryError, match=r"holds other files \(notes.txt\); give a new folder"):
        assemble_kernel_repository(tmp_path)
    with pytest.raises(KernelRepositoryError, match="is a file"):
        assemble_kernel_repository(tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(("bad", "says"), [({"name": "Seeklet_Kernels"}, "lower-case"), ({"version": 0}, "1 or more")])
def test_names_the_hub_would_refuse(bad: dict, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        assemble_kernel_repository(tmp_path / "new", **bad)


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "hub_upload.py", "kernels", "--out", str(tmp_path / "new")]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "new" / "build" / "torch-cuda" / "metadata.json").is_file()
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["hub_upload.py", "kernels", "--out", str(tmp_path / "file")])
    with pytest.raises(SystemExit) as end:
        hub_upload.main()
    assert end.value.code == 2
    assert capsys.readouterr().err.strip() == f"--out {tmp_path / 'file'} is a file; give a folder"
