//! Writes the seeds to `corpus/<target>/`, where `cargo fuzz run <target>` looks for them.

use std::path::Path;

fn main() -> std::io::Result<()> {
    for target in edgeweld_fuzz::TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
        std::fs::create_dir_all(&folder)?;
        for (index, seed) in (target.seeds)().iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{index}")), seed)?;
        }
    }
    Ok(())
}
