use std::path::{Path, PathBuf};

use clap::Args;
use edgeweld::pack::SecretKey;
use edgeweld_cloud::{Error, Result};
use rand::TryRngCore as _;
use rand::rngs::OsRng;

const SECRET: &str = "secret";
const PUBLIC: &str = "public";

/// Make a signing key: `secret` for the generator, `public` for the devices that trust it.
#[derive(Args)]
pub(crate) struct KeygenArgs {
    /// Folder of the two key files; neither may exist.
    #[arg(long)]
    out: PathBuf,
}

pub(crate) fn run(args: &KeygenArgs) -> Result<()> {
    std::fs::create_dir_all(&args.out).map_err(Error::io(&args.out))?;
    let (secret, public) = (args.out.join(SECRET), args.out.join(PUBLIC));
    // Neither half is written beside a stranger.
    if let Some(path) = [&secret, &public].into_iter().find(|path| path.exists()) {
        return Err(Error::KeyExists { path: path.clone() });
    }
    let mut seed = [0; 32];
    OsRng.try_fill_bytes(&mut seed).map_err(|error| Error::io(&secret)(std::io::Error::other(error)))?;
    let key = SecretKey::from_seed(&seed);
    write_new(&secret, &key.to_secret_text(), 0o600)?;
    write_new(&public, &key.public_key().to_string(), 0o644)?;
    println!("{}", key.public_key());
    eprintln!("{}: keep it where only the generator can read it", secret.display());
    eprintln!("{}: give it to devices", public.display());
    Ok(())
}

/// The secret key in a file.
pub(super) fn read_secret(path: &Path) -> Result<SecretKey> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    text.trim().parse().map_err(|error: edgeweld::Error| invalid(path, &error))
}

/// The secret key in a folder that `keygen` made.
pub(super) fn read_secret_of(folder: &Path) -> Result<SecretKey> {
    read_secret(&folder.join(SECRET))
}

fn invalid(path: &Path, error: &edgeweld::Error) -> Error {
    Error::InvalidFile { path: path.to_owned(), reason: error.to_string() }
}

// The mode holds from the first moment the name exists, and an existing file is never replaced.
fn write_new(path: &Path, text: &str, mode: u32) -> Result<()> {
    use std::io::Write as _;
    let mut options = std::fs::File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    #[cfg(not(unix))]
    let _ = mode;
    let mut file = options.open(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => Error::KeyExists { path: path.to_owned() },
        _ => Error::io(path)(error),
    })?;
    writeln!(file, "{text}").and_then(|()| file.sync_all()).map_err(Error::io(path))
}
