"""GPUs as their makers describe them, and clusters of one kind of them."""

from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path

import yaml

from ..errors import RecipeError

GPUS_FILE = Path(__file__).parent / "gpus.yaml"
GPUS_PER_NODE = 8


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One kind of GPU; sources stand in `gpus.yaml`."""

    key: str
    name: str
    tflops_bf16: float
    """Dense, at the peak."""
    tflops_fp8: float | None
    memory_mib: int
    bandwidth_gb_per_s: float
    nvlink_gb_per_s: float
    """To the others of its node, one direction; PCIe where there is no NVLink."""
    network_gb_per_s: float
    """To other nodes, one direction, each GPU's share."""
    tdp_w: float
    price_per_hour: float | None
    price_source: str | None

    @property
    def memory_bytes(self) -> int:
        """Return the whole memory in bytes."""
        return self.memory_mib * 2**20


@dataclass(frozen=True)
class Cluster:
    """So many GPUs of one kind, spread evenly over nodes."""

    gpu: Gpu
    num_gpus: int
    nodes: int

    @property
    def gpus_per_node(self) -> int:
        """Return the GPUs of one node."""
        return self.num_gpus // self.nodes


@cache
def known_gpus() -> dict[str, Gpu]:
    """Return every known kind of GPU by its short name."""
    read = yaml.safe_load(GPUS_FILE.read_text(encoding="utf-8"))
    return {key: Gpu(key=key, **values) for key, values in read.items()}


def make_cluster(gpu: str, num_gpus: int, nodes: int | None = None, **changed: float | None) -> Cluster:
    """Return a cluster; without `nodes`, of 8 GPUs each. `changed` replaces fields of the GPU, None leaves one.

    Raises:
        RecipeError: the GPU is unknown, of two kinds, or the numbers do not go into each other.
    """
    if "," in gpu or "+" in gpu:
        raise RecipeError(f"--gpu is {gpu}; allowed: one kind, as the slowest and smallest of several decides for all")
    known = known_gpus()
    key = gpu.lower().replace("-", "").replace("_", "").replace(" ", "")
    if key not in known:
        raise RecipeError(f"--gpu is {gpu}; allowed: {', '.join(sorted(known))} (add others to {GPUS_FILE.name})")
    if num_gpus < 1:
        raise RecipeError(f"--num-gpus is {num_gpus}; allowed: at least 1")
    if nodes is None:
        nodes = max(1, -(-num_gpus // GPUS_PER_NODE))
    if nodes < 1 or num_gpus % nodes:
        per_node = GPUS_PER_NODE * max(1, num_gpus // GPUS_PER_NODE)
        raise RecipeError(
            f"--num-gpus is {num_gpus} on {nodes} nodes; allowed: as many GPUs on each node, such as "
            f"--num-gpus {per_node}"
        )
    given = {name: value for name, value in changed.items() if value is not None}
    unknown = set(given) - {field.name for field in fields(Gpu)}
    assert not unknown, unknown
    found = replace(known[key], **given)
    if given.get("price_per_hour") is not None:
        found = replace(found, price_source="--price")
    return Cluster(found, num_gpus, nodes)
