//! ONNX Runtime's adapter file, a FlatBuffers table (`onnxruntime/lora/adapter_format/adapter_schema.fbs`):
//!
//! ```text
//! table Parameter { name: string; dims: [int64]; data_type: int32; raw_data: [uint8] (force_align: 8); }
//! table Adapter   { format_version: int32; adapter_version: int32; model_version: int32; parameters: [Parameter]; }
//! root_type Adapter; file_identifier "TORT";
//! ```
//!
//! Written by hand: the `flatbuffers` crate cannot force the alignment of a vector, and the layout is fixed.

use std::path::Path;

use edgeweld::lora::{LoraSet, Target};
use ndarray::Array2;

use crate::Result;
use crate::files::write_atomically;

const FORMAT_VERSION: i32 = 1;
/// `TensorDataType::FLOAT`.
const FLOAT: i32 = 1;
/// Offsets of a table's four fields from its start; the first four bytes point back to this list.
const FIELD_OFFSETS: [u16; 4] = [4, 8, 12, 16];
const TABLE_SIZE: u16 = 20;

/// Writes the adapter file for the graphs that the ONNX backend makes: optional inputs `layers.{i}.{target}.lora_a`
/// (`[rank, in]`) and `.lora_b` (`[out, rank]`, the scale multiplied in), in f32.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io).
pub fn ort_adapter(lora: &LoraSet, path: &Path) -> Result<()> {
    let mut parameters = Vec::new();
    for (index, layer) in lora.layers.iter().enumerate() {
        for target in Target::ALL {
            let Some(pair) = layer.pair(target) else { continue };
            parameters.push((format!("layers.{index}.{}.lora_a", target.name()), &pair.a, 1.0));
            parameters.push((format!("layers.{index}.{}.lora_b", target.name()), &pair.b, lora.scale));
        }
    }
    write_atomically(path, &adapter(&parameters))
}

fn adapter(parameters: &[(String, &Array2<f32>, f32)]) -> Vec<u8> {
    let mut file = Buffer::default();
    let root = file.hole();
    file.bytes.extend(b"TORT");
    let fields = file.field_list();
    let table = file.table(fields, root);
    file.fill(table, FORMAT_VERSION);
    file.fill(table + 4, 1);
    file.fill(table + 8, 1);
    file.point(table + 12);
    file.int(parameters.len() as i32);
    let places: Vec<usize> = parameters.iter().map(|_| file.hole()).collect();
    for ((name, values, factor), place) in parameters.iter().zip(places) {
        let table = file.table(fields, place);
        file.fill(table + 8, FLOAT);
        file.align(4, 0);
        file.point(table);
        file.int(name.len() as i32);
        file.bytes.extend(name.as_bytes());
        file.bytes.push(0);
        // The elements are aligned, their count lies before them.
        file.align(8, 4);
        file.point(table + 4);
        file.int(2);
        file.bytes.extend((values.nrows() as i64).to_le_bytes());
        file.bytes.extend((values.ncols() as i64).to_le_bytes());
        file.align(8, 4);
        file.point(table + 12);
        file.int(4 * values.len() as i32);
        file.bytes.extend(values.iter().flat_map(|value| (value * factor).to_le_bytes()));
    }
    file.bytes
}

/// A FlatBuffers file written from front to back.
#[derive(Default)]
struct Buffer {
    bytes: Vec<u8>,
}

impl Buffer {
    fn int(&mut self, value: i32) {
        self.bytes.extend(value.to_le_bytes());
    }

    /// Four bytes to be filled later, and where they are.
    fn hole(&mut self) -> usize {
        self.int(0);
        self.bytes.len() - 4
    }

    fn fill(&mut self, place: usize, value: i32) {
        self.bytes[place..place + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// Makes the four bytes at `place` point to the end of the file.
    fn point(&mut self, place: usize) {
        self.fill(place, (self.bytes.len() - place) as i32);
    }

    /// Pads so that `skip` bytes further the position is a multiple of `alignment`.
    fn align(&mut self, alignment: usize, skip: usize) {
        while !(self.bytes.len() + skip).is_multiple_of(alignment) {
            self.bytes.push(0);
        }
    }

    /// The list of field offsets that every table here shares, and where it is.
    fn field_list(&mut self) -> usize {
        let place = self.bytes.len();
        let list_size = 4 + 2 * FIELD_OFFSETS.len() as u16;
        for value in [list_size, TABLE_SIZE].into_iter().chain(FIELD_OFFSETS) {
            self.bytes.extend(value.to_le_bytes());
        }
        place
    }

    /// A table whose four fields are to be filled, pointed to from `pointer`; where its first field is.
    fn table(&mut self, fields: usize, pointer: usize) -> usize {
        self.align(4, 0);
        self.point(pointer);
        self.int((self.bytes.len() - fields) as i32);
        let first = self.bytes.len();
        self.bytes.resize(first + 16, 0);
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A reader that follows the offsets as the FlatBuffers format says.
    fn i32_at(bytes: &[u8], at: usize) -> i32 {
        i32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn follow(bytes: &[u8], at: usize) -> usize {
        at + i32_at(bytes, at) as usize
    }

    fn field(bytes: &[u8], table: usize, index: usize) -> usize {
        let list = (table as i64 - i64::from(i32_at(bytes, table))) as usize;
        let at = list + 4 + 2 * index;
        table + usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
    }

    #[test]
    fn offsets_lead_to_aligned_values() {
        let (a, b) = (ndarray::array![[1.0, 2.0, 3.0]], ndarray::array![[4.0], [5.0]]);
        let bytes = adapter(&[("pair.a".into(), &a, 1.0), ("pair.b".into(), &b, 0.5)]);
        assert_eq!(&bytes[4..8], b"TORT");
        let root = follow(&bytes, 0);
        assert_eq!(i32_at(&bytes, field(&bytes, root, 0)), FORMAT_VERSION);
        let list = follow(&bytes, field(&bytes, root, 3));
        assert_eq!(i32_at(&bytes, list), 2);
        let expected: [(&str, [i64; 2], &[f32]); 2] =
            [("pair.a", [1, 3], &[1.0, 2.0, 3.0]), ("pair.b", [2, 1], &[2.0, 2.5])];
        for (index, (name, shape, values)) in expected.into_iter().enumerate() {
            let table = follow(&bytes, list + 4 + 4 * index);
            let text = follow(&bytes, field(&bytes, table, 0));
            assert_eq!(&bytes[text + 4..][..i32_at(&bytes, text) as usize], name.as_bytes());
            let dims = follow(&bytes, field(&bytes, table, 1));
            let dim = |at: usize| i64::from_le_bytes(bytes[dims + 4 + 8 * at..][..8].try_into().unwrap());
            assert_eq!(([dim(0), dim(1)], (dims + 4) % 8), (shape, 0));
            assert_eq!(i32_at(&bytes, field(&bytes, table, 2)), FLOAT);
            let data = follow(&bytes, field(&bytes, table, 3));
            let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            assert_eq!((&bytes[data + 4..][..i32_at(&bytes, data) as usize], (data + 4) % 8), (&raw[..], 0));
        }
    }
}
