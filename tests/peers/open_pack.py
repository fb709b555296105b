#!/usr/bin/env python3
"""Opens a dense pack with software that is not ours: zstd (the program, else the Python package zstandard) and safetensors.

    python tests/peers/open_pack.py task.pack

docs/pack-format.md promises that both work without knowing the format. Needs the packages in requirements.txt.
"""

import io
import shutil
import subprocess
import sys

from safetensors.numpy import load


def decompress(path):
    if shutil.which("zstd"):
        return subprocess.run(["zstd", "-d", "-c", path], check=True, capture_output=True).stdout
    import zstandard

    with open(path, "rb") as file:
        return zstandard.ZstdDecompressor().stream_reader(io.BytesIO(file.read()), read_across_frames=True).read()


def main(path):
    tensors = load(decompress(path))
    layers = {int(name.split(".")[4]) for name in tensors}
    assert layers == set(range(len(layers))), "layers are not numbered from 0"
    pairs = 0
    for name, a in tensors.items():
        if not name.endswith("lora_A.weight"):
            continue
        b = tensors[name.replace("lora_A", "lora_B")]
        assert name.startswith("base_model.model.model.layers."), name
        assert a.ndim == b.ndim == 2 and a.shape[0] == b.shape[1], f"{name}: {a.shape} and {b.shape}"
        assert abs(a).max() > 0 or abs(b).max() > 0, f"{name}: all zero"
        pairs += 1
    assert 2 * pairs == len(tensors) and pairs, f"{pairs} pairs in {len(tensors)} tensors"
    print(f"{path}: {pairs} pairs in {len(layers)} layers, {sorted({str(t.dtype) for t in tensors.values()})}")


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        main(argument)
