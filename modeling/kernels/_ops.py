"""How the package's operators are registered: their name space, and the one pattern that they follow.

The Hub's build replaces this file's `OP_NAMESPACE` by a unique name.

An operator's `op.py` holds, in this order (`rms_norm/op.py` is the example):
1. `_forward`, a `torch.library.custom_op` that returns the output and what backward needs as fresh tensors, none of
   them an input or a view of one. It asks `runs_triton` (and `kernel.takes`: dtypes, sizes) and then runs `kernel` or
   `reference`: on CPU an operator is its reference.
2. `_forward.register_fake`: shapes and dtypes of the same, with no look at any number.
3. `_backward`, another `custom_op`, with its own fake.
4. `setup_context` and the function given to `register_autograd`, which calls `refuse_second_derivative` first.
5. the public function, which has the arguments of the reference and keeps its promises; it deals with autocast.

`custom_op` and not `triton_op`: to torch.compile the operator is opaque, so that there are no graph breaks, one graph
is good for both devices, and work on the host (sorting, choosing a configuration) is not traced. `opcheck` passes, meta
and fake tensors work through the fakes. Inductor cannot fuse into it, which these kernels do not need: they are the
fusion.
"""

import torch

OP_NAMESPACE = "seeklet_kernels"


def add_op_namespace_prefix(op_name: str) -> str:
    """Return the operator's full name, such as `seeklet_kernels::grouped_experts`."""
    return f"{OP_NAMESPACE}::{op_name}"


def refuse_second_derivative(op_name: str) -> None:
    """Raise RuntimeError in a backward pass that is itself differentiated."""
    if torch.is_grad_enabled():
        raise RuntimeError(f"{op_name} has no second derivative; do not take gradients with create_graph=True")
