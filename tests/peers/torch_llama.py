"""A Llama-shaped GGUF model with tied embeddings in PyTorch: the reference of the scripts beside it and of make_torch_gradients.py."""
import gguf
import numpy as np
import torch


class Llama:
    def __init__(self, path, dtype=torch.float32):
        self.reader = gguf.GGUFReader(path)
        field = lambda name: self.reader.fields[name].contents()
        assert field("general.architecture") == "llama"
        number = lambda name: field(f"llama.{name}")
        self.layers, self.hidden, self.ffn = number("block_count"), number("embedding_length"), number("feed_forward_length")
        self.heads, self.kv_heads = number("attention.head_count"), number("attention.head_count_kv")
        self.epsilon, self.base = number("attention.layer_norm_rms_epsilon"), number("rope.freq_base")
        self.weights = {t.name: torch.from_numpy(np.ascontiguousarray(gguf.dequantize(t.data, t.tensor_type).astype(np.float32))).to(dtype)
                        for t in self.reader.tensors}

    def norm(self, x, name):
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.epsilon) * self.weights[name + ".weight"]

    def rotate(self, x):
        # GGUF permutes Llama's q and k so that neighbours (2i, 2i + 1) are a pair.
        tokens, _, size = x.shape[-3:]
        angle = torch.arange(tokens)[:, None] * self.base ** (-torch.arange(0, size, 2, dtype=x.dtype) / size)
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)

    def embed(self, ids):
        return self.weights["token_embd.weight"][torch.as_tensor(ids)]

    def states(self, h, lora=lambda layer, target, x: 0.0):
        """`[..., tokens, hidden]` embeddings to the states after the output norm; `lora(layer, target, x)` is added to the
        projections `q`, `v`, `gate`, `up` and `down`."""
        tokens = h.shape[-2]
        mask = torch.full((tokens, tokens), float("-inf"), dtype=h.dtype).triu(1)
        repeat = self.heads // self.kv_heads
        for layer in range(self.layers):
            w = lambda name: self.weights[f"blk.{layer}.{name}.weight"].T
            x = self.norm(h, f"blk.{layer}.attn_norm")
            q, v = (x @ w(f"attn_{name}") + lora(layer, name, x) for name in ["q", "v"])
            q, k, v = (y.unflatten(-1, (count, -1)) for y, count in
                       [(q, self.heads), (x @ w("attn_k"), self.kv_heads), (v, self.kv_heads)])
            q, k, v = self.rotate(q).transpose(-3, -2), self.rotate(k).transpose(-3, -2), v.transpose(-3, -2)
            k, v = k.repeat_interleave(repeat, -3), v.repeat_interleave(repeat, -3)
            scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5 + mask
            h = h + (scores.softmax(-1) @ v).transpose(-3, -2).flatten(-2) @ w("attn_output")
            x = self.norm(h, f"blk.{layer}.ffn_norm")
            gate, up = (x @ w(f"ffn_{name}") + lora(layer, name, x) for name in ["gate", "up"])
            x = torch.nn.functional.silu(gate) * up
            h = h + x @ w("ffn_down") + lora(layer, "down", x)
        return self.norm(h, "output_norm")

    def logits(self, states):
        return states @ self.weights["token_embd.weight"].T
