//! Capture and load vCPU and VM state through /dev/kvm.
