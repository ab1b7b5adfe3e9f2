//! Requests with the worst arguments there are.

use super::kernel::Body;

/// xorshift64* (Vigna, 2016).
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn of<'a, T: ?Sized>(&mut self, choice: &[&'a T]) -> &'a T {
        choice[self.roll() as usize % choice.len()]
    }

    pub fn pick<T: Copy>(&mut self, choice: &[T]) -> T {
        choice[self.roll() as usize % choice.len()]
    }

    /// A number as one would wish it least.
    fn number(&mut self) -> u64 {
        match self.roll() % 4 {
            0 => self.pick(&[0, 1, 2, 511, 4095, 4096, 4097, 65_535, 65_536]),
            1 => self.pick(&[
                u64::MAX,
                u64::MAX - 1,
                i64::MAX as u64,
                i64::MAX as u64 - 1,
                1 << 63,
                (1 << 63) + 1,
                u64::from(u32::MAX),
                1 << 32,
                1 << 62,
                1 << 44,
            ]),
            2 => self.roll() % 70_000,
            _ => self.roll(),
        }
    }

    fn word(&mut self) -> u32 {
        self.number() as u32
    }

    fn name(&mut self) -> Vec<u8> {
        let long = [b'n'; 5000];
        match self.roll() % 5 {
            0 => self.of(NAMES).to_vec(),
            1 => {
                let length = self.pick(&[254, 255, 256, 257, 1000, 4095, 4096, 5000]);
                long[..length].to_vec()
            }
            2 => {
                let mut bytes = self.roll().to_ne_bytes().to_vec();
                bytes.retain(|b| *b != 0);
                bytes
            }
            _ => format!("n{}", self.roll() % 8).into_bytes(),
        }
    }
}

pub const NAMES: &[&[u8]] = &[
    b"",
    b".",
    b"..",
    b"/",
    b"../canary",
    b"a/b",
    b"/etc/passwd",
    b"file",
    b"dir",
    b"link",
    b"fifo",
    b"twice",
    b"again",
    b"big",
    b".wh.file",
    b".wh..wh..opq",
    b"#1",
    b"\xff\xfe",
    b"new\nline",
    b"../upper",
];

pub const XATTRS: &[&[u8]] = &[
    b"user.a",
    b"user.",
    b"user",
    b"",
    b"trusted.overlay.opaque",
    b"trusted.overlay.redirect",
    b"user.overlay.whiteout",
    b"user.overlay.origin",
    b"security.capability",
    b"system.posix_acl_access",
    b"system.posix_acl_default",
    b"user.containers.override_stat",
    b"no.such.namespace",
];

pub const VALUES: &[&[u8]] = &[
    b"",
    b"y",
    b"../../../etc",
    &[0xff; 20],
    &[0; 300],
    b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff",
    &[7; 65_536],
    &[7; 65_537],
];

