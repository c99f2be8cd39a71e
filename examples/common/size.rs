//! Sizes on command lines, for the examples that take some.

/// 4096, 64M, 1G: bytes, or with a binary suffix. What is wrong with it otherwise, as a
/// predicate.
pub(crate) fn parse(text: &str) -> Result<u64, &'static str> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        Some(b'T' | b't') => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|_| "is no size")?;
    number.checked_mul(1 << shift).ok_or("is too large")
}
