//! Tests in the lab: real Xen and real KVM. `cargo xtask lab test` boots both hosts and runs them.

mod home;
mod land;
mod live;
mod restore;
mod send;
mod shim;
