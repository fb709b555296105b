/// The type of a metadata value or array element, as numbered by the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names are the types")]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::String,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    /// The type with this number.
    pub(super) fn from_number(number: u32) -> Option<Self> {
        Self::ALL.get(number as usize).copied()
    }

    /// Bytes of the smallest value of this type.
    pub(super) fn size_min(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::String => 8,
            Self::Array => 12,
        }
    }
}

/// A metadata value to write.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the names are the types")]
pub enum Value {
    U32(u32),
    U64(u64),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    Bools(Vec<bool>),
    Strings(Vec<String>),
}

impl Value {
    /// Appends the type's number and the value.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::U32(value) => scalar(out, ValueType::U32, value.to_le_bytes()),
            Self::U64(value) => scalar(out, ValueType::U64, value.to_le_bytes()),
            Self::I32(value) => scalar(out, ValueType::I32, value.to_le_bytes()),
            Self::F32(value) => scalar(out, ValueType::F32, value.to_le_bytes()),
            Self::Bool(value) => scalar(out, ValueType::Bool, [u8::from(*value)]),
            Self::String(value) => {
                out.extend((ValueType::String as u32).to_le_bytes());
                string(out, value);
            }
            Self::I32s(values) => {
                array(out, ValueType::I32, values, |out, value| out.extend(value.to_le_bytes()));
            }
            Self::F32s(values) => {
                array(out, ValueType::F32, values, |out, value| out.extend(value.to_le_bytes()));
            }
            Self::Bools(values) => array(out, ValueType::Bool, values, |out, value| out.push(u8::from(*value))),
            Self::Strings(values) => array(out, ValueType::String, values, |out, value| string(out, value)),
        }
    }
}

fn scalar<const N: usize>(out: &mut Vec<u8>, value_type: ValueType, bytes: [u8; N]) {
    out.extend((value_type as u32).to_le_bytes());
    out.extend(bytes);
}

fn array<T>(out: &mut Vec<u8>, element: ValueType, values: &[T], mut write: impl FnMut(&mut Vec<u8>, &T)) {
    out.extend((ValueType::Array as u32).to_le_bytes());
    out.extend((element as u32).to_le_bytes());
    out.extend((values.len() as u64).to_le_bytes());
    for value in values {
        write(out, value);
    }
}

/// A length-prefixed string.
pub(super) fn string(out: &mut Vec<u8>, value: &str) {
    out.extend((value.len() as u64).to_le_bytes());
    out.extend(value.as_bytes());
}
