//! `POST /v1/registrations/import`: an allow-list, streamed.
//!
//! CSV (a header line, then one device per line; a quoted field may not span lines) or NDJSON. Lines are judged one by one and written
//! durably in chunks, so a broken connection leaves a prefix, and sending the same file again is safe.
//!
//! Invariant: memory is two chunks of lines, one that is read and one that is written, whatever the file's size.

use std::sync::Arc;

use actix_web::rt::task::JoinHandle;
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::{Buf as _, BytesMut};
use futures_util::StreamExt as _;
use proxy_core::gateway::StoreError;
use proxy_core::gateway::operator::{ImportRow, Imported};
use proxy_core::store::ReadError;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::JoinError;

use super::bearer;
use super::body::{require_content_type, too_slow};
use super::problem::Problem;
use crate::app::App;
use crate::config::OperatorRole;

/// Lines written in one commit.
const CHUNK_LINES: usize = 1000;
/// What some programs put in front of a text in UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// Rejected lines that are told one by one; the others are counted.
const PROBLEMS_TOLD_MAX: usize = 100;

/// Columns of a CSV file; the first two have to be there.
const COLUMNS: [&str; 5] = ["hardwareId", "enrollment", "tenant", "batch", "key"];

const CSV: &str = "text/csv";
const NDJSON: &str = "application/x-ndjson";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Line {
    hardware_id: String,
    enrollment: String,
    #[serde(default)]
    tenant: Option<String>,
    #[serde(default)]
    batch: Option<String>,
    #[serde(default)]
    key: Option<String>,
}

impl From<Line> for ImportRow {
    fn from(line: Line) -> Self {
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        Self {
            hardware_id: line.hardware_id,
            enrollment: line.enrollment,
            tenant: given(line.tenant),
            batch: given(line.batch),
            key: given(line.key),
        }
    }
}

/// How lines are read.
enum Format {
    Ndjson,
    Csv { header: Option<csv::StringRecord> },
}

impl Format {
    /// A line's row; `None` for a blank line or the header.
    fn row(&mut self, line: &[u8]) -> Result<Option<ImportRow>, String> {
        let text = std::str::from_utf8(line).map_err(|_| "the line is not UTF-8".to_owned())?.trim_end_matches('\r');
        if text.trim().is_empty() {
            return Ok(None);
        }
        let header = match self {
            Self::Ndjson => {
                // The words of a JSON error may quote the line, and a line may hold a key: only the place is told.
                if text.trim_start().starts_with('[') {
                    return Err("not the JSON object that is expected, but an array".to_owned());
                }
                let line: Result<Line, _> = serde_json::from_str(text);
                return line
                    .map(|line| Some(line.into()))
                    .map_err(|error| format!("not the JSON object that is expected (column {})", error.column()));
            }
            Self::Csv { header } => header,
        };
        let record = csv_record(text)?;
        let Some(header) = header else {
            *header = Some(record);
            return Ok(None);
        };
        if record.len() > header.len() {
            return Err(format!("{} columns, but the header names {}", record.len(), header.len()));
        }
        let line: Line =
            record.deserialize(Some(header)).map_err(|_| "a column that is needed is not there".to_owned())?;
        Ok(Some(line.into()))
    }

    /// What is wrong with the header, if it has been read.
    fn header_problem(&self) -> Option<String> {
        let Self::Csv { header: Some(header) } = self else { return None };
        let expected = "the first line names the columns: hardwareId,enrollment[,tenant,batch,key] in any order";
        // What is not a header may be a device, with its key.
        if header.iter().any(|column| !COLUMNS.contains(&column)) {
            return Some(format!("{expected}; it has something else"));
        }
        let times = |column: &str| header.iter().filter(|&named| named == column).count();
        let missing =
            COLUMNS[..2].iter().find(|column| times(column) == 0).map(|column| format!("{column} is missing"));
        let twice = || COLUMNS.iter().find(|column| times(column) > 1).map(|column| format!("{column} is there twice"));
        missing.or_else(twice).map(|problem| format!("{expected}; {problem}"))
    }
}

fn csv_record(text: &str) -> Result<csv::StringRecord, String> {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).trim(csv::Trim::All).from_reader(text.as_bytes());
    let mut record = csv::StringRecord::new();
    reader.read_record(&mut record).map_err(|_| "the line is not CSV".to_owned())?;
    Ok(record)
}

