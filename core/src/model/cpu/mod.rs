//! The CPU backend: quantised weights read in place, activations in f32, keys and values in f16 or 8 bits.

mod attention;
mod buffer;
mod cache;
mod cores;
mod head;
mod lanes;
mod memory;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use attention::Attention;
use buffer::{Arena, Buffer};
pub use cache::{CpuSequence, KvType};
#[cfg(feature = "onnx")]
pub(super) use cores::performance_cores;

use super::backend::{Backend, Sequence};
use super::config::{Activation, AttentionParams};
use crate::kernels::{Activations, Kernels, Product, SideMemory, SidePath};
use crate::lora::LayerLora;
use crate::quant::{QMatrix, dequantize};
use crate::threads::{Chunks, ThreadPool};
use crate::{Error, Result};

/// Values below which a row operator runs on the calling thread alone.
const SERIAL_MAX: usize = 16_384;
/// Most threads that [`CpuOptions::threads`] may ask for.
pub(super) const THREADS_MAX: usize = 512;

/// How the CPU backend runs.
#[derive(Clone, Debug, Default)]
pub struct CpuOptions {
    /// Threads that compute, the caller's included; `None` takes one per performance core.
    pub threads: Option<usize>,
    /// How sequences keep their keys and values.
    pub kv_type: KvType,
}

/// The CPU backend: the fast path on devices without a usable GPU.
///
/// Weights stay as the file stores them, memory-mapped; activations are quantised to 16 bits per block of 32 for the
/// integer products. Any number of sequences may share one `Cpu`: their operators take turns.
pub struct Cpu {
    kernels: Kernels,
    pool: ThreadPool,
    arena: Arc<Arena>,
    activations: Mutex<Vec<Activations>>,
    side_memory: SideMemory,
    kv_type: KvType,
}

/// One layer's side path: the gate's and up projection's share their input.
pub struct CpuLora {
    gate_up: Option<SidePath>,
    down: Option<SidePath>,
}

impl Cpu {
    /// Starts the threads and picks the best kernels of this CPU.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if `threads` is zero or more than 512.
    pub fn new(options: &CpuOptions) -> Result<Self> {
        Self::with_kernels(options, Kernels::detect())
    }

    /// Starts the threads; `kernels` compute, so that instruction sets can be compared in one process.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_kernels(options: &CpuOptions, kernels: Kernels) -> Result<Self> {
        let threads = options.threads.unwrap_or_else(cores::performance_cores);
        if !(1..=THREADS_MAX).contains(&threads) {
            let reason = format!("{threads} is not between 1 and {THREADS_MAX}");
            return Err(Error::InvalidOption { option: "threads", reason });
        }
        log::info!("CPU backend: {threads} threads, {} kernels", kernels.isa());
        Ok(Self {
            kernels,
            pool: ThreadPool::new(threads),
            arena: Arc::default(),
            activations: Mutex::default(),
            side_memory: SideMemory::default(),
            kv_type: options.kv_type,
        })
    }

    /// Threads that compute.
    pub fn thread_count(&self) -> usize {
        self.pool.worker_count()
    }

    fn with_activations<T>(&self, run: impl FnOnce(&mut Activations) -> T) -> T {
        let free = || self.activations.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = free().pop();
        let mut activations = taken.unwrap_or_default();
        let result = run(&mut activations);
        free().push(activations);
        result
    }

    /// Runs `run(row, out's row)` for every row of `out`, in parallel if that is worth it.
    fn each_row(&self, out: &mut Buffer, run: impl Fn(usize, &mut [f32]) + Sync) {
        let (rows, cols) = (out.rows, out.cols);
        if rows == 1 || rows * cols < SERIAL_MAX {
            return out.chunks_exact_mut(cols).enumerate().for_each(|(row, out)| run(row, out));
        }
        struct Rows(*mut f32);
        // SAFETY: each row is given to one worker.
        unsafe impl Sync for Rows {}
        let pointer = Rows(out.as_mut_ptr());
        let pointer = &pointer;
        let chunks = Chunks::new(rows, rows.div_ceil(self.pool.worker_count() * 4));
        self.pool.run(|_, _| {
            while let Some(range) = chunks.take() {
                for row in range {
                    // SAFETY: the row is in `out`, and `chunks` hands it to one worker.
                    run(row, unsafe { std::slice::from_raw_parts_mut(pointer.0.add(row * cols), cols) });
                }
            }
        });
    }
}

impl Backend for Cpu {
    type Tensor = Buffer;
    type Matrix = QMatrix;
    type Vector = Arc<[f32]>;
    type Lora = CpuLora;
    type Sequence = CpuSequence;

    fn matrix(&self, source: QMatrix) -> Result<QMatrix> {
        Ok(source)
    }

    fn vector(&self, values: Vec<f32>) -> Result<Arc<[f32]>> {
        Ok(values.into())
    }

    fn lora(&self, layer: &LayerLora, scale: f32) -> Result<CpuLora> {
        Ok(CpuLora {
            gate_up: SidePath::new(&self.kernels, &self.side_memory, &[layer.gate.as_ref(), layer.up.as_ref()], scale),
            down: SidePath::new(&self.kernels, &self.side_memory, &[layer.down.as_ref()], scale),
        })
    }

