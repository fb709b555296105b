//! The command line, as a person or a script runs it.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use edgeweld::gguf::GgufFile;
use edgeweld::pack::{PublicKey, RawPack};
use edgeweld::verify::{TrustPolicy, verify};

use crate::tiny::{PROMPT, Tiny};

struct Scene {
    tiny: Tiny,
}

impl Scene {
    fn new() -> Self {
        let scene = Self { tiny: Tiny::new() };
        std::fs::write(scene.tiny.path("prompt.txt"), PROMPT).unwrap();
        std::fs::write(scene.tiny.path("long.txt"), "a".repeat(100)).unwrap();
        std::fs::write(scene.tiny.path("binary.txt"), [0xff, 0xfe]).unwrap();
        succeeds(&scene.run("keygen --out keys"));
        scene
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cloud-generator"));
        command.current_dir(self.tiny.folder.path()).args(line.split(' ')).env("EDGEWELD_MODELS", ".");
        command.env_remove("RUST_LOG");
        command
    }

    fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.tiny.path(name)).unwrap()
    }
}

const GENERATE: &str = "generate --edge tiny-llama --cloud tiny-gemma3 --generator generator";
const SERVE: &str = "serve --listen 127.0.0.1:0 --edge tiny-llama --cloud tiny-gemma3 --generator generator";

