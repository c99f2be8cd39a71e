//! Archives made by hand: what is read, and what is refused.

use super::*;

/// A header block, with its checksum.
fn header(path: &[u8], kind: u8, size: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..path.len()].copy_from_slice(path);
    block[100..107].copy_from_slice(b"0000644");
    block[108..115].copy_from_slice(b"0000000");
    block[116..123].copy_from_slice(b"0000000");
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[136..147].copy_from_slice(b"00000000000");
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    sum(&mut block);
    block
}

fn gnu(path: &[u8], kind: u8, size: u64) -> [u8; BLOCK] {
    let mut block = header(path, kind, size);
    block[257..265].copy_from_slice(b"ustar  \0");
    sum(&mut block);
    block
}

fn sum(block: &mut [u8; BLOCK]) {
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (key, value) in records {
        writer::record(&mut bytes, key.as_bytes(), value);
    }
    [header(b"PaxHeaders/x", b'x', bytes.len() as u64).to_vec(), padded(&bytes)].concat()
}

fn gnu_long(kind: u8, name: &[u8]) -> Vec<u8> {
    [gnu(b"././@LongLink", kind, name.len() as u64).to_vec(), padded(name)].concat()
}

fn file(path: &[u8], data: &[u8]) -> Vec<u8> {
    [header(path, b'0', data.len() as u64).to_vec(), padded(data)].concat()
}

/// Entries with their data, however the stream is cut.
fn read(archive: &[u8]) -> crate::Result<Vec<(Entry, Vec<u8>)>> {
    let whole = read_by(archive, archive.len().max(1));
    let cut = read_by(archive, 7);
    match (&whole, &cut) {
        (Ok(whole), Ok(cut)) => assert_eq!(whole, cut),
        (whole, cut) => assert_eq!(whole.as_ref().err().map(ToString::to_string), cut.as_ref().err().map(ToString::to_string)),
    }
    whole
}

fn read_by(archive: &[u8], piece: usize) -> crate::Result<Vec<(Entry, Vec<u8>)>> {
    let mut reader = Reader::new(std::io::BufReader::with_capacity(piece, archive));
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        entries.push((entry, reader.rest()?));
    }
    Ok(entries)
}

fn paths(archive: &[u8]) -> Vec<String> {
    let entries = read(archive).expect("an archive");
    entries.into_iter().map(|(entry, _)| String::from_utf8_lossy(&entry.path).into_owned()).collect()
}

#[track_caller]
fn refused(archive: &[u8], why: &str) {
    match read(archive) {
        Ok(entries) => panic!("it was taken: {entries:?}"),
        Err(error) => {
            assert!(error.to_string().contains(why), "{error}");
            assert_eq!(error.kind(), crate::ErrorKind::Image);
        }
    }
}

const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

#[test]
fn an_archive_may_end_in_two_zero_blocks_one_or_none() {
    for zeros in [0, 1, 2, 20] {
        let archive = [file(b"a", b"data"), vec![0; zeros * BLOCK]].concat();
        assert_eq!(paths(&archive), ["a"], "{zeros}");
    }
    assert!(paths(b"").is_empty());
}

#[test]
fn nothing_after_the_end_is_extracted() {
    assert_eq!(paths(&[file(b"a", b""), END.to_vec(), file(b"b", b"")].concat()), ["a"]);
    refused(&[file(b"a", b""), vec![0; BLOCK], file(b"b", b"")].concat(), "single block of zeros");
}

#[test]
fn what_follows_the_end_is_read_up_to_a_limit() {
    let archive = [END.to_vec(), vec![1; 5000]].concat();
    let drained = |most| {
        let mut reader = Reader::new(&archive[..]);
        assert!(reader.next_entry().expect("an end").is_none());
        reader.drain(most)
    };
    assert!(drained(5000).is_ok());
    assert!(drained(4999).is_err());
}

#[test]
fn a_truncated_archive_is_refused_wherever_it_ends() {
    let archive = [pax(&[("path", b"long")]), file(b"a", &[7; 700]), gnu_long(b'L', b"name\0"), file(b"b", b"x")].concat();
    for end in 1..archive.len() {
        // Where the first file ends an archive may end.
        assert_eq!(read_by(&archive[..end], 512).is_ok(), end == 5 * BLOCK, "{end}");
    }
}

