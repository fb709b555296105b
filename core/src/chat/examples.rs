use super::{Message, Role};

/// A system message and, where `prompt` ends in examples of the form `User: …`, `Assistant: …`, these as turns of the
/// conversation. Small models hardly follow examples inside a system message, so this is what packs are refined to.
pub fn examples_as_turns(prompt: &str) -> Vec<Message> {
    let (mut system, mut turns) = (String::new(), Vec::<Message>::new());
    for line in prompt.lines() {
        let (role, text) = match (line.strip_prefix("User:"), line.strip_prefix("Assistant:")) {
            (Some(text), _) => (Role::User, text),
            (_, Some(text)) if !turns.is_empty() => (Role::Assistant, text),
            _ => {
                match turns.last_mut() {
                    None => system += &format!("{line}\n"),
                    Some(turn) => turn.content += &format!("\n{line}"),
                }
                continue;
            }
        };
        turns.push(Message::new(role, text.trim_start()));
    }
    for turn in &mut turns {
        turn.content.truncate(turn.content.trim_end().len());
    }
    let roles = turns.iter().map(|turn| turn.role);
    let alternate = [Role::User, Role::Assistant].into_iter().cycle();
    // Half a pair, or text after the last one, is no list of examples: then nothing is taken apart.
    if turns.len() % 2 == 1
        || !roles.eq(alternate.take(turns.len()))
        || turns.iter().any(|turn| turn.content.is_empty())
    {
        return vec![Message::system(prompt)];
    }
    let system = system.trim_end();
    let system = system.strip_suffix("Examples").or(system.strip_suffix("Examples:")).unwrap_or(system).trim_end();
    std::iter::once(Message::system(system)).chain(turns).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_at_the_end_of_a_prompt_become_turns() {
        let messages = examples_as_turns("Sort.\n\nExamples\n\nUser: a\nAssistant: b\n\nUser: c\nc\nAssistant: d\n");
        let expected = [
            Message::system("Sort."),
            Message::user("a"),
            Message::assistant("b"),
            Message::user("c\nc"),
            Message::assistant("d"),
        ];
        assert_eq!(messages, expected);
    }

    #[test]
    fn a_prompt_without_pairs_stays_whole() {
        for prompt in ["Sort.", "Sort.\nUser: a", "User: a\nUser: b", "Assistant: b\nUser: a"] {
            assert_eq!(examples_as_turns(prompt), [Message::system(prompt)], "{prompt}");
        }
    }
}
