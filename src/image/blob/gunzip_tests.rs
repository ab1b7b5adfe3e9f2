use super::super::bits::BitWriter;
use super::*;
use proptest::prelude::*;
use std::io::Write;
use std::sync::mpsc::sync_channel;

fn data() -> Vec<u8> {
    let mut data: Vec<u8> = (0..200_000u32)
        .map(|i| (i.wrapping_mul(i) >> 7) as u8)
        .collect();
    data.extend(std::iter::repeat_n(7, 100_000));
    data.extend_from_within(0..150_000);
    data.extend_from_within(..);
    data.extend_from_within(..);
    data
}

fn gzip(data: &[u8], level: u32) -> Vec<u8> {
    let builder = flate2::GzBuilder::new().filename("a name").comment("more");
    let mut encoder = builder.write(Vec::new(), flate2::Compression::new(level));
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// The plain bytes, and what was told of the blob.
fn read(blob: &[u8], raw_only: bool) -> (io::Result<Vec<u8>>, Vec<Message>) {
    let (to, told) = sync_channel(1);
    let listener = Listener {
        to,
        stopped: Arc::default(),
        raw_only: Arc::new(AtomicBool::new(raw_only)),
    };
    std::thread::scope(|scope| {
        let told = scope.spawn(move || told.iter().collect());
        let mut plain = Vec::new();
        let result = Gunzip::new(blob, Some(listener)).read_to_end(&mut plain);
        (result.map(|_| plain), told.join().unwrap())
    })
}

fn expected(blob: &[u8]) -> io::Result<Vec<u8>> {
    let mut plain = Vec::new();
    flate2::bufread::MultiGzDecoder::new(blob).read_to_end(&mut plain)?;
    Ok(plain)
}

/// All that was told is the blob, and units give their bytes again. How many units there were.
fn check(told: &[Message], blob: &[u8]) -> usize {
    let (mut raw, mut units, mut within) = (Vec::<u8>::new(), 0, false);
    for message in told {
        match message {
            Message::Raw(bytes) => raw.extend(bytes),
            Message::Unit(taken) => {
                let mut out = BitWriter::after(taken.begun.0, taken.begun.1);
                taken.unit.write(&mut out).unwrap();
                assert!(out.bytes == taken.raw && out.pending() == taken.next);
                raw.extend(&taken.raw);
                units += 1;
            }
            Message::Begin => assert!(!std::mem::replace(&mut within, true)),
            Message::End => assert!(std::mem::take(&mut within)),
            Message::Done => panic!("not for it to say"),
        }
    }
    assert!(raw == blob && !within);
    units
}

#[test]
fn both_get_what_they_want() {
    let data = data();
    for level in [0, 1, 6, 9] {
        // One that fits a unit, one that is longer than any.
        for data in [&data[..700_000], &data] {
            let blob = [gzip(data, level), gzip(&[], level)].concat();
            for raw_only in [false, true] {
                let (plain, told) = read(&blob, raw_only);
                assert!(plain.unwrap() == data, "level {level}");
                let units = check(&told, &blob);
                let fits = usize::from(data.len() < MAX_UNIT_PLAIN) + 1;
                // Stored blocks end where units may.
                if level > 0 {
                    assert_eq!(units, if raw_only { 0 } else { fits }, "level {level}");
                }
            }
        }
    }
}

#[test]
fn nobody_need_listen() {
    let blob = gzip(&data(), 6);
    let mut plain = Vec::new();
    Gunzip::new(&blob[..], None)
        .read_to_end(&mut plain)
        .unwrap();
    assert!(plain == data());
    let (to, told) = sync_channel(1);
    drop(told);
    let listener = Listener {
        to,
        stopped: Arc::default(),
        raw_only: Arc::default(),
    };
    let mut gunzip = Gunzip::new(&blob[..], Some(listener.clone()));
    let mut plain = Vec::new();
    gunzip.read_to_end(&mut plain).unwrap();
    assert!(plain == data() && listener.stopped());
}

#[test]
fn whatever_is_cut_off_or_follows_is_an_error() {
    let blob = gzip(&data()[..1000], 6);
    for cut in 0..blob.len() {
        let (plain, _) = read(&blob[..cut], false);
        assert_eq!(plain.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
    for more in [&b"junk"[..], &[0], &[0x1f], &[0; 1000]] {
        assert!(read(&[&blob, more].concat(), false).0.is_err(), "{more:?}");
    }
    let mut wrong = blob.clone();
    *wrong.last_mut().unwrap() ^= 1;
    assert!(read(&wrong, false).0.is_err());
}

/// One block that never ends: no more of it is remembered than a unit may have.
#[test]
fn a_block_without_end_takes_no_more_room() {
    let mut bomb = BitWriter::default();
    for byte in [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0] {
        bomb.put(byte, 8);
    }
    bomb.put(0, 1);
    bomb.put(1, 2);
    // Fixed codes (RFC 1951, 3.2.6): the literal 0, then matches of 258 bytes, one byte back.
    bomb.put(u64::from(0x30u8.reverse_bits()), 8);
    for _ in 0..100_000 {
        bomb.put(u64::from(0xc5u8.reverse_bits()), 8);
        bomb.put(0, 5);
    }
    bomb.align();
    let (to, told) = sync_channel(1000);
    let listener = Listener {
        to,
        stopped: Arc::default(),
        raw_only: Arc::default(),
    };
    let mut gunzip = Gunzip::new(&bomb.bytes[..], Some(listener));
    let mut piece = vec![0; 100_000];
    let mut len = 0;
    let end = loop {
        match gunzip.read(&mut piece) {
            Ok(n) => len += n,
            Err(error) => break error,
        }
        assert!(gunzip.data.capacity() <= 2 * BUFFER);
    };
    assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
    assert!(len > 25_000_000, "{len}");
    drop(gunzip);
    assert!(
        told.iter()
            .all(|message| !matches!(message, Message::Unit(_)))
    );
}

proptest! {
    /// It takes what zlib takes, and makes the same of it.
    #[test]
    fn damage_is_seen_as_by_zlib(
        len in 0..3000usize,
        level in 0..10u32,
        hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut blob = [gzip(&data()[..len], level), gzip(b"more", level)].concat();
        for (at, with) in hits {
            let at = at.index(blob.len());
            blob[at] ^= with;
        }
        if cut.index(4) == 0 {
            blob.truncate(cut.index(blob.len()));
        }
        let (plain, told) = read(&blob, false);
        match expected(&blob) {
            Ok(expected) => {
                prop_assert!(plain.unwrap() == expected);
                check(&told, &blob);
            }
            Err(_) => prop_assert!(plain.is_err()),
        }
    }

    /// Blocks of any bits, without checksums to stop them.
    #[test]
    fn any_bits_are_refused_or_come_back(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut input = bytes.clone();
        input.resize(bytes.len() + LOOK_AHEAD, 0);
        let (mut inflater, mut matches) = (Inflater::new(), Matches::default());
        let (mut plain, mut bit, mut at) = (vec![0; 1 << 20], 0, 0);
        loop {
            let (from, block_bit) = (at, bit);
            matches.start = from;
            matches.list.clear();
            let room = Plain { bytes: &mut plain, at: &mut at, until: 1 << 19 };
            match inflater.run(&input, &mut bit, room, Some(&mut matches)) {
                Ok(Stop::Block { last }) if !matches.odd && bit <= bytes.len() * 8 => {
                    let coding = inflater.coding().clone();
                    let more: usize = matches.list.iter().map(|next| next.length() - 1).sum();
                    let tokens = match coding {
                        Coding::Stored { .. } => 0,
                        _ => at - from - more,
                    };
                    let mut unwritten = super::super::deflate::Unwritten {
                        plain: &plain[from..at],
                        at: 0,
                        matches: &matches.list,
                    };
                    let before = bytes.get(block_bit / 8).copied().unwrap_or(0);
                    let mut out = BitWriter::after(before, block_bit as u32 % 8);
                    unwritten.write(&Block { last, coding, tokens }, &mut out).unwrap();
                    prop_assert!(unwritten.is_empty());
                    prop_assert_eq!(&out.bytes[..], &bytes[block_bit / 8..bit / 8]);
                    if last {
                        break;
                    }
                }
                _ => break,
            }
        }
    }
}
