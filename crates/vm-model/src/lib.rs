//! What a virtual machine is, in no hypervisor's terms.
