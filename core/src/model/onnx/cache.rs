//! The KV cache in tensors that ONNX Runtime reads and writes.

use half::f16;
use ort::memory::Allocator;
use ort::session::IoBinding;
use ort::value::{PrimitiveTensorElementType, Tensor, TensorElementType};

use super::library::failed;
use super::wiring::{CacheWires, Wiring};
use crate::{Error, Result};

/// Tokens that a new cache has room for; it doubles when it is full.
const FIRST_ROOM: usize = 256;

/// A sequence's cache, of whichever element type.
pub(super) trait Cache: Send {
    /// Tokens that attention may write to in the next run: the extent that a mask must have.
    fn room(&self) -> usize;

    /// Binds tensors that hold `len` tokens and have room for `total`.
    fn make_room(&mut self, len: usize, total: usize, binding: &mut IoBinding) -> Result<()>;

    /// Takes what a run wrote: `total` tokens.
    fn finish(&mut self, total: usize);

    /// Bytes that `len` tokens take.
    fn size_bytes(&self, len: usize) -> usize;

    /// Appends the first `len` tokens to `out`, tensor by tensor and head by head, little-endian.
    fn write(&self, len: usize, out: &mut Vec<u8>);

    /// Restores what [`write`](Self::write) wrote. The bytes are untrusted; nothing is changed by those that are refused.
    fn read(&mut self, len: usize, state: &[u8], binding: &mut IoBinding) -> Result<()>;
}

/// An empty cache of a graph, for up to `capacity` tokens.
pub(super) fn cache(wiring: &Wiring, capacity: usize) -> Box<dyn Cache> {
    match wiring.cache_type {
        TensorElementType::Float16 => Box::new(Typed::<f16>::new(wiring, capacity)),
        _ => Box::new(Typed::<f32>::new(wiring, capacity)),
    }
}

/// A type that keys and values come in.
trait Element: PrimitiveTensorElementType + Copy + std::fmt::Debug + Send + 'static {
    const SIZE_BYTES: usize;
    /// From [`SIZE_BYTES`](Self::SIZE_BYTES) little-endian bytes.
    fn read(bytes: &[u8]) -> Self;
    fn write(self, out: &mut Vec<u8>);
    fn is_finite(self) -> bool;
}

impl Element for f32 {
    const SIZE_BYTES: usize = 4;

    fn read(bytes: &[u8]) -> Self {
        Self::from_le_bytes(bytes.try_into().expect("four bytes"))
    }

    fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_le_bytes());
    }

    fn is_finite(self) -> bool {
        self.is_finite()
    }
}

impl Element for f16 {
    const SIZE_BYTES: usize = 2;

    fn read(bytes: &[u8]) -> Self {
        Self::from_le_bytes(bytes.try_into().expect("two bytes"))
    }

    fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_le_bytes());
    }

    fn is_finite(self) -> bool {
        self.is_finite()
    }
}

struct Typed<T: Element> {
    tensors: Vec<CacheTensor<T>>,
    /// Tokens that the tensors have memory for. Where attention does not append in place, exactly those it will read.
    room: usize,
    capacity: usize,
    in_place: bool,
}

struct CacheTensor<T: Element> {
    past: String,
    present: String,
    head_count: usize,
    head_dim: usize,
    /// `[1, head_count, room, head_dim]`; bound as past, and as present where attention appends in place.
    values: Option<Tensor<T>>,
    /// Bound as present elsewhere.
    next: Option<Tensor<T>>,
}

impl<T: Element> Typed<T> {
    fn new(wiring: &Wiring, capacity: usize) -> Self {
        let tensor = |wires: &CacheWires| CacheTensor {
            past: wires.past.clone(),
            present: wires.present.clone(),
            head_count: wires.head_count,
            head_dim: wires.head_dim,
            values: None,
            next: None,
        };
        let tensors = wiring.cache.iter().map(tensor).collect();
        Self { tensors, room: 0, capacity, in_place: wiring.appends_in_place }
    }

    fn values_per_token(&self) -> usize {
        self.tensors.iter().map(|tensor| tensor.head_count * tensor.head_dim).sum()
    }

