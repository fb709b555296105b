//! What a merge's proof reads.
//!
//! A proof compares two sets of weights: those of a merge, and the base's with the side path. In a graph with 8-bit
//! activations, these alone change 3% of a small model's likeliest tokens between two such models (our kernels' 16-bit
//! ones hardly any), more than the proof allows a merge to. So the same weights answer on the CPU backend.

use std::sync::Arc;

use super::Onnx;
use super::side_path::OnnxLora;
use crate::model::answer::Answer;
use crate::model::backend::Backend;
use crate::model::cpu::{Cpu, CpuLora, CpuOptions};
use crate::model::decoder::{Decoder, Layer, Linear};
use crate::{CancelToken, Result};

pub(super) fn answer(
    decoder: &Arc<Decoder<Onnx>>,
    lora: Option<&Arc<[OnnxLora]>>,
    ids: &[u32],
    cancel: &CancelToken,
) -> Result<Box<dyn Answer>> {
    let threads = Some(decoder.backend.sessions()?.threads());
    let cpu = Arc::new(Cpu::new(&CpuOptions { threads, ..CpuOptions::default() })?);
    let of_layer = |layer: &OnnxLora| cpu.lora(layer.pairs(), layer.scale());
    let lora = lora.map(|lora| lora.iter().map(of_layer).collect::<Result<Arc<[CpuLora]>>>()).transpose()?;
    Cpu::answer(&Arc::new(on_cpu(decoder, cpu)), lora.as_ref(), ids, cancel)
}

/// The same weights under the CPU backend: both keep them as the file does.
fn on_cpu(decoder: &Decoder<Onnx>, backend: Arc<Cpu>) -> Decoder<Cpu> {
    let linear = |linear: &Linear<Onnx>| Linear { weight: linear.weight.clone(), bias: linear.bias.clone() };
    let layer = |layer: &Layer<Onnx>| Layer {
        attn_norm: layer.attn_norm.clone(),
        q: linear(&layer.q),
        k: linear(&layer.k),
        v: linear(&layer.v),
        o: linear(&layer.o),
        q_norm: layer.q_norm.clone(),
        k_norm: layer.k_norm.clone(),
        post_attn_norm: layer.post_attn_norm.clone(),
        ffn_norm: layer.ffn_norm.clone(),
        gate: layer.gate.clone(),
        up: layer.up.clone(),
        down: layer.down.clone(),
        post_ffn_norm: layer.post_ffn_norm.clone(),
    };
    Decoder {
        backend,
        config: decoder.config.clone(),
        embedding: decoder.embedding.clone(),
        layers: decoder.layers.iter().map(layer).collect(),
        output_norm: decoder.output_norm.clone(),
        head: decoder.head.clone(),
    }
}
