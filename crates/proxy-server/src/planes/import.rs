//! `POST /v1/registrations/import`: an allow-list, streamed.
//!
//! CSV (a header line, then one device per row) or NDJSON. Rows are judged one by one and written durably in chunks, so a broken
//! connection leaves a prefix, and sending the same file again is safe.
//!
//! Invariants:
//! - Memory is two chunks of rows, one that is read and one that is written, whatever the file's size.
//! - Every row is counted once: new, renewed, unchanged or rejected.

use std::sync::Arc;

use actix_web::http::StatusCode;
use actix_web::rt::task::JoinHandle;
use actix_web::{HttpRequest, HttpResponse, web};
use proxy_core::base::StoreError;
use proxy_core::store::ReadError;
use proxy_core::use_cases::import::{ImportRow, Imported};
use tokio::task::JoinError;

use super::bearer;
use crate::api::allow_list::{AllowListRow, ImportOutcome, ImportProblems, RowProblem};
use crate::api::document::OPERATOR;
use crate::api::members;
use crate::api::problem::Code;
use crate::config::{OperatorRole, OperatorSettings};
use crate::http::body::{Body, require_content_type, too_slow};
use crate::http::problem::Problem;
use crate::rows::{Cells, Csv, Header, Lines, Row};
use crate::state::App;

/// Rows written in one commit.
const CHUNK_ROWS: usize = 1000;
/// Rejected rows that are told one by one; the others are counted.
const PROBLEMS_TOLD_MAX: usize = 100;
/// A row is waited for to its end as long as it has no more bytes than this, or than a row may have.
const UNENDED_BYTES_MAX: usize = 1 << 16;

/// Columns of a CSV file; the first two have to be there.
const COLUMNS: [&str; 5] = ["hardwareId", "enrollment", "tenant", "batch", "key"];

/// The import.
pub(super) const IMPORT: &str = "/v1/registrations/import";

const CSV: &str = "text/csv";
const NDJSON: &str = "application/x-ndjson";
/// The bound of a row, by its name.
const LINE_BOUND: &str = "operator.import_line_max_bytes";

fn row_of(cells: &Cells) -> Result<ImportRow, String> {
    let cell = |column: &str| cells.get(column).map(str::to_owned);
    let needed = |column: &str| cell(column).ok_or_else(|| format!("{column} is empty or missing"));
    Ok(ImportRow {
        hardware_id: needed("hardwareId")?,
        enrollment: needed("enrollment")?,
        tenant: cell("tenant"),
        batch: cell("batch"),
        key: cell("key"),
    })
}

/// How the file is read.
enum Format {
    Ndjson(Lines),
    Csv(Box<Csv>, Option<Header>),
}

/// A row that was read: its line, and the row or why it is none.
type Read = (u64, Result<ImportRow, String>);

