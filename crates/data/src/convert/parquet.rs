//! Tables of the Hugging Face hub in Parquet, with images inside: a column of `{bytes, path}`, or of
//! lists of them, beside a question and an answer.

use std::any::Any;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::types::{Type, TypePtr};
use python::repr::str_of;
use serde_json::{Map, Number, Value};

use super::sink::{Draft, Sink};
use super::{Columns, ConvertError, ConvertOptions, stem};
use crate::unread::{Why, named_media};

/// Names that columns go by where none is given.
const IMAGES: [&str; 2] = ["image", "images"];
const QUESTIONS: [&str; 4] = ["problem", "question", "prompt", "query"];
const ANSWERS: [&str; 3] = ["solution", "answer", "label"];
/// Why a row is left out that lacks an image.
const NO_IMAGE: &str = "no_image";
const BROKEN_IMAGE: &str = "broken_image";

/// One row for each row of a file, or of all `.parquet` files of a folder in the order of their names.
pub(super) fn convert(
    path: &Path,
    options: &ConvertOptions,
    sink: &mut Sink<'_>,
) -> Result<(), ConvertError> {
    // Rows without an image, where none had one so far.
    let (mut without, mut has_images) = (Vec::new(), false);
    for file in files(path)? {
        let table = Table::open(&file, &options.columns)?;
        let split = stem(&file);
        for column in &table.unread_images {
            sink.note(format!(
                "warning: {}: column `{column}` holds images too, and is not read",
                file.display()
            ));
        }
        table.rows(|number, row| {
            let place = format!("{}: row {number}", file.display());
            match table.draft(row, sink)? {
                Ok(draft) => {
                    let draft = Draft { place, split: split.clone(), ..draft };
                    if table.image.is_none() || !draft.images.is_empty() {
                        has_images |= !draft.images.is_empty();
                        return sink.row(draft);
                    }
                    match has_images {
                        true => skip_without_image(&draft, sink),
                        false => without.push(draft),
                    }
                    Ok(())
                }
                Err((reason, text)) => {
                    has_images |= reason == BROKEN_IMAGE;
                    sink.skip(reason, &place, &text);
                    Ok(())
                }
            }
        })?;
    }
    for draft in without {
        match has_images {
            true => skip_without_image(&draft, sink),
            // A table of text: nothing is missing.
            false => sink.row(draft)?,
        }
    }
    Ok(())
}

fn skip_without_image(draft: &Draft, sink: &mut Sink<'_>) {
    let text = "no image in a column that has images in other rows";
    sink.skip(NO_IMAGE, &draft.place, text);
}

fn files(path: &Path) -> Result<Vec<PathBuf>, ConvertError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let io = |source| ConvertError::Io { path: path.to_owned(), source };
    let entries = std::fs::read_dir(path).map_err(io)?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    let mut files: Vec<PathBuf> = paths.collect::<Result<_, _>>().map_err(io)?;
    files.retain(|file| file.extension().is_some_and(|end| end == "parquet"));
    files.sort();
    match files.is_empty() {
        true => Err(ConvertError::Form {
            path: path.to_owned(),
            reason: "no `.parquet` file in the folder".to_owned(),
        }),
        false => Ok(files),
    }
}

