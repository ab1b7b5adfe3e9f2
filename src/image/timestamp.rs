//! Times as image documents write them: RFC 3339, in UTC.

use crate::meta::Timestamp;

const DAY: i64 = 86_400;

/// `YYYY-MM-DDTHH:MM:SS[.fraction]Z`. Years outside 0000-9999, which RFC 3339 cannot write, become the nearest it can.
pub fn rfc3339(time: Timestamp) -> String {
    // 0000-01-01T00:00:00 and 9999-12-31T23:59:59.
    let secs = time.secs.clamp(-62_167_219_200, 253_402_300_799);
    let (days, rest) = (secs.div_euclid(DAY), secs.rem_euclid(DAY));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    let mut text = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    if time.nanos > 0 {
        let fraction = format!("{:09}", time.nanos);
        text = text + "." + fraction.trim_end_matches('0');
    }
    text + "Z"
}

/// Year, month and day of a day counted from 1970-01-01, in the proleptic Gregorian calendar. Counting from 1 March puts
/// the leap day at the end of a year, so that month lengths follow one linear rule.
fn civil(days: i64) -> (i64, i64, i64) {
    // 0000-03-01 is 719,468 days before 1970-01-01; 400 years have 146,097 days.
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_dates() {
        for (secs, nanos, want) in [
            (0, 0, "1970-01-01T00:00:00Z"),
            (951_782_400, 0, "2000-02-29T00:00:00Z"),
            (1_709_210_096, 120_000_000, "2024-02-29T12:34:56.12Z"),
            (-1, 999_999_999, "1969-12-31T23:59:59.999999999Z"),
            (-2_203_891_200, 0, "1900-03-01T00:00:00Z"),
            (i64::MIN, 0, "0000-01-01T00:00:00Z"),
            (i64::MAX, 0, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(Timestamp::new(secs, nanos)), want);
        }
    }
}
