use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use edgeweld::model::{AttentionParams, Sequence};
use edgeweld::{Error, Result};

/// Keys and values that sequences continue from; constants, so no gradient flows into them.
#[derive(Clone)]
pub struct Prefix {
    pub(super) len: usize,
    // Per layer: rotated keys and values, [len, kv_head_count · head_dim].
    pub(super) layers: Vec<(Tensor, Tensor)>,
}

impl Prefix {
    /// Tokens in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no tokens.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of its keys and values.
    pub fn size_bytes(&self) -> usize {
        self.layers.iter().map(|(k, v)| 4 * (k.elem_count() + v.elem_count())).sum()
    }
}

/// One or more sequences whose rows follow each other without padding.
pub struct Batch {
    pub(super) ranges: Vec<Range<usize>>,
    pub(super) prefixes: Vec<Option<Arc<Prefix>>>,
    capacity: usize,
    // What this pass appends, per layer; only a single sequence keeps it.
    pub(super) pending: Option<Vec<(Tensor, Tensor)>>,
    row_sizes: Vec<usize>,
}

impl Batch {
    /// Independent sequences of `lengths` tokens, each continuing its prefix if it has one; for one forward pass.
    pub fn packed(lengths: &[usize], prefixes: Vec<Option<Arc<Prefix>>>) -> Self {
        assert_eq!(lengths.len(), prefixes.len(), "one prefix entry per sequence");
        let mut start = 0;
        let ranges: Vec<_> = lengths
            .iter()
            .map(|len| {
                start += len;
                start - len..start
            })
            .collect();
        Self { ranges, prefixes, capacity: start, pending: None, row_sizes: Vec::new() }
    }

    /// One sequence whose keys and values are kept, so that further passes continue it.
    pub fn single(layers: &[AttentionParams], capacity: usize) -> Self {
        Self {
            ranges: vec![0..0],
            prefixes: vec![None],
            capacity,
            pending: Some(Vec::new()),
            row_sizes: layers.iter().map(|params| params.kv_head_count * params.head_dim).collect(),
        }
    }

    /// What a [`single`](Self::single) sequence has cached.
    pub fn into_prefix(mut self) -> Option<Arc<Prefix>> {
        self.prefixes.pop().flatten()
    }

    fn prefix(&self) -> Option<&Arc<Prefix>> {
        match &self.pending {
            Some(_) => self.prefixes[0].as_ref(),
            None => None,
        }
    }

    /// Row ranges of this pass; a single sequence takes all `rows`.
    pub(super) fn ranges(&self, rows: usize) -> Vec<Range<usize>> {
        if self.pending.is_some() { vec![0..rows] } else { self.ranges.clone() }
    }

    pub(super) fn keep(&mut self, keys: Tensor, values: Tensor) {
        if let Some(pending) = &mut self.pending {
            pending.push((keys, values));
        }
    }
}

fn backend_error(error: candle_core::Error) -> Error {
    Error::Backend { backend: "grad", reason: error.to_string() }
}

impl Sequence for Batch {
    fn len(&self) -> usize {
        self.prefix().map_or(0, |prefix| prefix.len)
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn size_bytes(&self) -> usize {
        4 * 2 * self.row_sizes.iter().sum::<usize>()
    }

    fn advance(&mut self, rows: usize) {
        let Some(pending) = &mut self.pending else { return };
        let pending = std::mem::take(pending);
        let len = self.len() + rows;
        let layers = match self.prefixes[0].take() {
            None => pending,
            Some(old) => {
                let join = |old: &Tensor, new: &Tensor| {
                    // Both are [rows, cols] f32 of one device, so this cannot fail but for lack of memory.
                    Tensor::cat(&[old, new], 0).expect("same width")
                };
                let layers = old.layers.iter().zip(&pending);
                layers.map(|((k, v), (new_k, new_v))| (join(k, new_k), join(v, new_v))).collect()
            }
        };
        self.prefixes[0] = Some(Arc::new(Prefix { len, layers }));
    }

    fn truncate(&mut self, len: usize) {
        let Some(prefix) = self.prefixes[0].take_if(|prefix| len < prefix.len) else { return };
        if len > 0 {
            let cut = |t: &Tensor| t.narrow(0, 0, len).expect("shorter than the tensor");
            let layers = prefix.layers.iter().map(|(k, v)| (cut(k), cut(v))).collect();
            self.prefixes[0] = Some(Arc::new(Prefix { len, layers }));
        }
    }

    fn write_state(&self, out: &mut Vec<u8>) -> Result<()> {
        let Some(prefix) = self.prefix() else { return Ok(()) };
        for tensor in prefix.layers.iter().flat_map(|(k, v)| [k, v]) {
            let values = tensor.flatten_all().and_then(|t| t.to_vec1::<f32>()).map_err(backend_error)?;
            out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        Ok(())
    }

    fn read_state(&mut self, len: usize, state: &[u8]) -> Result<()> {
        let invalid = |reason: String| Error::InvalidPrefix { reason };
        if self.pending.is_none() {
            return Err(invalid("a packed batch keeps no state".into()));
        }
        if len > self.capacity {
            return Err(Error::ContextFull { required: len, available: self.capacity });
        }
        let expected = len * self.size_bytes();
        if state.len() != expected {
            return Err(invalid(format!("{} bytes for {len} tokens, expected {expected}", state.len())));
        }
        let mut values = state.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let mut tensor = |cols: usize| {
            let data: Vec<f32> = values.by_ref().take(len * cols).collect();
            Tensor::from_vec(data, (len, cols), &Device::Cpu).map_err(backend_error)
        };
        let layers = self.row_sizes.iter().map(|&cols| Ok((tensor(cols)?, tensor(cols)?))).collect::<Result<_>>()?;
        self.prefixes[0] = (len > 0).then(|| Arc::new(Prefix { len, layers }));
        Ok(())
    }
}