type Refusal = (&'static str, String);

/// An open file, with the columns that are read.
struct Table {
    path: PathBuf,
    reader: SerializedFileReader<File>,
    projection: Type,
    image: Option<String>,
    question: String,
    answer: String,
    kept: Vec<String>,
    /// Columns of images beside that one.
    unread_images: Vec<String>,
}

impl Table {
    fn open(path: &Path, columns: &Columns) -> Result<Self, ConvertError> {
        let file = File::open(path)
            .map_err(|source| ConvertError::Io { path: path.to_owned(), source })?;
        let reader = guarded(path, || SerializedFileReader::new(file))?;
        let schema = reader.metadata().file_metadata().schema_descr().root_schema();
        let fields = schema.get_fields();
        let names: Vec<&str> = fields.iter().map(|field| field.name()).collect();
        let missing = |what: &str, flag: &str| ConvertError::Form {
            path: path.to_owned(),
            reason: format!(
                "no column for the {what} among {}\nhint: name it, `--{flag}`",
                names.join(", ")
            ),
        };
        let pick = |given: &Option<String>, known: &[&str]| -> Option<String> {
            let found = match given {
                Some(given) => names.iter().find(|name| **name == given.as_str()),
                None => known.iter().find(|name| names.contains(name)),
            };
            found.map(|name| (*name).to_owned())
        };
        let image = pick(&columns.image, &IMAGES);
        if image.is_none() && columns.image.is_some() {
            return Err(missing("images", "image_column"));
        }
        let question = pick(&columns.question, &QUESTIONS);
        let answer = pick(&columns.answer, &ANSWERS);
        let question = question.ok_or_else(|| missing("question", "question_column"))?;
        let answer = answer.ok_or_else(|| missing("answer", "answer_column"))?;
        if let Some(name) = columns.kept.iter().find(|name| !names.contains(&name.as_str())) {
            return Err(missing(&format!("kept column `{name}`"), "keep_columns"));
        }
        let is_unread = |field: &&TypePtr| {
            let name = field.name();
            let is_read = image.as_deref() == Some(name) || question == name || answer == name;
            !is_read && (named_media(name) == Some(Why::Image) || holds_bytes_of_files(field))
        };
        let unread_images = fields.iter().filter(is_unread);
        let unread_images: Vec<String> =
            unread_images.map(|field| field.name().to_owned()).collect();
        if image.is_none() && !unread_images.is_empty() {
            return Err(missing("images", "image_column"));
        }
        let is_wanted = |field: &&TypePtr| {
            let name = field.name();
            image.as_deref() == Some(name)
                || [&question, &answer].into_iter().chain(&columns.kept).any(|one| one == name)
        };
        let wanted: Vec<TypePtr> = fields.iter().filter(is_wanted).map(Arc::clone).collect();
        let projection =
            guarded(path, || Type::group_type_builder(schema.name()).with_fields(wanted).build())?;
        Ok(Self {
            path: path.to_owned(),
            projection,
            image,
            question,
            answer,
            kept: columns.kept.clone(),
            unread_images,
            reader,
        })
    }

    /// Calls `visit` with the number of each row, from 1, and the row.
    fn rows(
        &self,
        mut visit: impl FnMut(u64, &Row) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        let projection = Some(self.projection.clone());
        let mut rows = guarded(&self.path, || RowIter::from_file(projection, &self.reader))?;
        for number in 1.. {
            match guarded(&self.path, || rows.next().transpose())? {
                Some(row) => visit(number, &row)?,
                None => break,
            }
        }
        Ok(())
    }

    fn draft(
        &self,
        row: &Row,
        sink: &mut Sink<'_>,
    ) -> Result<Result<Draft, Refusal>, ConvertError> {
        let field = |name: &str| {
            let mut columns = row.get_column_iter();
            columns.find(|(column, _)| column.as_str() == name).map(|(_, field)| field)
        };
        let images = match self.image.as_deref().and_then(field) {
            None | Some(Field::Null) => Vec::new(),
            Some(field) => match images(field, sink)? {
                Ok(images) => images,
                Err(refusal) => return Ok(Err(refusal)),
            },
        };
        let question = match field(&self.question) {
            Some(Field::Str(text)) => text.clone(),
            other => return Ok(Err(wrong(&self.question, "a text", other))),
        };
        let answer = match field(&self.answer).map(value) {
            Some(answer @ (Value::String(_) | Value::Number(_))) => answer,
            Some(list @ Value::Array(_)) => Value::String(str_of(&list)),
            _ => {
                let expected = "a text, a number or a list";
                return Ok(Err(wrong(&self.answer, expected, field(&self.answer))));
            }
        };
        let kept = self.kept.iter();
        let kept = kept.filter_map(|name| Some((name.clone(), value(field(name)?))));
        Ok(Ok(Draft { images, question, answer, columns: kept.collect(), ..Draft::default() }))
    }
}

fn wrong(column: &str, expected: &str, got: Option<&Field>) -> Refusal {
    let got = match got {
        None => "nothing",
        Some(Field::Null) => "null",
        Some(Field::Str(_)) => "a text",
        Some(Field::Bytes(_)) => "bytes",
        Some(Field::Group(_)) => "a struct",
        Some(Field::ListInternal(_)) => "a list",
        Some(Field::MapInternal(_)) => "a map",
        Some(_) => "another value",
    };
    ("bad_row", format!("`{column}`: expected {expected}, got {got}"))
}

/// Names of the images of a field, their bytes written to the image folder.
fn images(
    field: &Field,
    sink: &mut Sink<'_>,
) -> Result<Result<Vec<String>, Refusal>, ConvertError> {
    let fields = match field {
        Field::ListInternal(list) => list.elements().iter().collect(),
        one => vec![one],
    };
    let is_absent = |field: &Field| match field {
        Field::Null => true,
        Field::Group(_) | Field::Str(_) => {
            bytes_of(field).is_none() && path_of(field).is_none_or(str::is_empty)
        }
        _ => false,
    };
    let count = fields.len();
    if let Some(place) = fields.iter().position(|field| is_absent(field)) {
        return Ok(match count {
            1 => Ok(Vec::new()),
            _ => Err((NO_IMAGE, format!("image {} of {count} is null", place + 1))),
        });
    }
    let mut names = Vec::with_capacity(count);
    for field in fields {
        let name = match (bytes_of(field), path_of(field)) {
            (Some(bytes), _) => match sink.store()?.add(bytes)? {
                Ok(name) => name,
                Err(cause) => return Ok(Err((BROKEN_IMAGE, cause.to_string()))),
            },
            (None, Some(path)) => path.to_owned(),
            (None, None) => {
                return Ok(Err(("bad_row", "an image without `bytes` and `path`".to_owned())));
            }
        };
        names.push(name);
    }
    Ok(Ok(names))
}

/// Whether a column, or the items of its lists, have `bytes` and `path`.
fn holds_bytes_of_files(field: &Type) -> bool {
    if field.is_primitive() {
        return false;
    }
    let names: Vec<&str> = field.get_fields().iter().map(|field| field.name()).collect();
    (names.contains(&"bytes") && names.contains(&"path"))
        || field.get_fields().iter().any(|field| holds_bytes_of_files(field))
}

fn bytes_of(field: &Field) -> Option<&[u8]> {
    match field {
        Field::Bytes(bytes) => Some(bytes.data()),
        Field::Group(row) => row.get_column_iter().find_map(|(name, field)| match field {
            Field::Bytes(bytes) if name == "bytes" => Some(bytes.data()),
            _ => None,
        }),
        _ => None,
    }
}

fn path_of(field: &Field) -> Option<&str> {
    match field {
        Field::Str(path) => Some(path),
        Field::Group(row) => row.get_column_iter().find_map(|(name, field)| match field {
            Field::Str(path) if name == "path" => Some(path.as_str()),
            _ => None,
        }),
        _ => None,
    }
}

/// The value as JSON; bytes, dates and what JSON does not have become null.
fn value(field: &Field) -> Value {
    let float = |x: f64| Number::from_f64(x).map_or(Value::Null, Value::Number);
    match field {
        Field::Bool(value) => Value::Bool(*value),
        Field::Byte(x) => Value::from(*x),
        Field::Short(x) => Value::from(*x),
        Field::Int(x) => Value::from(*x),
        Field::Long(x) => Value::from(*x),
        Field::UByte(x) => Value::from(*x),
        Field::UShort(x) => Value::from(*x),
        Field::UInt(x) => Value::from(*x),
        Field::ULong(x) => Value::from(*x),
        Field::Float(x) => float(f64::from(*x)),
        Field::Double(x) => float(*x),
        Field::Str(text) => Value::String(text.clone()),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        Field::Group(row) => {
            let columns = row.get_column_iter();
            let columns = columns.map(|(name, field)| (name.clone(), value(field)));
            Value::Object(columns.collect::<Map<_, _>>())
        }
        _ => Value::Null,
    }
}

/// What `read` gives; the reader panics on some broken files.
fn guarded<T>(
    path: &Path,
    read: impl FnOnce() -> Result<T, parquet::errors::ParquetError>,
) -> Result<T, ConvertError> {
    let failed = |reason: String| ConvertError::Parquet { path: path.to_owned(), reason };
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(read) => read.map_err(|error| failed(error.to_string())),
        Err(panic) => Err(failed(format!("broken Parquet: {}", panic_text(panic.as_ref())))),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "the reader gave up".to_owned())
}
