//! The decoder's operators as graph nodes: one pass of the [`Decoder`] over this backend writes its graph.

use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

use super::graph::{Attr, Data, Dim, Graph};
use super::proto::DataType;
use super::runner::OnnxRunner;
use super::side_path::{OnnxLora, PLACE, PairInputs, Place};
use super::value::Value;
use super::weight::{Layout, Part, layout};
use super::wiring::LOGIT_START;
use super::{Activations, Onnx};
use crate::lora::{LayerLora, LoraSet, Target};
use crate::model::answer::Answer;
use crate::model::backend::{Backend, Sequence};
use crate::model::config::{Activation, AttentionParams};
use crate::model::decoder::Decoder;
use crate::model::onnx_options::ProviderOutcome;
use crate::model::runner::Runner;
use crate::quant::QMatrix;
use crate::{CancelToken, Error, Result};

/// What a recording pass knows of a sequence: how many positions the graph is for.
pub struct Positions(usize);

/// Writes the graph of `decoder` for up to `positions` tokens; with inputs for a side path if `pair_inputs` says how.
pub(super) fn record(decoder: &Decoder<Onnx>, positions: usize, pair_inputs: Option<PairInputs>) -> Result<Graph> {
    let backend = &*decoder.backend;
    let mut sequence = backend.sequence(&decoder.config.attention, positions)?;
    let layers = vec![LayerLora::default(); decoder.config.layer_count()];
    let side_path = backend.side_path(&Arc::new(LoraSet { scale: 1.0, layers }))?;
    let h = decoder.embed(&[0])?;
    h.graph().pair_inputs = pair_inputs;
    if pair_inputs == Some(PairInputs::Place) {
        h.graph().input(PLACE, DataType::Int64, &[Dim::Fixed(Place::default().len())]);
    }
    let h = decoder.hidden(h, &mut sequence, pair_inputs.map(|_| &side_path[..]), &CancelToken::new())?;
    let logits = decoder.logits(&backend.rows(&h, 0..1)?)?;
    let shape = [Dim::Named("batch"), Dim::Named("logit_rows"), Dim::Fixed(decoder.config.vocab_size)];
    let mut graph = logits.graph();
    graph.output("logits", DataType::Float, &shape);
    graph.rename(&logits.name, "logits");
    Ok(std::mem::take(&mut *graph))
}

/// The inputs every pass begins with, and what attention needs of them. Names are onnxruntime-genai's.
fn begin(activations: Activations) -> Graph {
    let mut graph = Graph::new(activations);
    let (batch, sequence, total) = (Dim::Named("batch"), Dim::Named("sequence"), Dim::Named("total"));
    graph.input("input_ids", DataType::Int64, &[batch, sequence]);
    let mask = graph.input("attention_mask", DataType::Int64, &[batch, total]);
    // The first row whose logits are wanted.
    graph.optional_input(LOGIT_START, DataType::Int64, &[Dim::Fixed(1)], &[1], 0_i64.to_le_bytes().to_vec());
    let int32 = [("to", Attr::Int(DataType::Int32 as usize))];
    let (one, axis) = (graph.shape(&[1]), graph.shape(&[-1]));
    let lengths = graph.node("ReduceSum", "lengths", &[&mask, &axis], &[("keepdims", Attr::Int(0))]);
    let last = graph.node("Sub", "last_positions", &[&lengths, &one], &[]);
    graph.node_with_outputs("Cast", &[&last], vec!["seqlens_k".to_owned()], &int32);
    let shape = graph.node("Shape", "mask_shape", &[&mask], &[]);
    let index = graph.name("total_axis");
    let index = graph.initializer(index, DataType::Int64, &[], Data::Inline(1_i64.to_le_bytes().to_vec()));
    let length = graph.node("Gather", "total_length", &[&shape, &index], &[("axis", Attr::Int(0))]);
    graph.node_with_outputs("Cast", &[&length], vec!["total_sequence_length".to_owned()], &int32);
    // Rows of this pass before the first new one; of a batch, the sequences are equally long.
    let shape = graph.node("Shape", "ids_shape", &["input_ids"], &[]);
    let count = graph.node("Gather", "new_length", &[&shape, &index], &[("axis", Attr::Int(0))]);
    graph.node_with_outputs("Sub", &[&lengths, &count], vec!["first_position".to_owned()], &[]);
    graph
}

impl Backend for Onnx {
    type Tensor = Value;
    type Matrix = QMatrix;
    type Vector = Arc<[f32]>;
    type Lora = OnnxLora;
    type Sequence = Positions;