/// What an import has come to.
#[derive(Default)]
struct Tally {
    lines: u64,
    /// Lines that are neither blank nor the header, whether or not they can be read.
    rows: u64,
    new: u64,
    renewed: u64,
    unchanged: u64,
    rejected: u64,
    problems: Vec<Value>,
}

impl Tally {
    fn reject(&mut self, line: u64, problem: &str) {
        self.rejected += 1;
        if self.problems.len() < PROBLEMS_TOLD_MAX {
            self.problems.push(json!({ "line": line, "problem": problem }));
        }
    }

    fn count(&mut self, lines: Vec<u64>, outcomes: Vec<Imported>) {
        for (line, outcome) in lines.into_iter().zip(outcomes) {
            match outcome {
                Imported::New => self.new += 1,
                Imported::Renewed => self.renewed += 1,
                Imported::Unchanged => self.unchanged += 1,
                Imported::Rejected(problem) => self.reject(line, &problem),
            }
        }
    }

    fn into_json(mut self) -> Value {
        // Lines that can be read are judged in batches, so others may be rejected before them.
        self.problems.sort_by_key(|problem| problem["line"].as_u64());
        json!({
            "new": self.new, "renewed": self.renewed, "unchanged": self.unchanged, "rejected": self.rejected,
            "problems": self.problems,
        })
    }
}

/// Reads the stream to its end and answers with what became of its lines.
pub(super) async fn import(
    app: web::Data<App>,
    request: HttpRequest,
    mut payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let token = bearer::operator(&app, &request, OperatorRole::Operate)?;
    let mut format = match require_content_type(&request, &[CSV, NDJSON])? {
        CSV => Format::Csv { header: None },
        _ => Format::Ndjson,
    };
    let limits = &app.server.operator;
    let mut tally = Tally::default();
    let (mut buffer, mut writing) = (BytesMut::new(), Writing::new(&app));
    loop {
        let received = tokio::time::timeout(limits.http.request_timeout, payload.next()).await;
        let received = received.map_err(|_| too_slow(limits.http.request_timeout))?;
        let ended = received.is_none();
        if let Some(bytes) = received {
            buffer.extend_from_slice(
                &bytes.map_err(|_| Problem::bad_request("incomplete-body", "the body ended before it was complete"))?,
            );
        }
        while let Some(line) = take_line(&mut buffer, ended) {
            tally.lines += 1;
            let line = if tally.lines == 1 { line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&line) } else { &line };
            let row = if line.len() > limits.import_line_max_bytes {
                Err(format!("the line exceeds {} bytes (operator.import_line_max_bytes)", limits.import_line_max_bytes))
            } else {
                format.row(line)
            };
            if !matches!(row, Ok(None)) && tally.rows == limits.import_rows_max {
                writing.finish(&mut tally).await?;
                let detail = format!(
                    "the file has more than {} rows (operator.import_rows_max); those before are on the list",
                    limits.import_rows_max
                );
                return Err(Problem::new(actix_web::http::StatusCode::PAYLOAD_TOO_LARGE, "too-many-lines", detail));
            }
            match row {
                Ok(None) => {
                    if let Some(problem) = format.header_problem() {
                        return Err(Problem::bad_request("wrong-header", problem));
                    }
                }
                Ok(Some(row)) => {
                    tally.rows += 1;
                    writing.add(tally.lines, row, &mut tally).await?;
                }
                Err(problem) => {
                    tally.rows += 1;
                    tally.reject(tally.lines, &problem);
                }
            }
        }
        if buffer.len() > limits.import_line_max_bytes.max(1 << 16) {
            writing.finish(&mut tally).await?;
            let detail = format!(
                "line {} exceeds {} bytes (operator.import_line_max_bytes); those before are on the list",
                tally.lines + 1,
                limits.import_line_max_bytes
            );
            return Err(Problem::new(actix_web::http::StatusCode::PAYLOAD_TOO_LARGE, "line-too-long", detail));
        }
        if ended {
            break;
        }
    }
    writing.finish(&mut tally).await?;
    tracing::info!(
        operator = token.name,
        new = tally.new,
        renewed = tally.renewed,
        rejected = tally.rejected,
        "allow-list imported"
    );
    Ok(HttpResponse::Ok().json(tally.into_json()))
}

/// The next whole line, without its end; at the end of the stream, what is left.
fn take_line(buffer: &mut BytesMut, ended: bool) -> Option<BytesMut> {
    if let Some(end) = buffer.iter().position(|&byte| byte == b'\n') {
        let line = buffer.split_to(end);
        buffer.advance(1);
        return Some(line);
    }
    (ended && !buffer.is_empty()).then(|| buffer.split())
}

