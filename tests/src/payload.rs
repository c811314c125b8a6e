//! Keys and values that break software which mistakes bytes for text or for its own separators.

use fastrand::Rng;

/// Pieces that mean something to batch formats, URLs, C strings, text decoders or paths.
const PIECES: [&[u8]; 18] = [
    b"|BATCH|",
    b"\0",
    b"\xff\xfe",
    b"\xc3\x28",
    b"\xed\xa0\x80",
    b"/",
    b"//",
    b"..",
    b"%",
    b"%2F",
    b"?",
    b"#",
    b"&=+",
    b" ",
    b"\r\n",
    b"\x7f",
    "ключ".as_bytes(),
    b"a",
];

/// `prefix` and some hostile pieces after it.
pub fn key(rng: &mut Rng, prefix: &str) -> Vec<u8> {
    let mut key = prefix.as_bytes().to_vec();
    for _ in 0..rng.usize(1..6) {
        key.extend_from_slice(rng.choice(PIECES).expect("there are pieces"));
    }
    key
}

/// One value in eight is empty, one in eight has some ten thousand bytes.
pub fn value(rng: &mut Rng) -> Vec<u8> {
    let bytes = match rng.u8(0..8) {
        0 => return Vec::new(),
        1 => rng.usize(10_000..40_000),
        _ => rng.usize(1..300),
    };
    let mut value = Vec::with_capacity(bytes + 8);
    while value.len() < bytes {
        match rng.bool() {
            true => value.extend_from_slice(rng.choice(PIECES).expect("there are pieces")),
            false => value.push(rng.u8(..)),
        }
    }
    value
}

/// Of up to 300 bytes, but one in 64 is too large for a log group. For loads that last long.
pub fn small_value(rng: &mut Rng) -> Vec<u8> {
    let bytes = if rng.u8(0..64) == 0 { rng.usize(60_000..80_000) } else { rng.usize(0..300) };
    let mut value = vec![0; bytes];
    rng.fill(&mut value);
    value
}

/// The path of a key. All but RFC 3986's unreserved characters and slashes are percent-encoded.
pub fn path(key: &[u8]) -> String {
    encode_if(key, |byte| !is_plain(byte) && byte != b'/')
}

/// The same key, with some bytes encoded that need not be, and in lower or upper case.
pub fn another_path(rng: &mut Rng, key: &[u8]) -> String {
    let path = encode_if(key, |byte| !is_plain(byte) && (byte != b'/' || rng.bool()) || rng.u8(0..4) == 0);
    if rng.bool() { path } else { lower_case_escapes(&path) }
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

fn encode_if(key: &[u8], mut encode: impl FnMut(u8) -> bool) -> String {
    let mut path = String::from("/kv/");
    for &byte in key {
        match encode(byte) {
            true => path += &format!("%{byte:02X}"),
            false => path.push(char::from(byte)),
        }
    }
    path
}

fn lower_case_escapes(path: &str) -> String {
    let mut escapes = String::new();
    let mut rest = path.chars();
    while let Some(c) = rest.next() {
        escapes.push(c);
        if c == '%' {
            escapes.extend(rest.by_ref().take(2).map(|c| c.to_ascii_lowercase()));
        }
    }
    escapes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_of_a_key_decodes_to_it() {
        let mut rng = crate::seed::rng("every_path_of_a_key_decodes_to_it");
        for _ in 0..500 {
            let key = key(&mut rng, "x");
            for path in [path(&key), another_path(&mut rng, &key)] {
                assert!(path.bytes().all(|b| b.is_ascii_graphic() && !b"?#".contains(&b)), "{path}");
                assert_eq!(decode(path.strip_prefix("/kv/").unwrap()), key, "{path}");
            }
        }
    }

    fn decode(path: &str) -> Vec<u8> {
        let (mut key, mut rest) = (Vec::new(), path.as_bytes());
        while let Some((&byte, after)) = rest.split_first() {
            rest = after;
            key.push(byte);
            if byte == b'%' {
                let digits = std::str::from_utf8(&rest[..2]).unwrap();
                *key.last_mut().unwrap() = u8::from_str_radix(digits, 16).unwrap();
                rest = &rest[2..];
            }
        }
        key
    }
}
