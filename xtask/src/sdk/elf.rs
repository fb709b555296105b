//! What an app store and Android's loader look at in a shared library.

use std::path::Path;

use anyhow::{Context, Result};
use goblin::elf::{Elf, dynamic, header, program_header};

/// Facts about a shared library.
pub(crate) struct Library {
    /// `EM_…`
    pub(crate) machine: u16,
    pub(crate) is_64: bool,
    /// The smallest alignment of what is mapped.
    pub(crate) page_align: u64,
    pub(crate) soname: Option<String>,
    pub(crate) needed: Vec<String>,
    /// Whether code would be changed at load time, which Android refuses.
    pub(crate) has_text_relocations: bool,
    /// Names that others may call.
    pub(crate) exports: Vec<String>,
}

impl Library {
    pub(crate) fn read(bytes: &[u8], path: &Path) -> Result<Self> {
        let elf = Elf::parse(bytes).with_context(|| path.display().to_string())?;
        let loads = elf.program_headers.iter().filter(|header| header.p_type == program_header::PT_LOAD);
        let tags = elf.dynamic.as_ref().map(|section| &section.dyns[..]).unwrap_or_default();
        let exports = elf.dynsyms.iter().filter(|symbol| symbol.st_shndx != 0);
        Ok(Self {
            machine: elf.header.e_machine,
            is_64: elf.is_64,
            page_align: loads.map(|header| header.p_align).min().unwrap_or(0),
            soname: elf.soname.map(str::to_owned),
            needed: elf.libraries.iter().map(|&name| name.to_owned()).collect(),
            has_text_relocations: tags.iter().any(|tag| tag.d_tag == dynamic::DT_TEXTREL),
            exports: exports.filter_map(|symbol| Some(elf.dynstrtab.get_at(symbol.st_name)?.to_owned())).collect(),
        })
    }
}

/// The machine of an Android ABI.
pub(crate) fn machine(abi: &str) -> Option<u16> {
    match abi {
        "arm64-v8a" => Some(header::EM_AARCH64),
        "armeabi-v7a" => Some(header::EM_ARM),
        "x86_64" => Some(header::EM_X86_64),
        _ => None,
    }
}
