"""The safetensors files themselves: what we write the library reads, what is broken is refused by name."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from seeklet.modeling import CheckpointError
from seeklet.modeling.safetensors_io import DTYPES, Reader, TensorGroup, TensorSpec, read_header, write_file
from tests.modeling.tensors import bits


def as_group(tensors: dict[str, torch.Tensor]) -> TensorGroup:
    specs = tuple(TensorSpec(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items())
    return TensorGroup(specs, lambda: list(tensors.values()))


def draw(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    count = torch.Size(shape).numel() * dtype.itemsize
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (count,), dtype=torch.uint8)
    return raw.view(dtype).view(shape)


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    tensors = {f"a.{name}": draw(dtype, 3, 5) for name, dtype in DTYPES.items()}
    tensors |= {"odd fp8": draw(torch.float8_e4m3fn, 7), "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3)}
    tensors["not contiguous"] = torch.randn(4, 6).t()
    groups = [as_group({name: tensor}) for name, tensor in tensors.items()]
    written = list(write_file(tmp_path / "f.safetensors", groups, {"format": "pt"}))
    assert written == [group.nbytes for group in groups]
    back = load_file(tmp_path / "f.safetensors")
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (back[name].dtype, back[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(bits(back[name]), bits(tensor))


def test_we_read_what_the_library_writes(tmp_path: Path) -> None:
    tensors = {name: draw(dtype, 3, 5) for name, dtype in DTYPES.items()}
    save_file(tensors, tmp_path / "f.safetensors")
    stored = read_header(tmp_path / "f.safetensors")
    assert {name: (DTYPES[t.dtype], t.shape) for name, t in stored.items()} == {
        name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()
    }
    with Reader([str(tmp_path / "f.safetensors")]) as reader:
        for name, tensor in tensors.items():
            whole = torch.empty_like(tensor)
            reader.read(stored[name], 0, whole)
            assert torch.equal(bits(whole), bits(tensor))
            part = torch.empty(5, dtype=tensor.dtype)
            reader.read(stored[name], 5 * tensor.itemsize, part)
            assert torch.equal(bits(part), bits(tensor[1]))


def test_tensors_are_aligned_to_their_size(tmp_path: Path) -> None:
    tensors = {"codes": draw(torch.float8_e4m3fn, 3), "scale": torch.ones(1), "bias": torch.ones(3).bfloat16()}
    list(write_file(tmp_path / "f.safetensors", [as_group(tensors)]))
    for tensor in read_header(tmp_path / "f.safetensors").values():
        assert tensor.offset % DTYPES[tensor.dtype].itemsize == 0


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4)}, tmp_path / "f.safetensors")
    return tmp_path / "f.safetensors"


def rewrite(file: Path, change) -> None:
    """Change the header, keeping the data."""
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    text = change(header)
    text = (json.dumps(header) if text is None else text).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.safetensors: found no such file"):
        read_header(tmp_path / "nowhere.safetensors")


def test_an_empty_file(file: Path) -> None:
    file.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"f\.safetensors: found 0 bytes \(an empty file\), expected"):
        read_header(file)


def test_a_file_truncated_in_its_data(file: Path) -> None:
    size = file.stat().st_size
    os.truncate(file, size - 5)
    with pytest.raises(CheckpointError, match=rf"truncated: found {size - 5} bytes, expected at least {size} for b"):
        read_header(file)


@pytest.mark.parametrize("length", [3, 8, 40])
def test_a_file_truncated_in_its_header(file: Path, length: int) -> None:
    os.truncate(file, length)
    with pytest.raises(CheckpointError, match=rf"f\.safetensors: found {length} bytes"):
        read_header(file)


def test_a_file_that_is_something_else(file: Path) -> None:
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(CheckpointError, match=r"starting with b'version ', expected a safetensors file"):
        read_header(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: "{not json", "corrupt header"),
        (lambda header: "[" * 100_000, "corrupt header"),
        (lambda header: "[1, 2]", r"corrupt header \(list\)"),
        (lambda header: header["a"].pop("shape"), r"f\.safetensors: a: found a corrupt entry"),
        (lambda header: header.update(a=5), r"f\.safetensors: a: found a corrupt entry 5"),
        (lambda header: header["a"].update(dtype="F9"), "a: found dtype 'F9', expected one of F64, F32"),
        (lambda header: header["a"].update(shape=[2, 4]), r"a: found 24 bytes at 0, expected 32 bytes of F32 \(2, 4\)"),
        (
            lambda header: header["a"].update(dtype=["F32"]),
            r"f\.safetensors: a: found dtype \['F32'\], expected one of F64",
        ),
        (
            lambda header: header["a"].update(shape=[2, -3]),
            r"a: found shape \[2, -3\] and .*, expected integers",
        ),
        # Python's True is 1, and true · 2 · 3 has the 24 bytes that the offsets say.
        (lambda header: header["a"].update(shape=[True, 2, 3]), r"f\.safetensors: a: found shape \[True, 2, 3\]"),
        (lambda header: header["a"].update(shape=[2.0, 3]), r"f\.safetensors: a: found shape \[2\.0, 3\]"),
        (lambda header: header["a"].update(shape="23"), r"f\.safetensors: a: found shape '23'"),
        (lambda header: header["a"].update(shape=6), r"f\.safetensors: a: found shape 6 "),
        (lambda header: header["a"].update(data_offsets=["0", "8"]), r"safetensors: a: .* offsets \['0', '8'\]"),
        (lambda header: header["a"].update(data_offsets=[0, None]), r"safetensors: a: .* offsets \[0, None\]"),
        (lambda header: header["a"].update(data_offsets=[[0], [8]]), r"safetensors: a: .* offsets \[\[0\], \[8\]\]"),
        (lambda header: header["a"].update(data_offsets=[False, 24]), r"safetensors: a: .* offsets \[False, 24\]"),
        (lambda header: header["a"].update(data_offsets=[0]), r"f\.safetensors: a: found a corrupt entry"),
        (lambda header: header["b"].update(data_offsets=[8, 24]), r"b: found data at \d+, expected it at \d+"),
        (lambda header: json.dumps(header).replace('"b"', '"a"'), "'a' twice"),
        (lambda header: header.pop("b"), r"found \d+ bytes, expected \d+: 16 after the last tensor"),
    ],
)
def test_a_corrupt_header(file: Path, change, message: str) -> None:
    rewrite(file, lambda header: text if isinstance(text := change(header), str) else None)
    with pytest.raises(CheckpointError, match=message):
        read_header(file)


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "f.safetensors").mkdir()
    with pytest.raises(CheckpointError, match=r"f\.safetensors: .* reading failed: Is a directory"):
        read_header(tmp_path / "f.safetensors")


def test_a_file_that_shrinks_while_it_is_read(file: Path) -> None:
    stored = read_header(file)
    last = max(stored.values(), key=lambda tensor: tensor.offset)
    with Reader([str(file)]) as reader:
        os.truncate(file, last.offset + 2)
        with pytest.raises(CheckpointError, match=rf"{last.name}: the file became shorter"):
            reader.read(last, 0, torch.empty(last.shape))
