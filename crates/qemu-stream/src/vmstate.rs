//! One interpreter for device sections: a schema says the fields, the codec reads and writes them.
//!
//! QEMU's sections carry no lengths and no tags, so their bytes mean nothing without the field list that wrote
//! them. Schemas have the shape of QEMU's own vmdesc JSON (`migration/vmstate.c`, 7.2 and 10.0); those that ship
//! with us live in `formats/qemu/devices/` and add what a description of one concrete stream does not need:
//! counts taken from an earlier field, fields that are present on a condition, and variants of one program.

pub mod codec;
pub mod schema;
pub mod value;
