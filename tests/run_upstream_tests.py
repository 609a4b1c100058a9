"""Run transformers' own common model, generation, training, parallelism and pipeline tests on seeklet's classes.

    git clone --depth 1 --branch v5.22.2 https://github.com/huggingface/transformers
    pip install parameterized==0.9.0
    python tests/run_upstream_tests.py transformers

The tests come from the checkout, whose release should be the installed one; what they test is the installed
transformers. The classes under test are set up in tests/upstream_model_tests.py. Further arguments go to pytest, for
example `-k static_cache -x`, or `-rs` to see what transformers skips and why. `--stock` runs the tests of
transformers' own DeepSeek-V3 instead, for comparison. Nothing is downloaded.

Exit code: pytest's, or 2 if the tests cannot be started.
"""

import argparse
import importlib
import importlib.util
import os
import re
import sys
import tempfile
from fnmatch import fnmatchcase
from pathlib import Path
from unittest import mock

import pytest

# "test" or "class::test", a pattern as for file names -> why seeklet does not pass it. It is run all the same, and if
# it passes, or if there is no such test, that is an error: the line has to go.
NOT_PASSED: dict[str, str] = {
    "test_model_weights_reload_no_missing_tied_weights": (
        "loads a file without any of the model's tensors and reads the report; seeklet refuses such a checkpoint"
    ),
    # Skipped on machines with fewer than 4 CPU cores.
    "SeekletMTPModelTest::test_fsdp2_expert_parallel_bf16_grads": (
        "wants every parameter's gradient of a model in evaluation mode; MTP modules take part in training mode only"
    ),
}

MODEL_TESTS = Path(__file__).with_name("upstream_model_tests.py")
STOCK_TESTS = "tests/models/deepseek_v3/test_modeling_deepseek_v3.py"
NEEDED_FILES = (
    "tests/__init__.py",
    "tests/causal_lm_tester.py",
    "tests/generation/test_utils.py",
    "tests/test_expert_parallel_mixin.py",
    "tests/test_modeling_common.py",
    "tests/test_pipeline_mixin.py",
    STOCK_TESTS,
)
NEEDED_PACKAGES = ("parameterized", "pytest_timeout", "seeklet")
# Imported by tests of pipelines that a language model has no part in.
STUBBED_PACKAGES = ("datasets", "httpx")
PYTEST_INI = """[pytest]
timeout = 600
markers =
    all_flash_attn_test
    flash_attn_3_test
    flash_attn_4_test
    flash_attn_test
    generate
    is_expert_parallel_test
    is_fsdp_test
    is_pipeline_test
    is_tensor_parallel_test
    is_training_test
    torch_compile_test
    torch_export_test
"""


class NotPassed:
    """A pytest plugin that expects the tests of a table to fail, and each of its lines to match a test."""

    def __init__(self, table: dict[str, str]):
        self.table = table
        self.unused: list[str] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for pattern, reason in self.table.items():
            matching = [item for item in items if fnmatchcase(item.nodeid, f"*::{pattern}")]
            if not matching:
                self.unused.append(pattern)
            for item in matching:
                item.add_marker(pytest.mark.xfail(reason=reason, strict=True))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for pattern in self.unused:
            terminalreporter.write_line(f"NOT_PASSED names {pattern}, but there is no such test", red=True)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.unused and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def find_obstacle(checkout: Path) -> str | None:
    """Return in one line why the tests cannot be started, or None if they can."""
    for name in NEEDED_FILES:
        if not (checkout / name).is_file():
            return f"{checkout} is not a source checkout of transformers: it has no {name}"
    for package in NEEDED_PACKAGES:
        if importlib.util.find_spec(package) is None:
            return f"the Python package {package} is not installed"
    return None


def find_version(checkout: Path) -> str:
    """Return the release that the checkout is of, or "unknown"."""
    source = checkout / "src" / "transformers" / "__init__.py"
    text = source.read_text(encoding="utf-8") if source.is_file() else ""
    found = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
    return found.group(1) if found else "unknown"


def import_upstream_tests() -> None:
    """Import transformers' test modules, with stubs for packages that only other models' tests need."""
    import transformers

    absent = [name for name in STUBBED_PACKAGES if importlib.util.find_spec(name) is None]
    for name in absent:
        sys.modules[name] = mock.MagicMock()
    try:
        # Else they would import the checkout's own source over the installed one.
        with mock.patch("transformers.utils.direct_transformers_import", lambda path: transformers):
            importlib.import_module("tests.test_pipeline_mixin")
    finally:
        # transformers would take them for the real ones.
        for name in absent:
            del sys.modules[name]


def run(checkout: Path, stock: bool, pytest_args: list[str]) -> int:
    """Return pytest's exit code."""
    # Before transformers is imported: what would reach a hub must fail at once, not wait for a network.
    os.environ["HF_HUB_OFFLINE"] = "1"
    # `tests` is to be the checkout's package, not seeklet's folder, which Python put first.
    sys.path[0] = str(checkout)
    import torch
    import transformers

    torch.set_num_threads(min(2, torch.get_num_threads()))
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    print(f"tests of transformers {find_version(checkout)} on {versions}", flush=True)
    import_upstream_tests()
    with tempfile.TemporaryDirectory() as folder:
        ini = Path(folder) / "pytest.ini"
        ini.write_text(PYTEST_INI, encoding="utf-8")
        tests = checkout / STOCK_TESTS if stock else MODEL_TESTS
        options = ["-c", str(ini), "--rootdir", str(checkout), "--noconftest", "-p", "no:cacheprovider", "-W", "ignore"]
        plugins = [NotPassed({} if stock else NOT_PASSED)]
        return pytest.main([*options, "-q", "-rfEX", str(tests), *pytest_args], plugins)


def main() -> int:
    """Return the exit code of the command line in `sys.argv`."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n", 1)[0], epilog="Further arguments go to pytest."
    )
    parser.add_argument("checkout", metavar="PATH_TO_TRANSFORMERS", type=Path, help="root of a source checkout")
    parser.add_argument("--stock", action="store_true", help="test transformers' own DeepSeek-V3 instead")
    args, pytest_args = parser.parse_known_args()
    obstacle = find_obstacle(args.checkout)
    if obstacle is not None:
        print(f"{Path(__file__).name}: {obstacle}", file=sys.stderr)
        return 2
    return run(args.checkout.resolve(), args.stock, pytest_args)


if __name__ == "__main__":
    sys.exit(main())
