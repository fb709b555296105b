//! Folders that are refused, each by name.

use std::path::{Path, PathBuf};

use edgeweld::Error;
use edgeweld::generate::{Device, Engine, LoadOptions};
use edgeweld::gguf::GgufFile;
use edgeweld::model::{GraphDefect, Onnx};

use super::{exported, options, tiny};

/// A copy of a small exported folder, to damage.
struct Folder {
    folder: tempfile::TempDir,
}

impl Folder {
    fn new() -> Self {
        let source = exported(&tiny("llama-tied"));
        let folder = tempfile::tempdir().unwrap();
        for file in ["model.onnx", "model.onnx.data", "model.gguf"] {
            std::fs::copy(source.join(file), folder.path().join(file)).unwrap();
        }
        Self { folder }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    /// Replaces every occurrence of `from` in the graph by `to`, which is as long.
    fn patch(&self, from: &[u8], to: &[u8]) {
        assert_eq!(from.len(), to.len());
        let mut bytes = std::fs::read(self.path("model.onnx")).unwrap();
        let places: Vec<usize> = (0..bytes.len() - from.len()).filter(|at| bytes[*at..].starts_with(from)).collect();
        assert!(!places.is_empty(), "{}", String::from_utf8_lossy(from));
        for at in places {
            bytes[at..at + to.len()].copy_from_slice(to);
        }
        std::fs::write(self.path("model.onnx"), bytes).unwrap();
    }

    fn refusal(&self) -> GraphDefect {
        let file = GgufFile::open(self.path("model.gguf")).unwrap();
        match Onnx::open(self.folder.path(), &file, &options(), None).map(|_| ()) {
            Err(Error::InvalidGraph { reason, .. }) => reason,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn rejects_a_file_that_is_no_graph() {
    let folder = Folder::new();
    std::fs::write(folder.path("model.onnx"), [0xff; 64]).unwrap();
    assert!(matches!(folder.refusal(), GraphDefect::NotOnnx { .. }));
    std::fs::write(folder.path("model.onnx"), []).unwrap();
    assert!(matches!(folder.refusal(), GraphDefect::NotOnnx { .. }));
}

#[test]
fn rejects_a_graph_without_an_input() {
    let folder = Folder::new();
    folder.patch(b"attention_mask", b"attention_nose");
    assert_eq!(folder.refusal(), GraphDefect::MissingInput { name: "attention_mask".to_owned() });
}

#[test]
fn rejects_a_graph_without_an_output() {
    let folder = Folder::new();
    folder.patch(b"present.0.key", b"present.9.key");
    assert_eq!(folder.refusal(), GraphDefect::MissingOutput { name: "present.0.key".to_owned() });
}

#[test]
fn rejects_a_newer_opset() {
    let folder = Folder::new();
    // Opset import: field 8 of two bytes, whose field 2 is the version.
    folder.patch(&[0x42, 0x02, 0x10, 21], &[0x42, 0x02, 0x10, 99]);
    assert!(matches!(folder.refusal(), GraphDefect::UnsupportedOpset { version: 99, .. }));
}

#[test]
fn rejects_a_graph_that_another_program_or_version_wrote() {
    let folder = Folder::new();
    folder.patch(b"edgeweld.activations", b"edgeweld.activating_");
    assert!(matches!(folder.refusal(), GraphDefect::Configuration { key, .. } if key == "edgeweld.activations"));
}

#[test]
fn rejects_data_outside_the_folder() {
    for location in ["../../el.onnx.d", "/etc/el.onnx.da"] {
        let folder = Folder::new();
        folder.patch(b"model.onnx.data", location.as_bytes());
        assert!(matches!(folder.refusal(), GraphDefect::OutsideFolder { .. }), "{location}");
    }
}

#[test]
#[cfg(unix)]
fn rejects_data_behind_a_link_that_leaves_the_folder() {
    let folder = Folder::new();
    let elsewhere = tempfile::tempdir().unwrap();
    let target = elsewhere.path().join("data");
    std::fs::rename(folder.path("model.onnx.data"), &target).unwrap();
    std::os::unix::fs::symlink(&target, folder.path("model.onnx.data")).unwrap();
    assert!(matches!(folder.refusal(), GraphDefect::OutsideFolder { .. }));
}

#[test]
fn rejects_data_that_is_too_short_or_missing() {
    let folder = Folder::new();
    let data = folder.path("model.onnx.data");
    let bytes = std::fs::read(&data).unwrap();
    std::fs::write(&data, &bytes[..bytes.len() - 1]).unwrap();
    let actual = bytes.len() as u64 - 1;
    assert!(matches!(folder.refusal(), GraphDefect::TooShort { actual: size, .. } if size == actual));
    std::fs::remove_file(&data).unwrap();
    assert!(matches!(folder.refusal(), GraphDefect::WrongConstant { .. }));
}

#[test]
fn rejects_a_graph_of_another_model_even_of_the_same_size() {
    let folder = Folder::new();
    std::fs::copy(tiny("qwen3"), folder.path("model.gguf")).unwrap();
    assert!(matches!(folder.refusal(), GraphDefect::OtherModel { .. }));

    let folder = Folder::new();
    let mut model = std::fs::read(folder.path("model.gguf")).unwrap();
    *model.last_mut().unwrap() ^= 1;
    std::fs::write(folder.path("model.gguf"), model).unwrap();
    assert!(matches!(folder.refusal(), GraphDefect::OtherModel { expected, actual, .. } if expected != actual));
}

#[test]
fn a_folder_that_is_missing_is_an_io_error_of_its_path() {
    let options = LoadOptions { device: Device::Onnx, onnx: options(), ..Default::default() };
    let result = Engine::load("no such folder", &options);
    assert!(
        matches!(&result, Err(Error::Io { path, .. }) if path == Path::new("no such folder")),
        "{:?}",
        result.err()
    );
}
