//! Managing key slots: adding, removing, wrapping again, and seeing whether they do what they must.
//!
//! Nothing here takes a slot away before its successor has been unwrapped to the same key.

use std::sync::Arc;

use super::{KeyError, VolumeKeys, integrity, unwrap_slot};
use crate::crypto::{Secret, random};
use crate::format::config::{Config, KekReference, KeySlot, SLOTS_MAX};
use crate::key::{Binding, Health, KekError, KekProvider, ProviderOptions, provider_from_uri};

/// What [`VolumeKeys::rotate_slots`] did with a slot.
#[derive(Debug)]
pub struct Rotation {
    /// Number of the slot.
    pub slot: u32,
    /// URI of its provider.
    pub provider: String,
    /// The version that it is wrapped under now, if that is another one; the slot is as it was if
    /// this is an error.
    pub result: Result<Option<String>, KekError>,
}

/// What [`VolumeKeys::check_slots`] found of a slot.
#[derive(Debug)]
pub struct SlotCheck {
    /// Number of the slot.
    pub slot: u32,
    /// URI of its provider.
    pub provider: String,
    /// The key that wrapped it.
    pub kek: KekReference,
    /// Whether every epoch unwraps to the volume's key.
    pub unwraps: Result<(), KekError>,
    /// Whether a secret can be wrapped now and unwrapped again, which rotation needs. `None` for a
    /// passphrase, which would have to be asked for, and where there is no provider to ask.
    pub wraps: Option<Result<(), KekError>>,
    /// The condition of the key; `None` if there is no provider to ask.
    pub health: Option<Result<Health, KekError>>,
    /// The newest version of the KEK, if the slot is wrapped under an older one.
    pub newer_version: Option<String>,
}

impl SlotCheck {
    /// Whether the slot opens the volume, and can be wrapped again.
    pub fn is_good(&self) -> bool {
        self.unwraps.is_ok() && !matches!(self.wraps, Some(Err(_)))
    }
}

impl VolumeKeys {
    /// Adds a slot that `provider` wraps; its number is one more than the highest.
    ///
    /// # Errors
    /// [`KeyError::SlotsFull`], or the provider's.
    pub fn add_slot(
        &self,
        config: &Config,
        provider: &dyn KekProvider,
    ) -> Result<(Config, u32), KeyError> {
        let mut data = self.next(config);
        let highest = data.slots.last().map_or(0, |slot| slot.id);
        let id = highest.checked_add(1).ok_or(KeyError::SlotsFull)?;
        if data.slots.len() >= SLOTS_MAX {
            return Err(KeyError::SlotsFull);
        }
        data.slots.push(self.wrap_slot(id, provider)?);
        Ok((self.seal(data)?, id))
    }

    /// Removes a slot. Who has a copy of the old configuration and the KEK can still open the
    /// volume: rotate the volume key to end that.
    ///
    /// # Errors
    /// [`KeyError::NoSuchSlot`], [`KeyError::LastSlot`].
    pub fn remove_slot(&self, config: &Config, id: u32) -> Result<Config, KeyError> {
        let mut data = self.next(config);
        let at = data.slots.iter().position(|slot| slot.id == id);
        let at = at.ok_or(KeyError::NoSuchSlot(id))?;
        if data.slots.len() == 1 {
            return Err(KeyError::LastSlot(id));
        }
        data.slots.remove(at);
        self.seal(data)
    }

    /// Wraps a slot again, under the newest version of `provider`'s KEK, which may be another than
    /// before; what wrapped the slot until now is not needed. With `new_version`, `provider` makes
    /// a version first. A passphrase is changed this way.
    ///
    /// # Errors
    /// [`KeyError::NoSuchSlot`], or the provider's.
    pub fn rotate_slot(
        &self,
        config: &Config,
        id: u32,
        provider: &dyn KekProvider,
        new_version: bool,
    ) -> Result<Config, KeyError> {
        let mut data = self.next(config);
        let slot = data.slots.iter_mut().find(|slot| slot.id == id);
        let slot = slot.ok_or(KeyError::NoSuchSlot(id))?;
        if new_version {
            provider.create_version()?;
        }
        *slot = self.wrap_slot(id, provider)?;
        self.seal(data)
    }

