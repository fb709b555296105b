//! How large the shipped library is, and what takes the most.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use goblin::elf::Elf;

/// The most that the stripped library for one ABI may take.
const SIZE_BYTES_MAX: usize = 12_000_000;
/// Rows of the list.
const LARGEST: usize = 12;

/// Checks the stripped library's size and lists its largest sections, and the crates with the most code in them, which only the
/// unstripped one names.
pub(crate) fn report(unstripped: &Path, stripped: &Path) -> Result<String> {
    let bytes = fs::read(stripped).with_context(|| stripped.display().to_string())?;
    ensure!(bytes.len() <= SIZE_BYTES_MAX, "{} bytes stripped, more than {SIZE_BYTES_MAX}", bytes.len());
    let mut text =
        format!("stripped: {:.2} MB of at most {:.0}\nsections:", megabytes(bytes.len()), megabytes(SIZE_BYTES_MAX));
    let elf = Elf::parse(&bytes).with_context(|| stripped.display().to_string())?;
    let sections = elf.section_headers.iter().filter(|section| section.is_alloc() && section.sh_type != NO_BITS);
    let names = sections.map(|section| (elf.shdr_strtab.get_at(section.sh_name).unwrap_or("?"), section.sh_size));
    list(&mut text, names.map(|(name, size)| (name.to_owned(), size)));

    let bytes = fs::read(unstripped).with_context(|| unstripped.display().to_string())?;
    let elf = Elf::parse(&bytes).with_context(|| unstripped.display().to_string())?;
    let symbols = elf.syms.iter().filter(|symbol| symbol.is_function());
    let names = symbols.map(|symbol| (crate_of(elf.strtab.get_at(symbol.st_name).unwrap_or("?")), symbol.st_size));
    text += "\ncode of crates, inlined code counted where it went:";
    list(&mut text, names.map(|(name, size)| (name.to_owned(), size)));
    Ok(text)
}

const NO_BITS: u32 = goblin::elf::section_header::SHT_NOBITS;

/// Appends the largest sums.
fn list(text: &mut String, parts: impl Iterator<Item = (String, u64)>) {
    let mut sums = BTreeMap::new();
    for (name, size) in parts {
        *sums.entry(name).or_insert(0) += size;
    }
    let mut sums: Vec<_> = sums.into_iter().collect();
    sums.sort_by_key(|&(_, size)| std::cmp::Reverse(size));
    for (name, size) in sums.iter().take(LARGEST) {
        write!(text, "\n  {:<24} {:>6.2} MB", name, megabytes(*size as usize)).expect("a string takes all");
    }
}

fn megabytes(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}

/// The crate of a mangled function: `_ZN8edgeweld…`, or in an implementation `_ZN…_$LT$edgeweld..…$GT$…`; in the standard library,
/// which is mangled in the newer way, `_R…Cs<hash>_4core…`. What Rust did not mangle is C.
fn crate_of(symbol: &str) -> &str {
    let first = match (symbol.strip_prefix("_ZN"), symbol.strip_prefix("_R")) {
        (Some(path), _) => identifier(path),
        (_, Some(path)) => path.split_once("Cs").and_then(|(_, root)| identifier(root.split_once('_')?.1)),
        (None, None) => None,
    };
    let Some(first) = first else { return "C" };
    let Some(implementation) = first.strip_prefix("_$LT$") else { return first };
    // `&mut `, `[`, `dyn ` and the like stand before some types.
    let name = implementation.split("..").next().unwrap_or(implementation);
    let name = name.rsplit(|character: char| !(character.is_ascii_alphanumeric() || character == '_')).next();
    name.filter(|name| !name.is_empty()).unwrap_or("core")
}

/// `4core…` → `core`
fn identifier(mangled: &str) -> Option<&str> {
    let digits = mangled.find(|character: char| !character.is_ascii_digit())?;
    mangled.get(digits..digits + mangled[..digits].parse::<usize>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crate_of_a_mangled_symbol_is_found() {
        for (symbol, name) in [
            ("_ZN8edgeweld5merge5merge17h0123456789abcdefE", "edgeweld"),
            ("_ZN60_$LT$minijinja..value..Value$u20$as$u20$core..fmt..Debug$GT$3fmt17h0E", "minijinja"),
            ("_ZN47_$LT$$RF$rustls..Error$u20$as$u20$core..fmt$GT$3fmt17h0E", "rustls"),
            ("_RINvMNtCsgEmfK2I1SDS_4core3stre12trim_matchesNv", "core"),
            ("ZSTD_decompress", "C"),
        ] {
            assert_eq!(crate_of(symbol), name, "{symbol}");
        }
    }
}
