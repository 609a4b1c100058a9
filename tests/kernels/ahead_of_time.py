"""What the compiler makes of a kernel for GPUs that are not here: registers, memory, instructions; gates and a table.

The same source gives the same code: a row of the table is of one source, by its hash, and stands for it until that
changes. To renew the table of one operator or of all, after a look at what changed:

    python -m tests.kernels.ahead_of_time rms_norm swiglu
    python -m tests.kernels.ahead_of_time
"""

import argparse
import hashlib
import importlib
import json
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from seeklet.modeling import kernels
from seeklet.modeling.kernels.launch import Configuration

TABLES = Path(__file__).parent / "compiled"
OPERATORS = Path(kernels.__file__).parent
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# Bytes a block may take of a multiprocessor's shared memory: CUDA C++ programming guide, technical specifications. What
# is for sm_80, which has 163 KiB, is launched on chips with less, too: `launch.LITTLE_SHARED_MEMORY`.
SHARED_LIMIT = {80: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}
# mma.sync; wgmma of 16-bit and of 8-bit floats; tcgen05.mma. One UTC instruction stands for a whole tile.
TENSOR_CORES = re.compile(r"\b(HMMA|IMMA|QMMA|HGMMA|QGMMA|IGMMA|UTC[HQO]MMA)\b")
# Those of them that Hopper and Blackwell are fast by: of four warps, or of a whole tile.
OF_WARP_GROUPS = re.compile(r"\b(HGMMA|QGMMA|IGMMA|UTC[HQO]MMA)\b")
# Changes to memory in the order in which programs come: sums of floats, also as loops of compare-and-swap. Sums of
# integers are the same in any order.
FLOAT_ATOMICS = re.compile(r"\b(?:atom|red)\.[\w.:]*\b(?:cas|exch|b?f16|b?f16x2|f32|f64)\b")
LOCAL_MEMORY = re.compile(r"\b(LDL|STL)\b")
MORE_REGISTERS = 1.1


class Compiled(NamedTuple):
    """What one kernel needs on one chip.

    Attributes:
        registers: of a thread.
        stack: bytes of a thread.
        spills: instructions that read or write memory local to a thread.
        shared: bytes of a block.
        tensor_cores: matrix instructions.
        float_atomics: instructions whose result depends on which program comes first.
        of_warp_groups: those matrix instructions that are not a single warp's.
    """

    registers: int
    stack: int
    spills: int
    shared: int
    tensor_cores: int
    float_atomics: int = 0
    of_warp_groups: int = 0


def operators_with_kernels() -> list[str]:
    """Return the names of the operators that have a `kernel.py`."""
    return sorted(path.parent.name for path in OPERATORS.glob("*/kernel.py"))


def configurations(operator: str) -> list[Configuration]:
    """Return what an operator says it launches; names are unique."""
    found = importlib.import_module(f"seeklet.modeling.kernels.{operator}.kernel").configurations()
    names = [each.name for each in found]
    assert found and len(set(names)) == len(names), f"{operator}: {names}"
    return found


def _attributes(configuration: Configuration) -> dict[tuple[int, ...], list[list[Any]]]:
    names = configuration.function.arg_names
    pointers = [name for name, kind in configuration.signature.items() if kind.startswith("*")]
    return {(names.index(name),): [["tt.divisibility", 16]] for name in (*pointers, *configuration.aligned)}


def _options(configuration: Configuration) -> dict[str, Any]:
    # Fused multiply-add is the default at launches, with a warning that another will be.
    warps, stages = configuration.num_warps, configuration.num_stages
    return {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}


def hash_source(configuration: Configuration) -> str:
    """Return a hash of all that compiling starts from but triton itself: the code, and how it is called."""
    called = (configuration.signature, configuration.constants, configuration.aligned, _options(configuration))
    return hashlib.sha256(f"{configuration.function.cache_key}{called}".encode()).hexdigest()[:16]


def build(configuration: Configuration, capability: int) -> Any:
    """Return the kernel compiled by triton for `sm_<capability>`; no GPU is needed."""
    names = configuration.function.arg_names
    given = configuration.signature.keys() | configuration.constants.keys()
    assert given == set(names), f"{configuration.name}: {given ^ set(names)} given or taken, not both"
    source = ASTSource(
        fn=configuration.function,
        signature={name: configuration.signature.get(name, "constexpr") for name in names},
        constexprs=configuration.constants,
        attrs=_attributes(configuration),
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=_options(configuration))


