//! What a cargo command built, as its messages tell.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Deserializer, Value};

use crate::shell;

/// Cargo's `compiler-artifact` messages.
pub(crate) struct Artifacts(Vec<Value>);

impl Artifacts {
    /// Runs a cargo command that builds.
    pub(crate) fn build(cargo: &mut Command) -> Result<Self> {
        cargo.arg("--message-format=json-render-diagnostics");
        Self::read(&shell::output(cargo)?)
    }

    fn read(messages: &[u8]) -> Result<Self> {
        let messages = Deserializer::from_slice(messages).into_iter::<Value>();
        let messages: Vec<_> = messages.collect::<Result<_, _>>().context("cargo's messages")?;
        Ok(Self(messages.into_iter().filter(|message| message["reason"] == "compiler-artifact").collect()))
    }

    /// The file with this name that a package's library was built to.
    pub(crate) fn file(&self, library: &str, name: &str) -> Result<PathBuf> {
        let of_library = self.0.iter().filter(|message| message["target"]["name"] == library);
        let mut files = of_library.filter_map(|message| message["filenames"].as_array()).flatten();
        let file = files.find_map(|file| Some(Path::new(file.as_str()?)).filter(|file| file.ends_with(name)));
        Ok(file.with_context(|| format!("cargo built no {name}"))?.to_owned())
    }

    /// A program; not the harness of its unit tests, nor a test of the same name.
    pub(crate) fn program(&self, name: &str) -> Result<PathBuf> {
        let program = self.0.iter().find(|message| {
            let target = &message["target"];
            target["name"] == name && target["kind"][0] == "bin" && message["profile"]["test"] == false
        });
        let path = program.and_then(|message| message["executable"].as_str());
        Ok(path.with_context(|| format!("cargo built no program {name}"))?.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGES: &str = r#"
        {"reason":"compiler-artifact","target":{"name":"play","kind":["bin"]},"profile":{"test":true},"executable":"/t/play-1","filenames":[]}
        {"reason":"compiler-artifact","target":{"name":"play","kind":["test"]},"profile":{"test":true},"executable":"/t/play-2","filenames":[]}
        {"reason":"compiler-artifact","target":{"name":"play","kind":["bin"]},"profile":{"test":false},"executable":"/t/play","filenames":[]}
        {"reason":"compiler-artifact","target":{"name":"lib","kind":["lib","cdylib"]},"profile":{"test":false},"executable":null,"filenames":["/t/liblib.rlib","/t/liblib.so"]}
        {"reason":"build-finished","success":true}"#;

    #[test]
    fn a_program_is_told_from_the_tests_of_the_same_name() {
        let artifacts = Artifacts::read(MESSAGES.as_bytes()).unwrap();
        assert_eq!(artifacts.program("play").unwrap(), Path::new("/t/play"));
        assert!(artifacts.program("lib").is_err());
    }

    #[test]
    fn a_library_is_found_by_its_file_name() {
        let artifacts = Artifacts::read(MESSAGES.as_bytes()).unwrap();
        assert_eq!(artifacts.file("lib", "liblib.so").unwrap(), Path::new("/t/liblib.so"));
        assert!(artifacts.file("lib", "liblib.a").is_err());
    }
}
