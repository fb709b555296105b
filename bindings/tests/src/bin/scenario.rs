//! `scenario COMMAND ARGS…`: plays the scenario in Rust, then runs a command that plays it in another language. The
//! command finds what it must see in the file that `EDGEWELD_SCENARIO` names, and a store folder of its own in
//! `EDGEWELD_STORE`. Arguments may hold `{model}`, `{url}` and the like: the names of facts, and `{store}`.

use std::process::{Command, exit};

use anyhow::{Context, Result};
use edgeweld_bindings_tests::{Stage, scenario};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let program = args.next().context("usage: scenario COMMAND ARGS…")?;
    let folder = tempfile::tempdir()?;
    let stage = Stage::new()?;
    let facts = scenario::play(&stage.facts, &folder.path().join("rust"));
    let file = folder.path().join("scenario.txt");
    Stage::write(&facts, &file)?;
    let store = folder.path().join("store").display().to_string();
    let fill = |arg: String| {
        let arg = arg.replace("{store}", &store);
        facts.iter().fold(arg, |arg, (name, value)| arg.replace(&format!("{{{name}}}"), value))
    };
    let mut command = Command::new(&program);
    command.args(args.map(fill)).env("EDGEWELD_SCENARIO", &file).env("EDGEWELD_STORE", &store);
    let status = command.status().with_context(|| format!("cannot start {program}"))?;
    drop(folder);
    exit(status.code().unwrap_or(1))
}
