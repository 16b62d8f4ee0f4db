//! Oddities of rows that are read all the same: counted over all rows and reported in a few lines.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use base::Example;
use python::json::Lost;
use serde_json::{Map, Value};

use crate::check::digest;
use crate::error::read_as;
use crate::image::Orientation;
use crate::placeholders::placeholders;
use crate::row::reserved_tokens;
use crate::unread::{ReadKeys, unread_keys};

/// Places that are reported for each oddity.
const MAX_PLACES: usize = 3;

/// What of a row is odd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum About {
    /// A mark in its text.
    Mark,
    /// A key that is not read.
    Key,
    /// A value that JSON cannot hold, or that is probably a mistake.
    Value,
}

/// Something odd about one row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Oddity {
    /// What it is about.
    pub about: About,
    /// What.
    pub text: String,
    /// What to do about it.
    pub hint: String,
}

/// What is odd about a row: keys that `read` does not name, marks in its `texts`, each with what it is.
pub fn oddities(
    columns: &Map<String, Value>,
    texts: &[(&str, &str)],
    read: &ReadKeys,
) -> Vec<Oddity> {
    let of_key = |found: crate::unread::UnreadKey| Oddity {
        about: About::Key,
        text: found.text(read),
        hint: found.hint(read),
    };
    let keys = unread_keys(columns, read).into_iter().map(of_key);
    let marks = texts.iter().flat_map(|(what, text)| {
        let marks = placeholders(text).into_iter();
        // The tokenizer reads these as special tokens: they are refused, or wanted.
        let marks = marks.filter(|mark| !reserved_tokens().any(|token| token == *mark));
        marks.map(move |mark| Oddity {
            about: About::Mark,
            text: format!("the {what} holds `{mark}`, which is read as text"),
            hint: "fill such marks, or leave such rows out".to_owned(),
        })
    });
    keys.chain(marks).chain(null_answer(columns)).collect()
}

/// Notes an answer of `null`, which Python's `str` turns into the word `None`.
fn null_answer(columns: &Map<String, Value>) -> Option<Oddity> {
    let turns = columns.get("conversations")?.as_array()?;
    let answer = turns.get(1)?.get("value")?;
    answer.is_null().then(|| Oddity {
        about: About::Value,
        text: "the answer is null, taken for the text `None`".to_owned(),
        hint: "write the answer as text, or leave such rows out".to_owned(),
    })
}

/// Values of a row that JSON cannot hold, in columns that are not read here.
pub fn lost_values(lost: &[Lost]) -> Vec<Oddity> {
    let oddity = |lost: &Lost| Oddity {
        about: About::Value,
        // The column alone: what stands inside may differ from row to row.
        text: match lost.path.first() {
            None => format!("a key {}", read_as(&lost.what)),
            Some(column) => format!("`{column}` {}", read_as(&lost.what)),
        },
        hint: "rewards of your own and what is written of the rows see it so".to_owned(),
    };
    let mut oddities: Vec<Oddity> = lost.iter().map(oddity).collect();
    oddities.sort();
    oddities.dedup();
    oddities
}

/// Oddities of rows, counted.
#[derive(Debug)]
pub struct Notices {
    read: ReadKeys,
    /// Whether images are turned as their orientation says, and none need be told.
    apply_exif: bool,
    found: BTreeMap<Oddity, Places>,
    /// Digests of the paths that were looked at.
    images: HashSet<u64>,
    oriented: Places,
}

/// How often, and where first.
#[derive(Debug, Default)]
struct Places {
    count: usize,
    first: Vec<String>,
}

impl Places {
    fn add(&mut self, place: impl FnOnce() -> String) {
        self.count += 1;
        if self.first.len() < MAX_PLACES {
            self.first.push(place());
        }
    }

    fn told(&self) -> String {
        let dots = if self.count > self.first.len() { ", ..." } else { "" };
        format!("{}{dots}", self.first.join(", "))
    }
}

impl Notices {
    /// Nothing seen yet.
    pub fn new(read: ReadKeys, apply_exif: bool) -> Self {
        Self {
            read,
            apply_exif,
            found: BTreeMap::new(),
            images: HashSet::new(),
            oriented: Places::default(),
        }
    }

    /// Takes the rows from here on as those of another reader.
    pub fn read_as(&mut self, read: ReadKeys) {
        self.read = read;
    }

    /// Looks at a row and at the heads of its images.
    pub fn look(
        &mut self,
        place: &dyn std::fmt::Display,
        columns: &Map<String, Value>,
        texts: &[(&str, &str)],
        images: &[PathBuf],
    ) {
        for oddity in oddities(columns, texts, &self.read) {
            self.found.entry(oddity).or_default().add(|| place.to_string());
        }
        images.iter().for_each(|path| self.look_at_image(path));
    }

    fn look_at_image(&mut self, path: &Path) {
        if self.apply_exif || !self.images.insert(digest(path)) {
            return;
        }
        if let Some(orientation) = Orientation::of_file(path) {
            self.oriented
                .add(|| format!("{} (orientation {})", path.display(), orientation.number()));
        }
    }

    /// Looks at the values of a row that JSON cannot hold.
    pub fn look_at_lost(&mut self, place: &dyn std::fmt::Display, lost: &[Lost]) {
        for oddity in lost_values(lost) {
            let places = self.found.entry(oddity).or_default();
            places.add(|| place.to_string());
        }
    }

    /// Looks at a row to be trained on or evaluated.
    pub fn look_at_example(&mut self, example: &Example, lost: &[Lost]) {
        let texts = [("question", example.problem.as_str()), ("answer", &example.answer)];
        self.look(&example.source, &example.columns, &texts, &example.images);
        self.look_at_lost(&example.source, lost);
    }

    /// Prints the notices.
    pub fn say(&self) {
        self.lines().iter().for_each(|line| base::console::say(line));
    }

    /// One warning for each kind of oddity.
    pub fn lines(&self) -> Vec<String> {
        let rows = |count: usize| if count == 1 { "row" } else { "rows" };
        let lines = self.found.iter().map(|(oddity, places)| {
            let (count, told) = (places.count, places.told());
            let Oddity { text, hint, .. } = oddity;
            format!("warning: {text}: {count} {}: {told}\nhint: {hint}", rows(count))
        });
        let mut lines: Vec<String> = lines.collect();
        if self.oriented.count > 0 {
            lines.push(format!(
                "warning: {} of {} images have an orientation in their metadata, by which viewers and annotation tools turn them; \
                 here they are read as they are stored: {}\n\
                 hint: `--apply_exif true` turns them; boxes must then be those of the turned images",
                self.oriented.count,
                self.images.len(),
                self.oriented.told()
            ));
        }
        lines
    }
}

/// What is odd about rows to be trained on or evaluated, in lines.
pub fn notices_of<'a>(
    examples: impl IntoIterator<Item = &'a Example>,
    apply_exif: bool,
) -> Vec<String> {
    let mut notices = Notices::new(ReadKeys::TRAINING, apply_exif);
    for example in examples {
        notices.look_at_example(example, &[]);
    }
    notices.lines()
}
