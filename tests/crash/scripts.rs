//! Scripts written by hand, one for each kind of operation that a crash could tear apart.

use crate::script::write_down::*;
use crate::script::{Op, Script};

/// A durable file of so many bytes, each 1.
pub fn file(path: &str, length: usize) -> Vec<Op> {
    vec![create(path), write(path, 0, length, 1)]
}

/// Durable files and directories.
pub fn all(parts: impl IntoIterator<Item = Vec<Op>>) -> Vec<Op> {
    parts.into_iter().flatten().collect()
}

/// All of them.
pub fn all_scripts() -> Vec<Script> {
    let mut scripts = contents();
    scripts.extend(sizes_and_holes());
    scripts.extend(names());
    scripts.extend(attributes());
    scripts.extend(crate::space::all_scripts());
    scripts
}

/// Creating, appending, overwriting.
fn contents() -> Vec<Script> {
    vec![
        Script::new(
            "create_write_fsync",
            vec![],
            vec![
                create("small"),
                write("small", 0, 100, 1),
                fsync("small"),
                create("pages"),
                write("pages", 0, 20_000, 2),
                fsync("pages"),
                write("pages", 5_000, 3_000, 3),
                write("small", 50, 2_000, 4),
                fsync("small"),
            ],
        ),
        Script::new(
            "create_without_sync",
            vec![],
            vec![create("a"), write("a", 0, 6_000, 1), create("b"), write("b", 0, 10, 2)],
        ),
        Script::new(
            "append",
            file("a", 4_000),
            vec![
                append("a", 50, 2),
                append("a", 100, 3),
                fsync("a"),
                append("a", 10_000, 4),
                fdatasync("a"),
                append("a", 1, 5),
                append("a", 1, 6),
                Op::Sync,
            ],
        ),
        Script::new(
            "overwrite_within_pages",
            file("a", 40_960),
            vec![
                write("a", 8_192, 4_096, 2),
                write("a", 12_300, 100, 3),
                fsync("a"),
                write("a", 12_288, 8_192, 4),
                write("a", 12_288, 8_192, 5),
                fsync("a"),
            ],
        ),
        Script::new(
            "overwrite_across_pages_and_chunks",
            file("a", 300_000),
            vec![
                write("a", 4_000, 10_000, 2),
                write("a", 260_000, 5_000, 3),
                fsync("a"),
                write("a", 100_000, 180_000, 4),
                fsync("a"),
                write("a", 131_000, 200, 5),
            ],
        ),
        Script::new(
            "inline_grows_into_pages",
            file("a", 700),
            vec![
                append("a", 500, 2),
                append("a", 500, 3),
                fsync("a"),
                append("a", 4_000, 4),
                truncate("a", 100),
                fsync("a"),
                truncate("a", 0),
                write("a", 0, 50, 5),
                fsync("a"),
            ],
        ),
        Script::new(
            "inline_grows_into_pages_at_once",
            all([file("a", 700), file("b", 1_200), vec![create("c"), truncate("c", 900)]]),
            vec![
                write("a", 0, 8_192, 2),
                truncate("b", 5_000),
                write("c", 2_000, 10, 3),
                fsync("b"),
                write("b", 4_096, 4_096, 4),
            ],
        ),
        Script::new(
            "many_writes_one_sync",
            file("a", 20_000),
            vec![
                write("a", 0, 100, 2),
                write("a", 4_096, 4_096, 3),
                write("a", 10, 20, 4),
                append("a", 2_000, 5),
                write("a", 4_100, 1, 6),
                fsync("a"),
                write("a", 0, 20_000, 7),
            ],
        ),
    ]
}

