//! Running a program to its end while its time and memory are taken.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;

/// What a program that succeeded said and took.
pub struct Finished {
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// From before the start until after the end.
    pub elapsed: Duration,
    /// The largest resident set; pages of mapped files count.
    pub peak_rss_bytes: u64,
}

/// Runs the command, which must succeed.
///
/// # Errors
/// If it cannot start or fails; what it said is in the error.
#[cfg(unix)]
pub fn run(command: &mut Command) -> Result<Finished> {
    use std::io::Read;
    use std::process::Stdio;
    use std::time::Instant;

    use anyhow::{Context, ensure};

    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let program = command.get_program().to_string_lossy().into_owned();
    let start = Instant::now();
    let mut child = command.spawn().with_context(|| format!("cannot start {program}"))?;
    // One thread per pipe, so that neither fills up.
    let mut pipe = child.stderr.take().context("stderr is piped")?;
    let stderr = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).map(|_| String::from_utf8_lossy(&bytes).into_owned())
    });
    let mut stdout = Vec::new();
    child.stdout.take().context("stdout is piped")?.read_to_end(&mut stdout)?;

    let mut status = 0;
    // SAFETY: all-zero is a valid `rusage`.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both pointers are to live values; the child is ours and not yet waited for.
        let waited = unsafe { libc::wait4(child.id().cast_signed(), &mut status, 0, &mut usage) };
        let error = std::io::Error::last_os_error();
        match waited {
            -1 if error.kind() == std::io::ErrorKind::Interrupted => {}
            -1 => return Err(error).with_context(|| format!("waiting for {program}")),
            _ => break,
        }
    }
    let elapsed = start.elapsed();
    let stderr = stderr.join().expect("reading a pipe does not panic")?;
    ensure!(status == 0, "{program} ended with wait status {status:#x}: {}", stderr.trim_end());
    // Linux counts kibibytes, Apple's systems bytes.
    let unit = if cfg!(target_vendor = "apple") { 1 } else { 1024 };
    let stdout = String::from_utf8(stdout).with_context(|| format!("output of {program}"))?;
    Ok(Finished { stdout, stderr, elapsed, peak_rss_bytes: usage.ru_maxrss.cast_unsigned() as u64 * unit })
}

/// Runs the command, which must succeed.
///
/// # Errors
/// If it cannot start or fails; what it said is in the error.
#[cfg(not(unix))]
pub fn run(_command: &mut Command) -> Result<Finished> {
    anyhow::bail!("a process's peak memory is measured with wait4, which only Unix systems have")
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn output_time_and_memory_are_the_programs() {
        let finished = run(Command::new("sh").args(["-c", "sleep 0.05; echo 12; echo noise >&2"])).unwrap();
        assert_eq!(finished.stdout, "12\n");
        assert!(finished.elapsed >= Duration::from_millis(50));
        assert!((1 << 18..1 << 30).contains(&finished.peak_rss_bytes), "{}", finished.peak_rss_bytes);
    }

    #[test]
    fn a_failure_shows_what_the_program_said() {
        let error = run(Command::new("sh").args(["-c", "echo no model >&2; exit 3"])).err().unwrap().to_string();
        assert!(error.contains("no model") && error.contains("0x300"), "{error}");
        assert!(run(&mut Command::new("no such program")).is_err());
    }
}
