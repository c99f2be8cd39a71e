use std::io::Write;

use super::*;

fn text() -> Vec<u8> {
    (0..300_000u32).flat_map(|i| (i / 7).wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("a Vec takes all");
    encoder.finish().expect("a Vec takes all")
}

fn zstd_of(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).expect("zstd")
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
    encoder.write_all(bytes).expect("a Vec takes all");
    encoder.finish().expect("a Vec takes all")
}

fn skippable(bytes: &[u8]) -> Vec<u8> {
    [&[0x5e, 0x2a, 0x4d, 0x18][..], &(bytes.len() as u32).to_le_bytes(), bytes].concat()
}

fn all(compressed: &[u8]) -> Result<Vec<u8>> {
    within(compressed, &Bounds::default())
}

fn within(compressed: &[u8], bounds: &Bounds) -> Result<Vec<u8>> {
    let (_, reader) = reader(io::BufReader::with_capacity(1000, compressed), bounds)?;
    let mut out = Vec::new();
    let read = ahead(reader, |reader| reader.read_to_end(&mut out))?;
    read.map_err(|error| Error::from_stream(error, 0))?;
    Ok(out)
}

#[track_caller]
fn refused(compressed: &[u8], why: &str) {
    let error = all(compressed).map(|bytes| bytes.len()).expect_err("it isn't right");
    assert!(error.to_string().contains(why), "{error}");
    assert_eq!(error.kind(), ErrorKind::Image);
}

#[test]
fn streams_are_told_by_what_they_begin_with() {
    let text = text();
    for (bytes, compression) in [
        (text.clone(), Compression::None),
        (gzip(&text), Compression::Gzip),
        (zstd_of(&text), Compression::Zstd),
        ([skippable(b"x"), zstd_of(&text)].concat(), Compression::Zstd),
        (xz(&text), Compression::Xz),
    ] {
        assert_eq!(reader(&bytes[..], &Bounds::default()).expect("a reader").0, compression);
        assert!(all(&bytes).expect("right") == text, "{compression:?}");
    }
    assert!(all(b"").expect("nothing").is_empty());
    assert!(all(b"\x1f").is_ok_and(|bytes| bytes == b"\x1f"));
    refused(b"BZh91AY&SY", "bzip2");
}

#[test]
fn several_members_and_frames_are_one_stream() {
    let text = text();
    let (one, other) = text.split_at(text.len() / 3);
    let empty: &[u8] = b"";
    for parts in [
        vec![gzip(one), gzip(empty), gzip(other)],
        vec![gzip(one), gzip(other), vec![0; 3000]],
        vec![zstd_of(one), skippable(&[7; 5000]), zstd_of(empty), zstd_of(other), skippable(b"")],
        vec![xz(one), xz(other), vec![0; 4]],
    ] {
        assert!(all(&parts.concat()).expect("right") == text);
    }
}

#[test]
fn a_stream_that_is_cut_is_refused_wherever() {
    let text = &text()[..3000];
    for whole in [gzip(text), zstd_of(text), xz(text)] {
        for end in 6..whole.len() {
            refused(&whole[..end], "cut short");
        }
    }
}

#[test]
fn damage_and_garbage_are_refused() {
    let text = &text()[..3000];
    for whole in [gzip(text), zstd_of(text), xz(text)] {
        refused(&[&whole[..], b"much garbage follows"].concat(), "corrupt");
    }
    let whole = gzip(text);
    refused(&[&whole[..], &[0; 100], &whole[..]].concat(), "something else follows");
    for from_end in [1, 5] {
        let mut damaged = gzip(text);
        let at = damaged.len() - from_end;
        damaged[at] ^= 1;
        refused(&damaged, "corrupt");
    }
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).expect("zstd");
    encoder.include_checksum(true).expect("zstd");
    encoder.write_all(text).expect("a Vec takes all");
    let mut damaged = encoder.finish().expect("a Vec takes all");
    let at = damaged.len() - 1;
    damaged[at] ^= 1;
    refused(&damaged, "corrupt");
}

#[test]
fn what_grows_too_much_is_refused() {
    let zeros = vec![0; 4 << 20];
    let tight = Bounds { ratio: 50, slack: 1 << 20, ..Bounds::default() };
    for whole in [gzip(&zeros), zstd_of(&zeros), xz(&zeros)] {
        let error = within(&whole, &tight).map(|bytes| bytes.len()).expect_err("too much");
        assert!(error.to_string().contains("more than 50 times its size, and 1 MiB"), "{error}");
        assert_eq!(all(&whole).map(|bytes| bytes.len()).expect("small"), zeros.len());
    }
}

/// `xz -9` asks for a dictionary of 64 MiB, however short the text is.
#[test]
fn the_strongest_preset_of_xz_is_read() {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 9);
    encoder.write_all(&text()).expect("a Vec takes all");
    let strongest = encoder.finish().expect("a Vec takes all");
    assert_eq!(all(&strongest).expect("it fits"), text());
}

#[test]
fn windows_that_need_too_much_memory_are_refused() {
    let with_window = |log| {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).expect("zstd");
        encoder.window_log(log).expect("zstd");
        encoder.write_all(&text()).expect("a Vec takes all");
        encoder.finish().expect("a Vec takes all")
    };
    assert!(all(&with_window(25)).is_ok());
    refused(&with_window(26), "larger than 32 MiB");
    let bounds = Bounds { zstd_window: 128 << 20, ..Bounds::default() };
    assert!(within(&with_window(27), &bounds).is_ok());
    let bounds = Bounds { xz_memory: 1 << 20, ..Bounds::default() };
    let error = within(&xz(&text()), &bounds).map(|bytes| bytes.len()).expect_err("more memory");
    assert!(error.to_string().contains("xz needs more than 1 MiB"), "{error}");
}

#[test]
fn a_consumer_that_stops_early_ends_the_thread() {
    let endless = io::repeat(7);
    assert_eq!(ahead(endless, |reader| reader.fill_buf().map(<[u8]>::len).unwrap_or(0)).expect("a thread"), 128 << 10);
}
