//! The legal order of a stream: one state, and what may come in it. Reader and writer keep the same.

use hyperferry_wire::ErrorKind;

use crate::libxc::{DomainHeader, DomainType, ImageHeader, Record as Libxc};
use crate::libxl::Record as Libxl;

/// What a stream must go on with.
///
/// ```text
/// XlHeader -> LibxlHeader -> LibxcContext -> ImageHeader -> DomainHeader -> StaticData -> GuestState
///          GuestState -END-> Emulator -END-> Permission -> EndOfStream
///          GuestState -CHECKPOINT-> Checkpoint -CHECKPOINT_END-> GuestState
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    /// The very start.
    XlHeader,
    /// Behind the xl header.
    LibxlHeader,
    /// libxl records until LIBXC_CONTEXT.
    LibxcContext,
    /// Directly behind LIBXC_CONTEXT.
    ImageHeader,
    /// Directly behind the image header; holds its version.
    DomainHeader { version: u32 },
    /// libxc records until STATIC_DATA_END. A version 2 image has none: its first other record ends them.
    StaticData { version: u32, domain: DomainType },
    /// libxc records until END or CHECKPOINT.
    GuestState { domain: DomainType, context_seen: bool },
    /// libxl records between the libxc records CHECKPOINT and what follows it.
    CheckpointEnd { domain: DomainType },
    /// libxl records until END.
    Emulator,
    /// Nothing, or the handover of an `xl migrate`.
    Permission,
    /// Nothing.
    EndOfStream,
}

