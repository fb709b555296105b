//! Inputs of integers that every run sets anew.

use ort::session::IoBinding;
use ort::value::{Tensor, TensorElementType};

use super::library::failed;
use super::wiring::Integers;
use crate::Result;

/// One input: its tensor stays bound while its shape stays the same, and only its values change.
pub(super) struct Input {
    wires: Integers,
    values: Option<Values>,
}

enum Values {
    I32(Tensor<i32>),
    I64(Tensor<i64>),
}

impl Input {
    pub(super) fn new(wires: &Integers) -> Self {
        Self { wires: wires.clone(), values: None }
    }

    /// Sets the input to `values`, in `shape`, which has room for them all.
    pub(super) fn set(
        &mut self,
        shape: &[usize],
        values: impl Iterator<Item = usize>,
        binding: &mut IoBinding,
    ) -> Result<()> {
        if self.values.as_ref().is_none_or(|bound| !bound.has_shape(shape)) {
            let count = shape.iter().product();
            let made = match self.wires.element {
                TensorElementType::Int32 => {
                    let tensor = Tensor::from_array((shape.to_vec(), vec![0_i32; count])).map_err(failed)?;
                    binding.bind_input(&*self.wires.name, &tensor).map_err(failed)?;
                    Values::I32(tensor)
                }
                _ => {
                    let tensor = Tensor::from_array((shape.to_vec(), vec![0_i64; count])).map_err(failed)?;
                    binding.bind_input(&*self.wires.name, &tensor).map_err(failed)?;
                    Values::I64(tensor)
                }
            };
            self.values = Some(made);
        }
        match self.values.as_mut().expect("just made") {
            Values::I32(tensor) => fill(tensor.extract_tensor_mut().1, values.map(|value| value as i32)),
            Values::I64(tensor) => fill(tensor.extract_tensor_mut().1, values.map(|value| value as i64)),
        }
        Ok(())
    }
}

impl Values {
    fn has_shape(&self, shape: &[usize]) -> bool {
        let bound = match self {
            Self::I32(tensor) => tensor.shape(),
            Self::I64(tensor) => tensor.shape(),
        };
        bound.iter().map(|extent| *extent as usize).eq(shape.iter().copied())
    }
}

fn fill<T>(places: &mut [T], values: impl Iterator<Item = T>) {
    places.iter_mut().zip(values).for_each(|(place, value)| *place = value);
}