impl Format {
    fn new(media_type: &str, bytes_max: usize) -> Self {
        if media_type == CSV {
            Self::Csv(Box::new(Csv::new(bytes_max)), None)
        } else {
            Self::Ndjson(Lines::new(bytes_max))
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        match self {
            Self::Ndjson(lines) => lines.push(bytes),
            Self::Csv(csv, _) => csv.push(bytes),
        }
    }

    fn end(&mut self) {
        match self {
            Self::Ndjson(lines) => lines.end(),
            Self::Csv(csv, _) => csv.end(),
        }
    }

    fn incomplete(&self) -> (usize, u64) {
        match self {
            Self::Ndjson(lines) => lines.incomplete(),
            Self::Csv(csv, _) => csv.incomplete(),
        }
    }

    /// The next complete row. The header of a CSV is none; a wrong one is a problem of the whole file.
    fn next(&mut self, bytes_max: usize) -> Result<Option<Read>, Problem> {
        match self {
            Self::Ndjson(lines) => Ok(lines.next().map(|Row { line, content }| {
                let text = content.map_err(|fault| fault.in_words(bytes_max, LINE_BOUND));
                (line, text.and_then(|text| members::read::<AllowListRow>("the line", &text)).map(ImportRow::from))
            })),
            Self::Csv(csv, header) => loop {
                let Some(Row { line, content }) = csv.next() else { return Ok(None) };
                let content = content.map_err(|fault| fault.in_words(bytes_max, LINE_BOUND));
                let Some(header) = &header else {
                    let checked = content.and_then(|names| Header::new(names, &COLUMNS, 2));
                    *header = Some(checked.map_err(|problem| wrong_header(&problem))?);
                    continue;
                };
                let row = content.and_then(|row| header.cells(row)).and_then(|cells| row_of(&cells));
                return Ok(Some((line, row)));
            },
        }
    }

    /// Whether a header was read and nothing else can have been.
    fn has_header(&self) -> bool {
        matches!(self, Self::Csv(_, Some(_)))
    }
}

fn wrong_header(problem: &str) -> Problem {
    let expected = "the first line names the columns: hardwareId,enrollment[,tenant,batch,key] in any order";
    Problem::bad_request(Code::WrongHeader, format!("{expected}; {problem}"))
}

/// What an import has come to.
#[derive(Default)]
struct Tally(ImportOutcome);

impl Tally {
    fn reject(&mut self, line: u64, problem: &str) {
        self.0.rejected += 1;
        if self.0.problems.len() < PROBLEMS_TOLD_MAX {
            self.0.problems.push(RowProblem { line, problem: problem.to_owned() });
        }
    }

    fn count(&mut self, lines: Vec<u64>, outcomes: Vec<Imported>) {
        for (line, outcome) in lines.into_iter().zip(outcomes) {
            match outcome {
                Imported::New => self.0.new += 1,
                Imported::Renewed => self.0.renewed += 1,
                Imported::Unchanged => self.0.unchanged += 1,
                Imported::Rejected(problem) => self.reject(line, &problem),
            }
        }
    }

    fn into_outcome(mut self) -> ImportOutcome {
        // Rows that can be read are judged in batches, so others may be rejected before them.
        self.0.problems.sort_by_key(|problem| problem.line);
        self.0
    }
}

/// One import under way.
struct Import<'a> {
    limits: &'a OperatorSettings,
    format: Format,
    writing: Writing<'a>,
    tally: Tally,
}

/// Brings devices onto the allow-list.
///
/// A file of any length, as it comes: CSV whose first line names the columns `hardwareId,enrollment[,tenant,batch,key]` in any order, or NDJSON.
/// Rows are judged one by one and written as they come, so sending the same file again is safe.
#[utoipa::path(
    post,
    path = IMPORT,
    operation_id = "import_allow_list",
    tag = OPERATOR,
    request_body(
        description = "An allow-list, a row for each device.",
        content((Vec<AllowListRow> = "text/csv"), (Vec<AllowListRow> = "application/x-ndjson"))
    ),
    responses((status = 200, description = "What became of its rows.", body = ImportOutcome), ImportProblems),
    security(("operatorToken" = [])),
)]
pub(super) async fn import(
    app: web::Data<App>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let token = bearer::operator(&app, &request, OperatorRole::Operate)?;
    let media_type = require_content_type(&request, &[CSV, NDJSON])?;
    let limits = &app.server.operator;
    // No row is longer, so no sound file is larger; and a file of blank lines ends as well.
    let bytes_max = limits.import_rows_max.saturating_mul(limits.import_line_max_bytes as u64).max(1 << 20);
    let bound = "operator.import_rows_max rows of operator.import_line_max_bytes";
    let mut body = Body::new(&request, payload, bytes_max, bound)?;
    let format = Format::new(media_type, limits.import_line_max_bytes);
    let mut import = Import { limits, format, writing: Writing::new(&app), tally: Tally::default() };
    let mut has_text = false;
    loop {
        let received = tokio::time::timeout(limits.http.request_timeout, body.next()).await;
        let received = received.map_err(|_| too_slow(limits.http.request_timeout)).and_then(|received| received);
        // What was read before a problem is on the list.
        let Some(bytes) = import.or_write(received).await? else { break };
        has_text |= !bytes.trim_ascii().is_empty();
        import.format.push(&bytes);
        import.take_rows().await?;
    }
    import.format.end();
    import.take_rows().await?;
    import.writing.finish(&mut import.tally).await?;
    let outcome = import.tally.into_outcome();
    if outcome.rows == 0 && has_text {
        return Err(no_rows(import.format.has_header()));
    }
    tracing::info!(
        operator = token.name,
        rows = outcome.rows,
        new = outcome.new,
        renewed = outcome.renewed,
        rejected = outcome.rejected,
        "allow-list imported"
    );
    Ok(HttpResponse::Ok().json(outcome))
}