fn succeeds(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn keys_are_private_and_never_overwritten() {
    let scene = Scene::new();
    let (secret, public) = (scene.read("keys/secret"), scene.read("keys/public"));
    public.as_slice().utf8_chunks().next().unwrap().valid().parse::<PublicKey>().unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |name: &str| std::fs::metadata(scene.tiny.path(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode("keys/secret"), 0o600);
    }
    let again = scene.run("keygen --out keys");
    assert!(!again.status.success());
    assert!(String::from_utf8_lossy(&again.stderr).contains("never overwritten"));
    assert_eq!((scene.read("keys/secret"), scene.read("keys/public")), (secret, public));
    // A public key alone is refused, too: a new secret beside it would not fit it.
    std::fs::remove_file(scene.tiny.path("keys/secret")).unwrap();
    assert!(!scene.run("keygen --out keys").status.success());
    assert!(!Path::new(&scene.tiny.path("keys/secret")).exists());
}

#[test]
fn generate_makes_signed_packs_of_models_given_by_name() {
    let scene = Scene::new();
    let prompts = "--prompt-file prompt.txt --prompt-file prompt.txt --sign keys/secret";
    let text = succeeds(&scene.run(&format!("{GENERATE} {prompts} -o one.pack -o two.pack")));
    assert!(text.contains("2 prompts in one pass") && text.contains("router: one row per expert"), "{text}");
    let key: PublicKey = String::from_utf8(scene.read("keys/public")).unwrap().parse().unwrap();
    let raw = RawPack::read(scene.read("one.pack")).unwrap();
    let model = raw.unverified_manifest().unwrap().model;
    verify(&raw, &TrustPolicy::trusting([key]), &model, None).unwrap();
    assert_eq!(scene.read("one.pack"), scene.read("two.pack"));
}

#[test]
fn bad_command_lines_end_with_one_named_error() {
    let scene = Scene::new();
    std::fs::write(scene.tiny.path("token"), "short").unwrap();
    std::fs::write(scene.tiny.path("notes.gguf"), "not a model").unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let serve = format!("{SERVE} --keys keys --store store");
    let generate = format!("{GENERATE} --prompt-file prompt.txt -o x.pack");
    let cases = [
        (generate.replace("--generator generator", "--generator missing"), "missing/generator.toml: No such file"),
        (generate.replace("tiny-llama", "tiny-gemma3"), "made for edge model sha256:"),
        (generate.replace("tiny-llama", "tiny"), "could be any of"),
        (generate.replace("tiny-llama", "qwen"), "no model file fits \"qwen\""),
        (generate.replace("tiny-llama", "notes.gguf"), "not a readable GGUF file"),
        (generate.replace("prompt.txt", "missing.txt"), "missing.txt: No such file"),
        (generate.replace("prompt.txt", "long.txt"), "the prompt has 101 tokens, the generator takes 40"),
        (generate.replace("prompt.txt", "binary.txt"), "binary.txt: stream did not contain valid UTF-8"),
        (generate.replace("x.pack", "missing/x.pack"), "missing/x.pack: No such file"),
        (format!("{generate} -o y.pack"), "invalid option --output: 2 files for 1 prompts"),
        (format!("{generate} --payload gates"), "invalid option --pool-out"),
        (format!("{generate} --sign keys/public"), "keys/public: bad signature"),
        (format!("{generate} --device cuda"), "device cuda is not available"),
        (serve.replace(":0", &format!(":{port}")), "cannot listen on 127.0.0.1:"),
        (serve.replace("127.0.0.1", "0.0.0.0"), "invalid option --token-file"),
        (format!("{serve} --token-file token"), "token: a token is one word"),
        (format!("{serve} --publish prompt.txt"), "not a valid pack"),
        (serve.replace("--keys keys", "--keys missing"), "missing/secret: No such file"),
        (serve.replace("--store store", "--store prompt.txt"), "prompt.txt/sha256: "),
    ];
    for (line, expected) in cases {
        let output = scene.run(&line);
        let text = String::from_utf8_lossy(&output.stderr);
        let errors = text.lines().filter(|line| line.starts_with("error: ")).count();
        assert_eq!((output.status.code(), errors), (Some(1), 1), "{line}: {text}");
        assert!(text.contains(expected), "{line}: {text}");
        assert!(!scene.tiny.path("x.pack").exists(), "{line}: nothing is left behind");
    }
}

#[test]
#[cfg(unix)]
fn serve_says_where_it_listens_and_ends_well_on_a_signal() {
    let scene = Scene::new();
    succeeds(&scene.run(&format!("{GENERATE} --prompt-file prompt.txt --sign keys/secret -o one.pack")));
    let mut command = scene.command(&format!("{SERVE} --keys keys --store store --publish one.pack"));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let published = lines.next().unwrap();
    let url = published.strip_prefix("published one.pack as ").unwrap_or_else(|| panic!("{published}")).to_owned();
    let listening = lines.next().unwrap();
    let base = listening.strip_prefix("listening on ").unwrap_or_else(|| panic!("{listening}"));
    assert!(url.starts_with(&format!("{base}/v1/packs/sha256:")), "{url}");
    assert_eq!(ureq::get(&url).call().unwrap().body_mut().read_to_vec().unwrap(), scene.read("one.pack"));
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    assert!(child.wait().unwrap().success());
    let mut log = String::new();
    child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert!(log.contains("GET /v1/packs/sha256:") && log.contains("stopping"), "{log}");
    assert!(!log.contains(PROMPT), "prompts are not logged");
}

#[test]
fn inspect_shows_each_kind_of_file_and_who_signed_it() {
    let scene = Scene::new();
    let prompt = "--prompt-file prompt.txt --sign keys/secret";
    succeeds(&scene.run(&format!("{GENERATE} {prompt} -o dense.pack")));
    succeeds(&scene.run(&format!("{GENERATE} {prompt} --payload gates --pool-out a.pool -o gates.pack")));
    succeeds(&scene.run(&format!("{GENERATE} --prompt-file prompt.txt -o unsigned.pack")));
    let key = String::from_utf8(scene.read("keys/public")).unwrap();
    for (line, expected) in [
        ("dense.pack", vec!["dense pack, format version 1", "--trust says whether", " gate_proj |", "14 tokens"]),
        ("dense.pack --trust keys/public", vec![key.trim(), "which is trusted"]),
        ("gates.pack", vec!["gates pack", "router: one row per expert", "need the pool"]),
        ("gates.pack --pool a.pool", vec!["router: one row per expert", " down_proj |"]),
        ("a.pool", vec!["file           pool", "norm of the experts' deltas"]),
        ("unsigned.pack", vec!["none: devices refuse this file by default"]),
        ("dense.pack --json", vec!["\"architecture\": \"llama\""]),
    ] {
        let text = succeeds(&scene.run(&format!("inspect {line}")));
        for expected in expected {
            assert!(text.contains(expected), "{line}: {expected} is not in\n{text}");
        }
    }
}

#[test]
fn exports_hold_the_packs_values_and_hostile_files_are_refused_by_name() {
    let scene = Scene::new();
    let prompt = "--prompt-file prompt.txt --sign keys/secret";
    succeeds(&scene.run(&format!("{GENERATE} {prompt} -o dense.pack")));
    succeeds(&scene.run(&format!("{GENERATE} {prompt} --payload gates --pool-out a.pool -o gates.pack")));
    succeeds(&scene.run("export dense.pack --format gguf -o lora.gguf"));
    let gguf = GgufFile::open(scene.tiny.path("lora.gguf")).unwrap();
    assert_eq!(gguf.metadata().str("adapter.type").unwrap(), "lora");
    assert_eq!(gguf.metadata().f32("adapter.lora.alpha").unwrap(), 2.0);
    assert_eq!(gguf.tensors().len(), 2 * 3 * 2);
    assert_eq!(gguf.tensor("blk.1.ffn_down.weight.lora_a").unwrap().shape(), [2, 24]);

    // The f16 values of a dense pack come out as they are in it.
    succeeds(&scene.run("export dense.pack --format peft -o peft"));
    let (peft, pack) = (scene.read("peft/adapter_model.safetensors"), scene.read("dense.pack"));
    let manifest = RawPack::read(pack.clone()).unwrap().unverified_manifest().unwrap();
    let frame = &pack[pack.len() - manifest.payload.size_bytes as usize..];
    let packed = zstd::bulk::decompress(frame, manifest.payload.tensors_size_bytes as usize).unwrap();
    let [peft, packed] = [&peft, &packed].map(|bytes| safetensors::SafeTensors::deserialize(bytes).unwrap());
    assert_eq!(peft.len(), 12);
    for (name, tensor) in packed.tensors() {
        assert_eq!(peft.tensor(&name).unwrap().data(), tensor.data(), "{name}");
    }
    succeeds(&scene.run("export gates.pack --pool a.pool --format onnx-adapter -o lora.onnx_adapter"));
    assert_eq!(&scene.read("lora.onnx_adapter")[4..8], b"TORT");

    std::fs::write(scene.tiny.path("cut.pack"), &pack[..pack.len() - 1]).unwrap();
    let mut flipped = pack.clone();
    flipped[40] ^= 1;
    std::fs::write(scene.tiny.path("flipped.pack"), flipped).unwrap();
    let stranger = format!("ed25519:58{}", "66".repeat(31));
    let export = "export dense.pack --format gguf -o x.gguf";
    for (line, expected) in [
        ("inspect missing.pack".to_owned(), "missing.pack: No such file"),
        ("inspect prompt.txt".to_owned(), "not a valid pack: the file does not begin"),
        ("inspect cut.pack".to_owned(), "not a valid pack: the payload has"),
        ("inspect flipped.pack".to_owned(), "bad signature"),
        ("inspect dense.pack --trust prompt.txt".to_owned(), "prompt.txt: bad signature"),
        (format!("inspect dense.pack --trust {stranger}"), "is not trusted"),
        ("inspect gates.pack --pool dense.pack".to_owned(), "the file is a dense pack, expected was a pool"),
        (export.replace("dense", "gates"), "the pack needs expert pool sha256:"),
        (export.replace("dense.pack", "a.pool"), "the file is a pool, expected was a pack"),
        (export.replace("dense", "cut"), "not a valid pack: the payload has"),
        (export.replace("x.gguf", "missing/x.gguf"), "missing/"),
        (export.replace("gguf -o x.gguf", "peft -o prompt.txt"), "prompt.txt: "),
    ] {
        let output = scene.run(&line);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{line}: {text}");
        assert!(text.lines().any(|line| line.starts_with("error: ") && line.contains(expected)), "{line}: {text}");
        assert!(!scene.tiny.path("x.gguf").exists(), "{line}");
    }
}
