//! Extended attributes, and ACLs as the kernel hands them over: as extended attributes.

use super::edit::kind;
use super::{Ino, VolumeTree};
use crate::format::record::Inode;
use crate::fs::{Error, Kind, SetXattr, acl, acl::Acl};

/// Longest name in bytes (`XATTR_NAME_MAX`).
const NAME_BYTES_MAX: usize = 255;
/// Longest value in bytes (`XATTR_SIZE_MAX`).
const VALUE_BYTES_MAX: usize = 65_536;
/// Longest list of names, each with its NUL, in bytes (`XATTR_LIST_MAX`): more could not be listed.
const LIST_BYTES_MAX: usize = 65_536;
/// Namespaces in which any name may stand.
const PREFIXES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
/// File capabilities, which go when the file is written to.
const CAPABILITY: &[u8] = b"security.capability";

impl VolumeTree {
    pub(super) fn get_xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, Error> {
        check_name(name)?;
        let inode = self.inode(ino)?;
        self.xattr(ino, &inode, name)?.ok_or(Error::NoAttribute)
    }

    pub(super) fn list_xattrs(&self, ino: Ino) -> Result<Vec<u8>, Error> {
        let inode = self.inode(ino)?;
        let mut list = Vec::new();
        for name in self.xattr_names(ino, &inode)? {
            list.extend_from_slice(&name);
            list.push(0);
        }
        Ok(list)
    }

    pub(super) fn set_xattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        how: SetXattr,
    ) -> Result<(), Error> {
        check_name(name)?;
        if value.len() > VALUE_BYTES_MAX {
            return Err(Error::AttributeTooLarge);
        }
        let list = if is_acl(name) { Some(Acl::decode(value)?) } else { None };
        let _locks = self.volume.lock_inodes(&[ino]);
        let mut inode = self.inode(ino)?;
        let old = self.xattr(ino, &inode, name)?;
        match (&old, how) {
            (Some(_), SetXattr { create: true, .. }) => return Err(Error::Exists),
            (None, SetXattr { replace: true, .. }) => return Err(Error::NoAttribute),
            _ => {}
        }
        let value = match &list {
            None => Some(value.to_vec()),
            Some(list) => accept_acl(&mut inode, name, list.as_ref())?,
        };
        if how.kill_sgid && name == acl::ACCESS {
            inode.mode &= !libc::S_ISGID;
        }
        let old_bytes = old.map(|value| value.len());
        let Some(value) = value else { return self.put_without(ino, inode, name, old_bytes) };
        if old_bytes.is_none() {
            self.check_list(ino, &inode, name)?;
        }
        inode.has_xattrs = true;
        inode.ctime = self.volume.now();
        let shrinks = old_bytes.is_some_and(|old_bytes| old_bytes >= value.len());
        let change = self.volume.change(shrinks);
        let mut change = change.map_err(self.failed("setting an extended attribute", ino))?;
        change.put_xattr(ino, name, &value, old_bytes);
        change.put_inode(ino, &inode);
        Ok(())
    }

    pub(super) fn remove_xattr(&self, ino: Ino, name: &[u8]) -> Result<(), Error> {
        check_name(name)?;
        let _locks = self.volume.lock_inodes(&[ino]);
        let inode = self.inode(ino)?;
        let old = self.xattr(ino, &inode, name)?.ok_or(Error::NoAttribute)?;
        self.put_without(ino, inode, name, Some(old.len()))
    }

    /// Removes file capabilities, as every change of the content or the owner must.
    pub(super) fn drop_capability(&self, ino: Ino) -> Result<(), Error> {
        if !self.inode(ino)?.has_xattrs {
            return Ok(());
        }
        match self.remove_xattr(ino, CAPABILITY) {
            Err(Error::NoAttribute) => Ok(()),
            result => result,
        }
    }

    /// Puts the record of a locked inode and removes an attribute of `old_bytes`, if it is there.
    fn put_without(
        &self,
        ino: Ino,
        mut inode: Inode,
        name: &[u8],
        old_bytes: Option<usize>,
    ) -> Result<(), Error> {
        let names = self.xattr_names(ino, &inode)?;
        inode.has_xattrs = names.iter().any(|other| other != name);
        inode.ctime = self.volume.now();
        let change = self.volume.change(true);
        let mut change = change.map_err(self.failed("removing an extended attribute", ino))?;
        if let Some(old_bytes) = old_bytes {
            change.delete_xattr(ino, name, old_bytes);
        }
        change.put_inode(ino, &inode);
        Ok(())
    }

    fn check_list(&self, ino: Ino, inode: &Inode, name: &[u8]) -> Result<(), Error> {
        let names = self.xattr_names(ino, inode)?;
        let bytes: usize = names.iter().map(|name| name.len() + 1).sum();
        if bytes + name.len() + 1 > LIST_BYTES_MAX { Err(Error::NoSpace) } else { Ok(()) }
    }

    /// The value of an attribute, without a look at the volume if the inode has none at all.
    pub(super) fn xattr(
        &self,
        ino: Ino,
        inode: &Inode,
        name: &[u8],
    ) -> Result<Option<Vec<u8>>, Error> {
        if !inode.has_xattrs {
            return Ok(None);
        }
        self.volume.xattr(ino, name).map_err(self.failed("reading an extended attribute", ino))
    }

    fn xattr_names(&self, ino: Ino, inode: &Inode) -> Result<Vec<Vec<u8>>, Error> {
        if !inode.has_xattrs {
            return Ok(Vec::new());
        }
        self.volume.xattr_names(ino).map_err(self.failed("listing the extended attributes", ino))
    }
}

fn is_acl(name: &[u8]) -> bool {
    name == acl::ACCESS || name == acl::DEFAULT
}

/// Checks an ACL that is set and brings the mode in step. Returns what is to be kept: nothing, if
/// the list is empty or says no more than the mode.
fn accept_acl(
    inode: &mut Inode,
    name: &[u8],
    list: Option<&Acl>,
) -> Result<Option<Vec<u8>>, Error> {
    let kind = kind(inode);
    if kind == Some(Kind::Symlink) {
        return Err(Error::NotSupported);
    }
    let Some(list) = list else { return Ok(None) };
    if name == acl::DEFAULT {
        if kind != Some(Kind::Directory) {
            return Err(Error::NotPermitted);
        }
        return Ok(Some(list.encode()));
    }
    inode.mode = list.mode(inode.mode);
    Ok((!list.is_minimal()).then(|| list.encode()))
}

fn check_name(name: &[u8]) -> Result<(), Error> {
    if name.len() > NAME_BYTES_MAX {
        return Err(Error::NameTooLong);
    }
    if name.contains(&0) {
        return Err(Error::Invalid("the name of an extended attribute holds no NUL"));
    }
    if is_acl(name) {
        return Ok(());
    }
    match PREFIXES.iter().find(|prefix| name.starts_with(prefix)) {
        None => Err(Error::NotSupported),
        Some(prefix) if name.len() == prefix.len() => {
            Err(Error::Invalid("the name of an extended attribute ends after its namespace"))
        }
        Some(_) => Ok(()),
    }
}
