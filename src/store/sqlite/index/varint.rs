//! Numbers of variable length, as the index packs them: seven bits a byte, the lowest first.
//!
//! Changes when the index's blobs change. Values in, values out.

/// Appends `value`.
pub(super) fn push(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(low_byte(value) | 0x80);
        value >>= 7;
    }
    out.push(low_byte(value));
}

/// Appends a number that is near zero on either side.
pub(super) fn push_signed(out: &mut Vec<u8>, value: i64) {
    push(out, ((value << 1) ^ (value >> 63)).cast_unsigned());
}

/// Takes a number from the front; `None` when there is no whole one.
pub(super) fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// The counterpart of [`push_signed`].
pub(super) fn take_signed(bytes: &mut &[u8]) -> Option<i64> {
    let value = take(bytes)?;
    Some((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
}

const fn low_byte(value: u64) -> u8 {
    (value & 0x7f) as u8
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_survive(values: Vec<u64>, signed: Vec<i64>) {
            let mut bytes = Vec::new();
            values.iter().for_each(|value| push(&mut bytes, *value));
            signed.iter().for_each(|value| push_signed(&mut bytes, *value));
            let mut rest = bytes.as_slice();
            for value in values {
                prop_assert_eq!(take(&mut rest), Some(value));
            }
            for value in signed {
                prop_assert_eq!(take_signed(&mut rest), Some(value));
            }
            prop_assert_eq!(take(&mut rest), None);
        }
    }

    #[test]
    fn what_does_not_end_is_none() {
        assert_eq!(take(&mut [0x80; 11].as_slice()), None);
        assert_eq!(take(&mut [0x80].as_slice()), None);
        assert_eq!(take(&mut [5].as_slice()), Some(5));
    }
}
