//! SIGKILLs at random moments of saving a merged model and of saving a prefix cache. After each, the file is whole: one
//! of those that were being saved. At the end a clean run completes and nothing else is left in the folder.
//!
//! Has its own `main`, because it starts itself as the process to be killed.

#[path = "../models/mod.rs"]
mod models;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use edgeweld::generate::{Engine, LoadOptions, Token};
use edgeweld::gguf::{GgufFile, GgufWriter};
use edgeweld::lora::{LayerLora, LoraPair, LoraSet};
use edgeweld::merge::{MergeMode, Rounding, SavedPack, requantize_unverified, save_merged};
use edgeweld::quant::{BlockType, WeightBytes};
use edgeweld::{CancelToken, Digest};
use ndarray::Array2;

const MERGE_KILLS: usize = 130;
const PREFIX_KILLS: usize = 70;
/// Layers, rows and columns of the model whose merges are killed: 5 MB, which take some ms to merge and to sync.
const SHAPE: (usize, u32, u32) = (16, 512, 1024);
const PREFIX_TEXTS: [&str; 2] = ["one two three four five six seven ", "rain and wind over the northern sea "];

fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    match &arguments[..] {
        [_, mode, folder] if mode == "merge" => save_merges(Path::new(folder)),
        [_, mode, folder] if mode == "prefix" => save_prefixes(Path::new(folder)),
        _ => {
            killed_merge_saves_leave_a_whole_model();
            killed_prefix_saves_leave_a_whole_prefix();
            println!("save_kills: ok");
        }
    }
}

fn killed_merge_saves_leave_a_whole_model() {
    let folder = tempfile::tempdir().unwrap();
    base().save(folder.path().join("base.gguf"), &CancelToken::new()).unwrap();
    let expected = [0, 1].map(|seed| {
        let path = folder.path().join("expected.gguf");
        save_merge(folder.path(), seed, &path);
        let digest = Digest::of(&std::fs::read(&path).unwrap());
        std::fs::remove_file(path).unwrap();
        digest
    });
    let saved = folder.path().join("merged.gguf");
    kill("merge", folder.path(), MERGE_KILLS, 60, || {
        if saved.exists() {
            let bytes = std::fs::read(&saved).unwrap();
            assert!(
                expected.contains(&Digest::of(&bytes)),
                "a file of {} bytes is not one that was saved",
                bytes.len()
            );
        }
    });
    save_merge(folder.path(), 0, &saved);
    let file = GgufFile::open(&saved).unwrap();
    assert!(SavedPack::read(file.metadata()).unwrap().is_some());
    assert_eq!(names(folder.path()), ["base.gguf", "merged.gguf"]);
}

fn killed_prefix_saves_leave_a_whole_prefix() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prefix");
    let engine = engine();
    let mut session = engine.session().unwrap();
    kill("prefix", folder.path(), PREFIX_KILLS, 40, || {
        // The digest in the file covers the keys and values.
        assert!(session.load_prefix(&path).unwrap() > 0);
    });
    session.complete(PREFIX_TEXTS[0], &one_token(), &mut |_: &Token| ()).unwrap();
    session.save_prefix(&path).unwrap();
    assert_eq!(names(folder.path()), ["prefix"]);
}

/// Starts this program, lets it say that it is about to save, kills it within `wait_ms`, and looks; `count` times.
fn kill(mode: &str, folder: &Path, count: usize, wait_ms: u64, mut look: impl FnMut()) {
    let mut state = 7_u64;
    for _ in 0..count {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([mode.as_ref(), folder.as_os_str()])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(Duration::from_micros((state >> 33) % (wait_ms * 1000)));
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(!output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        look();
    }
    println!("{count} kills of {mode}");
}

/// Saves two merges in turn until it is killed.
fn save_merges(folder: &Path) {
    say_ready();
    for seed in (0..2).cycle() {
        save_merge(folder, seed, &folder.join("merged.gguf"));
    }
}

/// Saves two prefixes of different length in turn until it is killed.
fn save_prefixes(folder: &Path) {
    let engine = engine();
    let sessions = [(0, 12), (1, 30)].map(|(text, times)| {
        let mut session = engine.session().unwrap();
        session.complete(&PREFIX_TEXTS[text].repeat(times), &one_token(), &mut |_: &Token| ()).unwrap();
        session
    });
    // The first save also digests the model file, for longer than a save takes.
    sessions[0].save_prefix(folder.join("prefix")).unwrap();
    say_ready();
    for session in sessions.iter().cycle() {
        session.save_prefix(folder.join("prefix")).unwrap();
    }
}

fn say_ready() {
    println!("ready");
    std::io::stdout().flush().unwrap();
}

fn base() -> GgufWriter {
    let (layers, rows, cols) = SHAPE;
    let mut writer = GgufWriter::new();
    for layer in 0..layers {
        // Halves of 18-byte blocks as they come: finite steps, any codes.
        let size = (rows * cols / 32 * 18) as usize;
        let bytes: Vec<u8> = (0..size).map(|i| if i % 18 == 1 { 0x20 } else { (i * 31 + layer) as u8 }).collect();
        let name = format!("blk.{layer}.ffn_up.weight");
        writer.tensor(&name, BlockType::Q4_0, &[rows, cols], WeightBytes::Owned(bytes.into())).unwrap();
    }
    writer
}

fn save_merge(folder: &Path, seed: usize, path: &Path) {
    let (layers, rows, cols) = SHAPE;
    let file = GgufFile::open(folder.join("base.gguf")).unwrap();
    let pair = |layer: usize| LoraPair {
        a: Array2::from_shape_fn((2, cols as usize), |(i, j)| ((i + j * 7 + layer + seed * 3) % 11) as f32 - 5.0),
        b: Array2::from_shape_fn((rows as usize, 2), |(i, j)| ((i * 5 + j + seed) % 7) as f32 - 3.0),
    };
    let layers = (0..layers).map(|layer| LayerLora { up: Some(pair(layer)), ..LayerLora::default() }).collect();
    let lora = LoraSet { scale: 1e-3, layers };
    let cancel = CancelToken::new();
    let merged = requantize_unverified(&file, &lora, None, Rounding::Amplified, 2, &cancel).unwrap();
    let pack = SavedPack { digest: Digest::of(&[seed as u8]), prompt: None, residual_prompt: None };
    save_merged(&file, &merged.tensors, MergeMode::Merge, &pack, path, &cancel).unwrap();
}

fn engine() -> Engine {
    Engine::load(models::path(models::SMOLLM2), &LoadOptions { threads: Some(2), ..Default::default() }).unwrap()
}

fn one_token() -> edgeweld::generate::GenerateOptions {
    edgeweld::generate::GenerateOptions { max_tokens: 1, ..Default::default() }
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| PathBuf::from(entry.unwrap().file_name()).display().to_string())
        .collect();
    names.sort();
    names
}