    fn matrix(&self, source: QMatrix) -> Result<QMatrix> {
        Ok(source)
    }

    fn vector(&self, values: Vec<f32>) -> Result<Arc<[f32]>> {
        Ok(values.into())
    }

    fn lora(&self, layer: &LayerLora, scale: f32) -> Result<OnnxLora> {
        let lora = OnnxLora::new(layer, scale, &self.pairs);
        lora.keep();
        Ok(lora)
    }

    fn side_path(&self, lora: &Arc<LoraSet>) -> Result<Arc<[OnnxLora]>> {
        Ok(OnnxLora::all(lora, &self.pairs))
    }

    fn sequence(&self, _: &[AttentionParams], capacity: usize) -> Result<Positions> {
        Ok(Positions(capacity))
    }

    /// Begins a graph.
    fn embed(&self, table: &QMatrix, _: &[u32], scale: f32) -> Result<Value> {
        let mut graph = begin(self.activations);
        let (rows, cols) = (table.rows(), table.cols());
        let mut h = match layout(table.block_type()) {
            Layout::Floats => {
                let weight = graph.weight("embedding.weight".to_owned(), &[table], Part::Floats, &[rows, cols]);
                graph.node("Gather", "embedding", &[&weight, "input_ids"], &[])
            }
            Layout::Blocks { bits, group, has_mins } => {
                let groups = cols / group;
                let codes = graph.weight("embedding.codes".to_owned(), &[table], Part::Codes, &[rows, cols * bits / 8]);
                let steps = graph.weight("embedding.steps".to_owned(), &[table], Part::Steps, &[rows, groups]);
                let attributes = [
                    ("bits", Attr::Int(bits)),
                    ("block_size", Attr::Int(group)),
                    ("gather_axis", Attr::Int(0)),
                    ("quantize_axis", Attr::Int(1)),
                ];
                let h = graph.node("GatherBlockQuantized", "embedding", &[&codes, "input_ids", &steps], &attributes);
                if has_mins {
                    let mins = graph.weight("embedding.mins".to_owned(), &[table], Part::Mins, &[rows, groups]);
                    let mins = graph.node("Gather", "embedding_mins", &[&mins, "input_ids"], &[]);
                    let last = graph.shape(&[-1]);
                    let mins = graph.node("Unsqueeze", "embedding_mins", &[&mins, &last], &[]);
                    let split = graph.shape(&[0, 0, groups as i64, group as i64]);
                    let split = graph.node("Reshape", "embedding_groups", &[&h, &split], &[]);
                    let sum = graph.node("Add", "embedding_groups", &[&split, &mins], &[]);
                    let joined = graph.shape(&[0, 0, cols as i64]);
                    graph.node("Reshape", "embedding", &[&sum, &joined], &[])
                } else {
                    h
                }
            }
        };
        if scale != 1.0 {
            let scale = graph.scalar(scale);
            h = graph.node("Mul", "embedding_scaled", &[&h, &scale], &[]);
        }
        graph.layer = Some(0);
        Ok(Value::first(graph, h))
    }

    fn rms_norm(&self, x: &Value, weight: &Arc<[f32]>, epsilon: f32) -> Result<Value> {
        let mut graph = x.graph();
        let name = graph.name("norm");
        let weight = graph.vector(format!("{name}.weight"), weight);
        let epsilon = ("epsilon", Attr::Float(epsilon));
        match graph.take_sum(&x.name) {
            Some([first, second]) => {
                let outputs = vec![name.clone(), String::new(), String::new(), x.name.clone()];
                graph.node_with_outputs(
                    "SkipSimplifiedLayerNormalization",
                    &[&first, &second, &weight],
                    outputs,
                    &[epsilon],
                );
            }
            None => graph.node_with_outputs(
                "SimplifiedLayerNormalization",
                &[&x.name, &weight],
                vec![name.clone()],
                &[epsilon, ("stash_type", Attr::Int(1))],
            ),
        }
        drop(graph);
        Ok(x.with(name))
    }

