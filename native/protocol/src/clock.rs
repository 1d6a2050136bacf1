//! Wall-clock time for logs and the journal.
use std::time::{SystemTime, UNIX_EPOCH};

pub fn unix_nanos() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64)
}

/// `2026-11-21T05:14:00.123456789Z` (RFC 3339, always nine decimals: fixed width, so that lines sort).
pub fn rfc3339(unix_nanos: i64) -> [u8; 30] {
    let seconds = unix_nanos.div_euclid(1_000_000_000);
    let nanos = unix_nanos.rem_euclid(1_000_000_000) as u64;
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400) as u64);
    let (year, month, day) = civil_date(days);
    let mut out = [0; 30];
    let mut at = 0;
    for (value, width, after) in [
        (year, 4, b'-'),
        (month, 2, b'-'),
        (day, 2, b'T'),
        (second / 3600, 2, b':'),
        (second / 60 % 60, 2, b':'),
        (second % 60, 2, b'.'),
        (nanos, 9, b'Z'),
    ] {
        let mut rest = value;
        for digit in out[at..at + width].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        at += width;
        out[at] = after;
        at += 1;
    }
    out
}

/// Gregorian date of a day number since 1970-01-01 (H. Hinnant, "chrono-compatible low-level date algorithms").
fn civil_date(days: i64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year as u64, month as u64, day as u64)
}

#[cfg(test)]
mod tests {
    fn text(nanos: i64) -> String {
        String::from_utf8(super::rfc3339(nanos).to_vec()).unwrap()
    }

    #[test]
    fn formats_known_instants() {
        assert_eq!(text(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(text(1_795_238_040_123_456_789), "2026-11-21T05:14:00.123456789Z");
        assert_eq!(text(951_782_400_000_000_000), "2000-02-29T00:00:00.000000000Z");
        assert_eq!(text(1_709_251_199_999_999_999), "2024-02-29T23:59:59.999999999Z");
    }
}
