use super::backend::Backend;
use super::decoder::{Decoder, Layer, Linear};

// By hand: `derive` would ask for `B: Clone`, but only the weights are cloned, and clones of those share memory.

impl<B: Backend> Clone for Linear<B> {
    fn clone(&self) -> Self {
        Self { weight: self.weight.clone(), bias: self.bias.clone() }
    }
}

impl<B: Backend> Clone for Layer<B> {
    fn clone(&self) -> Self {
        Self {
            attn_norm: self.attn_norm.clone(),
            q: self.q.clone(),
            k: self.k.clone(),
            v: self.v.clone(),
            o: self.o.clone(),
            q_norm: self.q_norm.clone(),
            k_norm: self.k_norm.clone(),
            post_attn_norm: self.post_attn_norm.clone(),
            ffn_norm: self.ffn_norm.clone(),
            gate: self.gate.clone(),
            up: self.up.clone(),
            down: self.down.clone(),
            post_ffn_norm: self.post_ffn_norm.clone(),
        }
    }
}

impl<B: Backend> Clone for Decoder<B> {
    fn clone(&self) -> Self {
        Self {
            backend: self.backend.clone(),
            config: self.config.clone(),
            embedding: self.embedding.clone(),
            layers: self.layers.clone(),
            output_norm: self.output_norm.clone(),
            head: self.head.clone(),
        }
    }
}
