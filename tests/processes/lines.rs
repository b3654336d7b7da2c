//! Files of JSON lines that a killed process leaves readable.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A file that is written line by line, each in one piece: what was written is in the page cache when the process dies.
pub struct Lines(File);

impl Lines {
    pub fn create(folder: &Path, name: &str) -> Self {
        Lines(File::create(folder.join(name)).expect("a new directory"))
    }

    pub fn write(&mut self, line: &impl Serialize) {
        let line = serde_json::to_string(line).expect("plain data") + "\n";
        self.0.write_all(line.as_bytes()).expect("there is room");
    }
}

/// The whole lines of a file; none if its process died before it made one.
pub fn read<T: DeserializeOwned>(folder: &Path, name: &str) -> Vec<T> {
    let text = std::fs::read_to_string(folder.join(name)).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{name}: {error}: {line}")))
        .collect()
}
