use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use edgeweld::{CancelToken, Digest};
use edgeweld_cloud::device::Device;
use edgeweld_cloud::publish::{Publisher, PublisherOptions};
use edgeweld_cloud::serve::{BODY_SIZE_BYTES_MAX, PROMPT_SIZE_BYTES_MAX, ServeOptions, Server, Store};
use edgeweld_cloud::{Error, Result};

use super::keygen::read_secret_of;
use super::models::Models;

/// Shortest accepted bearer token: 16 characters of hex are 64 bits.
const TOKEN_CHARACTERS_MIN: usize = 16;

/// Make packs on request and serve them by digest (docs/http-api.md).
#[derive(Args)]
pub(crate) struct ServeArgs {
    /// Address and port; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: String,
    /// Generator folder.
    #[arg(long)]
    generator: PathBuf,
    /// Cloud LM, by name or path.
    #[arg(long)]
    cloud: String,
    /// Edge model, by name or path.
    #[arg(long)]
    edge: String,
    #[command(flatten)]
    models: Models,
    /// Where the cloud LM runs.
    #[arg(long, value_enum, default_value = "auto")]
    device: Device,
    /// Folder of the keys that `keygen` made.
    #[arg(long)]
    keys: PathBuf,
    /// Folder of packs and pools; it is made if there is none.
    #[arg(long)]
    store: PathBuf,
    /// Signed pack or pool files to serve, too; a pool before the packs that need it.
    #[arg(long, num_args = 1.., value_name = "FILE")]
    publish: Vec<PathBuf>,
    /// File with the bearer token that clients must send.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Serve anyone who can reach the address, also from other machines.
    #[arg(long)]
    danger_no_token: bool,
    /// What URLs in answers begin with, such as `https://packs.example.com`.
    #[arg(long)]
    public_url: Option<String>,
    /// Largest request body in bytes.
    #[arg(long, default_value_t = BODY_SIZE_BYTES_MAX)]
    body_bytes: usize,
    /// Largest prompt in bytes.
    #[arg(long, default_value_t = PROMPT_SIZE_BYTES_MAX)]
    prompt_bytes: usize,
    /// Forward passes at a time.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    concurrency: u16,
    /// Requests that may wait for a forward pass; more are refused.
    #[arg(long, default_value_t = 16)]
    queue: u16,
}

pub(crate) fn run(args: ServeArgs, stop: &CancelToken) -> Result<()> {
    let token = args.token_file.as_deref().map(read_token).transpose()?;
    // Cheap mistakes show before models load.
    let listener = Server::bind(&args.listen)?;
    let is_local = listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
    if token.is_none() && !is_local && !args.danger_no_token {
        let reason = "needed beyond the loopback interface (or --danger-no-token)".into();
        return Err(Error::InvalidOption { option: "--token-file", reason });
    }
    let store = Store::open(&args.store)?;
    let signer = Some(read_secret_of(&args.keys)?);
    let (cloud, edge) = (args.models.find(&args.cloud)?, args.models.find(&args.edge)?);
    let start = Instant::now();
    let options =
        PublisherOptions { generator: args.generator, cloud, edge: edge.clone(), signer, device: args.device };
    let publisher = Publisher::load(options)?;
    log::info!("loaded {} in {:.2?}", publisher.info().name, start.elapsed());
    let options = ServeOptions {
        token,
        public_url: args.public_url.map(|url| url.trim_end_matches('/').to_owned()),
        edge_file: edge,
        body_size_bytes_max: args.body_bytes,
        prompt_size_bytes_max: args.prompt_bytes,
        concurrency: args.concurrency.into(),
        queue: args.queue.into(),
        ..ServeOptions::default()
    };
    let server = Server::new(listener, publisher, store, options)?;
    for path in args.publish {
        println!("published {} as {}", path.display(), server.publish_file(&path)?);
    }
    println!("listening on {}", server.url());
    server.run(stop)
}

fn read_token(path: &Path) -> Result<Digest> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let token = text.trim();
    if token.len() < TOKEN_CHARACTERS_MIN || token.contains(char::is_whitespace) {
        let reason = format!("a token is one word of at least {TOKEN_CHARACTERS_MIN} characters");
        return Err(Error::InvalidFile { path: path.to_owned(), reason });
    }
    Ok(Digest::of(token.as_bytes()))
}
