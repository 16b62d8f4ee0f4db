//! The texts of a file's rows: one JSON object per line, the items of one JSON list, or objects over several lines. The start
//! of the file decides which. A file that is not text is refused, and the error names its format.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};

use base::SourceLine;

use crate::error::{DataError, RowCause, io_error};
use crate::file_form::{
    BYTE_ORDER_MARK, Brackets, FileForm, HEAD_BYTES, has_two_lines, starts_with_rows,
};

/// The text of one row.
#[derive(Debug)]
pub struct RowText {
    /// The line it begins in, from 1.
    pub line: usize,
    /// Its number, from 1, where rows are not lines.
    pub item: Option<usize>,
    /// Where it begins in the file, bytes.
    pub offset: u64,
    /// The text, or why there is none.
    pub text: Result<Vec<u8>, RowCause>,
}

impl RowText {
    /// Where the row stands in `path`.
    pub fn source(&self, path: &Path) -> SourceLine {
        SourceLine { item: self.item, ..SourceLine::new(path, self.line) }
    }
}

type Source = BufReader<std::io::Chain<Cursor<Vec<u8>>, File>>;

/// Iterator over the rows of a file. Blank lines are skipped; an error ends it.
#[derive(Debug)]
pub struct RowTexts {
    path: PathBuf,
    source: Source,
    form: FileForm,
    num_bytes: u64,
    /// Bytes read so far.
    at: u64,
    /// Number of the line that is read now, from 1.
    line: usize,
    /// Items so far.
    items: usize,
    is_over: bool,
}

