//! ONNX Runtime's library when it is missing or no such library. A process loads one, so these have their own.

use edgeweld::Error;
use edgeweld::gguf::GgufFile;
use edgeweld::model::{ExportOptions, Onnx, OnnxOptions, export_onnx};

#[test]
fn a_missing_or_foreign_library_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tiny/llama-tied.gguf");
    export_onnx(model, folder.path(), &ExportOptions::default()).unwrap();
    let file = GgufFile::open(folder.path().join("model.gguf")).unwrap();
    let text = folder.path().join("text.so");
    std::fs::write(&text, "no library").unwrap();
    for library in [folder.path().join("nowhere/libonnxruntime.so"), text] {
        let options = OnnxOptions { library: Some(library.clone()), providers: Vec::new() };
        let result = Onnx::open(folder.path(), &file, &options, None).map(|_| ());
        assert!(matches!(&result, Err(Error::LibraryMissing { path, .. }) if *path == library), "{result:?}");
    }
}
