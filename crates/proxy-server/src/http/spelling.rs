//! Header names in their usual spelling also where actix answers by itself.
//!
//! What it cannot read as a request it refuses (400, 431) before anything of ours sees it, with names in lower case. Only what it writes
//! tells, so it is mended there. Spelling changes no length.

/// How far a head has been written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Written {
    /// In the status line.
    #[default]
    Status,
    /// At the beginning of a line.
    Line,
    /// In a name, at the beginning of a word of it or behind that.
    Name { at_word: bool },
    /// In a value.
    Value,
    /// The head is complete.
    Head,
}

impl Written {
    /// Spells the names in what comes next: `Content-Length`.
    pub(super) fn spell(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            *self = match (*self, *byte) {
                (Self::Head, _) | (Self::Line, b'\n') => Self::Head,
                (Self::Line, b'\r') => Self::Line,
                (Self::Status | Self::Value, b'\n') => Self::Line,
                (Self::Status | Self::Value, _) => *self,
                (Self::Name { .. }, b':') => Self::Value,
                (Self::Name { .. }, b'-') => Self::Name { at_word: true },
                (Self::Line | Self::Name { at_word: true }, _) => {
                    byte.make_ascii_uppercase();
                    Self::Name { at_word: false }
                }
                (Self::Name { at_word: false }, _) => *self,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_spelt_and_nothing_else_however_it_is_cut() {
        let text = "HTTP/1.1 400 Bad Request\r\ncontent-length: 3\r\ndate: thu, x-y: z\r\n\r\na-b: c\r\n";
        let spelt = "HTTP/1.1 400 Bad Request\r\nContent-Length: 3\r\nDate: thu, x-y: z\r\n\r\na-b: c\r\n";
        for cut in 0..text.len() {
            let mut bytes = text.as_bytes().to_vec();
            let mut written = Written::default();
            let (first, second) = bytes.split_at_mut(cut);
            written.spell(first);
            written.spell(second);
            assert_eq!(String::from_utf8(bytes).unwrap(), spelt, "cut at {cut}");
        }
    }
}
