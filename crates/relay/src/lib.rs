//! The pipeline between two ends: files, a QEMU driven over QMP, live streams.
