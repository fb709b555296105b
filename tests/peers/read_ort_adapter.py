#!/usr/bin/env python3
"""Reads an adapter that `cloud-generator export --format onnx-adapter` wrote with ONNX Runtime itself, and compares it with
the peft export of the same pack.

    python tests/peers/read_ort_adapter.py task.onnx_adapter task-peft/

Needs onnxruntime, numpy and safetensors.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from safetensors.numpy import load_file


def main(adapter, peft):
    parameters = onnxruntime.AdapterFormat.read_adapter(adapter).get_parameters()
    tensors = load_file(Path(peft) / "adapter_model.safetensors")
    config = json.loads((Path(peft) / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / config["r"]
    assert len(parameters) == len(tensors), f"{len(parameters)} parameters, {len(tensors)} tensors"
    for name, tensor in tensors.items():
        _, _, _, _, layer, _, target, half, _ = name.split(".")
        value = parameters[f"layers.{layer}.{target}.{half.lower()}"].numpy()
        expected = tensor.astype(np.float32) * (scale if half == "lora_B" else 1)
        assert value.shape == expected.shape and np.array_equal(value, expected.astype(np.float32)), name
    # The session-side loader checks the file's identifier, version and alignment.
    loaded = onnxruntime.LoraAdapter()
    loaded.Load(adapter)
    print(f"{adapter}: {len(parameters)} parameters, equal to {peft}")


if __name__ == "__main__":
    main(*sys.argv[1:])