fn no_rows(has_header: bool) -> Problem {
    let detail = if has_header {
        "the file has a header and not a single row after it, so nothing was imported"
    } else {
        "the file has not a single row, so nothing was imported"
    };
    Problem::bad_request(Code::NoRows, detail)
}

impl Import<'_> {
    async fn take_rows(&mut self) -> Result<(), Problem> {
        let (rows_max, bytes_max) = (self.limits.import_rows_max, self.limits.import_line_max_bytes);
        loop {
            let next = self.format.next(bytes_max);
            let Some((line, row)) = self.or_write(next).await? else { break };
            if self.tally.0.rows == rows_max {
                let detail = format!(
                    "the file has more than {rows_max} rows (operator.import_rows_max); those before are on the list"
                );
                return self.or_write(Err(too_large(Code::TooManyLines, detail))).await;
            }
            self.tally.0.rows += 1;
            match row {
                Ok(row) => self.writing.add(line, row, &mut self.tally).await?,
                Err(problem) => self.tally.reject(line, &problem),
            }
        }
        let (bytes, line) = self.format.incomplete();
        if bytes > bytes_max.max(UNENDED_BYTES_MAX) {
            let detail = format!(
                "the row that begins in line {line} exceeds {bytes_max} bytes ({LINE_BOUND}); if it is CSV, look for a quote (\") that \
                 is never closed. Those before are on the list"
            );
            return self.or_write(Err(too_large(Code::LineTooLong, detail))).await;
        }
        Ok(())
    }

    /// Hands on `outcome`; before a problem, what was read is written.
    async fn or_write<T>(&mut self, outcome: Result<T, Problem>) -> Result<T, Problem> {
        if outcome.is_err() {
            self.writing.finish(&mut self.tally).await?;
        }
        outcome
    }
}

type Outcomes = Result<Vec<Imported>, StoreError>;

/// Rows that were read, and the chunk before them, which is written meanwhile. One chunk follows the other, so what is on the list is
/// always a beginning of the file.
struct Writing<'a> {
    app: &'a App,
    chunk: Vec<(u64, ImportRow)>,
    /// Its lines, and what becomes of them.
    under_way: Option<(Vec<u64>, JoinHandle<Outcomes>)>,
}

impl<'a> Writing<'a> {
    fn new(app: &'a App) -> Self {
        Self { app, chunk: Vec::new(), under_way: None }
    }

    /// Adds a row of the file's line `line`.
    async fn add(&mut self, line: u64, row: ImportRow, tally: &mut Tally) -> Result<(), Problem> {
        self.chunk.push((line, row));
        if self.chunk.len() < CHUNK_ROWS {
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

    /// Writes what is left; all rows that were added are on the list then.
    async fn finish(&mut self, tally: &mut Tally) -> Result<(), Problem> {
        self.settle(tally).await?;
        let (lines, rows): (Vec<u64>, Vec<ImportRow>) = self.chunk.drain(..).unzip();
        if !rows.is_empty() {
            tally.count(lines, self.app.gateway.import(rows).await?);
        }
        Ok(())
    }
}

fn too_large(code: Code, detail: String) -> Problem {
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, code, detail)
}
