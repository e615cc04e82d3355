//! What a misspelt word was probably meant to be.

/// `; did you mean …?`, or nothing.
pub(crate) fn did_you_mean<'a>(text: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let near = known.into_iter().map(|word| (distance(text, word), word)).min();
    match near {
        Some((away, word)) if away <= (text.len().max(word.len()) / 3).max(1) || word.starts_with(text) => {
            format!("; did you mean `{word}`?")
        }
        _ => String::new(),
    }
}

/// Levenshtein's distance, in bytes.
fn distance(left: &str, right: &str) -> usize {
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (line, from) in left.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = line + 1;
        for (column, to) in right.bytes().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[right.len()]
}
