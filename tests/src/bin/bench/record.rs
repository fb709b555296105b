//! Samples of several runs in one file, a JSON object per line, so that rounds can be taken a few at a time.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// One sample.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// File name without extension
    pub(crate) model: String,
    pub(crate) threads: usize,
    /// As [`Measure`](crate::sample::Measure) is written
    pub(crate) measure: String,
    pub(crate) contender: String,
    pub(crate) value: f64,
    pub(crate) peak_rss_bytes: u64,
    /// As in [`Sample`](crate::contender::Sample)
    #[serde(default)]
    pub(crate) read_rate: Option<f64>,
}

/// The samples in `path`; none if there is no such file.
pub(crate) fn read(path: &Path) -> Result<Vec<Record>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    text.lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("{line:?} in {}", path.display())))
        .collect()
}

/// Adds one sample to `path`.
pub(crate) fn append(path: &Path, record: &Record) -> Result<()> {
    let mut file =
        OpenOptions::new().create(true).append(true).open(path).with_context(|| path.display().to_string())?;
    Ok(writeln!(file, "{}", serde_json::to_string(record)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_appended_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samples.jsonl");
        assert_eq!(read(&path).unwrap(), []);
        let mut record = Record {
            model: "m".to_owned(),
            threads: 2,
            measure: "decode:30".to_owned(),
            contender: "llama.cpp".to_owned(),
            value: 12.5,
            peak_rss_bytes: 7,
            read_rate: None,
        };
        append(&path, &record).unwrap();
        (record.threads, record.read_rate) = (1, Some(3e10));
        append(&path, &record).unwrap();
        assert_eq!(read(&path).unwrap(), [Record { threads: 2, read_rate: None, ..record.clone() }, record]);
        fs::write(&path, "no JSON").unwrap();
        assert!(read(&path).is_err());
    }
}
