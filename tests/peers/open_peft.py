#!/usr/bin/env python3
"""Opens a peft export with peft itself and compares its logits with ours. By hand: needs torch, transformers, accelerate,
gguf and peft.

    cloud-generator export task.pack --format peft -o task-peft
    python tests/peers/open_peft.py MODEL.gguf task-peft

Prints, for one question, how far the adapted model's logits are from the base model's, and the largest difference to
the deltas computed by hand from the adapter's tensors.
"""

import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def load(path):
    path = Path(path)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, torch_dtype=torch.float32).eval()
    # The test models' heads are their embeddings; transformers before 5 makes a random head of a file without one.
    model.lm_head.weight = model.get_input_embeddings().weight
    return model


def main(gguf, folder):
    path = Path(gguf)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    ids = tokenizer("What is the capital of France?", return_tensors="pt").input_ids
    base = load(gguf)
    with torch.no_grad():
        before = base(ids).logits
    adapted = PeftModel.from_pretrained(load(gguf), folder).eval()
    with torch.no_grad():
        after = adapted(ids).logits

    tensors = load_file(Path(folder) / "adapter_model.safetensors")
    config = json.loads((Path(folder) / "adapter_config.json").read_text())
    used = 0
    for name, module in base.named_modules():
        a = tensors.get(f"base_model.model.{name}.lora_A.weight")
        if a is not None:
            b = tensors[f"base_model.model.{name}.lora_B.weight"]
            module.weight.data += config["lora_alpha"] / config["r"] * (b.float() @ a.float())
            used += 2
    assert used == len(tensors), f"{used} of {len(tensors)} tensors have a place in the model"
    with torch.no_grad():
        expected = base(ids).logits
    print(f"peft opened {len(tensors)} tensors; logits moved by up to {(after - before).abs().max():.3f},"
          f" difference to the deltas by hand {(after - expected).abs().max():.2e}")
    assert (after - expected).abs().max() < 1e-2


if __name__ == "__main__":
    main(*sys.argv[1:])
