//! Numbers in headers: octal digits, base-256, and decimal text.

use super::{Time, Wrong};

/// The number in a field of a header. An empty field is 0.
///
/// Octal digits, with spaces before and a space or NUL after them; or, if the first
/// byte has its high bit set, a two's complement number in the other bits (GNU).
pub(super) fn field(bytes: &[u8]) -> Result<i64, Wrong> {
    match bytes.first() {
        Some(first) if first & 0x80 != 0 => base256(bytes),
        _ => octal(bytes),
    }
}

fn base256(bytes: &[u8]) -> Result<i64, Wrong> {
    // The marker's bit isn't part of the number; the next one is its sign.
    let negative = bytes[0] & 0x40 != 0;
    let mut value: i128 = if negative { -1 } else { 0 };
    for (i, byte) in bytes.iter().enumerate() {
        let byte = match (i, negative) {
            (0, false) => byte & 0x7f,
            _ => *byte,
        };
        if i == 0 && negative {
            value = i128::from(byte as i8);
        } else {
            value = (value << 8) | i128::from(byte);
        }
        if i64::try_from(value).is_err() {
            return Err("a number is too large");
        }
    }
    Ok(value as i64)
}

fn octal(bytes: &[u8]) -> Result<i64, Wrong> {
    let start = bytes.iter().position(|b| *b != b' ').unwrap_or(bytes.len());
    let digits = &bytes[start..];
    let end = digits.iter().position(|b| matches!(b, b' ' | 0)).unwrap_or(digits.len());
    let (digits, rest) = digits.split_at(end);
    if rest.iter().any(|b| !matches!(b, b' ' | 0)) {
        return Err("there's something after a number");
    }
    let mut value: i64 = 0;
    for digit in digits {
        let digit = match digit {
            b'0'..=b'7' => i64::from(digit - b'0'),
            _ => return Err("a number isn't octal"),
        };
        // The longest field has 12 digits.
        value = value.checked_mul(8).and_then(|v| v.checked_add(digit)).ok_or("a number is too large")?;
    }
    Ok(value)
}

/// A decimal number without a sign.
pub(super) fn decimal(text: &[u8]) -> Result<u64, Wrong> {
    if text.is_empty() {
        return Err("a number is empty");
    }
    let mut value: u64 = 0;
    for byte in text {
        if !byte.is_ascii_digit() {
            return Err("a number isn't decimal");
        }
        value = value.checked_mul(10).and_then(|v| v.checked_add(u64::from(byte - b'0'))).ok_or("a number is too large")?;
    }
    Ok(value)
}

/// An id for chown(2): 4294967295 would mean "leave it".
pub(super) fn id(value: i64) -> Result<u32, Wrong> {
    u32::try_from(value).ok().filter(|id| *id != u32::MAX).ok_or("an owner's id is out of range")
}

/// A PAX time: `-?digits[.digits]`. What is finer than a nanosecond is cut off.
pub(super) fn time(text: &[u8]) -> Result<Time, Wrong> {
    let (negative, text) = match text {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    let (whole, fraction) = match text.iter().position(|b| *b == b'.') {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => (text, &[][..]),
    };
    let seconds = i64::try_from(decimal(whole)?).map_err(|_| "a time is out of range")?;
    if fraction.iter().any(|b| !b.is_ascii_digit()) {
        return Err("a time isn't decimal");
    }
    let mut nanoseconds = 0;
    for i in 0..9 {
        nanoseconds = nanoseconds * 10 + u32::from(fraction.get(i).map_or(0, |b| b - b'0'));
    }
    // -1.25 is 0.75 seconds after -2.
    Ok(match (negative, nanoseconds) {
        (false, _) => Time { seconds, nanoseconds },
        (true, 0) => Time { seconds: -seconds, nanoseconds: 0 },
        (true, _) => Time { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_fields_are_read_as_the_tools_write_them() {
        for (text, value) in [
            (&b"0000644\0"[..], 0o644),
            (b"   644 \0", 0o644),
            (b"00000000017\0", 15),
            (b"77777777", 0o77777777),
            (b"\0\0\0\0", 0),
            (b"        ", 0),
        ] {
            assert_eq!(field(text), Ok(value), "{text:?}");
        }
        for text in [&b"0000648\0"[..], b"-0000001", b"644\x000044", b"0x1F\0\0\0\0"] {
            assert!(field(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn base_256_has_a_sign_and_an_end() {
        assert_eq!(field(&[0x80, 0, 0, 0, 0, 0, 1, 0]), Ok(256));
        assert_eq!(field(&[0xff; 12]), Ok(-1));
        assert_eq!(field(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]), Ok(-256));
        let mut largest = [0xff; 12];
        largest[..5].copy_from_slice(&[0x80, 0, 0, 0, 0x7f]);
        assert_eq!(field(&largest), Ok(i64::MAX));
        largest[4] = 0x80;
        assert!(field(&largest).is_err());
        assert!(field(&[0xbf; 12]).is_err());
    }

    #[test]
    fn times_before_1970_and_between_seconds_are_exact() {
        let time_of = |text: &str| time(text.as_bytes()).map(|t| (t.seconds, t.nanoseconds));
        assert_eq!(time_of("1700000000.123456789123"), Ok((1_700_000_000, 123_456_789)));
        assert_eq!(time_of("-1.25"), Ok((-2, 750_000_000)));
        assert_eq!(time_of("-3"), Ok((-3, 0)));
        assert_eq!(time_of("8589934592.5"), Ok((8_589_934_592, 500_000_000)));
        for text in ["", ".5", "1.x", "+1", "1e9", "--1", "9223372036854775808", "1.2.3", "0x10"] {
            assert!(time_of(text).is_err(), "{text}");
        }
    }
}
