//! The few JSON forms of the keeper: strict reading of small files that root wrote, and writing of journal lines and frames.
//! Longer than other files with its tests: what is read here must be what is written here.
use std::fmt::Write;

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    /// Only integers occur in the keeper's files; a fraction or an exponent is refused.
    Integer(i64),
    String(String),
    Array(Vec<Value>),
    /// In the file's order; a name that occurs twice is refused.
    Object(Vec<(String, Value)>),
}

impl std::fmt::Display for Value {
    fn fmt(&self, out: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Value::Null => out.write_str("null"),
            Value::Bool(value) => write!(out, "{value}"),
            Value::Integer(value) => write!(out, "{value}"),
            Value::String(text) => {
                let mut quoted = String::new();
                quote(&mut quoted, text);
                out.write_str(&quoted)
            }
            Value::Array(items) => {
                let items: Vec<String> = items.iter().map(Value::to_string).collect();
                write!(out, "[{}]", items.join(","))
            }
            Value::Object(members) => {
                let text = members.iter().fold(Writer::object(), |text, (name, value)| text.raw(name, value)).end();
                out.write_str(&text)
            }
        }
    }
}

const MAX_DEPTH: usize = 8;
/// Inside of a member that is not looked into.
const MAX_SKIPPED_DEPTH: usize = 10_000;

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
}

/// Parses one document (RFC 8259). The error says what was expected and at which byte.
pub fn parse(text: &str) -> Result<Value, String> {
    let mut parser = Parser { text: text.as_bytes(), at: 0 };
    let value = parser.value(0)?;
    parser.space();
    if parser.at < parser.text.len() {
        return parser.fail("the end of the document");
    }
    Ok(value)
}

/// One member of the document's object, without a look into the others: those may hold numbers and nesting of any kind. Of
/// two members with the name the last counts.
pub fn member(text: &str, name: &str) -> Result<Option<Value>, String> {
    let mut parser = Parser { text: text.as_bytes(), at: 0 };
    parser.space();
    if !parser.take("{") {
        return parser.fail("an object");
    }
    let mut found = None;
    parser.space();
    if parser.take("}") {
        return Ok(found);
    }
    loop {
        parser.space();
        if parser.text.get(parser.at) != Some(&b'"') {
            return parser.fail("a member name");
        }
        let wanted = parser.string()? == name;
        parser.space();
        if !parser.take(":") {
            return parser.fail("':'");
        }
        match wanted {
            true => found = Some(parser.value(1)?),
            false => parser.skip()?,
        }
        parser.space();
        if parser.take("}") {
            return Ok(found);
        }
        if !parser.take(",") {
            return parser.fail("',' or '}'");
        }
    }
}

