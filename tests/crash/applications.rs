//! What programs do that must survive a power cut: the update protocols of databases, mail spools,
//! version control and package managers, of the sort that ALICE looked at (Pillai et al., "All File
//! Systems Are Not Created Equal", 2014).

use crate::script::write_down::*;
use crate::script::{Op, Script};

fn durable(path: &str, length: usize, byte: u8) -> Vec<Op> {
    vec![create(path), write(path, 0, length, byte), fsync(path)]
}

fn concat(parts: impl IntoIterator<Item = Vec<Op>>) -> Vec<Op> {
    parts.into_iter().flatten().collect()
}

/// All of them.
pub fn all_scripts() -> Vec<Script> {
    let mut scripts = databases();
    scripts.extend(trees());
    scripts
}

fn databases() -> Vec<Script> {
    let mut log = vec![create("wal")];
    for record in 1..5u8 {
        log.extend([append("wal", 300 * usize::from(record), record), fdatasync("wal")]);
    }
    let rollback = vec![
        create("db-journal"),
        write("db-journal", 0, 512, 2),
        write("db-journal", 512, 8_208, 3),
        fsync("db-journal"),
        fsync(""),
        write("db-journal", 8, 4, 4),
        fsync("db-journal"),
        write("db", 4_096, 4_096, 5),
        write("db", 12_288, 4_096, 6),
        fsync("db"),
        unlink("db-journal"),
        fsync(""),
    ];
    let ahead = vec![
        append("db-wal", 4_120, 2),
        append("db-wal", 4_120, 3),
        fsync("db-wal"),
        append("db-wal", 4_120, 4),
        fsync("db-wal"),
        write("db", 0, 4_096, 2),
        write("db", 8_192, 8_192, 3),
        fsync("db"),
        truncate("db-wal", 0),
        append("db-wal", 4_120, 5),
        fsync("db-wal"),
    ];
    let manifest = vec![
        create("000005.log"),
        append("000005.log", 800, 2),
        fsync("000005.log"),
        create("000006.ldb"),
        write("000006.ldb", 0, 9_000, 3),
        fsync("000006.ldb"),
        create("MANIFEST-4"),
        append("MANIFEST-4", 200, 4),
        fsync("MANIFEST-4"),
        create("000004.dbtmp"),
        write("000004.dbtmp", 0, 16, 5),
        fsync("000004.dbtmp"),
        rename("000004.dbtmp", "CURRENT"),
        fsync(""),
        unlink("MANIFEST-3"),
        unlink("000003.log"),
    ];
    let pages = vec![
        write("lmdb", 8_192, 4_096, 2),
        write("lmdb", 16_384, 4_096, 3),
        fdatasync("lmdb"),
        write("lmdb", 0, 128, 4),
        fdatasync("lmdb"),
        write("lmdb", 20_480, 8_192, 5),
        fdatasync("lmdb"),
        write("lmdb", 4_096, 128, 6),
        fdatasync("lmdb"),
    ];
    let segment = vec![
        create("segment"),
        allocate("segment", 0, 65_536, true),
        append("segment", 1_000, 2),
        append("segment", 1_000, 3),
        fdatasync("segment"),
        append("segment", 9_000, 4),
        fdatasync("segment"),
        truncate("segment", 11_000),
        fsync("segment"),
        rename("segment", "segment.closed"),
        fsync(""),
    ];
    let old = [durable("MANIFEST-3", 100, 1), durable("000003.log", 2_000, 1)];
    vec![
        Script::new("app_log_appends", vec![], log),
        Script::new("app_rollback_journal", durable("db", 20_480, 1), rollback),
        Script::new(
            "app_write_ahead",
            concat([durable("db", 20_480, 1), vec![create("db-wal")]]),
            ahead,
        ),
        Script::new(
            "app_manifest_and_current",
            concat(old.into_iter().chain([durable("CURRENT", 16, 1)])),
            manifest,
        ),
        Script::new("app_copy_on_write_pages", durable("lmdb", 40_960, 1), pages),
        Script::new("app_preallocated_segment", vec![], segment),
    ]
}

