PREFIX ?= /usr/local
CARGO ?= cargo
OVL = target/debug/ovl
INSTALL = $(DESTDIR)$(PREFIX)
# Where mount(8) looks for its helpers (/sbin is this); of no use there to an installation for one user.
SBIN ?= $(if $(filter /usr /usr/local,$(PREFIX)),/usr/sbin,$(PREFIX)/sbin)

help: ## Print this
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 13

demo: ## Import a real Debian image, mount it, change it, see the difference, keep it
	@fixtures/setup.sh demo
	$(CARGO) build --locked
	@fixtures/demo.sh $(OVL)

test: images ## Run every test (root and /dev/fuse are needed, as for mounting)
	$(CARGO) test --locked --no-fail-fast

images: ## Make the test images (once; kept in ~/.cache/ovl-test-images)
	@fixtures/setup.sh test
	@for set in base small five; do fixtures/images.sh $$set; done

# ONLY=data,metadata,changes,programs,memory,mount,store,containers (or keys of rows): only these are measured, the others kept.
bench: ## Measure ovl against other file systems and image stores; writes docs/benchmarks.md (root; an hour and a half; ONLY=GROUPS)
	@$(MAKE) -s bench-with MODE=full

bench-quick: ## The same in under ten minutes (once built), with fewer and smaller files
	@$(MAKE) -s bench-with MODE=quick

bench-with: target/peers/bin/fuse-overlayfs
	@fixtures/setup.sh bench
	@for set in base five; do fixtures/images.sh $$set; done
	$(CARGO) bench --locked --bench ovl -- --mode $(MODE) --out docs $(if $(ONLY),--only $(ONLY))

target/peers/bin/fuse-overlayfs:
	$(CARGO) install --locked --root target/peers fuse-overlayfs@2.0.0

torture: images ## The long campaigns: model, crashes, power cuts, failing disks, fsx, tars (about three hours)
	MODEL_SEQUENCES=10000 OVL_CRASH_ROUNDS=500 OVL_SQLITE_ROUNDS=100 OVL_MOUNT_CYCLES=2000 OVL_FSX_SEEDS=10 \
		OVL_FSX_OPERATIONS=100000 OVL_PASSTHROUGH_SEQUENCES=3000 OVL_POWER_STATES=0 OVL_UPPER_CUTS=400 OVL_FAULTS=0 OVL_KILL_ROUNDS=1000 OVL_TAR_SEEDS=300 \
		$(CARGO) test --locked --no-fail-fast --test model --test crash --test sqlite --test posix_suite --test mount_passthrough \
		--test mount_cycles --test upper_power --test store_power --test store_faults --test store_processes --test image_generated

TIME ?= 60
# RUSTC_BOOTSTRAP lets the stable compiler take the flags by which cargo-fuzz has code instrumented.
fuzz: target/tools/bin/cargo-fuzz ## Fuzz each target for TIME=60 seconds; what it finds is left in target/fuzz
	@set -e; for target in $$(ls fixtures/fuzz); do \
		found=$(CURDIR)/target/fuzz/found/$$target; mkdir -p $$found/corpus $$found/failures; \
		RUSTC_BOOTSTRAP=1 $< fuzz run --fuzz-dir tests/fuzz --target-dir $(CURDIR)/target/fuzz --sanitizer none $$target \
			$$found/corpus $(CURDIR)/fixtures/fuzz/$$target -- -max_total_time=$(TIME) -max_len=32768 -timeout=30 \
			-rss_limit_mb=1500 -artifact_prefix=$$found/failures/ -print_final_stats=1; done

target/tools/bin/cargo-fuzz:
	$(CARGO) install --locked --root target/tools --target-dir target/tools/build cargo-fuzz@0.13.2
	rm -rf target/tools/build

soak: images ## Everyday programs on several mounts for TIME=60 seconds, with kills, remounts and gc; all is checked by content
	OVL_SOAK_SECONDS=$(TIME) $(CARGO) test --locked --test soak -- --nocapture

# The parsers and the rooms with unsafe code, with the compiler's address sanitizer; nightly's switch, as for fuzzing.
SANITIZED = -Zsanitizer=address
sanitize: ## Run the unit tests and the fuzz corpus with the address sanitizer
	RUSTC_BOOTSTRAP=1 RUSTFLAGS="$(SANITIZED)" ASAN_OPTIONS=detect_leaks=0 $(CARGO) test --locked --target-dir target/sanitize \
		--target $$(rustc -vV | sed -n 's/^host: //p') --lib --test fuzz_corpus

audit: target/tools/bin/cargo-deny ## Ask cargo-deny about vulnerabilities (needs the network), licences, duplicates and sources
	$< check

target/tools/bin/cargo-deny:
	$(CARGO) install --locked --root target/tools --target-dir target/tools/build cargo-deny@0.20.2
	rm -rf target/tools/build

lint: ## Check the formatting and run clippy
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings

build: ## Build target/release/ovl
	@fixtures/setup.sh build
	$(CARGO) build --locked --release

install: build ## Install the program, its other names, man pages and completions under PREFIX=/usr/local (and DESTDIR=)
	install -D -s -t $(INSTALL)/bin target/release/ovl
	ln -sf ovl $(INSTALL)/bin/fuse-overlayfs
	ln -sf ovl $(INSTALL)/bin/ovl-fuse
	install -d $(DESTDIR)$(SBIN)
	ln -sf $(PREFIX)/bin/ovl $(DESTDIR)$(SBIN)/mount.fuse.ovl
	install -d $(INSTALL)/share/man/man1 $(INSTALL)/share/bash-completion/completions \
		$(INSTALL)/share/zsh/site-functions $(INSTALL)/share/fish/vendor_completions.d
	target/release/ovl man $(INSTALL)/share/man/man1
	target/release/ovl completion bash > $(INSTALL)/share/bash-completion/completions/ovl
	target/release/ovl completion zsh > $(INSTALL)/share/zsh/site-functions/_ovl
	target/release/ovl completion fish > $(INSTALL)/share/fish/vendor_completions.d/ovl.fish

clean: ## Remove what was built, and the test images
	$(CARGO) clean
	rm -rf "$${OVL_CACHE:-$${XDG_CACHE_HOME:-$$HOME/.cache}/ovl-test-images}"

.PHONY: help demo test images bench bench-quick bench-with torture fuzz soak sanitize audit lint build install clean
