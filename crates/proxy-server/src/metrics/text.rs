//! The two text formats in which Prometheus and its relatives read metrics, and the choice between them.

/// A text format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextFormat {
    /// Prometheus' own, version 0.0.4: for whoever does not ask for the other.
    Prometheus,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl TextFormat {
    /// The format that an `Accept` header (RFC 9110) prefers. OpenMetrics has to be asked for by name.
    #[must_use]
    pub fn preferred(accept: &str) -> Self {
        let weight_of = |wanted: &str| {
            let named = accept.split(',').filter_map(|range| {
                let mut parts = range.split(';').map(str::trim);
                let is_it = parts.next()?.eq_ignore_ascii_case(wanted);
                let weight = parts.filter_map(|parameter| parameter.split_once('=')).find_map(|(name, value)| {
                    name.eq_ignore_ascii_case("q").then(|| value.parse::<f32>().unwrap_or(0.0))
                });
                is_it.then_some(weight.unwrap_or(1.0))
            });
            named.fold(0.0, f32::max)
        };
        let open = weight_of("application/openmetrics-text");
        if open > 0.0 && open >= weight_of("text/plain") { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// Its media type, with the parameters that scrapers look for.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// `open`, which is OpenMetrics, in this format.
    #[must_use]
    pub fn of_open_metrics(self, open: String) -> String {
        match self {
            Self::OpenMetrics => open,
            Self::Prometheus => prometheus(&open),
        }
    }
}

/// The same metrics in Prometheus' format. There a counter is declared by the name of its samples, units are not declared, and
/// nothing marks the end.
fn prometheus(open: &str) -> String {
    let counters: std::collections::BTreeSet<&str> = open
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ").and_then(|declared| declared.strip_suffix(" counter")))
        .collect();
    let mut text = String::with_capacity(open.len());
    for line in open.lines() {
        let declared = ["# HELP ", "# TYPE "].iter().find_map(|keyword| Some((*keyword, line.strip_prefix(keyword)?)));
        match declared.and_then(|(keyword, rest)| Some((keyword, rest.split_once(' ')?))) {
            Some((keyword, (name, rest))) => {
                let suffix = if counters.contains(name) { "_total" } else { "" };
                let rest = if (keyword, rest) == ("# TYPE ", "unknown") { "untyped" } else { rest };
                text.extend([keyword, name, suffix, " ", rest, "\n"]);
            }
            None if line.starts_with('#') => {}
            None => text.extend([line, "\n"]),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_metrics_has_to_be_asked_for_by_name_and_not_be_worth_less() {
        for (accept, preferred) in [
            ("", TextFormat::Prometheus),
            ("*/*", TextFormat::Prometheus),
            ("text/plain;version=0.0.4", TextFormat::Prometheus),
            ("application/openmetrics-text", TextFormat::OpenMetrics),
            ("Application/OpenMetrics-Text; version=1.0.0", TextFormat::OpenMetrics),
            ("application/openmetrics-text;q=0", TextFormat::Prometheus),
            (
                "application/openmetrics-text;version=1.0.0;q=0.3, text/plain;version=0.0.4;q=0.6",
                TextFormat::Prometheus,
            ),
            (
                "application/openmetrics-text;version=1.0.0;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,\
                 text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                TextFormat::OpenMetrics,
            ),
        ] {
            assert_eq!(TextFormat::preferred(accept), preferred, "{accept}");
        }
    }

    #[test]
    fn counters_are_declared_by_the_name_of_their_samples() {
        let open = "# HELP a Help of a.\n# TYPE a counter\na_total{x=\"# TYPE\"} 1\n# HELP b_seconds Of b.\n\
                    # TYPE b_seconds gauge\n# UNIT b_seconds seconds\nb_seconds 2.5\n# TYPE c unknown\nc 1\n# EOF\n";
        let expected = "# HELP a_total Help of a.\n# TYPE a_total counter\na_total{x=\"# TYPE\"} 1\n\
                        # HELP b_seconds Of b.\n# TYPE b_seconds gauge\nb_seconds 2.5\n# TYPE c untyped\nc 1\n";
        assert_eq!(TextFormat::Prometheus.of_open_metrics(open.to_owned()), expected);
        assert_eq!(TextFormat::OpenMetrics.of_open_metrics(open.to_owned()), open);
    }
}