    fn sequence(&self, layers: &[AttentionParams], capacity: usize) -> Result<CpuSequence> {
        CpuSequence::new(layers, capacity, self.kv_type)
    }

    fn embed(&self, table: &QMatrix, ids: &[u32], scale: f32) -> Result<Buffer> {
        check_ids(ids, table.rows())?;
        let mut out = self.arena.take(ids.len(), table.cols());
        self.each_row(&mut out, |row, out| {
            dequantize(table.block_type(), table.row(ids[row] as usize), out);
            if scale != 1.0 {
                out.iter_mut().for_each(|value| *value *= scale);
            }
        });
        Ok(out)
    }

    fn rms_norm(&self, x: &Buffer, weight: &Arc<[f32]>, epsilon: f32) -> Result<Buffer> {
        let mut out = self.arena.take(x.rows, x.cols);
        self.each_row(&mut out, |row, out| {
            self.kernels.rms_norm(&x[row * x.cols..][..x.cols], weight, epsilon, out);
        });
        Ok(out)
    }

    fn project<const N: usize>(
        &self,
        x: &Buffer,
        weights: [&QMatrix; N],
        biases: [Option<&Arc<[f32]>>; N],
    ) -> Result<[Buffer; N]> {
        let mut outs = weights.map(|weight| self.arena.take(x.rows, weight.rows()));
        let mut index = 0;
        let mut products = outs.each_mut().map(|out| {
            let product = Product { weight: weights[index], bias: biases[index].map(|bias| &bias[..]), out };
            index += 1;
            product
        });
        self.with_activations(|activations| {
            self.kernels.matmul(&self.pool, &mut activations.input(x, x.cols), &mut products, None);
        });
        Ok(outs)
    }

    fn attend(
        &self,
        layer: usize,
        qkv: [Buffer; 3],
        q_norm: Option<&Arc<[f32]>>,
        k_norm: Option<&Arc<[f32]>>,
        params: &AttentionParams,
        sequence: &mut CpuSequence,
    ) -> Result<Buffer> {
        let start = sequence.len();
        let (cache, rope) = sequence.layer(layer, &params.rope, qkv[0].rows);
        let attention = Attention {
            kernels: &self.kernels,
            pool: &self.pool,
            arena: &self.arena,
            params,
            q_norm: q_norm.map(|norm| &norm[..]),
            k_norm: k_norm.map(|norm| &norm[..]),
            start,
        };
        Ok(attention.run(qkv, cache, rope))
    }

    fn ffn_in(
        &self,
        x: &Buffer,
        gate: &QMatrix,
        up: &QMatrix,
        activation: Activation,
        lora: Option<&CpuLora>,
    ) -> Result<Buffer> {
        let mut out = self.arena.take(x.rows, gate.rows());
        let side = lora.and_then(|lora| lora.gate_up.as_ref());
        self.with_activations(|activations| {
            let mut x = activations.input(x, x.cols);
            self.kernels.gated(&self.pool, &mut x, [gate, up], activation, side, &mut out);
        });
        Ok(out)
    }

    fn ffn_out(&self, x: &Buffer, down: &QMatrix, lora: Option<&CpuLora>) -> Result<Buffer> {
        let mut out = self.arena.take(x.rows, down.rows());
        let side = lora.and_then(|lora| lora.down.as_ref());
        self.with_activations(|activations| {
            let mut products = [Product { weight: down, bias: None, out: &mut out }];
            self.kernels.matmul(&self.pool, &mut activations.input(x, x.cols), &mut products, side);
        });
        Ok(out)
    }

    fn add(&self, mut x: Buffer, y: &Buffer) -> Result<Buffer> {
        x.iter_mut().zip(&y[..]).for_each(|(x, y)| *x += y);
        Ok(x)
    }

    fn softcap(&self, mut x: Buffer, cap: f32) -> Result<Buffer> {
        self.each_row(&mut x, |_, row| self.kernels.softcap(row, cap));
        Ok(x)
    }

    fn rows(&self, x: &Buffer, rows: Range<usize>) -> Result<Buffer> {
        let mut out = self.arena.take(rows.len(), x.cols);
        out.copy_from_slice(&x[rows.start * x.cols..rows.end * x.cols]);
        Ok(out)
    }

    fn row_count(&self, x: &Buffer) -> usize {
        x.rows
    }

    fn read(&self, x: &Buffer, out: &mut Vec<f32>) -> Result<()> {
        out.clear();
        out.extend_from_slice(x);
        Ok(())
    }
}

/// Token ids come from a tokenizer or from a caller; a table has only so many rows.
pub(super) fn check_ids(ids: &[u32], vocab_size: usize) -> Result<()> {
    match ids.iter().find(|id| **id as usize >= vocab_size) {
        Some(id) => Err(Error::InvalidOption {
            option: "ids",
            reason: format!("token {id} is not in the vocabulary of {vocab_size}"),
        }),
        None => Ok(()),
    }
}
