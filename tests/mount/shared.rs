//! Files that several processes use at a time, and mappings of them.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::{Child, Command, Stdio};

use crate::mounted::Mounted;

/// A Python program with arguments: mapping memory is not safe in Rust, and another process is what
/// these tests want anyway.
fn python(program: &str, arguments: &[&std::path::Path]) -> Child {
    let child = Command::new("python3").arg("-c").arg(program).args(arguments).spawn();
    child.expect("python3 can be run")
}

fn finish(mut child: Child) {
    assert!(child.wait().unwrap().success(), "the other process failed; see above");
}

#[test]
fn two_processes_append_whole_records() {
    let mounted = Mounted::new();
    let path = mounted.join("log");
    let program = "import os, sys\n\
        log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)\n\
        for i in range(1000): os.write(log, bytes([os.getpid() % 251]) * 101)\n";
    let (first, second) = (python(program, &[&path]), python(program, &[&path]));
    finish(first);
    finish(second);
    mounted.remount();
    let read = fs::read(&path).unwrap();
    assert_eq!(read.len(), 2 * 1_000 * 101);
    assert!(read.chunks(101).all(|record| record.iter().all(|byte| *byte == record[0])));
}

/// What is written through a mapping is what others read, what others write is seen in the mapping,
/// and all of it survives.
#[test]
fn a_mapping_and_files_are_one() {
    let mounted = Mounted::new();
    let path = mounted.join("mapped");
    let ready = mounted.join("ready");
    let length = 3 * 1024 * 1024 + 5;
    fs::write(&path, vec![b'.'; length]).unwrap();
    let program = "import mmap, os, sys, time\n\
        file = open(sys.argv[1], 'r+b')\n\
        mapped = mmap.mmap(file.fileno(), 0)\n\
        for at in range(0, len(mapped), 4096): mapped[at] = ord('m')\n\
        mapped[len(mapped) - 1] = ord('e')\n\
        open(sys.argv[2], 'w').close()\n\
        for i in range(1000):\n\
        \x20   if mapped[10] == ord('w'): break\n\
        \x20   time.sleep(0.01)\n\
        assert mapped[10] == ord('w'), 'a write was not seen in the mapping'\n\
        mapped[20] = ord('s')\n\
        mapped.flush()\n";
    let other = python(program, &[&path, &ready]);
    while !ready.exists() {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 8_192).unwrap();
    assert_eq!(&byte, b"m", "what the mapping wrote is not read");
    file.write_all_at(b"w", 10).unwrap();
    finish(other);
    drop(file);
    for moment in ["before", "after"] {
        let read = fs::read(&path).unwrap();
        let wrong = read.iter().enumerate().find(|&(at, &byte)| {
            let expected = match at {
                10 => b'w',
                20 => b's',
                _ if at + 1 == length => b'e',
                _ if at % 4_096 == 0 => b'm',
                _ => b'.',
            };
            byte != expected
        });
        assert_eq!((read.len(), wrong), (length, None), "{moment} the remount");
        mounted.remount();
    }
}

/// Past the page cache and through it, aligned as disks want it.
#[test]
fn direct_writes_and_reads_meet_buffered_ones() {
    let mounted = Mounted::new();
    let path = mounted.join("file");
    fs::write(&path, vec![b'b'; 1 << 20]).unwrap();
    let mut memory = vec![b'd'; 65_536 + 4_096];
    let start = memory.as_ptr().align_offset(4_096);
    let block = &mut memory[start..start + 65_536];
    let direct = |file: &mut OpenOptions| file.custom_flags(libc::O_DIRECT).open(&path).unwrap();
    let file = direct(OpenOptions::new().read(true).write(true));
    let buffered = File::options().read(true).write(true).open(&path).unwrap();
    // Dirty in the cache when the direct write comes, and clean in it when the next comes.
    buffered.write_all_at(&[b'c'; 100], 131_072 + 65_530).unwrap();
    file.write_all_at(block, 131_072).unwrap();
    let mut read = vec![0; 65_536 + 200];
    buffered.read_exact_at(&mut read, 131_072).unwrap();
    assert!(read[..65_536].iter().all(|byte| *byte == b'd'));
    assert_eq!((read[65_536 + 93], read[65_536 + 94]), (b'c', b'b'));
    buffered.write_all_at(b"again", 131_072).unwrap();
    file.read_exact_at(block, 131_072).unwrap();
    assert_eq!(&block[..6], b"againd");
    // Growing a file past the cache.
    block.fill(b'g');
    file.write_all_at(block, 1 << 20).unwrap();
    assert_eq!(buffered.metadata().unwrap().len(), (1 << 20) + 65_536);
    drop((file, buffered));
    mounted.remount();
    let read = fs::read(&path).unwrap();
    assert_eq!((read.len(), read[1 << 20]), ((1 << 20) + 65_536, b'g'));
    assert_eq!(&read[131_072..131_078], b"againd");
}

