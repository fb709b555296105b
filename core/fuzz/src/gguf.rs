//! A file that is read can be written again, and the copy is the same file to every reader.

use edgeweld::gguf::{GgufFile, GgufWriter, Value};
use edgeweld::quant::{BlockType, WeightBytes};

/// `copy(read(copy(read(bytes)))) == copy(read(bytes))`, and the copy has the same keys and tensors.
pub fn check(data: &[u8]) {
    let Ok(file) = GgufFile::from_bytes(data.to_vec()) else { return };
    read_everything(&file);
    let written = copy(&file);
    let copied = GgufFile::from_bytes(written.clone()).expect("what is written is read");
    assert_eq!(copy(&copied), written);

    let keys = |file: &GgufFile| {
        let keys = file.metadata().keys().filter(|key| *key != "general.alignment");
        keys.map(|key| (key.to_owned(), file.metadata().value_type(key))).collect::<Vec<_>>()
    };
    assert_eq!(keys(&copied), keys(&file));
    assert_eq!(copied.tensors().len(), file.tensors().len());
    for (copied, tensor) in copied.tensors().zip(file.tensors()) {
        assert_eq!((copied.name(), copied.block_type()), (tensor.name(), tensor.block_type()));
        assert_eq!((copied.shape(), copied.bytes()), (tensor.shape(), tensor.bytes()));
    }
}

fn copy(file: &GgufFile) -> Vec<u8> {
    let mut writer = GgufWriter::new();
    writer.copy_metadata(file, &[]).expect("keys are unique");
    for tensor in file.tensors() {
        writer.tensor(tensor.name(), tensor.block_type(), tensor.shape(), tensor.weight_bytes()).expect("was read");
    }
    writer.to_bytes()
}

/// Every getter on every key, and every tensor by its name.
fn read_everything(file: &GgufFile) {
    let metadata = file.metadata();
    for key in metadata.keys() {
        assert!(metadata.contains(key));
        let text = metadata.opt_str(key).is_ok();
        let integer = metadata.opt_u64(key).is_ok() || metadata.opt_i32(key).is_ok() || metadata.opt_u32(key).is_ok();
        let other = metadata.opt_f32(key).is_ok() || metadata.opt_bool(key).is_ok();
        let list = metadata.opt_strings(key).is_ok_and(|strings| strings.is_some_and(|strings| strings.count() > 0));
        let numbers =
            metadata.opt_f32s(key).is_ok() || metadata.opt_i32s(key).is_ok() || metadata.opt_bools(key).is_ok();
        assert!([text, integer, other, list || numbers].into_iter().filter(|is| *is).count() <= 1, "{key}");
    }
    for tensor in file.tensors() {
        let found = file.tensor(tensor.name()).expect("found by its own name");
        assert_eq!(found.bytes().as_ptr(), tensor.bytes().as_ptr());
        let _ = (file.matrix(tensor.name()), file.vector(tensor.name()));
    }
}

/// A file with every kind of value and two tensors.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut writer = GgufWriter::new();
    let values = [
        Value::U32(1),
        Value::U64(2),
        Value::I32(-3),
        Value::F32(0.5),
        Value::Bool(true),
        Value::String("llama".into()),
        Value::I32s(vec![1, 2]),
        Value::F32s(vec![0.5]),
        Value::Bools(vec![true, false]),
        Value::Strings(vec!["a".into(), "é".into()]),
    ];
    for (index, value) in values.iter().enumerate() {
        writer.metadata(&format!("key.{index}"), value).expect("a new key");
    }
    let zeros = |size: usize| WeightBytes::Owned(vec![0; size].into());
    writer.tensor("norm", BlockType::F32, &[4], zeros(16)).expect("16 bytes");
    writer.tensor("weight", BlockType::Q4_0, &[2, 32], zeros(36)).expect("36 bytes");
    vec![GgufWriter::new().to_bytes(), writer.to_bytes()]
}
