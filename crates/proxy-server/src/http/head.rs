//! Where the head of a request ends, found without parsing it.

/// How far the head of a request has come. Lines end with a line feed, which may follow a carriage return; a head ends with an empty
/// line. Empty lines in front of it are nothing.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Head {
    begun: bool,
    in_line: bool,
}

impl Head {
    /// A turn between requests: all of the bytes, but no more than up to the end of this head; and whether it ends in them.
    pub(super) fn turn(&mut self, bytes: &[u8]) -> (usize, bool) {
        for (index, byte) in bytes.iter().enumerate() {
            match byte {
                b'\r' => {}
                b'\n' if self.begun && !self.in_line => {
                    *self = Self::default();
                    // Further empty lines take no turns of their own.
                    let rest = &bytes[index + 1..];
                    let empty = rest.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
                    return (index + 1 + empty, true);
                }
                b'\n' => self.in_line = false,
                _ => *self = Self { begun: true, in_line: true },
            }
        }
        (bytes.len(), false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_between_requests_is_one_head_at_most() {
        for (bytes, expected) in [
            ("", (0, false)),
            ("GET / HTTP/1.1\r\nHost", (20, false)),
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", (27, true)),
            ("POST / HTTP/1.1\r\nHost: a\r\n\r\n{\"a\":1}", (28, true)),
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", (27, true)),
            ("GET / HTTP/1.1\nHost: a\n\nGET / HTTP/1.1\nHost: a\n\n", (24, true)),
            ("GET / HTTP/1.1\n\n\r\n\nG", (19, true)),
            ("\r\n\r\n\nGET / HTTP/1.1\n\nG", (21, true)),
            ("\n\n\n\n\r\n\r\n\r\nG", (11, false)),
        ] {
            assert_eq!(Head::default().turn(bytes.as_bytes()), expected, "{bytes:?}");
        }
    }

    #[test]
    fn a_head_ends_where_it_ends_however_it_is_cut() {
        let both = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n";
        for cut in 1..27 {
            let mut head = Head::default();
            assert_eq!(head.turn(&both[..cut]), (cut, false), "cut at {cut}");
            assert_eq!(head.turn(&both[cut..]), (27 - cut, true), "cut at {cut}");
        }
    }
}
