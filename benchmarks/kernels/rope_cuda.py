"""Rope in CUDA C++ (modeling/kernels/rope/rope.cu): built, loaded, and called as the Triton operator is.

    pip install nvidia-cuda-nvcc nvidia-cuda-runtime nvidia-cuda-cccl nvidia-cuda-crt   # where there is no CUDA toolkit
    python -m benchmarks.kernels.rope_cuda

The library is for compute capabilities 8.0, 9.0 and 10.0 and every PyTorch from 2.11 on, with CUDA or without. The
model takes the Triton kernel; this one is to replace it where `make gpu` measures that it is faster. Not yet run on a
GPU.
"""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch
from torch.utils.cpp_extension import CUDA_HOME, include_paths

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "modeling" / "kernels" / "rope" / "rope.cu"
LIBRARY = ROOT / "build" / "rope_cuda.so"
CAPABILITIES = (80, 90, 100)
# The oldest PyTorch whose stable ABI it uses: 2.11.
STABLE_ABI = "0x020b000000000000"


def toolkit() -> Path | None:
    """Return the folder of a CUDA toolkit with a compiler: CUDA_HOME, one on the PATH, or NVIDIA's wheels."""
    wheels = sorted((Path(sysconfig.get_paths()["purelib"]) / "nvidia").glob("cu*"), reverse=True)
    on_path = shutil.which("nvcc")
    places = [*([Path(CUDA_HOME)] if CUDA_HOME else []), *([Path(on_path).parents[1]] if on_path else []), *wheels]
    return next((place for place in places if (place / "bin" / "nvcc").is_file()), None)


def build(library: Path = LIBRARY) -> None:
    """Compile the library.

    Raises:
        FileNotFoundError: there is no nvcc.
        subprocess.CalledProcessError: it failed; its output is on the terminal.
    """
    cuda = toolkit()
    if cuda is None:
        raise FileNotFoundError("no nvcc in CUDA_HOME, on the PATH, or from the wheel nvidia-cuda-nvcc")
    library.parent.mkdir(parents=True, exist_ok=True)
    targets = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in CAPABILITIES]
    includes = [f"-I{path}" for path in (*include_paths(), cuda / "include")]
    # Every build of PyTorch has libtorch_cpu, and the stable ABI in it; the loader finds the one that is in memory.
    folders = [
        folder for folder in (Path(torch.__file__).parent / "lib", cuda / "lib64", cuda / "lib") if folder.is_dir()
    ]
    libraries = [*(f"-L{folder}" for folder in folders), "-ltorch_cpu"]
    flags = ["-std=c++20", "-O3", "-shared", "-Xcompiler=-fPIC", "-cudart=static"]
    flags.append(f"-DTORCH_TARGET_VERSION={STABLE_ABI}")
    command = [str(cuda / "bin" / "nvcc"), *flags, *targets, *includes, str(SOURCE), "-o", str(library), *libraries]
    subprocess.run(command, check=True)


class _Assemble(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k_nope, k_rope, cos, sin):
        ctx.save_for_backward(cos, sin)
        batch, heads, positions, columns = q.shape
        outputs = q.new_empty(2, batch, positions, heads, columns).unbind(0)
        torch.ops.seeklet_kernels_cuda.rope_forward(*outputs, q, k_nope, k_rope, cos, sin)
        return tuple(output.transpose(1, 2) for output in outputs)

    @staticmethod
    def backward(ctx, grad_q, grad_k):
        cos, sin = ctx.saved_tensors
        batch, heads, positions, columns = grad_q.shape
        rotated = cos.shape[-1]
        shapes = (heads, columns), (heads, columns - rotated), (1, rotated)
        outputs = [grad_q.new_empty(batch, positions, *shape) for shape in shapes]
        grads = (grad if grad.stride(-1) == 1 else grad.contiguous() for grad in (grad_q, grad_k))
        torch.ops.seeklet_kernels_cuda.rope_backward(*outputs, *grads, cos, sin)
        return *(output.transpose(1, 2) for output in outputs), None, None


def assemble_query_key(
    q: torch.Tensor, k_nope: torch.Tensor, k_rope: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the operator of the same name returns, for bf16 and interleaved pairs; the library must be loaded."""
    if not interleaved:
        raise ValueError("rope.cu turns interleaved pairs only")
    return _Assemble.apply(q, k_nope, k_rope, cos, sin)


if __name__ == "__main__":
    try:
        build()
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    print(f"built: {LIBRARY.relative_to(ROOT)}")
