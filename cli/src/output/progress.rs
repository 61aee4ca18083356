//! A bar on standard error while something is waited for; a plain line per change where there is no terminal.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// How often a bar's spinner turns.
const TICK: Duration = Duration::from_millis(120);

/// Shows how far something is.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    last: String,
}

impl Progress {
    /// Begins to show `title`.
    pub(crate) fn new(title: &str) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self { bar: None, last: String::new() };
        }
        let bar = ProgressBar::new(100);
        let style =
            ProgressStyle::with_template("{spinner} {prefix} [{bar:30}] {percent:>3} % {msg} {elapsed}");
        bar.set_style(style.expect("the template is constant").progress_chars("=> "));
        bar.set_prefix(title.to_owned());
        bar.enable_steady_tick(TICK);
        Self { bar: Some(bar), last: String::new() }
    }

    /// It is so far, and does this.
    pub(crate) fn at(&mut self, percent: u64, doing: &str) {
        match &self.bar {
            Some(bar) => {
                bar.set_position(percent.min(100));
                bar.set_message(doing.to_owned());
            }
            None if self.last != doing => super::remark(doing),
            None => {}
        }
        doing.clone_into(&mut self.last);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
