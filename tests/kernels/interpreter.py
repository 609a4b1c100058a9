"""Triton kernels on CPU tensors: triton's interpreter, corrected where it is silently wrong or more exact than a GPU.

Inside `interpreted()` every launch of a `@triton.jit` function is interpreted, wherever it stands, and the operators of
`seeklet.modeling.kernels` take their kernels for CPU tensors too. Kernel files know nothing of it, no environment
variable is needed, and outside of it the same functions can be compiled ahead of time.

Corrected against triton 3.9.0:
- arithmetic, comparisons and matrix products in bf16 and fp8, which it does on the bare bits;
- casts between floats, and between integers and bf16, which it truncates or mistakes for integers;
- fp32 matrix products in tf32, triton's default on a GPU, are rounded to it: ask for `input_precision="ieee"`;
- sums and scans in bf16 or fp8 raise: cast to fp32 first;
- an address outside of the tensors given to the kernel raises;
- `@triton.autotune` takes its first configuration.
"""

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITCallable, JITFunction

from seeklet.modeling.kernels import launch

TORCH: dict[Any, torch.dtype] = {
    tl.bfloat16: torch.bfloat16,
    tl.float8e4nv: torch.float8_e4m3fn,
    tl.float8e5: torch.float8_e5m2,
    tl.float16: torch.float16,
    tl.float32: torch.float32,
    tl.float64: torch.float64,
}
# The interpreter holds these as unsigned integers of their bits.
AS_BITS = (tl.bfloat16, tl.float8e4nv, tl.float8e5)
UNSIGNED: dict[int, Any] = {1: numpy.uint8, 2: numpy.uint16, 4: numpy.uint32, 8: numpy.uint64}
SIGNED = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
FLOAT_OPERATIONS = [
    *("fadd", "fsub", "fmul", "fdiv", "frem", "fneg", "precise_divf", "approx_divf", "fma", "clampf"),
    *("minimumf", "maximumf", "minnumf", "maxnumf"),
    *(f"fcmp{order}{relation}" for order in "OU" for relation in ("LT", "GT", "LE", "GE", "EQ", "NE")),
    *("exp", "exp2", "log", "log2", "sqrt", "precise_sqrt", "rsqrt", "sin", "cos", "erf", "floor", "ceil"),
]


def _to_torch(data: numpy.ndarray, dtype: Any) -> torch.Tensor:
    # By way of bits: numpy has neither bf16 nor fp8.
    size = TORCH[dtype].itemsize
    bits = numpy.array(data, copy=True, order="C").view(f"i{size}")
    return torch.from_numpy(bits).view(TORCH[dtype])


def _to_numpy(tensor: torch.Tensor, dtype: Any) -> numpy.ndarray:
    size = tensor.element_size()
    bits = tensor.contiguous().view(SIGNED[size]).numpy()
    return bits.view(UNSIGNED[size]) if dtype in AS_BITS else bits.view(f"f{size}")


def convert_float(data: numpy.ndarray, source: Any, target: Any, rounding: Any = None) -> numpy.ndarray:
    """Return the bits of `data` cast as a GPU casts: to nearest even, fp8 saturating."""
    if source not in TORCH or target not in TORCH:
        raise NotImplementedError(f"cast from {source} to {target}")
    wide = _to_torch(data, source).to(torch.float64)
    if target in (tl.float8e4nv, tl.float8e5):
        largest = torch.finfo(TORCH[target]).max
        wide = wide.clamp(-largest, largest)
    # By way of fp32, which every float but fp64 fits in, so that nothing is rounded twice.
    narrow = wide.to(TORCH[target]) if source == tl.float64 else wide.to(torch.float32).to(TORCH[target])
    return _to_numpy(narrow, target).view(UNSIGNED[narrow.element_size()]).reshape(data.shape)


def _round_to_tf32(data: numpy.ndarray) -> numpy.ndarray:
    """Return fp32 numbers to 10 bits after the point, half to even; infinity and NaN as they are."""
    bits = numpy.ascontiguousarray(data).view(numpy.uint32)
    rounded = (bits + numpy.uint32(0xFFF) + ((bits >> numpy.uint32(13)) & numpy.uint32(1))) & numpy.uint32(0xFFFFE000)
    return numpy.where(numpy.isfinite(data), rounded.view(numpy.float32), data)


