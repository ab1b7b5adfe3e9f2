//! A compiler and make: a program of several files, of which some change; what it prints shows whether all of it is new.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::{Load, Outcome, Rng, at, run};

const PARTS: usize = 8;

pub struct Compile {
    rng: Rng,
    numbers: [u32; PARTS],
}

impl Compile {
    pub fn new(seed: u64) -> Self {
        Self {
            rng: Rng(seed),
            numbers: [1; PARTS],
        }
    }

    fn source(&self, part: usize) -> String {
        format!(
            "#include \"all.h\"\nunsigned part{part}(void) {{ return {}u; }}\n",
            self.numbers[part]
        )
    }

    fn write(&self, dir: &Path, part: usize) -> Outcome {
        let path = dir.join(format!("part{part}.c"));
        at("write", fs::write(path, self.source(part)))
    }

    fn make(&self, dir: &Path) -> Outcome {
        run(Command::new("make").args(["-s", "-j2"]).current_dir(dir))?;
        self.runs(dir)
    }

    fn runs(&self, dir: &Path) -> Outcome {
        let printed = run(&mut Command::new(dir.join("program")))?;
        let sum: u64 = self.numbers.iter().map(|n| u64::from(*n)).sum();
        if printed.trim() != sum.to_string() {
            return Err(format!("the program prints {printed}, not {sum}"));
        }
        Ok(())
    }
}

impl Load for Compile {
    fn name(&self) -> &'static str {
        "compile"
    }

    fn prepare(&mut self, dir: &Path) -> Outcome {
        let (mut header, mut sum, mut objects) = (String::new(), String::new(), String::new());
        for part in 0..PARTS {
            self.write(dir, part)?;
            header += &format!("unsigned part{part}(void);\n");
            sum += &format!(" + part{part}()");
            objects += &format!(" part{part}.o");
        }
        let main = format!(
            "#include <stdio.h>\n#include \"all.h\"\nint main(void) {{ printf(\"%llu\\n\", 0ull{sum}); return 0; }}\n"
        );
        let makefile =
            format!("program: main.o{objects}\n\tcc -o $@ $^\n%.o: %.c all.h\n\tcc -c -o $@ $<\n");
        for (name, text) in [("all.h", header), ("main.c", main), ("Makefile", makefile)] {
            at("write", fs::write(dir.join(name), text))?;
        }
        self.make(dir)
    }

    fn work(&mut self, dir: &Path) -> Outcome {
        for _ in 0..1 + self.rng.below(2) {
            let part = self.rng.below(PARTS);
            self.numbers[part] = self.rng.below(1 << 30) as u32;
            self.write(dir, part)?;
        }
        if self.rng.below(10) == 0 {
            at("remove", fs::remove_file(dir.join("program")))?;
        }
        self.make(dir)
    }

    fn check(&mut self, dir: &Path) -> Outcome {
        for part in 0..PARTS {
            let name = format!("part{part}.c");
            if at(&name, fs::read_to_string(dir.join(&name)))? != self.source(part) {
                return Err(format!("{name}: other text"));
            }
        }
        self.runs(dir)
    }

    /// What a compiler left half done make takes for done: it is built from the beginning, as one would.
    fn recover(&mut self, dir: &Path) -> Outcome {
        for entry in at("list", fs::read_dir(dir))? {
            at("remove", fs::remove_file(at("list", entry)?.path()))?;
        }
        self.prepare(dir)
    }
}