/// Lines that were read, and the chunk before them, which is written meanwhile. One chunk follows the other, so what is on the list is
/// always a beginning of the file.
struct Writing<'a> {
    app: &'a App,
    chunk: Vec<(u64, ImportRow)>,
    under_way: Option<(Vec<u64>, JoinHandle<Result<Vec<Imported>, StoreError>>)>,
}

impl<'a> Writing<'a> {
    fn new(app: &'a App) -> Self {
        Self { app, chunk: Vec::new(), under_way: None }
    }

    /// Adds a row of the file's line `line`.
    async fn add(&mut self, line: u64, row: ImportRow, tally: &mut Tally) -> Result<(), Problem> {
        self.chunk.push((line, row));
        if self.chunk.len() < CHUNK_LINES {
            return Ok(());
        }
        self.settle(tally).await?;
        let (lines, rows): (Vec<u64>, Vec<ImportRow>) = self.chunk.drain(..).unzip();
        let gateway = Arc::clone(&self.app.gateway);
        self.under_way = Some((lines, actix_web::rt::spawn(async move { gateway.import(rows).await })));
        Ok(())
    }

    /// Waits for the chunk that is written.
    async fn settle(&mut self, tally: &mut Tally) -> Result<(), Problem> {
        let Some((lines, written)) = self.under_way.take() else { return Ok(()) };
        let broken = |error: JoinError| ReadError::Unavailable(error.to_string());
        tally.count(lines, written.await.map_err(broken)??);
        Ok(())
    }

    /// Writes what is left; all lines that were added are on the list then.
    async fn finish(&mut self, tally: &mut Tally) -> Result<(), Problem> {
        self.settle(tally).await?;
        let (lines, rows): (Vec<u64>, Vec<ImportRow>) = self.chunk.drain(..).unzip();
        if !rows.is_empty() {
            tally.count(lines, self.app.gateway.import(rows).await?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(format: &mut Format, line: &str) -> Result<Option<(String, String, Option<String>)>, String> {
        Ok(format.row(line.as_bytes())?.map(|row| (row.hardware_id, row.enrollment, row.batch)))
    }

    #[test]
    fn csv_lines_follow_their_header_in_any_order() {
        let mut format = Format::Csv { header: None };
        assert_eq!(row(&mut format, "enrollment,hardwareId,batch\r"), Ok(None));
        assert_eq!(
            row(&mut format, "plant,\"SN-1\",\"b,1\"\r"),
            Ok(Some(("SN-1".into(), "plant".into(), Some("b,1".into()))))
        );
        assert_eq!(row(&mut format, ""), Ok(None));
        assert!(row(&mut format, "plant").is_err());
    }

    #[test]
    fn a_header_that_is_none_is_told_without_its_content() {
        for (line, problem) in [
            ("enrollment,hardwareId,batch", None),
            ("SN-1,plant,c2VjcmV0", Some("something else")),
            ("hardwareId,batch", Some("enrollment is missing")),
            ("hardwareId,enrollment,hardwareId", Some("hardwareId is there twice")),
        ] {
            let mut format = Format::Csv { header: None };
            assert_eq!(row(&mut format, line), Ok(None));
            let told = format.header_problem();
            assert_eq!(told.is_some(), problem.is_some(), "{line}");
            let told = told.unwrap_or_default();
            assert!(told.contains(problem.unwrap_or_default()) && !told.contains("c2VjcmV0"), "{told}");
        }
    }

    #[test]
    fn a_wrong_line_is_told_without_its_content() {
        let mut format = Format::Ndjson;
        let problem = row(&mut format, r#"{"hardwareId":"a","enrollment":"b","keyy":"c2VjcmV0"}"#).unwrap_err();
        assert!(!problem.contains("c2VjcmV0"), "{problem}");
    }

    #[test]
    fn lines_are_taken_whole() {
        let mut buffer = BytesMut::from(&b"a\nbc"[..]);
        assert_eq!(take_line(&mut buffer, false).as_deref(), Some(&b"a"[..]));
        assert_eq!(take_line(&mut buffer, false), None);
        assert_eq!(take_line(&mut buffer, true).as_deref(), Some(&b"bc"[..]));
        assert_eq!(take_line(&mut buffer, true), None);
    }
}