fn trees() -> Vec<Script> {
    let replace = vec![
        create("file.tmp"),
        write("file.tmp", 0, 7_000, 2),
        fsync("file.tmp"),
        rename("file.tmp", "file"),
        fsync(""),
        create("file.tmp"),
        write("file.tmp", 0, 600, 3),
        rename("file.tmp", "file"),
    ];
    let object = vec![
        mkdir("objects/ab"),
        create("objects/ab/tmp_obj"),
        write("objects/ab/tmp_obj", 0, 1_500, 2),
        fsync("objects/ab/tmp_obj"),
        link("objects/ab/tmp_obj", "objects/ab/cdef"),
        unlink("objects/ab/tmp_obj"),
        Op::Chmod("objects/ab/cdef".into(), 0o444),
        create("refs/main.lock"),
        write("refs/main.lock", 0, 41, 3),
        fsync("refs/main.lock"),
        rename("refs/main.lock", "refs/main"),
        append("log", 150, 4),
        fsync("log"),
    ];
    let mut mail = Vec::new();
    for number in 1..4u8 {
        let (tmp, new) = (format!("tmp/{number}"), format!("new/{number}"));
        mail.extend([create(&tmp), write(&tmp, 0, 900 * usize::from(number), number)]);
        mail.extend([fsync(&tmp), link(&tmp, &new), unlink(&tmp), fsync("new")]);
    }
    mail.extend([rename("new/1", "cur/1"), rename("new/2", "cur/2"), fsync("cur")]);
    let generation = vec![
        mkdir("next"),
        create("next/one"),
        write("next/one", 0, 5_000, 2),
        create("next/two"),
        write("next/two", 0, 50, 3),
        fsync("next/two"),
        Op::Exchange("next".into(), "current".into()),
        fsync(""),
        unlink("next/one"),
        unlink("next/two"),
        rmdir("next"),
        fsync(""),
    ];
    let mut package = Vec::new();
    for path in ["bin/tool", "bin/data"] {
        let new = format!("{path}.new");
        package.extend([create(&new), write(&new, 0, 6_000, 2), Op::Chmod(new.clone(), 0o755)]);
        package.extend([Op::Chown(new.clone(), 0, 0), Op::Utimens(new, 77)]);
    }
    package.extend([fsync("bin/tool.new"), fsync("bin/data.new")]);
    package.extend([link("bin/tool", "bin/tool.old"), rename("bin/tool.new", "bin/tool")]);
    package.extend([rename("bin/data.new", "bin/data"), fsync("bin"), unlink("bin/tool.old")]);
    let editor = vec![
        link("text", "text~"),
        create("text.new"),
        write("text.new", 0, 5_500, 2),
        Op::SetXattr("text.new".into(), "user.charset", 5, 8),
        fsync("text.new"),
        rename("text.new", "text"),
        Op::OpenTruncated("text~".into()),
        write("text~", 0, 100, 3),
        fsync("text~"),
    ];
    let spool = [vec![mkdir("tmp"), mkdir("new"), mkdir("cur")]];
    let store = [vec![mkdir("objects"), mkdir("refs")], durable("refs/main", 41, 1)];
    let current = [vec![mkdir("current")], durable("current/one", 5_000, 1)];
    let bin = [vec![mkdir("bin")], durable("bin/tool", 5_000, 1), durable("bin/data", 900, 1)];
    vec![
        Script::new("app_replace_by_rename", durable("file", 5_000, 1), replace),
        Script::new(
            "app_version_control",
            concat(store.into_iter().chain([durable("log", 300, 1)])),
            object,
        ),
        Script::new("app_mail_spool", concat(spool), mail),
        Script::new(
            "app_generations",
            concat(current.into_iter().chain([durable("current/two", 60, 1)])),
            generation,
        ),
        Script::new("app_package_manager", concat(bin), package),
        Script::new("app_editor_with_backup", durable("text", 4_500, 1), editor),
    ]
}
