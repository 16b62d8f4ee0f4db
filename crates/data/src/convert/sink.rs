//! Turns drafts into VLM-R1's rows and checks them as training would.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base::SourceLine;
use base::run_folder::StopFlag;
use python::json::Lost;
use serde_json::{Map, Value, json};

use super::image_store::ImageStore;
use super::{ConvertError, ConvertOptions, ConvertReport, LeftOut, WriteRow};
use crate::check::Kind;
use crate::error::RowCause;
use crate::image::other_size;
use crate::image_folder::{ImageFolder, climbs_out};
use crate::notices::Notices;
use crate::row::{IMAGE_MARK, RowChecks, parse_row};
use crate::unread::ReadKeys;

/// Examples that are reported for each reason.
const MAX_EXAMPLES: usize = 3;

/// A row before it has its form.
#[derive(Debug, Default)]
pub(super) struct Draft {
    /// Where it comes from, for messages.
    pub(super) place: String,
    /// Name of its split; empty where the source has none.
    pub(super) split: String,
    /// Names of its images.
    pub(super) images: Vec<String>,
    /// The question, with or without `<image>` marks.
    pub(super) question: String,
    /// Text or number.
    pub(super) answer: Value,
    /// Further columns.
    pub(super) columns: Map<String, Value>,
    /// Width and height of the image as the source says them, px.
    pub(super) stated_size: Option<[f64; 2]>,
}

/// Takes drafts and counts what became of them.
pub(super) struct Sink<'a> {
    options: &'a ConvertOptions,
    stop: &'a StopFlag,
    write: WriteRow<'a>,
    folder: ImageFolder,
    checks: RowChecks,
    store: Option<ImageStore>,
    kept: u64,
    skipped: Reasons,
    boxes: Reasons,
    notes: Vec<String>,
    odd: Notices,
    cut: Reasons,
    /// Images of another size than the source says.
    sizes: Reasons,
}

impl<'a> Sink<'a> {
    pub(super) fn new(
        options: &'a ConvertOptions,
        stop: &'a StopFlag,
        write: WriteRow<'a>,
    ) -> Self {
        let folder = options.image_folder.as_deref();
        Self {
            options,
            stop,
            write,
            folder: ImageFolder::new(folder),
            checks: RowChecks { follow_links: options.follow_links, ..RowChecks::default() },
            store: None,
            kept: 0,
            skipped: Reasons::default(),
            boxes: Reasons::default(),
            notes: Vec::new(),
            odd: Notices::new(ReadKeys::TRAINING, false),
            cut: Reasons::default(),
            sizes: Reasons::default(),
        }
    }

    /// Writes the row, or counts why training would not take it.
    pub(super) fn row(&mut self, draft: Draft) -> Result<(), ConvertError> {
        if self.stop.is_raised() {
            return Err(ConvertError::Stopped);
        }
        let wanted = self.options.split.as_deref();
        if wanted.is_some_and(|split| split != draft.split) {
            self.skip("other_split", &draft.place, &draft.split);
            return Ok(());
        }
        if draft.answer.is_null() {
            self.skip(Kind::BadRow.name(), &draft.place, "no answer");
            return Ok(());
        }
        let names = draft.images.iter().map(|name| self.image_name(name));
        let names: Vec<String> = names.collect();
        if let Some(name) = names.iter().find(|name| self.leaves_folder(name)) {
            self.skip(Kind::ImageOutside.name(), &draft.place, name);
            return Ok(());
        }
        let row = form(self.kept, &draft, names);
        match self.check(&row) {
            Ok(images) => {
                self.note_oddities(&draft, &row, &images);
                self.look_at_size(&draft, &images);
            }
            Err(cause) => {
                self.skip(Kind::of(&cause).name(), &draft.place, &cause.to_string());
                return Ok(());
            }
        }
        (self.write)(&draft.split, &row).map_err(ConvertError::Write)?;
        self.kept += 1;
        Ok(())
    }

    /// Tells what is odd about a row that is kept.
    fn note_oddities(&mut self, draft: &Draft, row: &Value, images: &[PathBuf]) {
        let Some(columns) = row.as_object() else {
            return;
        };
        let question = draft.question.replace(IMAGE_MARK, "");
        let answer = draft.answer.as_str().unwrap_or_default();
        let texts = [("question", question.as_str()), ("answer", answer)];
        self.odd.look(&draft.place, columns, &texts, images);
    }

    /// Tells what of an item JSON does not have.
    pub(super) fn note_lost(&mut self, place: &str, lost: &[Lost]) {
        self.odd.look_at_lost(&place, lost);
    }

    /// Tells something of the source as a whole.
    pub(super) fn note(&mut self, text: String) {
        self.notes.push(text);
    }

    /// Counts a row that has no draft.
    pub(super) fn skip(&mut self, reason: &str, place: &str, text: &str) {
        self.skipped.add(reason, place, text);
    }

