use std::path::Path;

use serde::Deserialize;

use super::{BuiltIn, ChatTemplate, TEMPLATE_BYTES_MAX};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// Largest tokenizer_config.json that is read; those that list every added token have a few MB.
const CONFIG_BYTES_MAX: u64 = 32 << 20;

/// The part of tokenizer_config.json that is a template.
#[derive(Deserialize)]
struct TokenizerConfig {
    chat_template: Option<Templates>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

impl ChatTemplate {
    /// The template beside a `tokenizer.json`: `chat_template.jinja`, else the one in `tokenizer_config.json` (of several, the
    /// one named `default`), else the built-in one of the tokenizer's family.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::TooLarge`]; [`Error::Template`] when a file is none or its template does not parse.
    pub fn from_folder(folder: impl AsRef<Path>, tokenizer: &Tokenizer) -> Result<Self> {
        let folder = folder.as_ref();
        if let Some(source) = read(&folder.join("chat_template.jinja"), TEMPLATE_BYTES_MAX as u64)? {
            return Self::new(&source);
        }
        let path = folder.join("tokenizer_config.json");
        if let Some(text) = read(&path, CONFIG_BYTES_MAX)? {
            let config: TokenizerConfig = serde_json::from_str(&text)
                .map_err(|error| Error::Template { reason: format!("{}: {error}", path.display()) })?;
            match config.chat_template {
                Some(Templates::One(source)) => return Self::new(&source),
                Some(Templates::Named(templates)) => {
                    if let Some(found) = templates.iter().find(|template| template.name == "default") {
                        return Self::new(&found.template);
                    }
                }
                None => (),
            }
        }
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        Self::built_in(BuiltIn::for_model(tokenizer, &name))
    }
}

/// The file's text; `None` if there is no such file.
fn read(path: &Path, limit_bytes: u64) -> Result<Option<String>> {
    let actual_bytes = match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(Error::io(path))?.len(),
    };
    if actual_bytes > limit_bytes {
        return Err(Error::TooLarge { actual_bytes, limit_bytes });
    }
    std::fs::read_to_string(path).map(Some).map_err(Error::io(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::{Message, RenderOptions};
    use crate::tokenizer::tests::smollm2;

    fn render(files: &[(&str, &str)]) -> Result<String> {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("tiny-instruct");
        std::fs::create_dir(&folder).unwrap();
        for (name, text) in files {
            std::fs::write(folder.join(name), text).unwrap();
        }
        let tokenizer = smollm2();
        let template = ChatTemplate::from_folder(&folder, &tokenizer)?;
        let options = RenderOptions { add_generation_prompt: false, ..RenderOptions::default() };
        Ok(template.render(&tokenizer, &[Message::user("hi")], &options)?.text)
    }

    #[test]
    fn a_template_is_found_in_every_place_where_tools_put_it() {
        let jinja = ("chat_template.jinja", "A{{ messages[0].content }}");
        let one = ("tokenizer_config.json", r#"{"bos_token": "x", "chat_template": "B{{ messages[0].content }}"}"#);
        let named =
            r#"{"chat_template": [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "C"}]}"#;
        assert_eq!(render(&[jinja, one]).unwrap(), "Ahi", "the file of its own comes first");
        assert_eq!(render(&[one]).unwrap(), "Bhi");
        assert_eq!(render(&[("tokenizer_config.json", named)]).unwrap(), "C");
        for without in [&[][..], &[("tokenizer_config.json", "{}")]] {
            assert_eq!(render(without).unwrap(), "<|im_start|>user\nhi<|im_end|>\n", "the tokenizer's family");
        }
    }

    #[test]
    fn rejects_a_configuration_that_is_no_json() {
        assert!(matches!(render(&[("tokenizer_config.json", "{")]), Err(Error::Template { .. })));
        let typed = r#"{"chat_template": 3}"#;
        assert!(matches!(render(&[("tokenizer_config.json", typed)]), Err(Error::Template { .. })));
    }
}
