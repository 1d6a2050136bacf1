//! Messages of the domain name system (RFC 1035), as far as a forwarder must understand them. The guest and the servers send
//! anything: every length is checked, and a name's pointers lead backwards only.
use std::net::IpAddr;

pub const HEADER: usize = 12;
pub const A: u16 = 1;
const CNAME: u16 = 5;
pub const AAAA: u16 = 28;
const IN: u16 = 1;
const MAX_NAME: usize = 255;
/// Records of an answer that are looked at.
const MAX_RECORDS: u16 = 256;
pub const FORMAT_ERROR: u8 = 1;
pub const SERVER_FAILURE: u8 = 2;
pub const REFUSED: u8 = 5;

#[derive(Debug, PartialEq)]
pub struct Question {
    /// Small letters, without the dot at the end. What is no letter, digit, '-' or '_' is '?': no rule has that.
    pub name: String,
    pub kind: u16,
    pub is_internet: bool,
    /// Where it ends in the message.
    end: usize,
}

fn u16_at(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?))
}

/// A name, and where what follows it begins.
fn name_at(message: &[u8], start: usize) -> Option<(String, usize)> {
    let mut name = String::new();
    let (mut at, mut end, mut limit) = (start, None, start + 1);
    loop {
        let length = usize::from(*message.get(at)?);
        match length {
            0 => return Some((name, end.unwrap_or(at + 1))),
            1..=63 => {
                let label = message.get(at + 1..at + 1 + length)?;
                if !name.is_empty() {
                    name.push('.');
                }
                name.extend(label.iter().map(|byte| match byte {
                    b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => byte.to_ascii_lowercase() as char,
                    _ => '?',
                }));
                if name.len() > MAX_NAME {
                    return None;
                }
                at += 1 + length;
            }
            0xc0..=0xff => {
                let target = usize::from(u16_at(message, at)? & 0x3fff);
                end.get_or_insert(at + 2);
                // Each pointer leads before the place where the one before it led.
                if target >= limit - 1 {
                    return None;
                }
                limit = target + 1;
                at = target;
            }
            _ => return None,
        }
    }
}

fn first_question(message: &[u8]) -> Option<Question> {
    let (name, at) = name_at(message, HEADER)?;
    let (kind, class) = (u16_at(message, at)?, u16_at(message, at + 2)?);
    Some(Question { name, kind, is_internet: class == IN, end: at + 4 })
}

/// The question of a plain query. `None`: it is something else, or malformed.
pub fn question(message: &[u8]) -> Option<Question> {
    let flags = u16_at(message, 2)?;
    let is_query = flags & 0xf800 == 0 && u16_at(message, 4)? == 1 && u16_at(message, 6)? == 0;
    if is_query {
        first_question(message)
    } else {
        None
    }
}

/// The answer that says no more than this code. `None`: the query is too short for one.
pub fn refusal(query: &[u8], code: u8) -> Option<Vec<u8>> {
    let end = question(query).map_or(HEADER, |question| question.end);
    let mut answer = query.get(..end)?.to_vec();
    answer[2] = 0x80 | (query[2] & 0x79);
    answer[3] = 0x80 | (code & 15);
    let questions = if end > HEADER { 1 } else { 0 };
    answer[4..HEADER].copy_from_slice(&[0, questions, 0, 0, 0, 0, 0, 0]);
    Some(answer)
}

/// The answer with these addresses, as far as they are of the kind that was asked for.
pub fn reply(query: &[u8], question: &Question, addresses: &[IpAddr], ttl: u32) -> Option<Vec<u8>> {
    let mut answer = refusal(query, 0)?;
    let mut count: u16 = 0;
    for address in addresses {
        let data = match address {
            IpAddr::V4(address) if question.kind == A => address.octets().to_vec(),
            IpAddr::V6(address) if question.kind == AAAA => address.octets().to_vec(),
            _ => continue,
        };
        // A pointer to the question's name.
        answer.extend_from_slice(&[0xc0, HEADER as u8]);
        answer.extend_from_slice(&question.kind.to_be_bytes());
        answer.extend_from_slice(&IN.to_be_bytes());
        answer.extend_from_slice(&ttl.to_be_bytes());
        answer.extend_from_slice(&(data.len() as u16).to_be_bytes());
        answer.extend_from_slice(&data);
        count += 1;
    }
    answer[6..8].copy_from_slice(&count.to_be_bytes());
    Some(answer)
}

/// Whether a message is the answer to this query.
pub fn answers(query: &[u8], message: &[u8]) -> bool {
    let is_answer = message.len() >= HEADER && message[2] & 0x80 != 0 && message[..2] == query[..2];
    match (is_answer, first_question(query)) {
        (true, Some(question)) => first_question(message).is_some_and(|other| other == question),
        _ => false,
    }
}