#[test]
fn pax_says_what_a_header_cannot() {
    let archive = [
        pax(&[
            ("path", b"d\xff/\xfe"),
            ("uid", b"70000"),
            ("gid", b"4294967294"),
            ("mtime", b"-0.5"),
            ("comment", b"c"),
            ("SCHILY.xattr.user.a%3Db", b"\n\0="),
        ]),
        file(b"short", b"data"),
        pax(&[("linkpath", &[b'l'; 300]), ("LIBARCHIVE.xattr.user.x", b"eA")]),
        header(b"s", b'2', 0).to_vec(),
        END.to_vec(),
    ]
    .concat();
    let entries = read(&archive).expect("an archive");
    let (first, data) = &entries[0];
    assert_eq!((first.path.as_slice(), first.uid, first.gid), (&b"d\xff/\xfe"[..], 70000, 4_294_967_294));
    assert_eq!(first.mtime, Time { seconds: -1, nanoseconds: 500_000_000 });
    assert_eq!(first.xattrs, [(b"user.a=b".to_vec(), b"\n\0=".to_vec())]);
    assert_eq!(data, b"data");
    assert_eq!((entries[1].0.kind, entries[1].0.link.len(), entries[1].0.xattrs.len()), (Kind::Symlink, 300, 0));
}

#[test]
fn the_size_of_an_extended_header_counts() {
    // The header says 0; a reader that believes it sees `evil` in the data.
    let inner = file(b"evil", b"");
    let archive = [pax(&[("size", b"512")]), header(b"a", b'0', 0).to_vec(), inner, file(b"b", b"")].concat();
    assert_eq!(paths(&archive), ["a", "b"]);
}

#[test]
fn a_global_header_changes_nothing_and_makes_nothing() {
    let mut global = pax(&[("path", b"evil"), ("size", b"1024"), ("linkpath", b"evil")]);
    global[156] = b'g';
    let block: &mut [u8; BLOCK] = (&mut global[..BLOCK]).try_into().expect("a block");
    sum(block);
    assert_eq!(paths(&[global, file(b"a", b"x"), file(b"b", b"")].concat()), ["a", "b"]);
}

#[test]
fn long_names_of_gnu_and_prefixes_of_ustar_are_whole() {
    let name = [b'n'; 400];
    let archive = [gnu_long(b'K', &[&name[..], b"\0"].concat()), gnu_long(b'L', &name), gnu(b"cut", b'2', 0).to_vec()].concat();
    let entries = read(&archive).expect("an archive");
    assert_eq!((entries[0].0.path.as_slice(), entries[0].0.link.as_slice()), (&name[..], &name[..]));
    let mut block = header(b"name", b'0', 0);
    block[345..351].copy_from_slice(b"prefix");
    sum(&mut block);
    assert_eq!(paths(&block), ["prefix/name"]);
    // GNU has times where ustar has the prefix.
    block[257..265].copy_from_slice(b"ustar  \0");
    sum(&mut block);
    assert_eq!(paths(&block), ["name"]);
}

#[test]
fn a_slash_made_directories_before_there_were_kinds() {
    let entries = read(&header(b"d/", 0, 0)).expect("an archive");
    assert_eq!(entries[0].0.kind, Kind::Directory);
    refused(&header(b"d/", b'0', 0), "ends like a directory's");
    refused(&[header(b"d/", 0, 512).to_vec(), vec![1; 512]].concat(), "no data has a size");
}

#[test]
fn what_readers_disagree_about_is_refused() {
    for kind in [b'1', b'2', b'3', b'4', b'5', b'6'] {
        let mut block = header(b"a", kind, 512);
        block[157] = b't';
        sum(&mut block);
        refused(&[block.to_vec(), vec![0; 512]].concat(), "no data has a size");
    }
    refused(&[pax(&[("size", b"512")]), header(b"d", b'5', 0).to_vec(), vec![1; 512]].concat(), "no data has a size");
    refused(&[gnu_long(b'L', b"one"), pax(&[("path", b"two")]), file(b"a", b"")].concat(), "two names");
    refused(&[pax(&[("path", b"one")]), pax(&[("path", b"two")]), file(b"a", b"")].concat(), "say the same");
    refused(&[gnu_long(b'L', b"one"), gnu_long(b'L', b"two"), file(b"a", b"")].concat(), "say the same");
    refused(&[pax(&[("path", b"one")]), END.to_vec()].concat(), "ends after a header");
    refused(&pax(&[("path", b"one")]), "ends after a header");
    refused(&[gnu_long(b'L', b"a\0b"), file(b"a", b"")].concat(), "NUL");
    refused(&header(b"", b'0', 0), "no name");
    refused(&header(b"a", b'2', 0), "no target");
    refused(&header(b"a", b'Z', 0), "unknown kind");
    refused(&[gnu_long(b'L', b"one"), header(b"label", b'V', 0).to_vec(), file(b"a", b"")].concat(), "label");
    let mut mode = header(b"a", b'0', 0);
    mode[100..108].copy_from_slice(b"\x80\0\0\0\0\x02\0\0");
    sum(&mut mode);
    refused(&mode, "mode is out of range");
    refused(&header(b"a", b'M', 0), "volumes");
    let mut block = header(b"a", b'0', 0);
    block[0] = b'b';
    refused(&block, "checksum");
}

