//! ONNX Runtime from another language: the library is an argument, and what is wrong with it is that argument's error.
//! `EDGEWELD_MODELS` and `EDGEWELD_ONNXRUNTIME` are set by `cargo xtask test`.

use std::path::Path;

use edgeweld::model::{ExportOptions, export_onnx};
use edgeweld_ffi::{Device, Engine, GenerateOptions, LoadOptions, Message, OnnxOptions, Provider, Role, SdkError};

fn options(library: String) -> LoadOptions {
    let onnx = OnnxOptions { library: Some(library), providers: vec![Provider::Nnapi, Provider::Cpu] };
    LoadOptions { device: Some(Device::Onnx), threads: Some(2), onnx: Some(onnx), ..Default::default() }
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run `cargo xtask test`"))
}

#[test]
fn an_app_is_told_which_library_is_missing_and_answers_with_the_right_one() {
    let folder = tempfile::tempdir().unwrap();
    let model = Path::new(&variable("EDGEWELD_MODELS")).join("SmolLM2-135M-Instruct.Q4_1.gguf");
    export_onnx(model, folder.path(), &ExportOptions::default()).unwrap();
    let path = folder.path().to_str().unwrap().to_owned();

    let missing = "/nowhere/libonnxruntime.so";
    match Engine::load_blocking(path.clone(), options(missing.into()), None, None).map(|_| ()) {
        Err(SdkError::InvalidArgument { argument, reason }) => {
            assert_eq!(argument, "onnx.library");
            assert!(reason.contains(missing), "{reason}");
        }
        other => panic!("{other:?}"),
    }

    let engine = Engine::load_blocking(path, options(variable("EDGEWELD_ONNXRUNTIME")), None, None).unwrap();
    let outcomes: Vec<_> = engine.providers().unwrap().iter().map(|o| (o.provider, o.refusal.is_none())).collect();
    assert_eq!(outcomes, [(Provider::Nnapi, false), (Provider::Cpu, true)]);
    let question = Message::new(Role::User, "What is the capital of France?");
    let session = engine.session().unwrap();
    let options = GenerateOptions { max_tokens: 8, ..Default::default() };
    let answer = session.chat_blocking(vec![question], options, None, None).unwrap();
    assert!(answer.text.contains("Paris"), "{answer:?}");
}

#[test]
fn a_folder_that_is_missing_is_a_file_error() {
    let result = Engine::load_blocking("no such folder".into(), options("any".into()), None, None);
    assert!(matches!(&result, Err(SdkError::File { path, .. }) if path.starts_with("no such folder")));
}
