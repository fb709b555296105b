//! The template engine, set up as `transformers` sets up Jinja.

use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{Environment, Error as JinjaError, ErrorKind, Value};

use super::{json, python, time};
use crate::{Error, Result};

const NAME: &str = "chat template";
/// Instructions that any template may run; published ones need some hundreds per message.
const FUEL: u64 = 200_000;
/// More of them per byte of messages.
const FUEL_PER_BYTE: u64 = 16;
/// What a template may write beside the messages.
const OUTPUT_BYTES: usize = 1 << 20;

/// An environment that holds `source`.
pub(super) fn environment(source: &str) -> Result<Environment<'static>> {
    let mut environment = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true);
    environment.set_syntax(syntax.build().map_err(failed)?);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_recursion_limit(64);
    environment.set_unknown_method_callback(|_, value, method, arguments| python::call(value, method, arguments));
    environment.add_filter("tojson", |value: Value, options: Kwargs| -> Result<Value, JinjaError> {
        let indent = options.get::<Option<usize>>("indent")?.map(|indent| indent.min(16));
        Ok(json::to_python(&serde_json::to_value(&value).map_err(invalid)?, indent).into())
    });
    environment.add_function("raise_exception", |reason: String| -> Result<Value, JinjaError> {
        Err(JinjaError::new(ErrorKind::InvalidOperation, reason))
    });
    // `transformers` marks the assistant's turns for training with this block; it writes nothing.
    let mut source = source.to_owned();
    for (start, word) in
        [("{%-", "generation"), ("{%", "generation"), ("{%-", "endgeneration"), ("{%", "endgeneration")]
    {
        for end in ["-%}", "%}"] {
            source = source.replace(&format!("{start} {word} {end}"), "");
        }
    }
    environment.add_template_owned(NAME, source).map_err(failed)?;
    Ok(environment)
}

/// Renders the template with `context`, for messages of `input_bytes`.
pub(super) fn render(
    environment: &Environment<'static>,
    context: Value,
    input_bytes: usize,
    now: SystemTime,
) -> Result<String> {
    let mut environment = environment.clone();
    environment.set_fuel(Some(FUEL + FUEL_PER_BYTE * input_bytes as u64));
    environment.add_function("strftime_now", move |format: String| time::format(now, &format));
    let template = environment.get_template(NAME).map_err(failed)?;
    let mut output = Capped { bytes: Vec::new(), limit: OUTPUT_BYTES + 4 * input_bytes };
    template.render_captured_to(context, &mut output).map_err(failed)?;
    String::from_utf8(output.bytes).map_err(|error| Error::Template { reason: error.to_string() })
}

/// A buffer that refuses to grow beyond its limit.
struct Capped {
    bytes: Vec<u8>,
    limit: usize,
}

impl std::io::Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.limit {
            return Err(std::io::Error::other(format!("it writes more than {} bytes", self.limit)));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn invalid(error: impl std::fmt::Display) -> JinjaError {
    JinjaError::new(ErrorKind::InvalidOperation, error.to_string())
}

fn failed(error: JinjaError) -> Error {
    let mut reason = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        reason += &format!(": {cause}");
        source = cause.source();
    }
    reason.truncate(reason.floor_char_boundary(1000));
    Error::Template { reason }
}