#[test]
fn metadata_bombs_are_refused_before_they_are_read() {
    // The size alone is enough: there are no data.
    refused(&header(b"x", b'x', 1 << 32), "too large");
    refused(&header(b"x", b'L', (1 << 20) + 1), "too large");
    let mut global = header(b"g", b'g', 0);
    sum(&mut global);
    assert_eq!(paths(&[global.repeat(16), file(b"a", b"")].concat()), ["a"]);
    refused(&[global.repeat(17), file(b"a", b"")].concat(), "too large");
}

#[test]
fn a_size_at_the_end_of_numbers_overflows_nothing() {
    let mut block = header(b"a", b'0', 0);
    block[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    sum(&mut block);
    refused(&block, "middle of an entry");
    let largest = [pax(&[("size", b"18446744073709551615")]), header(b"a", b'0', 0).to_vec()].concat();
    refused(&largest, "middle of an entry");
    let mut reader = Reader::new(&largest[..]);
    assert!(reader.next_entry().is_ok_and(|entry| entry.is_some()));
    assert!(reader.next_entry().is_err(), "skipped");
    block[124..136].copy_from_slice(&[0xff; 12]);
    sum(&mut block);
    refused(&block, "negative");
}

/// Size, map, data and path.
type Sparse = (u64, Vec<(u64, u64)>, Vec<u8>, Vec<u8>);

fn sparse_of(archive: &[u8]) -> Sparse {
    let mut entries = read(archive).expect("an archive");
    assert_eq!(entries.len(), 1);
    let (entry, data) = entries.remove(0);
    let map = entry.sparse.expect("a map").iter().map(|s| (s.offset, s.length)).collect();
    (entry.size, map, data, entry.path)
}

fn old_gnu(map: &[(u64, u64)], size: u64, stored: u64) -> Vec<u8> {
    let mut block = gnu(b"s", b'S', stored);
    let put = |block: &mut [u8], at: usize, n: u64| block[at..at + 11].copy_from_slice(format!("{n:011o}").as_bytes());
    for (i, (offset, length)) in map.iter().take(4).enumerate() {
        put(&mut block, 386 + 24 * i, *offset);
        put(&mut block, 398 + 24 * i, *length);
    }
    put(&mut block, 483, size);
    block[482] = u8::from(map.len() > 4);
    sum(&mut block);
    let mut archive = block.to_vec();
    let rest: Vec<_> = map.iter().skip(4).collect();
    for (n, chunk) in rest.chunks(21).enumerate() {
        let mut block = [0; BLOCK];
        for (i, (offset, length)) in chunk.iter().enumerate() {
            put(&mut block, 24 * i, *offset);
            put(&mut block, 24 * i + 12, *length);
        }
        block[504] = u8::from((n + 1) * 21 < rest.len());
        archive.extend_from_slice(&block);
    }
    archive.extend(padded(&vec![7; stored as usize]));
    archive
}

#[test]
fn sparse_files_are_read_in_all_four_forms() {
    let data = vec![7; 8];
    let expected = (100, vec![(10, 4), (50, 4)], data.clone(), b"s".to_vec());
    assert_eq!(sparse_of(&old_gnu(&[(10, 4), (50, 4), (100, 0)], 100, 8)), expected);
    let many: Vec<(u64, u64)> = (0..60).map(|i| (i * 10, 1)).collect();
    assert_eq!(sparse_of(&old_gnu(&many, 600, 60)).1, many);

    let with = |records: &[(&str, &[u8])], data: &[u8]| [pax(records), file(b"s", data)].concat();
    let pairs: &[(&str, &[u8])] = &[
        ("GNU.sparse.size", b"100"),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.offset", b"10"),
        ("GNU.sparse.numbytes", b"4"),
        ("GNU.sparse.offset", b"50"),
        ("GNU.sparse.numbytes", b"4"),
    ];
    assert_eq!(sparse_of(&with(pairs, &data)), expected);
    let list: &[(&str, &[u8])] = &[("GNU.sparse.size", b"100"), ("GNU.sparse.numblocks", b"2"), ("GNU.sparse.map", b"10,4,50,4")];
    assert_eq!(sparse_of(&with(list, &data)), expected);
    let third: &[(&str, &[u8])] =
        &[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.name", b"s"), ("GNU.sparse.realsize", b"100")];
    let body = [padded(b"3\n10\n4\n50\n4\n100\n0\n"), data].concat();
    assert_eq!(sparse_of(&with(third, &body)), expected);
}

#[test]
fn maps_that_overlap_overflow_or_lie_are_refused() {
    refused(&old_gnu(&[(10, 4), (12, 4)], 100, 8), "overlaps");
    refused(&old_gnu(&[(98, 4)], 100, 4), "leads out");
    refused(&old_gnu(&[(10, 4)], 100, 8), "different lengths");
    let form_1 = |body: &[u8]| {
        let records: &[(&str, &[u8])] =
            &[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"18446744073709551615")];
        [pax(records), file(b"s", body)].concat()
    };
    refused(&form_1(&padded(b"1\n18446744073709551615\n1\n")), "overflows");
    refused(&form_1(&padded(b"10001\n")), "too many");
    refused(&form_1(&padded(b"2\n1\n1\n")), "malformed");
    refused(&form_1(&[&b"200\n"[..], &b"1\n".repeat(254)].concat()), "doesn't end");
    refused(&form_1(&padded(&[b'1'; 600])), "malformed");
    let list = |map: &[u8]| [pax(&[("GNU.sparse.size", b"9"), ("GNU.sparse.map", map)]), file(b"s", b"")].concat();
    refused(&list(b"1,2,3"), "malformed");
    refused(&list(&b"0,0,".repeat(10_001)), "too many");
    refused(&[pax(&[("GNU.sparse.major", b"2")]), file(b"s", b"")].concat(), "no size");
    refused(&[pax(&[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"")]), header(b"d", b'5', 0).to_vec()].concat(), "sparse");
}