/// `git`, `apt` and databases rely on it: a program runs from the mount, and cannot be written
/// then.
#[test]
fn programs_run_and_are_busy_meanwhile() {
    let mounted = Mounted::new();
    let path = mounted.join("sleep");
    fs::copy("/bin/sleep", &path).unwrap();
    let mut running = Command::new(&path).arg("30").stdin(Stdio::null()).spawn().unwrap();
    let busy = File::options().write(true).open(&path).unwrap_err();
    assert_eq!(busy.raw_os_error(), Some(libc::ETXTBSY));
    running.kill().unwrap();
    running.wait().unwrap();
    File::options().write(true).open(&path).unwrap();
}

/// Records of every size from several processes: none is lost, torn or interleaved.
#[test]
fn four_processes_append_records_of_every_size() {
    let mounted = Mounted::new();
    let path = mounted.join("log");
    let program = "import os, random, sys\n\
        log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)\n\
        me = os.path.basename(sys.argv[2])\n\
        for i in range(400):\n\
        \x20   record = ('%s %d ' % (me, i)).encode()\n\
        \x20   record += me.encode() * random.choice([1, 100, 4096, 9000]) + b'\\n'\n\
        \x20   assert os.write(log, record) == len(record)\n\
        \x20   if i % 100 == 99: os.fsync(log)\n";
    let names = ["a", "b", "c", "d"];
    let writers: Vec<Child> =
        names.iter().map(|name| python(program, &[&path, std::path::Path::new(name)])).collect();
    writers.into_iter().for_each(finish);
    mounted.remount();
    let text = fs::read_to_string(&path).unwrap();
    let mut seen = std::collections::BTreeMap::new();
    for line in text.lines() {
        let [name, number, body] = line.splitn(3, ' ').collect::<Vec<_>>()[..] else {
            panic!("a torn record: {line:.80}");
        };
        assert!(body.chars().all(|letter| name == letter.to_string()), "interleaved: {line:.80}");
        let next: &mut u32 = seen.entry(name.to_owned()).or_default();
        assert_eq!(number, next.to_string(), "records of one process keep their order");
        *next += 1;
    }
    assert_eq!(seen.values().copied().collect::<Vec<_>>(), [400; 4]);
}

/// Two processes count in one shared page, with an atomicity that only a shared page gives them,
/// each in its own bytes; `msync` and a remount keep it all.
#[test]
fn two_mappings_are_one() {
    let mounted = Mounted::new();
    let path = mounted.join("mapped");
    fs::write(&path, vec![0; 65_536]).unwrap();
    let program = "import mmap, os, sys, time\n\
        me = int(sys.argv[2])\n\
        mapped = mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 65536)\n\
        end = time.time() + 60\n\
        for i in range(1, 201):\n\
        \x20   mapped[me] = i\n\
        \x20   mapped[4096 * (i % 16) + 100 + me] = i\n\
        \x20   while mapped[1 - me] < i:\n\
        \x20       assert time.time() < end, 'the other was not seen'\n\
        \x20       time.sleep(0)\n\
        mapped.flush()\n";
    let run = |me: &str| python(program, &[&path, std::path::Path::new(me)]);
    let (first, second) = (run("0"), run("1"));
    finish(first);
    finish(second);
    for _ in 0..2 {
        let read = fs::read(&path).unwrap();
        assert_eq!(read[..2], [200, 200]);
        for page in 0..16 {
            let last = (1..=200).rev().find(|i| i % 16 == page).unwrap() as u8;
            assert_eq!(read[4096 * page + 100..][..2], [last, last], "page {page}");
        }
        mounted.remount();
    }
}

/// `O_DIRECT` that is not aligned is taken, as the page cache's is; a disk would refuse it.
#[test]
fn direct_io_need_not_be_aligned() {
    let mounted = Mounted::new();
    if !mounted.is_atrest() {
        return;
    }
    let path = mounted.join("file");
    fs::write(&path, vec![b'.'; 20_000]).unwrap();
    let direct = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(&path);
    let direct = direct.unwrap();
    direct.write_all_at(b"direct", 4_095).unwrap();
    let mut read = [0; 8];
    direct.read_exact_at(&mut read, 4_094).unwrap();
    assert_eq!(&read, b".direct.");
    drop(direct);
    mounted.remount();
    assert_eq!(&fs::read(&path).unwrap()[4_094..4_102], b".direct.");
}
