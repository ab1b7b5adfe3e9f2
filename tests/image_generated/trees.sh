#!/bin/sh
# Fills the directory $1 with small trees, each of what one kind of tar can say or one kind of reader gets wrong.
set -eu
cd "$1"
repeat() { printf "%$1s" '' | tr ' ' "$2"; }
mkdir -p plain/d/e plain/empty

# plain: what every dialect holds. Sizes around the block.
for size in 0 1 511 512 513 10000; do head -c "$size" /dev/zero | tr '\0' "$((size % 7))" > "plain/d/size-$size"; done
ln -s ../d/size-1 plain/d/e/link
for mode in 0000 0400 1777 2755 4755 6711; do install -m "$mode" /dev/null "plain/mode-$mode"; mkdir -m "$mode" "plain/dir-$mode"; done
chown 1000:1001 plain/d/e plain/mode-0400
find plain -exec touch -h -d @1000000000 {} +

# links: names of one file in several directories, links to symlinks.
cp -a plain links
ln links/d/size-513 links/a-first && ln links/d/size-513 links/d/e/third && ln links/d/e/link links/z-link

# special: FIFOs and devices, whiteouts' own among them.
cp -a plain special
mkfifo -m 622 special/fifo
mknod special/block b 7 300 && mknod special/null c 1 3 && mknod special/zero-zero c 0 0
find special -exec touch -h -d @1000000000 {} +

# names: long, odd, and not UTF-8.
mkdir -p "names/$(repeat 90 a)/$(repeat 90 b)/$(repeat 90 c)"
for name in ' ' '-dash' 'new
line' "$(printf 'latin1-\344')" "$(printf 'utf8-\303\244')" 'back\slash' '=equals' "$(repeat 99 x)" "$(repeat 100 x)" "$(repeat 101 x)" \
    "$(repeat 255 n)"; do printf '%s' "$name" > "names/$name"; done
echo deep > "names/$(repeat 90 a)/$(repeat 90 b)/$(repeat 90 c)/$(repeat 120 d)"
ln "names/$(repeat 255 n)" "names/$(repeat 200 l)"
for length in 99 100 101 400; do ln -s "$(repeat "$length" t)" "names/to-$length"; done

# times and owners beyond what eleven and seven octal digits hold.
mkdir times
for when in 0 1 -1 -1.25 -2147483649 0.000000001 1000000000.123456789 4294967296.5 8589934592; do touch -d "@$when" "times/at$when"; done
for id in 2097151 2097152 65534 4294967293; do echo "$id" > "times/id$id"; chown -h "$id:$id" "times/id$id"; done

# holes: none but a hole, at either end, and more runs than a header holds.
mkdir holes
truncate -s 300000 holes/all
{ echo begin; truncate -s 100000 holes/end; } > holes/end
truncate -s 65536 holes/begin && echo end >> holes/begin
for n in 0 2 4 6 8 10 12 14 16 18 20 22 24 26 28 30 32 34 36 38 40 42 44 46 48 50; do
    echo "$n" | dd of=holes/many bs=4096 seek="$n" conv=notrunc status=none
done
printf 'dense' > holes/dense

# attributes: xattrs, capabilities, ACLs of ids that have no name here: GNU tar writes names where there are any, and those mean nothing.
mkdir attributes attributes/dir
for name in user caps acl; do echo "$name" > "attributes/$name"; done
setfattr -n user.note -v value attributes/user && setfattr -n user.binary -v 0x00ff0a3d attributes/user
setfattr -n trusted.t -v t attributes/user && setcap cap_net_raw+ep attributes/caps
setfacl -m u:54321:rw,g:54322:r attributes/acl && setfacl -d -m g:54322:rx attributes/dir && setfattr -n user.note -v directory attributes/dir
