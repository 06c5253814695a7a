//! The PCI part of a device's state: configuration space and interrupt pins.

use hyperferry_qemu_stream::{FieldError, Tree, Value};

/// Length of a conventional configuration space.
pub(crate) const CONFIG_SIZE: usize = 256;
/// Name of the configuration space in every description.
const CONFIG: &str = "config[0]";
/// Name of the four pin levels, one 32-bit number each.
const IRQ_STATE: &str = "irq_state";

/// The structure that holds the PCI part: the first field of every PCI device.
pub(crate) fn parent(tree: &Tree) -> Option<&Tree> {
    tree.fields.iter().find_map(|(_, value)| match value {
        Value::Struct(parent) if parent.get(CONFIG).is_some() => Some(parent),
        Value::Struct(parent) => self::parent(parent),
        _ => None,
    })
}

/// The same, to change it.
pub(crate) fn parent_mut(tree: &mut Tree) -> Option<&mut Tree> {
    tree.fields.iter_mut().find_map(|(_, value)| {
        let Value::Struct(parent) = value else { return None };
        if parent.get(CONFIG).is_some() { Some(parent) } else { parent_mut(parent) }
    })
}

/// A device's configuration space.
pub(crate) fn config(tree: &Tree) -> Option<&[u8]> {
    match parent(tree)?.get(CONFIG)? {
        Value::Bytes(bytes) => Some(bytes),
        _ => None,
    }
}

/// Changes one byte of a device's configuration space.
pub(crate) fn set_config_byte(tree: &mut Tree, register: usize, value: u8) -> Result<(), FieldError> {
    match parent_mut(tree) {
        Some(parent) => parent.set_u64_at(CONFIG, register, value.into()),
        None => Ok(()),
    }
}

/// Configuration space at 4-byte register `register`.
pub(crate) fn dword(config: &[u8], register: usize) -> u32 {
    config
        .get(register..)
        .and_then(|rest| rest.first_chunk::<4>())
        .map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// The interrupt pin that a device uses: 0 for INTA; none if it has none, or signals by message.
pub(crate) fn intx_pin(config: &[u8]) -> Option<u8> {
    let pin = config.get(0x3d).copied()?.checked_sub(1)?;
    let disabled = dword(config, 0x04) & 0x400 != 0;
    (pin < 4 && !disabled && !message_signalled(config)).then_some(pin)
}

/// Whether MSI or MSI-X is enabled.
fn message_signalled(config: &[u8]) -> bool {
    const MSI: u8 = 0x05;
    const MSIX: u8 = 0x11;
    if dword(config, 0x04) >> 20 & 1 == 0 {
        return false;
    }
    let mut at = usize::from(config.get(0x34).copied().unwrap_or(0) & 0xfc);
    // A list of capabilities has at most 48 links; a loop in it ends there.
    for _ in 0..48 {
        if at < 0x40 {
            return false;
        }
        let header = dword(config, at);
        let enabled = match (header & 0xff) as u8 {
            MSI => header >> 16 & 1 == 1,
            MSIX => header >> 31 == 1,
            _ => false,
        };
        if enabled {
            return true;
        }
        at = (header >> 8 & 0xfc) as usize;
    }
    false
}

/// Whether a device asserts an interrupt pin.
pub(crate) fn asserts(tree: &Tree, pin: u8) -> bool {
    let Some(value) = parent(tree).and_then(|parent| parent.get(IRQ_STATE)) else {
        return false;
    };
    match value {
        Value::Bytes(bytes) => {
            bytes.chunks_exact(4).nth(pin.into()).is_some_and(|level| level.iter().any(|b| *b != 0))
        }
        Value::Array(levels) => {
            matches!(
                levels.get(usize::from(pin)),
                Some(Value::Unsigned { value: 1.., .. } | Value::Signed { value: 1.., .. })
            )
        }
        _ => false,
    }
}

/// Address of a memory base address register; none when it is disabled or an I/O range.
pub(crate) fn memory_bar(config: &[u8], bar: usize) -> Option<u64> {
    const MEMORY_ENABLE: u32 = 2;
    let low = dword(config, 0x10 + 4 * bar);
    if low & 1 == 1 || dword(config, 0x04) & MEMORY_ENABLE == 0 {
        return None;
    }
    let high = if low >> 1 & 3 == 2 { dword(config, 0x14 + 4 * bar) } else { 0 };
    let address = u64::from(high) << 32 | u64::from(low & !0xf);
    (address != 0).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Vec<u8> {
        let mut config = vec![0; CONFIG_SIZE];
        config[0x04] = 2;
        config[0x06] = 0x10;
        config[0x10..0x14].copy_from_slice(&0xf000_0008_u32.to_le_bytes());
        config[0x34] = 0x50;
        config[0x50] = 0x05;
        config[0x3d] = 1;
        config
    }

    #[test]
    fn a_device_with_msi_enabled_has_no_pin() {
        let mut config = config();
        assert_eq!(intx_pin(&config), Some(0));
        config[0x52] = 1;
        assert_eq!(intx_pin(&config), None);
    }

    #[test]
    fn a_loop_of_capabilities_ends() {
        let mut config = config();
        config[0x51] = 0x50;
        assert_eq!(intx_pin(&config), Some(0));
    }

    #[test]
    fn a_disabled_range_has_no_address() {
        let mut config = config();
        assert_eq!(memory_bar(&config, 0), Some(0xf000_0000));
        config[0x04] = 0;
        assert_eq!(memory_bar(&config, 0), None);
    }
}
