"""Loading into 4 or 8 bits never holds the model in full precision: its peak is the codes and a few matrices."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.modeling.fp8_checkpoint import write_fp8
from tests.modeling.quantizable import SIZES, write_base

# 48M weights in 96 matrices of experts: 96 MiB in bf16, 27 in nf4, 51 in int8.
BIG: dict[str, Any] = SIZES | {
    "hidden_size": 512,
    "moe_intermediate_size": 1024,
    "n_routed_experts": 16,
    "num_hidden_layers": 3,
    "num_nextn_predict_layers": 0,
    "vocab_size": 128,
}
# A buffer of the reader, a matrix and what quantising some of its rows takes, for each of a few threads.
BESIDE_MIB = 40
# The kernel's high-water mark, set back before each load; a second process, whose heap holds nothing freed before.
MEASURE = """
import re, sys
from pathlib import Path
import torch
from seeklet.modeling import SeekletForCausalLM
from seeklet.modeling.blockwise import check_quantization

def status(key):
    return int(re.search(rf"{key}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

check_quantization("nf4")
for folder, quantization in (("bf16", "nf4"), ("fp8", "int8")):
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    model = SeekletForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, quantize=quantization)
    held = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()]) / 2**20
    print(f"peak {status('VmHWM') - before:.1f} held {held:.1f}")
    del model
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux's /proc")
def test_peak_memory_of_loading_is_the_codes_and_a_few_matrices(tmp_path: Path) -> None:
    """From bf16 and from official block-fp8: never beside the codes what all weights take in full precision."""
    plain = write_base(tmp_path / "bf16", **BIG)
    write_fp8(tmp_path / "fp8", BIG)
    full = sum(file.stat().st_size for file in plain.glob("*.safetensors")) / 2**20
    process = subprocess.run([sys.executable, "-c", MEASURE], cwd=tmp_path, capture_output=True, text=True, check=True)
    found = [(float(peak), float(held)) for peak, held in re.findall(r"peak ([\d.]+) held ([\d.]+)", process.stdout)]
    assert len(found) == 2 and found[0][1] < 0.33 * full and found[1][1] < 0.58 * full
    for peak, held in found:
        assert peak < held + BESIDE_MIB < held + 0.5 * full, found
