//! A decoder graph while it is being written.

use std::collections::HashMap;
use std::sync::Arc;

use super::Activations;
use super::proto::{
    Attribute, AttributeType, DataType, Dimension, Entry, Extent, IR_VERSION, MICROSOFT, Model, Node, OPSET, OWN,
    Opset, Shape, Tensor, TensorType, Type, ValueInfo,
};
use super::side_operator::SIDE_PATH;
use super::side_path::PairInputs;
use super::weight::Part;
use crate::Result;
use crate::model::config::Rope;
use crate::quant::QMatrix;

/// Nodes in the order they run, and the values they read.
#[derive(Default)]
pub(super) struct Graph {
    nodes: Vec<Node>,
    inputs: Vec<ValueInfo>,
    outputs: Vec<ValueInfo>,
    initializers: Vec<Initializer>,
    /// How often each name was asked for.
    names: HashMap<String, usize>,
    /// Sums nobody has read yet, so that a norm that follows can take both operands.
    sums: HashMap<String, [String; 2]>,
    /// Parts of packed values that nobody has read yet, by name, with the packed value's name.
    parts: HashMap<String, String>,
    /// Names and widths of each packed value's parts, in order.
    packed: HashMap<String, Vec<(String, usize)>>,
    /// Sums over groups of a value, by value and group.
    group_sums: HashMap<(String, usize), String>,
    /// Values as two 8-bit terms, by value and group.
    terms: HashMap<(String, usize), String>,
    ropes: Vec<(Arc<Rope>, [String; 2])>,
    /// How products see their input.
    pub(super) activations: Activations,
    /// How a side path's pairs come in, if there are inputs for them.
    pub(super) pair_inputs: Option<PairInputs>,
    /// The layer being written: names begin with it.
    pub(super) layer: Option<usize>,
}

/// A constant of the graph.
pub(super) struct Initializer {
    pub(super) name: String,
    pub(super) element: DataType,
    pub(super) dims: Vec<i64>,
    pub(super) data: Data,
}

/// Where a constant's bytes come from.
pub(super) enum Data {
    /// A few bytes, kept in the graph.
    Inline(Vec<u8>),
    /// Kept beside the graph.
    External(Vec<u8>),
    /// One operand of weights that are stacked, kept beside the graph.
    Weight(Vec<QMatrix>, Part),
}

/// An attribute's value.
#[derive(Clone, Copy)]
pub(super) enum Attr {
    Int(usize),
    Float(f32),
}

/// One extent of a shape.
#[derive(Clone, Copy)]
pub(super) enum Dim {
    Fixed(usize),
    Named(&'static str),
}

impl Graph {
    pub(super) fn new(activations: Activations) -> Self {
        Self { activations, ..Self::default() }
    }

    /// A name that nothing in the graph has yet.
    pub(super) fn name(&mut self, role: &str) -> String {
        let name = match self.layer {
            Some(layer) => format!("layers.{layer}.{role}"),
            None => role.to_owned(),
        };
        let count = self.names.entry(name.clone()).or_default();
        *count += 1;
        if *count == 1 { name } else { format!("{name}_{count}") }
    }

    /// A node with one output of the same name as itself, which is returned.
    pub(super) fn node(&mut self, op_type: &str, role: &str, inputs: &[&str], attributes: &[(&str, Attr)]) -> String {
        let name = self.name(role);
        self.node_with_outputs(op_type, inputs, vec![name.clone()], attributes);
        name
    }

