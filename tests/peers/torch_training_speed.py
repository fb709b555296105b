"""Tokens per second of multi-task LoRA training in PyTorch, beside which `cloud-generator train` is timed.

    pip install gguf torch
    python tests/peers/torch_training_speed.py MODEL.gguf [--threads 1] [--steps 3]

A step is what the trainer does with tests/peers/training_speed.toml: twelve turns, a LoRA of rank 16 on the FFN of every
layer, cross-entropy on four answer tokens each, AdamW. Sequences are of equal length, so nothing is lost to padding.
"""
import argparse
import time

import torch
from torch_llama import Llama

SEQUENCES, TOKENS, ANSWER_TOKENS, RANK = 12, 48, 4, 16

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--steps", type=int, default=3)
arguments = parser.parse_args()
torch.set_num_threads(arguments.threads)
torch.manual_seed(0)
llama = Llama(arguments.model)
pairs = {}
for layer in range(llama.layers):
    for target, size, out in [("gate", llama.hidden, llama.ffn), ("up", llama.hidden, llama.ffn), ("down", llama.ffn, llama.hidden)]:
        a, b = torch.randn(RANK, size) * size**-0.5, torch.zeros(out, RANK)
        pairs[layer, target] = a.requires_grad_(), b.requires_grad_()
optimizer = torch.optim.AdamW([tensor for pair in pairs.values() for tensor in pair], lr=1e-4)


def lora(layer, target, x):
    if (layer, target) not in pairs:
        return 0.0
    a, b = pairs[layer, target]
    return x @ a.T @ b.T


vocab = llama.weights["token_embd.weight"].shape[0]
for step in range(arguments.steps + 1):
    if step == 1:
        start = time.perf_counter()  # the first step warms up
    ids = torch.randint(vocab, (SEQUENCES, TOKENS))
    states = llama.states(llama.embed(ids[:, :-1]), lora)[:, -ANSWER_TOKENS:]
    loss = torch.nn.functional.cross_entropy(llama.logits(states).flatten(0, 1), ids[:, -ANSWER_TOKENS:].flatten())
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_([tensor for pair in pairs.values() for tensor in pair], 1.0)
    optimizer.step()
seconds = time.perf_counter() - start
print(f"{arguments.steps * SEQUENCES * TOKENS / seconds:.1f} tokens/s, {seconds / arguments.steps:.2f} s per step, loss {loss.item():.3f}")
