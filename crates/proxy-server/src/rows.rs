//! Lists as people write them, read row by row: CSV, or one JSON document per line.
//!
//! Invariants:
//! - A line ends at CR, LF or CR LF, in any mixture; a byte order mark in front is no part of the first line.
//! - Lines are numbered from 1 as an editor shows them; a row that spans lines has the number of its first.
//! - Every row that is not blank comes out, as its content or as a fault, so that whoever counts them loses none.
//! - Memory is what was pushed and not taken yet, and one row of the bound.

use bytes::{Buf as _, BytesMut};
use csv_core::ReadRecordResult;

/// What some programs put in front of a text in UTF-8.
pub(crate) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Columns of one row.
const COLUMNS_MAX: usize = 64;

/// Why a row cannot be read. None of these quotes it: a row may hold a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// It has more bytes than the bound.
    TooLong,
    /// It has more columns than anybody needs.
    TooManyColumns,
    /// Not the encoding that is expected.
    NotUtf8,
    /// Its last field begins with a quote, and the file ends without another.
    OpenQuote,
}

impl Unreadable {
    /// In words; `bytes_max` is the bound and `key` its name.
    pub(crate) fn in_words(self, bytes_max: usize, key: &str) -> String {
        match self {
            Self::TooLong => format!("the line exceeds {bytes_max} bytes ({key})"),
            Self::TooManyColumns => format!("the row has more than {COLUMNS_MAX} columns"),
            Self::NotUtf8 => "the line is not UTF-8; save the file in that encoding".to_owned(),
            Self::OpenQuote => {
                "a quote (\") opens a field here and is never closed, so everything up to the end of the file is in that field"
                    .to_owned()
            }
        }
    }
}

/// One row: the number of its first line, and what it holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Row<T> {
    /// From 1.
    pub(crate) line: u64,
    /// What stands in it.
    pub(crate) content: Result<T, Unreadable>,
}

/// Where in the file the reader is.
#[derive(Debug)]
struct Place {
    line: u64,
    /// The byte before was a CR: an LF now belongs to it.
    after_cr: bool,
}

impl Place {
    fn pass(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.line += u64::from(byte == b'\r' || (byte == b'\n' && !self.after_cr));
            self.after_cr = byte == b'\r';
        }
    }
}

/// What both kinds of list have in common: bytes that wait, and where they stand.
#[derive(Debug)]
struct Input {
    waiting: BytesMut,
    place: Place,
    began: bool,
    ended: bool,
}

impl Input {
    fn new() -> Self {
        Self { waiting: BytesMut::new(), place: Place { line: 1, after_cr: false }, began: false, ended: false }
    }

    /// Whether it is known if a byte order mark stands in front; takes it off.
    fn begin(&mut self) -> bool {
        if !self.began && (self.ended || self.waiting.len() >= BYTE_ORDER_MARK.len()) {
            self.began = true;
            if self.waiting.starts_with(BYTE_ORDER_MARK) {
                self.waiting.advance(BYTE_ORDER_MARK.len());
            }
        }
        self.began
    }

    fn take(&mut self, count: usize) -> BytesMut {
        let taken = self.waiting.split_to(count);
        self.place.pass(&taken);
        taken
    }

    /// Takes line ends; afterwards the next byte, if there is one, is the first of a line with something in it.
    fn skip_line_ends(&mut self) {
        let count = self.waiting.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        self.take(count);
    }
}

/// Text, line by line.
#[derive(Debug)]
pub(crate) struct Lines {
    input: Input,
    bytes_max: usize,
}

impl Lines {
    /// Lines of at most `bytes_max`, without their ends.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { input: Input::new(), bytes_max }
    }

    /// Hands over the next bytes of the file.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.input.waiting.extend_from_slice(bytes);
    }

    /// There are no further bytes.
    pub(crate) fn end(&mut self) {
        self.input.ended = true;
    }

    /// Bytes of a row that is not complete yet, and the number of its first line.
    pub(crate) fn incomplete(&self) -> (usize, u64) {
        (self.input.waiting.len(), self.input.place.line)
    }

    /// The next complete line that is not blank.
    pub(crate) fn next(&mut self) -> Option<Row<String>> {
        if !self.input.begin() {
            return None;
        }
        loop {
            self.input.skip_line_ends();
            let end = self.input.waiting.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
            let end = end
                .or_else(|| (self.input.ended && !self.input.waiting.is_empty()).then_some(self.input.waiting.len()))?;
            let line = self.input.place.line;
            let bytes = self.input.take(end);
            if bytes.trim_ascii().is_empty() {
                continue;
            }
            let content = if bytes.len() > self.bytes_max {
                Err(Unreadable::TooLong)
            } else {
                std::str::from_utf8(&bytes).map(str::to_owned).map_err(|_| Unreadable::NotUtf8)
            };
            return Some(Row { line, content });
        }
    }
}

/// CSV (RFC 4180), row by row; white space around a field is no part of it.
pub(crate) struct Csv {
    input: Input,
    bytes_max: usize,
    parser: csv_core::Reader,
    /// The row under way, if one is.
    row: Option<UnderWay>,
    fields: Vec<u8>,
    ends: Vec<usize>,
}