impl RowTexts {
    /// Opens a file and looks at its start.
    ///
    /// # Errors
    /// Where it cannot be opened, or is no file of rows.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let mut file = File::open(path).map_err(io_error(path))?;
        let num_bytes = file.metadata().map_err(io_error(path))?.len();
        let (head, is_whole) = head_of(&mut file).map_err(io_error(path))?;
        let form = FileForm::of(&head, is_whole).map_err(|no_rows| DataError::NotRows {
            path: path.to_owned(),
            what: no_rows.what,
            hint: no_rows.hint,
        })?;
        let mut texts = Self {
            path: path.to_owned(),
            source: BufReader::new(Cursor::new(head).chain(file)),
            form,
            num_bytes,
            at: 0,
            line: 1,
            items: 0,
            is_over: false,
        };
        texts.skip_start().map_err(io_error(path))?;
        Ok(texts)
    }

    /// Bytes of the file; 0 for a pipe.
    pub fn num_bytes(&self) -> u64 {
        self.num_bytes
    }

    /// How many of them were read.
    pub fn bytes_read(&self) -> u64 {
        self.at
    }

    /// Leaves a byte order mark behind, and the bracket that opens a list.
    fn skip_start(&mut self) -> std::io::Result<()> {
        let starts = self.source.fill_buf()?.starts_with(BYTE_ORDER_MARK);
        if starts {
            self.take(BYTE_ORDER_MARK.len());
        }
        if self.form == FileForm::List {
            self.skip_spaces()?;
            self.take(1);
        }
        Ok(())
    }

    fn take(&mut self, num_bytes: usize) {
        self.source.consume(num_bytes);
        self.at += num_bytes as u64;
    }

    /// The next byte that is no space; none at the end.
    fn skip_spaces(&mut self) -> std::io::Result<Option<u8>> {
        loop {
            let buffer = self.source.fill_buf()?;
            let Some(&byte) = buffer.first() else {
                return Ok(None);
            };
            let spaces = buffer.iter().take_while(|b| b.is_ascii_whitespace());
            let (mut num_spaces, mut num_lines) = (0, 0);
            for space in spaces {
                num_spaces += 1;
                num_lines += usize::from(*space == b'\n');
            }
            if num_spaces == 0 {
                return Ok(Some(byte));
            }
            self.line += num_lines;
            self.take(num_spaces);
        }
    }

    fn read(&mut self) -> std::io::Result<Option<RowText>> {
        match self.form {
            FileForm::Lines => self.next_line(),
            FileForm::List => self.next_item(),
            FileForm::Values => self.next_value(),
        }
    }

    fn next_line(&mut self) -> std::io::Result<Option<RowText>> {
        loop {
            let (mut text, offset, line) = (Vec::new(), self.at, self.line);
            let length = self.source.read_until(b'\n', &mut text)?;
            if length == 0 {
                return Ok(None);
            }
            self.at += length as u64;
            self.line += 1;
            let end = text.strip_suffix(b"\n").unwrap_or(&text);
            let length = end.strip_suffix(b"\r").unwrap_or(end).len();
            text.truncate(length);
            if !text.trim_ascii().is_empty() {
                return Ok(Some(RowText { line, item: None, offset, text: Ok(text) }));
            }
        }
    }

    /// Items are found by brackets and quotes alone, so that one that is broken within leaves the others as they are.
    fn next_item(&mut self) -> std::io::Result<Option<RowText>> {
        loop {
            if self.skip_spaces()?.is_none() {
                return Ok(self.torn());
            }
            let (offset, line) = (self.at, self.line);
            let (mut text, mut brackets, mut end) = (Vec::new(), Brackets::default(), None);
            self.read_while(&mut text, |byte| {
                let is_end = brackets.is_outside() && matches!(byte, b',' | b']');
                if is_end {
                    end = Some(byte);
                } else {
                    brackets.step(byte);
                }
                !is_end
            })?;
            text.truncate(text.trim_ascii_end().len());
            match end {
                Some(b',') => self.take(1),
                Some(_) => {
                    self.take(1);
                    // Nothing belongs there; what does stand there is read as lines.
                    self.form = FileForm::Lines;
                }
                // An item without end says so itself.
                None => self.is_over = !brackets.is_outside(),
            }
            if !text.is_empty() {
                return Ok(Some(self.item(line, offset, Ok(text))));
            }
            if self.form == FileForm::Lines {
                return self.next_line();
            }
        }
    }

    /// That a list has no end, once.
    fn torn(&mut self) -> Option<RowText> {
        self.is_over = true;
        let (line, offset) = (self.line, self.at);
        Some(self.item(line, offset, Err(RowCause::TornList)))
    }

    fn item(&mut self, line: usize, offset: u64, text: Result<Vec<u8>, RowCause>) -> RowText {
        self.items += 1;
        RowText { line, item: Some(self.items), offset, text }
    }

    fn next_value(&mut self) -> std::io::Result<Option<RowText>> {
        let Some(first) = self.skip_spaces()? else {
            return Ok(None);
        };
        let (offset, line) = (self.at, self.line);
        let (mut text, mut brackets) = (Vec::new(), Brackets::default());
        let opens = matches!(first, b'{' | b'[');
        let mut is_closed = false;
        self.read_while(&mut text, |byte| {
            if is_closed || (!opens && byte == b'\n') {
                return false;
            }
            is_closed = brackets.step(byte);
            true
        })?;
        text.truncate(text.trim_ascii_end().len());
        Ok(Some(self.item(line, offset, Ok(text))))
    }

    /// Takes bytes into `text` as long as `goes_on` says so.
    fn read_while(
        &mut self,
        text: &mut Vec<u8>,
        mut goes_on: impl FnMut(u8) -> bool,
    ) -> std::io::Result<()> {
        loop {
            let buffer = self.source.fill_buf()?;
            if buffer.is_empty() {
                return Ok(());
            }
            let stop = buffer.iter().position(|byte| !goes_on(*byte));
            let taken = stop.unwrap_or(buffer.len());
            self.line += buffer[..taken].iter().filter(|b| **b == b'\n').count();
            text.extend_from_slice(&buffer[..taken]);
            self.take(taken);
            if stop.is_some() {
                return Ok(());
            }
        }
    }
}

/// Whether a file holds rows, where it may also be of COCO's form: by the keys that its first object begins with.
///
/// # Errors
/// Where it cannot be read.
pub fn is_rows(path: &Path) -> Result<bool, DataError> {
    // What comes through a pipe cannot be looked at twice.
    if !std::fs::metadata(path).map_err(io_error(path))?.is_file() {
        return Ok(false);
    }
    let mut head = Vec::new();
    let file = File::open(path).map_err(io_error(path))?;
    let read = file.take(HEAD_BYTES as u64).read_to_end(&mut head);
    read.map_err(io_error(path))?;
    Ok(starts_with_rows(&head))
}

/// The start of a file, as far as it takes to see what it is, and whether that is all of it. A pipe is not waited for.
fn head_of(file: &mut File) -> std::io::Result<(Vec<u8>, bool)> {
    let mut head = Vec::new();
    let mut block = vec![0; HEAD_BYTES];
    while head.len() < HEAD_BYTES && !has_two_lines(&head) {
        match file.read(&mut block) {
            Ok(0) => return Ok((head, true)),
            Ok(length) => head.extend_from_slice(&block[..length]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok((head, false))
}

impl Iterator for RowTexts {
    type Item = Result<RowText, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let row = self.read();
        self.is_over |= !matches!(row, Ok(Some(_)));
        row.map_err(io_error(&self.path)).transpose()
    }
}

#[cfg(test)]
#[path = "row_texts_tests.rs"]
mod tests;
