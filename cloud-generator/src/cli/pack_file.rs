use std::path::{Path, PathBuf};

use clap::Args;
use edgeweld::Digest;
use edgeweld::lora::LoraSet;
use edgeweld::pack::{Manifest, PublicKey, RawPack, Signature};
use edgeweld::verify::{TrustPolicy, VerifiedPool, verify, verify_pool};
use edgeweld_cloud::{Error, Result};

/// A pack or pool file from anywhere, and who may have signed it.
#[derive(Args)]
pub(super) struct PackFile {
    /// Pack or pool file.
    file: PathBuf,
    /// Public key file, or the key itself (`ed25519:…`); repeat for more. The file must be signed by one of them.
    #[arg(long, value_name = "KEY")]
    trust: Vec<String>,
    /// Pool of a gates pack; default: `<hex digest>.pool` beside the pack.
    #[arg(long)]
    pool: Option<PathBuf>,
}

impl PackFile {
    /// Reads the file; nothing in it is trusted yet.
    pub(super) fn read(&self) -> Result<RawPack> {
        read(&self.file)
    }

    /// Whether the user said whom to trust.
    pub(super) fn asks_trust(&self) -> bool {
        !self.trust.is_empty()
    }

    /// The keys of `--trust`; without any, the one that the file itself names, so that the signature is checked at least.
    pub(super) fn policy(&self, claim: Option<&Signature>) -> Result<TrustPolicy> {
        if self.asks_trust() {
            return Ok(TrustPolicy::trusting(self.trust.iter().map(|key| read_key(key)).collect::<Result<Vec<_>>>()?));
        }
        match claim {
            Some(claim) => Ok(TrustPolicy::trusting([PublicKey::from_bytes(&claim.key)?])),
            None => Ok(TrustPolicy { danger_accept_unsigned: true, ..TrustPolicy::default() }),
        }
    }

    /// The pool of a gates pack for this manifest's model, if it is there.
    pub(super) fn pool(
        &self,
        digest: Digest,
        trust: &TrustPolicy,
        manifest: &Manifest,
    ) -> Result<Option<VerifiedPool>> {
        let beside = || self.file.with_file_name(format!("{}.pool", digest.hex()));
        let path = match &self.pool {
            Some(path) => path.clone(),
            None if beside().is_file() => beside(),
            None => return Ok(None),
        };
        Ok(Some(verify_pool(&read(&path)?, trust, &manifest.model)?))
    }

    /// The LoRA of a pack, a gates pack's mixed from its pool; checked, except that no model is there to match.
    pub(super) fn lora(&self) -> Result<(Manifest, LoraSet)> {
        let raw = self.read()?;
        let trust = self.policy(raw.unverified_signature().as_ref())?;
        let manifest = raw.unverified_manifest()?;
        let pack = match verify(&raw, &trust, &manifest.model, None) {
            Err(edgeweld::Error::PoolMissing { digest }) => {
                let pool = self.pool(digest, &trust, &manifest)?;
                verify(&raw, &trust, &manifest.model, pool.as_ref())?
            }
            done => done?,
        };
        Ok((manifest, pack.lora().clone()))
    }
}

fn read(path: &Path) -> Result<RawPack> {
    use std::io::Read as _;
    let limit_bytes = TrustPolicy::default().pack_size_bytes_max;
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(Error::io(path))?;
    file.take(limit_bytes + 1).read_to_end(&mut bytes).map_err(Error::io(path))?;
    if bytes.len() as u64 > limit_bytes {
        return Err(edgeweld::Error::TooLarge { actual_bytes: bytes.len() as u64, limit_bytes }.into());
    }
    Ok(RawPack::read(bytes)?)
}

fn read_key(key: &str) -> Result<PublicKey> {
    if key.starts_with("ed25519:") {
        return Ok(key.parse()?);
    }
    let path = Path::new(key);
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    text.parse().map_err(|error: edgeweld::Error| Error::InvalidFile { path: path.into(), reason: error.to_string() })
}
