//! What can be wrong with a data set, a model folder or a prompt.

use std::fmt;
use std::path::PathBuf;

use base::SourceLine;
use python::json::LostKind;

use crate::image::ImageError;
use crate::image_folder::Link;
use crate::unread::{ReadKeys, UnreadKey};

/// Bad rows listed after the first one when loading stops.
pub(crate) const MAX_LISTED_ROWS: usize = 10;

/// Why data could not be read or a prompt not be built.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// `:`-separated lists that do not pair up.
    #[error(
        "`{first}` lists {num_first} entries but `{second}` lists {num_second}\n\
         hint: both are `:`-separated, one entry per data file"
    )]
    ListLengths {
        /// Flag whose list counts.
        first: &'static str,
        /// Its number of entries.
        num_first: usize,
        /// Flag whose list should be as long.
        second: &'static str,
        /// Its number of entries.
        num_second: usize,
    },
    /// An empty entry in a `:`-separated list.
    #[error("`{flag}`: entry {position} of the `:`-separated list is empty")]
    EmptyEntry {
        /// The flag.
        flag: &'static str,
        /// Place in the list, from 1.
        position: usize,
    },
    /// A file that cannot be opened or read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A data file without a single row.
    #[error("{}: no rows: the file is empty", path.display())]
    NoRows {
        /// The file.
        path: PathBuf,
    },
    /// A file that is no file of rows.
    #[error("{}: {what}\nhint: {hint}", path.display())]
    NotRows {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        what: String,
        /// The way out.
        hint: &'static str,
    },
    /// A row that is another one than when the run began.
    #[error(
        "{row}: the file was changed since the run began\n\
         hint: start again, or write new rows into a file of their own"
    )]
    Changed {
        /// The row.
        row: SourceLine,
    },
    /// Every row of a file was skipped.
    #[error("{}: no usable row: all {num_skipped} are bad, the first: {first}", path.display())]
    AllRowsBad {
        /// The file.
        path: PathBuf,
        /// Rows skipped.
        num_skipped: usize,
        /// What was wrong with the first.
        first: Box<RowError>,
    },
    /// A row that was good when the run began.
    #[error(transparent)]
    Row(Box<RowError>),
    /// Bad rows, where bad rows stop the run.
    #[error("{0}")]
    BadRows(Box<BadRows>),
    /// A validation split that cannot be made.
    #[error("cannot hold out {ratio} of {num_examples} rows: {reason}")]
    Split {
        /// The share asked for.
        ratio: f64,
        /// Rows there are.
        num_examples: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A prompt template that is neither a name, nor a text, nor a file.
    #[error(
        "prompt template `{given}`: expected a task ({known}), a text with `{{Question}}` in it, or a file with such a text"
    )]
    PromptTemplate {
        /// What was given.
        given: String,
        /// Names that would do.
        known: String,
    },
    /// A file of the model folder that does not say what is needed.
    #[error("{}: {reason}", path.display())]
    ModelFile {
        /// The file.
        path: PathBuf,
        /// What is wrong or missing, with a hint.
        reason: String,
    },
    /// No chat template in the model folder.
    #[error(
        "{}: no chat template: looked for `chat_template.jinja`, `chat_template.json` and `chat_template` in `processor_config.json` and `tokenizer_config.json`",
        dir.display()
    )]
    NoChatTemplate {
        /// The model folder.
        dir: PathBuf,
    },
    /// A chat template that does not compile or refuses the messages.
    #[error("{}:{line}: chat template: {reason}", path.display())]
    ChatTemplate {
        /// The file the template came from.
        path: PathBuf,
        /// Line of the template, from 1 (0 when the engine does not know).
        line: usize,
        /// The template engine's reason.
        reason: String,
    },
    /// The tokenizer library failed on a text or on ids.
    #[error("tokenizer: {reason}")]
    Tokenizer {
        /// The library's reason.
        reason: String,
    },
    /// A prompt whose rendered text has another number of image placeholders than images.
    #[error(
        "the rendered prompt holds {placeholders} image placeholders but {images} images were given\n\
         hint: a literal image token in the question, or a chat template without images"
    )]
    Placeholders {
        /// Placeholders found.
        placeholders: usize,
        /// Images given.
        images: usize,
    },
    /// A prompt over the limit. It is never cut.
    #[error(
        "the prompt has {tokens} tokens, more than `max_prompt_length` {max}\n\
         hint: raise `max_prompt_length`, or lower `max_pixels` (images take {image_tokens} of them)"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// How many of them stand for images.
        image_tokens: usize,
        /// The limit.
        max: usize,
    },
    /// A prompt that reaches beyond what the model has positions for.
    #[error(
        "the prompt has {tokens} tokens, {image_tokens} of them of images, more than `max_position_embeddings` {max} of config.json\n\
         hint: a shorter text, fewer images, or lower `max_pixels`"
    )]
    BeyondPositions {
        /// Tokens of the prompt, or as many as were counted.
        tokens: usize,
        /// How many of them stand for images.
        image_tokens: usize,
        /// The model's positions.
        max: usize,
    },
    /// Images that alone are more than a prompt may be: those after them were not read.
    #[error(
        "{read} of {images} images take {tokens} tokens, more than the {max} that a prompt may have ({limit})\n\
         hint: fewer images, or lower `max_pixels`"
    )]
    TooManyImages {
        /// Images that were read.
        read: usize,
        /// Images of the row.
        images: usize,
        /// Tokens of those that were read.
        tokens: usize,
        /// The limit.
        max: usize,
        /// Where it stands.
        limit: &'static str,
    },
    /// A text that cannot fit, whatever its tokens are.
    #[error("a prompt of {bytes} bytes is more than the {max} tokens that it may have ({limit})")]
    TooMuchText {
        /// Bytes of the prompt's text.
        bytes: usize,
        /// The limit.
        max: usize,
        /// Where it stands.
        limit: &'static str,
    },
    /// The image processor of a model folder.
    #[error(transparent)]
    ImageProcessor(#[from] ImageError),
    /// A worker thread panicked or could not be started.
    #[error("data worker: {reason}")]
    Worker {
        /// The panic's message or the system's reason.
        reason: String,
    },
}