/// Truncating, punching, allocating, copying.
fn sizes_and_holes() -> Vec<Script> {
    vec![
        Script::new(
            "truncate_down_up_rewrite",
            file("a", 300_000),
            vec![
                truncate("a", 100_001),
                truncate("a", 200_000),
                fsync("a"),
                truncate("a", 0),
                write("a", 0, 50_000, 2),
                fsync("a"),
                truncate("a", 4_096),
                truncate("a", 4_097),
                write("a", 4_096, 10, 3),
                fsync("a"),
            ],
        ),
        Script::new(
            "truncate_to_zero_and_rewrite",
            file("a", 9_000),
            vec![
                Op::OpenTruncated("a".into()),
                write("a", 0, 9_000, 2),
                fsync("a"),
                truncate("a", 0),
                truncate("a", 9_000),
                fsync("a"),
                Op::OpenTruncated("a".into()),
                write("a", 0, 10, 3),
            ],
        ),
        Script::new(
            "punch",
            file("a", 300_000),
            vec![
                punch("a", 10_000, 20_000),
                fsync("a"),
                punch("a", 0, 300_000),
                write("a", 4_096, 4_096, 2),
                fsync("a"),
                punch("a", 100, 200),
                zero("a", 290_000, 20_000),
                fsync("a"),
            ],
        ),
        Script::new(
            "zero_range_grows",
            all([file("a", 9_000), file("b", 600)]),
            vec![
                zero("a", 5_000, 10_000),
                zero("b", 100, 300),
                zero("b", 300, 5_000),
                fsync("b"),
                zero("a", 4_096, 4_096),
                Op::Sync,
            ],
        ),
        Script::new(
            "fallocate",
            all([file("a", 100), file("b", 5_000)]),
            vec![
                allocate("a", 0, 10_000, false),
                allocate("b", 0, 100_000, true),
                fsync("a"),
                write("a", 8_192, 1_000, 2),
                allocate("b", 4_096, 8_192, false),
                append("b", 10, 3),
                fdatasync("b"),
            ],
        ),
        Script::new(
            "copy_range",
            all([file("from", 12_000), file("to", 500), vec![punch("from", 4_096, 4_096)]]),
            vec![
                Op::Copy {
                    from: "from".into(),
                    from_offset: 100,
                    to: "to".into(),
                    to_offset: 50,
                    length: 11_000,
                },
                fsync("to"),
                Op::Copy {
                    from: "to".into(),
                    from_offset: 0,
                    to: "from".into(),
                    to_offset: 20_000,
                    length: 400,
                },
                Op::Sync,
            ],
        ),
    ]
}

/// Names that come, go and move.
fn names() -> Vec<Script> {
    let mut scripts = renames();
    scripts.extend(vec![
        Script::new(
            "link_and_unlink",
            all([file("a", 3_000), vec![mkdir("d")]]),
            vec![
                link("a", "d/b"),
                unlink("a"),
                fsync("d/b"),
                link("d/b", "a"),
                unlink("d/b"),
                create("d/b"),
                Op::Sync,
            ],
        ),
        Script::new(
            "unlink_while_open",
            all([file("a", 9_000), file("b", 100)]),
            vec![
                Op::Open("a".into(), 1),
                unlink("a"),
                Op::WriteOpen { slot: 1, offset: 0, length: 5_000, byte: 2 },
                fsync("b"),
                create("a"),
                Op::Close(1),
                write("a", 0, 9_000, 3),
                fsync("a"),
            ],
        ),
        Script::new(
            "nameless_file_gets_a_name",
            file("a", 10),
            vec![
                Op::Tmpfile(1),
                Op::WriteOpen { slot: 1, offset: 0, length: 6_000, byte: 2 },
                Op::LinkOpen(1, "b".into()),
                fsync("b"),
                Op::Close(1),
                Op::Tmpfile(2),
                fsync("a"),
                Op::Close(2),
            ],
        ),
        Script::new(
            "mkdir_and_fsync_of_the_parent",
            vec![mkdir("p")],
            vec![
                mkdir("p/q"),
                fsync("p"),
                create("p/q/a"),
                write("p/q/a", 0, 2_000, 1),
                fsync("p/q"),
                mkdir("p/q/r"),
                create("p/q/r/b"),
                fsync("p/q/r/b"),
            ],
        ),
        Script::new(
            "durable_files_move_into_a_new_directory",
            all([file("a", 5_000), file("b", 50)]),
            vec![
                mkdir("new"),
                rename("a", "new/a"),
                rename("b", "new/b"),
                fsync("new"),
                mkdir("newer"),
                rename("new", "newer/new"),
                Op::Sync,
            ],
        ),
        Script::new(
            "rmdir",
            all([vec![mkdir("d"), mkdir("d/e")], file("d/a", 100)]),
            vec![
                unlink("d/a"),
                rmdir("d/e"),
                rmdir("d"),
                Op::Sync,
                mkdir("d"),
                rmdir("d"),
                create("d"),
                fsync("d"),
            ],
        ),
        Script::new(
            "symlink_and_device",
            vec![],
            vec![
                Op::Symlink("short".into(), 10),
                Op::Symlink("long".into(), 3_000),
                Op::Mknod("device".into()),
                Op::Sync,
                unlink("long"),
                rename("short", "long"),
                Op::Sync,
            ],
        ),
    ]);
    scripts
}

