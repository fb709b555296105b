//! The README's five lines are those of the crate's documentation, which is compiled.

#[test]
fn the_readmes_rust_is_the_documentations() {
    let block = |text: &str, from: &str| {
        let (_, block) = text.split_once(from).expect("has a Rust block");
        let lines = block.split("```").next().unwrap_or_default().lines().map(|line| line.trim_start_matches("//! "));
        lines.filter(|line| line.starts_with("let ") || line.starts_with("println!")).collect::<Vec<_>>().join("\n")
    };
    let readme = block(include_str!("../../README.md"), "```rust\n");
    assert_eq!(readme, block(include_str!("../src/lib.rs"), "```no_run\n"));
    assert_eq!(readme.lines().count(), 5);
}
