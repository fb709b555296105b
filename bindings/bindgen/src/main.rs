//! `edgeweld-bindgen LIBRARY LANGUAGE FOLDER`: writes the bindings of a built, unstripped library. Why not the `uniffi`
//! crate's own command line? Its features would be unified into the library's `uniffi` in workspace builds.

use anyhow::{Context, Result, bail};
use uniffi_bindgen::bindings::{GenerateOptions, TargetLanguage, generate};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [library, language, folder] = &args[..] else {
        bail!("usage: edgeweld-bindgen LIBRARY kotlin|swift|python FOLDER");
    };
    let language = match language.as_str() {
        "kotlin" => TargetLanguage::Kotlin,
        "swift" => TargetLanguage::Swift,
        "python" => TargetLanguage::Python,
        other => bail!("unknown language {other}"),
    };
    generate(GenerateOptions {
        languages: vec![language],
        source: library.into(),
        out_dir: folder.into(),
        config_override: None,
        format: false,
        crate_filter: Some("edgeweld_ffi".to_owned()),
        metadata_no_deps: true,
    })
    .with_context(|| format!("{library}: a stripped library has no metadata to generate from"))
}
