//! What a source file imports, read from its text: as much of Rust as it takes to find every path to another file of the crate.

/// A path as it stands in a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Import {
    /// The modules within the file that it stands in.
    pub(super) inside: Vec<String>,
    /// Its segments.
    pub(super) path: Vec<String>,
    /// The name that a `use` gives to it; `None` of a path in an expression, and of everything in a module.
    pub(super) name: Option<String>,
}

/// What a file says about others.
#[derive(Debug, Default)]
pub(super) struct Source {
    pub(super) imports: Vec<Import>,
    /// Modules in files of their own that are for tests only.
    pub(super) test_modules: Vec<String>,
}

impl Source {
    /// Reads a file. What is for tests only is left out.
    pub(super) fn read(text: &str) -> Self {
        let mut reader = Reader { tokens: tokens(text), at: 0, depth: 0, inside: Vec::new(), source: Self::default() };
        while reader.at < reader.tokens.len() {
            reader.step();
        }
        reader.source
    }
}

const TEST_ATTRIBUTE: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];

struct Reader {
    tokens: Vec<String>,
    at: usize,
    /// Braces that are open.
    depth: usize,
    /// The modules that are open, each with its depth.
    inside: Vec<(String, usize)>,
    source: Source,
}

impl Reader {
    /// The token so far ahead; empty behind the last one.
    fn token(&self, ahead: usize) -> &str {
        self.tokens.get(self.at + ahead).map_or("", String::as_str)
    }

    fn step(&mut self) {
        match self.token(0) {
            "#" if TEST_ATTRIBUTE.iter().enumerate().all(|(ahead, token)| self.token(ahead) == *token) => {
                self.skip_test_item();
            }
            "use" if self.token(1) != "<" => {
                self.at += 1;
                self.read_tree(Vec::new());
            }
            "mod" if self.token(2) == "{" => {
                self.depth += 1;
                let module = (self.token(1).to_owned(), self.depth);
                self.inside.push(module);
                self.at += 3;
            }
            "crate" | "self" | "super" if self.token(1) == "::" => self.read_path(),
            "{" => {
                self.depth += 1;
                self.at += 1;
            }
            "}" => {
                self.inside.pop_if(|(_, depth)| *depth == self.depth);
                self.depth = self.depth.saturating_sub(1);
                self.at += 1;
            }
            _ => self.at += 1,
        }
    }

    fn note(&mut self, name: Option<String>, path: Vec<String>) {
        let inside = self.inside.iter().map(|(module, _)| module.clone()).collect();
        self.source.imports.push(Import { inside, path, name });
    }

    fn read_path(&mut self) {
        let mut path = vec![self.token(0).to_owned()];
        self.at += 1;
        while self.token(0) == "::" && self.token(1).starts_with(is_of_word) {
            path.push(self.token(1).to_owned());
            self.at += 2;
        }
        self.note(None, path);
    }

    /// What stands behind `use`, or behind `path` in the braces of it.
    fn read_tree(&mut self, mut path: Vec<String>) {
        loop {
            match self.token(0) {
                "::" => self.at += 1,
                "{" => return self.read_braces(&path),
                "*" => {
                    self.at += 1;
                    return self.note(None, path);
                }
                ";" | "," | "}" | "" => return,
                word => {
                    let word = word.to_owned();
                    self.at += 1;
                    // The module itself, in braces.
                    if word != "self" || path.is_empty() {
                        path.push(word);
                    }
                    if self.token(0) != "::" {
                        let name = self.read_name(&path);
                        return self.note(name, path);
                    }
                }
            }
        }
    }

    fn read_braces(&mut self, path: &[String]) {
        self.at += 1;
        while !matches!(self.token(0), "}" | ";" | "") {
            self.read_tree(path.to_vec());
            if self.token(0) == "," {
                self.at += 1;
            }
        }
        self.at += 1;
    }

    fn read_name(&mut self, path: &[String]) -> Option<String> {
        if self.token(0) != "as" {
            return path.last().cloned();
        }
        let name = self.token(1).to_owned();
        self.at += 2;
        Some(name)
    }

    fn skip_test_item(&mut self) {
        self.at += TEST_ATTRIBUTE.len();
        while self.token(0) == "#" {
            self.skip_group("[", "]");
        }
        if self.token(0) == "mod" && self.token(2) == ";" {
            let module = self.token(1).to_owned();
            self.source.test_modules.push(module);
        }
        let is_use = self.token(0) == "use";
        while !matches!(self.token(0), ";" | "") {
            if self.token(0) == "{" {
                self.skip_group("{", "}");
                if !is_use {
                    return;
                }
            } else {
                self.at += 1;
            }
        }
        self.at += 1;
    }

    /// Skips to behind the next group in such brackets.
    fn skip_group(&mut self, open: &str, close: &str) {
        let mut depth = 0_usize;
        while self.at < self.tokens.len() {
            let (opens, closes) = (self.token(0) == open, self.token(0) == close);
            self.at += 1;
            depth = (depth + usize::from(opens)).saturating_sub(usize::from(closes));
            if closes && depth == 0 {
                return;
            }
        }
    }
}

/// Words and signs, without comments, texts and characters.
pub(super) fn tokens(text: &str) -> Vec<String> {
    let (mut tokens, mut rest) = (Vec::new(), text);
    while let Some(first) = rest.chars().next() {
        let (length, is_token) = if rest.starts_with("//") {
            (rest.find('\n').unwrap_or(rest.len()), false)
        } else if rest.starts_with("/*") {
            (comment_length(rest), false)
        } else if first == '"' {
            (quoted_length(rest), false)
        } else if first == '\'' {
            (apostrophe_length(rest), false)
        } else if is_of_word(first) {
            let word = rest.find(|character: char| !is_of_word(character)).unwrap_or(rest.len());
            raw_text_length(rest, word).map_or((word, true), |length| (length, false))
        } else if rest.starts_with("::") {
            (2, true)
        } else {
            (first.len_utf8(), !first.is_whitespace())
        };
        if is_token {
            tokens.push(rest[..length].to_owned());
        }
        rest = &rest[length..];
    }
    tokens
}

fn is_of_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// Of a comment `/* … */`, which may hold others.
fn comment_length(text: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(first) = text[at..].chars().next() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += first.len_utf8();
        }
    }
    at
}

/// Of a text in quotation marks.
fn quoted_length(text: &str) -> usize {
    let mut is_escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Of `r"…"` or `r#"…"#`, whose first word has this length; `None` if it is something else.
fn raw_text_length(text: &str, word: usize) -> Option<usize> {
    let hashes = text[word..].chars().take_while(|character| *character == '#').count();
    let begin = word + hashes + 1;
    if !matches!(&text[..word], "r" | "br" | "cr") || !text[word + hashes..].starts_with('"') {
        return None;
    }
    let end = format!("\"{}", "#".repeat(hashes));
    Some(text[begin..].find(&end).map_or(text.len(), |at| begin + at + end.len()))
}

/// Of a character in apostrophes; of a lifetime, the apostrophe alone.
fn apostrophe_length(text: &str) -> usize {
    let mut inside = text.chars().skip(1);
    match (inside.next(), inside.next()) {
        (Some('\\'), Some(escaped)) => {
            let behind = 2 + escaped.len_utf8();
            text[behind..].find('\'').map_or(text.len(), |at| behind + at + 1)
        }
        (Some(character), Some('\'')) => character.len_utf8() + 2,
        _ => 1,
    }
}