    fn project<const N: usize>(
        &self,
        x: &Value,
        weights: [&QMatrix; N],
        biases: [Option<&Arc<[f32]>>; N],
    ) -> Result<[Value; N]> {
        // The decoder projects q, k and v together, then the attention's output, and last the logits.
        let roles: [&str; N] = match (N, x.graph().layer) {
            (3, _) => std::array::from_fn(|index| ["q_proj", "k_proj", "v_proj"][index]),
            (_, Some(_)) => ["o_proj"; N],
            (_, None) => ["lm_head"; N],
        };
        let products = x.products("qkv_proj", std::array::from_fn(|index| (roles[index], weights[index])), |y, _| y);
        if biases.iter().all(Option::is_none) {
            return Ok(products);
        }
        let mut graph = x.graph();
        let names = std::array::from_fn(|index| {
            let Some(bias) = biases[index] else { return products[index].name.clone() };
            let name = graph.name(&format!("{}_biased", roles[index]));
            let bias = graph.vector(format!("{name}.bias"), bias);
            graph.node_with_outputs("Add", &[&products[index].name, &bias], vec![name.clone()], &[]);
            name
        });
        drop(graph);
        Ok(names.map(|name| x.with(name)))
    }

    fn attend(
        &self,
        layer: usize,
        [q, k, v]: [Value; 3],
        q_norm: Option<&Arc<[f32]>>,
        k_norm: Option<&Arc<[f32]>>,
        params: &AttentionParams,
        sequence: &mut Positions,
    ) -> Result<Value> {
        if !params.head_dim.is_multiple_of(8) {
            let reason = format!("heads of width {}: its attention takes multiples of 8", params.head_dim);
            return Err(Error::Backend { backend: "onnx", reason });
        }
        // Attention itself rotates heads of the usual widths; others are rotated before it.
        let rotates = params.head_dim.is_multiple_of(16);
        let q = q.norm_heads(q_norm, params.head_count, params);
        let k = k.norm_heads(k_norm, params.kv_head_count, params);
        let mut graph = q.graph();
        let [cos, sin] = graph.rope(&params.rope, sequence.0);
        let interleaved = usize::from(params.rope.interleaved);
        let mut rotated = |name: &str, heads: usize| {
            let attributes = [("interleaved", Attr::Int(interleaved)), ("num_heads", Attr::Int(heads))];
            graph.node("RotaryEmbedding", "rotated", &[name, "first_position", &cos, &sin], &attributes)
        };
        let (mut query, mut key, mut value) = match rotates {
            true => (q.name.clone(), k.name.clone(), v.name.clone()),
            false => (rotated(&q.name, params.head_count), rotated(&k.name, params.kv_head_count), v.name.clone()),
        };
        if let Some(packed) = graph.take_packed(&[&query, &key, &value]) {
            (query, key, value) = (packed, String::new(), String::new());
        }
        let dims = |length| {
            [Dim::Named("batch"), Dim::Fixed(params.kv_head_count), Dim::Named(length), Dim::Fixed(params.head_dim)]
        };
        let [past_k, past_v] = ["key", "value"]
            .map(|kind| graph.input(&format!("past_key_values.{layer}.{kind}"), DataType::Float, &dims("past")));
        let [present_k, present_v] = ["key", "value"].map(|kind| {
            let name = format!("present.{layer}.{kind}");
            graph.output(&name, DataType::Float, &dims("total"));
            name
        });
        let mut attributes = vec![
            ("num_heads", Attr::Int(params.head_count)),
            ("kv_num_heads", Attr::Int(params.kv_head_count)),
            ("scale", Attr::Float(params.scale)),
            ("do_rotary", Attr::Int(rotates.into())),
            ("rotary_interleaved", Attr::Int(interleaved)),
        ];
        attributes.extend(params.softcap.map(|cap| ("softcap", Attr::Float(cap))));
        // The operator counts the position itself too.
        attributes.extend(params.window.map(|window| ("local_window_size", Attr::Int(window))));
        let name = graph.name("attention");
        let mut inputs = vec![&*query, &*key, &*value, &*past_k, &*past_v, "seqlens_k", "total_sequence_length"];
        if rotates {
            inputs.extend([&*cos, &*sin]);
        }
        graph.node_with_outputs("GroupQueryAttention", &inputs, vec![name.clone(), present_k, present_v], &attributes);
        drop(graph);
        Ok(q.with(name))
    }

    fn ffn_in(
        &self,
        x: &Value,
        gate: &QMatrix,
        up: &QMatrix,
        activation: Activation,
        lora: Option<&OnnxLora>,
    ) -> Result<Value> {
        let weights = [(Target::Gate, gate), (Target::Up, up)];
        let pairs = lora.and(x.graph().pair_inputs);
        // `gate` and `up` are the first two of `Target::ALL`, `down` is the third.
        let with = |y, some: Range<usize>| match pairs {
            Some(PairInputs::Place) => x.own_side_path(&y, some),
            _ => y,
        };
        let products = x.products("gate_up_proj", weights.map(|(target, weight)| (target.name(), weight)), with);
        let mut targets = products.into_iter().zip(weights).map(|(y, (target, weight))| match pairs {
            Some(PairInputs::Tensors) => x.side_path(y, target, weight),
            _ => y,
        });
        let [gate, up] = std::array::from_fn(|_| targets.next().expect("two products"));
        let gate = match activation {
            // `x · sigmoid(1 · x)`
            Activation::Silu => x.node("QuickGelu", "silu", &[&gate.name], &[("alpha", Attr::Float(1.0))]),
            Activation::GeluTanh => x.node("FastGelu", "gelu", &[&gate.name], &[]),
        };
        Ok(x.node("Mul", "gated", &[&gate.name, &up.name], &[]))
    }