    pub(super) fn node_with_outputs(
        &mut self,
        op_type: &str,
        inputs: &[&str],
        outputs: Vec<String>,
        attributes: &[(&str, Attr)],
    ) {
        for input in inputs {
            if let Some([x, y]) = self.sums.remove(*input) {
                self.node_with_outputs("Add", &[&x, &y], vec![(*input).to_owned()], &[]);
            }
            if let Some(packed) = self.parts.get(*input).cloned() {
                self.split(&packed);
            }
        }
        let attribute = |(name, value): &(&str, Attr)| {
            let (f, i, r#type) = match value {
                Attr::Int(value) => (None, Some(*value as i64), AttributeType::Int),
                Attr::Float(value) => (Some(*value), None, AttributeType::Float),
            };
            Attribute { name: (*name).to_owned(), f, i, r#type: r#type.into(), ..Attribute::default() }
        };
        self.nodes.push(Node {
            input: inputs.iter().map(|name| (*name).to_owned()).collect(),
            name: outputs[0].clone(),
            output: outputs,
            op_type: op_type.to_owned(),
            attribute: attributes.iter().map(attribute).collect(),
            domain: domain(op_type).to_owned(),
        });
    }

    /// `x + y`, written when it is first read.
    pub(super) fn sum(&mut self, x: &str, y: &str) -> String {
        let name = self.name("sum");
        self.sums.insert(name.clone(), [x.to_owned(), y.to_owned()]);
        name
    }

    /// The operands of a sum that was not read yet; the caller writes a node that also gives the sum.
    pub(super) fn take_sum(&mut self, name: &str) -> Option<[String; 2]> {
        self.sums.remove(name)
    }

    /// Names for the parts of `packed` (`[batch, rows, …]`) of these widths, which are split when one is first read.
    pub(super) fn unpack<const N: usize>(&mut self, packed: &str, parts: [(&str, usize); N]) -> [String; N] {
        let names = parts.map(|(role, _)| self.name(role));
        for name in &names {
            self.parts.insert(name.clone(), packed.to_owned());
        }
        let widths = parts.map(|(_, width)| width);
        self.packed.insert(packed.to_owned(), names.iter().cloned().zip(widths).collect());
        names
    }

    /// The packed value of which `parts` are all parts, if none was read yet; the caller reads it instead.
    pub(super) fn take_packed(&mut self, parts: &[&str]) -> Option<String> {
        let packed = self.parts.get(parts[0])?.clone();
        let names = self.packed.get(&packed)?;
        if !names.iter().map(|(name, _)| &**name).eq(parts.iter().copied()) {
            return None;
        }
        self.packed.remove(&packed);
        parts.iter().for_each(|part| _ = self.parts.remove(*part));
        Some(packed)
    }

    fn split(&mut self, packed: &str) {
        let Some(parts) = self.packed.remove(packed) else { return };
        parts.iter().for_each(|(name, _)| _ = self.parts.remove(name));
        let widths: Vec<i64> = parts.iter().map(|(_, width)| *width as i64).collect();
        let widths = self.shape(&widths);
        let outputs = parts.into_iter().map(|(name, _)| name).collect();
        self.node_with_outputs("Split", &[packed, &widths], outputs, &[("axis", Attr::Int(2))]);
    }

    /// Sums over groups of `group` values of `x`: `[…, cols / group]`.
    pub(super) fn group_sum(&mut self, x: &str, cols: usize, group: usize) -> String {
        let key = (x.to_owned(), group);
        if let Some(name) = self.group_sums.get(&key) {
            return name.clone();
        }
        let shape = self.shape(&[0, 0, (cols / group) as i64, group as i64]);
        let grouped = self.node("Reshape", "groups", &[x, &shape], &[]);
        let axes = self.shape(&[-1]);
        let sums = self.node("ReduceSum", "group_sums", &[&grouped, &axes], &[("keepdims", Attr::Int(0))]);
        self.group_sums.insert(key, sums.clone());
        sums
    }

    /// `x` (`[batch, rows, cols]`) as the sum of two terms, each of which 8 bits per group hold: `[batch, 2 · rows, cols]`,
    /// first what multiples of `max |x| / 127` of a group give, then what they leave.
    pub(super) fn two_terms(&mut self, x: &str, cols: usize, group: usize) -> String {
        let key = (x.to_owned(), group);
        if let Some(name) = self.terms.get(&key) {
            return name.clone();
        }
        let shape = self.shape(&[0, 0, (cols / group) as i64, group as i64]);
        let groups = self.node("Reshape", "term_groups", &[x, &shape], &[]);
        let sizes = self.node("Abs", "term_sizes", &[&groups], &[]);
        let last = self.shape(&[-1]);
        let largest = self.node("ReduceMax", "term_largest", &[&sizes, &last], &[("keepdims", Attr::Int(1))]);
        let (step, least) = (self.scalar(1.0 / 127.0), self.scalar(f32::MIN_POSITIVE));
        let steps = self.node("Mul", "term_steps", &[&largest, &step], &[]);
        // A group of zeros has no step to divide by.
        let steps = self.node("Max", "term_steps", &[&steps, &least], &[]);
        let codes = self.node("Div", "term_codes", &[&groups, &steps], &[]);
        let codes = self.node("Round", "term_codes", &[&codes], &[]);
        let first = self.node("Mul", "term", &[&codes, &steps], &[]);
        let second = self.node("Sub", "term", &[&groups, &first], &[]);
        let both = self.node("Concat", "terms", &[&first, &second], &[("axis", Attr::Int(1))]);
        let joined = self.shape(&[0, -1, cols as i64]);
        let both = self.node("Reshape", "terms", &[&both, &joined], &[]);
        self.terms.insert(key, both.clone());
        both
    }

    /// Adds the two halves of `products` (`[batch, 2 · rows, cols]`) up: `[batch, rows, cols]`.
    pub(super) fn sum_of_terms(&mut self, products: &str, cols: usize, name: String) {
        let shape = self.shape(&[0, 2, -1, cols as i64]);
        let halves = self.node("Reshape", "halves", &[products, &shape], &[]);
        let axis = self.shape(&[1]);
        self.node_with_outputs("ReduceSum", &[&halves, &axis], vec![name], &[("keepdims", Attr::Int(0))]);
    }

    /// Names of the cosine and sine tables of `rope`, `[positions, head_dim / 2]`.
    pub(super) fn rope(&mut self, rope: &Arc<Rope>, positions: usize) -> [String; 2] {
        if let Some((_, names)) = self.ropes.iter().find(|(known, _)| Arc::ptr_eq(known, rope)) {
            return names.clone();
        }
        let frequencies = &rope.inverse_frequencies;
        let angle = |position: usize, frequency: &f32| position as f64 * f64::from(*frequency);
        let table = |function: fn(f64) -> f64| {
            let angles = (0..positions).flat_map(|position| frequencies.iter().map(move |f| angle(position, f)));
            angles.flat_map(|angle| (function(angle) as f32).to_le_bytes()).collect::<Vec<u8>>()
        };
        let dims = [positions as i64, frequencies.len() as i64];
        let index = self.ropes.len();
        let names = [("cos", f64::cos as fn(f64) -> f64), ("sin", f64::sin)].map(|(name, function)| {
            let name = format!("rope.{index}.{name}");
            self.initializer(name, DataType::Float, &dims, Data::External(table(function)))
        });
        self.ropes.push((rope.clone(), names.clone()));
        names
    }

    /// A constant; its name is returned.
    pub(super) fn initializer(&mut self, name: String, element: DataType, dims: &[i64], data: Data) -> String {
        self.initializers.push(Initializer { name: name.clone(), element, dims: dims.to_vec(), data });
        name
    }

    /// One operand of weights that are stacked.
    pub(super) fn weight(&mut self, name: String, matrices: &[&QMatrix], part: Part, dims: &[usize]) -> String {
        let element = if part == Part::Codes { DataType::Uint8 } else { DataType::Float };
        let dims: Vec<i64> = dims.iter().map(|extent| *extent as i64).collect();
        let matrices = matrices.iter().map(|matrix| (*matrix).clone()).collect();
        self.initializer(name, element, &dims, Data::Weight(matrices, part))
    }

    /// A norm's weight or a bias.
    pub(super) fn vector(&mut self, name: String, values: &[f32]) -> String {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.initializer(name, DataType::Float, &[values.len() as i64], Data::External(bytes))
    }

    /// A scalar.
    pub(super) fn scalar(&mut self, value: f32) -> String {
        let name = self.name("constant");
        self.initializer(name, DataType::Float, &[], Data::Inline(value.to_le_bytes().to_vec()))
    }

    /// A vector of integers, such as a shape or axes.
    pub(super) fn shape(&mut self, values: &[i64]) -> String {
        let name = format!("shape.{}", values.iter().map(i64::to_string).collect::<Vec<_>>().join("."));
        if self.names.insert(name.clone(), 1).is_none() {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            self.initializer(name.clone(), DataType::Int64, &[values.len() as i64], Data::Inline(bytes));
        }
        name
    }

    /// Every matrix of the model that is in the graph.
    pub(super) fn weights(&self) -> impl Iterator<Item = &QMatrix> {
        self.initializers.iter().flat_map(|initializer| match &initializer.data {
            Data::Weight(matrices, _) => &matrices[..],
            Data::Inline(_) | Data::External(_) => &[],
        })
    }

    pub(super) fn input(&mut self, name: &str, element: DataType, shape: &[Dim]) -> String {
        self.inputs.push(value_info(name, element, shape));
        name.to_owned()
    }

    /// An input that may be left out; it then is `default`.
    pub(super) fn optional_input(
        &mut self,
        name: &str,
        element: DataType,
        shape: &[Dim],
        dims: &[i64],
        default: Vec<u8>,
    ) {
        self.input(name, element, shape);
        self.initializer(name.to_owned(), element, dims, Data::Inline(default));
    }

    pub(super) fn output(&mut self, name: &str, element: DataType, shape: &[Dim]) {
        self.outputs.push(value_info(name, element, shape));
    }

    /// Gives `value` another name, for an output.
    pub(super) fn rename(&mut self, value: &str, name: &str) {
        for output in self.nodes.iter_mut().flat_map(|node| &mut node.output).filter(|output| *output == value) {
            name.clone_into(output);
        }
    }

    /// The finished file; `place` says where each constant that is kept beside the graph lies.
    pub(super) fn into_model(
        self,
        metadata: &[(&str, String)],
        mut place: impl FnMut(&Initializer) -> Result<Tensor>,
    ) -> Result<Model> {
        let tensor = |initializer: Initializer| match initializer.data {
            Data::Inline(bytes) => Ok(Tensor {
                dims: initializer.dims,
                data_type: initializer.element.into(),
                name: initializer.name,
                raw_data: Some(bytes),
                ..Tensor::default()
            }),
            Data::External(_) | Data::Weight(..) => place(&initializer),
        };
        let graph = super::proto::Graph {
            name: "decoder".to_owned(),
            initializer: self.initializers.into_iter().map(tensor).collect::<Result<_>>()?,
            node: self.nodes,
            input: self.inputs,
            output: self.outputs,
            sparse_initializer: Vec::new(),
        };
        let entry = |(key, value): &(&str, String)| Entry { key: (*key).to_owned(), value: value.clone() };
        Ok(Model {
            ir_version: IR_VERSION,
            producer_name: "edgeweld".to_owned(),
            producer_version: env!("CARGO_PKG_VERSION").to_owned(),
            graph: Some(graph),
            opset_import: [("", OPSET), (MICROSOFT, 1), (OWN, 1)]
                .into_iter()
                .filter(|(domain, _)| *domain != OWN || self.pair_inputs == Some(PairInputs::Place))
                .map(|(domain, version)| Opset { domain: domain.to_owned(), version })
                .collect(),
            metadata: metadata.iter().map(entry).collect(),
            function: Vec::new(),
        })
    }
}

/// The domain of an operator. ONNX Runtime keeps `SimplifiedLayerNormalization` in the default one.
fn domain(op_type: &str) -> &'static str {
    const STANDARD: [&str; 19] = [
        "Abs",
        "Add",
        "Cast",
        "Concat",
        "Div",
        "Gather",
        "Max",
        "Mul",
        "ReduceMax",
        "ReduceSum",
        "Reshape",
        "Round",
        "Shape",
        "SimplifiedLayerNormalization",
        "Slice",
        "Split",
        "Sub",
        "Tanh",
        "Unsqueeze",
    ];
    match op_type {
        SIDE_PATH => OWN,
        _ if STANDARD.contains(&op_type) => "",
        _ => MICROSOFT,
    }
}

fn value_info(name: &str, element: DataType, shape: &[Dim]) -> ValueInfo {
    let dimension = |dim: &Dim| Dimension {
        extent: Some(match dim {
            Dim::Fixed(extent) => Extent::Fixed(*extent as i64),
            Dim::Named(name) => Extent::Named((*name).to_owned()),
        }),
    };
    let shape = Shape { dim: shape.iter().map(dimension).collect() };
    let tensor = TensorType { element: element.into(), shape: Some(shape) };
    ValueInfo { name: name.to_owned(), r#type: Some(Type { tensor: Some(tensor) }) }
}