    /// Counts a box that its row does without.
    pub(super) fn leave_box(&mut self, reason: &str, place: &str, text: &str) {
        self.boxes.add(reason, place, text);
    }

    /// Counts a box that is cut at the edge of its image.
    pub(super) fn cut_box(&mut self, place: &str, text: &str) {
        self.cut.add("cut", place, text);
    }

    /// Counts an image of another size than the source says.
    fn look_at_size(&mut self, draft: &Draft, images: &[PathBuf]) {
        let ([path], Some(stated)) = (images, draft.stated_size) else {
            return;
        };
        if let Some(text) = other_size(path, stated) {
            self.sizes.add("size", &draft.place, &text);
        }
    }

    /// Where images of the source go.
    pub(super) fn store(&mut self) -> Result<&mut ImageStore, ConvertError> {
        let folder = self.options.image_folder.as_deref();
        let folder = folder.ok_or(ConvertError::Missing {
            flag: "image_folder",
            reason: "the images in the file go there",
        })?;
        if self.store.is_none() {
            self.store = Some(ImageStore::open(folder)?);
            // It may not have been there before.
            self.folder = ImageFolder::new(Some(folder));
        }
        self.store.as_mut().ok_or(ConvertError::Stopped)
    }

    pub(super) fn report(self) -> ConvertReport {
        let cut =
            told(&self.cut, "boxes that reach over the edge of their image are cut there", "");
        let sizes = told(
            &self.sizes,
            "images of another size than the source says",
            "\nhint: boxes fit images of the stated size: give the images that were annotated",
        );
        let own = self.notes.into_iter().chain(cut).chain(sizes);
        let notes = own.chain(self.odd.lines()).collect();
        ConvertReport {
            kept: self.kept,
            skipped: self.skipped.counted(),
            boxes_left_out: self.boxes.counted(),
            images_written: self.store.map_or(0, |store| store.num_written()),
            notes,
        }
    }

    /// The name with its prefix, relative to the image folder where it lies in it.
    fn image_name(&self, name: &str) -> String {
        let name = format!("{}{name}", self.options.image_prefix);
        let folder = self.options.image_folder.as_deref();
        let inside = folder.and_then(|folder| Path::new(&name).strip_prefix(folder).ok());
        match inside.and_then(Path::to_str) {
            Some(inside) => inside.to_owned(),
            None => name,
        }
    }

    /// Whether a name leads out of any folder, where none is given to hold it against.
    fn leaves_folder(&self, name: &str) -> bool {
        let path = Path::new(name);
        climbs_out(path) || (path.is_absolute() && self.options.image_folder.is_none())
    }

    /// The images of a row that training would take; none where they are not looked at.
    fn check(&self, row: &Value) -> Result<Vec<PathBuf>, RowCause> {
        let source = SourceLine::new("", 0);
        let line = row.to_string();
        match parse_row(line.as_bytes(), source, &self.folder, None, &self.checks) {
            // Images are looked at last: without a folder, all else is in order.
            Err(RowCause::NoImageFolder) if self.options.image_folder.is_none() => Ok(Vec::new()),
            parsed => parsed.map(|sample| sample.images),
        }
    }
}

/// The row in VLM-R1's form.
fn form(id: u64, draft: &Draft, names: Vec<String>) -> Value {
    let marks = match draft.question.contains(IMAGE_MARK) {
        true => String::new(),
        false => IMAGE_MARK.repeat(names.len()),
    };
    let mut row = Map::new();
    row.insert("id".to_owned(), json!(id));
    match names.as_slice() {
        [] => {}
        [name] => drop(row.insert("image".to_owned(), json!(name))),
        names => drop(row.insert("image".to_owned(), json!(names))),
    }
    let conversations = json!([
        {"from": "human", "value": format!("{marks}{}", draft.question)},
        {"from": "gpt", "value": draft.answer},
    ]);
    row.insert("conversations".to_owned(), conversations);
    for (name, value) in &draft.columns {
        row.entry(name.clone()).or_insert_with(|| value.clone());
    }
    Value::Object(row)
}

/// How often something was counted, in a line.
fn told(reasons: &Reasons, what: &str, hint: &str) -> Option<String> {
    let (count, examples) = reasons.0.values().next()?;
    Some(format!("warning: {what}: {count}: {}{hint}", examples.join("; ")))
}

/// Reasons with how often and where first.
#[derive(Debug, Default)]
struct Reasons(BTreeMap<String, (u64, Vec<String>)>);

impl Reasons {
    fn add(&mut self, reason: &str, place: &str, text: &str) {
        let (count, examples) = self.0.entry(reason.to_owned()).or_default();
        *count += 1;
        if examples.len() < MAX_EXAMPLES {
            examples.push(format!("{place}: {text}"));
        }
    }

    fn counted(self) -> Vec<LeftOut> {
        let each = self.0.into_iter();
        each.map(|(reason, (count, examples))| LeftOut { reason, count, examples }).collect()
    }
}
