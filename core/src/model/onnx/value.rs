//! A value of the graph that is being written, and what is computed from it in several nodes.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Activations;
use super::graph::{Attr, Dim, Graph};
use super::proto::DataType;
use super::side_operator::{ATTRIBUTES, SIDE_PATH};
use super::side_path::{PLACE, input_name};
use super::weight::{Layout, Part, layout};
use crate::lora::Target;
use crate::model::config::AttentionParams;
use crate::quant::QMatrix;

/// `accuracy_level` of `MatMulNBits`. Its f32 kernels are for 4-bit weights: 8-bit ones it would dequantise in every run.
const COMPUTES_IN_F32: usize = 1;
const COMPUTES_IN_INT8: usize = 4;

/// A value of the graph that is being written.
#[derive(Clone)]
pub struct Value {
    graph: Arc<Mutex<Graph>>,
    pub(super) name: String,
}

impl Value {
    /// The first value of a graph.
    pub(super) fn first(graph: Graph, name: String) -> Self {
        Self { graph: Arc::new(Mutex::new(graph)), name }
    }

    pub(super) fn graph(&self) -> MutexGuard<'_, Graph> {
        self.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn with(&self, name: String) -> Self {
        Self { graph: self.graph.clone(), name }
    }

    pub(super) fn node(&self, op_type: &str, role: &str, inputs: &[&str], attributes: &[(&str, Attr)]) -> Self {
        let name = self.graph().node(op_type, role, inputs, attributes);
        self.with(name)
    }

    /// `W · x` of weights that are stacked and have one layout.
    pub(super) fn product(&self, role: &str, weights: &[&QMatrix]) -> Self {
        let rows = weights.iter().map(|weight| weight.rows()).sum();
        let cols = weights[0].cols();
        let mut graph = self.graph();
        let name = graph.name(role);
        let Layout::Blocks { bits, group, has_mins } = layout(weights[0].block_type()) else {
            let weight = graph.weight(format!("{name}.weight"), weights, Part::Floats, &[rows, cols]);
            graph.node_with_outputs(
                "FusedMatMul",
                &[&self.name, &weight],
                vec![name.clone()],
                &[("transB", Attr::Int(1))],
            );
            drop(graph);
            return self.with(name);
        };
        let groups = cols / group;
        let codes = graph.weight(format!("{name}.codes"), weights, Part::Codes, &[rows, groups, group * bits / 8]);
        let steps = graph.weight(format!("{name}.steps"), weights, Part::Steps, &[rows * groups]);
        let exact = graph.activations == Activations::Exact;
        let attributes = [
            ("K", Attr::Int(cols)),
            ("N", Attr::Int(rows)),
            ("bits", Attr::Int(bits)),
            ("block_size", Attr::Int(group)),
            ("accuracy_level", Attr::Int(if exact && bits == 4 { COMPUTES_IN_F32 } else { COMPUTES_IN_INT8 })),
        ];
        if exact && bits == 8 {
            let terms = graph.two_terms(&self.name, cols, group);
            let products = graph.node("MatMulNBits", "products", &[&terms, &codes, &steps], &attributes);
            graph.sum_of_terms(&products, rows, name.clone());
        } else {
            graph.node_with_outputs("MatMulNBits", &[&self.name, &codes, &steps], vec![name.clone()], &attributes);
        }
        if has_mins {
            let sums = graph.group_sum(&self.name, cols, group);
            let mins = graph.weight(format!("{name}.mins"), weights, Part::Mins, &[rows, groups]);
            let offset = graph.node("FusedMatMul", "offset", &[&sums, &mins], &[("transB", Attr::Int(1))]);
            let sum = graph.node("Add", "with_offset", &[&name, &offset], &[]);
            drop(graph);
            return self.with(sum);
        }
        drop(graph);
        self.with(name)
    }

    /// Products of weights that share their input: one node, split later, where all have one layout. `with` goes on with
    /// those of some of the weights.
    pub(super) fn products<const N: usize>(
        &self,
        packed: &str,
        weights: [(&str, &QMatrix); N],
        with: impl Fn(Self, Range<usize>) -> Self,
    ) -> [Self; N] {
        let layouts = weights.map(|(_, weight)| layout(weight.block_type()));
        if N == 1 || layouts.iter().any(|layout| *layout != layouts[0]) {
            let one = |index: usize| with(self.product(weights[index].0, &[weights[index].1]), index..index + 1);
            return std::array::from_fn(one);
        }
        let packed = with(self.product(packed, &weights.map(|(_, weight)| weight)), 0..N);
        let names = self.graph().unpack(&packed.name, weights.map(|(role, weight)| (role, weight.rows())));
        names.map(|name| self.with(name))
    }

    /// `y + b·(a·x)` of targets whose outputs are stacked, by our operator.
    pub(super) fn own_side_path(&self, y: &Self, targets: Range<usize>) -> Self {
        let mut graph = self.graph();
        let values = [graph.layer.unwrap_or_default(), targets.start, targets.len()].map(Attr::Int);
        let attributes: Vec<_> = ATTRIBUTES.into_iter().zip(values).collect();
        let sum = graph.node(SIDE_PATH, "with_side_path", &[&self.name, &y.name, PLACE], &attributes);
        drop(graph);
        self.with(sum)
    }

    /// `y + b·(a·x)` with the pair from the graph's inputs, by standard operators.
    pub(super) fn side_path(&self, y: Self, target: Target, weight: &QMatrix) -> Self {
        let mut graph = self.graph();
        let layer = graph.layer.unwrap_or_default();
        let [a, b] = ["a", "b"].map(|part| input_name(layer, target, part));
        let zeros = |count: usize| vec![0; 4 * count];
        let (rows, cols) = (weight.rows(), weight.cols());
        let (rank, rows_dim, cols_dim) = (Dim::Named("rank"), Dim::Fixed(rows), Dim::Fixed(cols));
        graph.optional_input(&a, DataType::Float, &[rank, cols_dim], &[1, cols as i64], zeros(cols));
        graph.optional_input(&b, DataType::Float, &[rows_dim, rank], &[rows as i64, 1], zeros(rows));
        let transposed = [("transB", Attr::Int(1))];
        let inner = graph.node("FusedMatMul", "lora_a", &[&self.name, &a], &transposed);
        let outer = graph.node("FusedMatMul", "lora_b", &[&inner, &b], &transposed);
        let sum = graph.node("Add", "with_side_path", &[&y.name, &outer], &[]);
        drop(graph);
        y.with(sum)
    }

    /// Norms each head of width `head_dim`.
    pub(super) fn norm_heads(&self, weight: Option<&Arc<[f32]>>, heads: usize, params: &AttentionParams) -> Self {
        let Some(weight) = weight else { return self.clone() };
        let mut graph = self.graph();
        let split = graph.shape(&[0, 0, heads as i64, params.head_dim as i64]);
        let split = graph.node("Reshape", "heads", &[&self.name, &split], &[]);
        let name = graph.name("head_norm");
        let weight = graph.vector(format!("{name}.weight"), weight);
        graph.node_with_outputs(
            "SimplifiedLayerNormalization",
            &[&split, &weight],
            vec![name.clone()],
            &[("epsilon", Attr::Float(params.norm_epsilon)), ("stash_type", Attr::Int(1))],
        );
        let joined = graph.shape(&[0, 0, (heads * params.head_dim) as i64]);
        let joined = graph.node("Reshape", "joined", &[&name, &joined], &[]);
        drop(graph);
        self.with(joined)
    }
}