/// A bad row: where, and what is wrong.
#[derive(Debug, thiserror::Error)]
#[error("{source_line}: {cause}")]
pub struct RowError {
    /// The row.
    pub source_line: SourceLine,
    /// What is wrong with it.
    pub cause: RowCause,
}

/// What is wrong with a row.
#[derive(Debug, thiserror::Error)]
pub enum RowCause {
    /// Bytes that are not UTF-8.
    #[error("not UTF-8 at byte {byte} of the line")]
    Utf8 {
        /// Offset in the line, from 0.
        byte: usize,
    },
    /// Text that is not JSON.
    #[error("broken JSON at column {column}: {reason}")]
    Json {
        /// Column, from 1.
        column: usize,
        /// The parser's reason.
        reason: String,
    },
    /// A list whose end is missing.
    #[error(
        "the list has no end: the file breaks off, rows are missing\nhint: fetch or write it again"
    )]
    TornList,
    /// A row whose rows stand inside it.
    #[error("{}", wrapped(key, *is_coco))]
    Wrapped {
        /// Where they stand.
        key: String,
        /// Whether it is COCO's form.
        is_coco: bool,
    },
    /// Something that JSON does not have, where it is read.
    #[error("`{key}` holds {}", told_of(what))]
    Lost {
        /// The key, as a path.
        key: String,
        /// What.
        what: LostKind,
    },
    /// JSON that is not an object.
    #[error("expected a JSON object, got {got}")]
    NotAnObject {
        /// What the line holds.
        got: String,
    },
    /// A key that must be there.
    #[error("missing key `{key}`")]
    MissingKey {
        /// The key, as a path.
        key: &'static str,
    },
    /// A required key that is there under another name.
    #[error(
        "missing key `{key}`; `{found}` is not read\n\
         hint: rename it, or let `vlm-r1 data convert` make rows of other forms"
    )]
    OtherKey {
        /// The key, as a path.
        key: &'static str,
        /// The key that was probably meant for it.
        found: String,
    },
    /// Images, films or sounds that are not read, in a row that shows nothing else.
    #[error("{}\nhint: {}", found.text_of_blind_row(read.image), found.hint(read))]
    HiddenMedia {
        /// Where they stand.
        found: UnreadKey,
        /// What is read instead.
        read: ReadKeys,
    },
    /// A value of the wrong type.
    #[error("`{key}`: expected {expected}, got {got}")]
    WrongType {
        /// The key, as a path.
        key: &'static str,
        /// What may stand there.
        expected: &'static str,
        /// What was found.
        got: String,
    },
    /// A conversation that is not one question and one answer.
    #[error("`conversations`: expected one question and one answer, got {got} turns")]
    Turns {
        /// Number of turns.
        got: usize,
    },
    /// Turns in another order.
    #[error("`conversations`: turn {turn} is from `{got}`, expected `{expected}`")]
    Speaker {
        /// Turn, from 1.
        turn: usize,
        /// Who should speak.
        expected: &'static str,
        /// Who does.
        got: String,
    },
    /// A question or an answer without text.
    #[error("the {what} is empty")]
    Empty {
        /// `question` or `answer`.
        what: &'static str,
    },
    /// `<image>` marks that do not fit the images.
    #[error("{marks} <image> {} but {images} {}", plural(*marks, "mark"), plural(*images, "image"))]
    ImageMarks {
        /// Marks in the question.
        marks: usize,
        /// Images of the row.
        images: usize,
    },
    /// A control token of the model written out in the text.
    #[error("the {what} holds the literal token `{token}`")]
    ReservedToken {
        /// `question` or `answer`.
        what: &'static str,
        /// The token.
        token: String,
    },
    /// An image folder that is not there.
    #[error("the image folder `{}` is not there", folder.display())]
    MissingImageFolder {
        /// The folder as the user wrote it.
        folder: PathBuf,
    },
    /// An image where no image folder is given.
    #[error("the row names an image but no image folder is given\nhint: `--image_folders`")]
    NoImageFolder,
    /// An image that is not there.
    #[error("image `{image}` is not in `{}`{}", folder.display(), linked(link.as_ref()))]
    ImageMissing {
        /// As the row names it.
        image: String,
        /// The image folder.
        folder: PathBuf,
        /// A link in its path.
        link: Option<Link>,
    },
    /// An image path that leads out of its folder.
    #[error(
        "image `{image}` leaves its image folder `{}`{}\nhint: {}name the folder that really holds it as image folder",
        folder.display(), linked(link.as_ref()), follow(link.as_ref())
    )]
    ImageOutside {
        /// As the row names it.
        image: String,
        /// The image folder.
        folder: PathBuf,
        /// The link that leads there, where links could be followed.
        link: Option<Link>,
    },
    /// An image that cannot be opened.
    #[error("image `{image}`: {reason}")]
    ImageUnreadable {
        /// As the row names it.
        image: String,
        /// Why.
        reason: String,
    },
    /// An image that cannot be decoded or prepared.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// An answer without a box, where boxes are trained.
    #[error("the answer holds no box `[x1, y1, x2, y2]` with x1 < x2 and y1 < y2: `{answer}`")]
    NotABox {
        /// The start of the answer.
        answer: String,
    },
    /// A prompt that could not be built.
    #[error(transparent)]
    Prompt(Box<DataError>),
}

