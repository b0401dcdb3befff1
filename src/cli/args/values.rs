//! Values of arguments: what they may be, and what is said of others.

use std::ops::RangeInclusive;

use super::CACHE_BYTES;

/// A parser of whole numbers within a range.
pub fn number(range: RangeInclusive<u64>) -> impl Fn(&str) -> Result<u64, String> + Clone + Send + Sync + 'static {
    move |text| match text.trim().parse::<u64>() {
        Ok(value) if range.contains(&value) => Ok(value),
        Ok(value) => Err(format!("{value} is not in {} to {}", range.start(), range.end())),
        Err(_) => Err(format!("it must be a whole number from {} to {}", range.start(), range.end())),
    }
}

/// Parses a factor: 0 or more, finite.
///
/// # Errors
/// A text that says what is possible.
pub fn parse_speed(text: &str) -> Result<f64, String> {
    let speed = text.trim().parse::<f64>().ok().filter(|speed| speed.is_finite() && *speed >= 0.0);
    speed.ok_or_else(|| "it must be a number, 0 or more".to_owned())
}

/// Parses a number of bytes within [`CACHE_BYTES`]: a whole number with an optional unit K, M, G or T (powers of 1024),
/// with or without iB after it, in any case.
///
/// # Errors
/// A text that says what is possible.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let form = || "it must be a whole number of bytes, or one with K, M, G or T (or KiB, MiB, …) after it".to_owned();
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| form())?;
    let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return Err(form()),
    };
    let bytes = number.checked_mul(1 << shift).filter(|bytes| CACHE_BYTES.contains(bytes));
    bytes.ok_or_else(|| {
        let (least, most) = (CACHE_BYTES.start() >> 20, CACHE_BYTES.end() >> 40);
        format!("{} is not in {least}M to {most}T", text.escape_debug())
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_with_units() {
        for (text, bytes) in [
            ("16777216", 16 << 20),
            ("16384K", 16 << 20),
            ("512m", 512 << 20),
            ("512 MiB", 512 << 20),
            ("8G", 8 << 30),
            ("8GIB", 8 << 30),
            ("1T", 1 << 40),
            ("33554432b", 32 << 20),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "-1G", "1.5G", "8GB", "8 X", "0x10", "99999999999999999999"] {
            let error = parse_size(text).unwrap_err();
            assert!(error.contains("K, M, G or T"), "{text}: {error}");
        }
        for text in ["0", "16777215", "17T", "18446744073709551615", "18446744073709551615T"] {
            let error = parse_size(text).unwrap_err();
            assert_eq!(error, format!("{text} is not in 16M to 16T"));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_size_in_range_or_an_error(text in "[0-9]{0,25}[a-zA-Z ]{0,4}") {
            if let Ok(bytes) = parse_size(&text) {
                prop_assert!(CACHE_BYTES.contains(&bytes));
            }
        }
    }
}
