//! The server side: the programs of `cloud-generator`, as a user runs them.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use edgeweld_examples::packs::spinner;
use edgeweld_tests::{models, process};
use serde_json::{Value, json};

use super::case::Case;

/// A running server; dropping it ends it.
pub(crate) struct Cloud {
    child: Child,
    pub(crate) url: String,
    /// Files and the URLs they are served at.
    published: Vec<(PathBuf, String)>,
}

/// A new key pair in `folder`.
pub(crate) fn keygen(folder: &Path) -> Result<()> {
    if !folder.join("secret").is_file() {
        process::run(program()?.arg("keygen").arg("--out").arg(folder))?;
    }
    Ok(())
}

/// What the checkpoint calls itself: its name, and the first line of its README.
pub(crate) fn describe_generator(folder: &Path) -> Result<String> {
    let readme = folder.join("README.md");
    let text = fs::read_to_string(&readme).with_context(|| readme.display().to_string())?;
    Ok(text.lines().next().unwrap_or_default().trim_start_matches('#').trim().to_owned())
}

/// `cloud-generator` lies beside this program: one build makes both.
fn program() -> Result<Command> {
    let name = format!("cloud-generator{}", std::env::consts::EXE_SUFFIX);
    let path = std::env::current_exe()?.with_file_name(name);
    if !path.is_file() {
        bail!("{} does not exist: run `cargo xtask demo`, which builds it", path.display());
    }
    let mut command = Command::new(path);
    command.env("EDGEWELD_MODELS", models::folder());
    Ok(command)
}

impl Cloud {
    /// Starts the server on a free port and waits until it listens.
    pub(crate) fn serve(folder: &Path, generator: &Path, cloud: &str, edge: &str, files: &[PathBuf]) -> Result<Self> {
        let bar = spinner("the server loads the generator and its models".to_owned());
        let log = folder.join("server.log");
        let mut command = program()?;
        command.args(["serve", "--listen", "127.0.0.1:0", "--cloud", cloud, "--edge", edge]);
        command.arg("--generator").arg(generator).arg("--keys").arg(folder.join("keys"));
        command.arg("--store").arg(folder.join("store"));
        for file in files {
            command.arg("--publish").arg(file);
        }
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(&log)?).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("stdout is piped")?).lines();
        let mut cloud = Self { child, url: String::new(), published: Vec::new() };
        for line in lines {
            let line = line?;
            if let Some(url) = line.strip_prefix("listening on ") {
                url.clone_into(&mut cloud.url);
                bar.finish_and_clear();
                return Ok(cloud);
            }
            if let Some((path, url)) = line.strip_prefix("published ").and_then(|rest| rest.rsplit_once(" as ")) {
                cloud.published.push((path.into(), url.to_owned()));
            }
        }
        bar.finish_and_clear();
        bail!("the server ended: {}", fs::read_to_string(&log).unwrap_or_default().trim_end())
    }

    /// Where a file that was published is served.
    pub(crate) fn published(&self, path: &Path) -> Result<String> {
        let found = self.published.iter().find(|(published, _)| published == path);
        Ok(found.with_context(|| format!("{} was not published", path.display()))?.1.clone())
    }

    /// Asks for a pack: its URL, or the server's reason against it.
    pub(crate) fn post(&self, case: &Case, payload: &str) -> Result<Result<String, String>> {
        let bar = spinner(format!("POST {}/v1/packs: the cloud LM reads the prompt", self.url));
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let body = json!({ "edge": case.edge, "system_prompt": case.prompt, "payload": payload }).to_string();
        let start = std::time::Instant::now();
        let mut response = agent
            .post(format!("{}/v1/packs", self.url))
            .header("Content-Type", "application/json")
            .send(&body)
            .context("POST /v1/packs")?;
        let text = response.body_mut().read_to_string()?;
        bar.finish_and_clear();
        let answer: Value = serde_json::from_str(&text).with_context(|| format!("the server answered {text:?}"))?;
        if !response.status().is_success() {
            return Ok(Err(format!("{}: {text}", response.status())));
        }
        let url = answer["url"].as_str().context("the answer has no url")?;
        let size = answer["size_bytes"].as_u64().unwrap_or_default();
        println!("  generated  in {:.1} s: {size} bytes", start.elapsed().as_secs_f64());
        // A path is relative to the server.
        Ok(Ok(if url.starts_with('/') { format!("{}{url}", self.url) } else { url.to_owned() }))
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        // It may have ended by itself, on the terminal's Ctrl-C.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