/// What a link has to do with it.
fn linked(link: Option<&Link>) -> String {
    link.map_or(String::new(), |link| {
        let (path, target) = (link.path.display(), link.target.display());
        format!(": `{path}` is a link to `{target}`")
    })
}

fn follow(link: Option<&Link>) -> &'static str {
    match link {
        Some(_) => "`--follow_links true` reads what links in the image folder lead to; or ",
        None => "",
    }
}

/// The first bad row, and those that follow.
#[derive(Debug)]
pub struct BadRows {
    /// The first.
    pub first: RowError,
    /// At most ten more.
    pub further: Vec<RowError>,
    /// How many more there are in all.
    pub num_further: usize,
}

impl fmt::Display for BadRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        if self.num_further > 0 {
            write!(f, "\n{} more bad {}:", self.num_further, plural(self.num_further, "row"))?;
            for row in &self.further {
                write!(f, "\n  {}", row.to_string().replace('\n', "\n  "))?;
            }
            if self.num_further > self.further.len() {
                write!(f, "\n  ... and {} more", self.num_further - self.further.len())?;
            }
        }
        write!(f, "\nhint: `--on_bad_row skip` leaves bad rows out, counted and listed")
    }
}

fn wrapped(key: &str, is_coco: bool) -> String {
    if is_coco {
        return "this is a file of COCO's form\n\
                hint: `vlm-r1 data convert --from coco` makes rows of it; `eval --task ovd` reads it"
            .to_owned();
    }
    let filter = match key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        true => format!(".{key}[]"),
        false => format!(".[\"{key}\"][]"),
    };
    format!(
        "the rows stand in `{key}` of one object\nhint: `jq -c '{filter}' FILE > rows.jsonl` writes them one a line"
    )
}

fn told_of(what: &LostKind) -> String {
    match what {
        LostKind::NotFinite(number) => {
            format!("{}, expected a finite number or a text", shown(number))
        }
        LostKind::Surrogate => {
            "half of a surrogate pair (`\\ud83d` alone), which is no character\n\
                                hint: a text was cut within a character: write it again"
                .to_owned()
        }
        LostKind::BigInteger => {
            "a whole number that 64 bits cannot hold\nhint: write it as a string".to_owned()
        }
    }
}

fn shown(number: &str) -> String {
    match number.contains(' ') {
        true => number.to_owned(),
        false => format!("`{number}`"),
    }
}

/// What happens to a value that is not read here.
pub(crate) fn read_as(what: &LostKind) -> String {
    match what {
        LostKind::NotFinite(number) => format!("holds {}, read as null", shown(number)),
        LostKind::Surrogate => "holds half of a surrogate pair, read as U+FFFD".to_owned(),
        LostKind::BigInteger => {
            "holds whole numbers of more than 64 bits, read as the nearest floats".to_owned()
        }
    }
}

pub(crate) fn plural(count: usize, noun: &str) -> String {
    if count == 1 { noun.to_owned() } else { format!("{noun}s") }
}

pub(crate) fn io_error(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> DataError + '_ {
    move |source| DataError::Io { path: path.to_owned(), source }
}
