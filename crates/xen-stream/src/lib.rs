//! The Xen save and migration stream: xl header, libxl and libxc records, HVM context.
