"""Bytes, operations and the time an H200 needs at the least, a table an operator: modeling/kernels/ROOFLINE.md.

    python -m benchmarks.kernels.roofline

A test compares the file with what this would write.
"""

from pathlib import Path

from benchmarks.kernels.case import BYTES_PER_S, FLOPS_PER_S, MODELS, Case, benchmark, operators

FILE = Path(__file__).resolve().parents[2] / "modeling" / "kernels" / "ROOFLINE.md"
HEAD = f"""# What the kernels cannot be faster than

Written by `python -m benchmarks.kernels.roofline`. Each tensor is read or written once; the floor is the longer of
bytes / {BYTES_PER_S / 1e12:g} TB/s and operations / {FLOPS_PER_S / 1e12:g} TFLOP/s, both measured on one H200: a copy,
and a bf16 product of large matrices. Measured times of the kernels: not yet run on a GPU.

"""


def _line(case: Case) -> str:
    bound = "memory" if case.num_bytes / BYTES_PER_S >= case.num_flops / FLOPS_PER_S else "tensor cores"
    gflop = f"{case.num_flops / 1e9:,.1f}" if case.num_flops else "-"
    return f"| {case.name} | {case.num_bytes / 1e6:,.1f} | {gflop} | {case.floor_s * 1e6:,.1f} | {bound} |"


def _shapes() -> str:
    names = ["", *next(iter(MODELS.values()))._fields]
    rows = [names, ["---"] * len(names), *([name, *map(str, model)] for name, model in MODELS.items())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def text() -> str:
    """Return the whole file."""
    sections = [HEAD, _shapes()]
    for operator in operators():
        module = benchmark(operator)
        sections.append(
            f"## {operator}\n\nBytes: {module.BYTES}.\nOperations: {module.FLOPS}.\n\n"
            "| case | MB | GFLOP | floor, µs | bound by |\n|---|---|---|---|---|\n"
            + "\n".join(_line(case) for case in module.cases())
            + "\n"
        )
    return "\n".join(sections)


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
    print(f"written: {FILE.relative_to(FILE.parents[2])}")
