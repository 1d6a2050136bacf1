//! Text from the guest and from helpers, made safe to show: escaped and cut.

/// Escapes control characters (terminal escape sequences among them) and what is not UTF-8; keeps tab and newline.
pub fn escape(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\n' | '\t' => out.push(character),
                '\r' => {}
                // Bidirectional and line-separator controls rearrange what a person reads.
                '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                    out.extend(character.escape_unicode())
                }
                _ if character.is_control() => push_hex(&mut out, character as u32 as u8),
                _ => out.push(character),
            }
        }
        for byte in chunk.invalid() {
            push_hex(&mut out, *byte);
        }
    }
    out
}

fn push_hex(out: &mut String, byte: u8) {
    out.push_str("\\x");
    for digit in [byte >> 4, byte & 15] {
        out.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
    }
}

/// The last `max_lines` lines of `text`, the final newline dropped.
pub fn last_lines(text: &[u8], max_lines: usize) -> &[u8] {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    if max_lines == 0 {
        return &[];
    }
    let mut starts = text.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    let start = starts.nth(max_lines - 1).unwrap_or(0);
    &text[start..]
}

/// The first `max_bytes` bytes of `text`, cut at a character.
pub fn cut(text: &str, max_bytes: usize) -> &str {
    let mut end = max_bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// The last `max_bytes` bytes of `text`, cut at a character.
pub fn cut_front(text: &str, max_bytes: usize) -> &str {
    let mut start = text.len().saturating_sub(max_bytes);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_what_a_terminal_would_obey() {
        assert_eq!(escape(b"a\x1b[31mb\r\n\xffc\t\x00"), "a\\x1b[31mb\n\\xffc\t\\x00");
        assert_eq!(escape("é\u{202e}x".as_bytes()), "é\\u{202e}x");
    }

    #[test]
    fn takes_last_lines() {
        assert_eq!(last_lines(b"a\nb\nc\n", 2), b"b\nc");
        assert_eq!(last_lines(b"a\nb", 9), b"a\nb");
        assert_eq!(last_lines(b"a\n", 0), b"");
        assert_eq!((cut("aé", 2), cut("aé", 9)), ("a", "aé"));
        assert_eq!((cut_front("éa", 2), cut_front("éa", 9)), ("a", "éa"));
    }
}
