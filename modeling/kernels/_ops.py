"""Name space of the package's torch operators; the Hub's build replaces this file by one with a unique name."""

OP_NAMESPACE = "seeklet_kernels"


def add_op_namespace_prefix(op_name: str) -> str:
    """Return the operator's full name, such as `seeklet_kernels::grouped_experts`."""
    return f"{OP_NAMESPACE}::{op_name}"