impl Parser<'_> {
    /// Passes over one value; only strings and brackets are understood, because they alone tell where it ends.
    fn skip(&mut self) -> Result<(), String> {
        let mut closers = Vec::new();
        self.space();
        let start = self.at;
        while let Some(&byte) = self.text.get(self.at) {
            match byte {
                b'"' => {
                    self.string()?;
                    continue;
                }
                b'{' => closers.push(b'}'),
                b'[' => closers.push(b']'),
                b',' | b'}' | b']' if closers.is_empty() => {
                    return if self.at > start { Ok(()) } else { self.fail("a value") };
                }
                b'}' | b']' if closers.pop() != Some(byte) => return self.fail("the other bracket"),
                _ => {}
            }
            if closers.len() > MAX_SKIPPED_DEPTH {
                return self.fail("less nesting");
            }
            self.at += 1;
        }
        self.fail("the rest of the document")
    }

    fn fail<T>(&self, expected: &str) -> Result<T, String> {
        Err(format!("expected {expected} at byte {}", self.at))
    }

    fn space(&mut self) {
        while matches!(self.text.get(self.at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn take(&mut self, word: &str) -> bool {
        let found = self.text[self.at..].starts_with(word.as_bytes());
        if found {
            self.at += word.len();
        }
        found
    }

    fn value(&mut self, depth: usize) -> Result<Value, String> {
        if depth > MAX_DEPTH {
            return self.fail("less nesting");
        }
        self.space();
        match self.text.get(self.at) {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(b'"') => self.string().map(Value::String),
            Some(b'-' | b'0'..=b'9') => self.integer(),
            _ if self.take("true") => Ok(Value::Bool(true)),
            _ if self.take("false") => Ok(Value::Bool(false)),
            _ if self.take("null") => Ok(Value::Null),
            _ => self.fail("a value"),
        }
    }

    fn object(&mut self, depth: usize) -> Result<Value, String> {
        self.at += 1;
        let mut members: Vec<(String, Value)> = Vec::new();
        self.space();
        if self.take("}") {
            return Ok(Value::Object(members));
        }
        loop {
            self.space();
            if self.text.get(self.at) != Some(&b'"') {
                return self.fail("a member name");
            }
            let name = self.string()?;
            if members.iter().any(|(other, _)| *other == name) {
                return self.fail("each member once");
            }
            self.space();
            if !self.take(":") {
                return self.fail("':'");
            }
            let value = self.value(depth + 1)?;
            members.push((name, value));
            self.space();
            if self.take("}") {
                return Ok(Value::Object(members));
            }
            if !self.take(",") {
                return self.fail("',' or '}'");
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<Value, String> {
        self.at += 1;
        let mut items = Vec::new();
        self.space();
        if self.take("]") {
            return Ok(Value::Array(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            self.space();
            if self.take("]") {
                return Ok(Value::Array(items));
            }
            if !self.take(",") {
                return self.fail("',' or ']'");
            }
        }
    }

    fn integer(&mut self) -> Result<Value, String> {
        let start = self.at;
        self.take("-");
        let digits = self.at;
        while matches!(self.text.get(self.at), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        let leading_zero = self.text.get(digits) == Some(&b'0') && self.at - digits > 1;
        if leading_zero || matches!(self.text.get(self.at), Some(b'.' | b'e' | b'E')) {
            return self.fail("an integer");
        }
        match std::str::from_utf8(&self.text[start..self.at]).ok().and_then(|digits| digits.parse().ok()) {
            Some(number) => Ok(Value::Integer(number)),
            None => self.fail("an integer of 64 bits"),
        }
    }

    fn string(&mut self) -> Result<String, String> {
        self.at += 1;
        let mut bytes = Vec::new();
        loop {
            let Some(&byte) = self.text.get(self.at) else { return self.fail("'\"'") };
            self.at += 1;
            match byte {
                b'"' => return String::from_utf8(bytes).map_err(|_| "expected UTF-8".to_owned()),
                b'\\' => {
                    let character = self.escape()?;
                    bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                }
                0..=0x1f => return self.fail("no control character"),
                _ => bytes.push(byte),
            }
        }
    }

    fn escape(&mut self) -> Result<char, String> {
        let Some(&byte) = self.text.get(self.at) else { return self.fail("an escape") };
        self.at += 1;
        Ok(match byte {
            b'"' | b'\\' | b'/' => byte as char,
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let first = self.hex()?;
                let code = match first {
                    0xd800..=0xdbff if self.take("\\u") => match self.hex()? {
                        second @ 0xdc00..=0xdfff => 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00),
                        _ => return self.fail("a low surrogate"),
                    },
                    other => other,
                };
                match char::from_u32(code) {
                    Some(character) => character,
                    None => return self.fail("a Unicode character"),
                }
            }
            _ => return self.fail("an escape"),
        })
    }

    fn hex(&mut self) -> Result<u32, String> {
        let digits = self.text.get(self.at..self.at + 4).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit())) {
            Some(digits) => {
                self.at += 4;
                Ok(u32::from_str_radix(digits, 16).unwrap_or(0xd800))
            }
            None => self.fail("four hexadecimal digits"),
        }
    }
}

/// Writes one flat or nested object member by member, without values to build first.
pub struct Writer {
    text: String,
}

impl Writer {
    pub fn object() -> Self {
        Writer { text: "{".to_owned() }
    }

    fn name(&mut self, name: &str) {
        if !self.text.ends_with('{') {
            self.text.push(',');
        }
        quote(&mut self.text, name);
        self.text.push(':');
    }

    pub fn string(mut self, name: &str, value: &str) -> Self {
        self.name(name);
        quote(&mut self.text, value);
        self
    }

    /// A number, a truth value, or text that already is JSON.
    pub fn raw(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.name(name);
        let _ = write!(self.text, "{value}");
        self
    }

    pub fn end(mut self) -> String {
        self.text.push('}');
        self.text
    }
}

/// An array of strings.
pub fn strings(values: &[String]) -> String {
    let mut text = "[".to_owned();
    for value in values {
        if text.len() > 1 {
            text.push(',');
        }
        quote(&mut text, value);
    }
    text.push(']');
    text
}

/// Appends a JSON string; everything outside printable ASCII that could break a line or a terminal is escaped.
fn quote(out: &mut String, value: &str) {
    out.push('"');
    for character in value.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            _ if character.is_control() || matches!(character, '\u{2028}' | '\u{2029}') => {
                let _ = write!(out, "\\u{:04x}", character as u32);
            }
            _ => out.push(character),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_it_writes() {
        let text =
            Writer::object().string("a\n", "x\"\\\u{7}é\u{2028}").raw("n", -42).raw("o", Writer::object().end()).end();
        let expected = Value::Object(vec![
            ("a\n".to_owned(), Value::String("x\"\\\u{7}é\u{2028}".to_owned())),
            ("n".to_owned(), Value::Integer(-42)),
            ("o".to_owned(), Value::Object(vec![])),
        ]);
        assert_eq!(parse(&text).unwrap(), expected);
    }

    #[test]
    fn parses_surrogates_and_nesting() {
        assert_eq!(
            parse(r#"["\ud83d\ude00", [true, null]]"#).unwrap(),
            Value::Array(vec![Value::String("😀".to_owned()), Value::Array(vec![Value::Bool(true), Value::Null]),])
        );
    }

    #[test]
    fn finds_one_member_among_others_of_any_kind() {
        let text = r#" { "x" : [1.5e3, {"annotations": {"no": "]}"}}, "\"}"], "n":-0.1, "annotations": {"a":"b"}, "t":true } "#;
        let found = Value::Object(vec![("a".to_owned(), Value::String("b".to_owned()))]);
        assert_eq!(member(text, "annotations"), Ok(Some(found)));
        assert_eq!(member(text, "none"), Ok(None));
        assert_eq!(member("{}", "none"), Ok(None));
        assert_eq!(member(r#"{"a":1,"a":2}"#, "a"), Ok(Some(Value::Integer(2))));
        let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(member(&nested(5000), "b"), Ok(None));
        for bad in [
            "",
            "[]",
            "{",
            "{\"a\"",
            "{\"a\":",
            "{\"a\":}",
            "{\"a\":[}",
            "{\"a\":1",
            "{\"a\":\"x",
            "{a:1}",
            "{\"a\":1.5}",
        ] {
            assert!(member(bad, "a").is_err(), "{bad}");
        }
        assert!(member(&nested(20_000), "b").is_err());
    }

    #[test]
    fn refuses_what_is_not_json() {
        let deep = "[".repeat(20);
        for bad in [
            "",
            "{",
            "[1,]",
            "{\"a\":1,}",
            "{\"a\":1,\"a\":2}",
            "01",
            "1.5",
            "1e3",
            "\"\t\"",
            "\"\\x\"",
            "\"\\ud800\"",
            "tru",
            "1 2",
            "99999999999999999999",
            "-",
            "{a:1}",
            "\"\\u12\"",
            &deep,
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