    /// Moves the first `len` tokens into tensors with room for `room`.
    fn resize(&mut self, len: usize, room: usize) -> Result<()> {
        for tensor in &mut self.tensors {
            let mut values = tensor.new_tensor(room)?;
            if let Some(before) = &tensor.values {
                let width = len * tensor.head_dim;
                let before = before.extract_tensor().1.chunks_exact((self.room * tensor.head_dim).max(1));
                let after = values.extract_tensor_mut().1.chunks_exact_mut((room * tensor.head_dim).max(1));
                before.zip(after).for_each(|(before, after)| after[..width].copy_from_slice(&before[..width]));
            }
            tensor.values = Some(values);
        }
        self.room = room;
        Ok(())
    }

    /// Makes room in place, at least twice as much as there is.
    fn grow(&mut self, len: usize, total: usize, binding: &mut IoBinding) -> Result<()> {
        if total <= self.room {
            return Ok(());
        }
        self.resize(len, total.max(2 * self.room).max(FIRST_ROOM).min(self.capacity))?;
        for tensor in &mut self.tensors {
            let values = tensor.values.as_mut().expect("just made");
            binding.bind_input(&*tensor.past, values).map_err(failed)?;
            binding.bind_output(&*tensor.present, values).map_err(failed)?;
        }
        Ok(())
    }

    /// Binds exactly `len` tokens as past, and new tensors for `total` as present.
    fn renew(&mut self, len: usize, total: usize, binding: &mut IoBinding) -> Result<()> {
        if self.room != len || self.tensors.iter().any(|tensor| tensor.values.is_none()) {
            self.resize(len, len)?;
        }
        for tensor in &mut self.tensors {
            let mut next = tensor.new_tensor(total)?;
            binding.bind_input(&*tensor.past, tensor.values.as_ref().expect("just made")).map_err(failed)?;
            binding.bind_output(&*tensor.present, &mut next).map_err(failed)?;
            tensor.next = Some(next);
        }
        Ok(())
    }
}

impl<T: Element> CacheTensor<T> {
    fn new_tensor(&self, tokens: usize) -> Result<Tensor<T>> {
        let shape = [1, self.head_count as i64, tokens as i64, self.head_dim as i64];
        Tensor::new(&Allocator::default(), shape).map_err(failed)
    }
}

impl<T: Element> Cache for Typed<T> {
    fn room(&self) -> usize {
        self.room
    }

    fn make_room(&mut self, len: usize, total: usize, binding: &mut IoBinding) -> Result<()> {
        if self.in_place { self.grow(len, total, binding) } else { self.renew(len, total, binding) }
    }

    fn finish(&mut self, total: usize) {
        if !self.in_place {
            self.tensors.iter_mut().for_each(|tensor| tensor.values = tensor.next.take());
            self.room = total;
        }
    }

    fn size_bytes(&self, len: usize) -> usize {
        len * self.values_per_token() * T::SIZE_BYTES
    }

    fn write(&self, len: usize, out: &mut Vec<u8>) {
        for tensor in &self.tensors {
            let Some(values) = &tensor.values else { continue };
            for head in values.extract_tensor().1.chunks_exact((self.room * tensor.head_dim).max(1)) {
                head[..len * tensor.head_dim].iter().for_each(|value| value.write(out));
            }
        }
    }

    fn read(&mut self, len: usize, state: &[u8], binding: &mut IoBinding) -> Result<()> {
        let invalid = |reason: String| Error::InvalidPrefix { reason };
        let expected = self.size_bytes(len);
        if state.len() != expected {
            return Err(invalid(format!("{} bytes of cache for {len} tokens, expected {expected}", state.len())));
        }
        let values = || state.chunks_exact(T::SIZE_BYTES).map(T::read);
        // Refused before anything is overwritten: one infinite value would turn all logits into NaN.
        if values().any(|value| !value.is_finite()) {
            return Err(invalid("the cache holds a value that is not a number".to_owned()));
        }
        if self.in_place {
            self.grow(0, len, binding)?;
        } else {
            self.resize(0, len)?;
        }
        let (room, mut values) = (self.room, values());
        for tensor in &mut self.tensors {
            let width = tensor.head_dim;
            let Some(tensor) = &mut tensor.values else { continue };
            for head in tensor.extract_tensor_mut().1.chunks_exact_mut((room * width).max(1)) {
                head[..len * width].iter_mut().zip(&mut values).for_each(|(place, value)| *place = value);
            }
        }
        Ok(())
    }
}