/// A row of which not all bytes are there.
struct UnderWay {
    line: u64,
    bytes: usize,
    /// Bytes of its fields, and fields, so far.
    written: usize,
    columns: usize,
    fault: Option<Unreadable>,
}

impl Csv {
    /// Rows of at most `bytes_max`.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            input: Input::new(),
            bytes_max,
            parser: csv_core::Reader::new(),
            row: None,
            fields: vec![0; bytes_max.max(1)],
            ends: vec![0; COLUMNS_MAX],
        }
    }

    /// Hands over the next bytes of the file.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.input.waiting.extend_from_slice(bytes);
    }

    /// There are no further bytes.
    pub(crate) fn end(&mut self) {
        self.input.ended = true;
    }

    /// Bytes of a row that is not complete yet, and the number of its first line.
    pub(crate) fn incomplete(&self) -> (usize, u64) {
        self.row.as_ref().map_or((0, self.input.place.line), |row| (row.bytes, row.line))
    }

    /// The next complete row that is not blank.
    pub(crate) fn next(&mut self) -> Option<Row<Vec<String>>> {
        if !self.input.begin() {
            return None;
        }
        loop {
            if self.row.is_none() {
                self.input.skip_line_ends();
                if self.input.waiting.is_empty() {
                    return None;
                }
                let line = self.input.place.line;
                self.row = Some(UnderWay { line, bytes: 0, written: 0, columns: 0, fault: None });
            }
            let closed = self.read_on()?;
            let row = self.row.take()?;
            let fault = row.fault.or((!closed).then_some(Unreadable::OpenQuote));
            let content = match fault.or((row.bytes > self.bytes_max).then_some(Unreadable::TooLong)) {
                Some(fault) => Err(fault),
                None => self.fields_of(&row),
            };
            if content.as_ref().is_ok_and(|fields| fields.iter().all(String::is_empty) && fields.len() == 1) {
                continue;
            }
            return Some(Row { line: row.line, content });
        }
    }

    /// Feeds the parser until the row under way is complete: `Some(true)`, or `Some(false)` if the file ends within quotes. `None`
    /// if more bytes are needed.
    fn read_on(&mut self) -> Option<bool> {
        let row = self.row.as_mut()?;
        loop {
            // The parser takes no bytes for the end of the file, and then does not tell whether a quote is open. A line end does.
            let at_end = self.input.waiting.is_empty();
            if at_end && !self.input.ended {
                return None;
            }
            let input: &[u8] = if at_end { b"\n" } else { &self.input.waiting };
            let (result, read, written, columns) =
                self.parser.read_record(input, &mut self.fields[row.written..], &mut self.ends[row.columns..]);
            if !at_end {
                // A line end that closes the row is no part of it, but one byte more or less does not matter for the bound.
                row.bytes += read;
                self.input.take(read);
            }
            row.written += written;
            row.columns += columns;
            match result {
                ReadRecordResult::Record | ReadRecordResult::End => return Some(true),
                ReadRecordResult::InputEmpty if at_end => return Some(false),
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull => {
                    row.fault = Some(Unreadable::TooLong);
                    row.written = 0;
                }
                ReadRecordResult::OutputEndsFull => {
                    row.fault.get_or_insert(Unreadable::TooManyColumns);
                    row.columns = 0;
                }
            }
        }
    }

    fn fields_of(&self, row: &UnderWay) -> Result<Vec<String>, Unreadable> {
        let mut start = 0;
        let field = |end: &usize| {
            let bytes = &self.fields[start..*end];
            start = *end;
            std::str::from_utf8(bytes).map(|text| text.trim().to_owned()).map_err(|_| Unreadable::NotUtf8)
        };
        self.ends[..row.columns].iter().map(field).collect()
    }
}

/// The columns that a header names, and where.
#[derive(Debug)]
pub(crate) struct Header(Vec<String>);

impl Header {
    /// Checks the first row of a CSV: it names `known` columns only, each at most once, the first `needed` of them at least. The
    /// fault quotes nothing: what is not a header may be a row with a key.
    pub(crate) fn new(names: Vec<String>, known: &[&str], needed: usize) -> Result<Self, String> {
        if names.len() == 1 && names[0].contains([';', '\t']) {
            return Err("columns are separated by something else than commas".to_owned());
        }
        if names.iter().any(|name| !known.contains(&name.as_str())) {
            return Err("it has something else".to_owned());
        }
        let times = |column: &str| names.iter().filter(|name| *name == column).count();
        if let Some(missing) = known[..needed].iter().find(|column| times(column) == 0) {
            return Err(format!("{missing} is missing"));
        }
        match known.iter().find(|column| times(column) > 1) {
            Some(twice) => Err(format!("{twice} is there twice")),
            None => Ok(Self(names)),
        }
    }

    /// The cells of a row by the names of their columns; those that are empty are not there.
    pub(crate) fn cells(&self, row: Vec<String>) -> Result<Cells, String> {
        if row.len() > self.0.len() {
            return Err(format!("{} columns, but the header names {}", row.len(), self.0.len()));
        }
        Ok(Cells(self.0.iter().cloned().zip(row).filter(|(_, cell)| !cell.is_empty()).collect()))
    }
}

