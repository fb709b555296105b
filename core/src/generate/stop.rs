/// Holds back text that may yet become a stop string.
pub(super) struct StopStrings<'a> {
    stops: &'a [String],
    held: String,
}

impl<'a> StopStrings<'a> {
    /// Empty stop strings never match.
    pub(super) fn new(stops: &'a [String]) -> Self {
        Self { stops, held: String::new() }
    }

    /// Adds `text`; returns what is certain to be part of the answer, and whether a stop string was completed.
    pub(super) fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        let found =
            self.stops.iter().filter(|stop| !stop.is_empty()).filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(start) = found {
            self.held.truncate(start);
            return (std::mem::take(&mut self.held), true);
        }
        let rest = self.held.split_off(self.held.len() - self.undecided_len());
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// The text that was held back for nothing.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes at the end of `held` that begin a stop string.
    fn undecided_len(&self) -> usize {
        let begins = |stop: &String| {
            (1..stop.len().min(self.held.len() + 1))
                .rev()
                .find(|&len| stop.is_char_boundary(len) && self.held.ends_with(&stop[..len]))
                .unwrap_or(0)
        };
        self.stops.iter().map(begins).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], texts: &[&str]) -> (String, bool) {
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut stop = StopStrings::new(&stops);
        let mut shown = String::new();
        for text in texts {
            let (certain, found) = stop.push(text);
            shown += &certain;
            if found {
                return (shown, true);
            }
        }
        (shown + &stop.finish(), false)
    }

    #[test]
    fn stop_string_across_tokens_never_shows() {
        assert_eq!(run(&["END"], &["a E", "N", "D b"]), ("a ".into(), true));
        assert_eq!(run(&["END"], &["a EN", "ough"]), ("a ENough".into(), false));
        assert_eq!(run(&["é!"], &["caf", "é", "!"]), ("caf".into(), true));
    }

    #[test]
    fn earliest_stop_string_wins() {
        assert_eq!(run(&["\n\n", "b"], &["a b\n\n"]), ("a ".into(), true));
    }

    #[test]
    fn empty_stop_string_never_matches() {
        assert_eq!(run(&[""], &["a", "b"]), ("ab".into(), false));
    }
}
