//! The form of a file of rows, detected from its first bytes.

/// Bytes that are looked at.
pub(crate) const HEAD_BYTES: usize = 1 << 16;
pub(crate) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// Characters of a line that are shown.
const SHOWN: usize = 40;

/// How rows stand in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileForm {
    /// One a line.
    Lines,
    /// As the items of one list.
    List,
    /// One after another, each over any number of lines.
    Values,
}

/// A file without rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NoRows {
    /// What the file is.
    pub(crate) what: String,
    /// The hint of the error.
    pub(crate) hint: &'static str,
}

/// Magic bytes of files that are no text, what these are, and a hint.
const MAGIC: [(&[u8], &str, &str); 13] = [
    (b"\x1f\x8b", "gzip", UNPACK_GZIP),
    (b"\x28\xb5\x2f\xfd", "Zstandard", "unpack it first: `unzstd FILE`"),
    (b"BZh", "bzip2", "unpack it first: `bunzip2 -k FILE`"),
    (b"\xfd7zXZ\0", "xz", "unpack it first: `unxz -k FILE`"),
    (b"PK\x03\x04", "a ZIP archive", "unpack it first: `unzip FILE`"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it first"),
    (b"PAR1", "Parquet", "`vlm-r1 data convert --from parquet` makes rows of it"),
    (b"ARROW1", "Arrow", ARROW),
    (b"\xff\xff\xff\xff", "Arrow", ARROW),
    (b"\x89PNG", "an image", IMAGE),
    (b"\xff\xd8\xff", "an image", IMAGE),
    (b"SQLite format", "an SQLite data base", "write its rows one JSON object a line"),
    (
        b"version https://git-lfs",
        "a Git LFS pointer, not the file itself",
        "`git lfs pull` fetches it",
    ),
];
const UNPACK_GZIP: &str = "unpack it first: `gunzip -k FILE`";
const ARROW: &str =
    "write it as Parquet, and `vlm-r1 data convert --from parquet` makes rows of it";
const IMAGE: &str = "`--data_file_paths` names files of rows; images lie in `--image_folders`";
const UTF_16: &str = "`iconv -f UTF-16 -t UTF-8 FILE > rows.jsonl` rewrites it";
const ROWS: &str = "rows are JSON objects, one a line or in one list; `vlm-r1 data convert` makes them of other forms";

impl FileForm {
    /// The form of a file that begins with `head`, or is that.
    pub(crate) fn of(head: &[u8], is_whole: bool) -> Result<Self, NoRows> {
        if let Some(no_rows) = no_text(head) {
            return Err(no_rows);
        }
        let text = head.strip_prefix(BYTE_ORDER_MARK).unwrap_or(head);
        let text = text.trim_ascii_start();
        match text.first() {
            None => Ok(Self::Lines),
            Some(b'[') => Ok(match Value::first_of(text) {
                Value::ALine { next: b'{' | b'[' } => Self::Lines,
                _ => Self::List,
            }),
            Some(b'{') => Ok(match Value::first_of(text) {
                Value::ALine { .. } | Value::Torn { next: 0 | b'{' } => Self::Lines,
                Value::PartOfALine { next } if next != b'{' => Self::Lines,
                _ => Self::Values,
            }),
            Some(_) if lines(text).any(|line| line.starts_with(b"{")) => Ok(Self::Lines),
            Some(_) => Err(no_json(text, is_whole)),
        }
    }
}

/// The value that a text begins with, against its lines. `next` is the first byte behind it, or behind its first line, that is
/// no space; 0 at the end.
enum Value {
    /// It is a line.
    ALine { next: u8 },
    /// It ends within its line.
    PartOfALine { next: u8 },
    /// It goes over several lines.
    ManyLines,
    /// It has no end here.
    Torn { next: u8 },
}

impl Value {
    fn first_of(text: &[u8]) -> Self {
        let mut brackets = Brackets::default();
        let end = text.iter().position(|byte| brackets.step(*byte));
        let first_line = text.iter().position(|byte| *byte == b'\n');
        let first_line = first_line.unwrap_or(text.len());
        let next = |rest: &[u8]| rest.trim_ascii_start().first().copied().unwrap_or(0);
        let after_line = next(&text[first_line..]);
        match end {
            Some(end) if end < first_line => match next(&text[end + 1..first_line]) {
                0 => Self::ALine { next: after_line },
                next => Self::PartOfALine { next },
            },
            // A torn line may be closed by what follows it.
            _ if after_line == b'{' => Self::Torn { next: after_line },
            Some(_) => Self::ManyLines,
            None => Self::Torn { next: after_line },
        }
    }
}

/// Whether what a file begins with is a row, or a list of such.
pub(crate) fn starts_with_rows(head: &[u8]) -> bool {
    const ROW: [&[u8]; 3] = [b"\"conversations\"", b"\"problem\"", b"\"messages\""];
    let text = head.strip_prefix(BYTE_ORDER_MARK).unwrap_or(head);
    let text = text.trim_ascii_start();
    if text.starts_with(b"[") {
        return true;
    }
    let mut brackets = Brackets::default();
    for (at, byte) in text.iter().enumerate() {
        let is_key = brackets.is_between();
        if is_key && *byte == b'"' && ROW.iter().any(|key| text[at..].starts_with(key)) {
            return true;
        }
        if brackets.step(*byte) {
            return false;
        }
    }
    false
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_start)
}

