//! Symbolic links: their targets, and that none leads out of the archive.

use super::error::{ReadError, Refusal};
use super::index::{Content, Index, NodeId};
use super::limits::Limits;
use super::reader::Reader;

/// Links that are followed on one way, as Linux does (path_resolution(7)). Who asks for more gets
/// ELOOP and is nowhere.
const FOLLOWED_MAX: usize = 40;
/// Parts of paths that are walked for all links together, so that a few bytes of archive cannot ask
/// for hours.
const STEPS_MAX: u64 = 20_000_000;

/// Reads the targets of all links, and checks them.
///
/// # Errors
/// A target that cannot be read, is no target, or leads out.
pub(super) fn read(index: &mut Index, reader: &Reader) -> Result<(), Refusal> {
    let nodes = 0..index.len() as NodeId;
    let links: Vec<NodeId> =
        nodes.filter(|id| matches!(index.node(*id).content, Content::Symlink(_))).collect();
    for id in &links {
        let mut target = Vec::new();
        let length = Limits::TARGET_BYTES_MAX as usize;
        reader
            .read(*id, index.node(*id), 0, length, &mut target)
            .map_err(|source: ReadError| Refusal::LinkTarget { name: index.path(*id), source })?;
        index.set_target(*id, target);
    }
    let mut steps = 0;
    links.iter().try_for_each(|id| check(index, *id, &mut steps))
}

fn check(index: &Index, id: NodeId, steps: &mut u64) -> Result<(), Refusal> {
    let target = index.target(id).unwrap_or_default();
    let problem = if target.is_empty() {
        "leads nowhere"
    } else if target.contains(&0) {
        "holds a NUL"
    } else if leaves(index, index.node(id).parent, target, steps) {
        "leads out of the package"
    } else if *steps > STEPS_MAX {
        "is one of too many that lead through others"
    } else {
        return Ok(());
    };
    let (name, target) = (index.path(id), String::from_utf8_lossy(target).into_owned());
    Err(Refusal::Link { name, target, problem })
}

/// Whether `target`, followed from a directory as the kernel would, leaves the archive on its way.
fn leaves(index: &Index, directory: NodeId, target: &[u8], steps: &mut u64) -> bool {
    // What is still to be gone, last part first.
    let mut parts: Vec<&[u8]> = Vec::new();
    let mut at = directory;
    // Parts below `at` that are not there, or not directories: what the archive cannot say.
    let mut beyond: usize = 0;
    let mut followed = 0;
    if target.starts_with(b"/") {
        return true;
    }
    parts.extend(target.split(|byte| *byte == b'/').rev());
    while let Some(part) = parts.pop() {
        *steps += 1;
        match part {
            b"" | b"." => {}
            b".." if beyond > 0 => beyond -= 1,
            b".." if at == Index::ROOT => return true,
            b".." => at = index.node(at).parent,
            _ if beyond > 0 => beyond += 1,
            name => match index.lookup(at, name) {
                None => beyond = 1,
                Some(id) => match index.node(id).content {
                    Content::Directory { .. } => at = id,
                    Content::File(_) => beyond = 1,
                    Content::Symlink(_) => {
                        followed += 1;
                        if followed > FOLLOWED_MAX {
                            return false;
                        }
                        let target = index.target(id).unwrap_or_default();
                        if target.starts_with(b"/") {
                            return true;
                        }
                        parts.extend(target.split(|byte| *byte == b'/').rev());
                    }
                },
            },
        }
    }
    false
}