/// One element of a stream, as far as its order goes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Element<'a> {
    XlHeader,
    LibxlHeader,
    Libxl(&'a Libxl),
    ImageHeader(&'a ImageHeader),
    DomainHeader(&'a DomainHeader),
    Libxc(&'a Libxc),
    PageData,
    PermissionToGo,
}

impl Expect {
    /// Moves on, or says what was found and what may come here.
    pub(crate) fn accept(&mut self, element: Element<'_>) -> Result<(), ErrorKind> {
        match self.next(element) {
            Ok(next) => {
                *self = next;
                Ok(())
            }
            Err(wanted) => Err(ErrorKind::OutOfOrder { found: element.name(), wanted: wanted.to_owned() }),
        }
    }

    fn next(self, element: Element<'_>) -> Result<Self, &'static str> {
        match (self, element) {
            (Self::XlHeader, Element::XlHeader) => Ok(Self::LibxlHeader),
            (Self::XlHeader, _) => Err("the xl header"),
            (Self::LibxlHeader, Element::LibxlHeader) => Ok(Self::LibxcContext),
            (Self::LibxlHeader, _) => Err("the libxl header"),
            (Self::LibxcContext, Element::Libxl(Libxl::LibxcContext)) => Ok(Self::ImageHeader),
            (Self::LibxcContext, Element::Libxl(record)) if about_emulator(record) => Ok(self),
            (Self::LibxcContext, _) => Err("LIBXC_CONTEXT or a record about the emulator"),
            (Self::ImageHeader, Element::ImageHeader(header)) => {
                Ok(Self::DomainHeader { version: header.version })
            }
            (Self::ImageHeader, _) => Err("the libxc image header"),
            (Self::DomainHeader { version }, Element::DomainHeader(header)) => {
                Ok(Self::StaticData { version, domain: header.domain_type })
            }
            (Self::DomainHeader { .. }, _) => Err("the libxc domain header"),
            (Self::StaticData { version, domain }, element) => self.static_data(version, domain, element),
            (Self::GuestState { domain, context_seen }, element) => {
                self.guest_state(domain, context_seen, element)
            }
            (Self::CheckpointEnd { domain }, Element::Libxl(Libxl::CheckpointEnd)) => {
                Ok(Self::GuestState { domain, context_seen: false })
            }
            (Self::CheckpointEnd { .. }, Element::Libxl(record)) if about_emulator(record) => Ok(self),
            (Self::CheckpointEnd { .. }, _) => Err("CHECKPOINT_END or a record about the emulator"),
            (Self::Emulator, Element::Libxl(Libxl::End)) => Ok(Self::Permission),
            (Self::Emulator, Element::Libxl(record)) if about_emulator(record) => Ok(self),
            (Self::Emulator, _) => Err("END or a record about the emulator"),
            (Self::Permission, Element::PermissionToGo) => Ok(Self::EndOfStream),
            (Self::Permission | Self::EndOfStream, _) => Err("the end of the stream"),
        }
    }

    fn static_data(
        self,
        version: u32,
        domain: DomainType,
        element: Element<'_>,
    ) -> Result<Self, &'static str> {
        let guest_state = Self::GuestState { domain, context_seen: false };
        match element {
            Element::Libxc(Libxc::StaticDataEnd) => Ok(guest_state),
            Element::Libxc(Libxc::X86PvInfo(_)) if domain == DomainType::PV => Ok(self),
            Element::Libxc(Libxc::X86CpuidPolicy(_) | Libxc::X86MsrPolicy(_) | Libxc::Unknown { .. }) => {
                Ok(self)
            }
            element if version < 3 => guest_state.next(element),
            _ => Err("static data or STATIC_DATA_END"),
        }
    }

    fn guest_state(
        self,
        domain: DomainType,
        context_seen: bool,
        element: Element<'_>,
    ) -> Result<Self, &'static str> {
        let record = match element {
            Element::PageData => return Ok(self),
            Element::Libxc(record) => record,
            _ => return Err("a libxc record"),
        };
        let hvm = domain == DomainType::HVM;
        match record {
            Libxc::End | Libxc::Checkpoint if hvm && !context_seen => Err("HVM_CONTEXT before it"),
            Libxc::End => Ok(Self::Emulator),
            Libxc::Checkpoint => Ok(Self::CheckpointEnd { domain }),
            Libxc::StaticDataEnd
            | Libxc::X86CpuidPolicy(_)
            | Libxc::X86MsrPolicy(_)
            | Libxc::X86PvInfo(_) => Err("memory or state, as static data has ended"),
            Libxc::HvmContext(_) if hvm => Ok(Self::GuestState { domain, context_seen: true }),
            Libxc::HvmParams(_) if hvm => Ok(self),
            Libxc::HvmContext(_) | Libxc::HvmParams(_) => Err("a record of a PV domain"),
            Libxc::X86PvP2mFrames(_)
            | Libxc::X86PvVcpuBasic(_)
            | Libxc::X86PvVcpuExtended(_)
            | Libxc::X86PvVcpuXsave(_)
            | Libxc::X86PvVcpuMsrs(_)
            | Libxc::SharedInfo(_)
                if hvm =>
            {
                Err("a record of an HVM domain")
            }
            Libxc::X86PvP2mFrames(_)
            | Libxc::X86PvVcpuBasic(_)
            | Libxc::X86PvVcpuExtended(_)
            | Libxc::X86PvVcpuXsave(_)
            | Libxc::X86PvVcpuMsrs(_)
            | Libxc::SharedInfo(_)
            | Libxc::X86TscInfo(_)
            | Libxc::Toolstack(_)
            | Libxc::Verify
            | Libxc::CheckpointDirtyPfnList(_)
            | Libxc::Unknown { .. } => Ok(self),
        }
    }
}

/// Records that may stand anywhere between libxl's other ones; of unknown ones nothing is known.
fn about_emulator(record: &Libxl) -> bool {
    match record {
        Libxl::EmulatorXenstoreData(_) | Libxl::EmulatorContext(_) | Libxl::Unknown { .. } => true,
        Libxl::End | Libxl::LibxcContext | Libxl::CheckpointEnd | Libxl::CheckpointState(_) => false,
    }
}

impl Element<'_> {
    fn name(self) -> String {
        match self {
            Self::XlHeader => "the xl header".to_owned(),
            Self::LibxlHeader => "the libxl header".to_owned(),
            Self::Libxl(record) => record.name().into_owned(),
            Self::ImageHeader(_) => "the libxc image header".to_owned(),
            Self::DomainHeader(_) => "the libxc domain header".to_owned(),
            Self::Libxc(record) => record.name().into_owned(),
            Self::PageData => "PAGE_DATA".to_owned(),
            Self::PermissionToGo => "the permission to go".to_owned(),
        }
    }
}