def _widen(handle: Any) -> Any:
    dtype = handle.dtype.scalar
    return interpreter.TensorHandle(_to_torch(handle.data, dtype).float().numpy(), tl.float32)


def _is_bits(handle: Any) -> bool:
    if not isinstance(handle, interpreter.TensorHandle) or handle.dtype.scalar not in AS_BITS:
        return False
    return handle.data.dtype != numpy.bool_


def _in_fp32(name: str) -> Any:
    plain = getattr(interpreter.InterpreterBuilder, f"create_{name}")

    def create(self, *handles, **options):
        narrow = next((handle.dtype.scalar for handle in handles if _is_bits(handle)), None)
        if narrow is None:
            return plain(self, *handles, **options)
        result = plain(self, *(_widen(handle) if _is_bits(handle) else handle for handle in handles), **options)
        if result.data.dtype == numpy.bool_:
            return interpreter.TensorHandle(result.data, tl.int1)
        return interpreter.TensorHandle(convert_float(result.data, tl.float32, narrow), narrow)

    return create


class Builder(interpreter.InterpreterBuilder):
    """The interpreter's operations, corrected.

    Attributes:
        memory: starts and ends of the address ranges that the running kernel was given.
        launched: launches by kernel.
    """

    memory: tuple[numpy.ndarray, numpy.ndarray]
    launched: Counter[str]

    def cast_impl(self, src, dst_type):
        """Return `src` cast between floats, or between a float and an integer."""
        source, target = src.dtype.scalar, dst_type.scalar
        if source in TORCH and target in TORCH:
            data = convert_float(src.data, source, target).view(interpreter._get_np_dtype(target))
            return interpreter.TensorHandle(data, target)
        if target in AS_BITS:
            wide = interpreter.TensorHandle(src.data.astype(numpy.float32), tl.float32)
            return self.cast_impl(wide, target)
        return super().cast_impl(_widen(src) if _is_bits(src) else src, dst_type)

    def get_bf16(self, value):
        """Return a constant in bf16."""
        return self.cast_impl(self.get_fp32(value), tl.bfloat16)

    def create_fp_to_fp(self, src, dst_type, rounding_mode):
        """Return `src` cast to another float."""
        return self.cast_impl(src, dst_type)

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        """Return a b + d with exact products, of operands rounded to tf32 where a GPU would round them."""
        a, b = (_widen(handle) if _is_bits(handle) else handle for handle in (a, b))
        if getattr(input_precision, "name", "").upper() == "TF32" and a.data.dtype == numpy.float32 == b.data.dtype:
            a, b = (interpreter.TensorHandle(_round_to_tf32(handle.data), tl.float32) for handle in (a, b))
        return super().create_dot(a, b, d, input_precision, max_num_imprecise_acc)

    def create_masked_load(self, ptrs, mask, other, *policy, **named):
        """Return what is at `ptrs`, all of which must be the kernel's."""
        self.check_addresses(ptrs, mask)
        return super().create_masked_load(ptrs, mask, other, *policy, **named)

    def create_masked_store(self, ptrs, value, mask, *policy):
        """Write `value` to `ptrs`, all of which must be the kernel's."""
        self.check_addresses(ptrs, mask)
        return super().create_masked_store(ptrs, value, mask, *policy)

    def create_atomic_rmw(self, rmwOp, ptr, val, mask, sem, scope):
        """Change what is at `ptr`, all of which must be the kernel's."""
        self.check_addresses(ptr, mask)
        return super().create_atomic_rmw(rmwOp, ptr, val, mask, sem, scope)

    def check_addresses(self, ptrs, mask) -> None:
        """Raise IndexError where an address is outside of every tensor that the kernel was given."""
        starts, ends = self.memory
        addresses = numpy.broadcast_to(ptrs.data, numpy.broadcast_shapes(ptrs.data.shape, mask.data.shape))
        addresses = addresses[numpy.broadcast_to(mask.data, addresses.shape).astype(bool)]
        found = numpy.searchsorted(starts, addresses, side="right") - 1
        outside = (found < 0) | (addresses >= ends[found])
        if outside.any():
            raise IndexError(f"{outside.sum()} of {addresses.size} addresses are outside of the kernel's tensors")


