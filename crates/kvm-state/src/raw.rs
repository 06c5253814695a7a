//! The few calls that Rust cannot check: union fields of `kvm_irqchip`, and the XSAVE ioctls whose length the kernel
//! decides. Nothing else in the crate is unsafe.
#![allow(unsafe_code, reason = "each block below says why it is sound")]

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_ioapic_state, kvm_irqchip,
    kvm_pic_state, kvm_xsave,
};
use kvm_ioctls::{Cap, VcpuFd, VmFd};

use crate::state::{IoapicState, Irqchip, PicState};
use crate::{Error, Result};

/// Bytes of `kvm_xsave` without its flexible tail.
const XSAVE_FIXED: usize = size_of::<kvm_xsave>();

pub(crate) fn get_irqchip(vm: &VmFd) -> Result<Irqchip> {
    let get = |chip_id| {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        vm.get_irqchip(&mut chip).map_err(Error::on_vm("KVM_GET_IRQCHIP"))?;
        Ok::<_, Error>(chip)
    };
    // SAFETY: every field of the union consists of integers, all of whose bit patterns are valid, and
    // `kvm_irqchip::default` has written all 512 bytes.
    let pic = |chip: kvm_irqchip| PicState::from(unsafe { &chip.chip.pic });
    // SAFETY: as above.
    let ioapic = unsafe { get(KVM_IRQCHIP_IOAPIC)?.chip.ioapic };
    Ok(Irqchip {
        pic_master: pic(get(KVM_IRQCHIP_PIC_MASTER)?),
        pic_slave: pic(get(KVM_IRQCHIP_PIC_SLAVE)?),
        ioapic: IoapicState {
            base_address: ioapic.base_address,
            ioregsel: ioapic.ioregsel,
            id: ioapic.id,
            irr: ioapic.irr,
            // SAFETY: the union holds 64 bits under both of its names.
            redirtbl: ioapic.redirtbl.map(|entry| unsafe { entry.bits }),
        },
    })
}

pub(crate) fn set_irqchip(vm: &VmFd, state: &Irqchip) -> Result<()> {
    let set = |chip: kvm_irqchip| vm.set_irqchip(&chip).map_err(Error::on_vm("KVM_SET_IRQCHIP"));
    for (chip_id, pic) in
        [(KVM_IRQCHIP_PIC_MASTER, &state.pic_master), (KVM_IRQCHIP_PIC_SLAVE, &state.pic_slave)]
    {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        chip.chip.pic = kvm_pic_state::from(pic);
        set(chip)?;
    }
    let mut ioapic = kvm_ioapic_state {
        base_address: state.ioapic.base_address,
        ioregsel: state.ioapic.ioregsel,
        id: state.ioapic.id,
        irr: state.ioapic.irr,
        ..Default::default()
    };
    for (place, bits) in ioapic.redirtbl.iter_mut().zip(state.ioapic.redirtbl) {
        place.bits = bits;
    }
    let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
    chip.chip.ioapic = ioapic;
    set(chip)
}

/// Bytes that the kernel moves in `KVM_GET_XSAVE2` and `KVM_SET_XSAVE`: 4096 at least.
pub(crate) fn xsave_size(vm: &VmFd) -> usize {
    usize::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or(0).max(XSAVE_FIXED)
}

/// `KVM_GET_XSAVE2` where more than the traditional 4096 bytes are needed, else `KVM_GET_XSAVE`.
pub(crate) fn get_xsave(vcpu: &VcpuFd, id: u32, size: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(size);
    if size <= XSAVE_FIXED {
        let area = vcpu.get_xsave().map_err(Error::on_vcpu("KVM_GET_XSAVE", id))?;
        bytes.extend(area.region.iter().flat_map(|word| word.to_le_bytes()));
    } else {
        let mut area = xsave_buffer(size)?;
        // SAFETY: the buffer has the size that KVM_CAP_XSAVE2 named, and this process never asks for more dynamic
        // features with arch_prctl().
        unsafe { vcpu.get_xsave2(&mut area) }.map_err(Error::on_vcpu("KVM_GET_XSAVE2", id))?;
        bytes.extend(area.as_fam_struct_ref().xsave.region.iter().flat_map(|word| word.to_le_bytes()));
        bytes.extend(area.as_slice().iter().flat_map(|word| word.to_le_bytes()));
    }
    Ok(bytes)
}

/// `KVM_SET_XSAVE` with `size` bytes, as [`xsave_size`] gives it.
pub(crate) fn set_xsave(vcpu: &VcpuFd, id: u32, bytes: &[u8], size: usize) -> Result<()> {
    let mut area = xsave_buffer(size)?;
    let mut words = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
    // SAFETY: the length of the flexible tail stays as it is; only the fixed part is written.
    let fixed = unsafe { area.as_mut_fam_struct() };
    fixed.xsave.region.iter_mut().zip(&mut words).for_each(|(place, word)| *place = word);
    area.as_mut_slice().iter_mut().zip(words).for_each(|(place, word)| *place = word);
    // SAFETY: the buffer has the size that KVM_CAP_XSAVE2 named.
    unsafe { vcpu.set_xsave2(&area) }.map_err(Error::on_vcpu("KVM_SET_XSAVE", id))
}

fn xsave_buffer(size: usize) -> Result<kvm_bindings::Xsave> {
    let tail = size.saturating_sub(XSAVE_FIXED).div_ceil(size_of::<u32>());
    kvm_bindings::Xsave::new(tail)
        .map_err(|_| Error::field("KVM_CAP_XSAVE2", size, "a size that can be allocated"))
}
