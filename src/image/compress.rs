//! Compressed streams: recognised by content, read whole (all gzip members, all zstd frames), written deterministically.

use std::io::{self, BufRead, Cursor, Read, Write};

use super::limits::Limits;
use super::tar::{BLOCK, Header};

/// How a stream is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    #[default]
    None,
    Gzip,
    Zstd,
}

impl Compression {
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "tar",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

/// What the first bytes of a stream say it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sniffed {
    Tar,
    Gzip,
    Zstd,
    /// Begins like a JSON object or array.
    Json,
    Empty,
    /// Something else; its name if we know it.
    Other(Option<&'static str>),
}

impl Sniffed {
    /// Looks at the first 512 bytes (fewer if the stream is shorter).
    pub fn of(head: &[u8]) -> Self {
        if let Some(block) = head.first_chunk::<BLOCK>()
            && (block == &[0; BLOCK] || Header::looks_right(block))
        {
            return Self::Tar;
        }
        match head {
            [] => Self::Empty,
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A skippable frame may come first (zstd frame format, "Skippable Frames").
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Other(Some("xz")),
            [b'B', b'Z', b'h', ..] => Self::Other(Some("bzip2")),
            [0x04, 0x22, 0x4d, 0x18, ..] => Self::Other(Some("lz4")),
            [b'P', b'K', 3 | 5, 4 | 6, ..] => Self::Other(Some("zip")),
            [b'h', b's', b'q', b's', ..] => Self::Other(Some("squashfs")),
            [0x7f, b'E', b'L', b'F', ..] => Self::Other(Some("ELF")),
            _ => match head.trim_ascii_start().first() {
                Some(b'{' | b'[') => Self::Json,
                _ => Self::Other(None),
            },
        }
    }

    /// The compression, for what can be a tar.
    pub const fn compression(self) -> Option<Compression> {
        match self {
            Self::Tar => Some(Compression::None),
            Self::Gzip => Some(Compression::Gzip),
            Self::Zstd => Some(Compression::Zstd),
            Self::Json | Self::Empty | Self::Other(_) => None,
        }
    }

    /// Why this cannot be read as a tar, for people.
    pub fn complaint(self) -> String {
        match self {
            Self::Empty => "it is empty".to_owned(),
            Self::Json => "it is a JSON document, not an image archive".to_owned(),
            Self::Other(Some(known @ ("xz" | "bzip2" | "lz4"))) => {
                format!(
                    "it is compressed with {known}; only gzip, zstd and plain tar are read: decompress it first"
                )
            }
            Self::Other(Some(known)) => format!("it is a {known} file, not an image archive"),
            _ => "unknown format: it is neither a tar archive nor gzip or zstd data".to_owned(),
        }
    }
}

/// A stream whose beginning was looked at.
pub type Peeked<R> = io::Chain<Cursor<Vec<u8>>, R>;

/// Reads the first block of a stream (less if it ends) and gives it back with a reader of the whole.
pub fn peek<R: Read>(mut input: R) -> io::Result<(Vec<u8>, Peeked<R>)> {
    let mut head = Vec::with_capacity(BLOCK);
    input.by_ref().take(BLOCK as u64).read_to_end(&mut head)?;
    Ok((head.clone(), Cursor::new(head).chain(input)))
}

/// Decompresses `input`. An incomplete or damaged stream, and anything but further members or frames after the first, is
/// an error of the returned reader.
pub fn decoder<'a, R: BufRead + Send + 'a>(
    input: R,
    compression: Compression,
    limits: &Limits,
) -> io::Result<Box<dyn Read + Send + 'a>> {
    Ok(match compression {
        Compression::None => Box::new(input),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
            decoder.window_log_max(limits.zstd_window.max(1).ilog2())?;
            Box::new(decoder)
        }
    })
}

/// Compresses what is written to it. The output depends on the input and this program's version only.
pub enum Encoder<W: Write> {
    None(W),
    Gzip(flate2::write::GzEncoder<W>),
    Zstd(zstd::stream::write::Encoder<'static, W>),
}

impl<W: Write> Encoder<W> {
    pub fn new(output: W, compression: Compression) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::None(output),
            // No name, no time in the header.
            Compression::Gzip => {
                Self::Gzip(flate2::GzBuilder::new().write(output, flate2::Compression::new(6)))
            }
            Compression::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(output, 3)?;
                encoder.include_checksum(true)?;
                Self::Zstd(encoder)
            }
        })
    }

    /// Writes the end of the stream and gives the output back.
    pub fn finish(self) -> io::Result<W> {
        match self {
            Self::None(output) => Ok(output),
            Self::Gzip(encoder) => encoder.finish(),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::None(w) => w.write(buf),
            Self::Gzip(w) => w.write(buf),
            Self::Zstd(w) => w.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::None(w) => w.flush(),
            Self::Gzip(w) => w.flush(),
            Self::Zstd(w) => w.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(compression: Compression, data: &[u8]) -> Vec<u8> {
        let mut encoder = Encoder::new(Vec::new(), compression).unwrap();
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn read(bytes: &[u8], limits: &Limits) -> io::Result<Vec<u8>> {
        let compression = Sniffed::of(bytes)
            .compression()
            .ok_or(io::ErrorKind::InvalidData)?;
        let mut out = Vec::new();
        decoder(bytes, compression, limits)?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn every_member_and_frame_is_read() {
        let limits = Limits::default();
        for compression in [Compression::Gzip, Compression::Zstd] {
            let both = [round(compression, b"first"), round(compression, b"second")].concat();
            assert_eq!(read(&both, &limits).unwrap(), b"firstsecond");
            for cut in 1..both.len() {
                let whole = cut == round(compression, b"first").len();
                assert_eq!(
                    read(&both[..cut], &limits).is_ok(),
                    whole,
                    "{compression:?} cut at {cut}"
                );
            }
            assert!(read(&[&both, b"junk".as_slice()].concat(), &limits).is_err());
        }
        let skippable = [
            &[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3][..],
            &round(Compression::Zstd, b"x"),
        ]
        .concat();
        assert_eq!(read(&skippable, &limits).unwrap(), b"x");
    }

    #[test]
    fn zstd_windows_are_bounded() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(27).unwrap();
        encoder.write_all(b"x").unwrap();
        let bytes = encoder.finish().unwrap();
        assert!(read(&bytes, &Limits::default()).is_ok());
        let small = Limits {
            zstd_window: 1 << 20,
            ..Limits::default()
        };
        assert!(read(&bytes, &small).is_err());
    }

    #[test]
    fn formats_are_told_apart() {
        for (head, want) in [
            (&b""[..], Sniffed::Empty),
            (b" {\"a\":1}", Sniffed::Json),
            (b"\xfd7zXZ\0\0", Sniffed::Other(Some("xz"))),
            (b"hello", Sniffed::Other(None)),
            (b"\x1f\x8b\x08", Sniffed::Gzip),
        ] {
            assert_eq!(Sniffed::of(head), want);
        }
        assert_eq!(Sniffed::of(&[0; 1024]), Sniffed::Tar);
    }
}