/// A body that suits `opcode`, with the worst in it. `nodes` are some that are known.
pub fn body(dice: &mut Dice, opcode: u32, nodes: &[u64]) -> Body {
    let b = Body::default();
    let any = dice.pick(nodes);
    let dir = dice.pick(&[1, any]);
    let (offset, size) = (dice.number(), dice.pick(&[0, 1, 23, 24, 4096, 65_536]));
    let most = opcode == 15 && dice.roll().is_multiple_of(4);
    match opcode {
        1 | 10 | 11 => b.name(&dice.name()),
        2 => b.u64(dice.number()),
        3 => b.u32(dice.word()).u32(0).u64(dice.number()),
        4 => {
            // valid, padding, fh, size, lock owner; times; nanoseconds below a second, as the kernel makes sure.
            let mut b = b.u32(dice.word()).u32(0);
            for _ in 0..3 {
                b = b.u64(dice.number());
            }
            for _ in 0..3 {
                b = b.u64(dice.number());
            }
            for _ in 0..3 {
                b = b.u32(0);
            }
            b.u32(dice.word())
                .u32(0)
                .u32(dice.word())
                .u32(dice.word())
                .u32(0)
        }
        6 => b.name(&dice.name()).name(&dice.name()),
        8 => b
            .u32(mode(dice))
            .u32(dice.word())
            .u32(dice.word())
            .u32(0)
            .name(&dice.name()),
        9 => b.u32(mode(dice)).u32(dice.word()).name(&dice.name()),
        12 => b.u64(dir).name(&dice.name()).name(&dice.name()),
        13 => b.u64(dice.pick(nodes)).name(&dice.name()),
        14 | 27 => b.u32(dice.word()).u32(dice.word()),
        15 | 28 | 44 => b
            .u64(dice.number())
            .u64(if most { offset | 1 << 62 } else { offset })
            // An answer must fit into a packet.
            .u32(if most { u32::MAX } else { size })
            .u32(dice.word())
            .u64(dice.number())
            .u32(dice.word())
            .u32(0),
        16 => {
            let length = dice.pick(&[0, 1, 4096, 4097, 100_000]);
            b.u64(dice.number())
                .u64(dice.number())
                .u32(length)
                .u32(dice.word())
                .u64(dice.number())
                .u32(dice.word())
                .u32(0)
                .bytes(&vec![b'w'; length as usize])
        }
        18 | 29 => b
            .u64(dice.number())
            .u32(dice.word())
            .u32(dice.word())
            .u64(dice.number()),
        20 | 30 => b.u64(dice.number()).u32(dice.word()).u32(0),
        21 => {
            let value = dice.of(VALUES);
            b.u32(value.len() as u32)
                .u32(dice.pick(&[0, 0, 0, 1, 2, 3, u32::MAX]))
                .name(dice.of(XATTRS))
                .bytes(value)
        }
        22 => b
            .u32(dice.pick(&[0, 1, 4096, 65_536, u32::MAX]))
            .u32(0)
            .name(dice.of(XATTRS)),
        23 => b.u32(dice.pick(&[0, 1, 4096, 65_536, u32::MAX])).u32(0),
        24 => b.name(dice.of(XATTRS)),
        25 => b.u64(dice.number()).u32(0).u32(0).u64(dice.number()),
        31..=33 => b
            .u64(dice.number())
            .u64(dice.number())
            .u64(dice.number())
            .u64(dice.number())
            .u32(dice.word())
            .u32(dice.word())
            .u32(dice.word())
            .u32(0),
        34 => b.u32(dice.word()).u32(0),
        35 | 51 => b
            .u32(dice.word())
            .u32(mode(dice))
            .u32(dice.word())
            .u32(0)
            .name(&dice.name()),
        36 => b.u64(dice.number()),
        37 => b.u64(dice.number()).u32(dice.word()).u32(0),
        39 => {
            let length = dice.pick(&[0, 1, 3, 4, 8, 28, 29, 4096]);
            let commands = [
                0x8008_6601,
                0x4008_6602,
                0x801c_581f,
                0x401c_5820,
                0,
                u32::MAX,
            ];
            b.u64(dice.number())
                .u32(dice.pick(&[0, 2, 4, 8, 16]))
                .u32(dice.pick(&commands))
                .u64(dice.number())
                .u32(length)
                .u32(dice.word())
                .bytes(&vec![0xff; length as usize])
        }
        40 => b
            .u64(dice.number())
            .u64(dice.number())
            .u32(dice.word())
            .u32(dice.word()),
        43 => b
            .u64(dice.number())
            .u64(dice.number())
            .u64(dice.number())
            .u32(dice.pick(&[0, 1, 2, 3, 8, 16, 32, 64, u32::MAX]))
            .u32(0),
        45 => b
            .u64(dir)
            .u32(dice.pick(&[0, 1, 2, 3, 4, 5, 6, 7, 8, u32::MAX]))
            .u32(0)
            .name(&dice.name())
            .name(&dice.name()),
        46 => b
            .u64(dice.number())
            .u64(dice.number())
            .u32(dice.pick(&[0, 1, 2, 3, 4, 5, u32::MAX]))
            .u32(0),
        47 => b
            .u64(dice.number())
            .u64(dice.number())
            .u64(dice.pick(nodes))
            .u64(dice.number())
            .u64(dice.number())
            .u64(dice.number())
            .u64(dice.pick(&[0, 0, 0, 1, u64::MAX])),
        _ => {
            let mut b = b;
            for _ in 0..dice.roll() % 12 {
                b = b.u64(dice.number());
            }
            b
        }
    }
}

fn mode(dice: &mut Dice) -> u32 {
    let kinds = [
        0,
        libc::S_IFREG,
        libc::S_IFDIR,
        libc::S_IFLNK,
        libc::S_IFIFO,
        libc::S_IFSOCK,
        libc::S_IFCHR,
        libc::S_IFBLK,
        0o170_000,
        0o050_000,
    ];
    dice.pick(&kinds) | dice.word() & 0o7777
}
