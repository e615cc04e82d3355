use super::*;

/// Every key there is, by its path with `NAME` for what the operator names.
fn known() -> BTreeMap<String, super::super::reader::KeyInfo> {
    let directory = Directory::new();
    let document = Document::parse(&sample(), directory.path(), FilesRead::default());
    draft(&document);
    document.into_report().known
}

#[test]
fn the_sample_passes_with_nothing_to_warn_about() {
    let loaded = Directory::new().load(&sample(), &[]).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(loaded.warnings, []);
    assert_eq!(loaded.settings.instances.len(), 2);
    assert_eq!(loaded.server.device.http.tls.unwrap().cert.file_name().unwrap(), "device-tls.crt");
}

/// The key paths that `text` shows, commented out or not.
fn shown_in(text: &str) -> BTreeSet<String> {
    let mut section = String::new();
    let mut shown = BTreeSet::new();
    for line in text.lines() {
        if line.starts_with('[') {
            section = line.trim_matches(['[', ']']).to_owned();
            for table in ["instances.", "enrollments.", "tenants."] {
                if section.starts_with(table) {
                    section = format!("{table}NAME");
                }
            }
        } else if let Some((key, _)) = line.trim_start_matches("# ").split_once(" = ") {
            shown.insert(if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") });
        }
    }
    shown
}

#[test]
fn every_key_is_in_the_sample() {
    let shown = shown_in(&sample());
    let missing: Vec<String> = known().into_keys().filter(|key| !shown.contains(key)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn the_sample_shows_the_defaults() {
    // What the sample sets to something else on purpose.
    let differing = [
        "backend.tls",
        "operator.tls",
        "device.tls",
        "default_enrollment",
        "instances.NAME.quota_per_minute",
        "instances.NAME.burst",
    ];
    let text = sample();
    for (key, info) in
        known().into_iter().filter(|(key, info)| !info.default.is_empty() && !differing.contains(&key.as_str()))
    {
        let name = key.rsplit('.').next().unwrap();
        let line = format!("{name} = {}", info.default);
        let is_rule = !key.contains("NAME") && !key.contains("tokens") && !info.kind.contains("host name");
        assert!(
            !is_rule || text.lines().any(|found| found.trim_start_matches("# ").starts_with(&line)),
            "`{line}` is not in the sample"
        );
    }
}

#[test]
fn every_key_is_in_the_manual_with_its_default_and_bounds() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/CONFIGURATION.md");
    let manual = std::fs::read_to_string(path).unwrap();
    for (key, info) in known() {
        let row = manual.lines().find(|line| line.starts_with(&format!("| `{key}` |")));
        let row = row.unwrap_or_else(|| panic!("{key} is missing; {info:?}"));
        for fact in [info.kind, &info.default, &info.bounds] {
            assert!(row.contains(fact), "the row of {key} does not say {fact}");
        }
        let takes_effect = if is_fixed(&key) && !key.contains(".tokens.") { "| restart |" } else { "| live |" };
        assert!(row.contains(takes_effect), "the row of {key} does not say {takes_effect}");
    }
}