    /// Wraps every slot again whose KEK has versions and, with `new_version` or on its own account,
    /// a newer one. Returns the new configuration, or `None` if no slot changed, and a report of
    /// each slot: one that fails stays as it was and does not keep the others from rotating.
    ///
    /// # Errors
    /// [`KeyError::Config`] if the result is out of bounds.
    pub fn rotate_slots(
        &self,
        config: &Config,
        options: &ProviderOptions,
        new_version: bool,
    ) -> Result<(Option<Config>, Vec<Rotation>), KeyError> {
        let mut data = self.next(config);
        let (mut changed, mut reports) = (false, Vec::new());
        for slot in &mut data.slots {
            let newer = self.rotate_if_outdated(slot, options, new_version);
            let result = newer.map(|newer| {
                let newer = newer?;
                changed = true;
                *slot = newer;
                Some(slot.kek.key_version.clone())
            });
            reports.push(Rotation { slot: slot.id, provider: slot.provider.clone(), result });
        }
        let config = if changed { Some(self.seal(data)?) } else { None };
        Ok((config, reports))
    }

    /// Tries every slot, or the one of that number: see [`SlotCheck`]. Each takes up to five
    /// requests to its provider.
    ///
    /// # Errors
    /// [`KeyError::NoSuchSlot`] only; what is wrong with a slot is in its report.
    pub fn check_slots(
        &self,
        config: &Config,
        options: &ProviderOptions,
        only: Option<u32>,
    ) -> Result<Vec<SlotCheck>, KeyError> {
        if let Some(id) = only.filter(|id| config.slot(*id).is_none()) {
            return Err(KeyError::NoSuchSlot(id));
        }
        let slots = config.data().slots.iter().filter(|slot| only.is_none_or(|id| slot.id == id));
        Ok(slots.map(|slot| self.check_slot(slot, options)).collect())
    }

    fn check_slot(&self, slot: &KeySlot, options: &ProviderOptions) -> SlotCheck {
        let mut check = SlotCheck {
            slot: slot.id,
            provider: slot.provider.clone(),
            kek: slot.kek.clone(),
            unwraps: Ok(()),
            wraps: None,
            health: None,
            newer_version: None,
        };
        let provider = match provider_from_uri(&slot.provider, options) {
            Ok(provider) => provider,
            Err(error) => {
                check.unwraps = Err(error);
                return check;
            }
        };
        check.unwraps = self.check_unwrap(slot, &provider);
        if slot.kek.parameters.is_none() {
            check.wraps = Some(try_wrap(&*provider));
        }
        check.health = Some(provider.health());
        let newest = provider.latest_version().ok().flatten();
        check.newer_version = newest.filter(|version| *version != slot.kek.key_version);
        check
    }

    /// Whether `provider` unwraps every epoch of `slot` to this volume's keys.
    fn check_unwrap(
        &self,
        slot: &KeySlot,
        provider: &Arc<dyn KekProvider>,
    ) -> Result<(), KekError> {
        let volume_keys = unwrap_slot(self.volume_id, slot, &**provider)?;
        let is_own = |(epoch, key): &(u32, Secret)| {
            self.epoch(*epoch).is_some_and(|keys| keys.volume_key.is_same(key))
        };
        match volume_keys.iter().all(is_own) {
            true => Ok(()),
            false => Err(integrity(&**provider, &slot.kek)),
        }
    }

    fn rotate_if_outdated(
        &self,
        slot: &KeySlot,
        options: &ProviderOptions,
        new_version: bool,
    ) -> Result<Option<KeySlot>, KekError> {
        let provider = provider_from_uri(&slot.provider, options)?;
        let Some(latest) = provider.latest_version()? else { return Ok(None) };
        if new_version {
            provider.create_version()?;
        } else if latest == slot.kek.key_version {
            return Ok(None);
        }
        match self.wrap_slot(slot.id, &*provider) {
            Ok(slot) => Ok(Some(slot)),
            Err(KeyError::Kek(error) | KeyError::CannotUnwrap(error)) => Err(error),
            Err(_) => Err(integrity(&*provider, &slot.kek)),
        }
    }
}

/// Wraps a random secret of a volume that does not exist, and unwraps it again: a disabled key
/// wraps, so that wrapping alone says nothing.
///
/// # Errors
/// What the provider says of either; `Integrity` if something else comes out.
pub fn try_wrap(provider: &dyn KekProvider) -> Result<(), KekError> {
    let mut id = [0; 16];
    random::fill(&mut id);
    let binding = Binding { volume_id: crate::format::VolumeId(id) };
    let secret = random::secret(super::KEY_BYTES);
    let wrapped = provider.wrap(&binding, &[&secret])?;
    let [blob] = &wrapped.blobs[..] else { return Err(integrity(provider, &wrapped.kek)) };
    match provider.unwrap(&binding, &wrapped.kek, blob)?.is_same(&secret) {
        true => Ok(()),
        false => Err(integrity(provider, &wrapped.kek)),
    }
}