/// The addresses that the answer gives for its question, other names that this one stands for followed, and how long they count.
pub fn addresses(message: &[u8]) -> Vec<(IpAddr, u32)> {
    let mut found = Vec::new();
    let Some(question) = first_question(message) else { return found };
    let mut names = vec![question.name];
    let count = u16_at(message, 6).unwrap_or(0).min(MAX_RECORDS);
    let mut at = question.end;
    for _ in 0..count {
        let Some((owner, fixed)) = name_at(message, at) else { break };
        let (Some(kind), Some(class), Some(length)) =
            (u16_at(message, fixed), u16_at(message, fixed + 2), u16_at(message, fixed + 8))
        else {
            break;
        };
        let start = fixed + 10;
        let Some(data) = message.get(start..start + usize::from(length)) else { break };
        let ttl =
            message.get(fixed + 4..fixed + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_be_bytes);
        if class == IN && names.contains(&owner) {
            match kind {
                A => found.extend(<[u8; 4]>::try_from(data).ok().map(|data| (IpAddr::from(data), ttl))),
                AAAA => found.extend(<[u8; 16]>::try_from(data).ok().map(|data| (IpAddr::from(data), ttl))),
                CNAME => names.extend(name_at(message, start).map(|(name, _)| name)),
                _ => {}
            }
        }
        at = start + usize::from(length);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            bytes.push(label.len() as u8);
            bytes.extend_from_slice(label.as_bytes());
        }
        bytes.push(0);
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&IN.to_be_bytes());
        bytes
    }

    /// A record whose owner is at this place of the message.
    fn record(owner: u8, kind: u16, data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0xc0, owner];
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&[0, 1, 0, 0, 0, 60]);
        bytes.extend_from_slice(&(data.len() as u16).to_be_bytes());
        bytes.extend_from_slice(data);
        bytes
    }

    #[test]
    fn a_question_is_read_and_answered() {
        let query = query("Db.Example", A);
        let question = question(&query).unwrap();
        assert_eq!((question.name.as_str(), question.kind, question.is_internet), ("db.example", A, true));
        let addresses: [IpAddr; 2] = ["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        let answer = reply(&query, &question, &addresses, 5).unwrap();
        assert!(answers(&query, &answer));
        assert_eq!(super::addresses(&answer), [(addresses[0], 5)]);
        assert!(!answers(&super::tests::query("other", A), &answer));
        let refused = refusal(&query, REFUSED).unwrap();
        assert_eq!((refused[2], refused[3]), (0x81, 0x85));
        assert!(answers(&query, &refused) && super::addresses(&refused).is_empty());
    }

    #[test]
    fn addresses_of_other_names_in_an_answer_do_not_count() {
        let mut answer = query("a.example", A);
        answer[2] = 0x81;
        answer[7] = 4;
        let alias = answer.len() as u8 + 12;
        answer.extend(record(12, CNAME, b"\x01b\x07example\x00"));
        let stranger = answer.len() as u8 + 12;
        answer.extend(record(alias, 16, b"\x01x\x00"));
        answer.extend(record(alias, A, &[192, 0, 2, 1]));
        answer.extend(record(stranger, A, &[192, 0, 2, 2]));
        assert_eq!(addresses(&answer), [("192.0.2.1".parse().unwrap(), 60)]);
    }

    #[test]
    fn pointers_in_circles_and_cut_off_messages_end() {
        for pointer in [12_u8, 13, 14, 200] {
            let mut circle = query("a", A)[..HEADER].to_vec();
            circle.extend_from_slice(&[1, b'a', 0xc0, pointer, 0, 1, 0, 1]);
            let expected = if pointer < 12 { Some(()) } else { None };
            assert_eq!(question(&circle).map(drop), expected);
        }
        let mut answer = query("a.example", A);
        answer[7] = 1;
        answer.extend(record(12, A, &[192, 0, 2, 1]));
        for cut in 0..answer.len() {
            let _ = (question(&answer[..cut]), refusal(&answer[..cut], 1));
            assert!(addresses(&answer[..cut]).is_empty());
        }
    }

    #[test]
    fn anything_at_all_is_survived() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let mut seed = query("a.b.example", A);
        seed.extend(record(12, CNAME, b"\x01b\x07example\x00"));
        seed.extend(record(12, AAAA, &[0; 16]));
        for round in 0..20_000 {
            let mut message = if round % 2 == 0 {
                seed.clone()
            } else {
                (0..random() % 80).map(|_| random() as u8).collect::<Vec<u8>>()
            };
            for _ in 0..random() % 6 {
                let at = random() as usize % message.len().max(1);
                if let Some(byte) = message.get_mut(at) {
                    *byte = random() as u8;
                }
            }
            if let Some(question) = question(&message) {
                assert!(question.name.len() <= MAX_NAME && question.name.is_ascii());
                assert!(reply(&message, &question, &["10.0.0.1".parse().unwrap()], 1).is_some());
            }
            let _ = (refusal(&message, 2), addresses(&message), answers(&seed, &message));
        }
    }
}
