//! HVM_PARAMS: parameters of an HVM domain.

use hyperferry_wire::{Cursor, Encoder, Result};

use crate::Length;
use crate::codec::{Body, Field, decode_all};
use crate::describe::{Fields, Value};

/// HVM_PARAMS: only those that are not 0; Xen 4.6 to 4.8 could write the record empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HvmParams {
    /// The parameters, in wire order.
    pub params: Vec<HvmParam>,
}

layout! {
    /// One parameter.
    pub struct HvmParam: Exact 16 {
        /// Which one: `HVM_PARAM_*`.
        index: u64 as dec,
        /// Its value.
        value: u64,
    }
}

impl HvmParams {
    /// The value of a parameter, where it was sent.
    pub fn get(&self, index: u64) -> Option<u64> {
        self.params.iter().find(|param| param.index == index).map(|param| param.value)
    }
}

impl HvmParam {
    /// Its name in `xen/include/public/hvm/params.h`, without the prefix.
    pub fn name(&self) -> Option<&'static str> {
        Some(match self.index {
            0 => "CALLBACK_IRQ",
            1 => "STORE_PFN",
            2 => "STORE_EVTCHN",
            4 => "PAE_ENABLED",
            5 => "IOREQ_PFN",
            6 => "BUFIOREQ_PFN",
            9 => "VIRIDIAN",
            10 => "TIMER_MODE",
            11 => "HPET_ENABLED",
            12 => "IDENT_PT",
            14 => "ACPI_S_STATE",
            15 => "VM86_TSS",
            16 => "VPT_ALIGN",
            17 => "CONSOLE_PFN",
            18 => "CONSOLE_EVTCHN",
            19 => "ACPI_IOPORTS_LOCATION",
            24 => "NESTEDHVM",
            27 => "PAGING_RING_PFN",
            28 => "MONITOR_RING_PFN",
            29 => "SHARING_RING_PFN",
            31 => "TRIPLE_FAULT_REASON",
            32 => "IOREQ_SERVER_PFN",
            33 => "NR_IOREQ_SERVER_PAGES",
            34 => "VM_GENERATION_ID_ADDR",
            35 => "ALTP2M",
            36 => "X87_FIP_WIDTH",
            37 => "VM86_TSS_SIZED",
            38 => "MCA_CAP",
            _ => return None,
        })
    }
}

impl Body for HvmParams {
    const LENGTH: Length = Length::AtLeast(8);

    fn decode(cursor: &mut Cursor<'_>) -> Result<Self> {
        let count = cursor.u32("count")?;
        let room = cursor.remaining().saturating_sub(4) / HvmParam::SIZE;
        if usize::try_from(count) != Ok(room) {
            return Err(cursor.invalid("count", 4, count, format_args!("{room:#x}, which fills the record")));
        }
        cursor.reserved("reserved", 4)?;
        Ok(Self { params: decode_all(cursor)? })
    }

    fn encode(&self, encoder: &mut Encoder) {
        // The list is at most a record long, and a record's length is a u32.
        encoder.u32(u32::try_from(self.params.len()).unwrap_or(u32::MAX)).zeros(4);
        for param in &self.params {
            Body::encode(param, encoder);
        }
    }

    fn describe(&self) -> Fields {
        let mut fields = Fields::new();
        for param in &self.params {
            let name = match param.name() {
                Some(name) => format!("{} {name}", param.index),
                None => param.index.to_string(),
            };
            fields = fields.with(name, Value::Hex(param.value));
        }
        fields
    }
}