/// The cells of one row.
#[derive(Debug)]
pub(crate) struct Cells(Vec<(String, String)>);

impl Cells {
    /// What stands in this column, if anything does.
    pub(crate) fn get(&self, column: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == column).map(|(_, cell)| cell.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every row of a CSV, handed over in pieces of `step` bytes: its line, and its fields joined by `|` or its fault.
    fn rows(text: &[u8], step: usize) -> Vec<(u64, String)> {
        let mut csv = Csv::new(64);
        let mut rows = Vec::new();
        let mut collect = |csv: &mut Csv| {
            while let Some(Row { line, content }) = csv.next() {
                rows.push((line, content.map_or_else(|fault| format!("{fault:?}"), |fields| fields.join("|"))));
            }
        };
        for piece in text.chunks(step) {
            csv.push(piece);
            collect(&mut csv);
        }
        csv.end();
        collect(&mut csv);
        rows
    }

    #[test]
    fn rows_and_their_lines_are_the_same_for_every_line_end_and_however_the_bytes_come() {
        let expected: Vec<(u64, String)> =
            [(1, "a|b"), (2, "1|x"), (4, "2|y\u{240a}z"), (6, "3|w")].map(|(line, row)| (line, row.to_owned())).into();
        for end in ["\n", "\r", "\r\n"] {
            for last in ["", end] {
                let text = format!("\u{feff}a,b{end}1,x{end}  {end}2,\"y{end}z\"{end} 3 , w {last}");
                for step in [1, 2, 3, 7, 1000] {
                    let told: Vec<(u64, String)> = rows(text.as_bytes(), step)
                        .into_iter()
                        .map(|(line, row)| (line, row.replace(end, "\u{240a}")))
                        .collect();
                    assert_eq!(told, expected, "{text:?} by {step}");
                }
            }
        }
        assert_eq!(rows(b"a\rb\nc\r\nd\n\re", 1).iter().map(|(line, _)| *line).collect::<Vec<_>>(), [1, 2, 3, 4, 6]);
    }

    #[test]
    fn a_row_that_cannot_be_read_is_a_row() {
        let long = "x".repeat(65);
        let wide = ",".repeat(70);
        let text = format!("a,b\n{long},1\n1,2\n{wide}\nz,\u{e4}\n\"\"\"q\"\"\",\"r,s\"\nend,\"open\nof the file");
        let mut bytes = text.into_bytes();
        let at = bytes.iter().position(|byte| *byte == 0xc3).unwrap();
        bytes.remove(at);
        for step in [1, 5, 1000] {
            let told = rows(&bytes, step);
            let told: Vec<(u64, &str)> = told.iter().map(|(line, row)| (*line, row.as_str())).collect();
            let expected = [
                (1, "a|b"),
                (2, "TooLong"),
                (3, "1|2"),
                (4, "TooManyColumns"),
                (5, "NotUtf8"),
                (6, "\"q\"|r,s"),
                (7, "OpenQuote"),
            ];
            // A row of 70 commas is also too long for the bound of 64 bytes.
            let expected: Vec<(u64, &str)> =
                expected.into_iter().map(|(line, row)| (line, if line == 4 { told[3].1 } else { row })).collect();
            assert_eq!(told, expected, "by {step}");
            assert!(["TooManyColumns", "TooLong"].contains(&told[3].1));
        }
    }

    #[test]
    fn lines_are_taken_whole() {
        for step in [1, 2, 1000] {
            let mut lines = Lines::new(5);
            let mut told = Vec::new();
            for piece in "\u{feff}a\r\nbc\r\r \n123456\nlast".as_bytes().chunks(step) {
                lines.push(piece);
                told.extend(std::iter::from_fn(|| lines.next()));
            }
            lines.end();
            told.extend(std::iter::from_fn(|| lines.next()));
            let told: Vec<_> = told.into_iter().map(|row| (row.line, row.content)).collect();
            let expected = [
                (1, Ok("a".to_owned())),
                (2, Ok("bc".to_owned())),
                (5, Err(Unreadable::TooLong)),
                (6, Ok("last".to_owned())),
            ];
            assert_eq!(told, expected, "by {step}");
        }
    }

    #[test]
    fn a_header_that_is_none_is_told_without_its_content() {
        let header = |names: &str| {
            Header::new(names.split(',').map(str::to_owned).collect(), &["hardwareId", "enrollment", "batch"], 2)
        };
        assert!(header("enrollment,hardwareId,batch").is_ok());
        for (names, problem) in [
            ("SN-1,plant,c2VjcmV0", "something else"),
            ("hardwareId;enrollment", "separated"),
            ("hardwareId,batch", "enrollment is missing"),
            ("hardwareId,enrollment,hardwareId", "hardwareId is there twice"),
        ] {
            let told = header(names).unwrap_err();
            assert!(told.contains(problem) && !told.contains("c2VjcmV0"), "{told}");
        }
    }
}
