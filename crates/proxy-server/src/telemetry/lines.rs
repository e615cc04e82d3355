//! How a line is written: its own fields and those of the spans around it, on one level.
//!
//! Invariants:
//! - One event is one line: whatever a value holds, no line break and no control character leaves unescaped.
//! - A later value of a field replaces the earlier one; the event's own replaces a span's.

use std::fmt;

use serde_json::{Map, Number, Value};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// Fields that hold a list, written by [`list`](super::list).
const LISTS: [&str; 4] = ["instances", "problems", "restart_needed", "warnings"];

/// Fields of each line that are written first, and so cannot be anything else.
const HEAD: [&str; 3] = ["timestamp", "level", "message"];

/// Gathers fields, by name, in the order in which they came. They are few: finding one by looking at all is cheapest, and every request
/// pays for it.
struct Fields<'m>(&'m mut Vec<(&'static str, Value)>);

impl Fields<'_> {
    fn put(&mut self, field: &Field, value: Value) {
        // What came from the `log` facade says where in its source it was written; nobody asked.
        if field.name().starts_with("log.") {
            return;
        }
        let name = field.name().trim_start_matches("r#");
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, earlier)) => *earlier = value,
            None => self.0.push((name, value)),
        }
    }
}

impl Visit for Fields<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        // Thousandths are more than anybody reads, also of seconds.
        let rounded = Number::from_f64((value * 1000.0).round() / 1000.0);
        self.put(field, rounded.map_or_else(|| Value::from(value.to_string()), Value::Number));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let list = LISTS.contains(&field.name()).then(|| serde_json::from_str(value).ok()).flatten();
        self.put(field, list.unwrap_or_else(|| value.into()));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field, value.to_string().into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }
}

/// What a span has recorded so far.
struct Recorded(Vec<(&'static str, Value)>);

/// Keeps the fields of every span, for the lines written in it.
pub(super) struct SpanFields;

impl<S: Subscriber + for<'s> LookupSpan<'s>> Layer<S> for SpanFields {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        // Some are left empty at first.
        let mut fields = Vec::with_capacity(attributes.fields().len());
        attributes.record(&mut Fields(&mut fields));
        span.extensions_mut().insert(Recorded(fields));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(Recorded(fields)) = span.extensions_mut().get_mut() {
            values.record(&mut Fields(fields));
        }
    }
}

/// Keeps the layer that writes lines from formatting spans: [`SpanFields`] has what is needed of them.
pub(super) struct NoText;

impl<'w> FormatFields<'w> for NoText {
    fn format_fields<R: RecordFields>(&self, _writer: Writer<'w>, _fields: R) -> fmt::Result {
        Ok(())
    }
}

/// Writes lines.
pub(super) struct Lines {
    /// One JSON object each, else for people.
    pub(super) json: bool,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'s> LookupSpan<'s>,
    N: for<'w> FormatFields<'w> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Map::new();
        let mut add = |more: &[(&str, Value)]| {
            fields.extend(more.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        };
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(Recorded(recorded)) = span.extensions().get() {
                add(recorded);
            }
        }
        let mut own = Vec::new();
        event.record(&mut Fields(&mut own));
        add(&own);
        let message = fields.remove("message").unwrap_or_else(|| "".into());
        fields.retain(|name, _| !HEAD.contains(&name.as_str()));
        let (time, level) = (jiff::Timestamp::now(), *event.metadata().level());
        if self.json {
            write!(writer, "{{\"timestamp\":\"{time:.6}\",\"level\":\"{level}\",\"message\":{message}")?;
            for (name, value) in &fields {
                write!(writer, ",{}:{value}", Value::from(name.as_str()))?;
            }
            return writeln!(writer, "}}");
        }
        write_level(&mut writer, &format!("{time:.6}"), level)?;
        write_text(&mut writer, message.as_str().unwrap_or_default())?;
        for (name, value) in &fields {
            write!(writer, " {name}=")?;
            match value.as_str().filter(|text| !text.is_empty() && text.chars().all(is_plain)) {
                Some(text) => writer.write_str(text)?,
                None => write_text(&mut writer, &value.to_string())?,
            }
        }
        writeln!(writer)
    }
}

fn is_plain(character: char) -> bool {
    !character.is_whitespace() && !character.is_control() && !matches!(character, '"' | '=' | '\\')
}

fn write_level(writer: &mut Writer<'_>, time: &str, level: Level) -> fmt::Result {
    if !writer.has_ansi_escapes() {
        return write!(writer, "{time} {level:>5} ");
    }
    let colour = match level {
        Level::ERROR => 31,
        Level::WARN => 33,
        Level::INFO => 32,
        Level::DEBUG => 34,
        Level::TRACE => 35,
    };
    write!(writer, "\u{1b}[2m{time}\u{1b}[0m \u{1b}[{colour}m{level:>5}\u{1b}[0m ")
}

/// Text for a terminal: it cannot break the line, nor control the terminal.
fn write_text(writer: &mut Writer<'_>, text: &str) -> fmt::Result {
    text.chars().try_for_each(|character| {
        if character.is_control() {
            write!(writer, "{}", character.escape_default())
        } else {
            writer.write_char(character)
        }
    })
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing::field::Empty;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(json: bool, log: impl FnOnce()) -> String {
        let written = Written::default();
        let writer = written.clone();
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .fmt_fields(NoText)
            .event_format(Lines { json });
        tracing::subscriber::with_default(tracing_subscriber::registry().with(SpanFields).with(lines), log);
        let bytes = written.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    fn some_line() {
        let outer = tracing::error_span!("request", request_id = "r-1", instance = Empty);
        let _outer = outer.enter();
        let inner = tracing::error_span!("registration", registration_id = "sn-1", tracking_id = Empty);
        let _inner = inner.enter();
        outer.record("instance", "eu-1");
        inner.record("tracking_id", "first");
        inner.record("tracking_id", "second");
        let problems = crate::telemetry::list(["one", "t\"wo"]);
        tracing::warn!(problems, wait_seconds = 0.888_925_254_344_940_2_f64, evil = "a\nb\u{1b}[31m", "two words");
    }

    #[test]
    fn a_json_line_has_the_fields_of_its_spans_lists_as_arrays_and_rounded_numbers() {
        let text = written(true, some_line);
        assert_eq!(text.lines().count(), 1, "{text}");
        let mut line: Value = serde_json::from_str(&text).unwrap();
        let time = line.as_object_mut().unwrap().remove("timestamp").unwrap();
        assert!(time.as_str().unwrap().parse::<jiff::Timestamp>().is_ok(), "{time}");
        let expected = serde_json::json!({
            "level": "WARN", "message": "two words", "request_id": "r-1", "instance": "eu-1", "registration_id": "sn-1",
            "tracking_id": "second", "problems": ["one", "t\"wo"], "wait_seconds": 0.889, "evil": "a\nb\u{1b}[31m",
        });
        assert_eq!(line, expected);
    }

    #[test]
    fn a_line_for_people_is_one_line_and_controls_no_terminal() {
        let text = written(false, some_line);
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
        assert!(text.contains("  WARN two words evil=") && text.contains(" instance=eu-1 "), "{text}");
        assert!(text.contains(" wait_seconds=0.889"), "{text}");
    }
}
