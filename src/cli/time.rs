//! Ages as people say them, and the RFC 3339 times of image configurations.

use ovl::meta::Timestamp;

/// How long ago, in Docker's words: `3 hours ago`, `About a minute ago`.
pub fn ago(then: Timestamp, now: Timestamp) -> String {
    format!("{} ago", span(now.secs.saturating_sub(then.secs)))
}

fn span(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    match seconds {
        ..=0 => "Less than a second".into(),
        1 => "1 second".into(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".into(),
        120..3600 => format!("{minutes} minutes"),
        3600..7200 => "About an hour".into(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        _ if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

/// `2023-11-14T22:13:20Z`, in UTC to the second.
pub fn rfc3339(time: Timestamp) -> String {
    ovl::image::rfc3339(Timestamp::new(time.secs, 0))
}

/// Parses RFC 3339 (section 5.6); `None` for anything else. A leap second counts as the first of the next minute.
pub fn parse_rfc3339(text: &str) -> Option<Timestamp> {
    let bytes = text.as_bytes();
    let number = |from: usize, to: usize| -> Option<i64> {
        let digits = bytes.get(from..to)?;
        digits.iter().try_fold(0, |n, b| {
            b.is_ascii_digit().then(|| n * 10 + i64::from(b - b'0'))
        })
    };
    let separators = [(4, b"-"), (7, b"-"), (10, b"T"), (13, b":"), (16, b":")];
    if separators.iter().any(|(at, want)| {
        bytes
            .get(*at)
            .is_none_or(|b| !b.eq_ignore_ascii_case(&want[0]))
    }) {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let in_range = (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    let fraction = bytes[19..].strip_prefix(b".").unwrap_or_default();
    let digits = fraction.iter().take_while(|b| b.is_ascii_digit()).count();
    let zone = if bytes.get(19) == Some(&b'.') {
        20 + digits
    } else {
        19
    };
    if !in_range || (zone == 20) {
        return None;
    }
    let nanos = fraction[..digits]
        .iter()
        .chain(std::iter::repeat(&b'0'))
        .take(9)
        .fold(0, |n, b| n * 10 + u32::from(b - b'0'));
    let offset = match bytes.get(zone..)? {
        [b'Z' | b'z'] => 0,
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
            let minutes = number(zone + 1, zone + 3)? * 60 + number(zone + 4, zone + 6)?;
            if *sign == b'-' { -minutes } else { minutes }
        }
        _ => return None,
    };
    Some(Timestamp::new(
        days(year, month, day) * 86400 + (hour * 60 + minute - offset) * 60 + second,
        nanos,
    ))
}

/// Days since 1970-01-01 of a date of the Gregorian calendar: years are counted from March, so that the leap day is last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month <= 2 {
        (year - 1, month + 9)
    } else {
        (year, month - 3)
    };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    365 * year + leap_days + (153 * month + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_written() {
        for (text, secs, nanos) in [
            ("1970-01-01T00:00:00Z", 0, 0),
            ("2023-11-14T22:13:20Z", 1_700_000_000, 0),
            ("2023-11-14T22:13:20.25Z", 1_700_000_000, 250_000_000),
            ("2023-11-15T00:13:20+02:00", 1_700_000_000, 0),
            ("2024-02-29T12:00:00.123456789Z", 1_709_208_000, 123_456_789),
            ("1969-12-31T23:59:59Z", -1, 0),
            ("0001-01-01T00:00:00Z", -62_135_596_800, 0),
            ("9999-12-31T23:59:59Z", 253_402_300_799, 0),
        ] {
            assert_eq!(
                parse_rfc3339(text),
                Some(Timestamp::new(secs, nanos)),
                "{text}"
            );
            assert_eq!(
                parse_rfc3339(&rfc3339(Timestamp::new(secs, 0))),
                Some(Timestamp::new(secs, 0)),
                "{text}"
            );
        }
        assert_eq!(
            rfc3339(Timestamp::new(1_709_208_000, 5)),
            "2024-02-29T12:00:00Z"
        );
    }

    #[test]
    fn every_day_of_a_cycle_comes_back() {
        for day in -200_000..200_000 {
            let time = Timestamp::new(day * 86_400, 0);
            assert_eq!(parse_rfc3339(&rfc3339(time)), Some(time));
        }
        rfc3339(Timestamp::new(i64::MIN, 0));
        rfc3339(Timestamp::new(i64::MAX, 0));
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "2023",
            "2023-11-14",
            "2023-11-14T22:13:20",
            "2023-13-14T22:13:20Z",
            "2023-11-14T22:13:20.Z",
            "2023-11-14T22:13:20+0200",
            "2023-11-14T22:13:2aZ",
            "2023-11-14 22:13:20Z",
            "2023-11-14T22:13:20Zx",
            "äöü",
        ] {
            assert_eq!(parse_rfc3339(text), None, "{text}");
        }
    }

    #[test]
    fn ages_use_dockers_words() {
        let now = Timestamp::new(1_700_000_000, 0);
        for (seconds, words) in [
            (-5, "Less than a second ago"),
            (1, "1 second ago"),
            (59, "59 seconds ago"),
            (61, "About a minute ago"),
            (180, "3 minutes ago"),
            (4000, "About an hour ago"),
            (86400, "24 hours ago"),
            (86400 * 3, "3 days ago"),
            (86400 * 20, "2 weeks ago"),
            (86400 * 90, "3 months ago"),
            (86400 * 800, "2 years ago"),
        ] {
            assert_eq!(ago(Timestamp::new(now.secs - seconds, 0), now), words);
        }
    }
}