    fn ffn_out(&self, x: &Value, down: &QMatrix, lora: Option<&OnnxLora>) -> Result<Value> {
        let y = x.product(Target::Down.name(), &[down]);
        let pairs = lora.and(x.graph().pair_inputs);
        let y = match pairs {
            Some(PairInputs::Place) => x.own_side_path(&y, 2..3),
            Some(PairInputs::Tensors) => x.side_path(y, Target::Down, down),
            None => y,
        };
        let mut graph = x.graph();
        graph.layer = graph.layer.map(|layer| layer + 1);
        drop(graph);
        Ok(y)
    }

    fn add(&self, x: Value, y: &Value) -> Result<Value> {
        let name = x.graph().sum(&x.name, &y.name);
        Ok(x.with(name))
    }

    fn softcap(&self, x: Value, cap: f32) -> Result<Value> {
        let cap = x.graph().scalar(cap);
        let scaled = x.node("Div", "uncapped", &[&x.name, &cap], &[]);
        let tanh = x.node("Tanh", "tanh", &[&scaled.name], &[]);
        Ok(x.node("Mul", "capped", &[&tanh.name, &cap], &[]))
    }

    /// The rows from the input `logit_start` on: ends the layers.
    fn rows(&self, x: &Value, _: Range<usize>) -> Result<Value> {
        x.graph().layer = None;
        let [ends, axes] = [i64::MAX, 1].map(|value| x.graph().shape(&[value]));
        Ok(x.node("Slice", "logit_rows", &[&x.name, LOGIT_START, &ends, &axes], &[]))
    }

    /// A pass stands for any number of tokens.
    fn row_count(&self, _: &Value) -> usize {
        1
    }

    fn read(&self, x: &Value, _: &mut Vec<f32>) -> Result<()> {
        Err(Error::Backend { backend: "onnx", reason: format!("{} is a node of a graph, not a number", x.name) })
    }

    fn runner(decoder: &Arc<Decoder<Self>>, capacity: usize, lora: Option<Arc<[OnnxLora]>>) -> Result<Box<dyn Runner>> {
        let session = decoder.backend.sessions()?.of(decoder, lora.is_some())?;
        Ok(Box::new(OnnxRunner::new(session, capacity, lora)?))
    }

    fn put_into(decoder: &Arc<Decoder<Self>>, lora: Option<Arc<[OnnxLora]>>, runner: &mut dyn Runner) -> bool {
        let session = decoder.backend.sessions().ok().and_then(|sessions| sessions.built(decoder, lora.is_some()));
        match ((runner as &mut dyn Any).downcast_mut::<OnnxRunner>(), session) {
            (Some(runner), Some(session)) if runner.is_on(&session) => runner.put_in(lora).is_ok(),
            _ => false,
        }
    }

    fn providers(decoder: &Arc<Decoder<Self>>) -> Vec<ProviderOutcome> {
        let session = decoder.backend.sessions().ok().and_then(|sessions| sessions.built(decoder, false));
        session.map(|session| session.providers.clone()).unwrap_or_default()
    }

    fn answer(
        decoder: &Arc<Decoder<Self>>,
        lora: Option<&Arc<[OnnxLora]>>,
        ids: &[u32],
        cancel: &CancelToken,
    ) -> Result<Box<dyn Answer>> {
        super::answer::answer(decoder, lora, ids, cancel)
    }
}

impl Sequence for Positions {
    fn len(&self) -> usize {
        0
    }

    fn capacity(&self) -> usize {
        self.0
    }

    fn size_bytes(&self) -> usize {
        0
    }

    fn advance(&mut self, _: usize) {}

    fn truncate(&mut self, _: usize) {}

    fn write_state(&self, _: &mut Vec<u8>) -> Result<()> {
        Err(Error::Backend { backend: "onnx", reason: "a recording pass has no cache".to_owned() })
    }

    fn read_state(&mut self, _: usize, _: &[u8]) -> Result<()> {
        self.write_state(&mut Vec::new())
    }
}
