//! The first sessions of a process, made at once. What they register is the process's, so this has its own.

use std::sync::{Arc, Barrier};
use std::thread;

use edgeweld::CancelToken;
use edgeweld::gguf::GgufFile;
use edgeweld::model::{Backend, Decoder, ExportOptions, Onnx, OnnxOptions, export_onnx};

const THREADS: usize = 16;

#[test]
fn the_first_sessions_are_made_on_several_threads() {
    let library = std::env::var_os("EDGEWELD_ONNXRUNTIME");
    let library = library.expect("EDGEWELD_ONNXRUNTIME names ONNX Runtime's library: run `cargo xtask test`");
    let options = OnnxOptions { library: Some(library.into()), providers: Vec::new() };
    let folder = tempfile::tempdir().unwrap();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tiny/llama-tied.gguf");
    export_onnx(model, folder.path(), &ExportOptions::default()).unwrap();
    let file = GgufFile::open(folder.path().join("model.gguf")).unwrap();
    let decoder = || {
        let backend = Onnx::open(folder.path(), &file, &options, Some(1)).unwrap();
        Arc::new(Decoder::load(&file, Arc::new(backend), &CancelToken::new(), &mut |_, _| ()).unwrap())
    };
    let start = Barrier::new(THREADS);
    thread::scope(|scope| {
        for decoder in (0..THREADS).map(|_| decoder()).collect::<Vec<_>>() {
            let start = &start;
            scope.spawn(move || {
                start.wait();
                Onnx::runner(&decoder, 8, None).unwrap();
            });
        }
    });
}