fn renames() -> Vec<Script> {
    vec![
        Script::new(
            "rename_over",
            file("target", 9_000),
            vec![
                create("target.tmp"),
                write("target.tmp", 0, 12_000, 2),
                rename("target.tmp", "target"),
                create("other"),
                fsync("other"),
                mkdir("dir"),
                rename("target", "dir/moved"),
                Op::Sync,
            ],
        ),
        Script::new(
            "rename_over_then_fsync",
            file("target", 50),
            vec![
                create("tmp"),
                write("tmp", 0, 5_000, 2),
                fsync("tmp"),
                rename("tmp", "target"),
                create("tmp"),
                write("tmp", 0, 700, 3),
                rename("tmp", "target"),
                fsync("target"),
            ],
        ),
        Script::new(
            "exchange",
            all([file("a", 5_000), file("b", 100), vec![mkdir("d"), mkdir("e"), create("e/x")]]),
            vec![
                Op::Exchange("a".into(), "b".into()),
                write("a", 0, 10, 2),
                fsync("b"),
                Op::Exchange("a".into(), "e/x".into()),
                Op::Exchange("d".into(), "e".into()),
                Op::Sync,
            ],
        ),
        Script::new(
            "whiteout",
            all([file("a", 100), vec![mkdir("d")]]),
            vec![
                Op::Whiteout("a".into(), "d/a".into()),
                fsync("d/a"),
                rename("d/a", "a"),
                Op::Sync,
            ],
        ),
        Script::new(
            "rename_directory_over_an_empty_one",
            all([vec![mkdir("d"), mkdir("e")], file("d/a", 5_000)]),
            vec![rename("d", "e"), fsync("e/a"), mkdir("d"), rename("e/a", "d/a"), Op::Sync],
        ),
    ]
}

/// Attributes that change after contents did.
fn attributes() -> Vec<Script> {
    let capability = "security.capability";
    vec![
        Script::new(
            "attributes_after_write",
            file("a", 5_000),
            vec![
                write("a", 0, 5_000, 2),
                Op::Chmod("a".into(), 0o600),
                Op::Chown("a".into(), 7, 8),
                Op::Utimens("a".into(), 1_234),
                fsync("a"),
                write("a", 100, 10, 3),
                Op::SetXattr("a".into(), "user.key", 3_000, 9),
                Op::Utimens("a".into(), 5_678),
                fdatasync("a"),
            ],
        ),
        Script::new(
            "xattrs",
            all([file("a", 10), vec![mkdir("d")]]),
            vec![
                Op::SetXattr("a".into(), "user.one", 10, 1),
                Op::SetXattr("d".into(), "user.two", 2_000, 2),
                Op::SetXattr("a".into(), "user.one", 5_000, 3),
                fsync("a"),
                Op::RemoveXattr("a".into(), "user.one"),
                Op::SetXattr("d".into(), "user.two", 0, 0),
                Op::Sync,
            ],
        ),
        Script::new(
            "capability_goes_with_a_write",
            all([file("a", 700), vec![Op::SetXattr("a".into(), capability, 20, 1)]]),
            vec![
                Op::WriteKilling { path: "a".into(), offset: 600, length: 4_000, byte: 2 },
                fsync("a"),
                Op::SetXattr("a".into(), capability, 20, 2),
                Op::Chmod("a".into(), 0o4755),
                punch("a", 0, 4_096),
                Op::SetXattr("a".into(), capability, 20, 3),
                Op::Chown("a".into(), 5, 6),
                Op::Sync,
            ],
        ),
        Script::new(
            "size_and_more_in_one_call",
            all([file("a", 600), file("b", 9_000)]),
            vec![
                Op::SetAll("a".into(), 3_000, 0o600),
                Op::SetAll("b".into(), 5_000, 0o640),
                fsync("b"),
                Op::SetAll("b".into(), 0, 0o600),
                Op::SetAll("a".into(), 100, 0o644),
            ],
        ),
    ]
}
