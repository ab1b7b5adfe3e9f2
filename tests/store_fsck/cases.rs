//! What is done to a store, and what must come of it.

/// What a case must do to the image `bad`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Fate {
    Goes,
    Stays,
}
use Fate::{Goes, Stays};

/// Damage, whether rows alone tell of it, and what a repair must do.
pub const CASES: &[(&str, bool, Fate)] = &[
    // Bytes.
    (
        "UPDATE pack SET data = zeroblob(length(data)) WHERE id = (SELECT min(id) FROM bad_pack)",
        false,
        Goes,
    ),
    (
        "UPDATE pack SET data = randomblob(length(data)) WHERE id IN (SELECT id FROM bad_pack)",
        false,
        Goes,
    ),
    (
        "UPDATE chunk SET pack = (SELECT min(id) FROM bad_pack), offset = 0, len = 34 \
      WHERE id = (SELECT id FROM bad_chunk WHERE len = 34)",
        true,
        Goes,
    ),
    (
        "UPDATE recipe SET literals = zeroblob(length(literals)) WHERE layer = 3",
        false,
        Goes,
    ),
    (
        "UPDATE recipe SET literals = (SELECT literals FROM recipe WHERE layer = 1) WHERE layer = 3",
        false,
        Goes,
    ),
    // Packs and chunks.
    (
        "UPDATE chunk SET len = 9223372036854775807 WHERE id IN (SELECT id FROM bad_chunk)",
        true,
        Goes,
    ),
    (
        "DELETE FROM pack WHERE id = (SELECT max(id) FROM bad_pack)",
        true,
        Goes,
    ),
    ("UPDATE pack SET codec = 9 WHERE id IN bad_pack", true, Goes),
    (
        "UPDATE pack SET raw_len = 1 << 40 WHERE id IN bad_pack",
        true,
        Goes,
    ),
    (
        "UPDATE pack SET raw_len = -1 WHERE id IN bad_pack",
        true,
        Goes,
    ),
    (
        "DELETE FROM chunk WHERE id = (SELECT max(id) FROM bad_chunk)",
        true,
        Goes,
    ),
    (
        "DELETE FROM chunk WHERE id IN (SELECT id FROM bad_chunk)",
        true,
        Goes,
    ),
    (
        "UPDATE chunk SET offset = 1 << 31 WHERE id = (SELECT max(id) FROM bad_chunk)",
        true,
        Goes,
    ),
    (
        "UPDATE chunk SET offset = -1 WHERE id = (SELECT max(id) FROM bad_chunk)",
        true,
        Goes,
    ),
    (
        "UPDATE chunk SET len = 0 WHERE id = (SELECT max(id) FROM bad_chunk)",
        true,
        Goes,
    ),
    (
        "UPDATE chunk SET len = len - 1 WHERE id = (SELECT max(id) FROM bad_chunk WHERE len > 16384)",
        true,
        Goes,
    ),
    (
        "UPDATE chunk SET sha256 = x'00' WHERE id = (SELECT max(id) FROM bad_chunk)",
        true,
        Goes,
    ),
    (
        "UPDATE chunk SET sha256 = zeroblob(32) WHERE id = (SELECT id FROM bad_chunk WHERE len = 34)",
        false,
        Goes,
    ),
    // Contents.
    (
        "DELETE FROM content WHERE id IN (SELECT id FROM bad_content)",
        true,
        Goes,
    ),
    (
        "UPDATE content SET size = -5 WHERE id IN (SELECT id FROM bad_content)",
        true,
        Goes,
    ),
    (
        "UPDATE content SET size = size + 1 WHERE id IN (SELECT id FROM bad_content)",
        true,
        Goes,
    ),
    (
        "UPDATE content SET data_size = data_size - 1 WHERE id IN (SELECT id FROM bad_content)",
        true,
        Goes,
    ),
    (
        "UPDATE content SET digest = zeroblob(32) WHERE id = (SELECT max(id) FROM bad_content)",
        true,
        Goes,
    ),
    (
        "DELETE FROM extent WHERE content IN (SELECT id FROM bad_content)",
        true,
        Goes,
    ),
    (
        "UPDATE extent SET list = x'' WHERE content IN (SELECT id FROM bad_content)",
        true,
        Goes,
    ),
    (
        "UPDATE extent SET list = x'ffff' WHERE content IN (SELECT id FROM bad_content)",
        true,
        Goes,
    ),
    (
        "UPDATE extent SET start = 1 WHERE content IN (SELECT id FROM bad_content)",
        true,
        Goes,
    ),
    // Trees.
    ("DELETE FROM inode WHERE layer = 3 AND ino > 1", true, Goes),
    ("DELETE FROM inode WHERE layer = 3 AND ino = 1", true, Goes),
    (
        "UPDATE inode SET kind = 42 WHERE layer = 3 AND kind = 1",
        true,
        Goes,
    ),
    (
        "UPDATE inode SET kind = 2 WHERE layer = 3 AND kind = 1",
        true,
        Goes,
    ),
    (
        "UPDATE inode SET size = -1 WHERE layer = 3 AND kind = 1",
        true,
        Goes,
    ),
    (
        "UPDATE inode SET size = size + 1 WHERE layer = 3 AND kind = 1",
        true,
        Goes,
    ),
    (
        "UPDATE inode SET data_size = -1 WHERE layer = 3 AND kind = 1",
        true,
        Goes,
    ),
    (
        "UPDATE inode SET mtime_ns = 1000000000 WHERE layer = 3",
        true,
        Goes,
    ),
    ("UPDATE inode SET uid = -1 WHERE layer = 3", true, Goes),
    (
        "UPDATE inode SET content = -1 WHERE layer = 3 AND content > 0",
        true,
        Goes,
    ),
    (
        "UPDATE inode SET content = 0 WHERE layer = 3 AND content > 0",
        true,
        Goes,
    ),
    (
        "UPDATE inode SET content = 1 << 60 WHERE layer = 3 AND content > 0",
        true,
        Goes,
    ),
    (
        "UPDATE inode SET content = 6 WHERE layer = 3 AND kind = 3",
        true,
        Goes,
    ),
    ("UPDATE inode SET target = NULL WHERE layer = 3", true, Goes),
    (
        "UPDATE inode SET target = x'610061' WHERE layer = 3 AND kind = 3",
        true,
        Goes,
    ),
    (
        "UPDATE inode SET target = x'61' WHERE layer = 3 AND kind = 1",
        true,
        Goes,
    ),
    (
        "UPDATE inode SET xattrs = x'ff' WHERE layer = 3",
        true,
        Goes,
    ),
    ("UPDATE inode SET flags = 64 WHERE layer = 3", true, Goes),
    (
        "UPDATE dentry SET name = x'2e2e' WHERE layer = 3 AND name = x'6c'",
        true,
        Goes,
    ),
    (
        "UPDATE dentry SET name = x'2e' WHERE layer = 3 AND name = x'6c'",
        true,
        Goes,
    ),
    (
        "UPDATE dentry SET name = x'612f62' WHERE layer = 3 AND name = x'6c'",
        true,
        Goes,
    ),
    (
        "UPDATE dentry SET name = x'6100' WHERE layer = 3 AND name = x'6c'",
        true,
        Goes,
    ),
    (
        "UPDATE dentry SET name = x'' WHERE layer = 3 AND name = x'6c'",
        true,
        Goes,
    ),
    (
        "UPDATE dentry SET name = zeroblob(300) WHERE layer = 3 AND name = x'6c'",
        true,
        Goes,
    ),
    ("UPDATE dentry SET kind = 99 WHERE layer = 3", true, Goes),
    (
        "UPDATE dentry SET kind = 1 WHERE layer = 3 AND kind = 3",
        true,
        Goes,
    ),
    (
        "UPDATE dentry SET kind = 0 WHERE layer = 3 AND kind = 3",
        true,
        Goes,
    ),
    (
        "UPDATE dentry SET ino = 99 WHERE layer = 3 AND kind = 1",
        true,
        Goes,
    ),
    (
        "UPDATE dentry SET ino = -1 WHERE layer = 3 AND kind = 1",
        true,
        Goes,
    ),
    (
        "UPDATE dentry SET parent = 99 WHERE layer = 3 AND name = x'6c'",
        true,
        Goes,
    ),
    (
        "UPDATE dentry SET parent = (SELECT ino FROM inode WHERE layer = 3 AND kind = 3) \
      WHERE layer = 3 AND name = x'66'",
        true,
        Goes,
    ),
    (
        "UPDATE dentry SET ino = parent WHERE layer = 3 AND name = x'65'",
        true,
        Goes,
    ),
    (
        "UPDATE dentry SET parent = ino WHERE layer = 3 AND name = x'65'",
        true,
        Goes,
    ),
    (
        "INSERT INTO dentry SELECT layer, 1, x'7a', ino, kind FROM dentry WHERE layer = 3 AND name = x'65'",
        true,
        Goes,
    ),
    (
        "DELETE FROM dentry WHERE layer = 3 AND name = x'6c'",
        true,
        Goes,
    ),
    (
        "DELETE FROM dentry WHERE layer = 3 AND kind = 0",
        true,
        Goes,
    ),
    // Recipes.
    ("DELETE FROM recipe WHERE layer = 3", true, Goes),
    ("UPDATE recipe SET ops = x'ff' WHERE layer = 3", true, Goes),
    (
        "UPDATE recipe SET ops = x'feffffff0f' WHERE layer = 3",
        true,
        Goes,
    ),
    (
        "UPDATE recipe SET raw_len = raw_len + 1 WHERE layer = 3",
        true,
        Goes,
    ),
    ("UPDATE recipe SET seq = 5 WHERE layer = 3", true, Goes),
    (
        "UPDATE layer SET tar_size = tar_size + 1 WHERE id = 3",
        true,
        Goes,
    ),
    (
        "UPDATE layer SET entries = entries + 1 WHERE id = 3",
        true,
        Goes,
    ),
    (
        "UPDATE layer SET diff_id = zeroblob(32) WHERE id = 3",
        false,
        Goes,
    ),
    // Images.
    ("DELETE FROM layer WHERE id = 3", true, Goes),
    (
        "UPDATE image_layer SET position = 7 WHERE layer = 3",
        true,
        Goes,
    ),
    (
        "UPDATE image_layer SET layer = 77 WHERE layer = 3",
        true,
        Goes,
    ),
    (
        "DELETE FROM document WHERE data = CAST('bad' AS BLOB)",
        true,
        Goes,
    ),
    (
        "UPDATE document SET data = x'00' WHERE data = CAST('config of bad' AS BLOB)",
        true,
        Goes,
    ),
    ("UPDATE image SET config = x'00' WHERE id = 2", true, Goes),
    ("DELETE FROM image WHERE id = 2", true, Goes),
    // What can be put right.
    ("UPDATE inode SET nlink = 7 WHERE layer = 3", true, Stays),
    (
        "UPDATE inode SET nlink = 9 WHERE layer = 1 AND ino = 1; UPDATE layer SET files_size = 1",
        true,
        Stays,
    ),
    ("UPDATE sequence SET next = 1", true, Stays),
    (
        "UPDATE sequence SET next = -9 WHERE name = 'chunk'",
        true,
        Stays,
    ),
    ("DELETE FROM sequence", true, Stays),
    ("INSERT INTO name VALUES ('nowhere', 99)", true, Stays),
    ("INSERT INTO image_layer VALUES (99, 0, 1)", true, Stays),
    (
        "INSERT INTO lease VALUES (1, 77, 1, 1, '', 1, '', 1)",
        true,
        Stays,
    ),
    (
        "INSERT INTO lease_layer VALUES (55, 1), (55, 99)",
        true,
        Stays,
    ),
    (
        "INSERT INTO document VALUES (99, zeroblob(32), x'01')",
        true,
        Stays,
    ),
    // Blobs and indexes: the image itself needs neither.
    (
        "UPDATE blob_part SET data = zeroblob(length(data)) WHERE seq = 0",
        false,
        Stays,
    ),
    ("DELETE FROM blob_part WHERE seq = 1", true, Stays),
    ("UPDATE blob SET layer = 99", true, Stays),
    ("INSERT INTO image_blob VALUES (77, 1)", true, Stays),
    ("INSERT INTO image_blob VALUES (1, 77)", true, Stays),
    (
        "INSERT INTO name_index VALUES ('x', 0, zeroblob(32))",
        true,
        Stays,
    ),
    (
        "DELETE FROM document WHERE data = CAST('an index' AS BLOB)",
        true,
        Stays,
    ),
    (
        "UPDATE document SET data = x'00' WHERE data = CAST('an index' AS BLOB)",
        true,
        Stays,
    ),
];