/// Whether a second line has begun.
pub(crate) fn has_two_lines(head: &[u8]) -> bool {
    let first = head.iter().position(|byte| *byte == b'\n');
    first.is_some_and(|first| head[first..].trim_ascii_start().contains(&b'\n'))
}

/// What a file is, if it is no text.
pub(crate) fn no_text(head: &[u8]) -> Option<NoRows> {
    let found = MAGIC.iter().find(|(magic, ..)| head.starts_with(magic));
    if let Some((_, what, hint)) = found {
        let what = (*what).to_owned();
        return Some(NoRows { what, hint });
    }
    let has_mark = head.starts_with(b"\xff\xfe") || head.starts_with(b"\xfe\xff");
    // Every second byte of plain letters is 0 there.
    let is_wide = matches!(head, [0, c, ..] | [c, 0, ..] if *c != 0) || head.starts_with(&[0; 3]);
    if has_mark || (is_wide && head.len() > 3) {
        let what = "UTF-16 or UTF-32 text, where UTF-8 is read".to_owned();
        return Some(NoRows { what, hint: UTF_16 });
    }
    let is_json = matches!(head.trim_ascii_start().first(), Some(b'{' | b'['));
    let has_zeros = head[..head.len().min(1024)].contains(&0);
    (has_zeros && !is_json).then(|| NoRows { what: "no text".to_owned(), hint: ROWS })
}

fn no_json(text: &[u8], is_whole: bool) -> NoRows {
    let first = lines(text).next().unwrap_or_default().trim_ascii();
    let first = String::from_utf8_lossy(first);
    let shown: String = first.chars().take(SHOWN).collect();
    let lower = first.to_ascii_lowercase();
    let is_table = !is_whole || lines(text).nth(1).is_some_and(|line| !line.is_empty());
    let (what, hint) = if lower.starts_with("<!doctype") || lower.starts_with("<html") {
        ("a web page", "fetch the file itself, not the page that shows it")
    } else if is_table && (first.contains(',') || first.contains('\t')) {
        ("CSV, as it seems", ROWS)
    } else {
        ("no JSON objects", ROWS)
    };
    NoRows { what: format!("{what}: it begins with `{shown}`"), hint }
}

/// Where in a JSON value a byte stands.
#[derive(Debug, Default)]
pub(crate) struct Brackets {
    depth: usize,
    in_text: bool,
    is_escaped: bool,
}

impl Brackets {
    /// Takes a byte; whether it closes the outermost bracket.
    pub(crate) fn step(&mut self, byte: u8) -> bool {
        match byte {
            _ if self.is_escaped => self.is_escaped = false,
            b'\\' if self.in_text => self.is_escaped = true,
            b'"' => self.in_text = !self.in_text,
            _ if self.in_text => {}
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' if self.depth > 0 => {
                self.depth -= 1;
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }

    /// Whether one bracket is open, and no text.
    fn is_between(&self) -> bool {
        self.depth == 1 && !self.in_text
    }

    /// Whether no bracket and no text is open.
    pub(crate) fn is_outside(&self) -> bool {
        self.depth == 0 && !self.in_text
    }
}