#[test]
fn what_the_writer_writes_the_reader_reads() {
    let time = |seconds, nanoseconds| Time { seconds, nanoseconds };
    let base = Entry { mode: 0o644, mtime: time(1_700_000_000, 0), ..Entry::default() };
    let long = [&[b'd'; 90][..], b"/", &[b'e'; 90]].concat();
    let entries = [
        Entry { path: b"plain".to_vec(), size: 1000, ..base.clone() },
        Entry { path: long.clone(), size: 1, ..base.clone() },
        Entry { path: [&long[..], b"/", &[b'f'; 120]].concat(), ..base.clone() },
        Entry { path: b"\xff\n= \xc3".to_vec(), mtime: time(-2, 750_000_000), uid: 3_000_000, gid: u32::MAX - 1, ..base.clone() },
        Entry { path: b"future".to_vec(), mtime: time(1 << 40, 1), mode: 0o7777, ..base.clone() },
        Entry { path: b"dir/".to_vec(), kind: Kind::Directory, ..base.clone() },
        Entry { path: b"sym".to_vec(), kind: Kind::Symlink, link: vec![b'x'; 4095], ..base.clone() },
        Entry { path: b"hard".to_vec(), kind: Kind::HardLink, link: b"pla\xefn".to_vec(), ..base.clone() },
        Entry { path: b"dev".to_vec(), kind: Kind::CharDevice, device: (4095, 1_048_575), ..base.clone() },
        Entry { path: b"fifo".to_vec(), kind: Kind::Fifo, ..base.clone() },
        Entry {
            path: b"attributes".to_vec(),
            xattrs: vec![(b"security.capability".to_vec(), b"\x01\n\0=".to_vec()), (b"user.%3D=".to_vec(), Vec::new())],
            ..base.clone()
        },
        Entry {
            path: b"holes".to_vec(),
            size: 1 << 40,
            sparse: Some(vec![Segment { offset: 5, length: 600 }, Segment { offset: 1 << 39, length: 1 }]),
            ..base.clone()
        },
    ];
    let stored = |entry: &Entry| match &entry.sparse {
        Some(map) => map.iter().map(|s| s.length).sum(),
        None => entry.size,
    };
    let mut writer = Writer::new(Vec::new());
    for entry in &entries {
        writer.entry(entry).expect("a Vec takes all");
        writer.data(&vec![9; stored(entry) as usize]).expect("a Vec takes all");
    }
    let archive = writer.finish().expect("a Vec takes all");
    let read = read(&archive).expect("our own");
    for (written, (read, data)) in entries.iter().zip(&read) {
        assert_eq!(written, read);
        assert_eq!(data.len() as u64, stored(written));
    }
    assert_eq!(entries.len(), read.len());
}