for _name in FLOAT_OPERATIONS:
    # Some are called otherwise in triton 3.7 and 3.8.
    if hasattr(Builder, f"create_{_name}"):
        setattr(Builder, f"create_{_name}", _in_fp32(_name))


def _tensors(arguments: Iterable[Any]) -> Iterator[torch.Tensor]:
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            yield argument
        elif isinstance(argument, tuple | list):
            yield from _tensors(argument)
        elif hasattr(argument, "base"):
            yield from _tensors([argument.base])


def _memory(arguments: Iterable[Any]) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return starts and ends of the address ranges of all tensors, ascending and merged."""
    ranges = []
    for tensor in _tensors(arguments):
        if tensor.numel():
            last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
            ranges.append((tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()))
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1]:
            start, end = merged[-1][0], max(end, merged.pop()[1])
        merged.append((start, end))
    merged = merged or [(0, 0)]
    starts, ends = zip(*merged, strict=True)
    return numpy.array(starts, numpy.uint64), numpy.array(ends, numpy.uint64)


def _run(self: JITFunction, *args: Any, grid: Any, warmup: bool = False, **options: Any) -> None:
    builder: Any = interpreter.interpreter_builder
    builder.memory = _memory([*args, *options.values()])
    builder.launched[f"{self.fn.__module__.rpartition('.')[0].rpartition('.')[2]}.{self.fn.__name__}"] += 1
    function = interpreter.InterpretedFunction(self.fn)
    function.run(*args, grid=grid, warmup=warmup, **options)


def _call(self: JITFunction, *args: Any, **options: Any) -> Any:
    # Rewritten functions are cached by triton.
    return interpreter.InterpretedFunction(self.fn).rewrite()(*args, **options)


def _run_first(self: Autotuner, *args: Any, **options: Any) -> Any:
    return self.fn.run(*args, **{**options, **self.configs[0].all_kwargs()})


def _checked(plain: Any, what: str) -> Any:
    def apply(self, input):
        for each in input if isinstance(input, tuple) else (input,):
            if each.dtype.scalar in AS_BITS:
                raise TypeError(f"{what} of {each.dtype}: cast to fp32 first")
        return plain(self, input)

    return apply


@contextlib.contextmanager
def interpreted() -> Iterator[Counter[str]]:
    """Interpret every Triton launch, and let operators take their kernels for tensors on CPU.

    What comes with it counts the launches of each kernel, such as `rms_norm.forward_kernel`.
    """
    builder: Any = interpreter.interpreter_builder
    language = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})
    with contextlib.ExitStack() as stack:
        stack.enter_context(numpy.errstate(all="ignore"))
        stack.callback(setattr, builder, "__class__", type(builder))
        builder.__class__ = Builder
        builder.launched = Counter()
        for owner, name, value in (
            (interpreter, "_convert_float", convert_float),
            (interpreter.ReduceOps, "apply", _checked(interpreter.ReduceOps.apply, "reduction")),
            (interpreter.ScanOps, "apply", _checked(interpreter.ScanOps.apply, "scan")),
            (JITFunction, "run", _run),
            (JITFunction, "__call__", _call),
            (Autotuner, "run", _run_first),
            (launch, "TRITON_DEVICES", frozenset({"cpu", "cuda"})),
            (launch, "_takes_triton", True),
        ):
            stack.enter_context(mock.patch.object(owner, name, value))
        # x.sum(0) and the like are attributes of the tensor class that do not bind, being no functions.
        for name, member in list(vars(tl.tensor).items()):
            if isinstance(member, JITCallable):
                stack.enter_context(mock.patch.object(tl.tensor, name, _method(member)))
        scope = interpreter._patch_lang(language)
        stack.callback(scope.restore)
        yield builder.launched


def _method(function: Any) -> Any:
    return lambda self, *args, **options: function(self, *args, **options)