def _disassemble(cubin: bytes, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(TOOLS / "cuobjdump"), option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def compile_kernel(configuration: Configuration, capability: int) -> Compiled:
    """Return what the kernel needs on `sm_<capability>`."""
    kernel = build(configuration, capability)
    usage = _disassemble(kernel.asm["cubin"], "--dump-resource-usage")
    numbers = {name: int(number) for name, number in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    code = _disassemble(kernel.asm["cubin"], "-sass")
    return Compiled(
        registers=numbers["REG"],
        stack=numbers["STACK"] + numbers["LOCAL"],
        spills=len(LOCAL_MEMORY.findall(code)),
        shared=kernel.metadata.shared,
        tensor_cores=len(TENSOR_CORES.findall(code)),
        float_atomics=len(FLOAT_ATOMICS.findall(kernel.asm["ptx"])),
        of_warp_groups=len(OF_WARP_GROUPS.findall(code)),
    )


def failed_gates(configuration: Configuration, capability: int, compiled: Compiled) -> list[str]:
    """Return what no kernel may do: one line each, none where all is well."""
    failed = []
    if compiled.stack or compiled.spills:
        failed.append(f"spills registers: {compiled.stack} bytes of stack, {compiled.spills} instructions")
    if compiled.shared > SHARED_LIMIT[capability]:
        failed.append(f"takes {compiled.shared} bytes of shared memory; there are {SHARED_LIMIT[capability]}")
    if configuration.tensor_cores and not compiled.tensor_cores:
        failed.append("has no matrix instructions")
    # 64 rows are the least that they take.
    wide = capability >= 90 and configuration.constants.get("BLOCK_M", 0) >= 64
    if configuration.tensor_cores and compiled.tensor_cores and wide and not compiled.of_warp_groups:
        failed.append("multiplies large tiles warp by warp")
    if compiled.float_atomics:
        failed.append(f"adds up floats in the order they come: {compiled.float_atomics} atomic instructions")
    return failed


def regressions(compiled: Compiled, before: Compiled) -> list[str]:
    """Return in what the kernel got worse than the table says."""
    worse = []
    if compiled.registers > MORE_REGISTERS * before.registers:
        worse.append(f"{compiled.registers} registers, {before.registers} before")
    if compiled.shared > before.shared:
        worse.append(f"{compiled.shared} bytes of shared memory, {before.shared} before")
    if compiled.tensor_cores < before.tensor_cores:
        worse.append(f"{compiled.tensor_cores} matrix instructions, {before.tensor_cores} before")
    return worse


def read_table(operator: str) -> dict[str, Any]:
    """Return the stored table: the version of triton, and each kernel's source and numbers by `name/sm_90`."""
    return json.loads((TABLES / f"{operator}.json").read_text(encoding="utf-8"))


def write_table(operator: str) -> list[str]:
    """Compile all of an operator for all chips and store the table; return what is against the gates."""
    table, failed = {}, []
    for configuration in configurations(operator):
        for capability in configuration.capabilities:
            key = f"{configuration.name}/sm_{capability}"
            compiled = compile_kernel(configuration, capability)
            failed += [f"{operator}/{key}: {line}" for line in failed_gates(configuration, capability, compiled)]
            table[key] = {"source": hash_source(configuration), **compiled._asdict()}
            print(f"{operator}/{key}: {compiled}")
    TABLES.mkdir(exist_ok=True)
    lines = ",\n".join(f"    {json.dumps(key)}: {json.dumps(row)}" for key, row in sorted(table.items()))
    text = f'{{\n  "triton": {json.dumps(triton.__version__)},\n  "kernels": {{\n{lines}\n  }}\n}}\n'
    (TABLES / f"{operator}.json").write_text(text, encoding="utf-8")
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Renew tables; exit code 1 where a kernel is against the gates."""
    parser = argparse.ArgumentParser(description="Compile kernels and renew the tables in tests/kernels/compiled.")
    known = operators_with_kernels()
    parser.add_argument("operators", nargs="*", metavar="OPERATOR", help=f"of {', '.join(known)}; all by default")
    chosen = parser.parse_args(arguments).operators or known
    unknown = set(chosen) - set(known)
    if unknown:
        parser.error(f"no kernels in {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    failed = [line for operator in chosen for line in write_table(operator)]
    print(*failed, sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
